"""What an error says to do works: its sentence is printed, its remedy is read out of it and followed to the letter."""

from __future__ import annotations

import ast
import gzip
import io
import os
import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from tests import small
from varlab.cli.main import main

PACKAGE = Path(small.__file__).parents[1] / "varlab"


@dataclass(frozen=True)
class Remedy:
    """A refused command line, and the part of its sentence that says what to do.

    says: a part of the sentence as the source has it. take: a pattern of the remedy; its group is ``key=value …``, or
    ``key=`` to leave out; by default the last word with ``=``. fill: what stands for the sentence's placeholders.
    past: the next refusal, where following the remedy leads to another question. before: command lines that make what the
    refused one needs.
    """

    says: str
    line: str
    take: str = r".*[\s(](\S+=\S*[^\s,;:.)])"
    fill: Mapping[str, str] = field(default_factory=dict)
    past: str = ""
    before: tuple[str, ...] = ()


def picture(path: Path, value: int = 0, size: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (value, 90, 0)).save(path)


def write_shard(path: Path, label: int = 0) -> None:
    """Six samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in range(6):
            file = io.BytesIO()
            Image.new("RGB", (16, 16), (9 * i, 0, 0)).save(file, "PNG")
            for ending, data in (("png", file.getvalue()), ("cls", str(label + i % 2).encode())):
                member = tarfile.TarInfo(f"{path.stem}{i}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def place(lab: Path, tmp_path: Path) -> Iterator[Path]:
    """A current folder with the small world's runs and a few folders of pictures."""
    (tmp_path / "runs").mkdir()
    for run in lab.iterdir():
        # folders of its own, as commands write into them, and the same files, which commands replace
        shutil.copytree(run, tmp_path / "runs" / run.name, copy_function=os.link)
    layouts = {
        "classes": ("cat", "dog"),
        "beside": ("train/cat", "train/dog", "extra pictures (1)"),
        "no_train": ("val/cat", "val/dog"),
        "seg": ("seg_train/cat", "seg_train/dog", "seg_test/cat", "seg_test/dog"),
        "wrapped": ("it's all/train/cat", "it's all/train/dog", "it's all/val/cat"),
        "mixed": ("cat/train", "cat/val", "dog/plain"),
        "new_val": ("train/cat", "train/dog", "val/cat", "val/écureuil"),
    }
    for name, folders in layouts.items():
        for folder in folders:
            for i in range(4):
                picture(tmp_path / name / folder / f"{i}.png", 20 * i + len(folder))
    for name, size in (("cat", 16), ("dog", 20)):
        for i in range(8):
            picture(tmp_path / "sizes" / name / f"{i}.png", 20 * i, size)
    Image.new("L", (16, 16), 255).save(tmp_path / "white.png")
    write_shard(tmp_path / "only_val" / "a-val.tar")
    write_shard(tmp_path / "far" / "a.tar", label=10**9)
    for name in ("gz", "zipped"):
        write_shard(tmp_path / name / "a.tar")
        packed = gzip.compress((tmp_path / name / "a.tar").read_bytes())
        (tmp_path / name / "a.tar").unlink()
        (tmp_path / name / ("a.tar" if name == "zipped" else "a.tar.gz")).write_bytes(packed)
    with small.inside(tmp_path):
        yield tmp_path


FOLDER = "pack source=folder source.size=16 workers=0 out=made"
EDIT = "edit runs/next_scale image=classes/cat/0.png n=1 out=made"
SAMPLE = "sample runs/raster n=2 grown=1 out=made"
TRAIN = {name: shlex.join(["train", *words, "budget.images=32", "out=made"]) for name, words in small.RUNS.items()}

