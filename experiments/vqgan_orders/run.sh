#!/usr/bin/env bash
# VQGAN's orders (Esser et al. 2021): the same tokens, transformer and images along six paths.
#
#   bash experiments/vqgan_orders/run.sh               digits
#   SET=imagenet bash experiments/vqgan_orders/run.sh  VQGAN's tokenizer and transformer, on a cluster
source "$(dirname "$0")/../common.sh"

single=$out/tokenizer/tokenizer=single generator=(experiment="$set_/study")
if [ "$set_" = imagenet ]; then
  single=runs/imagenet/vqgan_tokenizer generator=(experiment=imagenet/vqgan_transformer)
fi

prepare tokenizer=single
say "six orders"
train "${generator[@]}" order=raster,z_curve,alternate,spiral_out,spiral_in,subsample tokenizer_run="$single" seed="$seeds" out="$out/generator"
score "$out/generator"
table "$set_" "VQGAN's orders on $set_" "$out/generator" against=raster
say "done: $readme"
