"""Floating point operations of one image, counted the same way for every order so that runs can be matched.

Linears, convolutions and other matrix products are counted by running the model on the ``meta`` device; attention over the
pairs of slots that ``step_L`` lets see, which no kernel reports. A multiplication with its addition counts as two.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from varlab.config import Config
from varlab.sample.images import decode_maps
from varlab.tokenizer import VQTokenizer
from varlab.transformer import Transformer
from varlab.types import Slots

logger = logging.getLogger(__name__)

TRAINING = 3
"""Forward and backward of a trained part: the backward computes two products for each of the forward's."""

FAILED = "and what follows it"
_ATTENTION = ("bmm", "scaled_dot_product")
_TORCH = ("aten", "prim", "prims")
# operations of torch that do products, and that its counter of operations has no formula for
_PRODUCTS = re.compile(
    "_fft|linalg_(?!vector_norm)|_linalg|_cdist|mv|addmv|dot|vdot|addr|lstm|gru|rnn|_thnn|_cudnn_rnn|mkldnn_rnn|_trilinear|cholesky|"
    "triangular_solve|_sparse|_int_mm|_weight_int"
)


class FlopCounter:
    """Counts the operations of models. What it cannot count ends nothing: it is listed in ``uncounted``.

    A model runs on meta copies of its weights. If an operation refuses that device (a kernel of one's own, a value that
    decides), the model runs for real, where it is; if that fails too, what came before counts.
    """

    def __init__(self) -> None:
        self.uncounted: set[str] = set()

    def note(self) -> Config:
        """Log what was not counted, and return it for ``cost`` in run.json; nothing if all was."""
        if not self.uncounted:
            return {}
        names = sorted(self.uncounted)
        logger.warning("FLOPs leave out %s: costs and budgets in FLOPs do not know them", ", ".join(names))
        return {"uncounted": names}

    def forward(
        self,
        module: nn.Module,
        *args: Tensor | Slots,
        attention: bool = True,
        method: Callable[..., object] = lambda module, *args: module(*args),
    ) -> int:
        """Count the operations of ``method(module, *args)``.

        attention: False leaves out the products inside attention, which ``attention_flops`` counts.
        """
        flops, unknown = _count(lambda: _meta_run(module, args, method), attention)
        if any(FAILED in name for name in unknown):
            real = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
            meta = flops, unknown
            with sdpa_kernel(SDPBackend.MATH):  # as products, which are known on every device
                flops, unknown = _count(lambda: partial(method, module, *(a.to(real) for a in args)), attention)
            flops, unknown = max((flops, unknown), meta, key=lambda count: count[0])
        self.uncounted |= unknown
        return flops

    def transformer(self, transformer: Transformer, slots: Slots) -> int:
        """Forward of one image. slots: those of one sample (B = 1)."""
        label_B = torch.zeros(1, dtype=torch.int64)
        dense = self.forward(transformer, slots, label_B, attention=False)
        return dense + attention_flops(slots.step_L, width=transformer.width, depth=transformer.depth)

    def encode(self, tokenizer: VQTokenizer, image_size: tuple[int, int]) -> int:
        """Tokenizing one image."""
        return self.forward(tokenizer, torch.zeros(1, 3, *image_size), method=lambda module, img: module.encode(img))

    def decode(self, tokenizer: VQTokenizer) -> int:
        """Decoding one image's f_hat."""
        return self.forward(tokenizer, tokenizer.blank(1), method=lambda module, f_hat: module.decode(f_hat))

    def sampling(self, forward: int, tokenizer: VQTokenizer, *, guided: bool) -> int:
        """Drawing one image: every slot once (twice when guided), then its maps through the quantizer and the decoder.

        forward: operations of the transformer for all slots of one image.
        """
        maps = [torch.zeros(1, h * w, dtype=torch.int64) for h, w in tokenizer.scales]
        decode = self.forward(tokenizer, *maps, method=lambda module, *maps: decode_maps(module, list(maps)))
        return forward * (2 if guided else 1) + decode

    def trained(self, module: nn.Module, image_size: tuple[int, int]) -> int:
        """Forward and backward of one image; a frozen part (``frozen_forward``) goes forward only."""
        image, frozen = torch.zeros(1, 3, *image_size), 0
        if hasattr(module, "frozen_forward"):
            frozen = self.forward(module, image, method=lambda module, img: module.frozen_forward(img))
        return TRAINING * (self.forward(module, image) - frozen) + frozen


