"""Scores of generators against closed formulas and brute force, and their independence of batches, ranks and order."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small import fork_server
from varlab.errors import VarlabError
from varlab.metrics.comparison import (
    fid_error,
    frechet_distances,
    matched_draws,
    nearest_distance,
    nearest_scores,
    neighbours,
    ratio_over_spaces,
)
from varlab.metrics.distribution.frechet import FID, moments
from varlab.metrics.distribution.inception_score import SeededInceptionScore
from varlab.metrics.distribution.manifold_scores import ManifoldScores
from varlab.metrics.distribution.repeated_images import RepeatedImages
from varlab.metrics.features import nearest, nearest_others, random_rows, sorted_rows
from varlab.metrics.generator_scores import GenerationScores
from varlab.rng import Rng

pytestmark = pytest.mark.numeric


def points(name: str, n: int, dim: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return Rng(0).stream(name, torch.arange(n)).normal(dim) * scale + shift


def frechet(a_NF: torch.Tensor, b_NF: torch.Tensor) -> float:
    a, b = a_NF.double().numpy(), b_NF.double().numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root))


def test_fid_is_the_closed_formula() -> None:
    a, b = points("a", 200, 8), points("b", 150, 8, shift=0.5, scale=2.0)
    assert frechet_distances([b], a)[0] == pytest.approx(frechet(a, b), rel=1e-8)
    assert abs(frechet_distances([a], a)[0]) < 1e-8


def test_fid_of_fewer_images_than_features() -> None:
    """Rank-deficient covariances: tr (S_a S_b)^(1/2) is the nuclear norm of the centred sets' product."""
    a, b = points("a", 12, 40).double(), points("b", 9, 40, shift=0.3).double()
    x, y = (a - a.mean(0)) / math.sqrt(11), (b - b.mean(0)) / math.sqrt(8)
    cross = torch.linalg.matrix_norm(x @ y.T, ord="nuc")
    expected = (a.mean(0) - b.mean(0)).square().sum() + x.square().sum() + y.square().sum() - 2 * cross
    # a singular value of zero comes out as the root of a rounding, 1.5e-8, and there are 40
    assert frechet_distances([b], a)[0] == pytest.approx(float(expected), rel=40 * 2**-26)


def test_several_sets_against_one_reference_do_not_mix() -> None:
    a, b, c = points("a", 50, 4), points("b", 60, 4, shift=1.0), points("c", 70, 4, scale=3.0)
    assert frechet_distances([b, c], a) == frechet_distances([b], a) + frechet_distances([c], a)
    with pytest.raises(VarlabError, match="two images or more of each set, not 1"):
        frechet_distances([b[:1]], a)


def brute_force_share(x: torch.Tensor, manifold: torch.Tensor, k: int) -> float:
    inside = 0
    radii = [sorted(float((p - q).norm()) for q in manifold)[k] for p in manifold]
    for p in x:
        inside += any(float((p - q).norm()) <= r for q, r in zip(manifold, radii, strict=True))
    return inside / len(x)


@settings(max_examples=15, deadline=None)
@given(st.integers(5, 14), st.integers(5, 14), st.integers(1, 4), st.integers(0, 1000))
def test_precision_and_recall_are_brute_force(n_real: int, n_fake: int, k: int, seed: int) -> None:
    real = Rng(seed).stream("a", torch.arange(n_real)).normal(2).double()
    fake = Rng(seed).stream("b", torch.arange(n_fake)).normal(2).double() + 0.5
    metric = ManifoldScores(neighbours=k, manifold=None, seed=0)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    scores = metric.compute()
    assert float(scores["precision"]) == pytest.approx(brute_force_share(fake, real, k))
    assert float(scores["recall"]) == pytest.approx(brute_force_share(real, fake, k))


def precision_recall(real: torch.Tensor, fake: torch.Tensor, manifold: int | None = None) -> tuple[float, float]:
    metric = ManifoldScores(neighbours=3, manifold=manifold, seed=0)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    scores = metric.compute()
    return float(scores["precision"]), float(scores["recall"])


