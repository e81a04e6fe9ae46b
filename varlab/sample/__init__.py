"""Sampling: the one loop for every order, guidance, filters. Knows randomness, never training."""

from varlab.sample.filter import filter_logits, pick
from varlab.sample.sampler import Sampler

__all__ = ["Sampler", "filter_logits", "pick"]
