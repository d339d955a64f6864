"""Two opposite noise fields a step against three independent ones: the anchored walk on validation patients.

`python benchmarks/opposite.py [--patients 12] [--csv benchmarks/opposite.csv]`
Every dose and number of views; PSNR against the truth in the heart and in the field of view, and the error of defect
contrast. Rows that the CSV has already are not computed again. At the end the paired differences with their 95 %
intervals."""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from diffspect_nb import sampler
from diffspect_nb.benchmark import interval
from diffspect_nb.cohort import FIRST_VALIDATION
from diffspect_nb.files import read_csv, write_csv
from diffspect_nb.metrics import contrast_errors, defect_regions, masks_of, psnr
from diffspect_nb.prior import Prior, pretrained
from diffspect_nb.reconstruction import beginning_steps, outcome, reconstruct
from diffspect_nb.sampler import AnchoredWeights
from diffspect_nb.study import Study, reduced
from diffspect_nb.tuning import validation_study

SETTINGS = (*(f"counts {c}" for c in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)), *(f"views {v}" for v in (3, 5, 7, 9)))


def independent(noise: Iterator[torch.Tensor], n: int) -> list[torch.Tensor]:
    "What `opposite_pairs` replaced."
    return [next(noise) for _ in range(n)]


CHOICES = {"independent 3": (independent, 3), "opposite 2": (sampler.opposite_pairs, 2)}


def patient_rows(study: Study, prior: Prior, there: set[tuple[str, str, str]]) -> Iterator[dict]:
    "Both choices at every setting, of one patient."
    patient, masks, regions = str(study.meta["seed"]), masks_of(study), defect_regions(study)
    for setting in SETTINGS:
        if all((patient, setting, choice) in there for choice in CHOICES):
            continue
        low = reduced(study, setting, study.meta["seed"])
        beginning = outcome(beginning_steps(low, AnchoredWeights.for_study(low), low.measurement()))
        for choice, (draw, fields) in CHOICES.items():
            if (patient, setting, choice) in there:
                continue
            sampler.opposite_pairs, started = draw, time.process_time()
            weights = AnchoredWeights.for_study(low, fields=fields)
            image = reconstruct(low, weights, prior, beginning=beginning).image
            row = {"patient": patient, "setting": setting, "choice": choice}
            row |= {"heart_db": psnr(image, study.truth, masks["heart"])}
            row |= {"field_of_view_db": psnr(image, study.truth, masks["field of view"])}
            errors = contrast_errors(image, study, regions)
            row |= {"defect_error": float(np.mean(errors)) if errors else None}
            yield row | {"cpu_s": time.process_time() - started}


def show(rows: list[dict]) -> None:
    "Paired differences, opposite minus independent."
    found: dict[tuple[str, str], dict[str, dict]] = {}
    for row in rows:
        found.setdefault((row["setting"], row["choice"]), {})[row["patient"]] = row
    print(f"{'setting':13s} {'patients':>8s}  {'heart (dB)':26s} {'field of view (dB)':26s} defect-contrast error")
    for setting in SETTINGS:
        first, second = (found.get((setting, choice), {}) for choice in CHOICES)
        both = [p for p in second if p in first]
        words = []
        for key in ("heart_db", "field_of_view_db", "defect_error"):
            apart = [float(second[p][key]) - float(first[p][key]) for p in both if first[p][key] not in ("", None)]
            mean, low, high = interval(apart) if len(apart) > 2 else (np.nan,) * 3
            words.append(f"{mean:+.3f} ({low:+.3f} … {high:+.3f})".ljust(26))
        print(f"{setting:13s} {len(both):8d}  {' '.join(words)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=12)
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_name("opposite.csv"))
    args = parser.parse_args()
    rows = read_csv(args.csv)
    there, prior = {(r["patient"], r["setting"], r["choice"]) for r in rows}, pretrained("diffspect")
    for seed in range(FIRST_VALIDATION, FIRST_VALIDATION + args.patients):
        for row in patient_rows(validation_study(seed), prior, there):
            rows.append(row)
            write_csv(args.csv, rows)
            print(f"{row['patient']} {row['setting']:12s} {row['choice']:14s} {row['heart_db']:6.2f} dB", flush=True)
    show(rows)


if __name__ == "__main__":
    main()
