"""The architecture's law: imports run upward only, siblings don't know each other, and only the command line prints."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "varlab"
ROOMS = {"tokenizer", "losses", "order", "transformer", "data", "metrics"}
FLOORS = {  # a module may import what stands on a lower floor, and its own room
    **dict.fromkeys(
        [
            "errors",
            "config",
            "files",
            "info",
            "json_file",
            "renames",
            "_torchvision",
            "__init__",
            "types",
            "processor",
            "rng",
        ],
        0,
    ),
    **dict.fromkeys(ROOMS, 1),
    **dict.fromkeys(["sample", "checkpoint"], 2),
    "tasks": 3,
    "run": 3,
    "score": 4,
    "model": 4,
    "testing": 5,
    "recipe": 5,
    "bench": 6,
    "launch": 6,
    "start": 7,
    "cli": 8,
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported as soon as the file is): everything imported, TYPE_CHECKING blocks aside."""
    tree = ast.parse(file.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    deferred = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively"
            names = [node.module] if node.module != "varlab" else [f"varlab.{alias.name}" for alias in node.names]
            yield from ((str(name), id(node) not in deferred) for name in names)


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def room_of_module(module: str) -> str:
    name = module.split(".")[1] if "." in module else "__init__"
    return name if name in FLOORS or name == "report" else "__init__"  # varlab.load, varlab.__version__


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_upward(file: Path) -> None:
    here = room(file)
    for module, _ in imports(file):
        assert not module.startswith("tests"), f"{file} imports {module}"
        if module.split(".")[0] != "varlab" or here in ("__init__", "cli", "launch"):
            continue
        there = room_of_module(module)
        if here == "report":
            allowed = ("report", "run", "config", "errors", "files", "json_file", "renames")
            assert there in allowed, f"report reads files only, but {file.name} imports {module}"
        elif there != here:
            assert there != "report", f"{file} imports {module}"
            below = FLOORS[there] < FLOORS[here] or FLOORS[here] == 0
            assert below, f"{file.name} ({here}) imports {module}: only lower floors, never siblings"


def test_every_room_has_a_floor() -> None:
    assert {room(file) for file in FILES} <= FLOORS.keys() | {"report"}


def test_light_rooms_import_no_torch() -> None:
    for file in FILES:
        if room(file) in ("report", "errors", "__init__", "_torchvision"):
            heavy = [m for m, at_once in imports(file) if m.split(".")[0] in ("torch", "lightning") and at_once]
            assert not heavy, f"{file} imports {heavy}"


def test_report_runs_without_torch() -> None:
    code = "import sys, varlab.report.page.html; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# what torchmetrics imports by itself (torch-fidelity and torchvision among it)
OF_TORCHMETRICS = {
    *("torch", "torchmetrics", "torch_fidelity", "torchvision", "torch.onnx", "torch._inductor", "torch._dynamo"),
    *("matplotlib", "scipy.stats", "scipy.special"),
}
HEAVY = OF_TORCHMETRICS | {"lightning", "tensorboard", "webdataset", "sklearn", "skimage", "pandas"}
SHOW = f"""
import importlib, sys
from varlab.cli.command_table import COMMANDS
from varlab.cli.main import main
name, *rest = sys.argv[1:]
if name in COMMANDS:
    importlib.import_module(COMMANDS[name].module)
if rest or name not in COMMANDS:
    assert main([name, *rest]) == 0
print()
print(*(set({sorted(HEAVY)}) & sys.modules.keys()))
"""


def heavy_imports(folder: Path, *arguments: str) -> set[str]:
    """Which of the heavy packages a command has imported: as a module, with arguments also by running it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SHOW, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        *((command, {"torch"}) for command in ("pack", "index", "encode", "edit", "export")),
        *((command, set()) for command in ("--help", "report")),
        pytest.param("train", OF_TORCHMETRICS | {"lightning"}, marks=pytest.mark.slow),
    ],
)
def test_a_command_imports_only_what_it_uses(command: str, expected: set[str], tmp_path: Path) -> None:
    assert heavy_imports(tmp_path, command) == expected


def test_sampling_imports_torch_alone(lab: Path, tmp_path: Path) -> None:
    """From the command line to the last picture."""
    assert heavy_imports(lab.parent, "sample", "runs/next_scale", "n=2", "grown=1", f"out={tmp_path}") == {"torch"}


@pytest.mark.slow
def test_scores_import_torchmetrics_and_no_lightning(lab: Path, tmp_path: Path) -> None:
    run = shutil.copytree(lab / "multi", tmp_path / "multi")  # which keeps the scores, unlike the world of all tests
    assert heavy_imports(lab.parent, "evaluate", str(run), f"out={tmp_path / 'out'}") == OF_TORCHMETRICS


def test_only_the_command_line_prints() -> None:
    for file in FILES:
        if room(file) in ("cli", "launch"):
            continue
        calls = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
        printing = [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
        assert not printing, f"{file} prints in lines {printing}"
