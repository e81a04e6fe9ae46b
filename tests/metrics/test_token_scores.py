"""pFID and the linear probe: their definitions, and what they do not depend on."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from tests.laws.conftest import small_tokenizer
from tests.metrics.test_tokenizer_scores import Pixels
from varlab.errors import VarlabError
from varlab.metrics.comparison import frechet_distances
from varlab.rng import Rng
from varlab.sample.images import decode_maps
from varlab.score.token_scores import LinearProbe, PerturbedFID, nearest_codes, perturbed
from varlab.types import Batch, to_float, to_uint8

N = 12
IDS = torch.arange(N)


def tokenizer() -> torch.nn.Module:
    return copy.deepcopy(small_tokenizer("multi")).float().eval()


def batch(rows: slice = slice(None)) -> Batch:
    img_u8 = Rng(0).stream("x", IDS).integers(256, 3, 16, 16).to(torch.uint8)
    return Batch(img_u8_B3HW=img_u8[rows], label_B=IDS[rows] % 3, position_B=IDS[rows], valid_B=IDS[rows] >= 0)


def test_a_perturbed_token_is_one_of_the_nearest_codes() -> None:
    net = tokenizer()
    near_VN = nearest_codes(net, 5)
    codes = net.embed(torch.arange(net.vocab_size)[None])[0].double()
    assert torch.equal(near_VN, (codes[:, None] - codes).norm(dim=2).argsort(1)[:, :5])
    assert torch.equal(near_VN[:, 0], torch.arange(net.vocab_size)), "the nearest is the code itself"
    ids = torch.arange(400)
    maps = [Rng(1).stream("m", ids, step=k).integers(net.vocab_size, length) for k, length in enumerate((1, 4, 16))]
    stream = Rng(0).stream("metrics/perturbed", ids)
    changed = perturbed(maps, near_VN, rate=0.6, stream=stream)
    for before, after in zip(maps, changed, strict=True):
        assert (near_VN[before] == after[..., None]).any(2).all()
    shares = [float((a != b).double().mean()) for a, b in zip(maps, changed, strict=True)]
    assert shares == pytest.approx([0.6 * 4 / 5] * 3, abs=0.07), "one in five draws is the code itself"
    assert all(map(torch.equal, maps, perturbed(maps, near_VN, rate=0.0, stream=stream)))
    alone = perturbed([m[7:8] for m in maps], near_VN, rate=0.6, stream=Rng(0).stream("metrics/perturbed", ids[7:8]))
    assert all(torch.equal(a, b[7:8]) for a, b in zip(alone, changed, strict=True))


def test_pfid_is_the_fid_of_images_from_perturbed_tokens() -> None:
    net = tokenizer()
    tally = PerturbedFID(net, extractor=Pixels(), rates=[0.0, 0.7], nearest=0.25, seed=3)
    for rows in (slice(0, 5), slice(5, N)):
        tally.update(batch(rows))
    values = tally.compute()
    maps, near_VN = net.encode(to_float(batch().img_u8_B3HW)), nearest_codes(net, round(0.25 * net.vocab_size))
    for rate in (0.0, 0.7):
        stream = Rng(3).stream("metrics/perturbed", IDS)
        img = to_uint8(decode_maps(net, perturbed(maps, near_VN, rate=rate, stream=stream)))
        features = [Pixels()(of)[0] for of in (img, batch().img_u8_B3HW)]
        assert values[f"pfid/{rate:g}"] == pytest.approx(frechet_distances(features[:1], features[1])[0], rel=1e-6)
    assert values["pfid"] == pytest.approx((values["pfid/0"] + values["pfid/0.7"]) / 2)


@pytest.mark.parametrize(("rates", "nearest"), [([], 1), ([1.2], 1), ([0.5], 25), ([0.5], -1)])
def test_perturbations_that_do_not_exist_are_refused(rates: list[float], nearest: float) -> None:
    with pytest.raises(VarlabError, match="must lie between 0 and 1"):
        PerturbedFID(tokenizer(), extractor=Pixels(), rates=rates, nearest=nearest, seed=0)


def test_the_probe_is_a_ridge_regression_of_the_classes() -> None:
    """As scikit-learn's, whose constant is free, too; the same on ranks that see parts of each split."""
    label = torch.arange(200) % 3
    x = Rng(0).stream("x", torch.arange(200)).normal(6) + 1.2 * torch.eye(6)[label] + 5
    one, other = (LinearProbe(num_features=6, num_classes=3, ridge=0.1) for _ in range(2))
    for probe, rank in ((one, 0), (other, 1)):
        for rows in torch.arange(200)[rank::2].split(17):
            for held_out in (False, True):
                of = rows[(rows >= 120) == held_out]
                probe.update(x[of], label[of], held_out=held_out)
    one.merge_state(other)
    train, val = (x[:120].numpy().astype(np.float64), x[120:].numpy().astype(np.float64))
    model = Ridge(alpha=0.1 * float(np.square(train).sum(0).mean())).fit(train, np.eye(3)[label[:120]])
    right = (model.predict(val).argmax(1) == label[120:].numpy()).mean()
    assert float(one.compute()) == pytest.approx(right) and 0.5 < right < 1


def test_a_probe_of_separate_classes_is_right() -> None:
    probe = LinearProbe(num_features=3, num_classes=3, ridge=1e-3)
    for held_out in (False, True):
        probe.update(torch.eye(3).repeat(5, 1), torch.arange(15) % 3, held_out=held_out)
    assert float(probe.compute()) == 1
