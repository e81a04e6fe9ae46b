"""Shared by all rooms: few threads, seeded hypothesis, and a torch that leaves one core to the other test process."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported, so before anything else here

from hypothesis import HealthCheck, settings

# Bit-exact laws need inputs that come back: examples are derived from each test's name, not from the clock.
settings.register_profile(
    "varlab", deadline=None, derandomize=True, max_examples=30, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("varlab")
