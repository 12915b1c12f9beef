"""Run by `make vllm`, in an environment of its own: the sampler that asks a real vLLM, against the reference."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))  # runs.py
