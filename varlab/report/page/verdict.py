"""The sentences of a report: what is compared, which generator is best, and what limits the comparison."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence

from varlab.config import Config
from varlab.report.run_kind import RunKind
from varlab.report.runs import Run
from varlab.report.score_files import Score
from varlab.report.stats.paired_test import paired_tests, stands_out
from varlab.report.text import join_names, si, significant, whole
from varlab.report.variants import Variant, kinds_of
from varlab.run.config_keys import flatten
from varlab.run.record import Parent

__all__ = ["cautions", "comparable", "cost_match", "describe_protocol", "headline", "share_tokenizer", "verdict"]

_EQUAL = 0.02
"""Budgets round up to whole batches: training FLOPs within this share of each other count as equal."""

_FID_50K = 50_000
_BOUND_TO_PROTOCOL = ("extractor", "extractor_hash", "reference", "n", "resize", "rounding")


def headline(variants: Sequence[Variant]) -> str:
    """What is compared, and whether at equal cost; anybody's samples by their names."""
    sets = [variant.label for variant in variants if variant.first.is_scored_set]
    trained = [variant for variant in variants if not variant.first.is_scored_set]
    parts = [_trained(trained)] if trained or not sets else []
    return " ".join([*parts, f"Scored samples of others: {join_names(sets)}."] if sets else parts)


def _trained(variants: Sequence[Variant]) -> str:
    generators = [variant for variant in variants if variant.first.order]
    orders = list(dict.fromkeys(variant.first.order for variant in generators))
    if len(orders) > 1:
        return f"{join_names(orders)}: {len(orders)} orders, {cost_match(generators)}."
    if len(generators) > 1:
        return f"{len(generators)} generators in {orders[0]} order, {cost_match(generators)}."
    if generators:
        return f"One generator: {generators[0].label}."
    if len(variants) > 1:
        return f"{join_names([variant.label for variant in variants])}, {cost_match(variants)}."
    return f"One training: {variants[0].label}." if variants else "No training among these runs."


def cost_match(variants: Sequence[Variant]) -> str:
    """Whether finished runs spent the same training FLOPs (within 2%), the same images, both or neither."""
    runs = [run for variant in variants for run in variant.runs if run.finished]
    if len(runs) < 2:
        return "fewer than two finished"
    flops, images = _ratio([run.total("flops") for run in runs]), _ratio([run.total("images") for run in runs])
    if flops is not None and flops <= 1 + _EQUAL:
        return "at equal training FLOPs and images" if images == 1 else "at equal training FLOPs"
    cost = "at equal images" if images == 1 else "at unequal cost"
    return f"{cost} (training FLOPs differ up to {flops:.2f}×)" if flops else cost


def _ratio(totals: Sequence[float | None]) -> float | None:
    """The largest total ÷ the smallest; None where one is unknown."""
    known = [x for x in totals if x]
    return max(known) / min(known) if known and len(known) == len(totals) else None


def comparable(variants: Sequence[Variant]) -> bool:
    """Whether the scores may be ranked: equal extractor, reference, number of samples, resize and rounding."""
    return len({_protocol_key(score) for score in _scores(variants)}) <= 1


def _protocol_key(score: Score) -> str:
    return json.dumps({key: score.protocol.get(key) for key in _BOUND_TO_PROTOCOL}, sort_keys=True, default=str)


def _scores(variants: Sequence[Variant]) -> list[Score]:
    return [run.score for variant in variants for run in variant.runs if run.score]


def verdict(variants: Sequence[Variant]) -> str:
    """Of each kind with a decisive number: which has the best, by how much, is it more than the spread; empty if unknown."""
    found = (_verdict(kind, chosen) for kind, chosen in kinds_of(variants) if kind.decisive and comparable(chosen))
    return " ".join(filter(None, found))


def _verdict(kind: RunKind, variants: Sequence[Variant]) -> str:
    column = next(column for column in kind.quality if column.key == kind.decisive)
    known = {v.label: values for v in variants if v.finished and (values := v.by_seed(column.key))}
    means = {label: statistics.fmean(values.values()) for label, values in known.items()}
    if len(means) < 2:
        return ""
    first, second = sorted(means, key=lambda label: means[label], reverse=column.best == "max")[:2]
    sentence = (
        f"{first} has the {'highest' if column.best == 'max' else 'lowest'} {column.label}: {significant(means[first])} "
        f"against {significant(means[second])} for {second}"
    )
    tests = paired_tests(known)
    p = tests.get(frozenset((first, second)))
    if p is None:
        return f"{sentence}. The difference has no error bar: for that, both need runs with the same two seeds or more."
    family = f"corrected by Holm for all {len(tests)} pairs" if len(tests) > 1 else "a single test"
    does = "stands out" if stands_out(p) else "does not stand out"
    return f"{sentence}, a difference that {does} (paired over seeds, p {p:.2g}, {family})."


