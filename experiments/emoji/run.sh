#!/usr/bin/env bash
# Next-scale against raster on 7,572 emoji of 32 pixels, at equal training FLOPs: fetch, pack, judge, tokenizers, generators,
# scores, grid, report. Nothing here that a user could not type. The same command again continues where it was stopped.
#
#   bash experiments/emoji/run.sh                one seed
#   SEEDS=0,1,2 bash experiments/emoji/run.sh    three seeds of tokenizers and generators, one after another; finished ones are kept.
#                                                SEEDS=1 and SEEDS=2 are the pieces of it
#   FROM     a URL with the two tarballs, in place of the npm registry     OUT     where runs go (below runs/)
#   N        samples of a score                                            README  where the tables go
#   MORE     further overrides of every training (budget.images=64 to try the script)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-runs/emoji} readme=${README:-$here/README.md} n=${N:-2300} from=${FROM:-} more=${MORE:-}
IFS=, read -ra seeds <<<"${SEEDS:-0}"
images=runs/data/emoji_png data=runs/data/emoji # of conf/data/emoji.yaml
guided=(cfg=1.5 top_p=0.95)
credit="Learned from Noto Emoji (Google, Apache License 2.0) and Twemoji (© Twitter, Inc and other contributors, CC-BY 4.0), reduced to 32 pixels."
started=$SECONDS

say() { printf '\n== %s (%d min)\n' "$1" $(((SECONDS - started) / 60)); }

# shellcheck disable=SC2086  # MORE is a list of words
train() { varlab train "$@" $more; }

# trained FOLDER: the trainings in it, as run= takes them
trained() {
  local IFS=, runs=("$1"/*/weights.safetensors)
  echo "${runs[*]%/*}"
}

score() { varlab evaluate -m launch=joblib n="$n" batch=256 out="$out/scores" "$@"; }

# one_seed SEED: tokenizers, generators, scores and a grid; tokenizer_run=auto takes those of the seed's own folder
one_seed() {
  local of="$out/seed$1" order
  say "seed $1: a multi-scale and a single-scale tokenizer, a core each"
  train -m launch=joblib experiment=emoji/tokenizer tokenizer=emoji_multi,emoji_single seed="$1" out="$of/tokenizer"
  say "seed $1: a next-scale and a raster transformer, a core each"
  train -m launch=joblib experiment=emoji/generator order=next_scale,raster seed="$1" out="$of/generator"
  say "seed $1: scores, without guidance and with it"
  score run="$(trained "$of/tokenizer")"
  # labels=data: classes as often as in the held-out images, of which 60% are people
  score run="$(trained "$of/generator")" labels=data
  score run="$(trained "$of/generator")" labels=data "${guided[@]}"
  say "seed $1: a grid, with guidance"
  for order in next_scale raster; do
    varlab sample "$of/generator"/*order=$order* n=80 "${guided[@]}" out="$of/samples/$order"
  done
  python "$here/grid.py" "$of/grid.png" $data "$credit" next-scale="$of/samples/next_scale" raster="$of/samples/raster"
}

say "two cores (AVX512-BF16) need about 30 minutes for each seed: ${#seeds[@]} × 30 minutes, less what is finished in $out"
python "$here/fetch.py" $images ${from:+"$from"}
varlab pack source=folder path=$images source.size=32 out=$data

say "the judge, and a perceptual net of its own, a core each"
train experiment=emoji/judge out="$out/judge" & judge=$!
trap 'kill "$judge" 2>/dev/null || true' EXIT # one that fails does not leave the other behind
train experiment=emoji/perceptual out="$out/perceptual"
wait "$judge"
trap - EXIT

for seed in "${seeds[@]}"; do one_seed "$seed"; done

say "tables and report of all seeds in $out"
varlab report "$out"/seed*/tokenizer title="Emoji: tokenizers" out="$out/tables/tokenizers" readme="$readme" section=tokenizers
varlab report "$out"/seed*/generator title="Emoji: generators" out="$out/tables/generators" readme="$readme" section=generators
varlab report "$out" title="Emoji of 32 pixels, next-scale against raster. $credit" out="$out"
say "done: $out/seed${seeds[0]}/grid.png, $out/report.html, the tables of $readme"