FAST = [
    Remedy("labels=[] names no class", f"{SAMPLE} labels=[]"),
    Remedy("and a quoted number is a name", f"""{SAMPLE} "labels=['01','7']" """, r"write (.*?)\. The"),
    Remedy(
        "smooth=true is for pictures only",
        "evaluate runs/raster extractor.run=runs/judge smooth=true n=1",
        past="ask for more",
    ),
    Remedy(
        "asks for {_WORDS[key].format(wanted)}, but here",
        "evaluate runs/raster extractor.run=runs/judge metrics=adm256 n=1",
        r"\((metrics=smoke)\)",
        past="ask for more",
    ),
    Remedy("weights={weights} is unknown", f"{SAMPLE} weights=worst", r"use ('ema')", {"'ema'": "weights=ema"}),
    Remedy("{name}={value} must be {words}", f"{SAMPLE} temperature=0", r"\((.*?) always"),
    Remedy("kept no best weights", f"{SAMPLE} weights=best"),
    Remedy(
        "has no effect beside {key}=",
        "bench what=sample run=runs/raster sampler=var rounds=1 seconds=0.001 batch=2 product.cpu=32",
        r"leave out (\S+)\.",
        {"sampler=var": "sampler="},
    ),
    Remedy("Give what to paint", EDIT, r"(mask=FILE)", {"FILE": "white.png"}),
    Remedy("Give what to paint", EDIT, r"(box=\S+\])", {"top": "0", "left": "0", "bottom": "1", "right": "0.5"}),
    Remedy(
        "task.stages makes later updates cost more",
        f"{TRAIN['next_scale']} budget.images=null budget.seconds=3 "
        "task.stages={_target_:varlab.tasks.ScaleStages,until:0.8,first:0,warmup:0.01}",
        r"give (.*?)\.$",
        {"=F": "=1e7"},
    ),
    Remedy("must be four numbers", f"{EDIT} box=[1]", r"(\[top\S+\])", {"[top,left,bottom,right]": "box=[0,0,1,1]"}),
    Remedy("task=class paints a class", f"{EDIT} box=[0,0,1,1] task=class", r"(label=)\.", {"label=": "label=3"}),
    Remedy("label= takes one class", f"{EDIT} box=[0,0,1,1] label=[3,4]"),
    Remedy(
        "task={config['kind']} is unknown",
        f"{EDIT} box=[0,0,1,1] task=paint",
        r"use (inpaint)",
        {"inpaint": "task=inpaint"},
    ),
    Remedy("where the source lies", "pack source=folder path=classes out=classes", r"(out=)\.", {"out=": "out=made"}),
    Remedy("beside {named(others)}", f"{FOLDER} path=beside", r"with (.*), or"),
    Remedy("beside {named(others)}", f"{FOLDER} path=beside", r"or .*?(source\.split=null)"),
    Remedy("but no train", f"{FOLDER} path=no_train", r"(source\.split\.train=NAME)", {"NAME": "val"}),
    Remedy("but no train", f"{FOLDER} path=no_train", r"set (path=\S+)"),
    Remedy("look like splits", f"{FOLDER} path=seg", r"set (source\S+ source\S+),"),
    Remedy("The only folder of", f"{FOLDER} path=wrapped", r"set (.*)\.$"),
    Remedy("have splits (", f"{FOLDER} path=mixed", r"(source\.split\.skip=NAME)", {"NAME": "dog"}),
    Remedy("have splits (", f"{FOLDER} path=mixed", r"set (source\.split=null)"),
    Remedy("but train has none", f"{FOLDER} path=new_val", r"with (.*)\.$"),
    Remedy("are named for val", "index only_val workers=0", r"(\S+=none)"),
    Remedy("are named for val", "pack source=tars path=only_val source.size=16 workers=0 out=made", r"(\S+=none)"),
    Remedy("too high for a class", "index far workers=0", r"(label=) ", {"label=": "label=none"}),
    Remedy(
        "condition=folder needs",
        "pack condition=folder condition.path=classes workers=0 out=made",
        past="path has no value",
    ),
    Remedy(
        "coordinates need source=photos",
        "pack source=digits condition=coordinates workers=0 out=made",
        r"need (source=photos)",
        {"photos": "photos source.train_crops=2 source.val_crops=2 source.photos=[coins,moon]"},
    ),
    Remedy("holds a run of 'varlab", "pack source=digits out=runs/judge", r"(out=)\.", {"out=": "out=made"}),
    Remedy(
        "holds a run of another configuration",
        "pack source=digits source.size=8 out=runs/data/source=digits",
        r"(out=),",
        {"out=": "out=made"},
    ),
    Remedy("compressed shards (*{ending}) and no *.tar", "index gz workers=0", r"`(.*)`"),
    Remedy("is {what}: unpack it", "index zipped workers=0", r"`(.*)`"),
    Remedy(
        "takes one {positional}",
        "export runs/multi runs/single format=var",
        r"use (varlab .*) for one",
        {"-m": "-m format=vqgan out=made"},
        past="1 of 2 runs failed",
    ),
    Remedy(
        "needs {hint} beside it",
        "pack path=classes workers=0 out=made",
        r"needs (source=\S+) beside",
        {"folder": "folder source.size=16"},
    ),
    Remedy(
        "holds no shards: pack its pictures",
        "train task=classifier data.path=classes budget.images=32 out=run",
        r"`(varlab pack .*)`",
        {"DIR": "made source.size=16 workers=0"},
    ),
    *(
        Remedy(says, f"start classes out=made {word}", past="give a folder with at least")
        for says, word in (
            ("must be a number of at least", "minutes=2"),
            ("must be a whole number of pixels", "size=small"),
            ("is outside {least} to {most} pixels", "size=200"),
            ("have no whole number of tokens: use size=", "size=50"),
        )
    ),
    Remedy("Name what to check", "check", r"(order=)", {"order=": "order=raster"}),
    Remedy(
        "file={config['file']} is unknown",
        "export runs/single format=vqgan file=zip out=made",
        r"use (pth)",
        {"pth": "file=pth"},
    ),
    Remedy("check={check} is unknown", f"{FOLDER} path=classes check=no", r"use (\w+)", {"decode": "check=decode"}),
]


