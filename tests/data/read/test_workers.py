"""Workers start apart from a rank's threads, and signals that are sent to every process do not reach them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from varlab.data.pack.packer import pack

RANK = """
import os, signal, sys
from contextlib import closing
from pathlib import Path

import torch

from tests.data.conftest import _module
from varlab.launch.environment import start_workers_apart


def below(pid):
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [grandchild for child in children for grandchild in below(child)]


if __name__ == "__main__":
    if sys.argv[2] == "apart":
        start_workers_apart()
    alone, spread = (_module(Path(sys.argv[1]), workers=n).train_loader(0, 80, 0, 1) for n in (0, 2))
    with closing(iter(spread)) as batches:
        for a, b, number in zip(alone, batches, (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, *[0] * 7)):
            assert torch.equal(a.img_u8_B3HW, b.img_u8_B3HW) and torch.equal(a.position_B, b.position_B)
            names = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in below(os.getpid())}
            for pid, name in names.items():
                if "resource_tracker" not in name:
                    os.kill(pid, number)
                    print("server" if "forkserver" in name else "fork")
"""


@pytest.mark.parametrize("way", ["forked", "apart"])
def test_signals_to_every_process_do_not_reach_workers(make_images: Any, tmp_path: Path, way: str) -> None:
    pack(make_images(train=30, val=2), tmp_path / "set", shard_size=10)
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "set", way],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    apart = way == "apart" and sys.version_info < (3, 11, 10)
    assert set(done.stdout.split()) == {"server" if apart else "fork"}
