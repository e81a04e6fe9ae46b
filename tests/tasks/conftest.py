"""Makes ``tiny_tasks`` importable, for the tests and for the processes they start."""

import sys
from pathlib import Path

import varlab  # noqa: F401  before lightning, which needs its torchvision shim

sys.path.insert(0, str(Path(__file__).parent))
