"""The grids behind the explorer page, written to docs/explorers: `python benchmarks/explorers.py [--only NAME …]`.

One patient, the paper's method without back-propagation and ours. A walk takes ten seconds of a core, so the weights
leave the method's own choice one at a time: about 16 walks an acquisition."""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diffspect_nb.cli_study import file_hash
from diffspect_nb.explorer import explore
from diffspect_nb.files import write_json
from diffspect_nb.prior import pretrained_path
from diffspect_nb.sampler import AnchoredWeights, PaperWeights, Weights
from diffspect_nb.study import Study, reduced_study, sample_folder

SHARES = [0.0, 0.05, 0.1, 0.2, 0.35, 0.6]  # of λ_dps and λ_mlem; the value nearest to the paper's fit gives way to it
PAPER = {"lambda_dps": SHARES, "lambda_mlem": SHARES, "tv_weight": [0.0, 0.01, 0.02, 0.04, 0.08], "steps": [5, 10, 25]}
ANCHORED = {"anchor": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0], "fields": [1, 2, 4], "steps": [3, 5, 10]}
gradient_free = partial(PaperWeights.for_study, jacobian="identity")


@dataclass(frozen=True)
class Page:
    "An acquisition of the sample patient and the weights to move."

    counts: float | None
    views: int | None
    weights_for: Callable[[Study], Weights]
    knobs: dict[str, list[float]]


PAGES = {
    "paper_5": Page(0.05, None, gradient_free, PAPER),
    "paper_nine": Page(None, 9, gradient_free, PAPER),
    "anchored_5": Page(0.05, None, AnchoredWeights.for_study, ANCHORED),
    "paper_1": Page(0.01, None, gradient_free, PAPER),
}


def with_fit(values: list[float], fit: float) -> list[float]:
    "The values with the method's own choice in the place of the nearest; 0 stays."
    nearest = min((v for v in values if v), key=lambda v: abs(v - fit))
    return sorted([v for v in values if v != nearest] + [fit])


def explored(name: str) -> dict:
    "The data of one acquisition, with the hash of the prior's file; says how far it is."
    page, started = PAGES[name], time.perf_counter()
    study = reduced_study(Study.load(sample_folder()), page.counts, page.views, 0)
    own = page.weights_for(study)
    knobs = {knob: with_fit(values, getattr(own, knob)) for knob, values in page.knobs.items()}
    steps = explore(study, knobs, page.weights_for, start=vars(own), alone=True)
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return end.value | {"prior": file_hash(pretrained_path(own.prior))}
        print(f"{name}: {step.index} of {step.total}, {time.perf_counter() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(PAGES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "explorers")
    args = parser.parse_args()
    for name in args.only or PAGES:
        write_json(args.out / f"{name}.json", explored(name))


if __name__ == "__main__":
    main()
