"""The device of a measurement: its settings while it works, its rate of matrix products, and what its datasheet says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from omegaconf import OmegaConf

from varlab.bench.work import Work
from varlab.config import Config, conf_dir
from varlab.errors import VarlabError
from varlab.processor import hardware_precision, widened
from varlab.recipe.plan import precision

__all__ = ["datasheet_rate", "device_name", "product", "resolved", "settings_of"]

_TYPES = {"32-true": ("fp32", torch.float32), "tf32": ("tf32", torch.float32), "bf16-mixed": ("bf16", torch.bfloat16)}


def resolved(asked: str, device: torch.device) -> str:
    """The precision that ``precision=`` asks for. Raises VarlabError for one that is not measured."""
    found = precision(asked, device.type)
    if found not in _TYPES or (found == "tf32" and device.type != "cuda"):
        raise VarlabError(
            f"precision={asked} is not measured with device={device.type}: use bf16-mixed or 32-true (or tf32 on a GPU)."
        )
    return found


@contextmanager
def settings_of(config: Config, device: torch.device) -> Iterator[None]:
    """With the threads, the precision and the determinism that the configuration asks for; restored afterwards."""
    threads, rate = torch.get_num_threads(), torch.get_float32_matmul_precision()
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        stack.callback(torch.set_float32_matmul_precision, rate)
        stack.callback(torch.use_deterministic_algorithms, before[0], warn_only=before[1])
        torch.set_num_threads(config["threads"] or threads)
        if config["precision"] == "tf32":
            torch.set_float32_matmul_precision("high")
        if config.get("deterministic"):
            stack.enter_context(_no_filling())
            torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
        if config["precision"] == "bf16-mixed":
            stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16))
        yield


@contextmanager
def _no_filling() -> Iterator[None]:
    """Without writing to new tensors, which determinism would do, and which a training does not."""
    before = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before  # type: ignore[attr-defined]


def product(config: Config, device: torch.device) -> Work:
    """The product of two square matrices, in the type that the other works multiply in."""
    side = config["product"][device.type]
    a, b = widened(*torch.rand(2, side, side, device=device).sub(0.5).to(_TYPES[config["precision"]][1]))

    def turn() -> int:
        with hardware_precision(a):
            torch.mm(a, b)
        return 1

    return Work(name="matrix product", turn=turn, flops_per_image=2 * side**3)


def device_name(device: torch.device, processor: str) -> str:
    """The name of a card, or else of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor


def datasheet_rate(name: str, precision: str) -> float | None:
    """TFLOP/s of ``conf/cards.yaml`` for a card at a precision; None for a device that is not in it."""
    cards: list[Config] = OmegaConf.to_container(OmegaConf.load(conf_dir() / "cards.yaml"))  # type: ignore[assignment]
    rates = [card[_TYPES[precision][0]] for card in cards if name in card["names"]]
    return rates[0] if rates else None
