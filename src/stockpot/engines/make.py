"""The engine that a configuration names."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from stockpot.algorithms import LUFFY, ExGRPO
from stockpot.checkpoints import Checkpoint
from stockpot.config import Config
from stockpot.engines.base import Engine
from stockpot.engines.local import LocalEngine
from stockpot.prefixes import LiveRule
from stockpot.samplers.vllm_process import MISSING
from stockpot.types import StockpotError


def ready(config: Config) -> None:
    """Find what does not go together before anything is built or taught."""
    if config.engine == "local":
        for name, plain in (("learners", 1), ("samplers", 1), ("reward_workers", 0), ("ahead", 0)):
            if getattr(config, name) != plain:
                raise StockpotError(
                    f"{name} is {getattr(config, name)}, but the local engine is one process: add --engine ray."
                )
        return
    if find_spec("ray") is None:
        raise StockpotError('--engine ray needs Ray: `pip install "stockpot[ray]"`.')
    if config.sampler == "vllm" and find_spec("vllm") is None:
        raise StockpotError(MISSING)
    if not config.ahead:
        return
    if isinstance(config.prefixes, LiveRule):
        raise StockpotError(
            "with ahead, prefixes are chosen before their step, but snapshots write them in it: set ahead to 0 or take "
            "prefixes from the history."
        )
    if isinstance(config.algorithm, (LUFFY, ExGRPO)):
        raise StockpotError(
            f"{type(config.algorithm).__name__} knows the live policy's tokens by their age 0, which those of samplers "
            "that run ahead have not: ahead must be 0."
        )


def engine(config: Config, run: str, origin: str, last: Checkpoint | None, scratch: Path) -> Engine:
    """The engine of a run, its policy from that checkpoint, or from `origin` where there is none yet."""
    weights, version = (str(last.folder), last.step) if last else (origin, 0)
    if config.engine == "local":
        return LocalEngine(config, run, weights, origin, version, scratch)
    from stockpot.engines.ray.engine import RayEngine

    return RayEngine(config, run, weights, origin, version, scratch)
