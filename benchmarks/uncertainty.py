"""How sure is the image? Temperatures fitted on validation patients, coverage on test patients, invented defects found.

`python benchmarks/uncertainty.py [--fit 4] [--test 6] [--pairs 24] [--samples 8] [--keep DIR]` (also --prior, --device)
1. Validation patients, at every dose: walks through the same counts and walks through counts drawn again. Of these two
   kinds and several floors, the pair with the least interval score (mean of 50 % and 90 % intervals, in units of the
   heart's mean activity, mean over doses; each patient with the temperature of the others) is chosen; its temperatures
   are what the module ships (printed at the end).
2. Test patients, who took no part in that: coverage in the heart before and after.
3. Probe: each defect real and invented, in images of OSEM and of the guided walk.
Every finished case is kept in --out under the fingerprint of network, method and settings, and not computed again: with
another walk nothing is taken over. The tables go to --keep:
uncertainty.csv, uncertainty_probe.csv and uncertainty.json (date, versions, calibration, areas under the curve)."""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from diffspect_nb.benchmark import read_rows
from diffspect_nb.cli_data import commit
from diffspect_nb.cohort import FIRST_TEST, FIRST_VALIDATION
from diffspect_nb.core import last
from diffspect_nb.files import atomic_path, write_csv, write_json
from diffspect_nb.methods import guided
from diffspect_nb.observer import area_under_roc
from diffspect_nb.prior import DEFAULT_PRIOR, pretrained
from diffspect_nb.probe import probe_pair, quick_image
from diffspect_nb.reconstruction import versions
from diffspect_nb.study import reduced
from diffspect_nb.tuning import validation_study
from diffspect_nb.uncertainty import (
    LEVELS,
    Calibration,
    Spread,
    coverage,
    fingerprint,
    fit_temperature,
    interval_score,
    posterior_samples,
    spread,
    start_worker,
)

KINDS = {"same counts": False, "counts drawn again": True}
FLOORS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2)
FIRST_PAIR = 935_000
PROBED = ("counts 0.01", "counts 0.05", "counts 0.2")


def case_file(out: Path, seed: int, dose: float, kind: str, samples: int) -> Path:
    "Where the spread of one patient at one dose is kept."
    return out / f"{seed}-{dose:g}-{kind.replace(' ', '-')}-{samples}.npz"


def walk(job: tuple[int, float, str], samples: int, prior: str, device: str, out: Path) -> str:
    "One case, in any process: the heart's truth, mean and standard deviation over its walks, in full-dose photons."
    (seed, dose, kind), started = job, time.perf_counter()
    study = validation_study(seed)
    low = reduced(study, f"counts {dose}", seed)
    walks = posterior_samples(low, samples, prior=pretrained(prior, device), workers=1, resample=KINDS[kind])
    found = spread(walks)
    parts = {"truth": study.truth, "mean": found.mean, "std": found.std}
    values = {name: image[study.heart].numpy() for name, image in parts.items()}
    seconds = time.perf_counter() - started
    with atomic_path(case_file(out, seed, dose, kind, samples)) as tmp, open(tmp, "wb") as file:
        np.savez_compressed(file, level=low.count_level, seconds=seconds, **values)
    return f"{seed} {dose:5.0%} {kind:18s} {samples} walks, {seconds:.0f} s"


def compute(
    jobs: Sequence[tuple[int, float, str]], samples: int, prior: str, device: str, out: Path, workers: int
) -> None:
    "Every case that is not there yet, one to a process."
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, start_worker) as pool:
        missing = [job for job in jobs if not case_file(out, *job, samples).exists()]
        for done in as_completed([pool.submit(walk, job, samples, prior, device, out) for job in missing]):
            print(done.result(), flush=True)


def load(out: Path, seed: int, dose: float, kind: str, samples: int, **how) -> tuple[Spread, torch.Tensor]:
    "A kept case: spread and truth of the heart's voxels."
    with np.load(case_file(out, seed, dose, kind, samples)) as kept:
        truth, mean, std = (torch.from_numpy(kept[name]) for name in ("truth", "mean", "std"))
    return Spread(mean, std, samples, **how), truth


