"""Shared by all rooms: few threads, seeded hypothesis, and a torch that leaves one core to the other test process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported, so before anything else here

import pytest
from hypothesis import HealthCheck, settings

# Bit-exact laws need inputs that come back: examples are derived from each test's name, not from the clock.
settings.register_profile(
    "varlab", deadline=None, derandomize=True, max_examples=30, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("varlab")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def in_float64() -> Iterator[None]:
    """The module's numbers are computed in float64: what is computed is compared there, not how it is rounded."""
    from tests import bounds

    with bounds.float64():
        yield


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with instructions for bfloat16: what is computed then is tested on any."""
    from varlab import processor

    monkeypatch.setattr(processor, "multiplies_bfloat16", lambda: True)


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small world's runs/ (see ``tests/small.py``), made once; tests must not change it."""
    from tests import small

    worker = os.environ.get("PYTEST_XDIST_WORKER")
    folder = tmp_path_factory.getbasetemp().parent / "world" if worker else tmp_path_factory.mktemp("world")
    folder.mkdir(exist_ok=True)
    small.build_world(folder, turn=int(worker.removeprefix("gw")) if worker else 0)
    return folder


@pytest.fixture
def lab(world_folder: Path) -> Iterator[Path]:
    """The small world's runs/, with the folder above as the current one. Tests write elsewhere (out=…)."""
    from tests import small

    with small.inside(world_folder):
        yield world_folder / "runs"


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded random weights of Inception in the format of torch-fidelity's file.

    Each layer keeps the size of what it gets (√6 for PyTorch's initial weights, before a ReLU), and logits are large.
    Otherwise the last features of all images are equal to the seventh digit, and so is every score in them.
    """
    import torch

    from varlab.rng import Rng  # before torch-fidelity, which needs varlab's torchvision shim

    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # isort: skip

    with pytest.MonkeyPatch.context() as patch, Rng(0).scope("init"):
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *a, **k: None)
        net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.endswith("bn.weight"):
                weight.fill_(6**0.5)
        net.get_parameter("fc.weight").mul_(100)
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(net.state_dict(), path)
    return path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures of the package's structure."""
    from tests import structure

    terminalreporter.section("structure of varlab/ (at d11e80b → now)")
    for line in structure.report():
        terminalreporter.write_line(line)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, with the fake command's configuration beside it; child processes find these tests."""
    from tests import fake

    fake.write_conf(tmp_path / "conf")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    return tmp_path / "work"


@pytest.fixture
def varlab(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``varlab("fake", "seed=1")`` → (exit code, standard output, standard error)."""

    from tests import fake
    from varlab.cli.main import main

    def call(*arguments: str) -> tuple[int, str, str]:
        here = ("--config-dir", str(workplace.parent / "conf")) if arguments[:1] == ("fake",) else ()
        code = main([*arguments, *here], commands=fake.COMMANDS)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
