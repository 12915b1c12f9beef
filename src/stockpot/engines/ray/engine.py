"""An engine spread over processes: learners learn, samplers write, and neither need wait for the other.

Synchronous (`ahead` 0) it does what the local engine does, in the same order. Asynchronous, the requests of the next
`ahead` steps are begun as soon as the loop names them, with the newest weights, and go on with newer ones while they
are written. Those of step s are never begun before version s - ahead, so no token is older than `ahead` when it is
trained on; `learn` checks it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import ray
from torch import Tensor

from stockpot.config import Config
from stockpot.engines.base import Engine, Lesson, Lost
from stockpot.engines.local import LATE
from stockpot.engines.ray.actors import HistoryActor, RewardActor, SamplerActor
from stockpot.engines.ray.crew import Crew, Office
from stockpot.engines.ray.desk import Stamp
from stockpot.engines.ray.learners import Learners
from stockpot.engines.ray.ledger import SHARE, Ledger, ages, chunks
from stockpot.engines.ray.session import Died, Session, fetch, whole_path
from stockpot.engines.ray.store import RemoteHistory
from stockpot.engines.ray.weights import pack, unpack
from stockpot.history import History
from stockpot.models import load_tokenizer
from stockpot.policy import Update
from stockpot.prefixes import LiveRule
from stockpot.rewards.score import RewardFunction
from stockpot.snapshots import Snapshots
from stockpot.types import Request, Rollout, StockpotError


class RayEngine(Engine):
    """The loop's side of it: this process has no model."""

    def __init__(self, config: Config, run: str, weights: str, origin: str, version: int, scratch: Path) -> None:
        self.config, self.run, self.version, self.scratch = config, run, version, scratch
        self.tokenizer = load_tokenizer(origin)
        self.session = Session(config, run, weights, origin)
        self.ledger = Ledger(config.samplers)
        self.store: Any = None
        try:
            spawn, threads = self.session.spawn, config.threads
            depth = (SHARE if config.samplers > 1 else 2) if config.ahead else 1
            samplers = [spawn(SamplerActor, cpus=threads, threads=depth + 2, gpu=True) for _ in range(config.samplers)]
            judges = [spawn(RewardActor, cpus=threads) for _ in range(config.reward_workers)]
            self.samplers = Crew("sampler", samplers, depth)
            self.judges = Crew("reward worker", judges)
            self.office = Office(self.samplers, self.judges)
            self.learners = Learners(self.session, self.office)
            self._take_up(whole_path(weights), version)
            self.office.until(lambda: self.samplers.awake and self.judges.awake)
        except BaseException:
            self.close()
            raise
        self.context = int(self.samplers.facts["context"])

    def _take_up(self, weights: str, version: int) -> None:
        """The policy as a checkpoint has it, though learners die while they take it up: `Learners` sets the limit."""
        while True:
            try:
                self._load(weights, version)
                return
            except Lost:
                continue

    def _load(self, weights: str, version: int) -> None:
        """The policy, and its past beside it."""
        config, rule = self.config, self.config.prefixes
        self.learners.start(weights, version)
        self.version = version
        self.boxes: dict[int, Any] = {}
        """Weights of the past that samplers have asked for."""
        self.box = self.learners.begin("weights")[0]
        self.late = Snapshots(1) if config.refresh_every > 1 else None
        self.snapshots: Snapshots | None = None
        if isinstance(rule, LiveRule):
            self.snapshots = Snapshots(rule.keep, self.scratch if rule.where == "disk" else None)
        for kept, folder in ((self.late, Path(weights) / LATE), (self.snapshots, Path(weights))):
            if kept is not None:
                kept.restore(folder) if version > 0 else kept.put(0, self._live())
        self._tell()

    def _live(self) -> dict[str, Tensor]:
        """The weights that the learners have now."""
        return unpack(self.learners.call("weights"))

    def _tell(self) -> None:
        """Samplers that run ahead hear of new weights while they write."""
        for member in self.samplers.members if self.config.ahead else ():
            member.actor.tell.remote((self.learners.life, self.version), [self.box])

    @property
    def past(self) -> Sequence[int]:
        return self.snapshots.versions if self.snapshots else ()

    # --- writing ---------------------------------------------------------------------------------------------------

    def begin(self, requests: Sequence[Request], seed: int, step: int) -> None:
        if self.config.ahead:
            if step > self.version + self.config.ahead:
                raise StockpotError(
                    f"step {step} is more than ahead={self.config.ahead} steps away from {self.version}."
                )
            late = self.config.refresh_every > 1
            self._ask(requests, seed, step + 1, self.config.writer(step) if late else None)

    def sample(self, requests: Sequence[Request], seed: int, version: int | None = None) -> list[Rollout]:
        new = [request for request in requests if (seed, request.key) not in self.ledger.asked]
        self._ask(new, seed, 0, self.version if version is None else version)
        names = [(seed, request.key) for request in requests]
        self.ledger.note_queue(len(self.samplers.waiting), sum(len(m.tasks) for m in self.samplers.members))
        self.office.until(lambda: self.ledger.has(names))
        return self.ledger.hand_out(names)

    def _ask(self, requests: Sequence[Request], seed: int, urgency: int, version: int | None) -> None:
        """Queue requests for the samplers: by a version, or by the newest at that time and those that follow it."""
        self.ledger.ask((seed, request.key) for request in requests)
        share = 1 if self.session.gpus and not self.config.ahead else SHARE  # a GPU writes many as fast as few
        for chunk in chunks(requests, self.config.samplers, share):
            names = [(seed, request.key) for request in chunk]

            def call(actor: Any, chunk: Sequence[Request] = chunk) -> Any:
                stamp, box = self._weights(self.version if version is None else version)
                return actor.write.remote(chunk, seed, stamp, [box], version is None)

            def done(result: tuple[list[Rollout], float], names: Sequence[tuple[int, int]] = names) -> None:
                self.ledger.finish(zip(names, result[0], strict=True), result[1])

            self.samplers.put(call, done, urgency)

    def _weights(self, version: int) -> tuple[Stamp, Any]:
        """Weights as Ray hands them out: the live ones, or those of a version that is kept."""
        stamp = (self.learners.life, version)
        if version == self.version:
            return stamp, self.box
        kept = self.late if self.late is not None and version in self.late.versions else self.snapshots
        if kept is None or version not in kept.versions:
            raise StockpotError(f"version {version} cannot write any more: kept are {list(self.past)}.")
        if version not in self.boxes:
            self.boxes = {v: box for v, box in self.boxes.items() if v in kept.versions or v in self.past}
            self.boxes[version] = ray.put(pack(kept.weights(version)))
        return stamp, self.boxes[version]

    # --- judging and learning --------------------------------------------------------------------------------------

    def judge(self, rollouts: Sequence[Rollout], reward: RewardFunction) -> tuple[list[Rollout], int]:
        if not self.judges.members:
            return super().judge(rollouts, reward)
        return self.ledger.judge(rollouts, self.judges, self.office)

    def score(self, rollouts: Sequence[Rollout], of: Literal["policy", "reference", "critic"]) -> list[Tensor]:
        found: list[Tensor] = self.learners.call("score", ray.put(list(rollouts)), of)
        return found

    def learn(self, lesson: Lesson, seed: int) -> Update:
        late = self.config.refresh_every - 1
        bound = late or self.config.ahead
        oldest = self.ledger.note_ages(ages(lesson.rollouts, self.run, self.version))
        if oldest > bound:
            raise StockpotError(f"a token is {oldest} versions old, but the bound is {bound}: a mistake in stockpot.")
        update: Update = self.learners.call("learn", ray.put(lesson), seed)
        return update

    def advance(self, version: int) -> None:
        self.learners.call("advance", version)
        self.version = version
        self.box = self.learners.begin("weights")[0]
        self.learners.got_to(version)
        rule = self.config.prefixes
        if self.late is not None and version % self.config.refresh_every == 0:
            self.late.put(version, self._live())
        if self.snapshots is not None and isinstance(rule, LiveRule) and version % rule.every == 0:
            self.snapshots.put(version, self._live())
        self._tell()

    # --- the rest --------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        self.learners.call("save", str(folder.resolve()))
        if self.snapshots is not None:
            self.snapshots.save(folder)
        if self.late is not None:
            (folder / LATE).mkdir()
            self.late.save(folder / LATE)

    def history(self, path: Path, run: str, vocabulary: str) -> History:
        if self.store is None:
            self.store = self.session.spawn(HistoryActor, str(path.resolve()), vocabulary, cpus=0)
        return RemoteHistory(path, run, vocabulary, self.store)

    def figures(self) -> dict[str, float]:
        crews = {"sampler": self.samplers, "reward": self.judges}
        deaths = {f"{name}/restarts": float(crew.deaths) for name, crew in crews.items() if crew.members}
        deaths |= {f"{name}/doubled": float(crew.doubled) for name, crew in crews.items() if len(crew.members) > 1}
        learners = {"learner/restarts": float(self.learners.life)}
        return self.ledger.figures(time.perf_counter(), self.learners.seconds) | deaths | learners

    def processes(self) -> dict[str, list[int]]:
        """The numbers of the processes at work, each on its machine: for whoever wants to watch them, or end one."""
        found = {"learner": list(self.learners.processes)}
        for name, team in (("sampler", self.samplers), ("reward worker", self.judges)):
            found[name] = team.look()
        found["history"] = []
        with suppress(*Died):  # it is being started again
            if self.store is not None:
                found["history"] = [fetch(self.store.hello.remote())["pid"]]
        return found

    def restart(self, weights: str, version: int) -> None:
        """Whatever was being written was for steps that will be asked anew, by another policy of the same versions."""
        self.samplers.clear()
        self.judges.clear()
        self.ledger.withdraw()
        self._take_up(whole_path(weights), version)

    def close(self) -> None:
        self.session.close()
