"""How do the weights of a walk act? Swept on validation patients, one group of settings after the other.

`python benchmarks/tuning.py [--patients 2] [--csv benchmarks/tuning.csv] [--prior NAME] [--only SWEEP …]`
Each row is one choice at one setting for one patient: PSNR against the truth in the heart and in the field of view,
mean error of defect contrast, and the seconds of the walk. Rows that the CSV has already are not computed again.
At the end every choice stands with the number of patients behind it and, from three patients on, with the interval of
its paired difference to the sweep's first choice: fewer patients are an example."""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from priors import validation_study

from diffspect_nb.benchmark import interval
from diffspect_nb.cohort import FIRST_VALIDATION
from diffspect_nb.files import read_csv, write_csv
from diffspect_nb.metrics import contrast_errors, defect_regions, masks_of, psnr
from diffspect_nb.prior import Prior, pretrained
from diffspect_nb.reconstruction import Beginning, beginning_steps, outcome, reconstruct
from diffspect_nb.sampler import AnchoredWeights, PaperWeights, Weights
from diffspect_nb.study import Study, reduced

COUNTS = tuple(f"counts {c}" for c in (0.01, 0.05, 0.2, 1.0))
MIXED = ("counts 0.01", "counts 0.05", "counts 1.0", "views 9")
PLENTY = ("counts 0.2", "counts 0.5", "counts 1.0")
FREE = {"jacobian": "identity"}
# sweep → (whose weights, settings, changes to try)
SWEEPS: dict[str, tuple[type[Weights], tuple[str, ...], list[dict]]] = {
    "anchor": (
        AnchoredWeights,
        MIXED,
        [{"anchor": b} for b in (0.3, 0.1, 0.03, 0.01, 0.003)] + [{"anchor": 0.01, "updates": 4}],
    ),
    "start": (AnchoredWeights, MIXED, [{"start": t} for t in (200, 400, 600, 800, 999)]),
    "steps": (AnchoredWeights, MIXED, [{"fields": n, "steps": k} for k in (5, 10, 25, 50) for n in (1, 3)]),
    "plenty": (AnchoredWeights, PLENTY, [{"subsets": n, "final_updates": k} for n in (4, 10) for k in (1, 10, 40)]),
    "paper": (PaperWeights, MIXED, [{}, FREE]),
    "paper, λ_dps": (PaperWeights, COUNTS, [FREE | {"lambda_dps": v} for v in (0.0, 0.1, 0.2, 0.4, 0.7)]),
    "paper, λ_mlem": (PaperWeights, COUNTS, [FREE | {"lambda_mlem": v} for v in (0.0, 0.1, 0.2, 0.4, 0.7)]),
}


def patient_rows(study: Study, sweep: str, prior: Prior, there: set[tuple[str, ...]]) -> Iterator[dict]:
    "Rows of one sweep for one patient that are not there, one choice and setting after the other."
    kind, settings, changes = SWEEPS[sweep]
    patient, masks, regions = str(study.meta["seed"]), masks_of(study), defect_regions(study)
    kept: dict[tuple[str, int], Beginning] = {}
    for change in changes:
        for setting in settings:
            row = {"patient": patient, "sweep": sweep, "change": json.dumps(change), "setting": setting}
            if tuple(row.values()) in there:
                continue
            low = reduced(study, setting, study.meta["seed"])
            weights = kind.for_study(low, **change)
            if (setting, weights.iterations) not in kept:
                kept[setting, weights.iterations] = outcome(beginning_steps(low, weights))
            started = time.perf_counter()
            image = reconstruct(low, weights, prior, beginning=kept[setting, weights.iterations]).image
            row |= {"count_level": low.count_level, "heart_db": psnr(image, study.truth, masks["heart"])}
            row |= {"seconds": time.perf_counter() - started}
            row |= {"field_of_view_db": psnr(image, study.truth, masks["field of view"])}
            errors = contrast_errors(image, study, regions)
            yield row | {"defect_error": float(np.mean(errors)) if errors else None}


def show(rows: list[dict]) -> None:
    "Every choice: on how many patients it rests, and how far it is from the sweep's first choice."
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for r in rows:
        choices = found.setdefault((r["sweep"], r["setting"]), {})
        choices.setdefault(r["change"], {})[r["patient"]] = float(r["heart_db"])
    for (sweep, setting), choices in found.items():
        first = next(iter(choices.values()))
        for change, values in choices.items():
            apart = [values[p] - first[p] for p in values if p in first]
            mean, low, high = interval(apart)
            against = f"{mean:+.2f} ({low:+.2f} … {high:+.2f})" if len(apart) > 2 else f"{mean:+.2f} (example)"
            about = f"{np.mean(list(values.values())):6.2f} dB, {len(values)} patient(s)"
            print(f"{sweep:14s} {setting:12s} {change:45s} {about}, {against}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=2)
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_name("tuning.csv"))
    parser.add_argument("--prior", help="instead of each walk's own")
    parser.add_argument("--only", nargs="*", choices=list(SWEEPS), default=list(SWEEPS), help="sweeps to run")
    args = parser.parse_args()
    rows = read_csv(args.csv)
    there = {(r["patient"], r["sweep"], r["change"], r["setting"]) for r in rows}
    priors = {name: pretrained(args.prior or name) for name in {kind.prior for kind, *_ in SWEEPS.values()}}
    for seed in range(FIRST_VALIDATION, FIRST_VALIDATION + args.patients):
        study = validation_study(seed)
        for sweep in args.only:
            for row in patient_rows(study, sweep, priors[SWEEPS[sweep][0].prior], there):
                rows.append(row)
                write_csv(args.csv, rows)
                print(f"{seed} {sweep:14s} {row['setting']:12s} {row['change']:45s} {row['heart_db']:6.2f}", flush=True)
    show(rows)


if __name__ == "__main__":
    main()
