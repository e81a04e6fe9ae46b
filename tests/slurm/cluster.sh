#!/usr/bin/env bash
# cluster.sh start|stop|node NAME|kill NAME: a real Slurm of two nodes with accounting, on this machine's loopback.
# Everything lives under $SLURM_DEV; nothing in /etc is touched, no systemd is needed. As root.
# Needs (Debian 12): slurm-wlm munge slurmdbd mariadb-server, and a host name that resolves.
set -euo pipefail
D=${SLURM_DEV:?the folder of the cluster}
HOST=$(hostname -s)
ETC=$D/etc
export SLURM_CONF=$ETC/slurm.conf
CONTROLLER=26817 ACCOUNTING=26819 NODE=26820 DATABASE=26830 # ports; each node has its own after NODE

configure() {
  mkdir -p "$ETC" "$D"/{log,run,state,spool,munge}
  getent hosts "$HOST" >/dev/null || { echo "the host name $HOST does not resolve: add '127.0.0.1 $HOST' to /etc/hosts" >&2; exit 1; }
  cat >"$SLURM_CONF" <<C
ClusterName=varlab
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$CONTROLLER
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire: a requeued job waits that long before it may start (less than 5 counts as 120)
AuthInfo=socket=$D/munge/munge.sock,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=200000,batch_sched_delay=0
PriorityType=priority/basic
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=10
OverTimeLimit=0
MinJobAge=600
SlurmctldTimeout=60
# A node whose daemon is silent for so long is lost
SlurmdTimeout=15
InactiveLimit=0
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd.%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.%n.log
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$ACCOUNTING
AccountingStoragePass=$D/munge/munge.sock
NodeName=n[1-2] NodeHostname=$HOST NodeAddr=127.0.0.1 Port=[$((NODE + 1))-$((NODE + 2))] CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=100 PreemptMode=OFF
C
  cat >"$ETC/slurmdbd.conf" <<C
AuthType=auth/munge
AuthInfo=socket=$D/munge/munge.sock
DbdHost=$HOST
DbdAddr=127.0.0.1
DbdPort=$ACCOUNTING
SlurmUser=root
LogFile=$D/log/slurmdbd.log
PidFile=$D/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$DATABASE
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
C
  chmod 600 "$ETC/slurmdbd.conf"
}

wait_for() { # COMMAND [tenths of a second]
  for _ in $(seq 1 "${2:-300}"); do eval "$1" >/dev/null 2>&1 && return 0; sleep 0.1; done
  echo "this did not come true: $1" >&2
  return 1
}

start_munge() { # our own key and socket
  [ -s "$D/munge/munge.key" ] || (umask 077; head -c 1024 /dev/urandom >"$D/munge/munge.key")
  chmod 755 "$D" "$D/munge"
  chmod 400 "$D/munge/munge.key"
  munged --force --key-file="$D/munge/munge.key" --socket="$D/munge/munge.sock" \
    --pid-file="$D/run/munged.pid" --log-file="$D/log/munged.log" --seed-file="$D/munge/seed"
  wait_for "munge -S $D/munge/munge.sock -n"
}

sql() { mariadb --no-defaults -uroot -S "$D/mysql/s.sock" -e "$1"; }

start_database() {
  if [ ! -d "$D/mysql/mysql" ]; then
    mkdir -p "$D/mysql"
    chown mysql "$D/mysql"
    mariadb-install-db --no-defaults --user=mysql --datadir="$D/mysql" --skip-test-db \
      --auth-root-authentication-method=normal >"$D/log/mysql-install.log" 2>&1
  fi
  setsid mariadbd --no-defaults --user=mysql --datadir="$D/mysql" --socket="$D/mysql/s.sock" --pid-file="$D/mysql/pid" \
    --bind-address=127.0.0.1 --port=$DATABASE --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 \
    >"$D/log/mariadbd.log" 2>&1 </dev/null &
  wait_for "sql 'select 1'"
  sql "create database if not exists slurm_acct"
  for at in localhost 127.0.0.1; do
    sql "create user if not exists slurm@'$at' identified by 'slurm'; grant all on slurm_acct.* to slurm@'$at'"
  done
}

start() {
  configure
  start_munge
  start_database
  slurmdbd
  wait_for "sacctmgr -n -i list cluster"
  sacctmgr -i -n list cluster | grep -qw varlab || sacctmgr -i add cluster varlab >/dev/null
  slurmctld -f "$SLURM_CONF"
  node n1
  node n2
  wait_for "sinfo -h -N -p main -t idle -o %N | sort -u | wc -l | grep -qx 2"
}

node() { slurmd -N "$1" -f "$SLURM_CONF"; } # its daemon, anew

kill_node() { # which may have come back a moment ago, and not yet have written its number
  wait_for "kill -0 \$(cat '$D/run/slurmd.$1.pid') 2>/dev/null"
  kill -9 "$(cat "$D/run/slurmd.$1.pid")"
}

stop() { # in an order in which each can say goodbye
  scancel --user="$(id -un)" 2>/dev/null || true
  sleep 1
  local file pid
  for file in "$D"/run/slurmd.*.pid "$D"/run/slurmctld.pid "$D"/run/slurmdbd.pid "$D"/mysql/pid "$D"/run/munged.pid; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || continue
    wait_for "! kill -0 $pid" 100 || true
  done
}

case "${1:-}" in
  start) start ;;
  stop) stop ;;
  node) node "$2" ;;
  kill) kill_node "$2" ;;
  *) echo "usage: cluster.sh start|stop|node NAME|kill NAME" >&2; exit 2 ;;
esac
