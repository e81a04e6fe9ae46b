#!/usr/bin/env bash
# What the data room costs: reading, packing, encoding, training from tokens. Every figure of this folder's README.
set -euo pipefail
out=${OUT:-runs/streaming}
here=$(dirname "$0")
started=$SECONDS
say() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }
seconds() { local s; s=$(date +%s.%N); "$@" > /dev/null; echo "$(date +%s.%N) - $s" | bc; }
mkdir -p "$out"

say "20,000 JPEG files of 256 pixels"
[ -d "$out/jpegs" ] || python "$here/make_images.py" "$out/jpegs" 20000

say "packing them as they are, beside tar and sha256sum: ten copies of each file, 2.4 GB"
for k in 0 1 2 3 4 5 6 7 8 9; do
  for class in "$out"/jpegs/*; do mkdir -p "$out/many/$(basename "$class")/$k" && cp "$class"/* "$out/many/$(basename "$class")/$k"; done
done
tar_and_sum() { tar cf "$out/plain.tar" -C "$out/many" . && sha256sum "$out/plain.tar"; }
pack() { varlab pack source=folder path="$out/many" source.size=null source.val_fraction=0.05 out="$out/packed" sheet=0 "$@"; }
for round in 1 2 3; do
  rm -rf "$out/packed" "$out/plain.tar" && sync
  echo "round $round: tar and sha256sum $(seconds tar_and_sum) s"
  rm -f "$out/plain.tar" && sync
  echo "round $round: varlab pack check=header $(seconds pack check=header) s"
done
rm -rf "$out/packed" && echo "varlab pack check=decode $(seconds pack check=decode) s"
rm -rf "$out/packed" "$out/many"

say "reading, part by part, beside webdataset"
varlab pack source=folder path="$out/jpegs" source.size=null check=header source.val_fraction=0.05 shard_size=2000 out="$out/set"
for round in 1 2 3; do
  varlab bench data.path="$out/set" crop@data.crop=random_resized data.cache_bytes=0 out="$out/bench"
done

say "token maps"
python "$here/token_speed.py" "$out/tokens"
rm -rf "$out/tokens"

say "how well shards are mixed"
python "$here/mixing.py"

say "a generator from images and from tokens, turn by turn"
varlab pack source=photos out="$out/photos" source.size=128 source.train_crops=64
common=(tokenizer.channels=24 tokenizer.scales='[[16,16]]' tokenizer.attention='[]' data=photos data.path="$out/photos" data.workers=0 tensorboard=false log.every=64)
varlab train task=tokenizer tokenizer=single "${common[@]}" budget.images=256 data.batch=16 perceptual=none discriminator=none \
  tokenizer.channel_mult='[1,2,2,4]' pictures.every=null out="$out/tokenizer"
varlab encode "$out/tokenizer" views=4 out="$out/encoded" batch=32
model=(task=generator order=raster transformer=tiny_gpt2 transformer.width=192 transformer.depth=6 transformer.heads=6
  budget.images=640 data.batch=32 pictures.every=null val.every=null tokenizer_run="$out/tokenizer" tensorboard=false log.every=64)
for round in 1 2 3; do
  varlab train "${model[@]}" data=photos data.path="$out/photos" data.workers=0 data.views=4 out="$out/online$round"
  varlab train "${model[@]}" data=photos data.path="$out/photos" data.tokens="$out/encoded" out="$out/tokens$round"
done
python "$here/speedup.py" "$out"
say "done"
