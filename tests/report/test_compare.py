"""What differs between runs, and which are the same experiment under another seed."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from varlab.report import compare, differences, find_runs, read_run
from varlab.report.compare import group_variants
from varlab.run.record import ABSENT, flatten

from . import make_runs

CONFIGS = st.recursive(
    st.integers(0, 3) | st.text("ab", max_size=2) | st.lists(st.integers(0, 2), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("pqrs"), inner, max_size=3),
    max_leaves=8,
).filter(lambda config: isinstance(config, dict))


@given(CONFIGS, CONFIGS)
def test_differences_are_exactly_the_keys_whose_values_differ(a: dict, b: dict) -> None:
    rows = differences({"a": a, "b": b})
    assert differences({"a": a, "b": a}) == {}
    flat_a, flat_b = flatten(a), flatten(b)
    assert set(rows) == {key for key in {*flat_a, *flat_b} if flat_a.get(key, ABSENT) != flat_b.get(key, ABSENT)}
    assert all(row == {"a": flat_a.get(key, ABSENT), "b": flat_b.get(key, ABSENT)} for key, row in rows.items())


def test_where_and_how_often_a_run_was_made_is_no_difference() -> None:
    a = {"seed": 0, "out": "x", "name": "n", "launch": {"type": 1}, "trainer": {"threads": 1}}
    b = {"seed": 1, "out": "y", "name": "m", "launch": {"type": 2}, "trainer": {"threads": 2}}
    assert differences({"a": a, "b": b}) == {"trainer.threads": {"a": 1, "b": 2}}


def test_two_runs_compared(study: Path) -> None:
    rows = compare(read_run(study / "order=next_scale+seed=0"), read_run(study / "order=raster+seed=1"))
    assert rows["tokenizer_run"] == ("multi", "single")
    assert "seed" not in rows


def test_seeds_of_one_configuration_are_one_variant(study: Path) -> None:
    variants = {variant.label: variant for variant in group_variants(find_runs([study]))}
    assert [run.seed for run in variants["next_scale"].runs] == [0, 1]
    assert [run.seed for run in variants["random"].runs] == [0], "an unfinished run enters no group"
    assert not variants["random · seed 1"].finished
    assert [v.kind for v in variants.values()] == ["generator"] * 5 + ["tokenizer"] * 2 + ["classifier"]


def test_variants_that_share_a_name_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    for cfg in (1.0, 2.0):
        make_runs.generator(tmp_path / f"cfg={cfg}", order="raster", cfg=cfg)
    assert {v.label for v in group_variants(find_runs([tmp_path]))} == {"raster · cfg 1.0", "raster · cfg 2.0"}


def test_labels_are_unique_even_for_copies(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        make_runs.generator(tmp_path / folder, order="raster", state="failed")
    labels = [v.label for v in group_variants(find_runs([tmp_path]))]
    assert len(set(labels)) == 2