def cautions(runs: Sequence[Run], variants: Sequence[Variant]) -> list[str]:
    """What limits the comparison, one sentence each."""
    trainings = [run for variant in variants for run in variant.runs]
    finished = [run for run in trainings if run.finished]
    own = [run for run in trainings if not run.is_scored_set]
    notes = [
        _unfinished(runs),
        *_misleading(trainings),
        _mixed_protocols(variants),
        _not_fid_50k([score for score in _scores(variants) if "fid" in score.values]),
        _different_tokenizers([run for run in finished if run.order]),
        one_tokenizer([variant for variant in variants if variant.finished]),
        _scored_earlier(trainings),
        _different_code(own),
        _different_machines([run for run in own if run.finished]),
    ]
    return [note for note in notes if note]


def _unfinished(runs: Sequence[Run]) -> str:
    names = join_names([f"{run.path.as_posix()} ({run.state})" for run in runs if not run.finished])
    return f"Not finished: {names}. Their numbers enter no mean and no ranking." if names else ""


def _misleading(runs: Sequence[Run]) -> list[str]:
    """What the records and protocols warn of: networks that learned nothing, val images that are train images, too."""
    named: dict[str, dict[str, None]] = {}
    for run in runs:
        parts: list[Config | None] = [parent.held_out for parent in run.record.parents.values()]
        parts += [run.record.outcome.values.get("held_out"), run.record.data]
        for score in run.scores:
            parts += [score.protocol, score.protocol.get("judge"), score.protocol.get("perceptual_network")]
        for part in parts:
            known = part if isinstance(part, dict) else {}
            if known.get("warning"):
                named.setdefault(str(known["warning"]).rstrip("."), {})[run.path.as_posix()] = None
            if known.get("leakage"):  # without the names of files; all runs on these images share it
                named[f"{str(known['leakage']).partition(' (')[0]}, so that scores on val are too good"] = {}
    return [f"{text} ({join_names(list(paths))})." if paths else f"{text}." for text, paths in named.items()]


def _mixed_protocols(variants: Sequence[Variant]) -> str:
    mixed = [kind.name for kind, chosen in kinds_of(variants) if not comparable(chosen)]
    if not mixed:
        return ""
    return f"The {join_names(mixed)} scores were measured under different protocols: they cannot be ranked."


def _not_fid_50k(scores: Sequence[Score]) -> str:
    counts = [score.samples for score in scores if score.samples]
    judges = sorted({str(score.protocol.get("extractor")) for score in scores} - {"inception", "None"})
    reasons = [f"from {whole(min(counts))} samples"] if counts and min(counts) < _FID_50K else []
    reasons += [f"with the {join_names(judges)} as extractor"] if judges else []
    measured = " and ".join(reasons)
    return f"FID here is measured {measured}: never compare it with a published FID-50k." if reasons else ""


def _different_tokenizers(generators: Sequence[Run]) -> str:
    if share_tokenizer(generators):
        return ""
    return (
        "The generators use different tokenizers: compare NLL and token losses only between generators that share one."
    )


def one_tokenizer(variants: Sequence[Variant]) -> str:
    """What intervals leave out, where kinds of tokenizers are compared and all seeds of a generator use one; or nothing."""
    generators = [variant for variant in variants if variant.first.order]
    used = {
        v.label: {run.record.parents.get("tokenizer", Parent()).weights_sha256 for run in v.runs} for v in generators
    }
    alone = [v.label for v in generators if len(v.runs) > 1 and len(used[v.label]) == 1]
    if not alone or len(set().union(*used.values())) < 2:
        return ""
    return (
        f"All seeds of {join_names(alone)} use one tokenizer: a difference to a generator on another tokenizer compares two "
        "files, and its interval leaves out that other trainings of these tokenizers would differ, too."
    )


def share_tokenizer(generators: Sequence[Run]) -> bool:
    """Whether all generators use the same tokenizer weights, so that their NLL may be ranked."""
    return len({run.record.parents.get("tokenizer", Parent()).weights_sha256 for run in generators if run.order}) < 2


def _scored_earlier(runs: Sequence[Run]) -> str:
    scored = [(run, run.score.images) for run in runs if run.score and run.score.images is not None]
    names = join_names([run.path.as_posix() for run, images in scored if images != run.total("images")])
    return f"Scored after fewer or more images than the run has now: {names}." if names else ""


def _different_code(runs: Sequence[Run]) -> str:
    codes = {repr((run.record.code.get("commit"), run.record.code.get("diff") or "")) for run in runs}
    return "The runs were made with different versions of the code." if len(codes) > 1 else ""


def _different_machines(runs: Sequence[Run]) -> str:
    machines = {repr([run.record.hardware.get(key) for key in ("host", "cpu", "cores", "gpus")]) for run in runs}
    return "The runs were made on different machines: compare FLOPs, not seconds." if len(machines) > 1 else ""


def describe_protocol(score: Score) -> list[tuple[str, str]]:
    """(setting, value) of a protocol, then the cost of sampling under it."""
    lines = [(key.replace(".", " · "), str(value)) for key, value in flatten(score.protocol).items()]
    flops, seconds = score.get("sampling_flops"), score.get("sampling_seconds")
    lines += [("sampling cost", f"{si(flops)}FLOPs")] if flops is not None else []
    lines += [("sampling time", f"{seconds:,.1f} s")] if seconds is not None else []
    return lines
