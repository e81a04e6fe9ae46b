#!/usr/bin/env bash
# VAR's ablation (Tian et al. 2024, table 3), step by step: AR → next-scale → AdaLN → top-k → guidance → attention normalisation → depth.
#
#   bash experiments/var_ladder/run.sh               digits
#   SET=imagenet bash experiments/var_ladder/run.sh  the paper's sizes, on a cluster
source "$(dirname "$0")/../common.sh"

multi=$out/tokenizer/tokenizer=multi single=$out/tokenizer/tokenizer=single top_k=20 cfg=1.0
ar=tiny_gpt2 ar_task=() plain=tiny_gpt2 adaln=tiny_plain_attention normed=tiny generator=(experiment="$set_/study") deep=(transformer=tiny transformer.depth=8)
if [ "$set_" = imagenet ]; then
  multi=runs/imagenet/var_tokenizer single=runs/imagenet/vqgan_tokenizer top_k=600 cfg=2.0
  ar=vqgan_cin ar_task=(task.label_drop=0) plain=var_d16_gpt2 adaln=var_d16_plain_attention normed=var_d16 generator=(experiment=imagenet/var_d16 sampler=default trainer.recompute=true trainer.micro_batch=48) deep=(transformer=var_d30)
fi

prepare tokenizer=multi,single
say "five models"
generator+=(seed="$seeds")
train "${generator[@]}" order=raster transformer=$ar "${ar_task[@]}" tokenizer_run="$single" out="$out/1_ar"
train "${generator[@]}" order=next_scale transformer=$plain transformer.token_inputs=false tokenizer_run="$multi" out="$out/2_next_scale"
train "${generator[@]}" order=next_scale transformer=$adaln tokenizer_run="$multi" out="$out/3_adaln"
train "${generator[@]}" order=next_scale transformer=$normed tokenizer_run="$multi" out="$out/4_attention_norm"
train "${generator[@]}" order=next_scale "${deep[@]}" tokenizer_run="$multi" out="$out/5_depth"

say "scores: as the models are, then with top-k, then with guidance too"
for model in 1_ar 2_next_scale 3_adaln; do score "$out/$model"; done
score "$out/3_adaln" top_k=$top_k
for model in 3_adaln 4_attention_norm 5_depth; do score "$out/$model" top_k=$top_k cfg=$cfg; done

table "$set_" "VAR's ablation on $set_" "$out"/{1_ar,2_next_scale,3_adaln,4_attention_norm,5_depth} against=previous
say "done: $readme"
