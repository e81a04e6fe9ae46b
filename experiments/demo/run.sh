#!/usr/bin/env bash
# The main job, end to end, on scikit-learn's scanned digits: shards, judge, tokenizers, generators at equal training
# FLOPs, scores under one protocol, report. Nothing here that a user could not type; each command may be run again.
set -euo pipefail
out=${OUT:-runs/demo}
started=$SECONDS
here() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }
together() { # two commands at once, one core each; fails if either does
  local first
  eval "$1" & first=$!
  eval "$2"
  wait "$first"
}
data=data.path=$out/data

here "real digits into WebDataset shards"
varlab pack source=digits out="$out/data"

here "the judge, and a perceptual net of its own"
together "varlab train experiment=digits/judge $data out=$out/judge" \
         "varlab train experiment=digits/perceptual $data out=$out/perceptual"

here "a multi-scale and a single-scale tokenizer"
varlab train -m launch=joblib experiment=digits/tokenizer tokenizer=multi,single $data out="$out/tokenizer"

here "a next-scale and a raster transformer, at equal training FLOPs"
varlab train -m launch=joblib experiment=digits/generator order=next_scale,raster $data out="$out/generator"

here "scores, one protocol for both"
together "varlab evaluate -m run=$out/tokenizer/tokenizer=multi,$out/tokenizer/tokenizer=single out=$out/scores/tokenizer" \
         "true"
varlab evaluate -m launch=joblib run="$out/generator/order=next_scale,$out/generator/order=raster" n=3600 out="$out/scores/generator"

here "report"
varlab report "$out" title="Next-scale against raster, on digits" out="$out"
here "done"
