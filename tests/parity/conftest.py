"""Run by `make parity`, in an environment of its own: what the peers compute, on the same tensors as ours."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # helpers.py
