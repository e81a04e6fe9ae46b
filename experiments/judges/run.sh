#!/usr/bin/env bash
# Does the FID of one judge rank models as three judges do together (FDr)? Generators of other lengths, orders and guidance, each in three
# feature spaces.
#
#   bash experiments/judges/run.sh               digits: judges of another seed and of another width
#   SET=imagenet bash experiments/judges/run.sh  VAR-d16 under other guidance in Inception's features and in those of the networks in the
#                                                folders SPACES (docs/scores.md), on a cluster
usual=0 # seed
source "$(dirname "$0")/../common.sh"

generator=$out/generator cfgs=0,1 judges=(extractor.run="$out/judge")
spaces=${SPACES:-$out/another,$out/wide}
if [ "$set_" = imagenet ]; then
  generator=runs/imagenet/var_d16 cfgs=0,1,1.5,2,3 judges=()
  spaces=${SPACES:-weights/dinov2_vits14,weights/clip_vitb16,weights/convnext_base}
fi

prepare tokenizer=multi
if [ "$set_" != imagenet ]; then
  say "two more judges: another seed, and another seed and width"
  # shellcheck disable=SC2086
  varlab train experiment="$set_/judge" seed=3 out="$out/another" $more
  # shellcheck disable=SC2086
  varlab train experiment="$set_/judge" seed=4 classifier.channels=[24,48,96] out="$out/wide" $more
  say "generators"
  each=(experiment="$set_/study" tokenizer_run="$out/tokenizer/tokenizer=multi" seed="$seeds" out="$generator")
  train "${each[@]}" order=next_scale budget.images=2500,5000,10000,20000
  train "${each[@]}" order=raster budget.images=10000
fi
say "scores in three spaces"
score "$generator" "${judges[@]}" spaces="[$spaces]" cfg=$cfgs
table "$set_" "One judge or three, on $set_" "$generator"
say "done: $readme"
