"""How thick a shell, how many passes to fill it? `python benchmarks/surroundings.py [--patients 8] [--prior PRIOR]`

Each variant of the shell around the image (`surroundings.MARGIN_MM`, `PASSES`) on the same counts of validation
patients: decibels of MLEM-50 and of the anchored walk in the heart and the field of view, share of the counts that the
shell takes, reduced deviance of the walk's image, processor seconds of its estimate. Printed: paired differences to the
first variant, with 95 % intervals over the patients; every row goes to surroundings.csv."""

import argparse
import time
from pathlib import Path

import diffspect_nb.surroundings as surroundings
from diffspect_nb.benchmark import interval
from diffspect_nb.cohort import FIRST_VALIDATION
from diffspect_nb.files import write_csv
from diffspect_nb.metrics import masks_of, psnr
from diffspect_nb.mlem import mlem
from diffspect_nb.prior import DEFAULT_PRIOR, Prior, pretrained
from diffspect_nb.reconstruction import reconstruct
from diffspect_nb.study import reduced
from diffspect_nb.tuning import validation_study

VARIANTS = ((48.0, 3), (48.0, 12), (80.0, 6), (80.0, 12))  # thickness in mm, passes
SETTINGS = ("counts 1.0", "counts 0.05", "views 9")


def row_of(patient: int, setting: str, margin: float, passes: int, prior: Prior) -> dict:
    "One variant on one acquisition."
    surroundings.MARGIN_MM, surroundings.PASSES = margin, passes
    surroundings._LAST.clear()
    study = validation_study(patient)
    low, masks = reduced(study, setting, patient), masks_of(study)
    surroundings._shell_of(low)
    began = time.process_time()
    seen = surroundings.surrounded(low)
    row = {"patient": patient, "setting": setting, "margin_mm": margin, "passes": passes}
    row |= {"cpu_s": round(time.process_time() - began, 3), "share": round(seen.meta["beyond_grid"], 5)}
    done = reconstruct(seen, prior=prior)
    images = {"mlem50": mlem(seen.measurement(), 50) / low.count_fraction, "guided": done.image}
    for name, image in images.items():
        row |= {f"{name}_{m.replace(' ', '_')}_db": round(psnr(image, study.truth, w), 4) for m, w in masks.items()}
    return row | {"reduced_deviance": round(done.support.reduced, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--prior", default=DEFAULT_PRIOR)
    args = parser.parse_args()
    prior, rows = pretrained(args.prior), []
    for patient in range(FIRST_VALIDATION, FIRST_VALIDATION + args.patients):
        rows += [row_of(patient, s, *variant, prior) for s in SETTINGS for variant in VARIANTS]
        print(f"patient {patient}", flush=True)
        write_csv(Path(__file__).with_suffix(".csv"), rows)
    for setting in SETTINGS:
        by = {(r["patient"], (r["margin_mm"], r["passes"])): r for r in rows if r["setting"] == setting}
        for variant in VARIANTS[1:]:
            said = []
            for key in (k for k in rows[0] if k.endswith("_db") or k in ("cpu_s", "reduced_deviance")):
                apart = [by[p, variant][key] - by[p, VARIANTS[0]][key] for p in {p for p, _ in by}]
                said.append("{} {:+.2f} ({:+.2f} … {:+.2f})".format(key, *interval(apart)))
            print(setting, variant, *said, sep="  ")


if __name__ == "__main__":
    main()
