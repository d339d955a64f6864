"""Which prior? Every variant trained for the same time on the same patients, judged on validation patients.

`python benchmarks/priors.py [--minutes 6] [--patients 100] [--out DIR] [--csv FILE] [--only NAME …]`
`python benchmarks/priors.py --judge diffspect light --validation 6 --csv benchmarks/shipped.csv` trains nothing.
The number of steps follows from the time of a few, so that each variant's learning rate falls to zero at its end.
Resumable: a variant whose checkpoint is there is only judged. The judge is the PSNR of the guided image against the
truth, in the heart and in the field of view: mean over validation patients, and the paired difference to the first
judged prior with its 95 % interval. `validation_patients` says on how many it rests."""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffspect_nb.benchmark import guided, interval
from diffspect_nb.cli_data import commit
from diffspect_nb.cohort import FIRST_VALIDATION
from diffspect_nb.core import last
from diffspect_nb.files import write_csv
from diffspect_nb.metrics import masks_of, psnr
from diffspect_nb.prior import pretrained
from diffspect_nb.slice_network import UNetConfig
from diffspect_nb.study import Study, reduced
from diffspect_nb.training import TrainConfig, train
from diffspect_nb.tuning import validation_study
from diffspect_nb.volume_network import VolumeConfig

BASE = TrainConfig(learning_rate=5e-4, cooldown=0.4, heart_weight=6.0, first_seed=400)
SLICES = replace(BASE, batch=16, network=UNetConfig())
VARIANTS = {
    "3-D, 2³ voxels to channels, 64–96–128": BASE,
    "2.5-D, 2² pixels to channels, 64–128–192": SLICES,
    "2.5-D, labels MLEM-50": replace(SLICES, label="mlem50"),
    "3-D, labels MLEM-50": replace(BASE, label="mlem50"),
    "3-D, predicts ε": replace(BASE, network=VolumeConfig(predict="epsilon")),
    "3-D, linear schedule": replace(BASE, schedule="linear"),
    "3-D, narrow: 32–64–96": replace(BASE, network=VolumeConfig(widths=(32, 64, 96))),
    "3-D, full resolution: 16–32–64–96": replace(
        BASE, batch=1, network=VolumeConfig(patch=1, widths=(16, 32, 64, 96), blocks=1)
    ),
    "3-D, never sees the acquisition": replace(BASE, condition_dropout=1.0),
    "2.5-D, full resolution: 32–64–128": replace(SLICES, batch=8, network=UNetConfig(patch=1, widths=(32, 64, 128))),
    "2.5-D, wide: 96–192–256": replace(SLICES, network=UNetConfig(widths=(96, 192, 256))),
    "2.5-D, labels MLEM-50, linear schedule": replace(SLICES, label="mlem50", schedule="linear"),
}
SETTINGS = ("counts 0.01", "counts 0.05", "counts 1.0", "views 9")


def seconds_per_step(config: TrainConfig, folder: Path) -> float:
    "Median of a few steps, the first ones left out."
    times = [s.scalars["seconds"] for s in train(replace(config, steps=14, n_studies=8), folder, save_every=1000)]
    return float(np.median(times[4:]))


def judge(name: str, studies: list[Study]) -> dict[str, list[float]]:
    "PSNR of every patient's guided image at each setting in each region, and the seconds of each."
    method, found = guided(pretrained(name)), {"seconds": []}
    for study in studies:
        for setting in SETTINGS:
            started = time.perf_counter()
            image = last(method(reduced(study, setting))).image
            found["seconds"].append(time.perf_counter() - started)
            for mask, where in masks_of(study).items():
                found.setdefault(f"{setting}, {mask}", []).append(psnr(image, study.truth, where))
    return found


def row_of(found: dict[str, list[float]], first: dict[str, list[float]]) -> dict:
    "Means over patients, and what lies between them and the first prior's, patient by patient."
    row = {key: float(np.median(v) if key == "seconds" else np.mean(v)) for key, v in found.items()}
    for key in (key for key in found if key != "seconds"):
        apart = interval([a - b for a, b in zip(found[key], first[key], strict=True)])
        row |= dict(zip((f"{key}, {name}" for name in ("gain", "low", "high")), apart, strict=True))
    return {"validation_patients": len(found["seconds"]) // len(SETTINGS)} | row


def judged(names: list[str], studies: list[Study], csv: Path | None) -> None:
    "Judge priors that are there already."
    rows, first = [], None
    for name in names:
        found = judge(name, studies)
        first = first or found
        about = {"prior": name, "patients": len(studies), "commit": commit(), "date": time.strftime("%Y-%m-%d")}
        rows.append(about | row_of(found, first))
        print(rows[-1], flush=True)
        if csv:
            write_csv(csv, rows)


def trained(name: str, number: int, args: argparse.Namespace) -> Path:
    "The checkpoint of a variant, trained for the minutes asked for unless it is there."
    folder, config = args.out / f"{number:02d}", replace(VARIANTS[name], n_studies=args.patients)
    for _ in config.cohort.make(config.label):
        continue
    if not (folder / "checkpoint.safetensors").exists():
        steps = max(20, int(60 * args.minutes / seconds_per_step(config, args.out / f"{number:02d}-timing")))
        for _ in train(replace(config, steps=steps, warmup=min(200, steps // 5)), folder, save_every=10**9):
            continue
    return folder / "checkpoint.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3, help="of training for each variant")
    parser.add_argument("--patients", type=int, default=100, help="to train on")
    parser.add_argument("--validation", type=int, default=2, help="patients to judge on")
    parser.add_argument("--out", type=Path, default=Path("out/priors"))
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--only", nargs="*", help="names, or parts of names, of variants")
    parser.add_argument("--judge", nargs="+", metavar="PRIOR", help="only judge these")
    args = parser.parse_args()
    studies = [validation_study(FIRST_VALIDATION + i) for i in range(args.validation)]
    if args.judge:
        judged(args.judge, studies, args.csv)
        return
    rows, first = [], None
    for number, name in enumerate(VARIANTS):
        if args.only and not any(part in name for part in args.only):
            continue
        path = trained(name, number, args)
        prior, found = pretrained(str(path)), judge(str(path), studies)
        first = first or found
        row = {"variant": name, "parameters_M": sum(p.numel() for p in prior.net.parameters()) / 1e6}
        row |= {"steps": prior.provenance["steps"], "batch": VARIANTS[name].batch}
        row |= {"minutes": args.minutes, "patients": args.patients}
        rows.append(row | row_of(found, first))
        print(rows[-1], flush=True)
        if args.csv:
            write_csv(args.csv, rows)


if __name__ == "__main__":
    main()
