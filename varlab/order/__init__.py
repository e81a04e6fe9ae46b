"""Orders: which token is predicted when, what is known before it, where it lands. It does not know attention or pixels."""

from varlab.order.base import BaseOrder
from varlab.order.next_scale import NextScale
from varlab.order.permutation import Permutation, Random
from varlab.order.window import Window

__all__ = ["BaseOrder", "NextScale", "Permutation", "Random", "Window"]
