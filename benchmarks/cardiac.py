"""Is the heart found, and are its defects? Fifty simulated patients, three images of each, and the real scans.

    python benchmarks/cardiac.py             patients 930000 … 930049 and the real scans, into benchmarks/cardiac.csv
    python benchmarks/cardiac.py --normals   simulates normal women and men and writes the normal hearts that ship

Images (full-dose OSEM, OSEM at 5 % counts, truth) are kept in the cache, one file per patient; rows already in the
table are not measured again. The real scans are read from $DIFFSPECT_DATA, else ../shared/data, or left out.
Angles are between the long axes; the centre is the middle of the long axis, between base plane and epicardial apex."""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from pathlib import Path

import numpy as np
import torch

import diffspect_nb
from diffspect_nb.anatomy import defect_weight
from diffspect_nb.cardiac import LeftVentricle, find_ventricle, reorient, true_ventricle
from diffspect_nb.cohort import FIRST_TEST, draw_counts, draw_mismatch, generator_fingerprint, held_out_study, painter
from diffspect_nb.core import ImageGrid, InputError
from diffspect_nb.dicom import read_activity
from diffspect_nb.files import atomic_path, cache_dir, load_image, read_csv
from diffspect_nb.geometry import named_scanner
from diffspect_nb.mlem import osem
from diffspect_nb.polar import PolarMap, polar_map
from diffspect_nb.reading import Deficit, NormalHearts, deficit, load_normals, normal_hearts, save_normals
from diffspect_nb.recipe import simulate_mismatched
from diffspect_nb.study import Study, reduced

ROOT = Path(__file__).resolve().parents[1]
FIRST_NORMAL = 915_000
IMAGES = {"OSEM, full dose": "full", "OSEM, 5 % counts": "low", "truth": "truth"}
ERRORS = ("angle_deg", "center_mm", "along_mm", "apex_mm", "base_mm", "radius_mm")
FINDINGS = ("defects", "least_severity", "true_extent", "extent", "overlap", "severity_sd")
FIELDS = ("case", "image", *ERRORS, "match", "find_s", "read_s", *FINDINGS, "note")


def normal_study(seed: int) -> Study:
    "A woman (even seed) or a man with a usual heart and no defects, acquired as the held-out patients are."
    grid, scanner, rng = ImageGrid(), named_scanner("dnm570c"), np.random.default_rng([seed, 3])
    mismatch, counts = draw_mismatch(rng), draw_counts(rng)
    paint = painter(seed, "usual", "fm"[seed % 2], defects=[])
    own = mismatch.true_system(scanner, grid, cache=False)
    return simulate_mismatched(paint, scanner, grid, counts, rng, mismatch, own)


def simulate_images(seed: int, path: Path) -> None:
    "Simulate a patient and write truth, OSEM images and what is known of the heart into one file."
    normal = FIRST_NORMAL <= seed < FIRST_TEST
    study = normal_study(seed) if normal else held_out_study(seed)
    images = {"truth": study.truth.numpy(), "full": osem(study.measurement()).numpy()}
    if not normal:
        thin = reduced(study, "counts 0.05", seed)
        images["low"] = (osem(thin.measurement()) / thin.count_fraction).numpy()
    known = {name: json.dumps(study.meta["phantom"][name]) for name in ("heart", "sex")}
    known["defects"] = json.dumps(study.meta["defects"])
    with atomic_path(path) as part:
        np.savez_compressed(part, **images, **known)


def images_of(seed: int, folder: Path) -> dict:
    "The patient's images and what is known of the heart; simulated once."
    path = folder / f"{seed}.npz"
    if not path.exists():
        simulate_images(seed, path)
    with np.load(path) as file:
        found = {name: file[name] for name in file.files}
    return found | {name: json.loads(str(found[name])) for name in ("heart", "defects", "sex")}


def place_of(defects: list[dict], disc: PolarMap) -> np.ndarray:
    "Readings that lie in a defect as it was written."
    points = np.moveaxis(disc.points_mm(disc.wall_mm), -1, 0)
    weights = [defect_weight(disc.ventricle, d, *points) for d in defects]
    return np.max(weights, axis=0) > 0.5 if weights else np.zeros(disc.counts.shape, dtype=bool)


