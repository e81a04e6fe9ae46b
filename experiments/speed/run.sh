#!/usr/bin/env bash
# How fast the common presets are on this machine: lines of JSON in OUT/bench.jsonl. These variables change what it asks:
#   DEVICE   cpu or cuda                    PRECISIONS  separated by blanks (32-true tf32 bf16-mixed)
#   SET      small (16 pixels), papers (256 pixels), or both separated by a blank; or card: what one large GPU is asked for
#   BATCH    of the papers' sizes           MORE  further words of every command (threads=2 rounds=3)
#   AGAINST  a bench.jsonl of an earlier run, to print ratios
set -euo pipefail
out=${OUT:-runs/speed} device=${DEVICE:-auto} sets=${SET:-small papers} precisions=${PRECISIONS:-32-true bf16-mixed}
batch=${BATCH:-4} more=${MORE:-} against=${AGAINST:-null}
failed=0
command -v varlab > /dev/null || varlab() {
  "${PYTHON:-python3}" -c 'import sys; from varlab.cli.main import main; sys.exit(main(sys.argv[1:]))' "$@"
}

# bench NAME WORDS…: a measurement in each precision; one that this device refuses does not end the others
bench() {
  local name=$1 precision && shift
  for precision in $precisions; do
    printf '\n== %s, %s\n' "$name" "$precision"
    # shellcheck disable=SC2086  # MORE is a list of words
    varlab bench "$@" device="$device" precision="$precision" against="$against" out="$out/$name/$precision" $more || failed=1
  done
}

small() {
  for order in next_scale raster; do
    local tokenizer=multi && [ "$order" = raster ] && tokenizer=single
    bench "small/train_$order" what=train order="$order" tokenizer=$tokenizer batch=64
    bench "small/sample_$order" what=sample order="$order" tokenizer=$tokenizer batch=64
  done
  for what in tokenize decode tokenizer_train metrics; do bench "small/$what" what=$what batch=64; done
}

papers() {
  local var=(tokenizer=var num_classes=1000 batch="$batch") llamagen=(tokenizer=llamagen_f16 order=raster num_classes=1000 batch="$batch")
  bench papers/train_var_d16 what=train transformer=var_d16 "${var[@]}"
  bench papers/train_var_d16_from_images what=train transformer=var_d16 tokens=false "${var[@]}"
  bench papers/sample_var_d16 what=sample transformer=var_d16 sampler=var "${var[@]}"
  bench papers/train_llamagen_b what=train transformer=llamagen_b "${llamagen[@]}"
  bench papers/sample_llamagen_b what=sample transformer=llamagen_b sampler=llamagen "${llamagen[@]}"
  bench papers/tokenize what=tokenize tokenizer=var batch="$batch"
  bench papers/decode what=decode tokenizer=var batch="$batch"
  bench papers/tokenizer_train what=tokenizer_train tokenizer=var loss=vqgan perceptual=lpips discriminator=patchgan batch="$batch"
}

# plainly, and as torch.compile and a CUDA graph do it
card() {
  local var=(tokenizer=var num_classes=1000 sampler=var rounds=3 seconds=0.5)
  for compile in false true; do
    bench "card/train_var_d16/compile=$compile" what=train transformer=var_d16 batch=64 task.compile=$compile "${var[@]:0:2}" "${var[@]:3}"
    for images in 1 64; do
      bench "card/sample_var_d16/batch=$images/compile=$compile" what=sample transformer=var_d16 batch=$images \
        replay=$compile compile=$compile "${var[@]}"
    done
  done
  bench card/train_var_d30 what=train transformer=var_d30 batch=24 task.compile=true "${var[@]:0:2}" "${var[@]:3}"
  bench card/train_var_d36_512 what=train transformer=var_d36_512 tokenizer=var_512 num_classes=1000 batch=4 task.compile=true "${var[@]:3}"
  bench card/tokenizer_train what=tokenizer_train tokenizer=var loss=var perceptual=lpips discriminator=patchgan batch=8 "${var[@]:3}"
}

for set_ in $sets; do "$set_"; done
find "$out" -mindepth 2 -name bench.jsonl | sort | xargs cat > "$out/bench.jsonl"
echo "$out/bench.jsonl"
exit "$failed"
