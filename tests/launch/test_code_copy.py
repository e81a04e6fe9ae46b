"""The copy of the code that a sweep on Slurm runs from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import varlab
from varlab.errors import VarlabError
from varlab.launch.code_copy import copy_code
from varlab.run import provenance

ROOT = Path(varlab.__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_code(tmp_path_factory.mktemp("code"))


def test_made_once_whole_and_nothing_else(copy: Path) -> None:
    assert copy_code(copy.parent) == copy and list(copy.parent.iterdir()) == [copy]
    ours = {file.relative_to(ROOT) for file in (ROOT / "varlab").rglob("*.py")} | {Path("conf/train.yaml")}
    assert ours < {file.relative_to(copy) for file in copy.rglob("*") if file.is_file()}
    assert not list(copy.rglob("__pycache__")) and not (copy / "tests").exists()


@pytest.mark.parametrize("file", ["varlab/rng.py", "hydra_plugins/varlab_slurm.py"])
@pytest.mark.parametrize("damage", [lambda data: data.replace(b"seed", b"sead", 1)[:-1], lambda data: None])
def test_a_damaged_copy_is_named(copy: Path, file: str, damage: Callable[[bytes], bytes | None]) -> None:
    sound = (copy / file).read_bytes()
    (copy / file).unlink()
    if (damaged := damage(sound)) is not None:
        (copy / file).write_bytes(damaged)
    try:
        with pytest.raises(VarlabError, match=f"{copy.name} is not the copy of the code"):
            copy_code(copy.parent)
    finally:
        (copy / file).write_bytes(sound)
    assert copy_code(copy.parent) == copy


def test_it_knows_where_it_came_from(copy: Path) -> None:
    assert provenance.code(copy / "varlab") == provenance.code() | {"snapshot": str(copy)}


def test_it_is_what_runs(copy: Path) -> None:
    """In the checkout itself too, as the batch script sets it up; with its own configurations."""
    asked = "import varlab; from varlab.cli.app import conf_dir; print(varlab.__file__, conf_dir())"
    environment = os.environ | {"PYTHONPATH": f"{copy}:{ROOT}", "PYTHONSAFEPATH": "1"}
    said = subprocess.run(
        [sys.executable, "-c", asked], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == [str(copy / "varlab/__init__.py"), str(copy / "conf")]
