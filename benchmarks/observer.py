"""A model observer looks for one defect: `python benchmarks/observer.py [--patients 50] [--settings 'counts 0.05' …]`.

Every patient is simulated with and without a defect, and reconstructed by MLEM-50, MLEM-50 with its best Gaussian
filter (an oracle's choice) and the guided walk. Resumable: one JSON line per patient, setting and method, and for the
guided images the fingerprint of network, method and settings: with another walk they alone are made again. The table
holds areas under the ROC curve with DeLong's intervals, the mean error of the defect's contrast, and, in the patients
without one, how deep a defect the image shows at the place (false contrast)."""

import argparse
import csv
import json
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from diffspect_nb.baselines import best_gaussian, stacked
from diffspect_nb.cli_data import commit
from diffspect_nb.core import last
from diffspect_nb.files import atomic_path, write_json
from diffspect_nb.geometry import dnm570c
from diffspect_nb.methods import guided
from diffspect_nb.mlem import mlem
from diffspect_nb.observer import (
    PATIENTS,
    area_difference,
    area_under_roc,
    contrast_of,
    hotelling_verdicts,
    observer_pair,
    octave_channels,
    responses_of,
)
from diffspect_nb.prior import DEFAULT_PRIOR, Prior, pretrained
from diffspect_nb.study import Study, reduced
from diffspect_nb.uncertainty import fingerprint
from diffspect_nb.work import read_rows, run_units, workers_of

FULL = ("counts 1.0", "MLEM-50")
METHODS = ("MLEM-50", "MLEM-50, best Gaussian", "guided")
SETTINGS = ("counts 0.01", "counts 0.05", "counts 0.2", "views 9")


def images_of(low: list[Study], wanted: list[str], prior: Prior) -> Iterator[tuple[str, list]]:
    "Each wanted method's images, full-dose photons, of a patient's acquisitions with and without the defect."
    if set(wanted) - {"guided"}:
        plain = [image / s.count_fraction for image, s in zip(mlem(stacked(low), 50), low, strict=True)]
    for method in wanted:
        if method == "guided":
            yield method, [last(guided(prior)(s)).image.cpu() for s in low]
        elif method == "MLEM-50":
            yield method, plain
        else:
            yield method, [best_gaussian(image, s.truth, s.heart)[0] for image, s in zip(plain, low, strict=True)]


def patient_lines(seed: int, settings: list[str], prior_name: str, device: str, done: set) -> list[dict]:
    "Channel responses and contrasts of those images of one patient that are not done, in any process."
    prior, channels, pair = pretrained(prior_name, device), octave_channels(), observer_pair(seed, dnm570c())
    grid, walk, lines = pair.present.grid, fingerprint(prior), []
    truth = [contrast_of(s.truth, pair, pair.weight) for s in (pair.present, pair.absent)]
    for setting in dict.fromkeys([FULL[0], *settings]):
        methods = [FULL[1]] if setting == FULL[0] else METHODS
        wanted = [method for method in methods if (seed, setting, method) not in done]
        low = [reduced(s, setting, seed + i) for i, s in enumerate((pair.present, pair.absent))]
        for method, images in images_of(low, wanted, prior):
            present, absent = (responses_of(image, pair, grid, channels).tolist() for image in images)
            contrast = [contrast_of(image, pair, pair.weight) for image in images]
            line = {"seed": seed, "setting": setting, "method": method, "present": present, "absent": absent}
            line |= {"walk": walk} if method == "guided" else {}
            lines.append(line | {"contrast": contrast, "true_contrast": truth})
    return lines


def unit(seed: int, settings: list[str], prior_name: str, device: str, done: set) -> Iterator[list[dict]]:
    "One patient's lines as a unit of work."
    yield patient_lines(seed, settings, prior_name, device, done)


def table(rows: list[dict]) -> list[dict]:
    "One row per setting and method over the patients that have them all."
    groups: dict[tuple[str, str], dict[int, dict]] = {}
    for row in rows:
        groups.setdefault((row["setting"], row["method"]), {})[row["seed"]] = row
    seeds = sorted(set.intersection(*(set(group) for group in groups.values())))
    verdicts = {
        key: hotelling_verdicts(*(np.array([group[s][kind] for s in seeds]) for kind in ("present", "absent")))
        for key, group in groups.items()
    }
    found = []
    for (setting, method), group in groups.items():
        area = area_under_roc(*verdicts[setting, method])
        gap = area_difference(verdicts[setting, method], verdicts[FULL])
        contrast, true = (np.array([group[s][k] for s in seeds]) for k in ("contrast", "true_contrast"))
        found.append(
            {"setting": setting, "method": method, "patients": len(seeds), "auc": area.auc, "low": area.low}
            | {"high": area.high, "difference": gap[0], "difference_low": gap[1], "difference_high": gap[2]}
            | {"contrast_error": float(np.abs(contrast - true)[:, 0].mean())}
            | {"false_contrast": float((contrast - true)[:, 1].mean())}
            | {"false_defects": int(((contrast - true)[:, 1] > 0.1).sum())}
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=50)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS))
    parser.add_argument("--prior", default=DEFAULT_PRIOR)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the guided images")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--dask", metavar="ADDRESS", help="instead: the workers of a Dask cluster")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path, walk = args.out / "observer.jsonl", fingerprint(pretrained(args.prior))
    rows = read_rows(path) if path.exists() else []
    rows = [row for row in rows if row["method"] != "guided" or row.get("walk") == walk]
    with atomic_path(path) as tmp:  # without a last line that was cut short
        tmp.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = {(r["seed"], r["setting"], r["method"]) for r in rows}
    patients = range(PATIENTS, PATIENTS + args.patients)
    wanted = {(seed, *FULL) for seed in patients}
    wanted |= {(seed, setting, method) for seed in patients for setting in args.settings for method in METHODS}
    missing = sorted({seed for seed, *_ in wanted - done})
    common = args.settings, args.prior, args.device, done
    units = {f"patient {seed}": partial(unit, seed, *common) for seed in missing}
    for i, found in enumerate(run_units(path, units, workers_of(args.workers, args.dask)), 1):
        rows += found
        print(f"patient {found[0]['seed']}: {i} of {len(units)}", flush=True)
    rows.sort(key=lambda r: (r["seed"], r["setting"] != FULL[0], r["setting"], METHODS.index(r["method"])))
    with atomic_path(path) as tmp:
        tmp.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = table(rows)
    with atomic_path(args.out / "observer.csv") as tmp, open(tmp, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    about = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "prior": args.prior, "walk": walk}
    write_json(args.out / "observer.json", about)
    for row in lines:
        print(row["setting"], row["method"], f"AUC {row['auc']:.3f} ({row['low']:.3f} … {row['high']:.3f})")


if __name__ == "__main__":
    main()
