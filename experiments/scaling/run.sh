#!/usr/bin/env bash
# Scaling laws (Tian et al. 2024, section 5): sizes × budgets × seeds, then the fits of L = (a·x)^b over parameters and over least compute.
#
#   bash experiments/scaling/run.sh               digits: six sizes of 8.6 thousand to 1 million parameters
#   SET=imagenet bash experiments/scaling/run.sh  VAR-d12 to d30, on a cluster
usual=0,1 # seeds
source "$(dirname "$0")/../common.sh"

multi=$out/tokenizer/tokenizer=multi generator=(experiment="$set_/scaling") budgets=18432,9216,4608
sizes=tiny_d6,tiny_d5,tiny_d4,tiny_d3,tiny_d2,tiny_d1 # the largest first: two cores end together
if [ "$set_" = imagenet ]; then
  multi=runs/imagenet/var_tokenizer generator=(experiment=imagenet/var_d16 val.every=128117) budgets=256233400,128116700,64058350
  sizes=var_d30,var_d24,var_d20,var_d16,var_d12
fi

prepare tokenizer=multi
say "sizes × budgets × seeds"
train "${generator[@]}" tokenizer_run="$multi" budget.images=$budgets transformer=$sizes seed="$seeds" out="$out/generator"
table "$set_" "Scaling laws on $set_" "$out/generator"
say "done: $readme"