PARENTS = "tokenizer_run=runs/single", "perceptual.run=runs/perceptual"
FEW = "scores.count=20 metrics.splits=2 metrics.draws=2"
GUMBEL = '"tokenizer.gumbel={kl:0.1,temperature:[1,0.1]}"'
RASTER = f"{TRAIN['raster']} tokenizer_run=runs/single"
NEXT = f"{TRAIN['next_scale']} tokenizer_run=runs/multi"
MULTI = f"{TRAIN['multi']} perceptual.run=runs/perceptual"
JUDGE = TRAIN["judge"]
NO_VAL = "data=shards data.path=no_val data.batch=4 data.cache_bytes=0 budget.images=8"
PACK_NO_VAL = f"{FOLDER[:-4]}no_val path=classes source.val_fraction=0"
TOKEN_INPUTS = {"token_inputs": "transformer.token_inputs"}
GENERATOR = shlex.join(["train", *small.GENERATOR])
SHARDS = {"DIR": "runs/data/source=digits"}
SMALL = "budget.images=32 out=made"
ENCODED = "encode runs/single out=tokens device=cpu"
ON_TOKENS = f"{RASTER} data=tokens data.path=tokens data.batch=32 out=on_tokens"
TIED = f"{RASTER} transformer.tied=true transformer.token_inputs=true task.label_drop=0 out=tied"
STAGES = "{_target_: varlab.tasks.ScaleStages, until: 0.5, first: 3, warmup: 0}"
STREAM = (
    "data=stream data.train=runs/data/source=digits/train-000000.tar data.val=runs/data/source=digits/val-000000.tar "
    "data.classes=10 data.size=16 data.train_images=600 data.val_images=64 data.batch=32 data.workers=0 budget.images=32"
)

