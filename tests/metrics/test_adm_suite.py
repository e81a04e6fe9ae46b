"""Scores against an independent evaluator in float64 numpy and scipy: on any number of ranks, in any batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.metrics import adm_suite
from tests.small import fork_server
from varlab.errors import VarlabError
from varlab.metrics.comparison import matched_draws
from varlab.metrics.distribution.frechet import FID, Moments, frechet_distance
from varlab.metrics.distribution.inception_score import FileInceptionScore
from varlab.metrics.distribution.kernel_distance import KID
from varlab.metrics.distribution.manifold_scores import ManifoldScores
from varlab.metrics.features import Rows
from varlab.metrics.generator_scores import GenerationScores
from varlab.rng import Rng
from varlab.score.neighbour_strip import find_neighbours

pytestmark = pytest.mark.numeric

N, M, F, S, K = 240, 170, 12, 7, 9
SCORES = {
    "fid", "sfid", "inception_score", "inception_score_std", "precision", "recall", "density", "coverage", "kid", "kid_std"
}  # fmt: skip


def made(name: str, n: int, dim: int, shift: float = 0.0) -> torch.Tensor:
    """Features as a network has them: float32, positive, of one mean for many."""
    return (Rng(0).stream(name, torch.arange(n)).normal(dim) + shift).abs()


def sheet(reference: dict[str, Moments] | None = None, size: int = 50) -> GenerationScores:
    return GenerationScores(
        num_features=F,
        num_classes=None,
        splits=10,
        neighbours=3,
        manifold=None,
        seed=0,
        density_neighbours=5,
        inception={"order": "file", "split_size": 70},
        kid={"subsets": 4, "size": size, "seed": 2020},
        num_spatial=S,
        reference=reference,
    )


def feed(scores: GenerationScores, rows: torch.Tensor, batch: int) -> GenerationScores:
    """Every set has its own numbers, so that ranks have uneven shares of both."""
    real, fake, logits = made("real", M, F), made("fake", N, F, 0.2), made("logits", N, K) * 3
    spatial_real, spatial_fake = made("rs", M, S), made("fs", N, S, 0.1)
    for part in rows[rows < M].split(batch):
        scores.update_real(real[part], row_B=part, spatial_BS=spatial_real[part])
    for part in rows.split(batch):
        scores.update_fake(fake[part], logits[part], None, row_B=part, spatial_BS=spatial_fake[part])
    return scores


def expected() -> dict[str, float]:
    real, fake = made("real", M, F).numpy(), made("fake", N, F, 0.2).numpy()
    spatial = [adm_suite.moments(x.numpy()) for x in (made("rs", M, S), made("fs", N, S, 0.1))]
    return adm_suite.manifold_scores(real, fake, 3, 5) | {
        "fid": adm_suite.frechet(adm_suite.moments(real), adm_suite.moments(fake)),
        "sfid": adm_suite.frechet(*spatial),
        "inception_score": adm_suite.inception_score((made("logits", N, K) * 3).numpy(), 70),
        "kid": adm_suite.kid(fake, real, subsets=4, size=50, seed=2020),
    }


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_every_score_is_the_suites_in_any_batches(batch: int) -> None:
    values = feed(sheet(), torch.arange(N), batch).compute()
    assert set(values) == SCORES
    for name, value in expected().items():
        assert values[name] == pytest.approx(value, rel=1e-8), name


def _rank(rank: int, world: int, results: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{results}/store{world}", rank=rank, world_size=world)
    rows = torch.arange(N)[rank :: world + (rank == 0)] if world == 2 else torch.arange(N)[rank::world]
    if world == 2 and rank == 1:
        rows = torch.tensor(sorted(set(range(N)) - set(range(0, N, 3))))
    scores = feed(sheet(), rows, batch=7)
    values = [scores.compute()]
    for metric in scores.children():
        metric.reset()
    feed(scores, rows.flip(0), batch=5)
    torch.save([*values, scores.compute()], f"{results}/{world}-{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_with_uneven_shares_score_as_one(tmp_path: Path) -> None:
    """Two and three ranks; also after a reset, with the rows the other way round."""
    fork_server()
    whole = feed(sheet(), torch.arange(N), 64).compute()
    for world in (2, 3):
        torch.multiprocessing.start_processes(_rank, (world, str(tmp_path)), nprocs=world, start_method="forkserver")
        for rank in range(world):
            for values in torch.load(tmp_path / f"{world}-{rank}.pt", weights_only=True):
                assert values == pytest.approx(whole, rel=1e-9, abs=1e-12)


def test_stored_moments_are_the_reference() -> None:
    stored = {
        name: Moments(*map(torch.from_numpy, adm_suite.moments(made(of, 900, dim).numpy())))
        for name, of, dim in (("mu", "all", F), ("mu_s", "alls", S))
    }
    values = feed(sheet(stored), torch.arange(N), 64).compute()
    of = {"fid": (made("all", 900, F), made("fake", N, F, 0.2)), "sfid": (made("alls", 900, S), made("fs", N, S, 0.1))}
    for name, (real, fake) in of.items():
        a, b = (adm_suite.moments(x.numpy()) for x in (real, fake))
        assert values[name] == pytest.approx(adm_suite.frechet(a, b), rel=1e-8)
    assert values["precision"] == pytest.approx(expected()["precision"])
    with pytest.raises(VarlabError, match="moments of 12 features, the extractor has 7"):
        FID(num_features=7, reference=stored["mu"])


@pytest.mark.parametrize("n", [5, 40])
def test_a_reference_against_itself_is_zero_at_any_rank(n: int) -> None:
    """Also of fewer images than features, where roots of a product of covariances would lose half of the digits."""
    x = made("few", n, 16).double() * 10
    same = Moments(x.mean(0), x.T.cov())
    assert abs(float(frechet_distance(same, same))) < 1e-9


def test_a_collapsed_sampler_has_no_recall_and_no_coverage() -> None:
    real = made("real", 300, 6)
    metric = ManifoldScores(neighbours=3, manifold=None, seed=0, density_neighbours=5)
    metric.update(real, real=True)
    metric.update(real[:1] + 1e-3 * made("noise", 300, 6), real=False)
    scores = {name: float(value) for name, value in metric.compute().items()}
    assert scores["recall"] < 0.02 and scores["coverage"] < 0.05 and scores["precision"] > 0.95


def inception_score(logits: torch.Tensor, order: str = "file", split_size: int | None = 100) -> FileInceptionScore:
    metric = FileInceptionScore(order=order, splits=10, split_size=split_size, seed=0)
    metric.update(logits, torch.arange(len(logits)))
    metric.value = float(metric.compute()[0])  # type: ignore[assignment]
    return metric


def test_a_file_sorted_by_class_is_shuffled_and_says_so() -> None:
    label = torch.arange(1000) // 50
    sure = torch.eye(20)[label] * 8 + made("noise", 1000, 20)
    mixed = sure[Rng(1).stream("x").permutation(1000)[0]]
    by_class, shuffled = inception_score(sure), inception_score(mixed)
    assert by_class.was_sorted and not shuffled.was_sorted
    assert by_class.value == pytest.approx(shuffled.value, rel=0.05)
    assert adm_suite.inception_score(sure.numpy(), 100) < 0.3 * shuffled.value
    assert shuffled.value == pytest.approx(adm_suite.inception_score(mixed.numpy(), 100), rel=1e-9)


def test_the_inception_score_and_kid_of_torch_fidelity() -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    logits, real, fake = made("logits", N, K) * 3, made("real", M, F), made("fake", N, F, 0.2)
    theirs = isc_features_to_metric(logits)
    assert inception_score(logits, "fidelity", None).value == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    metric = KID(subsets=5, size=60, seed=2020)
    metric.update(real, True, torch.arange(M))
    metric.update(fake, False, torch.arange(N))
    mean, deviation = map(float, metric.compute())
    theirs = kid_features_to_metric(fake.double(), real.double(), kid_subsets=5, kid_subset_size=60, verbose=False)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-9)


def test_two_halves_have_no_kernel_distance_within_its_error() -> None:
    metric = KID(subsets=20, size=200, seed=0)
    metric.update(made("a", 800, 8), True)
    metric.update(made("b", 800, 8), False)
    mean, deviation = map(float, metric.compute())
    assert abs(mean) < 3 * deviation / 20**0.5


def test_distances_take_the_memory_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the reference's size: the largest tensor that is made beside the features is a block."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made_here = [o for o in (out if isinstance(out, tuple | list) else [out]) if isinstance(o, torch.Tensor)]
            self.numel = max([self.numel, *(t.numel() for t in made_here if t._base is None)])
            return out

    for place in ("features.BLOCK", "comparison.BLOCK", "distribution.frechet.BLOCK"):
        monkeypatch.setattr(f"varlab.metrics.{place}", 128)
    sizes = []
    for times in (1, 4):
        real, fake, val = made("real", 500 * times, 32), made("fake", 100, 32), made("val", 90, 32)
        manifolds = ManifoldScores(neighbours=3, manifold=None, seed=0, density_neighbours=5)
        kid = KID(subsets=2, size=50, seed=0)
        for part in torch.arange(len(real)).split(40):
            manifolds.update(real[part], True)
            kid.update(real[part], True, part)
        manifolds.update(fake, False)
        kid.update(fake, False, torch.arange(100))
        with Largest() as largest:
            manifolds.compute(), kid.compute()
            real_rows, fake_rows = manifolds.rows()
            number = {"fake_row_N": torch.arange(100), "train_row_N": torch.arange(len(real))}
            find_neighbours(fake_rows, real_rows, val, **number)
            matched_draws(fake, None, real_rows, val, None, draws=2, rng=Rng(0))
        sizes.append(largest.numel)
    assert sizes == [128 * 128] * 2


def test_rows_of_several_tensors_are_those_of_one() -> None:
    x = made("x", 50, 3)
    order = Rng(0).stream("order").permutation(50)[0]
    rows = Rows(list(x.split(7)), order)
    assert len(rows) == 50 and torch.equal(rows[:], x[order]) and torch.equal(rows[3:11], x[order][3:11])
    some = torch.tensor([4, 4, 49, 0])
    assert torch.equal(rows[some], x[order][some]) and torch.equal(rows.ordered(some)[:], x[order][some])
    assert torch.equal(Rows(x)[some], x[some]) and len(Rows(x)[60:]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("n", [10_000, 50_000])
def test_many_samples_are_the_suites(n: int) -> None:
    """FID, IS and KID of many; precision and recall of 10,000, as scipy's distances of 50,000 take 20 GB."""
    real, fake, logits = made("real", 10_000, 32), made("fake", n, 32, 0.1), made("logits", n, 20) * 3
    metric = FID(num_features=32)
    for part in real.split(500):
        metric.update(part, real=True)
    for part in fake.split(500):
        metric.update(part, real=False)
    fid = float(metric.compute())
    theirs = adm_suite.frechet(adm_suite.moments(real.numpy()), adm_suite.moments(fake.numpy()))
    assert fid == pytest.approx(theirs, rel=1e-8)
    assert inception_score(logits, split_size=5000).value == pytest.approx(
        adm_suite.inception_score(logits.numpy(), 5000), rel=1e-8
    )
    if n == 10_000:
        manifolds = ManifoldScores(neighbours=3, manifold=None, seed=0, density_neighbours=5)
        manifolds.update(real, real=True)
        manifolds.update(fake, real=False)
        ours = {name: float(value) for name, value in manifolds.compute().items()}
        assert ours == pytest.approx(adm_suite.manifold_scores(real.numpy(), fake.numpy(), 3, 5), rel=1e-8)
