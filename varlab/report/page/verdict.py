"""What the runs say, in sentences, and what to keep in mind when reading them. Facts of the files only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from varlab.report.compare import Variant
from varlab.report.read import Run, Score
from varlab.report.tables import mean_and_spread
from varlab.report.units import si, significant, whole
from varlab.run.record import flatten

__all__ = ["cautions", "comparable", "describe_protocol", "headline", "matching", "share_tokenizer", "verdict"]

_EQUAL = 0.02
"""Budgets round up to whole batches: training FLOPs within this share of each other count as equal."""

_FID_50K = 50_000
_BOUND_TO_PROTOCOL = ("extractor", "extractor_hash", "reference", "n", "resize", "rounding")


def headline(variants: Sequence[Variant]) -> str:
    """What stands side by side here, and whether at equal cost."""
    generators = [variant for variant in variants if variant.kind == "generator"]
    orders = list(dict.fromkeys(variant.face.order or variant.label for variant in generators))
    if len(orders) > 1:
        return f"{_join(orders)}: {len(orders)} orders, {matching(generators)}."
    if len(generators) > 1:
        return f"{len(generators)} generators in {orders[0]} order, {matching(generators)}."
    if generators:
        return f"One generator: {generators[0].label}."
    if len(variants) > 1:
        return f"{_join([variant.label for variant in variants])}, {matching(variants)}."
    return f"One training: {variants[0].label}." if variants else "No training among these runs."


def matching(variants: Sequence[Variant]) -> str:
    """Whether finished runs spent the same: training FLOPs within 2%, images, both or neither."""
    runs = [run for variant in variants for run in variant.runs if run.finished]
    if len(runs) < 2:
        return "fewer than two finished"
    flops, images = _spread([run.total("flops") for run in runs]), _spread([run.total("images") for run in runs])
    if flops is not None and flops <= 1 + _EQUAL:
        return "at equal training FLOPs and images" if images == 1 else "at equal training FLOPs"
    if images == 1:
        return f"at equal images (training FLOPs differ up to {flops:.2f}×)" if flops else "at equal images"
    return f"at unequal cost (training FLOPs differ up to {flops:.2f}×)" if flops else "at unequal cost"


def _spread(totals: Sequence[float | None]) -> float | None:
    known = [x for x in totals if x]
    return max(known) / min(known) if known and len(known) == len(totals) else None


def comparable(scores: Sequence[Score]) -> bool:
    """Whether scores may stand in one ranking: same extractor, reference, sample count, resize and rounding."""
    return len({_protocol_key(score) for score in scores}) <= 1


def _protocol_key(score: Score) -> str:
    flat = flatten({key: score.protocol.get(key) for key in _BOUND_TO_PROTOCOL})
    return repr(sorted((key, repr(value)) for key, value in flat.items()))


def verdict(variants: Sequence[Variant], scores: dict[Path, Score | None]) -> str:
    """Which generator has the lowest FID, by how much, and whether seeds bear it out; empty where unknown."""
    ranked = []
    for variant in variants:
        found = [scores.get(run.path) for run in variant.runs if run.finished and variant.kind == "generator"]
        mean, spread = mean_and_spread([score.get("fid") if score else None for score in found])
        if mean is not None:
            ranked.append((mean, spread, variant.label))
    if len(ranked) < 2 or not comparable(_shown(variants, scores, "generator")):
        return ""
    ranked.sort(key=lambda entry: entry[0])
    (best, best_spread, label), (second, second_spread, runner_up) = ranked[:2]
    sentence = f"{label} has the lowest FID: {significant(best)} against {significant(second)} for {runner_up}"
    if best_spread is None or second_spread is None:
        return f"{sentence}. Without a second seed of each, that difference has no error bar."
    within = second - best <= (best_spread**2 + second_spread**2) ** 0.5
    return f"{sentence}, a difference {'within' if within else 'larger than'} the spread over seeds."


def cautions(runs: Sequence[Run], variants: Sequence[Variant], scores: dict[Path, Score | None]) -> list[str]:
    """What limits the comparison, one sentence each."""
    trainings = [run for variant in variants for run in variant.runs]
    notes = [
        _unfinished(runs),
        _mixed_protocols(variants, scores),
        _not_50k(_shown(variants, scores, "generator")),
        _several_tokenizers([run for run in trainings if run.kind == "generator" and run.finished]),
        _other_images(trainings, scores),
        _several_codes(trainings),
        _several_machines([run for run in trainings if run.finished]),
    ]
    return [note for note in notes if note]


def _shown(variants: Sequence[Variant], scores: dict[Path, Score | None], kind: str) -> list[Score]:
    found = [scores.get(run.path) for variant in variants if variant.kind == kind for run in variant.runs]
    return [score for score in found if score]


def _unfinished(runs: Sequence[Run]) -> str:
    left = [run for run in runs if not run.finished]
    names = _join([f"{run.path.as_posix()} ({run.state})" for run in left])
    return f"Not finished: {names}. Their numbers enter no mean and no ranking." if left else ""


def _mixed_protocols(variants: Sequence[Variant], scores: dict[Path, Score | None]) -> str:
    mixed = [kind for kind in ("generator", "tokenizer") if not comparable(_shown(variants, scores, kind))]
    if not mixed:
        return ""
    return f"The {_join(mixed)} scores were measured under different protocols: they can't be ranked."


def _not_50k(shown: Sequence[Score]) -> str:
    counts = [n for score in shown if isinstance(n := score.protocol.get("n"), int)]
    judges = sorted({str(score.protocol.get("extractor")) for score in shown} - {"inception", "None"})
    reasons = [f"from {whole(min(counts))} samples"] if counts and min(counts) < _FID_50K else []
    reasons += [f"with the {_join(judges)} as extractor"] if judges else []
    measured = " and ".join(reasons)
    return f"FID here is measured {measured}: never compare it with a published FID-50k." if reasons else ""


def _several_tokenizers(generators: Sequence[Run]) -> str:
    if share_tokenizer(generators):
        return ""
    return "The generators stand on different tokenizers: compare NLL and token losses only where it is the same one."


def share_tokenizer(generators: Sequence[Run]) -> bool:
    """Whether all generators stand on the same tokenizer's weights, so that their NLL may be ranked."""
    return len({str(flatten(run.part("parents")).get("tokenizer.weights_sha256")) for run in generators}) < 2


