"""Real scans as activity: guided reconstruction against MLEM-50 at 5 % counts and at 9 views.

`python benchmarks/real_scans.py [--data DIR] [--csv FILE]` reads the PhysioNet scans, and the CT for one of them.
The scan is the reference: NRMSE and PSNR in the field of view, and in the heart where an expert drew it."""

import argparse
import csv
import os
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from diffspect_nb.metrics import scores_of
from diffspect_nb.core import ImageGrid
from diffspect_nb.ct import ct_to_mu
from diffspect_nb.dicom import study_from_image
from diffspect_nb.geometry import dnm570c
from diffspect_nb.mlem import mlem
from diffspect_nb.reconstruction import reconstruct
from diffspect_nb.files import load_image
from diffspect_nb.study import keep_views, thin
from diffspect_nb.footprint import attenuation_factors
from diffspect_nb.system import SystemMatrix

FULL_DOSE_COUNTS = 8e6


def cases(data: Path):
    "Every scan without a CT, then the first one behind a real CT: (name, full-dose study, its system)."
    folder, grid, scanner = data / "physionet_mps_dnm530c", ImageGrid(), dnm570c()
    base = SystemMatrix.build(scanner, grid)
    files = sorted(folder.glob("DICOM/*.dcm")) + sorted(folder.glob("nifti_pairs/*_0000.nii.gz"))
    for number, file in enumerate(files):
        mask = Path(str(file).replace("_0000", ""))
        heart = load_image(mask) if mask != file else None
        rng = np.random.default_rng(number)
        yield file.name[-22:], study_from_image(file, scanner, FULL_DOSE_COUNTS, rng, heart=heart), base
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(data / "ct_cptac_pda_c3n00249" / "CT_CHEST_102slices_dicom.tar.xz") as archive:
            archive.extractall(unpacked, filter="data")
        mu = ct_to_mu(unpacked, grid)
    study = study_from_image(files[0], scanner, FULL_DOSE_COUNTS, np.random.default_rng(0), mu)
    yield files[0].name[-22:] + " + CT", study, base.attenuate(attenuation_factors(mu, scanner, grid))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    home = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DIFFSPECT_DATA", home)))
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    args = parser.parse_args()
    rows = []
    print(f"{'scan':28s} {'setting':10s} {'mask':14s} {'MLEM-50':>8s} {'guided':>8s}  NRMSE against the scan")
    for name, full, system in cases(args.data):
        for setting in ("5 % counts", "9 views"):
            study = thin(full, 0.05, np.random.default_rng(1)) if setting[0] == "5" else keep_views(full, 9)
            started = time.perf_counter()
            part = system.keep_views(study.views)
            done = reconstruct(study, system=part)
            seconds = time.perf_counter() - started
            rival = mlem(part, study.projections, 50) / study.count_fraction
            scored = scores_of(study, {"MLEM-50": rival, "guided": done.image})
            half = len(scored) // 2
            for theirs, guided in zip(scored[:half], scored[half:], strict=True):
                row = {"scan": name, "setting": setting, "mask": theirs["mask"], "seconds": seconds}
                for who, r in (("mlem50", theirs), ("guided", guided)):
                    row |= {f"nrmse_{who}": r["nrmse"], f"psnr_db_{who}": r["psnr_db"]}
                rows.append(row)
                verdict = "" if guided["nrmse"] < theirs["nrmse"] else "  WORSE"
                numbers = f"{theirs['nrmse']:8.4f} {guided['nrmse']:8.4f}{verdict}"
                print(f"{name:28s} {setting:10s} {theirs['mask']:14s} {numbers}", flush=True)
    print(f"{sum(r['nrmse_guided'] < r['nrmse_mlem50'] for r in rows)} of {len(rows)} closer to the scan than MLEM-50")
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
