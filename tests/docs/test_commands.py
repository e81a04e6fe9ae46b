"""Every command of the README, of docs/ and of the studies fits varlab: its keys, options, targets and scripts exist."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from varlab.cli.command_table import COMMANDS
from varlab.cli.main import main
from varlab.config import conf_dir

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("experiments/*/README.md"))]
MAKEFILE = (ROOT / "Makefile").read_text()
OTHERS = {"cd", "git", "source", "tensorboard", "srun", "open", "xdg-open", "export", "apt-get", "brew", "curl"}
"""Programs that are not varlab's."""
FILE = re.compile(r"\.(jsonl?|safetensors|py|yaml|ckpt|npy|csv|html|png|log)$")


def commands(text: str) -> Iterator[str]:
    """The lines of a page's code blocks, with their variables, and ``varlab …`` and ``make …`` in its sentences."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.M | re.S)
    shell = [block.replace("\\\n", " ") for language, block in blocks if language in ("", "bash", "sh")]
    lines = [line for block in shell for line in block.split("\n")]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    variables: dict[str, str] = {}
    for line in lines + [" ".join(span.split()) for span in re.findall(r"`((?:varlab|make) [^`]+)`", prose)]:
        if assigned := re.fullmatch(r"(\w+)=\"?([^\"]*)\"?", line):
            variables[assigned[1]] = assigned[2]
        elif line.strip() and not line.startswith("#"):
            yield re.sub(r"\$\{?(\w+)\}?", lambda name: variables.get(name[1], name[0]), line)


def jobs(arguments: list[str]) -> Iterator[list[str]]:
    """The arguments without ``…`` and, of a sweep, with one value of each key at a time."""
    words = [word.replace("…", "1") for word in arguments if not re.fullmatch(r"(\w+=)?…", word)]
    if "-m" not in words:
        yield words
        return
    values = [re.split(r",(?![^\[{(]*[\]})])", word.partition("=")[2]) for word in words]
    for i in range(max(map(len, values))):
        pairs = zip(words, values, strict=True)
        yield [f"{w.partition('=')[0]}={v[i % len(v)]}" if len(v) > 1 else w for w, v in pairs if w != "-m"]


def check(command: str) -> None:
    """Raises AssertionError for a command that cannot run."""
    words = shlex.split(re.sub(r"\$\([^)]*\)", "runs/a,runs/b", command), comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    program, *arguments = words
    if program == "varlab" and arguments[0] in COMMANDS:
        for job in jobs(arguments[1:]):
            assert main([arguments[0], *job, "--help"]) == 0, command
    elif program == "varlab":
        assert main(arguments) == 0, command
    elif program == "make":
        targets = {word for word in arguments if "=" not in word}
        assert targets <= set(re.findall(r"^([a-z-]+):.*##", MAKEFILE, flags=re.M)), command
    elif program in ("bash", "python"):
        script = arguments[1] if arguments[0] == "-m" else arguments[0]
        assert find_spec(script) if arguments[0] == "-m" else (ROOT / script).is_file(), command
    elif program == "pip":
        wanted = {extra for found in re.findall(r"\[(.*?)\]", command) for extra in found.split(",")}
        assert wanted <= set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.M)), command
    else:
        assert program in OTHERS, command


def all_commands() -> list[object]:
    found = {c: page for page in reversed(PAGES) for c in commands(page.read_text())}
    found |= {command.example: ROOT / "varlab" for command in COMMANDS.values()}
    return [pytest.param(c, id=f"{page.relative_to(ROOT)}: {c.partition('#')[0].strip()}") for c, page in found.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder of the commands: it has the files of ``my_conf/`` that the pages show."""
    folder, before = tmp_path_factory.mktemp("pages"), Path.cwd()
    for page in PAGES:
        for text in re.findall(r"^```(?:python|yaml)\n(.*?)^```$", page.read_text(), flags=re.M | re.S):
            if named := re.search(r"^# (my_conf/\S+)$", text, flags=re.M):
                (folder / named[1]).parent.mkdir(parents=True, exist_ok=True)
                (folder / named[1]).write_text(text)
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.mark.parametrize("command", all_commands())
def test_command_fits(command: str, folder: Path) -> None:
    check(command)


@pytest.mark.parametrize(
    "wrong",
    [
        "varlab train … budget.image=3",
        "varlab train -m order=raster,rsater seed=0,1",
        "varlab trian task=tokenizer",
        "make dmeo",
        "bash experiments/nothing/run.sh",
        "pip install 'varlab[slrum]'",
        "vralab train",
    ],
)
def test_a_wrong_command_is_noticed(wrong: str, folder: Path) -> None:
    with pytest.raises(AssertionError):
        check(wrong)


def test_commands_are_found() -> None:
    shell = '```bash\nd="a=1 b=2"\nvarlab train \\\n  $d # so\n\n# or\nmake test\n```\n'
    text = f"Try `varlab check\nx`.\n{shell}```python\nmake = 1\n```\n"
    assert [" ".join(c.split()) for c in commands(text)] == ["varlab train a=1 b=2 # so", "make test", "varlab check x"]
    assert list(jobs(["-m", "a=1,2", "b=[1,2]", "…", "c.d=…"])) == [
        ["a=1", "b=[1,2]", "c.d=1"],
        ["a=2", "b=[1,2]", "c.d=1"],
    ]


def test_the_first_run_types_what_the_demo_types() -> None:
    """All but running two commands at a time."""
    script = (ROOT / "experiments" / "demo" / "run.sh").read_text().replace("\\\n", " ").replace("$out", "runs/demo")
    page = (ROOT / "docs" / "first-run.md").read_text().partition("## The demo")[2].partition("## Look at it")[0]
    typed, ran = ([shlex.split(line) for line in re.findall(r"^varlab [^&\n]*", text, re.M)] for text in (page, script))
    assert typed == [[word for word in words if word != "launch=joblib"] for words in ran] and len(typed) == 8


def known_keys() -> set[str]:
    """The dotted keys of all files of conf/, placed as Hydra places them."""
    keys: set[str] = set()
    for file in conf_dir().rglob("*.yaml"):
        text, group = file.read_text(), file.relative_to(conf_dir()).parent.as_posix()
        root = yaml.compose(text)
        places = [""] if group == "." or text.startswith("# @package _global_") else [f"{group}."]
        keys |= {f"{place}{key}" for place in places for key in nodes(root)}
    return keys


def nodes(node: yaml.Node | None, prefix: str = "") -> Iterator[str]:
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        yield f"{prefix}{key.value}"
        yield from nodes(value, f"{prefix}{key.value}.")


def test_keys_in_sentences_exist() -> None:
    known = known_keys()
    tops = {key.partition(".")[0] for key in known if "." in key} - {"trainer"}  # which takes any key
    wrong = {
        (page.name, key)
        for page in PAGES
        for key in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:=[^`]*)?`", page.read_text())
        if key.partition(".")[0] in tops and key not in known and not FILE.search(key)
    }
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]