def test_precision_and_recall_tell_the_known_cases() -> None:
    real = points("a", 300, 6)
    assert precision_recall(real, real) == (1.0, 1.0)
    collapsed = real[:1] + points("b", 300, 6, scale=1e-3)
    precision, recall = precision_recall(real, collapsed)
    assert precision > 0.95 and recall < 0.02
    far = points("b", 300, 6, shift=50.0)
    assert precision_recall(real, far) == (0.0, 0.0)
    twice = precision_recall(points("a", 400, 6), points("b", 400, 6), manifold=100)
    assert twice == precision_recall(points("a", 400, 6).flip(0), points("b", 400, 6).flip(0), manifold=100)
    assert 0.4 < min(twice) <= max(twice) < 1


def test_too_few_images_for_a_manifold() -> None:
    with pytest.raises(VarlabError, match="more than 3 images of each set, not 3"):
        precision_recall(points("a", 10, 2), points("b", 3, 2))


def inception_score(logits: torch.Tensor, splits: int = 2, seed: int = 0) -> tuple[float, float]:
    metric = SeededInceptionScore(splits=splits, seed=seed)
    for part in logits.split(7):
        metric.update(part)
    mean, deviation = metric.compute()
    return float(mean), float(deviation)


def test_the_inception_score_is_its_formula() -> None:
    p = points("a", 40, 5).double().softmax(1)
    expected = (p * (p / p.mean(0)).log()).sum(1).mean().exp()
    mean, deviation = inception_score(p.log(), splits=1)
    assert mean == pytest.approx(float(expected), rel=1e-9) and math.isnan(deviation)


def test_the_inception_score_knows_the_extremes() -> None:
    """Confident and even: as many as there are classes. Also where probabilities underflow in float32."""
    sure = torch.eye(4).repeat(50, 1) * 200
    assert inception_score(sure, splits=1)[0] == pytest.approx(4.0)
    assert inception_score(sure[:1].repeat(40, 1), splits=1)[0] == pytest.approx(1.0)


def test_the_inception_score_is_seeded_and_order_free() -> None:
    logits = points("a", 50, 5, scale=3.0).sort(dim=0).values
    torch.manual_seed(1)
    state, first = torch.get_rng_state(), inception_score(logits)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was drawn from"
    torch.manual_seed(2)
    shuffled = logits[Rng(5).stream("a").permutation(50)[0]]
    assert inception_score(logits) == first == inception_score(shuffled)
    assert inception_score(logits, seed=1) != first


def scores(seed: int = 0) -> GenerationScores:
    return GenerationScores(num_features=6, num_classes=4, splits=2, neighbours=3, manifold=50, seed=seed)


def feed(score: GenerationScores, rows: slice, batch: int) -> GenerationScores:
    real, fake, logits = points("a", 90, 6), points("b", 80, 6, shift=0.2), points("c", 80, 4)
    label = Rng(0).stream("d", torch.arange(80)).integers(4, 1)[:, 0]
    for part in real[rows].split(batch):
        score.update_real(part)
    for f, g, c in zip(fake[rows].split(batch), logits[rows].split(batch), label[rows].split(batch), strict=True):
        score.update_fake(f, g, c)
    return score


def test_scores_do_not_depend_on_ranks_or_batches() -> None:
    """Two halves with their states merged, as an all-gather merges them, equal one pass in other batches."""
    whole = feed(scores(), slice(None), batch=80).compute()
    odd, even = feed(scores(), slice(1, None, 2), batch=7), feed(scores(), slice(0, None, 2), batch=11)
    for one, other in zip(odd.children(), even.children(), strict=True):
        one.merge_state(other)
    assert odd.compute() == pytest.approx(whole, rel=1e-9)
    assert set(whole) == {"fid", "inception_score", "inception_score_std", "precision", "recall", "accuracy"}


