"""What augmentation computes, by hand: draws are given, and small images tell what became of each pixel."""

from __future__ import annotations

from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from varlab.losses.diff_augment import DiffAugment
from varlab.rng import Stream

IMG = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Given:
    """A stream with these draws: brightness, saturation, contrast; down, right; row and column of the cutout; rate."""

    def __init__(self, *draws: float):
        self.draws = torch.tensor([draws])

    def uniform(self, n: int) -> Tensor:
        return F.pad(self.draws, (0, n - self.draws.shape[1]))


def augmented(policy: str, *draws: float, img: Tensor = IMG, **settings: float) -> Tensor:
    make = DiffAugment(policies=[policy], rate=1.0, **settings)  # type: ignore[arg-type]
    return make(img, cast(Stream, Given(*draws)))


@pytest.mark.parametrize("u", [0.0, 0.25, 0.5, 0.9])
def test_colours(u: float) -> None:
    """Brightness adds up to ±1/2; saturation multiplies the distance from grey by 0 to 2, contrast that from the mean."""
    grey, mean = IMG.mean(1, keepdim=True), IMG.mean()
    torch.testing.assert_close(augmented("color", u, 0.5, 0.5), IMG + u - 0.5)
    torch.testing.assert_close(augmented("color", 0.5, u, 0.5) - grey, 2 * u * (IMG - grey))
    torch.testing.assert_close(augmented("color", 0.5, 0.5, u) - mean, (0.5 + u) * (IMG - mean))


@pytest.mark.parametrize(("u", "moved"), [(0.0, -1), (0.4, 0), (0.99, 1)])
def test_places(u: float, moved: int) -> None:
    """Of 8 pixels up to 1: black comes in from the edge."""
    down, right = augmented("translation", 0, 0, 0, u, 0.5), augmented("translation", 0, 0, 0, 0.5, u)
    padded = F.pad(IMG, (1, 1, 1, 1))
    torch.testing.assert_close(down, padded[:, :, 1 - moved : 9 - moved, 1:9])
    torch.testing.assert_close(right, padded[:, :, 1:9, 1 - moved : 9 - moved])


CUTS = [(0.5, 0.0, (0, 2)), (0.5, 0.5, (2, 6)), (0.5, 0.99, (6, 8)), (0.25, 0.5, (3, 5)), (0.4, 0.5, (3, 6))]


@pytest.mark.parametrize(("share", "u", "rows"), CUTS)
def test_what_is_cut_out(share: float, u: float, rows: tuple[int, int]) -> None:
    """share: of a side; its centre is anywhere, the edges included."""
    for draws, cut in (((u, 0.5), 2), ((0.5, u), 3)):
        gone = (augmented("cutout", 0, 0, 0, 0, 0, *draws, cutout=share) == 0).all(1)[0]
        lines = gone.any(1 if cut == 2 else 0).nonzero().flatten()
        assert (int(lines.min()), int(lines.max()) + 1) == rows and int(gone.sum()) == len(lines) * round(8 * share)


def test_a_side_that_fits_is_not_averaged() -> None:
    """Of 8 × 12 pixels brought to 8 × 8 nothing can be cut out: the whole is resampled, bicubic."""
    wide = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    small = DiffAugment(policies=[], rate=1.0, crop=8)(wide, cast(Stream, Given(*[0.0] * 11)))
    torch.testing.assert_close(small, F.interpolate(wide, size=(8, 8), mode="bicubic"))
    assert DiffAugment(policies=[], rate=1.0, crop=8)(IMG, cast(Stream, Given(*[0.0] * 11))) is IMG


def test_nothing_and_everything_can_be_cut_out() -> None:
    assert torch.equal(augmented("cutout", 0, 0, 0, 0, 0, 0.5, 0.5, cutout=0.0), IMG)
    assert not augmented("cutout", 0, 0, 0, 0, 0, 0.5, 0.5, cutout=1.0).any()
