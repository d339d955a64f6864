"""Is a prior better than the one that ships? `python benchmarks/networks.py PRIOR … [--patients 8] [--workers 2]`

Every prior (a .safetensors file, or a shipped one by name) leads the anchored walk on the same counts of validation
patients; the shipped one is always among them. Printed: paired differences to it, mean and 95 % interval over the
patients, of decibels in the heart and the field of view and of the error of the defects' contrast. Resumable, a line of
--out a walk; networks.csv beside this file holds what was judged last."""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from diffspect_nb.benchmark import interval
from diffspect_nb.cohort import FIRST_VALIDATION
from diffspect_nb.files import write_csv
from diffspect_nb.prior import DEFAULT_PRIOR
from diffspect_nb.tuning import Trial, patient_trials
from diffspect_nb.work import read_rows, run_units, workers_of

SETTINGS = ("counts 0.01", "counts 0.05", "counts 0.2", "counts 1.0", "views 9", "views 3")
JUDGED = ("heart_db", "field_of_view_db", "defect_error")


def judged(patient: int, prior: str) -> Iterator[list[dict]]:
    "One patient's rows with one prior, as a unit of work."
    trials = [Trial("anchored", setting, {}) for setting in SETTINGS]
    rows = patient_trials(patient, trials, prior)
    yield [{"prior": prior} | {k: v for k, v in row.items() if k not in ("method", "change")} for row in rows]


def gap(rows: list[dict], prior: str, setting: str, key: str) -> str:
    "Mean paired difference to the shipped prior, with its interval and the patients that have both."
    by = {(r["prior"], r["patient"]): r[key] for r in rows if r["setting"] == setting and r[key] is not None}
    pairs = [by[prior, p] - by[DEFAULT_PRIOR, p] for q, p in by if q == prior and (DEFAULT_PRIOR, p) in by]
    if len(pairs) < 2:
        return "too few patients"
    mean, low, high = interval(pairs)
    return f"{mean:+.3f} ({low:+.3f} … {high:+.3f}; {len(pairs)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("priors", nargs="+")
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/networks.jsonl"))
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    there = {(r["prior"], r["patient"]) for r in read_rows(args.out)} if args.out.exists() else set()
    patients, priors = range(FIRST_VALIDATION, FIRST_VALIDATION + args.patients), [DEFAULT_PRIOR, *args.priors]
    wanted = [(p, prior) for p in patients for prior in priors if (prior, p) not in there]
    units = {f"{p} with {prior}": partial(judged, p, prior) for p, prior in wanted}
    for found in run_units(args.out, units, workers_of(args.workers, None)):
        print(found[0]["patient"], found[0]["prior"], *(row["heart_db"] for row in found), flush=True)
    rows = [r for r in read_rows(args.out) if r["patient"] in patients and r["prior"] in priors]
    write_csv(args.csv, [row | {"prior": Path(row["prior"]).stem} for row in rows])
    for prior in args.priors:
        for setting in SETTINGS:
            print(prior, setting, *(f"{key} {gap(rows, prior, setting, key)}" for key in JUDGED), sep="  ")


if __name__ == "__main__":
    main()
