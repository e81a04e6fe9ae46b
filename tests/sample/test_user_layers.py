"""What a user puts in the place of a transformer's layer is what the sampler sees, as training does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from tests.sample.reference import reference_sample
from tests.sample.test_sampler import Steps, parts, whom
from varlab.transformer import working_copy


class LoRA(nn.Linear):
    """A layer of a lower rank on top of a layer's own weights."""

    def __init__(self, base: nn.Linear):
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.load_state_dict(base.state_dict())
        self.down, self.up = nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.up(self.down(x))


class Twice(nn.Module):
    """A layer under two names, of which the second is called."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.one = self.two = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.two(x)


def doubled(layer: nn.Linear) -> nn.Linear:
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


def pruned(layer: nn.Linear) -> nn.Linear:
    prune.l1_unstructured(layer, "weight", 0.5)
    with torch.no_grad():
        layer.weight_orig.mul_(3)
    return layer


def normed(layer: nn.Linear) -> nn.Module:
    parametrizations.weight_norm(layer).parametrizations.weight.original0.data.mul_(2)
    return layer


@pytest.mark.parametrize("kind", ["next_scale", "raster"])
@pytest.mark.parametrize("change", [LoRA, Twice, doubled, pruned, normed])
def test_the_sampler_sees_the_layers_of_training(kind: str, change: Callable[[nn.Linear], nn.Module]) -> None:
    given, untouched, expected = parts(kind), [], []
    reference_sample(Steps(cfg=0.0, top_k=1), **given, **whom(), logits_of_steps=untouched)
    model = given["transformer"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.head = change(model.head)
        for block in model.blocks:
            block.attention.proj = change(block.attention.proj)
            block.attention.qkv = block.attention.qkv if change in (doubled, pruned) else change(block.attention.qkv)
    sampler = Steps(cfg=0.0, top_k=1)
    maps = sampler(**given, **whom())
    plain = reference_sample(sampler, **given, **whom(), logits_of_steps=expected)
    assert all(torch.equal(a, b) for a, b in zip(maps, plain, strict=True))
    for logits, exact in zip(sampler.__dict__["logits"], expected, strict=True):
        assert (logits - exact).norm() <= 1e-5 * exact.norm()
    if change is not Twice:
        assert (expected[0] - untouched[0]).norm() > 1e-2 * untouched[0].norm()


def test_a_shared_layer_has_a_gelu_only_where_one_follows() -> None:
    layer, x = nn.Linear(6, 6), torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Sequential(layer, nn.GELU()), nn.Sequential(layer, nn.Identity()))
    with torch.no_grad():
        torch.testing.assert_close(working_copy(net, torch.device("cpu"))(x), net(x))
