"""Who could skip the rest scan? Stress and rest of simulated patients, imaged three ways, read against normal hearts.

    python benchmarks/stress_first.py [--workers 2] [--patients 20] [--normals 10]

Every other patient has coronary disease: a reversible defect (at stress alone), a fixed one, or both; the others have a
normal heart. Normal hearts for the comparison are made by the same method, from other patients. The images are kept in
the cache, one file an acquisition, so that a stopped run goes on; the readings go into benchmarks/stress_first.csv.
`--patients 4 --normals 5` is the quick form: an example, not evidence."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np

from diffspect_nb.benchmark import interval
from diffspect_nb.cardiac import find_ventricle
from diffspect_nb.cohort import USUAL_DEFECT, draw_mismatch, generator_fingerprint, painter
from diffspect_nb.core import ImageGrid, InputError, last
from diffspect_nb.files import atomic_path, cache_dir, write_csv
from diffspect_nb.geometry import named_scanner
from diffspect_nb.methods import Named
from diffspect_nb.polar import PolarMap, polar_map
from diffspect_nb.reading import deficit, normal_hearts
from diffspect_nb.recipe import simulate_mismatched
from diffspect_nb.study import Study
from diffspect_nb.work import Workers, finished, workers_of

ROOT = Path(__file__).resolve().parents[1]
FIRST_PATIENT, FIRST_NORMAL = 916_000, 917_000
METHODS = {"MLEM-50": Named("mlem", passes=50), "paper": Named("paper"), "anchored": Named("anchored")}
COUNTS = {"stress": 4e6, "rest": 12e6}  # a third of the activity at stress
ABNORMAL = 5.0  # per cent of the wall below normal, from which a reading is abnormal
TERRITORIES = {"LAD": 25.0, "LCx": 270.0, "RCA": 180.0}  # artery → middle of its territory, degrees


def lesions(seed: int) -> dict[str, list[dict]]:
    "What a patient lacks at stress and at rest: nothing (even seeds), or a reversible defect, a fixed one, or both."
    if seed % 2 == 0:
        return {"stress": [], "rest": []}
    rng = np.random.default_rng([seed, 22])
    arteries, kinds = rng.permutation(list(TERRITORIES)), [("reversible",), ("fixed",), ("fixed", "reversible")]
    drawn = {}
    for kind, artery in zip(kinds[seed // 2 % 3], map(str, arteries), strict=False):
        center = TERRITORIES[artery] + rng.uniform(-15, 15)
        drawn[kind] = USUAL_DEFECT | {"territory": artery, "severity": rng.uniform(0.3, 0.6), "center_deg": center}
    return {"stress": list(drawn.values()), "rest": [d for kind, d in drawn.items() if kind == "fixed"]}


def acquired(seed: int, phase: str) -> Study:
    "A woman (seeds 0 and 1 of four) or a man; each phase has its own misplaced CT, motion and scatter."
    grid, scanner = ImageGrid(), named_scanner("dnm570c")
    rng = np.random.default_rng([seed, 23, list(COUNTS).index(phase)])
    mismatch, missing = draw_mismatch(rng), lesions(seed)[phase] if seed < FIRST_NORMAL else []
    paint = painter(seed, "usual", "fm"[seed // 2 % 2], defects=missing)
    own = mismatch.true_system(scanner, grid, cache=False)
    return simulate_mismatched(paint, scanner, grid, COUNTS[phase], rng, mismatch, own)


def path_of(seed: int, phase: str) -> Path:
    "Where the images of an acquisition are kept."
    return cache_dir() / f"stress-first-{generator_fingerprint()[:8]}" / f"{seed}-{phase}.npz"


def make_images(seed: int, phase: str) -> None:
    "Acquire, reconstruct by every method, and keep the images."
    study, path = acquired(seed, phase), path_of(seed, phase)
    images = {name: last(method(study)).image.numpy().astype(np.float32) for name, method in METHODS.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        np.savez_compressed(part, **images)


def discs(seed: int, phase: str) -> dict[str, PolarMap | None]:
    "Polar map of each image; None where no heart was found."
    found: dict[str, PolarMap | None] = {}
    with np.load(path_of(seed, phase)) as file:
        for name in METHODS:
            try:
                found[name] = polar_map(file[name], find_ventricle(file[name]))
            except InputError:
                found[name] = None
    return found


def make_all(jobs: list[tuple[int, str]], workers: Workers | None) -> None:
    "The images that are not there yet."
    missing = {f"{s} {phase}": partial(make_images, s, phase) for s, phase in jobs if not path_of(s, phase).exists()}
    started = time.perf_counter()
    results = finished(missing, workers) if workers else ((name, make()) for name, make in missing.items())
    for i, (name, _) in enumerate(results, 1):
        print(f"{time.perf_counter() - started:6.0f} s  {name} ({i} of {len(missing)})", flush=True)


def read_all(patients: range, normals: range) -> list[dict]:
    "A row for each patient, phase and method: what is missing there, against the method's own normal hearts."
    healthy = [discs(seed, "stress") for seed in normals]
    usual = {name: normal_hearts([d[name] for d in healthy if d[name] is not None]) for name in METHODS}
    rows = []
    for seed in patients:
        missing = lesions(seed)
        for phase in COUNTS:
            for name, disc in discs(seed, phase).items():
                row = {"patient": seed, "phase": phase, "method": name, "defects": len(missing[phase])}
                lacking = None if disc is None else deficit(disc, usual[name])
                extent = None if lacking is None else round(lacking.extent_percent, 2)
                severity = None if lacking is None else round(lacking.severity_sd, 3)
                rows.append(row | {"extent_percent": extent, "severity_sd": severity, "normals": len(normals)})
    return rows


def share(flags: list[bool]) -> str:
    "Of so many, with a 95 % interval."
    mean, low, high = interval([float(f) for f in flags])
    return f"{sum(flags)} of {len(flags)} ({mean:.0%}, {low:.0%} … {high:.0%})"


def summary(rows: list[dict]) -> None:
    "Print who could go home after the stress scan, who would have been missed, and false defects of both phases."
    for method in METHODS:
        own = [r for r in rows if r["method"] == method and r["extent_percent"] is not None]
        for phase in COUNTS:
            found = {
                k: [r["extent_percent"] for r in own if r["phase"] == phase and bool(r["defects"]) == k] for k in (0, 1)
            }
            clean, sick = ([e >= ABNORMAL for e in found[k]] for k in (0, 1))
            better = np.mean([(b > a) + 0.5 * (b == a) for a in found[0] for b in found[1]]) if sick else np.nan
            print(f"{method:9s} {phase:6s} read as abnormal: normal hearts {share(clean)}", end="; ")
            print(
                f"hearts with a defect {share(sick) if sick else '–'}; area under the curve of the extent {better:.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=20)
    parser.add_argument("--normals", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "stress_first.csv")
    args = parser.parse_args()
    patients, normals = (
        range(FIRST_PATIENT, FIRST_PATIENT + args.patients),
        range(FIRST_NORMAL, FIRST_NORMAL + args.normals),
    )
    jobs = [(seed, "stress") for seed in normals] + [(seed, phase) for seed in patients for phase in COUNTS]
    make_all(jobs, workers_of(args.workers))
    rows = read_all(patients, normals)
    write_csv(args.csv, rows)
    summary(rows)


if __name__ == "__main__":
    main()
