"""The chunked cross-entropy is torch's, and holds no float32 copy of the logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from varlab.losses.token_loss import token_loss

N, V = 3000, 400


class LargestFloat32(TorchDispatchMode):
    """Finds the most elements of a float32 result."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_are_those_of_torch(dtype: torch.dtype, label_smoothing: float) -> None:
    draw = torch.Generator().manual_seed(0)
    logits, targets = 4 * torch.randn(N, V, generator=draw), torch.randint(V, (N,), generator=draw)
    wide, narrow = (logits.to(dtype).to(kind).requires_grad_() for kind in (torch.float32, dtype))
    expected = F.cross_entropy(wide, targets, label_smoothing=label_smoothing)
    loss = token_loss(narrow * 1, targets, label_smoothing=label_smoothing)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(narrow.grad, wide.grad.to(dtype), rtol=1e-2 if dtype == torch.bfloat16 else 0, atol=1e-7)


def test_narrow_logits_are_not_copied_whole_to_float32() -> None:
    logits = torch.randn(N, V, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    with LargestFloat32() as largest:
        token_loss(logits * 1, torch.zeros(N, dtype=torch.int64), label_smoothing=0.0).backward()
    assert 0 < largest.elements <= 1 << 18 < N * V


def test_the_gradient_lies_where_the_logits_were() -> None:
    leaf = torch.randn(N, V, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    logits = leaf * 1
    logits.retain_grad()
    loss = token_loss(logits, torch.zeros(N, dtype=torch.int64), label_smoothing=0.0)
    loss.backward(retain_graph=True)
    assert leaf.grad is not None and torch.equal(leaf.grad, logits.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_logits_that_need_no_gradient_stay() -> None:
    logits = torch.randn(N, V, generator=torch.Generator().manual_seed(0)).bfloat16()
    before = logits.clone()
    token_loss(logits, torch.zeros(N, dtype=torch.int64), label_smoothing=0.1)
    assert torch.equal(logits, before)


def test_a_loss_beyond_the_range_of_exp_is_finite() -> None:
    logits = torch.tensor([[0.0, 200.0]]).bfloat16().requires_grad_()
    assert token_loss(logits * 1, torch.tensor([0]), label_smoothing=0.0).item() == 200.0