def judged(cases: list[tuple[Spread, torch.Tensor]]) -> dict:
    "Coverage, width and score over patients; scores and widths in units of the heart's mean true activity."
    mean = {"patients": len(cases)}
    for level in (0.5, 0.9):
        found = [coverage(one, truth, level=level) for one, truth in cases]
        name = f"coverage_{level:.0%}".rstrip("%")
        mean |= {name: float(np.mean(found)), f"{name}_lowest": min(found), f"{name}_highest": max(found)}
    ends = [(one.interval(0.9), truth) for one, truth in cases]
    mean["width_90"] = float(np.mean([float((high - low).mean() / truth.mean()) for (low, high), truth in ends]))
    scores = [(interval_score(one, truth, level=p), truth) for one, truth in cases for p in (0.5, 0.9)]
    return mean | {"interval_score": float(np.mean([value / float(truth.mean()) for value, truth in scores]))}


def temperature_of(cases: list[tuple[Spread, torch.Tensor]]) -> float:
    "At which 90 % of these patients' voxels are covered."
    return fit_temperature([one for one, _ in cases], [truth for _, truth in cases], [None] * len(cases))


def fitted(out: Path, seeds: Sequence[int], doses: Sequence[float], kinds: Sequence[str], samples: int):
    """The choice with the least score {kind, floor, temperatures}, and a row for every choice and dose.

    Each patient is judged with the temperature of the others: what suits one patient alone is no calibration."""
    rows, scores, temperatures = [], {}, {}
    for kind in kinds:
        for floor in FLOORS:
            for dose in doses:
                cases = [load(out, seed, dose, kind, samples, floor=floor) for seed in seeds]
                t = temperature_of(cases)
                left_out = [temperature_of(cases[:i] + cases[i + 1 :] or cases) for i in range(len(cases))]
                after = judged([(replace(one, temperature=u), x) for (one, x), u in zip(cases, left_out, strict=True)])
                row = {"part": "fit", "dose": dose, "kind": kind, "floor": floor, "temperature": t}
                rows.append(row | after)
                scores.setdefault((kind, floor), []).append(after["interval_score"])
                temperatures.setdefault((kind, floor), []).append((dose, t))
    kind, floor = min(scores, key=lambda choice: np.mean(scores[choice]))
    return {"kind": kind, "floor": floor, "temperatures": temperatures[kind, floor]}, rows


def tested(out: Path, seeds: Sequence[int], doses: Sequence[float], calibration: Calibration) -> list[dict]:
    "Rows of the test patients: as sampled, and calibrated."
    kind, rows = next(k for k, v in KINDS.items() if v is calibration.resample), []
    samples = calibration.samples
    for dose in doses:
        t = calibration.temperature(dose)
        for part, how in (
            ("test, as sampled", {}),
            ("test, calibrated", {"temperature": t, "floor": calibration.floor}),
        ):
            row = {"part": part, "dose": dose, "kind": kind, "floor": 0.0, "temperature": 1.0} | how
            rows.append(row | judged([load(out, seed, dose, kind, samples, **how) for seed in seeds]))
    return rows


def pair(seed: int, prior: str, device: str) -> list[dict]:
    "One defect, real and invented, in any process."
    method = guided(pretrained(prior, device))
    images = {"OSEM": quick_image, "guided": lambda study: last(method(study)).image.cpu()}
    rows = probe_pair(seed, PROBED, images) or [{"patient": seed, "setting": None}]  # too small a defect
    return [row | {"date": time.strftime("%Y-%m-%d")} for row in rows]


def probe(path: Path, seeds: Sequence[int], prior: str, device: str, workers: int) -> list[dict]:
    "Every pair; finished ones are read from the file."
    there = {row["patient"] for row in read_rows(path)} if path.exists() else set()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, start_worker) as pool:
        jobs = {pool.submit(pair, seed, prior, device): seed for seed in seeds if seed not in there}
        for job in as_completed(jobs):
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in job.result()))
            print(f"{jobs[job]} probed", flush=True)
    rows = read_rows(path) if path.exists() else []
    return [row for row in rows if row["patient"] in set(seeds) and row["setting"]]


