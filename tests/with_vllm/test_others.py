"""Other weights: half precision with an untied head, adapters; and that a process has one vLLM at a time."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="the vLLM sampler needs the environment of `make vllm`")

from policies import PLAIN, TIED, UNTIED, distances, made, moved, ragged, send

from stockpot.types import StockpotError


def test_bfloat16_stays_near(tmp_path: Path) -> None:
    """Both sides multiply in bfloat16, in another order: within 0.02; an untied head, new weights too."""
    policy, sampler = made(UNTIED, tmp_path, dtype="bfloat16")
    send(policy, sampler, 9)
    assert 0 < float(distances(policy, sampler.continue_(ragged(24, PLAIN), seed=5)).max()) <= 0.02
    moved(policy, 0.01)
    send(policy, sampler, 10)
    assert float(distances(policy, sampler.continue_(ragged(24, PLAIN), seed=5)).max()) <= 0.02


def test_an_adapter_is_swapped_for_another(tmp_path: Path) -> None:
    """Each under a number of its own, so that a kept cache is never another adapter's; no base is touched."""
    policy, sampler = made(TIED, tmp_path, rank=3)
    sampler.keep_cache = True
    requests = ragged(12, PLAIN, repeats=2)
    for version in (0, 1, 2):
        send(policy, sampler, version)
        found = sampler.continue_(requests, seed=5)
        assert float(distances(policy, found).max()) <= 1e-5
        assert {r.spans[-1].author.version for r in found} == {version}
        moved(policy, 0.1)
        assert float(distances(policy, found).max()) > 0.05, "adapters differ"
    assert len(list(Path(sampler._folder.name).iterdir())) == 1, "older adapters leave the disk"


def test_another_one_ends_the_one_before(tmp_path: Path) -> None:
    """Told where it is asked for something; and the end of the first does not take the second with it."""
    _, first = made(TIED, tmp_path)
    policy, second = made(TIED, tmp_path)
    with pytest.raises(StockpotError, match="this vLLM was ended when another was started"):
        first.continue_(ragged(1, PLAIN), seed=0)
    with pytest.raises(StockpotError, match="this vLLM was ended when another was started"):
        first.load({}, 1)
    del first
    gc.collect()
    send(policy, second, 1)
    assert float(distances(policy, second.continue_(ragged(4, PLAIN), seed=0)).max()) <= 1e-5
