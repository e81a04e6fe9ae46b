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

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from varlab.errors import VarlabError

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
    "to_float",
    "to_uint8",
]

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
        return Slots(
            x_BLC=torch.cat([p.x_BLC for p in parts], 1),
            tok_BL=torch.cat([p.tok_BL for p in parts], 1),
            src_BL=torch.cat([p.src_BL for p in parts], 1),
            pos_BL=torch.cat([p.pos_BL for p in parts], 1),
            level_L=torch.cat([p.level_L for p in parts]),
            step_L=torch.cat([p.step_L for p in parts]),
        )

    def to(self, device: torch.device | str) -> Slots:
        """The slots on another device; ``step_L`` stays on the CPU, where masks are decided without waiting for a GPU."""
        return Slots(
            x_BLC=self.x_BLC.to(device),
            tok_BL=self.tok_BL.to(device),
            src_BL=self.src_BL.to(device),
            pos_BL=self.pos_BL.to(device),
            level_L=self.level_L.to(device),
            step_L=self.step_L,
        )

    def repeat_batch(self, times: int) -> Slots:
        """The same slots for ``times`` copies of the batch (conditional and null branch of guidance)."""
        return Slots(
            x_BLC=self.x_BLC.repeat(times, 1, 1),
            tok_BL=self.tok_BL.repeat(times, 1),
            src_BL=self.src_BL.repeat(times, 1),
            pos_BL=self.pos_BL.repeat(times, 1),
            level_L=self.level_L,
            step_L=self.step_L,
        )


@dataclass(frozen=True)
class Fault:
    """Something wrong in a shard: its kind (varlab.data.faults names them all), where, and what exactly.

    key: of the sample; empty where it is the shard. samples: how many are lost by it.
    """

    kind: str
    shard: str
    key: str
    detail: str
    samples: int = 1

    def __str__(self) -> str:
        return f"{self.kind}: {f'sample {self.key} in ' if self.key else ''}{self.shard} ({self.detail})"


