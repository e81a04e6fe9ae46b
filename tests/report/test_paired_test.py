"""Intervals and paired tests: correct on known numbers, with the coverage that they claim."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from varlab.errors import VarlabError
from varlab.report.readme_table import write_section
from varlab.report.stats.paired_test import (
    PairedDifference,
    holm,
    mean_interval,
    paired_difference,
    paired_tests,
    stands_out,
)


def test_known_numbers() -> None:
    """Student (1908), the sleep data: mean difference 1.58, t = 4.0621, p = .00283."""
    first = dict(enumerate([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]))
    second = dict(enumerate([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]))
    difference = paired_difference(first, second)
    assert difference is not None and difference.n == 10 and difference.excludes_zero
    assert difference.mean == pytest.approx(1.58) and difference.p == pytest.approx(0.00283, abs=1e-5)
    assert (difference.low, difference.high) == (pytest.approx(0.7001, abs=1e-4), pytest.approx(2.4599, abs=1e-4))
    assert difference.p == pytest.approx(stats.ttest_rel(list(second.values()), list(first.values())).pvalue)


def test_intervals_cover_the_truth_95_times_in_100() -> None:
    draws = np.random.default_rng(0).normal(3.0, 2.0, (4000, 3))
    covered = np.mean([(mean := mean_interval(row.tolist())).low < 3.0 < mean.high for row in draws])
    assert 0.94 < covered < 0.96


def test_several_comparisons_together() -> None:
    """Holm's own rule on four, and the chance of any false alarm under the null."""
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    p = np.random.default_rng(0).uniform(size=(4000, 5))
    alarms = np.mean([min(holm(dict(zip("abcde", row.tolist(), strict=True))).values()) < 0.05 for row in p])
    assert 0.04 < alarms < 0.06


def test_any_false_difference_among_all_pairs_stands_out_once_in_twenty() -> None:
    """Five equal variants over four seeds: choosing the best of them first changes nothing, as every pair is in the family."""
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(1500):
        drawn = rng.normal(size=(5, 4))
        values = {name: dict(enumerate(row)) for name, row in zip("abcde", drawn.tolist(), strict=True)}
        tests = paired_tests(values)
        assert len(tests) == 10
        alarms += any(map(stands_out, tests.values()))
    assert 0.02 < alarms / 1500 < 0.06  # pairs are dependent: Holm keeps somewhat below


def test_pairs_without_common_seeds_are_in_no_family() -> None:
    tests = paired_tests({"a": {0: 1.0, 1: 2.0}, "b": {0: 2.0, 1: 3.1}, "c": {1: 1.0}})
    assert list(tests) == [frozenset("ab")]


def test_intervals_of_pairs_count_the_luck_of_tokenizers_too() -> None:
    """With a tokenizer of each kind for every seed, the interval covers the difference of the kinds 95 times in 100.

    With one tokenizer of each kind it covers the difference of two files, and that of the kinds far less often.
    """
    rng = np.random.default_rng(0)
    covered = {"a tokenizer a seed": 0, "one tokenizer": 0}
    for _ in range(2000):
        for case, tokenizers in (("a tokenizer a seed", 3), ("one tokenizer", 1)):
            luck = 0.05 * rng.normal(size=(2, tokenizers)) + 0.01 * rng.normal(size=(2, 3))
            pair = paired_difference(
                *(dict(enumerate((kind + own).tolist())) for kind, own in zip((0.1, 0.3), luck, strict=True))
            )
            assert pair is not None
            covered[case] += pair.low < 0.2 < pair.high
    assert 0.935 < covered["a tokenizer a seed"] / 2000 < 0.965 and covered["one tokenizer"] / 2000 < 0.6


def test_only_shared_seeds_are_compared() -> None:
    difference = paired_difference({0: 1.0, 1: 2.0, 2: 9.0}, {1: 2.5, 0: 1.5, 7: 0.0})
    assert difference == PairedDifference(n=2, mean=0.5, low=0.5, high=0.5, p=0.0)
    assert paired_difference({0: 1.0}, {1: 2.0}) is None
    single = paired_difference({0: 1.0}, {0: 2.0})
    assert single is not None and math.isnan(single.low) and math.isnan(single.p) and not single.excludes_zero
    same = paired_difference({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0})
    assert same is not None and same.p == 1.0 and not same.excludes_zero


def test_a_table_is_written_between_its_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# x\n<!-- a -->\nold\n<!-- /a -->\nrest\n<!-- b -->\n<!-- /b -->\n")
    write_section(readme, "a", "| new |")
    write_section(readme, "a", "| newer |")
    assert readme.read_text() == "# x\n<!-- a -->\n| newer |\n<!-- /a -->\nrest\n<!-- b -->\n<!-- /b -->\n"
    with pytest.raises(VarlabError, match="has no lines <!-- c -->"):
        write_section(readme, "c", "x")
