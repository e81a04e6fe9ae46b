#!/usr/bin/env bash
# Guidance × top-k × top-p from one checkpoint: which setting is best depends on the score one looks at.
#
#   bash experiments/guidance/run.sh               digits
#   SET=imagenet bash experiments/guidance/run.sh  VAR-d16 (imported or trained as runs/imagenet/var_d16/default), on a cluster
usual=0 # seed
source "$(dirname "$0")/../common.sh"

cfgs=0,0.5,1,2,4 top_ks=0,32,8 top_ps=1.0,0.9 generator=$out/generator
[ "$set_" = imagenet ] && cfgs=0,1,1.5,2,3 top_ks=0,900,600 top_ps=1.0,0.96 generator=runs/imagenet/var_d16

prepare tokenizer=multi
if [ "$set_" != imagenet ]; then
  say "a generator"
  train experiment="$set_/study" order=next_scale tokenizer_run="$out/tokenizer/tokenizer=multi" seed="$seeds" out="$generator"
fi
say "the grid"
score "$generator" cfg=$cfgs top_k=$top_ks top_p=$top_ps
table "$set_" "Guidance, top-k and top-p on $set_" "$generator"
say "done: $readme"
