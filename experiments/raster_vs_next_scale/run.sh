#!/usr/bin/env bash
# Raster against next-scale: the same transformer, optimizer and order of data; three seeds; at equal training FLOPs, equal images and equal
# time. Each order with its own tokenizer, and raster over next-scale's tokenizer too (all scales flattened). Any command may be run again.
# Kinds of tokenizers are compared, so each seed trains its own of each kind: the paired differences then vary with the luck of both.
#
#   bash experiments/raster_vs_next_scale/run.sh               digits
#   SET=photos bash experiments/raster_vs_next_scale/run.sh    crops of photographs, 64 pixels
#   SET=imagenet bash experiments/raster_vs_next_scale/run.sh  the papers' tokenizers and VAR-d16's transformer, on a cluster
source "$(dirname "$0")/../common.sh"

kinds=(multi single) generator=(experiment="$set_/study")
declare -A budget=([flops]=3.0e12 [images]=20000 [seconds]=45)
case $set_ in
  photos)
    kinds=(photos_multi photos_single)
    budget=([flops]=4.0e12 [images]=8000 [seconds]=60)
    ;;
  imagenet)
    multi=runs/imagenet/var_tokenizer single=runs/imagenet/vqgan_tokenizer generator=(experiment=imagenet/var_d16 sampler=default)
    budget=([flops]=2.4e20 [images]=256233400 [seconds]=86400)
    ;;
esac

prepare tokenizer="${kinds[0]},${kinds[1]}" seed="$seeds"
if [ "$set_" != imagenet ]; then
  multi=$(by_seed "$out/tokenizer" | tr , '\n' | grep "tokenizer=${kinds[0]}'$")
  single=$(by_seed "$out/tokenizer" | tr , '\n' | grep "tokenizer=${kinds[1]}'$")
fi
for matching in flops images seconds; do
  say "equal $matching"
  each=(budget.flops=null budget.images=null "budget.$matching=${budget[$matching]}" seed="$seeds" out="$out/$matching")
  # equal time is taken alone on the machine: else one's pace would depend on the other's
  [ $matching = seconds ] && [ "$launch" = joblib ] && each+=(launch=local)
  train "${generator[@]}" "${each[@]}" order=next_scale tokenizer_run="$multi"
  train "${generator[@]}" "${each[@]}" order=raster tokenizer_run="$multi,$single"
  score "$out/$matching"
  table "$set_-$matching" "Raster against next-scale on $set_, equal $matching" "$out/$matching"
done
say "done: $readme"
