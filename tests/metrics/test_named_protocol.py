"""Named protocols: each refuses in one sentence what it is not, and 50,000 samples alone make an FID-50k."""

from __future__ import annotations

import dataclasses

import pytest

from tests.laws.conftest import load as group
from varlab.errors import VarlabError
from varlab.metrics.named_protocol import ScoredSet, explain, require_protocol, score_label

ADM = ScoredSet(
    of="samples",
    n=50_000,
    image_size=(256, 256),
    extractor="inception",
    weights="6726825d" + "0" * 56,
    moments=True,
    reference_images=10_000,
    balance="each of 1000 classes 50 times",
)


def test_what_the_suite_asks_for_fits() -> None:
    require_protocol(group("metrics", "adm256")["protocol"], ADM)
    large = dataclasses.replace(ADM, image_size=(512, 512), reference_images=1000)
    require_protocol(group("metrics", "adm512")["protocol"], large)
    require_protocol(group("metrics", "torch_fidelity")["protocol"], ADM)
    require_protocol(group("metrics", "smoke")["protocol"], dataclasses.replace(ADM, n=7, moments=False))
    require_protocol(None, ADM)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"of": "reconstructions"}, "a score of samples, but here it is reconstructions"),
        ({"n": 49_999}, "50000 samples, but here it is 49999"),
        ({"image_size": (128, 256)}, r"images of \[256, 256\] pixels, but here it is \[128, 256\]"),
        ({"extractor": "classifier"}, "extractor=inception, but here it is classifier"),
        ({"weights": "ab" * 32}, "begins with 6726825d, but here it is abababababab:"),
        ({"moments": False}, "a reference that holds moments, but here it is images"),
        ({"reference_images": 1000}, "10000 images in the reference, but here it is 1000"),
        ({"balance": "each of 1000 classes 49 to 51 times"}, "every class equally often, by their labels"),
        ({"balance": "unknown"}, "every class equally often, by their labels"),
    ],
)
def test_what_does_not_fit_is_one_sentence(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(VarlabError, match=sentence) as refused:
        require_protocol(group("metrics", "adm256")["protocol"], dataclasses.replace(ADM, **changes))
    assert str(refused.value).count(". ") == 0 and "metrics=adm256" in str(refused.value)


@pytest.mark.parametrize("name", ["rfid", "tokens"])
def test_a_tokenizers_protocol_is_none_of_samples(name: str) -> None:
    with pytest.raises(
        VarlabError, match=f"metrics={name} asks for a score of reconstructions, but here it is samples"
    ):
        require_protocol(group("metrics", name)["protocol"], ADM)


def test_moments_of_the_suite_are_no_reference_of_torch_fidelity_without_images() -> None:
    with pytest.raises(VarlabError, match="a reference that holds images, but here it is moments"):
        require_protocol(group("metrics", "torch_fidelity")["protocol"], dataclasses.replace(ADM, reference_images=0))


@pytest.mark.parametrize(
    ("n", "said"), [(50_000, "FID-50k"), (49_999, "FID of 49,999 samples"), (10_000, "FID of 10,0")]
)
def test_fewer_than_50000_samples_are_no_fid_50k(n: int, said: str) -> None:
    assert score_label(None, n, "inception").startswith(said)
    assert score_label({"name": "adm256"}, n, "inception").endswith(", adm256")
    assert score_label(None, n, "classifier") == f"FID of {n:,} samples"  # in a judge's features, whatever their number


def test_a_difference_is_explained_by_the_settings_that_the_score_depends_on() -> None:
    one, other = group("metrics", "adm256"), group("metrics", "torch_fidelity")
    scores = {"a/fid": 3.3, "b/fid": 3.4, "a/precision": 0.8, "b/precision": 0.8, "a/kid": 1.0, "b/kid": 1.1}
    said = list(explain({"a": one, "b": other}, scores))
    assert said == [
        "fid: a 3.3, b 3.4, by protocol.reference moments and images",
        "kid: a 1, b 1.1, by rounding",
    ]
