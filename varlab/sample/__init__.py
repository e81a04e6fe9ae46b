"""Sampling: one loop for every order, guidance, filters, editing. Knows randomness, never training."""

from varlab.sample.filter import filter_logits, pick
from varlab.sample.known_tokens import KnownTokens, blend_images, kept_maps
from varlab.sample.sampler import Sampler

__all__ = ["KnownTokens", "Sampler", "blend_images", "filter_logits", "kept_maps", "pick"]
