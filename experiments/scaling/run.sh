#!/usr/bin/env bash
# Scaling laws on digits: six sizes × three budgets × two seeds, then the fits. Each command may be run again.
set -euo pipefail
out=${OUT:-runs/scaling}
started=$SECONDS
here() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

here "shards, a perceptual net, one tokenizer for all"
varlab pack source=digits
varlab train experiment=digits/perceptual out="$out/perceptual"
varlab train experiment=digits/tokenizer tokenizer=multi perceptual.run="$out/perceptual" out="$out/tokenizer"

here "sizes × budgets × seeds, the largest first; a core each"
varlab train -m launch=joblib experiment=digits/scaling tokenizer_run="$out/tokenizer" out="$out/generator" \
  budget.images=18432,9216,4608 transformer=tiny_d6,tiny_d5,tiny_d4,tiny_d3,tiny_d2,tiny_d1 seed=0,1

here "the fits"
varlab report "$out/generator" title="Scaling laws on digits" out="$out"
here "done: $out/report.html, $out/scaling.csv"