SLOW = [
    Remedy(
        "compile=true is for GPUs",
        f"{TRAIN['next_scale']} trainer.precision=bf16-mixed trainer.compile=true",
        r"\((\S+=\S+) in a training",
    ),
    Remedy("trains the null class", f"{TIED} task.label_drop=0.1", r"set (task\.\S+)"),
    Remedy("is not below the last of", f'{NEXT} "task.stages={STAGES}"'),
    Remedy("must be height and width in pixels", f"{SAMPLE} size=32"),
    Remedy("Give the length of the training", f"{JUDGE} budget.images=null", r"(budget\.images=N)", {"N": "32"}),
    Remedy("Give the length of the training", f"{JUDGE} budget.images=null", r"(budget\.flops=F)", {"=F": "=1e6"}),
    Remedy(
        "but only one of {', '.join(group)}", f"{JUDGE} budget.flops=1e6", r"leave out (\S+)", {"images": "images="}
    ),
    Remedy("trainer.devices={devices} is neither", f"{JUDGE} trainer.devices=two"),
    Remedy("names GPUs, but trainer.accelerator is cpu", f"{JUDGE} trainer.devices=-1"),
    Remedy("holds a run of another configuration", f"{JUDGE} seed=5 out=runs/judge", r"(out=),", {"out=": "out=made"}),
    Remedy("has trained {reached} images already", f"{JUDGE} out=runs/judge budget.images=32", r"give (\S+=\d+)"),
    Remedy(
        "needs its length in images",
        f"{JUDGE} budget.images=null budget.flops=1e6 from=runs/judge",
        r"give (budget\.images=)",
        {"budget.images=": "budget.images=64"},
        past="leave out",
    ),
    Remedy("needs scores during the training", f"{RASTER} {FEW} checkpoint.best=fid", r"set (scores\.every=\d+)"),
    Remedy("is not known: use one of", f"{RASTER} checkpoint.best=mine", r"in (checkpoint\.best=\S+\})"),
    Remedy("needs validation: set", f"{RASTER} checkpoint.best=nll val.skip=true", r"set (\S+)\."),
    Remedy("checkpoint.keep is {keep}", f"{JUDGE} checkpoint.keep=7", r"in (\S+)\.$"),
    Remedy("has a hold phase already", f"{NEXT} task.schedule.cooldown=16 task.schedule.hold=0.5"),
    Remedy("order=next_scale needs", f"{RASTER} order=next_scale", r"use (\S+),"),
    Remedy("transformer.embed.position=false hides", f"{RASTER} order=random transformer.embed.position=false"),
    Remedy("transformer.token_inputs=true wants", f"{NEXT} transformer.token_inputs=true"),
    Remedy("would see micro-batches", f"{MULTI} discriminator.norm=batch trainer.micro_batch=16", r"set (\S+) "),
    Remedy("A cosine codebook or", f"{MULTI} tokenizer.cosine=true", r"set (.*?);"),
    Remedy("Codes drawn with Gumbel noise", f"{MULTI} {GUMBEL}", r"set (.*?), or"),
    Remedy("Codes drawn with Gumbel noise", f"{MULTI} {GUMBEL}", r"or (tokenizer.gumbel=null)"),
    Remedy("holds no val images to validate with", f"{JUDGE} {NO_VAL}", r"add (val\.skip=true)"),
    Remedy("holds no val images to reconstruct", f"{MULTI} {NO_VAL} val.skip=true scores.every=8"),
    Remedy("are of one class", f"{JUDGE} {NO_VAL} val.skip=true data.path=alone", r"with (task=\w+)"),
    Remedy("holds images of various sizes", f"{JUDGE} {NO_VAL} val.skip=true data.path=any_size", r"(data\.size=\d+)"),
    Remedy("data.view={view} is unknown", f"{JUDGE} data.view=x", r"use (image)", {"image": "data.view=image"}),
    Remedy(
        "leave it out and use task.clip",
        f"{MULTI} trainer.gradient_clip_val=1.0",
        r"(leave it out and use .*)\.",
        {"leave it out and use": "trainer.gradient_clip_val="},
    ),
    Remedy("needs a model with a null class", "sample tied n=2 grown=1 cfg=1 out=made", r"(cfg=0)", before=(TIED,)),
    Remedy("smooth=true mixes codes", "sample tied n=2 grown=1 cfg=0 smooth=true out=made", before=(TIED,)),
    Remedy(
        "by the table of the", f"{RASTER} transformer.tied=true task.label_drop=0", r"(token_inputs=true)", TOKEN_INPUTS
    ),
    Remedy(
        "holds no {TOKENS}",
        f"{ON_TOKENS} data.path=later",
        r"`(.*)`",
        {"runs/tokenizer": "runs/single device=cpu"},
    ),
    Remedy(
        "was trained on a stream",
        "encode streamed device=cpu out=made",
        r"give (data=shards .*)\.$",
        SHARDS,
        before=(f"{TRAIN['single']} perceptual.run=runs/perceptual {STREAM} out=streamed",),
    ),
    Remedy(
        "holds no conditions: train with",
        f"{ON_TOKENS} condition=coordinates",
        r"\((data=shards)\)",
        {"data=shards": "condition= data=shards data.path=runs/data/source=digits"},
        before=(ENCODED,),
    ),
    Remedy(
        "with which scores compare",
        "evaluate runs/raster extractor.run=runs/judge n=16 data=shards data.path=no_val",
        r"give (.*) of some",
        SHARDS,
        before=(PACK_NO_VAL,),
    ),
    Remedy(
        "cut them to that size",
        "evaluate runs/multi extractor.run=runs/judge data=shards data.path=large",
        r"with (.*)\.$",
        before=("pack source=folder path=classes source.size=32 workers=0 out=large",),
        past="knows 10 classes, large has 2",
    ),
    Remedy(
        "knows {len(classes)} classes",
        f"{GENERATOR} {SMALL} order=raster init=runs/raster data=shards data.path=two data.batch=4",
        r"\((init=null .*)\)",
        before=(f"{FOLDER[:-4]}two path=classes",),
    ),
    Remedy(
        "encode_once=true cannot be kept",
        f"{GENERATOR} {SMALL} order=raster tokenizer_run=runs/single encode_once=true data.augment.crop=1.125",
    ),
    Remedy(
        "No finished tokenizer trained on",
        f"{GENERATOR} {SMALL} order=raster data=shards data.path=two data.batch=4",
        r"with (tokenizer_run=DIR)",
        {"DIR": "runs/single"},
        before=(f"{FOLDER[:-4]}two path=classes",),
    ),
    Remedy(
        "Training diverged",
        f"{JUDGE} task.optimizer.lr=1e30 out=made",
        r"in another (out=)",
        {"out=": "task.optimizer.lr=1e-3 out=later"},
    ),
    Remedy(
        "shards a generator's transformer",
        f"{JUDGE} trainer=fsdp trainer.accelerator=cpu trainer.devices=2",
        r"use (trainer=ddp)",
    ),
    Remedy(
        "This condition is for packing",
        f"{RASTER} condition=edges",
        r"with (condition=\S+)",
        past="No finished tokenizer of the conditions",
    ),
    Remedy(
        "needs shards with conditions",
        f"{RASTER} condition=spatial condition.tokenizer_run=runs/single",
        r"\(varlab (pack .*?)\)",
        {"pack": "varlab pack source=digits out=made"},
    ),
    Remedy(
        "store the place of each image",
        f"{RASTER} condition=coordinates",
        r"with (varlab .*?)\.$",
        {
            "coordinates": "coordinates source.train_crops=2 source.val_crops=2 source.photos=[coins,moon] workers=0 out=made"
        },
    ),
    Remedy("holds no conditions to view", f"{MULTI} data.view=condition", r"\((.*)\)", {"edges": "edges out=edges"}),
]


