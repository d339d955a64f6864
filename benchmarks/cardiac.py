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
from diffspect_nb.cohort import held_out_study
from diffspect_nb.study import reduced
from diffspect_nb.cardiac import find_ventricle, reorient, true_ventricle
from diffspect_nb.polar import PolarMap, polar_map
from diffspect_nb.reading import deficit, load_normals, normal_hearts, save_normals
from diffspect_nb.core import ImageGrid, InputError
from diffspect_nb.files import atomic_path, cache_dir
from diffspect_nb.dicom import read_activity
from diffspect_nb.geometry import named_scanner
from diffspect_nb.mlem import osem
from diffspect_nb.anatomy import defect_weight
from diffspect_nb.phantom import torso
from diffspect_nb.files import load_image
from diffspect_nb.study import Mismatch, Study, simulate_mismatched

ROOT = Path(__file__).resolve().parents[1]
FIRST_PATIENT, FIRST_NORMAL = 930_000, 915_000
IMAGES = {"OSEM, full dose": "full", "OSEM, 5 % counts": "low", "truth": "truth"}
ERRORS = ("angle_deg", "center_mm", "along_mm", "apex_mm", "base_mm", "radius_mm")
FINDINGS = ("defects", "least_severity", "true_extent", "extent", "overlap", "severity_sd")
FIELDS = ("case", "image", *ERRORS, "match", "find_s", "read_s", *FINDINGS, "note")


def normal_study(seed: int) -> Study:
    "A woman (even seed) or a man without defects, acquired as the held-out patients are."
    grid, scanner, rng = ImageGrid(), named_scanner("dnm570c"), np.random.default_rng([seed, 3])
    mismatch, counts = Mismatch.draw(rng), float(np.exp(rng.uniform(np.log(4e6), np.log(25e6))))

    def paint(g: ImageGrid):
        return torso(np.random.default_rng(seed), g, defects=[], sex="fm"[seed % 2])

    real = mismatch.true_system(scanner, grid, cache=False)
    return simulate_mismatched(paint, scanner, grid, counts, rng, mismatch, real)


def images_of(seed: int, folder: Path) -> dict:
    "The patient's images and what is known of the heart; simulated once."
    path = folder / f"{seed}.npz"
    if not path.exists():
        normal = FIRST_NORMAL <= seed < FIRST_PATIENT
        study = normal_study(seed) if normal else held_out_study(seed)
        system, low = study.system(), {}
        if not normal:
            thin = reduced(study, "counts 0.05", seed)
            low["low"] = (osem(system, thin.projections) / thin.count_fraction).numpy()
        known = {name: json.dumps(study.meta["phantom"][name]) for name in ("heart", "sex")}
        known["defects"] = json.dumps(study.meta["defects"])
        full = osem(system, study.projections).numpy()
        with atomic_path(path) as part:
            np.savez_compressed(part, truth=study.truth.numpy(), full=full, **low, **known)
    with np.load(path) as file:
        found = {name: file[name] for name in file.files}
    known = {name: json.loads(str(found[name])) for name in ("heart", "defects")}
    return found | known | {"sex": str(found["sex"]).strip('"')}


def place_of(defects: list[dict], disc: PolarMap) -> np.ndarray:
    "Readings that lie in a defect as it was written."
    points = np.moveaxis(disc.points_mm(disc.wall_mm), -1, 0)
    weights = [defect_weight(disc.ventricle, d, *points) for d in defects]
    return np.max(weights, axis=0) > 0.5 if weights else np.zeros(disc.counts.shape, dtype=bool)


def errors(found, true) -> dict:
    "Angle in degrees; centre, and along the true axis centre, apex and base, in mm; radius."
    off, tip, rim = (
        np.array(a) - np.array(b)
        for a, b in (
            (found.center_mm, true.center_mm),
            (found.origin_mm + found.apex_mm * found.axis, true.origin_mm + true.apex_mm * true.axis),
            (found.origin_mm + found.base_mm * found.axis, true.origin_mm + true.base_mm * true.axis),
        )
    )
    angle = float(np.rad2deg(np.arccos(np.clip(found.axis @ true.axis, -1, 1))))
    along = {"along_mm": off @ true.axis, "apex_mm": tip @ true.axis, "base_mm": rim @ true.axis}
    return {
        "angle_deg": angle,
        "center_mm": float(np.linalg.norm(off)),
        "radius_mm": found.radius_mm - true.radius_mm,
    } | along


def read_case(case: dict, image: np.ndarray, normals: dict) -> dict:
    "Find, reorient, read and compare one image of one simulated patient."
    true = true_ventricle(case["heart"])
    started = time.perf_counter()
    try:
        found = find_ventricle(image)
    except InputError as e:
        return {"note": str(e)}
    found_at = time.perf_counter()
    reorient(image, found)
    disc = polar_map(image, found)
    lacking = deficit(disc, normals[case["sex"]])
    done = time.perf_counter()
    ideal = polar_map(case["truth"], true)
    written = place_of(case["defects"], ideal)
    both = (disc.area * (written & lacking.defect)).sum()
    either = (disc.area * written).sum() + (disc.area * lacking.defect).sum()
    return errors(found, true) | {
        "match": found.match,
        "find_s": found_at - started,
        "read_s": done - found_at,
        "defects": len(case["defects"]),
        "least_severity": min([d["severity"] for d in case["defects"]], default=0.0),
        "true_extent": float(100 * (ideal.area * written).sum()),
        "extent": lacking.extent_percent,
        "overlap": float(2 * both / either) if either else 1.0,
        "severity_sd": lacking.severity_sd,
    }


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


