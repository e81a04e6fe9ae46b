"""Pixels and codes: CNN encoder and decoder, quantizers, f_hat. It does not know sequence positions or optimizers."""

from varlab.tokenizer.gumbel import GumbelQuantizer
from varlab.tokenizer.model import VQTokenizer
from varlab.tokenizer.quantizer import Phi, Quantizer, phi_of_scale

__all__ = ["GumbelQuantizer", "Phi", "Quantizer", "VQTokenizer", "phi_of_scale"]
