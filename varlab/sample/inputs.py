"""What a caller gives to a generator: labels and condition tokens, checked and moved to its device; sampler settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, TypedDict

import torch
from torch import Tensor

from varlab.sample.class_labels import ClassLabels, Label
from varlab.types import VarlabError

Labels: TypeAlias = Tensor | Sequence[Label] | Label | None
"""Classes by number or name, one a sample; None samples without a class (the null class; of a model of one class, that one)."""


class SamplerChanges(TypedDict, total=False):
    """Settings that replace those of the model's sampler; None keeps the model's own. See ``varlab.sample.Sampler``."""

    cfg: float | None
    ramp: str | None
    cfg_steps: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    smooth: bool | None


def checked_labels(labels: Labels, *, classes: Sequence[str], batch: int, device: torch.device) -> Tensor:
    """label_B, int64: the indices of the labels; None becomes ``batch`` null classes.

    A model of one class is unconditional: its null class is that class.
    """
    known, n = ClassLabels(classes), len(classes)
    if isinstance(labels, Tensor):
        label_B = labels.to(device, torch.int64).reshape(-1)
        known.indices(label_B[(label_B < 0) | (label_B > n)].tolist())
    else:
        indices = [n] * batch if labels is None else known.indices(labels)
        label_B = torch.tensor(indices, dtype=torch.int64, device=device)
    return label_B if n > 1 else torch.zeros_like(label_B)


def checked_condition(cond_BN: Tensor | None, *, num_tokens: int, batch: int, device: torch.device) -> Tensor | None:
    """The condition's tokens, ``num_tokens`` for each sample; None where there are none."""
    if (0 if cond_BN is None else cond_BN.shape[1]) != num_tokens or (cond_BN is not None and len(cond_BN) != batch):
        shape = None if cond_BN is None else tuple(cond_BN.shape)
        raise VarlabError(
            f"This run takes {num_tokens} condition tokens for each of {batch} samples, not {shape}: "
            "give cond_img_B3HW, or cond_BN from condition_tokens."
        )
    return None if cond_BN is None else cond_BN.to(device)
