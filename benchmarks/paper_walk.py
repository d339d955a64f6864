"""The paper's walk, taken apart: what each correction does, what back-propagation buys, what the sliders cost.

`python benchmarks/paper_walk.py [--patients 4] [--csv benchmarks/paper_walk.csv] [--prior NAME] [--only GROUP …]`
`--patients 2` is the quick form. Each row is one variant at one setting for one patient: PSNR against full-dose MLEM-50
(the paper's reference) and against the truth, in the heart and in the field of view, the reduced deviance, and the
seconds of the walk, by the clock and of all threads together. The corrections are shown on the sample study, all else
on validation patients; rows that the CSV has already are not computed again. At the end every variant stands with its
paired difference to the group's first: the range of fewer than three patients, else a 95 % interval."""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffspect_nb.benchmark import interval
from diffspect_nb.cli_data import commit
from diffspect_nb.cohort import FIRST_VALIDATION
from diffspect_nb.files import read_csv, write_csv
from diffspect_nb.metrics import masks_of, psnr, references_of
from diffspect_nb.mlem import mlem
from diffspect_nb.prior import EARLY_UPDATES, Prior, pretrained
from diffspect_nb.reconstruction import Beginning, beginning_steps, measurement_support, outcome, reconstruct
from diffspect_nb.sampler import PaperWeights, fitted_lambda_dps, fitted_lambda_mlem
from diffspect_nb.study import Study, reduced, sample_folder
from diffspect_nb.surroundings import surrounded
from diffspect_nb.tuning import validation_study

FIRST = {"start": 999, "ancestral": 0, "final_updates": 0, "jacobian": "identity"}
ALONE = {"lambda_dps": 0.0, "lambda_mlem": 0.0, "tv_weight": 0.0}
FREE = {"jacobian": "identity"}
INPUT = "x_in"  # what the walk starts from, as a variant of its own
EARLY_MLEM = "from 999, scale of MLEM-12"  # the only one whose scale is not that of every walk
# variant → changes to the weights
CORRECTIONS: dict[str, dict[str, Any]] = {
    INPUT: {},
    EARLY_MLEM: FIRST,
    "+ scale of OSEM 3 × 4": FIRST,
    "+ from 960": FIRST | {"start": 960},
    "+ every fifth step ancestral": FREE | {"final_updates": 0},
    "+ last MLEM updates": FREE,
    "start term alone, from 999": FIRST | ALONE,
    "start term alone, from 960": FREE | ALONE,
    "start term alone, from 800": FREE | ALONE | {"start": 800},
}
JACOBIANS: dict[str, dict[str, Any]] = {"identity": FREE, "network": {}, INPUT: {}}
KNOBS = ("lambda_dps", "lambda_mlem", "tv_weight")
SLIDERS: dict[str, dict[str, Any]] = {"as published": FREE}
SLIDERS |= {f"{name} × {by:g}": FREE | {name: by} for name in KNOBS for by in (0.5, 2)}
SLIDERS |= {f"steps = {n}": FREE | {"steps": n} for n in (12, 50)}
SLIDERS |= {"MLEM at every 10th step": FREE | {"mlem_interval": 10}, "all steps DDIM": FREE | {"ancestral": 0}}
SLIDERS |= {f"last MLEM updates = {k}": FREE | {"final_updates": k} for k in (0, 1, 5)}
GROUPS = {"corrections": CORRECTIONS, "jacobians": JACOBIANS, "sliders": SLIDERS}
SETTINGS = ("counts 0.05", "views 9")


def weights_of(study: Study, group: str, variant: str) -> PaperWeights:
    "The published weights of an acquisition, changed; a slider's change is a factor."
    changes = dict(GROUPS[group][variant])
    usual = {"lambda_dps": fitted_lambda_dps(study.count_level), "lambda_mlem": fitted_lambda_mlem(study.count_level)}
    if group == "jacobians":  # at 5 % without a last MLEM update, which would hide the difference
        changes["final_updates"] = int(10 * study.count_level)
    if "×" in variant and group == "sliders":
        name = variant.split()[0]
        changes[name] *= usual.get(name, PaperWeights.tv_weight)
    return PaperWeights.for_study(study, **changes)


