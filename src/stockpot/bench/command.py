"""`stockpot bench STUDY`."""

from __future__ import annotations

from pathlib import Path

from stockpot.bench.cells import Study, load, run_study
from stockpot.bench.soup import SoupStudy
from stockpot.bench.spo import SPOStudy
from stockpot.bench.t1 import T1Study
from stockpot.options import BenchOptions
from stockpot.types import StockpotError

STUDIES: dict[str, Study] = {study.name: study for study in (SoupStudy(), SPOStudy(), T1Study())}


def go(options: BenchOptions) -> None:
    """Run what is missing, print what was found."""
    study = STUDIES[options.study]
    folder = (options.out or Path("runs") / f"bench-{study.name}").resolve()
    parts = options.parts or study.parts
    unknown = [part for part in parts if part not in (*study.parts, "report")]
    if unknown or options.jobs < 1:
        raise StockpotError(f"--parts are some of {', '.join(study.parts)}, report; and --jobs is at least 1.")
    wanted = [part for part in parts if part != "report"]
    results = run_study(study, folder, wanted, options.jobs) if wanted else load(folder)
    if not results:
        raise StockpotError(f"there are no results in {folder} yet: leave --parts out to make them.")
    print(study.report(results, folder))
