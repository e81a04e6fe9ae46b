"""The free memory is never more than a limit of the process leaves: its own control group's, or that of one around it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varlab.recipe.trainer import free_memory

KIB = st.integers(0, 1 << 30)


def group(folder: Path, limit: int | None, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text("max\n" if limit is None else f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\ninactive_file {cached}\n")


@given(
    available=KIB,
    limits=st.lists(st.tuples(st.none() | KIB, KIB, KIB), min_size=3, max_size=3),
    depth=st.integers(0, 2),
)
def test_the_narrowest_limit_counts(
    available: int, limits: list[tuple[int | None, int, int]], depth: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("system")
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {available} kB\n")
    places = [tmp_path / "groups", tmp_path / "groups" / "slurm", tmp_path / "groups" / "slurm" / "job"]
    for place, values in zip(places, limits, strict=True):
        group(place, *values)
    own = places[depth].relative_to(places[0])
    (tmp_path / "cgroup").write_text(f"4:memory:/elsewhere\n0::/{'' if depth == 0 else own}\n")
    left = [limit - used + cached for limit, used, cached in limits[: depth + 1] if limit is not None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(free_memory, "_MEMINFO", tmp_path / "meminfo")
        patch.setattr(free_memory, "_CGROUP", tmp_path / "cgroup")
        patch.setattr(free_memory, "_CGROUPS", tmp_path / "groups")
        assert free_memory.host_free_bytes() == max(min([1024 * available, *left]), 0)


def test_a_system_without_these_files_has_all_of_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = free_memory.host_free_bytes()
    for name in ("_MEMINFO", "_CGROUP", "_CGROUPS"):
        monkeypatch.setattr(free_memory, name, tmp_path / "none")
    assert 0 < here <= free_memory.host_free_bytes()