def follow(line: str, remedy: str, asked: Remedy) -> list[str] | None:
    """The command line with the remedy; None if the remedy was a shell's own command, which has run."""
    for placeholder, value in asked.fill.items():
        remedy = remedy.replace(placeholder, value)
    if remedy.startswith(("mv ", "find ")):
        subprocess.run(remedy, shell=True, check=True)
        return shlex.split(line)
    if remedy.startswith("varlab "):
        return shlex.split(remedy)[1:]
    words = shlex.split(line)
    for new in shlex.split(remedy):
        key, _, value = new.partition("=")
        words = [word for word in words if not word.startswith(f"{key}=")] + ([new] if value else [])
    return words


def template(says: str) -> str:
    """A pattern of the sentence of which this is a part."""
    return ".*".join(map(re.escape, re.split(r"\{.*?\}", says)))


def check(asked: Remedy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(asked.line)) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(template(asked.says), said), said
    taken = re.search(asked.take, said)
    assert taken, said
    code = main(follow(asked.line, taken[1], asked))
    then = capsys.readouterr().err
    assert asked.past in then if asked.past else code == 0, f"{said}\n{taken[1]}\n{then}"
    assert not re.search(template(asked.says), then), then


@pytest.mark.parametrize("asked", FAST, ids=lambda asked: asked.says[:30])
def test_a_remedy_that_is_followed_works(asked: Remedy, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(asked, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("asked", SLOW, ids=lambda asked: asked.says[:30])
def test_a_slow_remedy_works(asked: Remedy, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = {"no_val": ("classes", "16"), "alone": ("classes/cat", "16"), "any_size": ("sizes", "null")}
    for name, (path, size) in packed.items():
        if f"data.path={name}" in asked.line:
            line = f"pack source=folder path={path} source.size={size} source.val_fraction=0 workers=0 out={name}"
            assert main(line.split()) == 0
    for line in asked.before:
        assert main(shlex.split(line)) == 0, line
    capsys.readouterr()
    check(asked, capsys)


# -- none is left out --------------------------------------------------------------------------------------------------------

NOT_FOLLOWED = {
    "needs an official checkpoint of other sizes": [
        "it is not a tokenizer of this format",
        "cannot be inferred from its tensors",
        "give heads=",
        "give scales=",
        "give other scales=",
        "leave classes= out",
        "Give the tokenizer's checkpoint",
        "labels would be permuted",
    ],
    "needs weights that are downloaded": [
        "is damaged, or another file",
        "The DINO discriminator needs",
        "LPIPS needs images",
        "Could not download",
    ],
    "needs several processes or Slurm": [
        "needs a process started on every node",
        "Slurm cannot use",
        "Slurm refuses the jobs",
        "Pictures are made by one process",
    ],
    "needs a hostile record, as tests/cli/test_hostile_run.py has": [
        "{source} holds {what}",
        "would run {",
    ],
    "needs files that changed or are held meanwhile": [
        "is in use by another process",
        "holds other images than when",
        "have changed since",
        "is a checkpoint of another configuration",
    ],
    "needs other data than the small sets here": [
        "no shards to find a judge by",
        "has no images in the split",
        "was trained on tokens",
        "are streamed and have no numbers",
        "was not trained on shards",
        "random samples in a row are bad",
        "repair it (`varlab index DIR check=true`",
    ],
    "needs a run with a condition; tests/cli/test_condition.py has some of these refusals": [
        "is made for images of the trained size",
        "size= with a spatial condition",
    ],
    "is what Python says where no command line comes to": [
        "holds a run of another length",
        "reads varlab's data through TrainerData",
    ],
    "names the numbers that fit": ["is a fraction, first="],
    "needs a varlab start that ran before; tests/start has some": [
        "is not what varlab start writes",
        "was started with {key}=",
    ],
    "needs pictures of a size that no small set here has": ["have no whole number of tokens of"],
    "needs a model that no small run is": [
        "no operation of this model can be counted",
        "A sliding window only samples",
    ],
}


def sentences() -> Iterator[str]:
    """The texts of VarlabErrors whose last part names a key to set, as the source writes them."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "VarlabError" and node.args:
                text = node.args[0]
                parts = text.values if isinstance(text, ast.JoinedStr) else [text]
                literal = "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in parts)
                _, *remedy = re.split(r"(?:: |; |\. )(?=[A-Za-z])", literal, maxsplit=1)
                if remedy and re.search(r"[a-z_]\w*=", remedy[0]):
                    yield "".join(
                        part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
                        for part in parts
                    )


def test_every_remedy_is_followed_or_has_a_reason_not_to() -> None:
    followed = [asked.says for asked in (*FAST, *SLOW)]
    known = [*followed, *(says for group in NOT_FOLLOWED.values() for says in group)]
    every = list(sentences())
    assert len(every) > 60
    assert [text for text in every if not any(says in text for says in known)] == []
    assert [says for says in known if says not in followed and not any(says in text for text in every)] == []
