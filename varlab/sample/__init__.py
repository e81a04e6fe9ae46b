"""Sampling: the one loop for every order, guidance, filters. Knows randomness, never training."""

from varlab.sample.edit import Known, blended, kept_maps
from varlab.sample.filter import filter_logits, pick
from varlab.sample.sampler import Sampler

__all__ = ["Known", "Sampler", "blended", "filter_logits", "kept_maps", "pick"]
