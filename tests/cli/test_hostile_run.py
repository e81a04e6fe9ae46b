"""A stranger's run directory is data: no command runs, imports or writes what it names."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import varlab
from tests import small
from varlab.cli.main import main
from varlab.errors import VarlabError

Record = dict[str, Any]
Plant = Callable[[Record, dict[str, Any]], None]


def _in_build(part: str, key: str) -> Plant:
    def plant(record: Record, payload: dict[str, Any]) -> None:
        record["build"][part][key] = payload

    return plant


def _in_block(record: Record, payload: dict[str, Any]) -> None:
    record["build"]["transformer"]["block"]["more"] = [{"_partial_": True, "inner": payload}]


def _as_order(record: Record, payload: dict[str, Any]) -> None:
    record["build"]["order"] = payload


PLANTS: dict[str, Plant] = {
    "scales": _in_build("tokenizer", "scales"),
    "an unknown key": _in_build("tokenizer", "surplus"),
    "order": _as_order,
    "block": _in_block,
    "sampler": _in_build("sampler", "cfg"),
}
PAYLOADS: dict[str, Callable[[str], dict[str, Any]]] = {
    "collect_env": lambda x: {"_target_": "torch.utils.collect_env.run", "command": f"touch {x}"},
    "system": lambda x: {"_target_": "os.system", "_args_": [f"touch {x}"]},
    "write_text": lambda x: {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.Path", "_args_": [x]}]},
    "own function": lambda x: {
        "_target_": "varlab.files.write_text",
        "path": {"_target_": "pathlib.Path", "_args_": [x]},
        "text": "",
    },
}


class Audit:
    """What happens while it is active: processes, new modules, files that are written."""

    def __init__(self) -> None:
        self.active, self.seen = False, list[tuple[str, str]]()
        sys.addaudithook(self._hook)  # it cannot be removed

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork"):
            self.seen.append((event, str(arguments)[:80]))
        elif event == "import":
            self.seen.append((event, str(arguments[0])))
        elif (
            event == "open" and isinstance(arguments[0], str) and arguments[1] and set("wax+") & set(str(arguments[1]))
        ):
            self.seen.append((event, arguments[0]))


@pytest.fixture(scope="module")
def audit() -> Audit:
    return Audit()


def hostile(folder: Path, sound: Path, plant: Plant, payload: dict[str, Any]) -> Path:
    shutil.copytree(sound, folder, ignore=shutil.ignore_patterns("pictures", "scores", "tensorboard", "last.ckpt"))
    record = small.record(folder)
    plant(record, payload)
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def commands(run: Path, out: Path) -> dict[str, list[str]]:
    own = ["data=shards", "data.path=runs/data/source=digits", "data.workers=0", "budget.images=32", "data.batch=16"]
    return {
        "sample": ["sample", str(run), "n=2"],
        "edit": ["edit", str(run), "image=x.png", "box=[0,0,8,8]"],
        "evaluate": ["evaluate", str(run), "n=16"],
        "encode": ["encode", str(run)],
        "export": ["export", str(run), "format=var"],
        "init": ["train", f"init={run}", "tokenizer_run=runs/multi", *own],
        "tokenizer_run": ["train", f"tokenizer_run={run}", *own],
    }


@pytest.mark.parametrize("place", PLANTS)
def test_nothing_that_a_record_names_is_run(
    place: str, lab: Path, tmp_path: Path, audit: Audit, capsys: pytest.CaptureFixture[str]
) -> None:
    """All payloads in one place of a record, by every command in turn, and by ``varlab.load``."""
    planted = tmp_path / "planted"
    varlab.load(lab / "next_scale")  # imports what the honest run does
    for i, (name, payload) in enumerate(PAYLOADS.items()):
        run = hostile(tmp_path / f"run{i}", lab / "next_scale", PLANTS[place], payload(str(planted)))
        before = set(sys.modules)
        audit.seen.clear()
        audit.active = True
        try:
            with pytest.raises(VarlabError, match="would run"):
                varlab.load(run)
        finally:
            audit.active = False
        new = {what for kind, what in audit.seen if kind == "import"} - before
        assert not new and not [one for one in audit.seen if one[0] != "import"]
        for command, arguments in commands(run, tmp_path).items():
            if i != list(PLANTS).index(place) % len(PAYLOADS):
                continue  # each command meets one payload in each place
            capsys.readouterr()
            if command == "tokenizer_run" and place not in ("scales", "an unknown key"):
                continue  # only the tokenizer of that run is used
            assert main([*arguments, f"out={tmp_path / command / name}"]) == 1, command
            said = capsys.readouterr().err
            assert "would run" in said and "Traceback" not in said, (command, said)
        assert not planted.exists()


def test_auto_compares_by_records_and_builds_the_chosen_alone(lab: Path, tmp_path: Path, monkeypatch) -> None:
    """A hostile neighbour with fewer tokens is refused when it is chosen, and never built when it is not."""
    planted = tmp_path / "planted"
    payload = {"_target_": "torch.utils.collect_env.run", "command": f"touch {planted}"}
    world = tmp_path / "world"
    (world / "runs").mkdir(parents=True)
    for name in ("data", "multi", "single", "judge", "perceptual"):
        (world / "runs" / name).symlink_to(lab / name)
    shutil.copytree(lab / "single", world / "runs" / "single2")
    hostile(world / "runs" / "evil", lab / "single", _in_build("tokenizer", "surplus"), payload)
    hostile(world / "runs" / "worse", lab / "single", _in_build("tokenizer", "scales"), payload)
    monkeypatch.chdir(world)
    arguments = ["train", *small.RUNS["raster"], "data=shards", "data.path=runs/data/source=digits", "budget.images=32"]
    assert main([*arguments, "tokenizer_run=runs/single2", "out=runs/named"]) == 0
    main([*arguments, "out=runs/generator"])  # it takes the newest of the smallest, which may be the evil one
    assert not planted.exists()


def test_recorded_data_are_checked_and_trust_is_the_way_out(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = tmp_path / "planted"

    def plant(record: Record, payload: dict[str, Any]) -> None:
        record["config"]["data"]["augment"] = payload

    run = hostile(tmp_path / "run", lab / "next_scale", plant, PAYLOADS["collect_env"](str(planted)))
    assert main(["evaluate", str(run), "n=16", f"out={tmp_path / 'scores'}"]) == 1
    assert "would run torch.utils.collect_env.run" in capsys.readouterr().err and not planted.exists()
    main(["evaluate", str(run), "n=16", "trust=true", f"out={tmp_path / 'trusted'}"])
    assert planted.exists()  # as the user asked