def test_the_score_sheet_equals_its_parts() -> None:
    values = feed(scores(), slice(None), batch=16).compute()
    real, fake, logits = points("a", 90, 6), points("b", 80, 6, shift=0.2), points("c", 80, 4)
    label = Rng(0).stream("d", torch.arange(80)).integers(4, 1)[:, 0]
    assert values["fid"] == pytest.approx(frechet(real, fake), rel=1e-6)
    assert values["accuracy"] == pytest.approx(float((logits.argmax(1) == label).float().mean()))
    assert (values["precision"], values["recall"]) == precision_recall(real, fake, manifold=50)
    real_NF, fake_NF, label_N = feed(scores(), slice(None), batch=16).features()
    assert torch.equal(real_NF, real) and torch.equal(fake_NF, fake) and torch.equal(label_N, label.float())


def test_no_accuracy_without_the_datas_classes_and_no_deviation_of_one_split() -> None:
    sheet = GenerationScores(num_features=6, num_classes=None, splits=1, neighbours=3, manifold=None, seed=0)
    assert set(feed(sheet, slice(None), batch=40).compute()) == {"fid", "inception_score", "precision", "recall"}


def test_a_broken_sample_is_not_a_score() -> None:
    sheet = feed(scores(), slice(None), batch=40)
    sheet.inception_score.update(torch.full((1, 4), math.nan))
    with pytest.raises(VarlabError, match="not a finite number"):
        sheet.compute()


def test_sorted_rows_depend_on_content_alone() -> None:
    rows = points("a", 20, 3).round()[Rng(0).stream("x").integers(20, 30)[0]]  # with duplicates, within columns too
    shuffled = rows[Rng(1).stream("x").permutation(30)[0]]
    assert torch.equal(sorted_rows(rows), sorted_rows(shuffled)) and sorted_rows(rows).shape == rows.shape
    assert sorted_rows(rows).tolist() == sorted(rows.tolist())
    chosen = random_rows(rows, 12, Rng(3))
    assert torch.equal(chosen, random_rows(shuffled, 12, Rng(3))) and not torch.equal(
        chosen, random_rows(rows, 12, Rng(4))
    )
    assert random_rows(rows, None, Rng(3)) is rows and random_rows(rows, 30, Rng(3)) is rows


def test_nearest_points_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varlab.metrics.features.BLOCK", 4)
    a, b = points("a", 10, 3), points("b", 7, 3)
    expected = (a[:, None].double() - b[None].double()).norm(dim=2)
    d_Nk, row_Nk = nearest(a, b, 5)
    torch.testing.assert_close(d_Nk.sqrt(), expected.sort(1).values[:, :5], rtol=1e-9, atol=1e-9)
    assert torch.equal(row_Nk, expected.argsort(1)[:, :5]) and nearest(a, b, 9)[0].shape == (10, 7)
    own_NN = (a[:, None].double() - a[None].double()).norm(dim=2).fill_diagonal_(math.inf).sort(1).values
    torch.testing.assert_close(nearest_others(a, 9).sqrt(), own_NN[:, :9], rtol=1e-9, atol=1e-9)
    assert nearest_others(a, 11).isinf().sum() == 20, "a point is none of its own neighbours"


def test_matched_draws(caplog: pytest.LogCaptureFixture) -> None:
    train, val, fake = points("a", 120, 4), points("b", 40, 4), points("c", 100, 4, shift=0.3)
    fake_label, val_label = torch.arange(100) % 2, torch.arange(40) % 2

    def draw(some: slice, seed: int = 0, draws: int = 3) -> dict[str, float]:
        rows = torch.arange(100)[some]
        return matched_draws(fake[rows], fake_label[rows], train, val, val_label, draws=draws, rng=Rng(seed))

    values, backwards = draw(slice(None)), torch.arange(99, -1, -1)
    assert values == matched_draws(
        fake[backwards], fake_label[backwards], train, val, val_label, draws=3, rng=Rng(0)
    ), "the order of samples matters"
    assert values["fid_draws"] != draw(slice(None), seed=1)["fid_draws"]
    assert values["fid_val"] == pytest.approx(frechet(train, val), rel=1e-8) and values["fid_draws_n"] == 40
    assert values["fid_ratio"] == pytest.approx(values["fid_draws"] / values["fid_val"]) and values["fid_draws_std"] > 0
    assert values["fid_draws"] > frechet(train, fake), "an FID of fewer samples is larger"
    assert not caplog.records
    few = draw(slice(30), draws=2)
    assert few["fid_draws"] == pytest.approx(frechet(train, fake[:30]), rel=1e-8) and few["fid_draws_std"] < 1e-9
    assert few["fid_draws_n"] == 30 and "all 30 samples, fewer than the 40" in caplog.text