class Batch:
    """One (rank's share of a) global batch, as the data room hands it over.

    img_u8_B3HW: uint8. label_B: int64 in [0, classes). position_B: int64, the samples' positions in the endless global
    stream (training) or in the split (evaluation): the ids that every random function of a sample takes.
    valid_B: bool, False for padding in evaluation (always True in training). cond_u8_B3HW: uint8, the conditions' images
    (edges, segmentation, …), where the shards hold some. box_B4: float32, where each image lies in the picture it was cut
    from, as (top, left, bottom, right) in [0, 1]; left > right in a mirrored one; where the shards tell.
    tokens_BP: integers, all token maps in a row, where shards of tokens are read; the images are then none (B, 3, 0, 0).
    faults: what was wrong with samples that others stand in for (training), or that are not valid (evaluation).
    """

    def __init__(
        self,
        *,
        img_u8_B3HW: Tensor,
        label_B: Tensor,
        position_B: Tensor,
        valid_B: Tensor,
        cond_u8_B3HW: Tensor | None = None,
        box_B4: Tensor | None = None,
        tokens_BP: Tensor | None = None,
        faults: tuple[Fault, ...] = (),
    ):
        self.img_u8_B3HW = img_u8_B3HW
        self.label_B = label_B
        self.position_B = position_B
        self.valid_B = valid_B
        self.cond_u8_B3HW = cond_u8_B3HW
        self.box_B4 = box_B4
        self.tokens_BP = tokens_BP
        self.faults = faults

    def __len__(self) -> int:
        return self.label_B.shape[0]

    def _map(self, f: Any) -> Batch:
        tensors = {name: f(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Batch(**tensors, faults=self.faults)

    def state(self) -> dict[str, Tensor]:
        """The tensors that there are, on the CPU: ``Batch(**state)`` makes it again."""
        return {name: value.cpu() for name, value in vars(self).items() if isinstance(value, Tensor)}

    def only(self, keep_B: Tensor) -> Batch:
        """The samples for which ``keep_B`` (bool) is true."""
        return self._map(lambda t: t[keep_B])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device (Lightning calls this)."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in pinned memory (torch's DataLoader calls this)."""
        return self._map(lambda t: t.pin_memory())

    def chunks(self, size: int | None) -> list[Batch]:
        """The batch in order, in pieces of at most ``size`` samples (None: one piece)."""
        if size is None or size >= len(self):
            return [self]
        return [self._map(lambda t, i=i: t[i : i + size]) for i in range(0, len(self), size)]


@dataclass(frozen=True)
class DataInfo:
    """What a shard set says of itself: read from its index, never configured."""

    path: str
    classes: tuple[str, ...]
    image_size: tuple[int, int]  # (H, W)
    counts: dict[str, int]  # images per split
    hash: str  # of the index: two shard sets with one hash hold the same bytes
    source: str
    condition: str | None = None  # what the second image of each sample is (edges, lowres …); None: there is none
    boxes: bool = False  # whether each sample says where in its picture it lies
    tokens: str | None = None  # the hash of the token maps that stand for the training images; None: they are images
    encoded: int = 0  # images that were tokenized, once, for those
    view: str = "image"  # what is handed out as the image: "condition" turns a training to the second images

    @property
    def num_classes(self) -> int:
        return len(self.classes)


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
    """Pixels to token maps and back. Every method works on a frozen module under ``torch.no_grad`` as well as in training."""

    scales: tuple[tuple[int, int], ...]  # (h, w), coarse to fine; ((16, 16),) is a plain VQGAN
    vocab_size: int
    code_dim: int
    downsample: int  # pixels per latent cell

    def encode(self, img_B3HW: Tensor) -> Maps: ...
    def embed(self, idx_Bl: Tensor) -> Tensor: ...  # h_BlC
    def blank(self, batch: int) -> Tensor: ...  # f_hat_BChw before anything was written
    def accumulate(
        self, f_hat_BChw: Tensor, k: int, h_BlC: Tensor
    ) -> Tensor: ...  # the residual step: upsample, phi, add
    def decode(self, f_hat_BChw: Tensor) -> Tensor: ...  # img_B3HW in [-1, 1], clamped


@runtime_checkable
class Order(Protocol):
    """Which token is predicted when, what is known before it, where it lands. States are opaque to everyone else."""

    steps: tuple[int, ...]  # tokens predicted in parallel at each step
    fixed: bool  # pos_BL and src_BL are the same for every sample (False for random orders)
    cached: bool  # each slot comes once (False for sliding windows, which come anew at every step)

    def start(self, batch: int, tokenizer: Tokenizer, rng: Any = None) -> Any: ...
    def inputs(self, state: Any, k: int, tokenizer: Tokenizer) -> Slots: ...
    def conditioned(self, slots: Slots, cond_BN: Tensor, k: int) -> Slots: ...  # with the condition's slots before them
    def targets(self, state: Any, k: int, maps: Maps) -> Tensor: ...  # idx_Bl
    def advance(self, state: Any, k: int, idx_Bl: Tensor, tokenizer: Tokenizer, h_BlC: Tensor | None = None) -> Any: ...
    def canvas(self, state: Any, tokenizer: Tokenizer) -> Tensor: ...  # f_hat_BChw so far
    def finish(self, state: Any) -> Maps: ...
    def pack(
        self, maps: Maps, tokenizer: Tokenizer, rng: Any = None
    ) -> tuple[Slots, Tensor]: ...  # (slots, targets_BL)


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast for the tensor's device (where that device knows autocast; ``meta`` does not)."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def to_float(img_u8: Tensor) -> Tensor:
    """uint8 0..255 → float32 in [-1, 1]."""
    return img_u8.float().div(127.5).sub(1.0)


def to_uint8(img: Tensor) -> Tensor:
    """Float in [-1, 1] (clamped) → uint8, rounded to nearest: what every metric and picture sees."""
    return img.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
