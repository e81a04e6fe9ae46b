"""VAR's ``more_smooth`` sampling (Tian et al. 2024, official code): soft codes replace drawn ones. For display only."""

from __future__ import annotations

from torch import Tensor

from varlab.types import Tokenizer


def temperature(progress: float) -> float:
    """τ of the Gumbel softmax at step k, progress = k/(K-1): max(0.27·(1 - 0.95·progress), 0.005)."""
    return max(0.27 * (1 - 0.95 * progress), 0.005)


def soft_codes(logits_BlV: Tensor, noise_BlV: Tensor, progress: float, codes_VC: Tensor) -> Tensor:
    """h_BlC: the mean code under the Gumbel softmax (Jang et al. 2017) of the filtered logits times 1 + progress."""
    weight_BlV = ((logits_BlV * (1 + progress) + noise_BlV) / temperature(progress)).softmax(-1)
    return weight_BlV @ codes_VC


def all_codes(tokenizer: Tokenizer, like: Tensor) -> Tensor:
    """codes_VC of the tokenizer's whole vocabulary, on the device of ``like``."""
    return tokenizer.embed(like.new_tensor(range(tokenizer.vocab_size)).long()[None])[0]
