"""``varlab import`` and ``varlab export``: there and back, and what is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import varlab
from tests import small
from tests.parity.imported import FORMAT, IMPORTS, golden
from varlab.checkpoint.formats import read_state
from varlab.cli.main import main
from varlab.types import VarlabError

FAST = ("var_A", "taming_gpt", "llamagen_gpt")
"""One of each format; the others are as long: ``make test-slow``."""


def states(name: str) -> dict[str, dict[str, Tensor]]:
    _, tokenizer, transformer, _ = IMPORTS[name]
    roles = {"tokenizer": tokenizer, "transformer": transformer}
    return {role: golden(name).state(state) for role, state in roles.items() if state is not None}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *((name, "pth") if name in FAST else pytest.param(name, "pth", marks=pytest.mark.slow) for name in IMPORTS),
        ("var_A", "safetensors"),
        ("llamagen", "safetensors"),
    ],
)
def test_there_and_back(name: str, suffix: str, imported, tmp_path: Path) -> None:
    """import → export gives the same names and tensors; import → export → import the same run."""
    run, kind = imported(name), FORMAT[IMPORTS[name][0]]
    assert main(["export", str(run), f"format={kind}", f"file={suffix}", f"out={tmp_path / 'out'}"]) == 0
    files = []
    for role, official in states(name).items():
        file = tmp_path / "out" / f"{role}.{suffix}"
        written = read_state(file)
        assert written.keys() == official.keys()
        assert all(torch.equal(written[key], value) for key, value in official.items())
        files.append(f"{role}={file}")
    assert main(["import", f"format={kind}", *files, *IMPORTS[name][3], f"out={tmp_path / 'again'}"]) == 0
    for weights in sorted(file.name for file in run.glob("*.safetensors")):
        before, after = load_file(run / weights), load_file(tmp_path / "again" / weights)
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_what_was_trained_here_goes_out_and_comes_back(lab: Path, tmp_path: Path) -> None:
    assert main(["export", str(lab / "next_scale"), "format=var", f"out={tmp_path / 'out'}"]) == 0
    scales = varlab.load(lab / "next_scale").tokenizer.scales
    asked = [f"{role}={tmp_path / 'out' / role}.pth" for role in ("tokenizer", "transformer")]
    asked += ["groups=4", f"scales={[list(scale) for scale in scales]}".replace(" ", "")]
    assert main(["import", "format=var", *asked, f"out={tmp_path / 'back'}"]) == 0
    ours, theirs = varlab.load(lab / "next_scale"), varlab.load(tmp_path / "back")
    assert torch.equal(ours.sample([1, 2], seed=3), theirs.sample([1, 2], seed=3, cfg=0.0, top_k=0, top_p=1.0))


def test_every_command_works_on_an_import(lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """evaluate, encode and edit, on shards that are named, with classes' names from them."""
    assert main(["export", str(lab / "next_scale"), "format=var", f"out={tmp_path / 'out'}"]) == 0
    files = [f"{role}={tmp_path / 'out' / role}.pth" for role in ("tokenizer", "transformer")]
    with small.inside(lab.parent):
        shards = Path("runs/data/source=digits").resolve()
        asked = [*files, "scales=[[1,1],[2,2],[3,3],[4,4]]", "groups=4", f"classes={shards}"]
        assert main(["import", "format=var", *asked, f"out={tmp_path / 'run'}"]) == 0
        data = ["data=digits", f"data.path={shards}"]
        assert main(["evaluate", str(tmp_path / "run"), f"out={tmp_path / 'no'}"]) == 1
        assert "give data=folder" in capsys.readouterr().err
        judge = f"extractor.run={lab / 'judge'}"
        assert main(["evaluate", str(tmp_path / "run"), *data, judge, "n=20", f"out={tmp_path / 'scores'}"]) == 0
        assert main(["encode", str(tmp_path / "run"), *data, f"out={tmp_path / 'tokens'}"]) == 0
        picture = lab / "next_scale" / "pictures" / "samples.png"
        picture = next((lab / "next_scale").rglob("*.png"), picture)
        asked = [f"image={picture}", "box=[0,0,1,1]", "n=1", f"out={tmp_path / 'edit'}"]
        assert main(["edit", str(tmp_path / "run"), *asked]) == 0


