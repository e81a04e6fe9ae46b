"""What people's machines leave in a process's environment, or lack: the command works, or one sentence says the way out."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests import small
from tests.conftest import ROOT
from varlab.cli.main import main
from varlab.files import locked
from varlab.launch import environment
from varlab.launch.user_message import user_message
from varlab.run.directory import RunDirectory
from varlab.run.record import RunRecord, read_record

_TORCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK")
_SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS")
_SECOND_OF_TWO = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
LEFT_OVER: dict[str, dict[str, str]] = {
    "a node": {"NODE_RANK": "1", "GROUP_RANK": "1"},
    "torch": {**_SECOND_OF_TWO, "MASTER_ADDR": "10.9.9.9", "MASTER_PORT": "1"},
    "a batch script": {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "x"},
    "an interactive step": {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "bash",
        "SLURM_NODEID": "1",
        **dict.fromkeys(_SLURM, "1"),
    },
    "another launcher": {"VARLAB_STARTER": "1", "JSM_NAMESPACE_RANK": "3", **_SECOND_OF_TWO},
    "nothing": dict.fromkeys((*_TORCH, *_SLURM, "MASTER_PORT"), ""),
    "no numbers": dict.fromkeys((*_TORCH, *_SLURM, "MASTER_PORT"), "x²"),
}
NAMELESS = ("unshare", "-U", "--map-user=12345", "--map-group=12345")
OWN_MOUNTS = ("unshare", "-m")
JUDGE = ("train", *small.RUNS["judge"], "budget.images=64", "val.skip=true")


@pytest.fixture(params=LEFT_OVER)
def left_over(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LEFT_OVER[request.param].items():
        monkeypatch.setenv(name, value)


def test_one_process_is_rank_0(left_over: None, varlab: Callable[..., tuple[int, str, str]], workplace: Path) -> None:
    before = dict(os.environ)
    code, _, err = varlab("fake", "out=here")
    assert code == 0 and read_record(workplace / "here").outcome.finished, err
    assert dict(os.environ) == before


@pytest.mark.parametrize("nodes", [1, 2])
def test_what_lightning_would_obey_is_hidden(nodes: int, left_over: None) -> None:
    with environment.clean_environment(nodes=nodes):
        left = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "JSM_NAMESPACE_RANK"} & set(
            os.environ
        )
        assert not left and environment.started_ranks() is None
        assert ("NODE_RANK" in os.environ) <= (nodes == 2)
        assert nodes == 2 or environment.global_rank() == 0


@pytest.mark.parametrize(
    ("launcher", "place"),
    [
        (
            {"TORCHELASTIC_RUN_ID": "a", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "SLURM_PROCID": "0"},
            (3, 1, 4),
        ),
        ({"VARLAB_STARTER": str(os.getppid()), "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, (1, 1, 2)),
        (
            {
                **{
                    "SLURM_TASK_PID": str(os.getpid()),
                    "SLURM_PROCID": "2",
                    "SLURM_LOCALID": "0",
                    "SLURM_STEP_NUM_TASKS": "3",
                },
                **{
                    "RANK": "0",
                    "LOCAL_RANK": "0",
                    "WORLD_SIZE": "2",
                    "NODE_RANK": "0",
                },  # left over where it was submitted
            },
            (2, 0, 3),
        ),
    ],
)
def test_ranks_of_a_launcher(
    launcher: dict[str, str], place: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        assert (environment.global_rank(), environment.local_rank(), environment.started_ranks()) == place
        with environment.clean_environment(nodes=1):
            assert (environment.global_rank(), environment.local_rank(), environment.started_ranks()) == place
            assert ("RANK" in os.environ) != ("SLURM_PROCID" in os.environ)


def test_the_shell_of_a_step_is_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """``srun -n 2 --pty bash``: what is started there has a terminal, and is not the task itself."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "0")
    child, terminal = pty.fork()
    if child == 0:
        os._exit(0 if environment.started_ranks() is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    os.close(terminal)


# -- users, streams, encodings ---------------------------------------------------------------------------------------------


def command(
    *arguments: str, before: Sequence[str] = (), cwd: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """``varlab …`` in a process of its own, without this one's environment."""
    words = [*before, sys.executable, "-m", "varlab.cli.main", *arguments]
    needed = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=cwd, env=needed | variables, capture_output=True, text=True, timeout=300)


def needs(*words: str) -> None:
    if shutil.which(words[0]) is None or subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip(f"{' '.join(words)} is not allowed here")


def test_a_user_without_a_name_or_a_home() -> None:
    needs(*NAMELESS)
    code = (
        "import getpass, pathlib\nfrom varlab.launch.environment import clean_environment\n"
        "with clean_environment(nodes=1): print(getpass.getuser(), pathlib.Path.home())\n"
        "try: getpass.getuser()\nexcept (KeyError, OSError): print('nameless')"
    )
    done = subprocess.run(
        [*NAMELESS, sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["uid12345", "/nonexistent", "nameless"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("home", [{}, {"HOME": "/nonexistent", "TMPDIR": "/nonexistent"}, {"HOME": "/proc"}])
def test_a_user_without_a_name_trains(home: dict[str, str], lab: Path, tmp_path: Path) -> None:
    needs(*NAMELESS)
    data = f"data.path='{lab.absolute() / 'data' / 'source=digits'}'"
    done = command(*JUDGE, data, f"out={tmp_path / 'run'}", before=NAMELESS, cwd=tmp_path, **home)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a batch script", "no numbers"])
def test_what_is_left_over_when_lightning_is_imported(kind: str, lab: Path, tmp_path: Path) -> None:
    data = f"data.path='{lab.absolute() / 'data' / 'source=digits'}'"
    done = command(*JUDGE, data, f"out={tmp_path / 'run'}", cwd=tmp_path, **LEFT_OVER[kind])
    assert done.returncode == 0, done.stderr
    assert read_record(tmp_path / "run").outcome.finished


def test_an_encoding_without_our_letters(tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = command("--help", cwd=tmp_path, **ascii_only)
    assert done.returncode == 0 and "usage: varlab COMMAND [key=value \\u2026]" in done.stdout, done.stderr
    done = command("pack", "path=写真", cwd=tmp_path, **ascii_only)
    assert done.returncode == 1 and done.stderr == "varlab: ascii has not all of these letters: set PYTHONUTF8=1.\n"


def test_closed_streams(workplace: Path) -> None:
    """Their numbers go to no file of the run."""
    code = "import sys, tests.fake, varlab.cli.main as cli; sys.exit(cli.main(sys.argv[1:], tests.fake.COMMANDS))"
    words = [sys.executable, "-c", code, "fake", "out=here", "--config-dir", str(workplace.parent / "conf")]
    assert subprocess.run(["bash", "-c", '"$@" <&- >&- 2>&-', "", *words], timeout=60).returncode == 0
    assert read_record(workplace / "here").outcome.finished
    assert (workplace / "here" / ".lock").read_text().startswith("process ")


# -- file systems ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(monkeypatch, number)
    start = time.monotonic()
    for _ in range(2):
        with RunDirectory(tmp_path / "run") as directory, locked(tmp_path / "run" / "lock"):
            directory.prepare(RunRecord(command="train", config={"seed": 1}))
    assert time.monotonic() < start + 3
    (warning,) = (record.getMessage() for record in caplog.records if "no locks" in record.getMessage())
    assert f"{tmp_path / 'run'} has no locks ({os.strerror(number)})" in warning


def test_locks_that_fail_otherwise(
    varlab: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, errno.EIO)
    code, _, err = varlab("fake", "out=here")
    assert code == 1 and "Could not write here/.lock: Input/output error: repair its disk" in err


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the system refuse every lock."""

    def no(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", no)
    monkeypatch.setattr(fcntl, "flock", no)


SMALL = "/dev/shm has "


@pytest.mark.parametrize(
    "text",
    [
        "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)",
        "unable to write to file </torch_1_2_3>: No space left on device (28)",
        "DataLoader worker (pid 5) is killed by signal: Bus error. It is possible that dataloader's workers are out of …",
    ],
)
def test_too_little_shared_memory_is_one_sentence(text: str) -> None:
    said = user_message(RuntimeError(text))
    assert SMALL in said and "data.workers=0" in said and "--shm-size" in said


def test_pack_without_the_system_s_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No /dev/shm, or none with room: processes cannot share locks, and one process needs none."""
    from multiprocessing import synchronize

    import joblib  # noqa: F401  # it looks for locks when it is imported, and does without them ever after

    def no(*arguments: object, **more: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(synchronize._multiprocessing, "SemLock", no)
    words = ("pack", "source=digits", f"out={tmp_path / 'out'}")
    assert main([*words, "workers=2"]) == 1
    assert SMALL in capsys.readouterr().err
    assert main([*words, "workers=0"]) == 0


@pytest.mark.slow
def test_a_small_shared_memory(lab: Path, tmp_path: Path) -> None:
    """The trainer does not wait for a batch that a worker could not send; without workers the run goes on."""
    needs(*OWN_MOUNTS)
    data = f"data.path='{lab.absolute() / 'data' / 'source=digits'}'"
    shell = 'mount -t tmpfs -o size=100k none /dev/shm && exec "$@"'
    words = (
        *JUDGE,
        data,
        "data.batch=640",
        "budget.images=1280",
        f"out={tmp_path / 'run'}",
    )
    before = (*OWN_MOUNTS, "bash", "-c", shell, "")
    done = command(*words, "data.workers=2", before=before, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "/dev/shm has 0 MB" in done.stderr.splitlines()[-1]
    again = command(*words, "data.workers=0", f"out={tmp_path / 'other'}", before=before, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