def summary(rows: list[dict]) -> None:
    "Print medians and spreads of what the table holds."
    for image in IMAGES:
        found = [r for r in rows if r["image"] == image]
        seen = [r for r in found if r["angle_deg"] != ""]
        if not seen:
            continue
        print(f"\n{image}: {len(found)} patients, heart found in {len(seen)}")
        for key in (*ERRORS, "find_s", "read_s"):
            a = numbers(seen, key)
            low, middle, high = np.percentile(a, (10, 50, 90))
            worst = a[np.abs(a).argmax()]
            print(f"  {key:10s} median {middle:6.2f}   10 % … 90 % {low:6.2f} … {high:6.2f}   worst {worst:6.2f}")
        if image == "truth":
            continue  # the normal hearts were read from OSEM images
        healthy = numbers([r for r in seen if float(r["defects"]) == 0], "extent")
        middle, high = np.percentile(healthy, (50, 90))
        print(f"  no defect ({len(healthy)}): extent median {middle:.1f} %, 90th percentile {high:.1f} % of the wall")
        for name, low, high in (("mildest below 0.4", 0, 0.4), ("all 0.4 or more", 0.4, 1)):
            sick = [r for r in seen if float(r["defects"]) > 0 and low <= float(r["least_severity"]) < high]
            if not sick:
                continue
            gap = numbers(sick, "extent") - numbers(sick, "true_extent")
            print(f"  defects, {name} ({len(sick)}): extent − true median {np.median(gap):+.1f}", end=", ")
            print(f"|…| median {np.median(np.abs(gap)):.1f} % of the wall", end=", ")
            print(f"within 5 % in {np.mean(np.abs(gap) <= 5):.0%}", end=", ")
            print(f"overlap (Dice) median {np.median(numbers(sick, 'overlap')):.2f}")
    print()
    for r in rows:
        if r["image"] == "real scan":
            gap = f"{float(r['angle_deg']):.1f}° and {float(r['center_mm']):.1f} mm off; " if r["angle_deg"] else ""
            print(f"{r['case']:24s} match {float(r['match']):.2f}; {gap}{r['note']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--normals", action="store_true", help="make the normal hearts")
    parser.add_argument("--n", type=int, help="patients (50), or normal hearts of both sexes together (40)")
    parser.add_argument("--first", type=int, default=FIRST_PATIENT, help="seed of the first patient")
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "cardiac.csv")
    parser.add_argument("--cache", type=Path, default=cache_dir() / "cardiac")
    home = ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DIFFSPECT_DATA", home)))
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    if args.normals:
        readings = {"f": [], "m": []}
        for seed in range(FIRST_NORMAL, FIRST_NORMAL + (args.n or 40)):
            case = images_of(seed, args.cache)
            readings[case["sex"]].append(polar_map(case["full"]))
            print(seed, case["sex"], flush=True)
        about = "simulated {}, DNM 570c, CT attenuation correction, OSEM 5 passes of 4 subsets, full dose"
        target = Path(diffspect_nb.__file__).parent / "normals" / "osem.safetensors"
        words = {"f": "women", "m": "men"}
        save_normals(target, {s: normal_hearts(r, about.format(words[s])) for s, r in readings.items()})
        made = ", ".join(f"{len(r)} {words[s]}" for s, r in readings.items())
        print(f"{target.name}: {target.stat().st_size / 1000:.0f} kB, {made}")
        return
    rows = list(csv.DictReader(args.csv.open(encoding="utf-8"))) if args.csv.exists() else []
    done, normals = {(r["case"], r["image"]) for r in rows}, load_normals()

    def keep(case: str, image: str, row: dict) -> None:
        new = dict.fromkeys(FIELDS, "") | {"case": case, "image": image}
        rows.append(new | {k: f"{v:.4g}" if isinstance(v, float | np.floating) else v for k, v in row.items()})
        with atomic_path(args.csv) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    for seed in range(args.first, args.first + (args.n or 50)):
        todo = [image for image in IMAGES if (str(seed), image) not in done]
        case = images_of(seed, args.cache) if todo else {}
        for image in todo:
            keep(str(seed), image, read_case(case, case[IMAGES[image]], normals))
        if todo:
            print(seed, flush=True)
    folder = args.data / "physionet_mps_dnm530c"
    if not folder.is_dir():
        print(f"no real scans: {folder} is not a folder")
    for file in sorted(folder.glob("DICOM/*.dcm")) + sorted(folder.glob("nifti_pairs/*_0000.nii.gz")):
        if (file.name[-22:], "real scan") not in done:
            keep(file.name[-22:], "real scan", read_scan(file))
    summary([{k: str(v) for k, v in r.items()} for r in rows])


if __name__ == "__main__":
    main()
