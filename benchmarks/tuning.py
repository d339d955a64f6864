"""What wins? Guidance settings swept on validation patients, one group of knobs after the other.

`python benchmarks/tuning.py [--patients 2] [--csv benchmarks/tuning.csv] [--prior NAME] [--only SWEEP …]`
Each row is one choice at one setting for one patient: PSNR against the truth in the heart and in the field of view,
mean error of defect contrast, and the seconds of the walk. Rows that the CSV has already are not computed again."""

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
import torch
from priors import validation_study

from diffspect_nb.cohort import FIRST_VALIDATION
from diffspect_nb.files import write_csv
from diffspect_nb.metrics import contrast_errors, defect_regions
from diffspect_nb.study import reduced
from diffspect_nb.geometry import field_of_view
from diffspect_nb.metrics import psnr
from diffspect_nb.reconstruction import beginning_steps, outcome, reconstruct
from diffspect_nb.sampler import Guidance, default_guidance, paper_guidance
from diffspect_nb.study import Study
from diffspect_nb.prior import pretrained

COUNTS = tuple(f"counts {c}" for c in (0.01, 0.05, 0.2, 1.0))
MIXED = ("counts 0.01", "counts 0.05", "counts 1.0", "views 9")


def ours(study: Study) -> Guidance:
    "The default."
    return default_guidance(study.count_level, len(study.views) / study.scanner.n_views)


def papers(study: Study) -> Guidance:
    "As published."
    return paper_guidance(study.count_level)


# sweep → (prior, what is changed, settings, changes to try)
FREE = {"dps_jacobian": "identity"}
SWEEPS = {
    "terms": (
        "diffspect",
        ours,
        MIXED,
        [
            {},
            {"anchor": 0.0, "anchor_updates": 0, "final_updates": 0},
            {"likelihood_schedule": True, "anchor_updates": 4},
            {"lambda_dps": 0.1},
            {"lambda_dps": 0.3},
            {"tv_weight": 0.02},
            {"anchor": 0.0, "anchor_updates": 0, "lambda_mlem": 0.3},
        ],
    ),
    "anchor": (
        "diffspect",
        ours,
        MIXED,
        [{"anchor": b} for b in (0.3, 0.1, 0.03, 0.01, 0.003)] + [{"anchor": 0.01, "anchor_updates": 4}],
    ),
    "start": ("diffspect", ours, MIXED, [{"start": t} for t in (200, 400, 600, 800, 999)]),
    "steps": (
        "diffspect",
        ours,
        MIXED,
        [{"solver": s, "samples": n, "steps": k} for k in (5, 10, 25, 50) for s, n in (("renoise", 1), ("renoise", 3))]
        + [{"solver": s, "samples": 1, "steps": k, "end": 0} for k in (5, 10, 25, 50) for s in ("ddim", "dpm2")],
    ),
    "plenty": (
        "diffspect",
        ours,
        ("counts 0.2", "counts 0.5", "counts 1.0"),
        [{"anchor_subsets": n, "final_updates": k} for n in (4, 10) for k in (1, 10, 40)],
    ),
    "paper": ("mlem50", papers, MIXED, [{}, FREE]),
    "paper, λ_dps": ("mlem50", papers, COUNTS, [FREE | {"lambda_dps": v} for v in (0.0, 0.1, 0.2, 0.4, 0.7)]),
    "paper, λ_mlem": ("mlem50", papers, COUNTS, [FREE | {"lambda_mlem": v} for v in (0.0, 0.1, 0.2, 0.4, 0.7)]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=2)
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_name("tuning.csv"))
    parser.add_argument("--prior", help="instead of each sweep's own")
    parser.add_argument("--only", nargs="*", choices=list(SWEEPS), help="sweeps to run")
    args = parser.parse_args()
    rows = list(csv.DictReader(args.csv.open(encoding="utf-8"))) if args.csv.exists() else []
    there = {(r["patient"], r["sweep"], r["change"], r["setting"]) for r in rows}
    priors = {name: pretrained(args.prior or name) for name in {sweep[0] for sweep in SWEEPS.values()}}
    for seed in range(FIRST_VALIDATION, FIRST_VALIDATION + args.patients):
        study = validation_study(seed)
        system, regions = study.system(), defect_regions(study)
        seen = torch.from_numpy(field_of_view(study.scanner, study.grid))
        kept: dict[tuple, tuple] = {}
        for sweep, (name, guidance, settings, changes) in SWEEPS.items():
            if args.only is not None and sweep not in args.only:
                continue
            for change in changes:
                text, found = json.dumps(change), []
                for setting in settings:
                    if (str(seed), sweep, text, setting) in there:
                        continue
                    low = reduced(study, setting, seed)
                    base = guidance(low)
                    if "steps" in change:  # an early enough start for that many
                        base = default_guidance(low.count_level, len(low.views) / low.scanner.n_views, **change)
                    chosen = Guidance.from_json(base.to_json() | change)
                    key = setting, chosen.iterations, chosen.subsets
                    if key not in kept:
                        kept[key] = outcome(beginning_steps(low, chosen, system.keep_views(low.views)))
                    started = time.perf_counter()
                    image = reconstruct(low, chosen, prior=priors[name], beginning=kept[key]).image
                    seconds = time.perf_counter() - started
                    errors = contrast_errors(image, study, regions)
                    found.append(psnr(image, study.truth, study.heart))
                    row = {"patient": seed, "sweep": sweep, "change": text, "setting": setting}
                    row |= {"count_level": low.count_level, "heart_db": found[-1], "seconds": seconds}
                    row |= {"field_of_view_db": psnr(image, study.truth, seen)}
                    rows.append(row | {"defect_error": float(np.mean(errors)) if errors else None})
                if found:
                    write_csv(args.csv, rows)
                    print(f"{seed} {sweep:14s} {text:66s}", " ".join(f"{v:6.2f}" for v in found), flush=True)


if __name__ == "__main__":
    main()