def errors(found: LeftVentricle, true: LeftVentricle) -> dict:
    "Angle in degrees; centre, and along the true axis centre, apex and base, in mm; radius."
    off = found.center_mm - true.center_mm
    tip, rim = (
        found.origin_mm + ours * found.axis - (true.origin_mm + theirs * true.axis)
        for ours, theirs in ((found.apex_mm, true.apex_mm), (found.base_mm, true.base_mm))
    )
    angle = float(np.rad2deg(np.arccos(np.clip(found.axis @ true.axis, -1, 1))))
    along = {"along_mm": off @ true.axis, "apex_mm": tip @ true.axis, "base_mm": rim @ true.axis}
    size = {"center_mm": float(np.linalg.norm(off)), "radius_mm": found.radius_mm - true.radius_mm}
    return {"angle_deg": angle} | size | along


def findings(case: dict, disc: PolarMap, lacking: Deficit) -> dict:
    "Extent and severity that a map shows, against the defects as written; overlap is Dice's coefficient by area."
    ideal = polar_map(case["truth"], true_ventricle(case["heart"]))
    written = place_of(case["defects"], ideal)
    both = (disc.area * (written & lacking.defect)).sum()
    either = (disc.area * written).sum() + (disc.area * lacking.defect).sum()
    return {
        "defects": len(case["defects"]),
        "least_severity": min([d["severity"] for d in case["defects"]], default=0.0),
        "true_extent": float(100 * (ideal.area * written).sum()),
        "extent": lacking.extent_percent,
        "overlap": float(2 * both / either) if either else 1.0,
        "severity_sd": lacking.severity_sd,
    }


def read_case(case: dict, image: np.ndarray, normal: NormalHearts) -> dict:
    "Find, reorient, read and compare one image of one simulated patient."
    started = time.perf_counter()
    try:
        found = find_ventricle(image)
    except InputError as e:
        return {"note": str(e)}
    found_at = time.perf_counter()
    reorient(image, found)
    disc = polar_map(image, found)
    lacking = deficit(disc, normal)
    seconds = {"find_s": found_at - started, "read_s": time.perf_counter() - found_at}
    missed = errors(found, true_ventricle(case["heart"]))
    return missed | {"match": found.match} | seconds | findings(case, disc, lacking)


def read_scan(file: Path) -> dict:
    "Find the heart of a real scan; against the expert's mask where there is one."
    image, grid = read_activity(file)
    started = time.perf_counter()
    found = find_ventricle(image, grid)
    found_at = time.perf_counter()
    reorient(image, found, grid)
    polar_map(image, found, grid)
    row = {"match": found.match, "find_s": found_at - started, "read_s": time.perf_counter() - found_at}
    place = ", ".join(f"{c:+.0f}" for c in found.center_mm)
    row["note"] = f"apex {found.azimuth_deg:.0f}° left, {found.elevation_deg:.0f}° down; centre {place} mm (x y z)"
    mask = Path(str(file).replace("_0000", ""))
    if mask != file:
        wall = load_image(mask)
        row |= errors(found, find_ventricle(image, grid, mask=wall))
        points = grid.centers_mm()[(wall.numpy() > 0).ravel()]
        inertia = np.linalg.eigh(np.cov(points.T))[1][:, 2]
        turn = np.rad2deg(np.arccos(min(1.0, abs(float(inertia @ found.axis)))))
        row["note"] += f"; errors against the mask's cup; longest axis of the mask's inertia is {turn:.0f}° away"
    return row


def numbers(rows: list[dict], key: str) -> np.ndarray:
    "A column of the table, without the empty fields."
    return np.array([float(r[key]) for r in rows if r[key] != ""])


def print_errors(rows: list[dict]) -> None:
    "Medians and spreads of what the search missed."
    for key in (*ERRORS, "find_s", "read_s"):
        a = numbers(rows, key)
        low, middle, high = np.percentile(a, (10, 50, 90))
        worst = a[np.abs(a).argmax()]
        print(f"  {key:10s} median {middle:6.2f}   10 % … 90 % {low:6.2f} … {high:6.2f}   worst {worst:6.2f}")


def print_extents(rows: list[dict]) -> None:
    "What healthy hearts seem to lack, and how far the extent of defects is off."
    healthy = numbers([r for r in rows if float(r["defects"]) == 0], "extent")
    if len(healthy):
        middle, high = np.percentile(healthy, (50, 90))
        print(f"  no defect ({len(healthy)}): extent median {middle:.1f} %, 90th percentile {high:.1f} % of the wall")
    for name, low, high in (("mildest below 0.4", 0, 0.4), ("all 0.4 or more", 0.4, 1)):
        sick = [r for r in rows if float(r["defects"]) > 0 and low <= float(r["least_severity"]) < high]
        if not sick:
            continue
        gap = numbers(sick, "extent") - numbers(sick, "true_extent")
        print(f"  defects, {name} ({len(sick)}): extent − true median {np.median(gap):+.1f}", end=", ")
        print(f"|…| median {np.median(np.abs(gap)):.1f} % of the wall", end=", ")
        print(f"within 5 % in {np.mean(np.abs(gap) <= 5):.0%}", end=", ")
        print(f"overlap (Dice) median {np.median(numbers(sick, 'overlap')):.2f}")