def begun(study: Study) -> Beginning:
    "What every walk of an acquisition starts from."
    return outcome(beginning_steps(study, PaperWeights.for_study(study)))


def image_of(study: Study, beginning: Beginning, prior: Prior, group: str, variant: str) -> tuple[torch.Tensor, float]:
    "The variant's image (full-dose photons) and its reduced deviance."
    if variant == INPUT:
        support = measurement_support(beginning.measurement, beginning.late)
        return beginning.late / study.count_fraction, support.reduced
    if variant == EARLY_MLEM:
        beginning = replace(beginning, early=mlem(beginning.measurement, EARLY_UPDATES))
    done = reconstruct(study, weights_of(study, group, variant), prior, beginning=beginning)
    return done.image, done.support.reduced


def patient_rows(full: Study, name: str, group: str, prior: Prior, there: set[tuple[str, ...]]) -> Iterator[dict]:
    "Rows of one group for one patient that are not there."
    wanted = {s: [v for v in GROUPS[group] if (name, s, group, v) not in there] for s in SETTINGS}
    if not any(wanted.values()):
        return
    full = replace(full, reference=mlem(surrounded(full).measurement(), 50))
    places, references = masks_of(full), references_of(full)
    for setting, todo in wanted.items():
        low = reduced(full, setting, int(full.meta.get("seed", 0)))
        beginning = begun(low) if todo else None
        for variant in todo:
            started, worked = time.perf_counter(), time.process_time()
            image, deviance = image_of(low, beginning, prior, group, variant)
            row = {"patient": name, "setting": setting, "group": group, "variant": variant}
            row |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - worked}
            row |= {"reduced_deviance": deviance}
            for reference, target in references.items():
                row |= {f"{place}, {reference}": psnr(image, target, mask) for place, mask in places.items()}
            yield row


def gain(found: dict[str, dict], first: dict[str, dict], column: str) -> str:
    "Mean of a column, and its paired difference to the first variant."
    values = {patient: float(row[column]) for patient, row in found.items()}
    told = f"{column} {np.mean(list(values.values())):.2f}"
    apart = [v - float(first[patient][column]) for patient, v in values.items() if patient in first]
    return told + (" {:+.2f} ({:+.2f} … {:+.2f})".format(*interval(apart)) if apart and found != first else "")


def show(rows: list[dict]) -> None:
    "Every variant: its means, and how far it is from its group's first, patient by patient."
    table: dict[tuple[str, str], dict[str, dict[str, dict]]] = {}
    for r in rows:
        table.setdefault((r["group"], r["setting"]), {}).setdefault(r["variant"], {})[r["patient"]] = r
    for where, variants in table.items():
        for variant, found in variants.items():
            first = variants.get(next(iter(GROUPS[where[0]])), {})
            columns = [c for c in rows[0] if c.startswith(("heart", "field", "reduced", "cpu"))]
            print(*where, variant, f"{len(found)} patient(s)", *(gain(found, first, c) for c in columns), sep=" | ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=4, help="validation patients")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_name("paper_walk.csv"))
    parser.add_argument("--prior", default=PaperWeights.prior)
    parser.add_argument("--only", nargs="*", choices=list(GROUPS), default=list(GROUPS), help="groups to run")
    args = parser.parse_args()
    rows, prior = read_csv(args.csv), pretrained(args.prior)
    keys = ("patient", "setting", "group", "variant")
    there = {tuple(r[k] for k in keys) for r in rows if r["prior"] == args.prior}
    about = {"prior": args.prior, "threads": torch.get_num_threads(), "commit": commit(), "date": time.strftime("%F")}
    seeds = range(FIRST_VALIDATION, FIRST_VALIDATION + args.patients)
    validation = {str(seed): partial(validation_study, seed) for seed in seeds}
    for group in args.only:
        studies = {"sample": lambda: Study.load(sample_folder())} if group == "corrections" else validation
        for name, study_of in studies.items():
            for row in patient_rows(study_of(), name, group, prior, there):
                rows.append(row | about)
                write_csv(args.csv, rows)
                print(name, row["setting"], group, row["variant"], f"{row['seconds']:.1f} s", flush=True)
    show([r for r in rows if r["prior"] == args.prior])


if __name__ == "__main__":
    main()
