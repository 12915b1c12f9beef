"""Ray itself: started or found, actors placed in it, its errors in our words, and nothing left of it in the end."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import exceptions

from stockpot.as_json import to_json
from stockpot.config import Config
from stockpot.engines.base import Lost
from stockpot.types import StockpotError

STORE = 256 * 2**20
"""Bytes of Ray's object store beside a few copies of the weights."""
Died = (exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.NodeDiedError)
"""What Ray says when an actor, or the machine under it, is gone."""


@dataclass(frozen=True, slots=True)
class Brief:
    """What every actor is told: the configuration, and where paths in it start."""

    config: dict[str, Any]
    run: str
    origin: str
    home: str


def whole_path(name: str) -> str:
    """A folder's name from anywhere; the id of a model on the hub as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


class Session:
    """A Ray that is there, or one of our own with as many slots as there are actors."""

    def __init__(self, config: Config, run: str, weights: str, origin: str) -> None:
        self.config, self.folder = config, ""
        self.brief = Brief(to_json(config), run, whole_path(origin), os.getcwd())
        self.own = not ray.is_initialized()
        self.actors: list[Any] = []
        need = 1 + config.threads * (config.learners + config.samplers + config.reward_workers)
        if self.own:
            self._start(need, Path(weights))
        have = ray.cluster_resources()
        if have.get("CPU", 0) < need:
            told = (
                f"it has {have.get('CPU', 0):.0f} CPUs, but learners, samplers, reward workers and history take {need}"
            )
            self.close()
            raise StockpotError(f"the Ray cluster is too small: {told}; ask for fewer of them.")
        wish = config.device == "cuda" or (config.device == "auto" and have.get("GPU", 0) > 0)
        self.gpus = min(1.0, have.get("GPU", 0) / (config.learners + config.samplers)) if wish else 0.0

    def _start(self, need: int, weights: Path) -> None:
        """Join the cluster that RAY_ADDRESS names, or start one on this machine that ends with this process."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of a change to come
        os.environ.setdefault("RAY_worker_niceness", "0")  # else anything else on the machine goes before our actors
        options: dict[str, Any] = {"namespace": "stockpot", "log_to_driver": False, "logging_level": logging.CRITICAL}
        address = os.environ.get("RAY_ADDRESS", "")
        if not address:
            sizes = [file.stat().st_size for file in weights.glob("*.safetensors")] if weights.is_dir() else []
            place = tempfile.gettempdir()
            self.folder = tempfile.mkdtemp(prefix="stockpot-", dir=place if len(place) < 30 else "/tmp")  # for sockets
            os.environ.setdefault("OMP_NUM_THREADS", str(self.config.threads))
            options |= {"num_cpus": need, "include_dashboard": False, "_temp_dir": self.folder}
            options |= {"object_store_memory": STORE + 4 * sum(sizes)}
        try:
            ray.init(**({"address": address} if address else {}), **options)
        except Exception as error:
            self.close()
            why = " ".join(str(error).split())[:300]
            where = f"join the Ray at {address}" if address else "start Ray"
            raise StockpotError(f"cannot {where} ({why}); see that it runs, or take --engine local.") from error
        with suppress(ImportError, AttributeError):  # deaths of actors are told in our own words
            from ray._private import worker

            worker.print_to_stdstream = lambda *_, **__: None

    def spawn(self, kind: type, *args: Any, cpus: int, restarts: int = -1, threads: int = 1, gpu: bool = False) -> Any:
        """A new actor of that class; Ray restarts it that many times, -1 for always."""
        made = ray.remote(kind).options(
            num_cpus=cpus,
            num_gpus=self.gpus if gpu else 0,
            max_restarts=restarts,
            max_concurrency=threads,
        )
        actor = made.remote(self.brief, *args)
        self.actors.append(actor)
        return actor

    def kill(self, actor: Any) -> None:
        """End an actor for good."""
        self.actors = [other for other in self.actors if other is not actor]
        with suppress(Exception):
            ray.kill(actor)

    def close(self) -> None:
        """End all actors, and Ray where it is our own."""
        for actor in list(self.actors):
            self.kill(actor)
        if self.own:
            with suppress(Exception):
                ray.shutdown()
            if self.folder:
                shutil.rmtree(self.folder, ignore_errors=True)
        self.own = False


def fetch(reference: Any) -> Any:
    """The result of a call. What the actor raised is raised here as it was; that it died, as Ray says it."""
    try:
        return ray.get(reference)
    except exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, StockpotError):
            raise cause from None
        if isinstance(cause, exceptions.RayError):
            raise Lost("what a learner was to hand over is gone with it: all start again from a checkpoint") from error
        raise cause from error