def test_what_a_format_cannot_hold_is_said(lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, name, says in (
        ("next_scale", "llamagen", "several scales"),
        ("raster", "var", "has no φ"),
        ("single", "llamagen", "cosine"),
    ):
        assert main(["export", str(lab / run), f"format={name}", f"out={tmp_path / run / name}"]) == 1
        assert says in capsys.readouterr().err


def test_an_imported_run_is_a_run(imported, tmp_path: Path) -> None:
    """Sampling, growth, and the record."""
    run = imported("var_A")
    assert main(["sample", str(run), "n=4", "cfg=0", "top_k=5", f"out={tmp_path / 'samples'}"]) == 0
    assert (tmp_path / "samples" / "pictures" / "samples.png").exists()
    model = varlab.load(run)
    assert model.encode(model.sample([0, 1], seed=1))[0].shape == (2, 1)


def one_file(tmp_path: Path, change, name: str = "var_A", role: str = "transformer") -> tuple[int, Path]:
    """Import with one of the files changed."""
    asked = []
    for key, state in states(name).items():
        path = tmp_path / f"{key}.pth"
        torch.save(change(dict(state)) if key == role else state, path)
        asked.append(f"{key}={path}")
    kind = FORMAT[IMPORTS[name][0]]
    return main(["import", f"format={kind}", *asked, *IMPORTS[name][3], f"out={tmp_path / 'run'}"]), tmp_path / "run"


def without(key: str):
    return lambda state: {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("name", "role", "change", "says"),
    [
        ("var_A", "transformer", without("blocks.1.ffn.fc1.bias"), "no tensor 'blocks.1.ffn.fc1.bias'"),
        ("var_A", "transformer", lambda s: s | {"blocks.2.ln1.bias": torch.ones(1)}, "blocks.2."),
        ("var_A", "transformer", lambda s: s | {"surplus": torch.ones(1)}, "'surplus' that has no place"),
        ("var_A", "transformer", lambda s: s | {"head.weight": torch.ones(3, 3)}, "'head.weight' (3, 3)"),
        ("var_A", "tokenizer", without("decoder.mid.block_1.conv1.bias"), "no tensor 'decoder.mid.block_1.conv1.bias'"),
        ("var_A", "tokenizer", without("encoder.conv_in.weight"), "not a tokenizer of this format"),
        ("var_A", "tokenizer", lambda s: s | {"post_quant_conv.bias": torch.ones(7)}, "'post_quant_conv.bias' (7,)"),
        ("taming_gpt", "transformer", without("pos_emb"), "no tensor 'pos_emb'"),
        ("taming_gpt", "transformer", lambda s: s | {"pos_emb": s["pos_emb"][:, :5]}, "too few"),
        ("llamagen_gqa", "transformer", lambda s: s | {"layers.0.attention.wqkv.weight": torch.ones(70, 64)}, "heads="),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(name: str, role: str, change, says: str, tmp_path, capsys) -> None:
    code, run = one_file(tmp_path, change, name, role)
    assert code == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in said
    assert not (run / "weights.safetensors").exists()


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_truncated_file_is_named(keep: float, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"tokenizer.{suffix}"
    tensors = {"a": torch.arange(1000.0)}
    if suffix == "pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(VarlabError, match=r"tokenizer\.(pth|safetensors) cannot be read as a checkpoint"):
        read_state(path)


class Code:
    """What a malicious checkpoint carries."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


class Evaluated(Code):
    def __reduce__(self) -> Any:
        return eval, (f"open({str(self.target)!r}, 'w')",)


@pytest.mark.parametrize("kind", [Code, Evaluated])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_never_runs(kind: type, zipped: bool, tmp_path: Path) -> None:
    path, target = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"state_dict": {"a": torch.ones(1)}, "x": kind(target)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(VarlabError, match=r"evil\.pth holds code"):
        read_state(path)
    path.write_bytes(pickle.dumps(kind(target)))
    with pytest.raises(VarlabError, match=r"evil\.pth"):
        read_state(path)
    assert not target.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_classes_of_a_trainer_are_never_imported(zipped: bool, tmp_path: Path) -> None:
    """As Lightning leaves them: as keys, as instances with a state, and subclasses of dict."""
    import sys
    import types

    module = types.ModuleType("pytorch_lightning_of_old")

    class ModelCheckpoint:
        pass

    class AttributeDict(dict):
        pass

    for made in (ModelCheckpoint, AttributeDict):
        made.__module__, made.__qualname__ = module.__name__, made.__name__
        setattr(module, made.__name__, made)
    sys.modules[module.__name__] = module
    path = tmp_path / "last.ckpt"
    instance = ModelCheckpoint()
    instance.best = 3.0
    content = {
        "callbacks": {ModelCheckpoint: {"best": 1.0}},
        "hyper_parameters": AttributeDict(lr=1e-4),
        "one": instance,
    }
    torch.save(content | {"state_dict": {"a": torch.arange(3)}}, path, _use_new_zipfile_serialization=zipped)
    del sys.modules[module.__name__]
    assert torch.equal(read_state(path)["a"], torch.arange(3))
    assert module.__name__ not in sys.modules


def test_extras_of_official_files_are_known(tmp_path: Path) -> None:
    """A VQGAN's loss and masks; both models in one file; VAR's trainer's file."""
    vqgan, gpt = states("taming_gpt")["tokenizer"], states("taming_gpt")["transformer"]
    mask = torch.ones(18, 18).tril()
    mask[:4, :4] = 1
    whole = {
        f"first_stage_model.{k}": v for k, v in (vqgan | {"loss.discriminator.main.0.bias": torch.ones(1)}).items()
    }
    whole |= {f"transformer.{k}": v for k, v in gpt.items()}
    whole |= {f"transformer.blocks.{i}.attn.mask": mask[None, None] for i in range(2)}
    torch.save({"state_dict": whole, "epoch": 3}, tmp_path / "net2net.ckpt")
    asked = ["format=vqgan", f"transformer={tmp_path / 'net2net.ckpt'}", "scales=[[1,17]]", "heads=2"]
    assert main(["import", *asked, f"out={tmp_path / 'a'}"]) == 0
    model = varlab.load(tmp_path / "a")
    assert model.transformer is not None and model.transformer.unmasked == 4
    assert main(["export", str(tmp_path / "a"), "format=vqgan", f"out={tmp_path / 'b'}"]) == 0
    assert torch.equal(read_state(tmp_path / "b" / "transformer.pth")["blocks.0.attn.mask"], mask[None, None])
    var = states("var_A")
    both = {"trainer": {"vae_local": var["tokenizer"], "var_wo_ddp": var["transformer"]}, "epoch": 1}
    torch.save(both, tmp_path / "ar-ckpt-best.pth")
    asked = [f"{role}={tmp_path / 'ar-ckpt-best.pth'}" for role in var]
    assert main(["import", "format=var", *asked, f"out={tmp_path / 'c'}"]) == 0


def test_options_and_their_official_values(imported, tmp_path: Path) -> None:
    files = imported("var_A").parent
    asked = [f"tokenizer={files / 'tokenizer.pth'}", "scales=[[1,1],[2,2],[3,3],[4,4]]"]
    assert main(["import", "format=var", *asked, "code_norm=true", f"out={tmp_path / 'a'}"]) == 0
    assert varlab.load(tmp_path / "a").tokenizer.quantizer.codebook.normalise
    assert main(["import", "format=var", f"tokenizer={files / 'tokenizer.pth'}", f"out={tmp_path / 'b'}"]) == 1
