"""The ground floor: what rooms hand to each other, and the letters their tensors are named with.

Letters
-------
``B`` batch · ``H W`` pixels · ``h w`` latent grid · ``C`` latent channels (code dimension) · ``P`` positions (all tokens
of an image, all scales flattened, coarse to fine, row by row) · ``L`` sequence slots · ``l`` slots of one step · ``D``
transformer width · ``V`` vocabulary · ``K`` steps or scales · ``F`` features of an extractor · ``N`` samples.

A tensor that crosses a function boundary carries its shape as a suffix: ``img_B3HW``, ``f_BChw``, ``idx_Bl``, ``logits_BLV``.
Images are float in [-1, 1] unless the name says ``u8`` (uint8, 0..255).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from varlab.errors import VarlabError
from varlab.info import DataInfo, Fault
from varlab.rng import Stream

__all__ = [
    "Batch",
    "DataInfo",
    "Fault",
    "Maps",
    "Order",
    "Quantized",
    "Slots",
    "Tokenizer",
    "VarlabError",
    "full_precision",
    "image_layout",
    "to_float",
    "to_uint8",
]

_LARGE = 64 * 64  # pixels from which channels_last pays on a CPU

Maps = list[Tensor]
"""Token maps of a batch: one int64 ``idx_Bl`` per scale, coarse to fine, each row by row."""


@dataclass(frozen=True)
class Slots:
    """A sequence (or the slots of one step of it) as the transformer sees it."""

    x_BLC: Tensor  # what is known before each slot is predicted, in codebook space; zeros where nothing is
    tok_BL: Tensor  # the same as a token id where there is one, -1 where not
    src_BL: Tensor  # the position that input came from, -1 for none: then the condition (class) stands in its place
    pos_BL: Tensor  # the position where the slot's token lands
    level_L: Tensor  # which scale
    step_L: (
        Tensor  # when: slot i may see slot j iff step_L[j] <= step_L[i]. Prefix slots have negative steps. On the CPU
    )

    def __len__(self) -> int:
        return self.step_L.shape[0]

    @staticmethod
    def cat(parts: list[Slots]) -> Slots:
        """Join the slots of consecutive steps into one sequence."""
        along = {"x_BLC": 1, "tok_BL": 1, "src_BL": 1, "pos_BL": 1, "level_L": 0, "step_L": 0}
        return Slots(**{name: torch.cat([getattr(p, name) for p in parts], dim) for name, dim in along.items()})

    def first(self, length: int) -> Slots:
        """The first slots, those of a condition among them."""
        cut = {name: getattr(self, name)[:, :length] for name in ("x_BLC", "tok_BL", "src_BL", "pos_BL")}
        return Slots(**cut, level_L=self.level_L[:length], step_L=self.step_L[:length])

    def to(self, device: torch.device | str) -> Slots:
        """Move the slots to a device. ``step_L`` stays on the CPU, so that masks do not wait for a GPU."""
        return self._map(lambda t: t.to(device), keep=("step_L",))

    def repeat_batch(self, times: int) -> Slots:
        """Repeat the slots for ``times`` copies of the batch (conditional and null branch of guidance)."""
        return self._map(lambda t: t.repeat(times, *[1] * (t.ndim - 1)), keep=("level_L", "step_L"))

    def _map(self, change: Callable[[Tensor], Tensor], *, keep: tuple[str, ...]) -> Slots:
        return replace(self, **{name: change(t) for name, t in vars(self).items() if name not in keep})


@dataclass(kw_only=True, eq=False)
class Batch:
    """One (rank's share of a) global batch.

    position_B: of each sample in the endless global stream (training) or in the split (evaluation): the id that every
    random function of a sample takes.
    """

    img_u8_B3HW: Tensor
    label_B: Tensor  # int64 in [0, classes)
    position_B: Tensor  # int64
    valid_B: Tensor  # bool, False for padding in evaluation; always True in training
    cond_u8_B3HW: Tensor | None = None  # images of the conditions (edges, segmentation, …), if the shards hold some
    # float32, where each image lies in the picture that it was cut from, as (top, left, bottom, right) in [0, 1], if the
    # shards say so; left > right if the image is mirrored
    box_B4: Tensor | None = None
    tokens_BP: Tensor | None = (
        None  # integers, all token maps in a row, from shards of tokens; img is then (B, 3, 0, 0)
    )
    faults: tuple[Fault, ...] = ()  # of samples that were replaced (training) or are not valid (evaluation)

    def __len__(self) -> int:
        return self.label_B.shape[0]

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Batch(**tensors, faults=self.faults)

    def state(self) -> dict[str, Tensor]:
        """Return the batch's tensors on the CPU: ``Batch(**state)`` is the same batch."""
        return {name: value.cpu() for name, value in vars(self).items() if isinstance(value, Tensor)}

    def only(self, keep_B: Tensor) -> Batch:
        """Keep the samples for which ``keep_B`` (bool) is true."""
        return self._map(lambda t: t[keep_B])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Move the batch to a device (Lightning calls this)."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Copy the batch to pinned memory (torch's DataLoader calls this)."""
        return self._map(lambda t: t.pin_memory())

    def chunks(self, size: int | None) -> list[Batch]:
        """Cut the batch into pieces of at most ``size`` samples, in order (None: one piece)."""
        if size is None or size >= len(self):
            return [self]
        return [self._map(itemgetter(slice(i, i + size))) for i in range(0, len(self), size)]


def without_padding(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on a device, without padding; none of them is empty."""
    for padded in batches:
        batch = padded.only(padded.valid_B).to(device)
        if len(batch):
            yield batch


@dataclass(frozen=True)
class Quantized:
    """What a quantizer returns in training."""

    f_hat_BChw: Tensor  # sum of all scales, straight-through to the encoder
    maps: Maps
    vq_loss: Tensor  # scalar, codebook + beta * commitment, mean over scales
    counts_KV: Tensor  # int64, how often this batch used each code, per scale
    candidates_NC: Tensor  # encoder vectors (detached) that dead codes may be revived from


@runtime_checkable
class Tokenizer(Protocol):
    """Pixels to token maps and back: a ``torch.nn.Module`` with all of this. ``varlab.testing.check_tokenizer`` checks it.

    Every method works on a frozen module under ``torch.no_grad`` as well as in training.
    """

    scales: tuple[tuple[int, int], ...]  # (h, w), coarse to fine; ((16, 16),) is a plain VQGAN
    vocab_size: int
    code_dim: int
    downsample: int  # pixels per latent cell

    @property
    def image_size(self) -> tuple[int, int]: ...  # (H, W) of the images, in pixels
    @property
    def last_layer(
        self,
    ) -> Tensor: ...  # the decoder's last weight: its device, and where the adaptive λ compares gradients
    def encode(self, img_B3HW: Tensor) -> Maps: ...
    def embed(self, idx_Bl: Tensor) -> Tensor: ...  # h_BlC
    def blank(self, batch: int) -> Tensor: ...  # f_hat_BChw before anything was written
    def accumulate(
        self, f_hat_BChw: Tensor, k: int, h_BlC: Tensor
    ) -> Tensor: ...  # the residual step: upsample, phi, add
    def decode(self, f_hat_BChw: Tensor, *, compile: bool = False) -> Tensor: ...  # img_B3HW in [-1, 1], clamped
    def __call__(
        self, img_B3HW: Tensor
    ) -> tuple[Tensor, Quantized]: ...  # training: rec_B3HW with a graph, not clamped
    def revive(self, dead_V: Tensor, candidates_NC: Tensor, stream: Stream) -> int: ...  # replaces dead codes; how many
    def enlarged(
        self, grid: tuple[int, int]
    ) -> Tokenizer: ...  # for images with that token grid; VarlabError if it cannot


State = TypeVar("State")


@runtime_checkable
class Order(Protocol[State]):
    """Which token is predicted when, what is known before it, where it lands. Only the order reads its ``State``.

    ``varlab.order.BaseOrder`` writes most of it; ``varlab.testing.check_order`` checks it.
    """

    scales: tuple[tuple[int, int], ...]  # of the tokenizer
    lengths: tuple[int, ...]  # tokens of each scale
    positions_P3: Tensor  # row, column and level of every position
    steps: tuple[int, ...]  # tokens predicted in parallel at each step
    fixed: bool  # pos_BL and src_BL are the same for every sample (False for random orders)
    cached: bool  # each slot comes once (False for sliding windows, whose slots are computed again at every step)

    @property
    def num_positions(self) -> int: ...  # P, the tokens of one image
    def start(self, batch: int, tokenizer: Tokenizer, rng: Stream | None = None) -> State: ...
    def inputs(self, state: State, k: int, tokenizer: Tokenizer) -> Slots: ...
    def conditioned(self, slots: Slots, cond_BN: Tensor, k: int) -> Slots: ...  # with the condition's slots before them
    def targets(self, state: State, k: int, maps: Maps) -> Tensor: ...  # idx_Bl
    def advance(
        self, state: State, k: int, idx_Bl: Tensor, tokenizer: Tokenizer, h_BlC: Tensor | None = None
    ) -> State: ...
    def canvas(self, state: State, tokenizer: Tokenizer) -> Tensor: ...  # f_hat_BChw so far
    def finish(self, state: State) -> Maps: ...
    def pack(
        self, maps: Maps, tokenizer: Tokenizer, rng: Stream | None = None
    ) -> tuple[Slots, Tensor]: ...  # (slots, targets_BL)


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """A context without autocast for the tensor's device (where that device knows autocast; ``meta`` does not)."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def to_float(img_u8: Tensor) -> Tensor:
    """uint8 0..255 → float32 in [-1, 1]."""
    return img_u8.float().div(127.5).sub(1.0)


def to_uint8(img: Tensor) -> Tensor:
    """Float in [-1, 1] (clamped) → uint8, rounded to nearest: what every metric and picture sees."""
    return img.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def image_layout(x_BChw: Tensor, scale: int = 1) -> Tensor:
    """The same numbers in channels_last for a CNN over large images, which computes faster so, and else contiguous.

    scale: pixels of the image along a cell of x_BChw. Small images have so few numbers that copies between layouts cost more.
    """
    h, w = x_BChw.shape[-2:]
    large = h * w * scale**2 >= _LARGE
    return x_BChw.contiguous(memory_format=torch.channels_last if large else torch.contiguous_format)
