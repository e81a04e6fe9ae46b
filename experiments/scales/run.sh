#!/usr/bin/env bash
# How many scales, and which (Tian et al. 2024, section 3)? Reconstruction and the generator's images, for the same training.
#
#   bash experiments/scales/run.sh               digits: 2 to 5 scales up to 4×4
#   SET=imagenet bash experiments/scales/run.sh  5 to 10 scales up to 16×16, on a cluster
source "$(dirname "$0")/../common.sh"

tokenizer=(experiment="$set_/study_tokenizer") generator=(experiment="$set_/study" budget.images=12000)
schedules='[[1,1],[4,4]],[[1,1],[2,2],[4,4]],[[1,1],[2,2],[3,3],[4,4]],[[1,1],[1,2],[2,2],[2,4],[4,4]]'
if [ "$set_" = imagenet ]; then
  tokenizer=(experiment=imagenet/var_tokenizer) generator=(experiment=imagenet/var_d16 sampler=default)
  schedules='[[1,1],[2,2],[4,4],[8,8],[16,16]],[[1,1],[2,2],[3,3],[4,4],[6,6],[8,8],[12,12],[16,16]]'
  schedules+=',[[1,1],[2,2],[3,3],[4,4],[5,5],[6,6],[8,8],[10,10],[13,13],[16,16]]'
fi

prepare
say "tokenizers"
train "${tokenizer[@]}" tokenizer.scales="$schedules" seed="$seeds" out="$out/tokenizer"
say "a generator on each tokenizer"
train "${generator[@]}" order=next_scale tokenizer_run="$(by_seed "$out/tokenizer")" seed="$seeds" out="$out/generator"
score "$out/tokenizer"
score "$out/generator"
table "$set_-tokenizers" "Scales on $set_: tokenizers" "$out/tokenizer"
table "$set_-generators" "Scales on $set_: generators" "$out/generator"
say "done: $readme"
