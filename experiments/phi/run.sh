#!/usr/bin/env bash
# Who shares φ, the convolution after each scale (Tian et al. 2024, algorithm 1)? None, one for all, four shared in part, one for each scale.
#
#   bash experiments/phi/run.sh               digits
#   SET=imagenet bash experiments/phi/run.sh  VAR's tokenizer, on a cluster
source "$(dirname "$0")/../common.sh"

tokenizer=(experiment="$set_/study_tokenizer") generator=(experiment="$set_/study" budget.images=12000) counts=0,1,4,5
if [ "$set_" = imagenet ]; then
  tokenizer=(experiment=imagenet/var_tokenizer) generator=(experiment=imagenet/var_d16 sampler=default) counts=0,1,4,10
fi

prepare
say "tokenizers"
train "${tokenizer[@]}" tokenizer.phi_count=$counts seed="$seeds" out="$out/tokenizer"
say "a generator on each tokenizer"
train "${generator[@]}" order=next_scale tokenizer_run="$(by_seed "$out/tokenizer")" seed="$seeds" out="$out/generator"
score "$out/tokenizer"
score "$out/generator"
table "$set_-tokenizers" "Sharing φ on $set_: tokenizers" "$out/tokenizer"
table "$set_-generators" "Sharing φ on $set_: generators" "$out/generator"
say "done: $readme"
