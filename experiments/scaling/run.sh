#!/usr/bin/env bash
# Scaling laws (Tian et al. 2024, section 5): sizes × budgets × seeds, then the fits of L = (a·x)^b over parameters and over least compute.
# Each size and seed trains once for the longest budget; the shorter ones branch from it where their cool-downs begin.
#
#   bash experiments/scaling/run.sh               digits: six sizes of 8.6 thousand to 1 million parameters
#   SET=imagenet bash experiments/scaling/run.sh  VAR-d12 to d30, on a cluster
usual=0,1 # seeds
source "$(dirname "$0")/../common.sh"

multi=$out/tokenizer/tokenizer=multi generator=(experiment="$set_/scaling") longest=18432 shorter=9216,4608
sizes=tiny_d6,tiny_d5,tiny_d4,tiny_d3,tiny_d2,tiny_d1 # the largest first: two cores end together
if [ "$set_" = imagenet ]; then
  multi=runs/imagenet/var_tokenizer longest=256233400 shorter=128116700,64058350
  generator=(experiment=imagenet/var_d16 trainer.recompute=true trainer.micro_batch=48 val.every=128117 checkpoint.keep="[102493360,51246680]"
    task.schedule.warmup=1281167 task.schedule.hold=0 task.schedule.cooldown=0.2)
  sizes=var_d30,var_d24,var_d20,var_d16,var_d12
fi
generator+=(tokenizer_run="$multi" transformer=$sizes seed="$seeds" out="$out/generator")

prepare tokenizer=multi
say "sizes × seeds, the longest budget"
train "${generator[@]}" budget.images=$longest
say "the cool-downs of the shorter budgets"
train "${generator[@]}" budget.images=$shorter from="$out/generator"
table "$set_" "Scaling laws on $set_" "$out/generator"
say "done: $readme"
