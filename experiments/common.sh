# What every study's run.sh begins with (source it). A study is one command; these variables change what it asks:
#   SET     digits (16 pixels, minutes on two cores), photos (64 pixels) or imagenet (the papers' sizes, for a cluster)
#   LAUNCH  local, joblib or slurm, and words of its own (LAUNCH="slurm launch.partition=gpu"); or your launch/….yaml
#   SEEDS   separated by commas             N      samples of a score
#   OUT     where its runs go               README where its tables go
#   MORE    further trainer.* overrides of every training (others would change the names that runs are found by)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
set_=${SET:-digits}
out=${OUT:-runs/$(basename "$here")/$set_} readme=${README:-$here/README.md} more=${MORE:-}
gpus=() gpu=() # of a training, and of a score, where they are asked for
if [ "$set_" = imagenet ]; then
  read -ra words <<<"${LAUNCH:-slurm}"
  seeds=${SEEDS:-0} protocol=(extractor=inception n="${N:-50000}")
  case ${words[0]} in local | joblib) ;; *) gpus=(launch.gpus=8) gpu=(launch.gpus=1) ;; esac
else
  read -ra words <<<"${LAUNCH:-joblib}"
  seeds=${SEEDS:-${usual:-0,1,2}} protocol=(n="${N:-1800}" batch=300)
fi
launch=${words[0]} words=("${words[@]:1}") recipe=tokenizer
[ "$set_" = photos ] && recipe=study_tokenizer
started=$SECONDS

say() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

# shellcheck disable=SC2086  # MORE is a list of words
train() { varlab train -m launch="$launch" "${gpus[@]}" "${words[@]}" "$@" $more; }

# prepare OVERRIDES…: shards, a judge, a perceptual net, and tokenizers by these overrides if there are any.
# ImageNet's recipes (conf/experiment/imagenet) say where theirs come from.
prepare() {
  [ "$set_" = imagenet ] && return
  say "shards, a judge, a perceptual net"
  varlab pack source="$set_"
  # shellcheck disable=SC2086
  for net in judge perceptual; do varlab train experiment="$set_/$net" out="$out/$net" $more; done
  [ $# = 0 ] && return
  say "tokenizers"
  train experiment="$set_/$recipe" "$@" out="$out/tokenizer"
}

# trained FOLDER: the trainings in it, as run= takes them
trained() { find "$1" -mindepth 2 -maxdepth 2 -name weights.safetensors -printf '%h\n' | sort | paste -sd,; }

# by_seed FOLDER: the tokenizers in it as tokenizer_run= takes them: of each kind, the one of the generator's own seed
by_seed() { trained "$1" | tr , '\n' | sed -E "s/seed=[0-9]+/seed=\${seed}/; s/.*/'&'/" | sort -u | paste -sd,; }

# score FOLDER SETTINGS…: every training in a folder, under the study's protocol
score() {
  local runs && runs=$(trained "$1") && shift
  varlab evaluate -m launch="$launch" "${gpu[@]}" "${words[@]}" "${protocol[@]}" run="$runs" out="$out/scores" "$@"
}

# table SECTION TITLE FOLDERS…: a page, and the table between the marks of a section of the study's README, where it has them
table() {
  local section=$1 title=$2 into=() && shift 2
  if grep -q "<!-- $section -->" "$readme"; then into=(readme="$readme" section="$section"); fi
  varlab report "$@" title="$title" out="$out/$section" "${into[@]}"
}
