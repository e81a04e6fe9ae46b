#!/usr/bin/env bash
# VQGAN's conditional synthesis on real photographs: edges → tokens → image tokens, and an image larger than the trained
# size by a sliding window. Nothing here that a user could not type; each command may be run again.
set -euo pipefail
out=${OUT:-runs/edges}
shards=runs/data/photo_edges
started=$SECONDS
here() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

here "crops of scikit-image's photographs, each with its edges"
varlab pack source=photos condition=edges out=$shards \
  'source.photos=[astronaut,brick,camera,chelsea,coffee,coins,hubble_deep_field,motorcycle_left,page,retina,rocket,text]' \
  source.train_crops=1024 source.zoom=2.5 condition.sigma=1.5 condition.low=0.04 condition.high=0.1

here "a perceptual net; tokenizers of the images and of their edges: a core each"
varlab train task=classifier data=photos data.path=$shards data.workers=0 role=perceptual seed=2 budget.images=12000 \
  out="$out/perceptual"
varlab train experiment=photos/edges_tokenizer out="$out/edges_tokenizer" & edges=$!
trap 'kill "$edges" 2>/dev/null || true' EXIT # one that fails does not leave the other behind
varlab train experiment=photos/tokenizer out="$out/tokenizer"
wait "$edges"
trap - EXIT

here "edges → photographs"
varlab train experiment=photos/edges out="$out/generator"

here "pictures: three samples of each held-out edge map, and one larger than the trained size"
python experiments/edges/draw.py "$out/generator" $shards experiments/edges

here "what the edges are worth"
python experiments/edges/measure.py "$out/generator" $shards
