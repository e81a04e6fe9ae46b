"""What can be known at the beginning is said at the beginning: without torch, and nothing is left behind."""

from __future__ import annotations

import io
import json
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import small
from tests.conftest import ROOT
from varlab.cli.main import main
from varlab.run.directory import RunDirectory
from varlab.run.record import RunRecord, read_record

SERVER = """
import json, os, sys, traceback
from varlab.cli.main import main
import varlab.cli.app
assert "torch" not in sys.modules
for line in sys.stdin:
    read, write = os.pipe()
    if not (child := os.fork()):
        os.dup2(write, 2)
        os.close(read)
        os.chdir(json.loads(line)["folder"])
        code = main(json.loads(line)["arguments"])
        heavy = [name for name in ("torch", "lightning", "torchmetrics") if name in sys.modules]
        print(json.dumps([code, heavy]), file=sys.stderr, flush=True)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        print(json.dumps(said.read().splitlines()), flush=True)
    os.waitpid(child, 0)
"""
"""Runs commands in forks of a process that has imported Hydra, but not torch."""

CLASSIFIER = ("train", *small.CLASSIFIER)
TOKENIZER = ("train", *small.RUNS["multi"])
GENERATOR = ("train", *small.RUNS["raster"])
NEW = "made/by/nobody"

