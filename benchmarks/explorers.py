"""The grids behind the explorer pages, written to docs/explorers: `python benchmarks/explorers.py [--only NAME …]`.

Both show the paper's method without back-propagation (`jacobian="identity"`): 72 combinations each, on one patient."""

import argparse
import time
from pathlib import Path

from diffspect_nb.cohort import simulated_patient
from diffspect_nb.explorer import explore
from diffspect_nb.files import write_json
from diffspect_nb.sampler import PaperWeights
from diffspect_nb.study import Study, sample_folder

TERMS = {"lambda_dps": [0.0, 0.15], "lambda_mlem": [0.0, 0.15], "tv_weight": [0.0, 0.02], "steps": [5, 10, 25]}
GRIDS = {
    "dose": (lambda: Study.load(sample_folder()), {"counts": [0.01, 0.05, 0.2]} | TERMS),
    "views": (lambda: simulated_patient(3, "m", 1.0, "inferior (RCA)", 0.6), {"views": [3, 5, 9]} | TERMS),
}
START = {"counts": 0.05, "views": 9, "lambda_dps": 0.0, "lambda_mlem": 0.0, "tv_weight": 0.0, "steps": 25}


def weights(study: Study) -> PaperWeights:
    "The paper's, gradient-free, which is quicker."
    return PaperWeights.for_study(study, jacobian="identity")


def grid(name: str) -> dict:
    "The data of one page; says how far it is."
    study, knobs = GRIDS[name]
    started, steps = time.perf_counter(), explore(study(), knobs, weights, start=START)
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return end.value
        if step.index % 10 == 0:
            print(f"{name}: {step.index} of {step.total}, {time.perf_counter() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(GRIDS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "explorers")
    args = parser.parse_args()
    for name in args.only or GRIDS:
        write_json(args.out / f"{name}.json", grid(name))


if __name__ == "__main__":
    main()
