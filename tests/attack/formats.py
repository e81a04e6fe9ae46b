"""Every format that is attacked."""

from __future__ import annotations

from tests.attack import directories, runs, servers, shards

__all__ = ["FORMATS"]

FORMATS = (*shards.FORMATS, *runs.FORMATS, *servers.FORMATS, *directories.FORMATS)
