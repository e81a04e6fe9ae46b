#!/usr/bin/env bash
# The main job, end to end, on scikit-learn's scanned digits: shards, judge, tokenizers, generators at equal training
# FLOPs, scores under one protocol, report. Nothing here that a user could not type; each command may be run again.
set -euo pipefail
out=${OUT:-runs/demo} # below runs/, where auto looks for judge, perceptual net and tokenizer
started=$SECONDS
here() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

here "real digits into WebDataset shards"
varlab pack source=digits

here "the judge, and a perceptual net of its own: two commands at once, a core each"
varlab train experiment=digits/judge out="$out/judge" & judge=$!
trap 'kill "$judge" 2>/dev/null || true' EXIT # one that fails does not leave the other behind
varlab train experiment=digits/perceptual out="$out/perceptual"
wait "$judge"
trap - EXIT

here "a multi-scale and a single-scale tokenizer"
varlab train -m launch=joblib experiment=digits/tokenizer tokenizer=multi,single out="$out/tokenizer"

here "a next-scale and a raster transformer, at equal training FLOPs"
varlab train -m launch=joblib experiment=digits/generator order=next_scale,raster out="$out/generator"

here "scores, one protocol for both orders"
varlab evaluate -m launch=joblib n=3600 out="$out/scores/generator" \
  run="$out/generator/order=next_scale,$out/generator/order=raster"
varlab evaluate -m launch=joblib out="$out/scores/tokenizer" \
  run="$out/tokenizer/tokenizer=multi,$out/tokenizer/tokenizer=single"

here "report"
varlab report "$out" title="Next-scale against raster on digits" out="$out"
here "done: $out/report.html"
