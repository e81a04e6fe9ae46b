"""Conditions by hand: the place of each cell, what shards must hold, what is shown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from varlab.rng import Rng
from varlab.tokenizer import VQTokenizer
from varlab.tokenizer.condition import Condition, CoordinateCondition, SpatialCondition, _places
from varlab.types import Batch, DataInfo, VarlabError, to_float

PLACES = CoordinateCondition(grid=[2, 3], rows=4, columns=8)


def batch(count: int = 2, **fields: Any) -> Batch:
    ids = torch.arange(count)
    img = torch.arange(count * 3 * 4 * 6).view(count, 3, 4, 6).to(torch.uint8)
    return Batch(**({"img_u8_B3HW": img, "label_B": ids, "position_B": ids, "valid_B": ids >= 0} | fields))


def info(**changes: Any) -> DataInfo:
    plain: dict[str, Any] = dict(path="p", classes=("a",), image_size=(4, 6), counts={}, hash="", source="memory")
    return DataInfo(**(plain | changes))


class OfLabels(Condition):
    vocab_size, scales, needs = 5, ((1, 1), (1, 2)), ("label_B",)

    def tokens(self, batch: Batch) -> Tensor:
        assert bool(batch.valid_B.all()) and batch.position_B.tolist() == list(range(len(batch)))
        assert batch.img_u8_B3HW.shape == (len(batch), 3, 0, 0)
        return batch.label_B[:, None].expand(-1, 3)


def test_where_the_middle_of_each_cell_falls() -> None:
    """Of three cells between 0.5 and 1: 7/12, 9/12, 11/12, of eight places 4, 6, 7; mirrored from right to left."""
    low, high = torch.tensor([0.5, 1.0, 0.0, 0.9]), torch.tensor([1.0, 0.5, 1.0, 1.3])
    assert _places(low, high, 3, 8).tolist() == [[4, 6, 7], [7, 6, 4], [1, 4, 6], [7, 7, 7]]
    assert _places(torch.tensor([-0.5]), torch.tensor([0.1]), 2, 10).tolist() == [[0, 0]]


def test_coordinates_by_hand() -> None:
    """The whole picture: rows at 1/4 and 3/4 of four, columns at 1/6, 3/6, 5/6 of eight."""
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 1.0, 1.0]])
    tokens = PLACES.tokens(batch(box_B4=box)).tolist()
    assert tokens[0] == [8 * r + c for r in (1, 3) for c in (1, 4, 6)]
    assert tokens[1] == [8 * r + c for r in (2, 3) for c in (4, 6, 7)]
    assert (PLACES.vocab_size, PLACES.num_tokens, PLACES.scales, PLACES.needs) == (32, 6, ((2, 3),), ("box_B4",))
    assert PLACES.describe(info()) == "coordinates"
    assert PLACES.defaults(2)["box_B4"].tolist() == [[0.0, 0.0, 1.0, 1.0]] * 2
    assert PLACES.encode(box_B4=box).tolist() == tokens
    large = PLACES.enlarged((8, 12), (4, 6))
    assert (large.scales, large.rows, large.columns) == (((4, 6),), 4, 8)
    assert large.tokens(batch(box_B4=box))[0, :6].tolist() == [0, 2, 3, 4, 6, 7]


@pytest.mark.parametrize(("rows", "columns"), [(0, 1), (1, 0), (-1, 2)])
def test_places_are_at_least_one(rows: int, columns: int) -> None:
    with pytest.raises(VarlabError, match=rf"rows={rows} and condition\.columns={columns}"):
        CoordinateCondition(grid=[1, 1], rows=rows, columns=columns)
    CoordinateCondition(grid=[1, 1], rows=1, columns=1)


def test_places_are_shown_as_colours() -> None:
    """Red grows downwards, green to the right, and each cell covers its pixels."""
    shown = PLACES.shown(batch(1, box_B4=torch.tensor([[0.0, 0.0, 1.0, 1.0]])))
    assert shown.shape == (1, 3, 4, 6) and shown.dtype == torch.uint8
    red, green, blue = to_float(shown)[0]
    for row, part in ((0, 1 / 3), (1, 1 / 3), (2, 1.0), (3, 1.0)):
        assert red[row].tolist() == pytest.approx([2 * part - 1] * 6, abs=0.01)
    for column, part in ((0, 1 / 7), (1, 1 / 7), (2, 4 / 7), (3, 4 / 7), (4, 6 / 7), (5, 6 / 7)):
        assert green[:, column].tolist() == pytest.approx([2 * part - 1] * 4, abs=0.01)
    assert blue.eq(-1).all()
    one = CoordinateCondition(grid=[1, 1], rows=1, columns=1).shown(batch(1, box_B4=torch.zeros(1, 4)))
    assert not one.any()


def test_what_is_shown_of_a_condition() -> None:
    plain, other = batch(), torch.zeros(2, 3, 4, 6, dtype=torch.uint8)
    assert OfLabels().shown(plain) is plain.img_u8_B3HW
    assert OfLabels().shown(batch(cond_u8_B3HW=other)) is other


def test_what_shards_must_hold() -> None:
    spatial = type("Spatial", (OfLabels,), {"needs": ("cond_u8_B3HW",)})()
    images = type("Images", (OfLabels,), {"needs": ("img_u8_B3HW",)})()
    OfLabels().check(info(tokens="t"))
    OfLabels().check(info())
    spatial.check(info(condition="edges"))
    PLACES.check(info(boxes=True))
    images.check(info())
    for condition, holds, says in (
        (spatial, info(tokens="t", condition="edges"), "holds no conditions"),
        (images, info(tokens="t"), "holds no conditions"),
        (spatial, info(), "needs shards with conditions"),
        (PLACES, info(condition="edges"), "the place of each image"),
    ):
        with pytest.raises(VarlabError, match=says):
            condition.check(holds)
    assert spatial.describe(info(condition="edges")) == "edges" and spatial.describe(info()) == "Spatial"
    assert OfLabels().describe(info(condition="edges")) == "OfLabels"


def test_fields_become_a_batch() -> None:
    assert OfLabels().num_tokens == 3 and OfLabels().defaults(3) == {}
    assert OfLabels().encode(label_B=torch.tensor([4, 2])).tolist() == [[4] * 3, [2] * 3]
    with pytest.raises(VarlabError, match="made with labels, one for each sample"):
        OfLabels().encode()
    with pytest.raises(VarlabError, match="leave size= out"):
        OfLabels().enlarged((8, 8), (2, 2))


def tokenizer() -> VQTokenizer:
    with Rng(0).scope("init"):
        return VQTokenizer(
            scales=[[2, 3]], vocab_size=16, code_dim=4, phi_count=0, code_init=16.0,
            channels=8, channel_mult=[1, 2], groups=4, res_blocks=1,
        )  # fmt: skip


def test_condition_images_become_the_tokens_of_their_tokenizer() -> None:
    model = tokenizer()
    condition = SpatialCondition(tokenizer=model)
    img = batch().img_u8_B3HW
    assert torch.equal(condition.tokens(batch(cond_u8_B3HW=img)), torch.cat(model.encode(to_float(img)), 1))
    assert (condition.vocab_size, condition.scales, condition.num_tokens) == (16, ((2, 3),), 6)
    assert not any(p.requires_grad for p in condition.parameters())
    assert condition.train().training and not model.training
    with pytest.raises(VarlabError, match=r"condition images of 4×6, not \(4, 8\)"):
        condition.tokens(batch(cond_u8_B3HW=torch.zeros(2, 3, 4, 8, dtype=torch.uint8)))
    large = condition.enlarged((8, 12), (4, 6))
    assert large.scales == ((4, 6),) and large.tokenizer.image_size == (8, 12)
    with pytest.raises(VarlabError, match="no multiple of 2×2"):
        condition.enlarged((8, 13), (4, 6))
    with pytest.raises(VarlabError, match="no multiple of 2×2"):
        condition.enlarged((9, 12), (4, 6))
