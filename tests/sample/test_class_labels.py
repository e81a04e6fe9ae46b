"""Integers are indices of classes, and texts are their names."""

from __future__ import annotations

import logging
import shlex

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.test_arguments import composed
from varlab.data.folders.class_names import canonical
from varlab.sample.class_labels import ClassLabels
from varlab.sample.inputs import checked_labels
from varlab.types import VarlabError

ANIMALS = ("cat", "3", "tench, Tinca tinca", "dog", "0", "écureuil")
CPU = torch.device("cpu")


@given(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=8, unique_by=canonical), st.data())
def test_an_integer_is_an_index_and_a_text_is_a_name(names: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(names) - 1)))
    assert ClassLabels(names).indices(chosen) == chosen
    assert ClassLabels(names).indices([names[i] for i in chosen]) == chosen


def test_a_composed_and_a_decomposed_accent_are_one_name() -> None:
    assert ClassLabels(ANIMALS).indices("e\u0301cureuil") == [5]


@pytest.mark.parametrize(
    ("asked", "other"), [(3, "'3' is at index 1"), ("3", "index 3 is 'dog'"), ("0", "index 0 is 'cat'")]
)
def test_the_log_names_both_where_a_number_is_also_a_name(
    asked: int | str, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And what it says to write for the other class leads there."""
    with caplog.at_level(logging.INFO):
        (index,) = ClassLabels(ANIMALS).indices(asked)
    (said,) = caplog.messages
    assert other in said
    (word,) = shlex.split(said.partition("write ")[2].partition(" for it")[0])
    (there,) = composed("sample", "run=a", word).labels
    assert type(there) is not type(asked) and str(there) == str(asked)
    assert ClassLabels(ANIMALS).indices(there) != [index]


def test_nothing_is_logged_where_both_are_one_class(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert ClassLabels([str(i) for i in range(10)]).indices([3, "3", 10]) == [3, 3, 10]
    assert not caplog.messages


@pytest.mark.parametrize("key", ["labels", "label"])
@pytest.mark.parametrize(
    ("asked", "leads_to"),
    [("caat", 0), ("tench", 2), ("Tinca tinca", 2), ("5", 5), (True, None), ("DOG", 3), ("ecureuil", 5)],
)
def test_what_the_sentence_says_to_write_works(asked: str, leads_to: int | None, key: str) -> None:
    classes = [*ANIMALS, "True"] if leads_to is None else ANIMALS
    with pytest.raises(VarlabError) as refused:
        ClassLabels(classes, key=key).indices([asked])
    after = str(refused.value).rpartition("rite ")[2]
    (word, *_) = shlex.split(after.partition(". The classes")[0].removesuffix("."))
    asked = composed("sample" if key == "labels" else "edit", "run=a", word)[key]
    assert ClassLabels(classes, key=key).indices(asked) == [len(classes) - 1 if leads_to is None else leads_to]


def test_several_names_in_one_word_are_shown_as_a_list() -> None:
    with pytest.raises(VarlabError, match=r"labels=\[cat,dog\]"):
        ClassLabels(ANIMALS).indices("cat,dog")


def test_the_range_is_named() -> None:
    for asked in ([7], torch.tensor([7])):
        with pytest.raises(
            VarlabError, match=r"Label 7 is outside the 6 classes of this run \(0 … 5, or 6 for no class\)"
        ):
            checked_labels(asked, classes=ANIMALS, batch=1, device=CPU)


def test_labels_of_every_kind_become_indices() -> None:
    for labels, indices in [
        (["dog", 0], [3, 0]),
        ("dog", [3]),
        (2, [2]),
        (torch.tensor([1, 2]), [1, 2]),
        (None, [6, 6]),
    ]:
        assert checked_labels(labels, classes=ANIMALS, batch=2, device=CPU).tolist() == indices
