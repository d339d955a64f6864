"""The grids behind the explorer pages, written to docs/explorers: `python benchmarks/explorers.py [--only NAME …]`."""

import argparse
import time
from pathlib import Path

from diffspect_nb.cohort import simulated_patient
from diffspect_nb.explorer import explore
from diffspect_nb.files import write_json
from diffspect_nb.sampler import Guidance, default_guidance
from diffspect_nb.study import Study, sample_folder

TERMS = {
    "lambda_dps": [0.0, 0.3],
    "lambda_mlem": [0.0, 0.3],
    "tv_weight": [0.0, 0.03],
    "steps": [2, 5, 10],
}
GRIDS = {
    "dose": (lambda: Study.load(sample_folder()), {"counts": [0.01, 0.05, 0.2]} | TERMS),
    "views": (lambda: simulated_patient(3, "m", 1.0, "inferior (RCA)", 0.6), {"views": [3, 5, 9]} | TERMS),
}
START = {"counts": 0.05, "views": 9, "lambda_dps": 0.0, "lambda_mlem": 0.0, "tv_weight": 0.0, "steps": 10}


def guidance(count_level: float, view_share: float) -> Guidance:
    "The default with one noise field per step, early enough for the longest walk."
    return default_guidance(count_level, view_share, samples=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(GRIDS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "explorers")
    args = parser.parse_args()
    for name, (study, knobs) in GRIDS.items():
        if args.only and name not in args.only:
            continue
        started, steps = time.perf_counter(), explore(study(), knobs, guidance, start=START)
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                write_json(args.out / f"{name}.json", end.value)
                break
            if step.index % 10 == 0:
                print(f"{name}: {step.index} of {step.total}, {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