def test_draws_have_the_classes_of_the_held_out_images() -> None:
    """Two far-away classes: draws of the same shares score as low as held-out images do, whatever the samples' shares."""
    label_train, label_val = torch.arange(400) % 2, torch.arange(60) % 2
    train, val = points("a", 400, 3), points("b", 60, 3)
    train, val = train + 50 * label_train[:, None], val + 50 * label_val[:, None]
    label_fake = (torch.arange(300) % 3 == 0).long()
    fake = points("c", 300, 3) + 50 * label_fake[:, None]
    values = matched_draws(fake, label_fake, train, val, label_val, draws=4, rng=Rng(0))
    assert values["fid_ratio"] < 3 and frechet(train, fake) > 100 * values["fid_draws"]


def test_nearest_neighbours_tell_copies() -> None:
    def scored(fake: torch.Tensor, val: torch.Tensor) -> dict[str, float]:
        return nearest_scores(*(nearest_distance(x, train) for x in (fake, val)), train)

    train, val = points("a", 60, 3), points("b", 30, 3)
    expected = [min(float((p - q).double().norm()) for q in train) for p in val]
    assert nearest_distance(val, train).tolist() == pytest.approx(expected, abs=1e-6)
    assert scored(val, val)["nn_ratio"] == pytest.approx(1.0)
    copies = scored(train[:20] + 1e-4, val)
    assert copies["nn_ratio"] < 0.01 and copies["nn_val_median"] == pytest.approx(float(np.median(expected)), rel=0.2)
    assert "nn_ratio" not in scored(val, train)


def test_shown_samples_go_from_the_nearest_to_the_farthest() -> None:
    """Each with its own nearest training images, and the distance of the val image of the same rank."""
    train, val, fake = points("a", 60, 3), points("b", 31, 3), points("c", 41, 3, scale=2.0)
    fake[7] = train[5]
    fake_N, val_M = nearest_distance(fake, train), nearest_distance(val, train)
    found = neighbours(fake, train, fake_N=fake_N, val_M=val_M, shown=5, count=2)
    assert found.row_S[0] == 7 and found.train_SK[0, 0] == 5 and found.distance_SK[0, 0] < 1e-6
    assert (
        fake_N[found.row_S].tolist() == sorted(fake_N.tolist())[::10] == pytest.approx(found.distance_SK[:, 0].tolist())
    )
    all_pairs = (fake[found.row_S][:, None].double() - train.double()).norm(dim=2)
    assert torch.equal(found.train_SK, all_pairs.argsort(1)[:, :2])
    assert found.val_S.tolist() == [sorted(val_M.tolist())[round(30 * k / 4)] for k in range(5)]
    assert len(neighbours(fake[:3], train, fake_N=fake_N[:3], val_M=val_M, shown=5, count=2).row_S) == 3


def test_repeated_images_are_counted_over_batches() -> None:
    img = Rng(0).stream("x", torch.arange(9)).integers(256, 3, 4, 4).to(torch.uint8)
    img[4], img[8], img[7] = img[0], img[0], img[1]
    metric = RepeatedImages()
    for part in img.split(2):
        metric.update(part)
    assert int(metric.compute()) == 3


