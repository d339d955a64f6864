"""Attenuation without CT: what the translators make of uncorrected images, each against the image with the CT.

    python benchmarks/translation.py gain [--workers 2]                   the one gain, on eight validation patients
    python benchmarks/translation.py table [--patients 18] [--workers 2]  every translator, on test patients

A row in benchmarks/translation.jsonl for each patient and translator: RMSE, PSNR and SSIM by view (`view_scores`), the
17 segments (`segment_errors`), the reduced deviance of the measured counts where the image was reconstructed, seconds.
One row more is made with another patient's CT: the deviance must tell it from the right one. Patients that the file has
already are left alone. The table with paired differences to the one gain goes into benchmarks/translation.csv.
`table --patients 2` is the quick form: an example, not evidence."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from diffspect_nb.benchmark import interval
from diffspect_nb.cardiac import find_ventricle
from diffspect_nb.chest import with_uniform_tissue
from diffspect_nb.cohort import FIRST_TEST, FIRST_VALIDATION, held_out_study, painter
from diffspect_nb.files import write_csv
from diffspect_nb.metrics import text_table
from diffspect_nb.observer import area_under_roc
from diffspect_nb.reconstruction import measurement_support
from diffspect_nb.study import Study
from diffspect_nb.surroundings import surrounded
from diffspect_nb.translation import FLOORS, GAIN, corrected, mu_first, segment_errors, uncorrected, view_scores
from diffspect_nb.work import read_rows, run_units, workers_of

HERE = Path(__file__).resolve().parent
WRONG = "another patient's CT"


def gain_of(seed: int) -> Iterator[list[dict]]:
    "How much brighter the correction makes one patient's heart: least squares over its voxels."
    study = held_out_study(seed)
    asked = uncorrected(study)
    plain, wanted = (image[study.heart] for image in (asked.image, GAIN * corrected(study, asked.scale)))
    yield [{"patient": seed, "gain": float((plain * wanted).sum() / plain.square().sum())}]


def explained(study: Study, image: Tensor, scale: float) -> float:
    "Reduced deviance of the counts, given the study's tissue and an image in units of normal myocardium."
    return measurement_support(surrounded(study).measurement(), image * (study.count_fraction / scale)).reduced


def rows_of(seed: int) -> Iterator[list[dict]]:
    "A row for each translator on one patient."
    study = held_out_study(seed)
    asked = uncorrected(study)
    wanted = corrected(study, asked.scale)
    ventricle, rows = find_ventricle(wanted, study.grid), []
    tissue = {"not corrected": asked.study, "uniform tissue": with_uniform_tissue(asked.study), "with its CT": study}
    tissue[WRONG] = replace(asked.study, mu=painter(seed + 500)(study.grid).mu)
    own = {"with its CT": lambda asked: wanted, WRONG: mu_first(lambda image: tissue[WRONG].mu)}
    for name, translate in (FLOORS | own).items():
        started = time.perf_counter()
        image = translate(asked)
        row = {"patient": seed, "translator": name, "seconds": round(time.perf_counter() - started, 2)}
        for view, scores in view_scores(image, wanted, study.grid, ventricle).items():
            row |= {f"{measure} {view}": round(value, 5) for measure, value in scores.items()}
        row |= {k: round(v, 4) for k, v in segment_errors(image, wanted, study.grid, ventricle).items()}
        if name in tissue:
            row |= {"reduced_deviance": round(explained(tissue[name], image, asked.scale), 3)}
        rows.append(row)
    yield rows


def summary(rows: list[dict], base: str = "one gain") -> list[dict]:
    "Mean of every measure by translator, with the paired difference to one of them (95 % bootstrap interval)."
    names, table = list(dict.fromkeys(row["translator"] for row in rows)), []
    keys = [k for k in rows[0] if k not in ("patient", "translator", "seconds") and "psnr" not in k]
    by = {name: {r["patient"]: r for r in rows if r["translator"] == name} for name in names}
    for name in names:
        for key in (k for k in keys if all(k in r for r in by[name].values())):
            mean = float(np.mean([r[key] for r in by[name].values()]))
            line = {"translator": name, "measure": key, "patients": len(by[name]), "mean": round(mean, 4)}
            differences = [r[key] - by[base][p][key] for p, r in by[name].items() if key in by[base].get(p, {})]
            if name != base and len(differences) > 2:
                middle, low, high = interval(differences)
                line |= {"less the gain's": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}
            table.append(line)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("gain", "table"))
    parser.add_argument("--patients", type=int, default=18)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    first, n, unit = (FIRST_VALIDATION, 8, gain_of) if args.what == "gain" else (FIRST_TEST, args.patients, rows_of)
    path = args.out / ("translation_gain.jsonl" if args.what == "gain" else "translation.jsonl")
    done = {row["patient"] for row in read_rows(path)} if path.exists() else set()
    units = {f"patient {p}": partial(unit, p) for p in range(first, first + n) if p not in done}
    for rows in run_units(path, units, workers_of(args.workers, None)):
        print(f"patient {rows[0]['patient']}", flush=True)
    rows = [row for row in read_rows(path) if row["patient"] in range(first, first + n)]
    if args.what == "gain":
        middle, low, high = interval([row["gain"] for row in rows])
        print(f"{len(rows)} patients: a heart becomes {middle:.2f} ({low:.2f} … {high:.2f}) times brighter")
        return
    table = summary(rows)
    write_csv(args.out / "translation.csv", table)
    print(text_table(table))
    wrong, right = ([r["reduced_deviance"] for r in rows if r["translator"] == n] for n in (WRONG, "with its CT"))
    print(f"right and wrong CTs told apart by the reduced deviance: AUC {area_under_roc(wrong, right).auc:.3f}")


if __name__ == "__main__":
    main()