def _other_images(runs: Sequence[Run], scores: dict[Path, Score | None]) -> str:
    scored = [(run, score.images) for run in runs if (score := scores.get(run.path)) and score.images is not None]
    names = _join([run.path.as_posix() for run, images in scored if images != run.total("images")])
    return f"Scored at another point of training than where the run stands now: {names}." if names else ""


def _several_codes(runs: Sequence[Run]) -> str:
    codes = {(run.part("code").get("commit"), run.part("code").get("diff") or "") for run in runs}
    return "The runs were made with different versions of the code." if len(codes) > 1 else ""


def _several_machines(runs: Sequence[Run]) -> str:
    machines = {repr([run.part("hardware").get(key) for key in ("host", "cpu", "cores", "gpus")]) for run in runs}
    return "The runs were made on different machines: compare FLOPs, not seconds." if len(machines) > 1 else ""


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def describe_protocol(score: Score) -> list[tuple[str, str]]:
    """A protocol spelled out: (what, value) lines, then what sampling under it cost."""
    lines = [(key.replace(".", " · "), str(value)) for key, value in flatten(score.protocol).items()]
    flops, seconds = score.get("sampling_flops"), score.get("sampling_seconds")
    lines += [("sampling cost", f"{si(flops)}FLOPs")] if flops is not None else []
    lines += [("sampling time", f"{seconds:,.1f} s")] if seconds is not None else []
    return lines
