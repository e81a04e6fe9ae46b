"""The one type of configurations and records: what YAML and JSON files hold."""

from __future__ import annotations

from typing import Any, TypeAlias

Config: TypeAlias = dict[str, Any]
"""A resolved configuration, or a part of ``run.json``: keys are strings, values are JSON types."""
