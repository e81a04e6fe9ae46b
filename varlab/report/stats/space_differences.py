"""In which feature spaces models differ: FID in each space with its error, differences with intervals, agreement of ranks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from scipy import stats

from varlab.report.score_files import Score
from varlab.report.stats.paired_test import LEVEL, holm, paired_difference, stands_out
from varlab.report.text import join_names, significant
from varlab.report.variants import Variant

__all__ = ["SpaceDifference", "agreement_of_ranks", "sentences", "space_differences", "spaces_of"]

_FREEDOM = 9  # of the jackknife over tenths of the samples


@dataclass(frozen=True)
class SpaceDifference:
    """The FID of a model in one space minus that of another, with a 95% interval. p: corrected for all that are compared."""

    mean: float
    low: float
    high: float
    p: float

    @property
    def stands_out(self) -> bool:
        return stands_out(self.p)


def spaces_of(variants: Sequence[Variant]) -> dict[str, str]:
    """The key of FID in each feature space in which all variants are scored, by the space's name; empty below two."""
    known = [_spaces(run.score) for variant in variants for run in variant.runs if run.score]
    common = [name for name in (known[0] if known else {}) if all(name in other for other in known)]
    return {name: known[0][name] for name in common} if len(common) > 1 else {}


def _spaces(score: Score) -> dict[str, str]:
    """Of one score. The extractor's own space comes first, whose FID has no prefix."""
    first = f"{score.protocol.get('extractor')}-{str(score.protocol.get('extractor_hash'))[:8]}"
    further = score.protocol.get("spaces")
    names = [name for name in further if name != first] if isinstance(further, dict) else []
    return {first: "fid"} | {name: f"{name}/fid" for name in names}


def space_differences(variants: Sequence[Variant], spaces: Mapping[str, str]) -> dict[tuple[str, str], SpaceDifference]:
    """Each variant minus the first, by (variant, space), where both have a FID there.

    With two seeds or more in common the differences are paired over seeds; otherwise their error is that of the samples
    that were drawn (Welch's test on the jackknife's errors), without that of another training.
    """
    tested: dict[tuple[str, str], SpaceDifference] = {}
    for variant in variants[1:]:
        for name, key in spaces.items():
            if (found := _difference(variants[0], variant, key)) is not None:
                tested[variant.label, name] = found
    corrected = holm({key: one.p for key, one in tested.items()})
    return {key: SpaceDifference(one.mean, one.low, one.high, corrected[key]) for key, one in tested.items()}


def _difference(base: Variant, other: Variant, key: str) -> SpaceDifference | None:
    pair = paired_difference(base.by_seed(key), other.by_seed(key))
    if pair is not None and pair.n > 1:
        return SpaceDifference(pair.mean, pair.low, pair.high, pair.p)
    a, b = _sampled(base, key), _sampled(other, key)
    if a is None or b is None:
        return None
    error = math.hypot(a[1], b[1])
    if error == 0:
        return None
    mean, freedom = b[0] - a[0], _FREEDOM * error**4 / (a[1] ** 4 + b[1] ** 4)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    return SpaceDifference(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, freedom)))


def _sampled(variant: Variant, key: str) -> tuple[float, float] | None:
    """The mean FID of the runs, and its standard error by the samples that were drawn."""
    fids, errors = variant.values(key), variant.values(f"{key}_error")
    return (statistics.fmean(fids), math.hypot(*errors) / len(errors)) if fids and len(errors) == len(fids) else None


def sentences(
    variants: Sequence[Variant], spaces: Mapping[str, str], differences: Mapping[tuple[str, str], SpaceDifference]
) -> list[str]:
    """For each variant, in which spaces its FID is lower, higher, or not different from that of the first."""
    lines = []
    for variant in variants[1:]:
        known = {name: one for name in spaces if (one := differences.get((variant.label, name)))}
        lower = [name for name, one in known.items() if one.stands_out and one.mean < 0]
        higher = [name for name, one in known.items() if one.stands_out and one.mean > 0]
        same = [name for name, one in known.items() if not one.stands_out]
        parts = [f"{way} in {join_names(names)}" for way, names in
                 (("lower", lower), ("higher", higher), ("no difference found", same)) if names]  # fmt: skip
        if parts:
            lines.append(f"FID of {variant.label}, compared with {variants[0].label}: {'; '.join(parts)}.")
    return lines


def agreement_of_ranks(variants: Sequence[Variant], spaces: Mapping[str, str]) -> str:
    """Kendall's τ of each space's FID with FDr over the variants, and the pairs of variants that a space orders otherwise.

    Empty below three variants with FDr.
    """
    fdr, *fids = ([variant.values(key) for variant in variants] for key in ("fdr", *spaces.values()))
    if len(variants) < 3 or not all(values for of in (fdr, *fids) for values in of):
        return ""
    whole, *each = ([statistics.fmean(values) for values in of] for of in (fdr, *fids))
    taus = [
        f"{significant(float(stats.kendalltau(of, whole).statistic))} in {name}"
        for name, of in zip(spaces, each, strict=True)
    ]
    pairs = [
        f"{variants[i].label} and {variants[j].label} ({swaps} of {len(each)} spaces)"
        for i, j in combinations(range(len(variants)), 2)
        if (swaps := sum((of[i] - of[j]) * (whole[i] - whole[j]) < 0 for of in each))
    ]
    said = f" Of {math.comb(len(variants), 2)} pairs, FID orders these otherwise: {'; '.join(pairs)}." if pairs else ""
    return f"Kendall's τ of FID with FDr over {len(variants)} rows: {join_names(taus)}.{said}"