CASES: dict[str, tuple[tuple[str, ...], str]] = {
    "no budget": ((*CLASSIFIER, "budget.images=null"), "one of budget.images=N"),
    "no budget, tokenizer": ((*TOKENIZER, "budget.images=null"), "one of budget.images=N"),
    "a budget of nothing": ((*GENERATOR, "budget.images=0"), "budget.images is 0"),
    "a word for a budget": ((*CLASSIFIER, "budget.images=many"), "budget.images is many"),
    "no data": ((*CLASSIFIER, "data.path={here}/none"), "There is no shard folder {here}/none"),
    "no digits": (
        (*CLASSIFIER, "data.path={here}/source=digits+seed=1"),
        "pack one with `varlab pack source=digits seed=1` or correct data.path.",
    ),
    "no data, two ranks": ((*CLASSIFIER, "data.path={here}/none", "trainer.devices=2"), "There is no shard folder"),
    "no index": ((*CLASSIFIER, "data.path={here}/tars"), "has no index.json: run"),
    "a damaged index": ((*CLASSIFIER, "data.path={here}/damaged"), "index.json is damaged"),
    "no val images": (
        (*CLASSIFIER, "data.path={here}/plain"),
        "holds no val images to validate with: add val.skip=true",
    ),
    "no val images for scores": (
        (*TOKENIZER, "data.path={here}/plain", "data.size=16", "val.skip=true", "scores.every=64"),
        "no val images to reconstruct for scores: set scores.every=null",
    ),
    "one class": ((*CLASSIFIER, "data.path={here}/alike", "val.skip=true"), "are of one class"),
    "a batch that two cannot share": (
        (*GENERATOR, "data.batch=33", "trainer=ddp", "trainer.accelerator=cpu"),
        "A global batch of 33 cannot be shared by 2 ranks: make it a multiple of that.",
    ),
    "one image for two": ((*GENERATOR, "data.batch=1", "trainer.devices=2"), "A global batch of 1 cannot be shared"),
    "a sharded tokenizer": (
        (*TOKENIZER, "trainer=fsdp", "trainer.accelerator=cpu"),
        "shards a generator's transformer over the ranks, not what task=tokenizer trains: use trainer=ddp",
    ),
    "no devices": ((*GENERATOR, "trainer.devices=0"), "trainer.devices=0 is neither a number above 0"),
    "half a device": ((*CLASSIFIER, "trainer.devices=2.5"), "trainer.devices=2.5 is neither a number above 0"),
    "numbered processors": ((*GENERATOR, "trainer.devices=[0,1]"), "is cpu: use trainer.devices=2."),
    "all processors": ((*TOKENIZER, "trainer.devices=-1"), "is cpu: use trainer.devices=1."),
    "no machines": ((*GENERATOR, "trainer.num_nodes=0"), "trainer.num_nodes=0 must be a whole number, at least 1"),
    "no micro-batch": ((*GENERATOR, "trainer.micro_batch=0"), "trainer.micro_batch=0 must be a whole number, at least"),
    "a negative micro-batch": ((*CLASSIFIER, "task.micro_batch=-1"), "task.micro_batch=-1 must be a whole number"),
    "a word for updates": ((*GENERATOR, "trainer.fast_dev_run=few"), "must be true, false or a number of updates"),
    "an empty batch": ((*CLASSIFIER, "data.batch=0"), "data.batch is 0"),
    "no conditions": ((*TOKENIZER, "data.view=condition"), "holds no conditions to view"),
    "no tokens": ((*GENERATOR, "data.tokens={here}/none"), "holds no tokens.json"),
    "scales": (
        (*TOKENIZER, "tokenizer.scales=[[1,1],[2,2]]"),
        "use tokenizer.scales=[[1,1],[2,2],[4,4]] or data.size=8.",
    ),
    "stages": ((*TOKENIZER, "tokenizer.channel_mult=[1,2]"), "or data.size=8."),
    "other scales": (
        (*GENERATOR, "tokenizer_run=runs/single", "tokenizer_scales=[[2,2]]"),
        "use tokenizer_scales=[[4,4]] or data.size=8.",
    ),
    "no such perceptual network": ((*TOKENIZER, "perceptual.run={here}/none"), "is not a run directory"),
    "a tokenizer for a network": ((*TOKENIZER, "perceptual.run=runs/multi"), "is not the run of a classifier"),
    "no network of these images": ((*TOKENIZER, "data.path={here}/alike", "val.skip=true"), "No finished classifier"),
    "no such tokenizer": ((*GENERATOR, "tokenizer_run={here}/none"), "is not a run directory"),
    "a judge for a tokenizer": ((*GENERATOR, "tokenizer_run=runs/judge"), "is not the run of a tokenizer"),
    "no tokenizer of these images": ((*GENERATOR, "data.path={here}/plain", "val.skip=true"), "No finished tokenizer"),
    "a start of another kind": ((*GENERATOR, "init=runs/single"), "a generator cannot start from it"),
    "a start of other classes": (
        (*GENERATOR, "init=runs/raster", "data.path={here}/plain", "val.skip=true"),
        "init=runs/raster knows 10 classes, but {here}/plain has 2: give images of its classes, or",
    ),
    "a place that cannot be": ((*CLASSIFIER, "out=/proc/none/run"), "Could not write /proc/none/run"),
    "pack no folder": (("pack", "source=folder", "path={here}/none"), "There is no image folder"),
    "pack a file": (
        ("pack", "source=folder", "path={here}/tars/a-000000.tar"),
        "a-000000.tar is a file, not a folder: name a folder",
    ),
    "pack a path without a source": (("pack", "path={here}/plain"), "path= needs source=folder beside it"),
    "train on pictures": ((*CLASSIFIER, "data.path={here}/pictures"), "holds no shards: pack its pictures with"),
    "start nothing": (("start",), "folder has no value: name one, as in `varlab start photos/ "),
    "start no folder": (("start", "{here}/none"), "There is no image folder {here}/none: name a folder of pictures"),
    "start a file": (("start", "{here}/tars/a-000000.tar"), "a-000000.tar is a file, not a folder: name a folder"),
    "start an empty folder": (("start", "{here}/pictures"), "{here}/pictures holds no pictures: give a folder with at"),
    "start in no time": (("start", "{here}/pictures", "minutes=2"), "minutes=2 must be a number of at least 5, as"),
    "start with a word": (("start", "{here}/pictures", "size=small"), "size=small must be a whole number of pixels"),
    "start at no size": (("start", "{here}/pictures", "size=33"), "no whole number of tokens: use size=32."),
    "start at a large size": (("start", "{here}/pictures", "size=200"), "outside 16 to 128 pixels: use size=128."),
    "start another order": (("start", "{here}/pictures", "orders=[rastr]"), "'rastr': did you mean 'raster'?"),
    "pack no tars": (("pack", "source=tars", "path={here}/none"), "There is no folder of shards"),
    "pack no parquet": (("pack", "source=parquet", "path={here}/none"), "There is no Parquet file or folder"),
    "pack into the source": (
        ("pack", "source=tars", "path={here}/tars", "out={here}/tars"),
        "is where the source lies",
    ),
    "index nothing": (("index", "{here}/none"), "There is no folder {here}/none"),
    "index at no place": (("index", "{here}/tars", "out=/proc/none/index"), "put the index elsewhere with out=DIR"),
    "bench nothing": (("bench", "data.path={here}/none"), "There is no shard folder"),
    "encode with no run": (("encode", "{here}/none"), "is not a run directory"),
    "encode with a judge": (("encode", "runs/judge"), "holds no image model"),
    "encode nothing": (("encode", "runs/multi", "data=digits", "data.path={here}/none"), "There is no shard folder"),
    "encode another size": (
        ("encode", "runs/multi", "data=shards", "data.path={here}/plain"),
        "{here}/plain holds 24×24: cut them to that size with data=shards data.path={here}/plain data.size=16.",
    ),
    "sample from no run": (("sample", "{here}/none"), "is not a run directory"),
    "sample from a tokenizer": (("sample", "runs/multi"), "is not the run of a generator"),
    "sample from an unfinished run": (("sample", "{here}/killed"), "is running, not finished"),
    "sample from a folder of runs": (("sample", "runs"), "Name one of its runs: runs/"),
    "evaluate another size": (
        ("evaluate", "runs/raster", "data=folder", "data.path={here}/plain"),
        "{here}/plain holds 24×24: cut them to that size with data=shards data.path={here}/plain data.size=16.",
    ),
    "sample nothing": (("sample", "runs/raster", "n=0"), "n=0 must be a whole number"),
    "evaluate a judge": (("evaluate", "runs/judge"), "holds no image model"),
    "evaluate without val": (
        ("evaluate", "runs/raster", "data=shards", "data.path={here}/plain", "data.size=16"),
        "holds no val images, with which scores compare",
    ),
    "evaluate other weights": (("evaluate", "runs/raster", "weights=best"), "use weights=ema"),
    "evaluate by a tokenizer": (
        ("evaluate", "runs/raster", "extractor.run=runs/multi"),
        "is not the run of a classifier",
    ),
    "edit no image": (
        ("edit", "runs/raster", "image={here}/none.png", "box=[0,0,1,1]"),
        "image={here}/none.png cannot be used",
    ),
    "edit no part": (("edit", "runs/raster", "image={here}/none.png"), "one of mask=FILE (white is painted) and box="),
    "edit with a tokenizer": (("edit", "runs/multi", "image={here}/none.png"), "is not the run of a generator"),
    "export no run": (("export", "{here}/none", "format=var"), "is not a run directory"),
    "export a judge": (("export", "runs/judge", "format=var"), "holds no image model"),
    "export another file": (("export", "runs/single", "format=vqgan", "file=zip"), "use pth or safetensors"),
    "import nothing": (("import", "format=var"), "Give the tokenizer's checkpoint"),
    "import no file": (("import", "format=var", "tokenizer={here}/none.pth"), "There is no checkpoint {here}/none.pth"),
    "import no classes": (
        ("import", "format=var", "tokenizer={here}/killed/run.json", "classes={here}/none"),
        "is neither a folder of shards nor a file of names",
    ),
    "report nothing": (("report", "{here}/none"), "{here}/none"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    yield process
    process.communicate()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two classes without val images (plain), without an index (tars), and with one class (alike)."""
    folder = tmp_path_factory.mktemp("refused")
    for name, classes in (("plain", 2), ("tars", 2), ("alike", 1), ("damaged", 2)):
        write_shard(folder / name / "a-000000.tar", classes=classes, side=16 if name == "alike" else 24)
        if name != "tars":
            assert main(["index", str(folder / name), "workers=0"]) == 0
    (folder / "damaged" / "index.json").write_text("{")
    (folder / "killed").mkdir()
    (folder / "pictures" / "cat").mkdir(parents=True)
    record = {"command": "train", "outcome": {"state": "running"}, "build": {"tokenizer": {}}}
    (folder / "killed" / "run.json").write_text(json.dumps(record))
    return folder


def write_shard(path: Path, *, classes: int, side: int, count: int = 40) -> None:
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            image = io.BytesIO()
            Image.fromarray(np.full((side, side, 3), 5 * i, np.uint8)).save(image, "PNG")
            for name, content in ((f"{i:03d}.png", image.getvalue()), (f"{i:03d}.cls", str(i % classes).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def tree(*folders: Path) -> dict[str, int]:
    """Every file and folder below, with its size."""
    return {str(path): path.lstat().st_size for folder in folders for path in [folder, *folder.rglob("*")]}


CASES |= {
    f"{name} (dry)": ((*words, "dry=true"), says)
    for name, (words, says) in CASES.items()
    if words[0] == "train" and "Could not write" not in says  # dry=true writes nothing
}


@pytest.mark.parametrize("case", CASES)
def test_a_refused_command_leaves_nothing_and_imports_no_torch(
    case: str, server: subprocess.Popen[str], here: Path, lab: Path, tmp_path: Path
) -> None:
    words, says = CASES[case]
    arguments = [word.format(here=here) for word in words]
    arguments += [] if any(word.startswith("out=") for word in arguments) else [f"out={tmp_path / NEW}"]
    before = tree(here, lab, tmp_path)
    print(json.dumps({"folder": str(lab.parent), "arguments": arguments}), file=server.stdin, flush=True)
    *said, last = json.loads(server.stdout.readline())
    assert json.loads(last) == [1, []], said
    assert says.format(here=here) in said[-1] and said[-1].startswith(f"varlab {arguments[0]}: "), said
    assert "Traceback" not in "".join(said) and "unexpected" not in said[-1]
    assert tree(here, lab, tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Give the length of the training"),
        (["budget.images=64", "data.path=none"], "There is no shard folder none"),
        (["budget.images=64", "data.path={here}/plain"], "add val.skip=true"),
    ],
)
def test_a_refusal_takes_less_than_two_seconds(arguments: list[str], says: str, here: Path, tmp_path: Path) -> None:
    words = [word.format(here=here) for word in arguments]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "import sys; from varlab.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "train", "task=classifier", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 1 and says in done.stderr, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    assert not any(tmp_path.iterdir())


# -- what it says to do works ------------------------------------------------------------------------------------------


def test_row1_data_without_val_images_trains_when_validation_is_skipped(here: Path, lab: Path, tmp_path: Path) -> None:
    arguments = ("data=shards", f"data.path={here / 'plain'}", "data.size=16", "data.batch=32", "data.workers=0")
    out, shorter = tmp_path / "run", "budget.images=64"
    assert small.train(out, *small.CLASSIFIER, *arguments, shorter) == 1 and not out.exists()
    assert small.train(out, *small.CLASSIFIER, *arguments, shorter, "val.skip=true") == 0
    assert (out / "weights.safetensors").exists()


@pytest.mark.parametrize("remedy", [0, 1])
def test_a_size_that_is_named_fits(remedy: int, lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        *small.RUNS["multi"],
        "tokenizer.scales=[[1,1],[2,2]]",
        "budget.images=32",
        "trainer.limit_val_batches=1",
    ]
    assert small.train(tmp_path / "run", *arguments) == 1
    fitting = re.findall(r"(\S+=\S+?)(?= or|\.$)", capsys.readouterr().err.strip().rpartition("use ")[2])
    assert small.train(tmp_path / "run", *arguments, fitting[remedy]) == 0


def test_fewer_images_than_a_batch_train_with_a_warning(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("data=shards", f"data.path={here / 'plain'}", "data.size=16", "data.batch=64", "data.workers=0")
    assert small.train(tmp_path / "run", *small.CLASSIFIER, *arguments, "val.skip=true", "budget.images=64") == 0
    assert "holds 40 train images, fewer than data.batch=64" in capsys.readouterr().err


# -- refused later -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        (*CLASSIFIER, "classifier.groups=7"),
        (*TOKENIZER, "discriminator.norm=batch", "trainer.micro_batch=8"),
        (*GENERATOR, "transformer.heads=5"),
        (*GENERATOR, "task.optimizer.lr=fast"),
        ("sample", "runs/raster", "labels=[11]"),
        ("evaluate", "runs/raster", "n=1"),
        ("edit", "runs/raster", "image={here}/grey.png", "box=[5,5,2,2]"),
        ("export", "runs/raster", "format=llamagen"),
        ("pack", "source=folder", "path={here}/empty"),
        ("pack", "source=digits", "shard_size=0"),
        ("index", "{here}/empty", "workers=0"),
    ],
    ids=lambda words: "-".join(words).replace("/", "_")[-40:],
)
def test_what_is_refused_later_leaves_nothing(words: tuple[str, ...], lab: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "grey.png")
    before = tree(tmp_path, lab)
    assert main([*(word.format(here=tmp_path) for word in words), f"out={tmp_path / NEW}"]) == 1
    assert tree(tmp_path, lab) == before


def test_what_was_there_before_stays(lab: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    (out / "tb").mkdir(parents=True)
    (out / "metrics.jsonl").write_text("of somebody\n")
    before = tree(tmp_path)
    for refused in ("budget.images=0", "classifier.groups=7"):
        assert small.train(out, *small.CLASSIFIER, refused) == 1
    assert tree(tmp_path) == before and (out / "metrics.jsonl").read_text() == "of somebody\n"


def test_a_run_that_began_earlier_keeps_its_directory(lab: Path, tmp_path: Path) -> None:
    shutil.copytree(lab / "judge", tmp_path / "run")
    record = small.record(tmp_path / "run")
    record["outcome"]["state"] = "stopped"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    before = set(tree(tmp_path))
    with small.inside(tmp_path):  # where its images are not
        assert small.train(tmp_path / "run", *small.RUNS["judge"]) == 1
    assert set(tree(tmp_path)) == before | {str(tmp_path / "run" / ".lock")}


def test_a_finished_run_needs_nothing_of_what_it_was_made_from(lab: Path, tmp_path: Path) -> None:
    shutil.copytree(lab / "judge", tmp_path / "run")
    with small.inside(tmp_path):
        assert small.train(tmp_path / "run", *small.RUNS["judge"]) == 0


def test_what_is_of_use_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    with RunDirectory(out) as directory:
        assert directory.prepare(RunRecord(command="encode"))
        (out / "train-000000.npy").write_text("tokens")
        directory.fail("the disk is full")
        directory.discard()
    assert read_record(out).outcome.state == "failed"


def test_who_waits_for_a_refused_run_gets_the_directory(tmp_path: Path) -> None:
    """The lock that a refused run removes is not the one that the next process holds."""
    code = f"""
import sys
from pathlib import Path
from varlab.run.directory import RunDirectory
from varlab.run.record import RunRecord
with RunDirectory(Path({str(tmp_path / "new" / "run")!r})) as directory:
    directory.prepare(RunRecord(command="train"))
    print("locked", flush=True)
    sys.stdin.readline()
    directory.discard()
"""
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "locked\n"
    threading.Timer(0.5, lambda: first.communicate("refused\n")).start()
    with RunDirectory(tmp_path / "new" / "run") as second:
        assert second.prepare(RunRecord(command="train")) and not second.resuming
        second.check_still_here()
    assert first.wait() == 0
