"""What wins? Guidance settings swept on validation patients, one group of knobs after the other.

`python benchmarks/tuning.py [--patients 4] [--csv benchmarks/tuning.csv] [--prior NAME] [--only SWEEP …]`
Each row is one choice at one setting: mean PSNR against the truth in the heart and in the field of view, and the
seconds of one reconstruction. Rows that the CSV has already are not computed again."""

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
import torch
from priors import validation_study

from diffspect_nb.benchmark import FIRST_VALIDATION, reduced, write_csv
from diffspect_nb.geometry import field_of_view
from diffspect_nb.metrics import psnr
from diffspect_nb.sampler import Guidance, default_guidance, paper_guidance, reconstruct
from diffspect_nb.study import Study
from diffspect_nb.training import pretrained

COUNTS = tuple(f"counts {c}" for c in (0.01, 0.05, 0.2, 1.0))
EVERYTHING = (*COUNTS, "views 3", "views 9")


def ours(study: Study) -> Guidance:
    "The default."
    return default_guidance(study.count_level, len(study.views) / study.scanner.n_views)


def papers(study: Study) -> Guidance:
    "As published."
    return paper_guidance(study.count_level)


# sweep → (prior, what is changed, settings, changes to try)
SWEEPS = {
    "anchor": (
        "diffspect",
        ours,
        EVERYTHING,
        [
            {"anchor": b, "anchor_updates": n}
            for b, n in ((0, 0), (0.3, 1), (0.1, 1), (0.03, 1), (0.01, 1), (0.03, 2), (0.01, 2), (0.003, 2), (0.003, 4))
        ],
    ),
    "start": ("diffspect", ours, EVERYTHING, [{"start": t} for t in (200, 400, 600, 800, 999)]),
    "steps": ("diffspect", ours, EVERYTHING, [{"steps": n} for n in (1, 5, 10, 25, 50)]),
    "solver": (
        "diffspect",
        ours,
        EVERYTHING,
        [{"solver": s, "samples": 1, "steps": n} for n in (5, 10, 25) for s in ("ddim", "dpm2", "renoise")],
    ),
    "samples": ("diffspect", ours, EVERYTHING, [{"samples": n} for n in (1, 2, 4, 8)]),
    "terms": (
        "diffspect",
        ours,
        EVERYTHING,
        [
            {},
            {"likelihood_schedule": True, "anchor_updates": 4},
            {"lambda_dps": 0.1},
            {"lambda_dps": 0.3},
            {"tv_weight": 0.01},
            {"tv_weight": 0.03},
            {"anchor": 0.0, "anchor_updates": 0, "lambda_mlem": 0.1},
            {"anchor": 0.0, "anchor_updates": 0, "lambda_mlem": 0.3},
        ],
    ),
    "paper": ("mlem50", papers, EVERYTHING, [{}, {"dps_jacobian": "identity"}]),
    "paper, λ_dps": (
        "mlem50",
        papers,
        COUNTS,
        [{"dps_jacobian": "identity", "lambda_dps": v} for v in (0.0, 0.05, 0.1, 0.2, 0.4, 0.7)],
    ),
    "paper, λ_mlem": (
        "mlem50",
        papers,
        COUNTS,
        [{"dps_jacobian": "identity", "lambda_mlem": v} for v in (0.0, 0.05, 0.1, 0.2, 0.4, 0.7)],
    ),
}


def outcome(items: list[tuple], prior, guidance, change: dict) -> dict:
    "Mean over the patients of one setting."
    found: dict[str, list[float]] = {"heart_db": [], "field_of_view_db": [], "seconds": []}
    for study, system, masks in items:
        chosen = Guidance.from_json(guidance(study).to_json() | change)
        started = time.perf_counter()
        image = reconstruct(study, chosen, system=system, prior=prior).image
        found["seconds"].append(time.perf_counter() - started)
        for key, mask in masks.items():
            found[key].append(psnr(image, study.truth, mask))
    return {"count_level": float(np.mean([s.count_level for s, _, _ in items]))} | {
        k: float(np.mean(v)) for k, v in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=4)
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_name("tuning.csv"))
    parser.add_argument("--prior", help="instead of each sweep's own")
    parser.add_argument("--only", nargs="*", choices=list(SWEEPS), help="sweeps to run")
    args = parser.parse_args()
    rows = list(csv.DictReader(args.csv.open(encoding="utf-8"))) if args.csv.exists() else []
    there = {(r["sweep"], r["change"], r["setting"], int(r["patients"])) for r in rows}
    items: dict[str, list[tuple]] = {s: [] for s in EVERYTHING}
    for seed in range(FIRST_VALIDATION, FIRST_VALIDATION + args.patients):
        study = validation_study(seed)
        system = study.system()
        seen = torch.from_numpy(field_of_view(study.scanner, study.grid))
        for setting in EVERYTHING:
            low = reduced(study, setting, seed)
            masks = {"heart_db": study.heart, "field_of_view_db": seen}
            items[setting].append((low, system.keep_views(low.views), masks))
    for sweep, (name, guidance, settings, changes) in SWEEPS.items():
        if args.only is not None and sweep not in args.only:
            continue
        prior = pretrained(args.prior or name)
        for change in changes:
            text, means = json.dumps(change), []
            for setting in settings:
                if (sweep, text, setting, args.patients) in there:
                    continue
                found = outcome(items[setting], prior, guidance, change)
                means.append(found["heart_db"])
                rows.append({"sweep": sweep, "change": text, "setting": setting, "patients": args.patients} | found)
            write_csv(args.csv, rows)
            print(f"{sweep:14s} {text:55s}", " ".join(f"{v:6.2f}" for v in means), flush=True)


if __name__ == "__main__":
    main()
