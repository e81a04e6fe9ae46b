#!/usr/bin/env bash
# How many codes (Esser et al. 2021, table 5)? Reconstruction, usage, and the generator's images, for the same training.
#
#   bash experiments/codebook/run.sh               digits: 32 to 2,048 codes
#   SET=imagenet bash experiments/codebook/run.sh  1,024 to 16,384 codes, on a cluster
source "$(dirname "$0")/../common.sh"

tokenizer=(experiment="$set_/study_tokenizer") generator=(experiment="$set_/study" budget.images=12000) sizes=32,128,512,2048
if [ "$set_" = imagenet ]; then
  tokenizer=(experiment=imagenet/var_tokenizer) generator=(experiment=imagenet/var_d16 sampler=default) sizes=1024,4096,16384
fi

prepare
say "tokenizers"
train "${tokenizer[@]}" tokenizer.vocab_size=$sizes seed="$seeds" out="$out/tokenizer"
say "a generator on each tokenizer"
train "${generator[@]}" order=next_scale tokenizer_run="$(by_seed "$out/tokenizer")" seed="$seeds" out="$out/generator"
score "$out/tokenizer"
score "$out/generator"
table "$set_-tokenizers" "Codebook size on $set_: tokenizers" "$out/tokenizer" against=previous
table "$set_-generators" "Codebook size on $set_: generators" "$out/generator" against=previous
say "done: $readme"
