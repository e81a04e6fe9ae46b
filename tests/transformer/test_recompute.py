"""Activation checkpointing changes what a forward pass keeps, and no bit of the loss and the gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import bounds
from tests.laws.conftest import load, small_tokenizer, small_transformer, transformers
from varlab.recipe.assembly import build_order, build_transformer, example_slots
from varlab.rng import Rng

LABEL_B, IDS_B = torch.tensor([0, 1, 2]), torch.tensor([5, 3, 8])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", transformers())
def test_the_same_bits_from_less_memory(name: str, precision: torch.dtype) -> None:
    config = small_transformer(name) | {"drop_path": 0.5, "dropout": 0.2, "depth": 3}
    tokenizer = small_tokenizer("multi" if not config["token_inputs"] else "single")
    order = build_order(load("order", "raster" if config["token_inputs"] else "next_scale"), tokenizer)
    with bounds.float64():
        model = build_transformer(config, tokenizer=tokenizer, order=order, num_classes=3, rng=Rng(0))
        slots = example_slots(order, tokenizer).repeat_batch(3)
    model.to(torch.float32)
    slots = replace(slots, x_BLC=slots.x_BLC.to(torch.float32))

    def update(recompute: bool) -> tuple[Tensor, list[Tensor | None], int]:
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        model.zero_grad()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                logits_BLV = model(slots, LABEL_B, rng=Rng(1), ids_B=IDS_B, recompute=recompute)
                loss = F.cross_entropy(logits_BLV.flatten(0, 1), torch.zeros(logits_BLV[..., 0].numel()).long())
        loss.backward()
        return loss, [p.grad for p in model.parameters()], sum(storage.nbytes() for storage in kept.values())

    (loss, grads, held), (again, others, less) = update(False), update(True)
    assert torch.equal(loss, again) and less < held
    for one, other in zip(grads, others, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