def summary(rows: list[dict]) -> None:
    "Print medians and spreads of what the table holds."
    for image in IMAGES:
        found = [r for r in rows if r["image"] == image]
        if not (seen := [r for r in found if r["angle_deg"] != ""]):
            continue
        print(f"\n{image}: {len(found)} patients, heart found in {len(seen)}")
        print_errors(seen)
        if image != "truth":  # the normal hearts were read from OSEM images
            print_extents(seen)
    print()
    for r in (r for r in rows if r["image"] == "real scan"):
        gap = f"{float(r['angle_deg']):.1f}° and {float(r['center_mm']):.1f} mm off; " if r["angle_deg"] else ""
        print(f"{r['case']:24s} match {float(r['match']):.2f}; {gap}{r['note']}")


def make_normals(n: int, cache: Path) -> None:
    "Simulate n normal hearts of both sexes together, read them, and write the file that ships."
    readings: dict[str, list[PolarMap]] = {"f": [], "m": []}
    for seed in range(FIRST_NORMAL, FIRST_NORMAL + n):
        case = images_of(seed, cache)
        readings[case["sex"]].append(polar_map(case["full"]))
        print(seed, case["sex"], flush=True)
    about = "simulated {}, DNM 570c, CT attenuation correction, OSEM 5 passes of 4 subsets, full dose"
    target = Path(diffspect_nb.__file__).parent / "normals" / "osem.safetensors"
    words = {"f": "women", "m": "men"}
    save_normals(target, {s: normal_hearts(r, about.format(words[s])) for s, r in readings.items()})
    made = ", ".join(f"{len(r)} {words[s]}" for s, r in readings.items())
    print(f"{target.name}: {target.stat().st_size / 1000:.0f} kB, {made}")


class Table:
    "The rows of a CSV file, written anew with each one that is added."

    def __init__(self, path: Path):
        self.path = path
        self.rows = read_csv(path)

    def has(self, case: str, image: str) -> bool:
        "Whether an image of a case was measured already."
        return any((r["case"], r["image"]) == (case, image) for r in self.rows)

    def add(self, case: str, image: str, row: dict) -> None:
        "Add a row, floats with four significant digits, and write the file."
        text = {k: f"{v:.4g}" if isinstance(v, float | np.floating) else str(v) for k, v in row.items()}
        self.rows.append(dict.fromkeys(FIELDS, "") | {"case": case, "image": image} | text)
        with atomic_path(self.path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def read_patients(table: Table, seeds: range, cache: Path) -> None:
    "Add a row for every image of every patient that is not in the table yet."
    normals = load_normals()
    for seed in seeds:
        todo = [image for image in IMAGES if not table.has(str(seed), image)]
        if not todo:
            continue
        case = images_of(seed, cache)
        for image in todo:
            table.add(str(seed), image, read_case(case, case[IMAGES[image]], normals[case["sex"]]))
        print(seed, flush=True)


def read_scans(table: Table, data: Path) -> None:
    "Add a row for every real scan that is not in the table yet."
    folder = data / "physionet_mps_dnm530c"
    if not folder.is_dir():
        print(f"no real scans: {folder} is not a folder")
    for file in sorted(folder.glob("DICOM/*.dcm")) + sorted(folder.glob("nifti_pairs/*_0000.nii.gz")):
        if not table.has(file.name[-22:], "real scan"):
            table.add(file.name[-22:], "real scan", read_scan(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--normals", action="store_true", help="make the normal hearts")
    parser.add_argument("--n", type=int, help="patients (50), or normal hearts of both sexes together (40)")
    parser.add_argument("--first", type=int, default=FIRST_TEST, help="seed of the first patient")
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "cardiac.csv")
    parser.add_argument("--cache", type=Path, default=cache_dir() / f"cardiac-{generator_fingerprint()[:8]}")
    home = ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DIFFSPECT_DATA", home)))
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    if args.normals:
        return make_normals(args.n or 40, args.cache)
    table = Table(args.csv)
    read_patients(table, range(args.first, args.first + (args.n or 50)), args.cache)
    read_scans(table, args.data)
    summary(table.rows)


if __name__ == "__main__":
    main()