def run_on_meta(
    module: nn.Module,
    *args: Tensor | Slots,
    method: Callable[..., object] = lambda module, *args: module(*args),
) -> None:
    """Run ``method(module, *args)`` on meta copies of the weights and the arguments: shapes must fit, nothing is computed."""
    _meta_run(module, args, method)()


def _meta_run(
    module: nn.Module, args: tuple[Tensor | Slots, ...], method: Callable[..., object]
) -> Callable[[], object]:
    """Make the copies that ``run_on_meta`` runs on; returns the run."""
    named = [*module.named_parameters(), *module.named_buffers()]
    weights = {f"module.{name}": t.detach().to("meta") for name, t in named}
    call, inputs = MethodCall(module, method), tuple(a.to("meta") for a in args)

    def run() -> None:
        with _UncountedShapes(), torch.no_grad():
            functional_call(call, weights, inputs)

    return run


def _count(prepare: Callable[[], Callable[[], object]], attention: bool) -> tuple[int, set[str]]:
    """The operations of a run, and the names of those that are unknown; of one that failed, those before."""
    counter = _Counter()
    try:
        run = prepare()
        with counter, torch.no_grad():
            run()
    except Exception as error:
        logger.debug("%s", counter.last, exc_info=error)
        counter.unknown -= {counter.last}
        counter.unknown.add(f"{counter.last} {FAILED}")
    counts = counter.flops.items()
    return sum(n for name, n in counts if attention or not any(a in name for a in _ATTENTION)), counter.unknown


class _Counter(TorchDispatchMode):
    """Adds up torch's formulas by operation, and collects the operations that do products and have no formula.

    torch's FlopCounterMode also tells modules apart, which takes as long again as the run.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        self.unknown: set[str] = set()
        self.last = "the first operation"

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        kwargs = kwargs or {}
        name = func.name().partition(".")[0].replace("::", ".")
        formula = flop_registry.get(_out_of_place(func))
        self.last = name
        if formula is None and isinstance(func, OpOverload):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            self.flops[name] += formula(*args, **kwargs, out_val=out)
        elif func.namespace not in _TORCH or _PRODUCTS.match(name.partition(".")[2]):
            self.unknown.add(name)
        return out


def _out_of_place(func: OpOverload) -> object:
    """The operation that torch has a formula for: ``addmm`` for ``addmm_``."""
    packet = getattr(func, "overloadpacket", func)
    name = getattr(packet, "__name__", "")
    return getattr(torch.ops.aten, name[:-1], packet) if name.endswith("_") and func.namespace == "aten" else packet


class _UncountedShapes(TorchDispatchMode):
    """Gives norms and resizes on ``meta`` their shapes alone: torch would run their formulas in Python, and counts neither."""

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        if func is torch.ops.aten.upsample_bicubic2d.default:
            return args[0].new_empty(*args[0].shape[:2], *args[1])
        if func is torch.ops.aten.native_group_norm.default:
            return torch.empty_like(args[0]), *args[0].new_empty(2, args[3], args[6])
        return func(*args, **(kwargs or {}))


class MethodCall(nn.Module):
    """A module whose ``forward`` is any method of another one: functional_call calls nothing else."""

    def __init__(self, module: nn.Module, method: Callable[..., object]):
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args: Tensor | Slots) -> object:
        return self.method(self.module, *args)


def visible_pairs(step_L: Tensor) -> int:
    """Count the (slot, seen slot) pairs that the mask rule admits."""
    return int((step_L[None, :] <= step_L[:, None]).sum())


def attention_flops(step_L: Tensor, *, width: int, depth: int) -> int:
    """Queries times keys, and weights times values, over the visible pairs, in every layer."""
    return 4 * visible_pairs(step_L) * width * depth