def probe_table(rows: list[dict]) -> list[dict]:
    "Area under the curve per setting, image and way of asking, over all defects and over the mild ones."
    table = []
    for setting, image in dict.fromkeys((row["setting"], row["image"]) for row in rows):
        for way, (name, most) in product(("shape", "region"), (("all", 1.0), ("milder than 0.3", 0.3))):
            some = [r for r in rows if (r["setting"], r["image"]) == (setting, image) and r["severity"] < most]
            if some:
                real, invented = ([r[f"{kind}_{way}_llr"] for r in some] for kind in ("real", "invented"))
                right = sum(a > 0 for a in real) + sum(b < 0 for b in invented)
                row = {"setting": setting, "image": image, "probe": way, "defects": name, "pairs": len(some)}
                area = area_under_roc(real, invented)
                row |= {"auc": area.auc, "auc_low": area.low, "auc_high": area.high}
                row |= {"sign_right": right / (2 * len(some))}
                row |= {"median_real": float(np.median(real)), "median_invented": float(np.median(invented))}
                table.append(row)
    return table


def show(rows: list[dict]) -> None:
    "A plain table."
    if rows:
        keys = list(rows[0])
        text = [[f"{row[k]:.3f}" if isinstance(row[k], float) else str(row[k]) for k in keys] for row in rows]
        widths = [max(map(len, column)) for column in zip(keys, *text, strict=True)]
        for line in (keys, *text):
            print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", type=int, default=4, help="validation patients")
    parser.add_argument("--test", type=int, default=6, help="test patients")
    parser.add_argument("--pairs", type=int, default=24, help="defects, each real and invented; 0: none")
    parser.add_argument("--samples", type=int, default=8, help="walks per patient and dose")
    parser.add_argument("--doses", type=float, nargs="+", default=LEVELS)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="walks to choose from")
    parser.add_argument("--prior", default=DEFAULT_PRIOR)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the walks")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("out/uncertainty"))
    parser.add_argument("--keep", type=Path, default=Path(__file__).parent, help="folder of the tables")
    args = parser.parse_args()
    mark = fingerprint(pretrained(args.prior))
    out = args.out / mark
    out.mkdir(parents=True, exist_ok=True)
    validation = range(FIRST_VALIDATION, FIRST_VALIDATION + args.fit)
    test = range(FIRST_TEST, FIRST_TEST + args.test)
    wanted = [(seed, dose, kind) for seed in validation for dose in args.doses for kind in args.kinds]
    compute(wanted, args.samples, args.prior, args.device, out, args.workers)
    choice, rows = fitted(out, validation, args.doses, args.kinds, args.samples)
    temperatures = tuple((dose, round(t, 3)) for dose, t in choice["temperatures"])
    calibration = Calibration(temperatures, choice["floor"], args.samples, KINDS[choice["kind"]], mark)
    left = [(s, d, choice["kind"]) for s in test for d in args.doses]
    compute(left, args.samples, args.prior, args.device, out, args.workers)
    rows += tested(out, test, args.doses, calibration) if args.test else []
    seeds = range(FIRST_PAIR, FIRST_PAIR + args.pairs)
    pairs = probe(out / "pairs.jsonl", seeds, args.prior, args.device, args.workers)
    probed = probe_table(pairs)
    show(rows)
    show(probed)
    about = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "versions": versions(), "samples": args.samples}
    about |= {"validation": list(validation), "test": list(test), "pairs": sorted({r["patient"] for r in pairs})}
    write_csv(args.keep / "uncertainty.csv", rows)
    if pairs:
        pairs.sort(key=lambda r: (r["setting"], r["image"], r["patient"]))
        write_csv(args.keep / "uncertainty_probe.csv", pairs)
    write_json(args.keep / "uncertainty.json", about | {"calibration": asdict(calibration), "probe": probed})
    print(f"FITTED = {calibration}")


if __name__ == "__main__":
    main()
