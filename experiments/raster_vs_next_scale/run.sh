#!/usr/bin/env bash
# Raster against next-scale: the same transformer, optimizer and order of data; three seeds; at equal training FLOPs, equal images and equal
# time. Each order with its own tokenizer, and raster over next-scale's tokenizer too (all scales flattened). Any command may be run again.
# Kinds of tokenizers are compared, so each seed trains its own of each kind: the paired differences then vary with the luck of both.
# On digits each order then gets its own learning rate and decay.
#
#   bash experiments/raster_vs_next_scale/run.sh               digits
#   SET=photos bash experiments/raster_vs_next_scale/run.sh    crops of photographs, 64 pixels
#   SET=imagenet bash experiments/raster_vs_next_scale/run.sh  the papers' tokenizers and VAR-d16's transformer, on a cluster
#   MATCHING=flops bash …                                      equal FLOPs only, of the three ways to match
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
for matching in ${MATCHING:-flops images seconds}; do
  say "equal $matching"
  each=(budget.flops=null budget.images=null "budget.$matching=${budget[$matching]}" seed="$seeds" out="$out/$matching")
  # equal time is taken alone on the machine: else one's pace would depend on the other's
  [ $matching = seconds ] && [ "$launch" = joblib ] && each+=(launch=local)
  train "${generator[@]}" "${each[@]}" order=next_scale tokenizer_run="$multi"
  train "${generator[@]}" "${each[@]}" order=raster tokenizer_run="$multi,$single"
  score "$out/$matching"
  table "$set_-$matching" "Raster against next-scale on $set_, equal $matching" "$out/$matching"
done

# tuned NAME ORDER TOKENIZER: six trials on the first seed's tokenizer, and the study's trainings with the best settings
tuned() {
  local trials=$out/tuning/$1 training=("${generator[@]}" budget.images=null budget.flops="${budget[flops]}" order="$2") settings
  train "${training[@]}" "${rates[@]}" tokenizer_run="${3/'${seed}'/${seeds%%,*}}" seed=10 out="$trials"
  read -ra settings <<<"$(python "$here/best.py" "$trials")"
  say "$1: ${settings[*]}"
  train "${training[@]}" "${settings[@]}" tokenizer_run="$3" seed="$seeds" out="$out/tuned"
}
if [ "$set_" = digits ]; then
  say "equal FLOPs, each order and tokenizer with the best of six learning rates and decays, by val NLL of a seed of its own"
  rates=(task.optimizer.lr=1.0e-3,2.0e-3,4.0e-3 task.optimizer.weight_decay=0.05,0.2)
  tuned next_scale next_scale "$multi"
  tuned raster_multi raster "$multi"
  tuned raster_single raster "$single"
  score "$out/tuned"
  table "$set_-tuned" "Raster against next-scale on $set_, equal training FLOPs, each with settings of its own" "$out/tuned"
fi
say "done: $readme"