@pytest.mark.parametrize("manifold", [None, 60])
def test_scores_of_classes_show_what_a_generator_leaves_out_and_draws_badly(manifold: int | None) -> None:
    """Class 2 is never drawn, half of class 1 looks like class 0; the mean over images is the plain score."""
    sheet = GenerationScores(num_features=3, num_classes=4, splits=1, neighbours=3, manifold=manifold, seed=0)
    label_real, label_fake = torch.arange(90) % 3, torch.arange(80) % 2
    looks = torch.where((label_fake == 1) & (torch.arange(80) % 4 == 1), 0, label_fake)
    sheet.update_real(points("a", 90, 3) + 40 * label_real[:, None], label_B=label_real)
    sheet.update_fake(points("b", 80, 3) + 40 * looks[:, None], torch.eye(4)[looks], label_fake)
    scores, of = sheet.compute(), sheet.by_class()
    assert of["accuracy"] == [1.0, 0.5, None, None] and scores["accuracy"] == pytest.approx(0.75)
    assert of["recall"][2] == 0 and min(of["recall"][:2]) > 0.4
    if manifold is None:
        assert scores["recall"] == pytest.approx(sum(of["recall"]) / 3)


def _rank(rank: int, results: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{results}/store", rank=rank, world_size=2)
    # rank 1 has fewer batches than rank 0: what hangs a gather that goes batch by batch
    sheet = feed(scores(), slice(rank * 50, 50 + rank * 40), batch=7)
    gathered = sheet.features()
    torch.save({"scores": sheet.compute(), "sizes": [len(g) for g in gathered]}, f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_score_as_one(tmp_path: Path) -> None:
    fork_server()
    torch.multiprocessing.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="forkserver")
    whole = feed(scores(), slice(None), batch=80).compute()
    for rank in range(2):
        values = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert values["scores"] == pytest.approx(whole, rel=1e-9) and values["sizes"] == [90, 80, 80]


def test_fid_of_batches_is_fid_of_the_whole() -> None:
    a, b = points("a", 60, 5), points("b", 60, 5, shift=1.0)
    for sizes in itertools.product((7, 60), repeat=2):
        metric = FID(num_features=5)
        for part in a.split(sizes[0]):
            metric.update(part, real=True)
        for part in b.split(sizes[1]):
            metric.update(part, real=False)
        assert float(metric.compute()) == pytest.approx(frechet(a, b), rel=1e-8)


def test_the_error_of_fid_is_its_spread_over_draws_of_samples() -> None:
    """The jackknife of one draw against the standard deviation over 60 draws of the same size."""
    reference = moments(points("a", 2000, 4))
    draws = [points(f"b{i}", 200, 4, shift=0.4) for i in range(60)]
    fids = torch.tensor([frechet_distances([x], points("a", 2000, 4))[0] for x in draws])
    errors = torch.tensor([fid_error(x, reference, rng=Rng(0)) for x in draws[:20]])
    assert float(errors.mean()) == pytest.approx(float(fids.std()), rel=0.3)
    assert fid_error(draws[0], reference, rng=Rng(0)) == fid_error(draws[0].flip(0), reference, rng=Rng(0))


def test_held_out_images_have_a_ratio_of_one_in_every_space() -> None:
    """FDr of val against val; and one space cannot hide another."""
    train, val, label = points("a", 150, 4), points("b", 40, 4), torch.zeros(40).long()
    values: dict[str, float] = {}
    for name, scale in (("", 1.0), ("wide/", 30.0)):
        drawn = matched_draws(val * scale, label, train * scale, val * scale, label, draws=2, rng=Rng(0))
        values |= {f"{name}{key}": value for key, value in drawn.items()}
    assert ratio_over_spaces(values) == {"fdr": pytest.approx(1.0), "fdr_spaces": 2.0}
    assert ratio_over_spaces({"fid_ratio": 1.0, "other/fid_ratio": 13.0})["fdr"] == 7.0
    assert ratio_over_spaces({"fid": 3.0}) == {}
