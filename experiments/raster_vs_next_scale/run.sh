#!/usr/bin/env bash
# Raster against next-scale: the same transformer, optimizer and order of data; three seeds; at equal training FLOPs, equal images and equal
# time. Each order with its own tokenizer, and raster over next-scale's tokenizer too (all scales flattened). Any command may be run again.
#
#   bash experiments/raster_vs_next_scale/run.sh            digits
#   SET=photos bash experiments/raster_vs_next_scale/run.sh  crops of photographs, 64 pixels
set -euo pipefail
set_=${SET:-digits} out=${OUT:-runs/raster_vs_next_scale/${SET:-digits}} seeds=${SEEDS:-0,1,2} n=${N:-1800}
readme=${README:-$(dirname "$0")/README.md}
declare -A budget
if [ "$set_" = digits ]; then
  budget=([flops]="budget.flops=${FLOPS:-3.0e12}" [images]="budget.flops=null budget.images=${IMAGES:-20000}"
    [seconds]="budget.flops=null budget.seconds=${SECONDS_EACH:-45}")
else
  budget=([flops]="budget.flops=${FLOPS:-2.0e13}" [images]="budget.flops=null budget.images=${IMAGES:-16000}"
    [seconds]="budget.flops=null budget.seconds=${SECONDS_EACH:-180}")
fi
more=${MORE:-} # further overrides for every training: the tests make them small
started=$SECONDS
say() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }
train() { varlab train "$@" $more; }

say "shards, a judge, a perceptual net"
varlab pack source="$set_"
train experiment="$set_/judge" out="$out/judge" &
train experiment="$set_/perceptual" out="$out/perceptual"
wait -n

say "a multi-scale and a single-scale tokenizer"
train -m launch=joblib experiment="$set_/tokenizer" tokenizer=multi,single perceptual.run="$out/perceptual" out="$out/tokenizer"

for matching in flops images seconds; do
  say "equal $matching"
  at="$out/$matching" launch=joblib
  [ $matching = seconds ] && launch=local # alone on the machine: else one's pace would depend on the other's
  common=(experiment="$set_/generator" ${budget[$matching]} seed="$seeds" scores.every=null pictures.every=null out="$at")
  train -m launch=$launch "${common[@]}" order=next_scale tokenizer_run="$out/tokenizer/tokenizer=multi"
  train -m launch=$launch "${common[@]}" order=raster tokenizer_run="$out/tokenizer/tokenizer=multi,$out/tokenizer/tokenizer=single"
  runs=$(find "$at" -maxdepth 2 -name weights.safetensors -printf '%h\n' | sort | paste -sd,)
  varlab evaluate -m launch=joblib n="$n" batch=300 extractor.run="$out/judge" run="$runs" out="$at/scores"
  varlab report "$at" title="Raster against next-scale on $set_, equal $matching" out="$at" readme="$readme" section="$set_-$matching"
done
say "done: $readme"
