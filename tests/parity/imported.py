"""Golden models as a user would have them: official files, taken in by ``varlab import``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from tests import bounds
from tests.golden.golden_io import Golden
from varlab import load
from varlab.checkpoint.formats import Link, phi_style, tokenizer_links, transformer_links
from varlab.cli.main import main
from varlab.model import Model
from varlab.run.record import read_record

GOLDEN = Path(__file__).parents[1] / "golden"

IMPORTS: dict[str, tuple[str, str, str | None, tuple[str, ...]]] = {
    # name: golden file, state of the tokenizer, state of the transformer, what the files do not tell
    "var_A": ("var_A", "vqvae", "var", ()),
    "var_C": ("var_C", "vqvae", "var", ()),
    "taming": ("taming", "vqgan", None, ()),
    "taming_gpt": ("taming", "vqgan", "gpt", ("scales=[[1,17]]", "heads=2")),
    "taming_unmasked": ("taming", "vqgan", "gpt_unmasked", ("scales=[[1,17]]", "heads=2", "unmasked=4")),
    "llamagen": ("llamagen", "vq", None, ("entropy=0.1",)),
    "llamagen_gpt": ("llamagen", "vq", "gpt", ("scales=[[4,4]]", "heads=2")),
    "llamagen_gqa": ("llamagen", "vq", "gpt_gqa", ("scales=[[4,4]]", "heads=2")),
}
FORMAT = {"var_A": "var", "var_C": "var", "taming": "vqgan", "llamagen": "llamagen"}


def golden(name: str) -> Golden:
    return Golden(str(GOLDEN / IMPORTS[name][0]))


def import_golden(name: str, folder: Path) -> Path:
    """The run directory; the official files lie beside it."""
    file, tokenizer, transformer, options = IMPORTS[name]
    states = {"tokenizer": tokenizer, "transformer": transformer}
    asked = [f"format={FORMAT[file]}", *options]
    for role, state in states.items():
        if state is not None:
            torch.save(golden(name).state(state), folder / f"{role}.pth")
            asked.append(f"{role}={folder / role}.pth")
    assert main(["import", *asked, f"out={folder / 'run'}"]) == 0
    return folder / "run"


@cache
def _loaded(run: Path, precision: tuple[torch.dtype, int | None]) -> tuple[Model, dict[str, Tensor], dict[str, bool]]:
    model = load(run)
    modules = nn.ModuleList(model._modules())
    return model, deepcopy(modules.state_dict()), {name: p.requires_grad for name, p in modules.named_parameters()}


def load_restored(run: Path) -> Model:
    """An imported run's model as it was loaded. There is one for each precision, which the next call restores."""
    model, state, trained = _loaded(run, bounds.precision())
    modules = nn.ModuleList(model._modules())
    modules.load_state_dict(state)
    for name, parameter in modules.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(trained[name])
    modules.eval()
    return model


def agree(
    reference: Golden, measure: Callable[[], bounds.Measured], scalars: Mapping[str, float] | None = None
) -> None:
    """``measure`` gives the official code's numbers: stored tensors, or the ``scalars`` of these names.

    Theirs were computed in float32, too: both may lie as far from the truth as float32 lies. Integers are equal.
    """
    scalars, (exact, bound), single = scalars or {}, bounds.truth(measure), measure()
    for name, value in exact.items():
        if not value.is_floating_point():
            same(reference, name, value)
            same(reference, name, single[name])
            continue
        off = bounds.distance(single[name], value)
        assert off <= bound[name], f"{name}: float32 lies {off} from the truth, the bound is {bound[name]}"
        off = bounds.size(value - scalars[name]) if name in scalars else difference(reference, name, value)
        assert off <= bound[name], f"{name}: the official value lies {off} from the truth, the bound is {bound[name]}"


def difference(reference: Golden, name: str, mine: Tensor) -> float:
    with bounds.float64():  # else it would round
        return reference.maxdiff(name, mine)[0]


def same(reference: Golden, name: str, mine: Tensor) -> None:
    mismatches, _ = reference.maxdiff(name, mine)
    assert mismatches == 0, name


def links_of(run: Path, state: Mapping[str, Tensor], *, transformer: bool) -> list[Link]:
    """Which tensor is which, for an imported run and the official state it came from."""
    build = read_record(run).build
    name = build["imported"]["format"]
    if transformer:
        return transformer_links(name, build["transformer"])
    return tokenizer_links(name, build["tokenizer"], phi_style(dict(state)))


def stored_gradients(reference: Golden, prefix: str, links: Sequence[Link], module: nn.Module) -> dict[str, Tensor]:
    """Those gradients that the golden file holds under ``prefix``."""
    names = [name for name in reference.meta["tensors"] if name.startswith(prefix)]
    assert names
    found = gradients(links, module)
    return {name: found[name.removeprefix(prefix)] for name in names}


def gradients(links: Sequence[Link], module: nn.Module) -> dict[str, Tensor]:
    """Gradients under the official names and in the official shapes."""
    own = dict(module.named_parameters())
    found = {}
    for link in links:
        gradient = own[link.ours].grad if link.ours in own else None
        if gradient is not None:
            found |= dict(zip(link.theirs, link.write(gradient.clone()), strict=True))
    return found


class GeneratorDraws:
    """Sampling as the official codes draw: from one torch generator (None: the global one), token after token."""

    def __init__(self, generator: torch.Generator | None):
        self._generator = generator

    def pick(self, logits_BlV: Tensor, k: int) -> Tensor:
        rows = logits_BlV.softmax(-1).flatten(0, 1).to(torch.float32)
        return torch.multinomial(rows, 1, replacement=True, generator=self._generator).view(logits_BlV.shape[:2])

    def gumbel(self, logits_BlV: Tensor, k: int) -> Tensor:
        return -torch.empty_like(logits_BlV).exponential_(generator=self._generator).log()
