#!/usr/bin/env bash
# How far may a tokenizer compress (Esser et al. 2021, section 4.4)? Downsampling f, and the generator to be had on it for the same images.
#
#   bash experiments/downsampling/run.sh               digits: f = 2, 4, 8 (64, 16 and 4 tokens)
#   SET=imagenet bash experiments/downsampling/run.sh  f = 8, 16, 32, on a cluster
source "$(dirname "$0")/../common.sh"

tokenizer=(experiment="$set_/study_tokenizer" tokenizer=single) generator=(experiment="$set_/study" budget.images=12000) fs="2 4 8"
declare -A grid=([2]='[[8,8]]' [4]='[[4,4]]' [8]='[[2,2]]') stages=([2]='[1,2]' [4]='[1,2,4]' [8]='[1,2,4,4]')
if [ "$set_" = imagenet ]; then
  tokenizer=(experiment=imagenet/vqgan_tokenizer) generator=(experiment=imagenet/vqgan_transformer) fs="8 16 32"
  grid=([8]='[[32,32]]' [16]='[[16,16]]' [32]='[[8,8]]') stages=([8]='[1,1,2,4]' [16]='[1,1,2,2,4]' [32]='[1,1,2,2,4,4]')
fi

prepare
say "tokenizers"
for f in $fs; do
  train "${tokenizer[@]}" tokenizer.scales="${grid[$f]}" tokenizer.channel_mult="${stages[$f]}" seed="$seeds" out="$out/tokenizer"
done
say "a generator on each tokenizer"
train "${generator[@]}" order=raster tokenizer_run="$(by_seed "$out/tokenizer")" seed="$seeds" out="$out/generator"
score "$out/tokenizer"
score "$out/generator"
table "$set_-tokenizers" "Downsampling on $set_: tokenizers" "$out/tokenizer"
table "$set_-generators" "Downsampling on $set_: generators" "$out/generator"
say "done: $readme"
