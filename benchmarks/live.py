"""The live page's prior, made again, and the sliders it is shipped with.

`python benchmarks/live.py train [--config benchmarks/live.json] [--folder DIR] [--ship]` trains the small prior; it may
be stopped and called again; `--ship` puts the prior and the page's patients where the library finds them.
`python benchmarks/live.py grid [--patients 8] [--dose 0.05] [--views 9] [--jacobian network] [--only SETTING …]` moves
one slider at a time from the shipped values, on the first patients of the page (validation): PSNR of the heart against
the truth, and reduced deviance. Rows that the CSV has are not computed again. The best value of each slider stands at
the end, with the mean over the patients.

λ_TV pays where grain is left: `--dose 0.01 --views 19 --jacobian identity --only tv_weight`; the gradient through the
network leaves none."""

import argparse
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffspect_nb.files import cache_dir, read_csv, read_json, write_csv
from diffspect_nb.live import (
    ANCHORED,
    PAPER,
    LiveConfig,
    LiveState,
    live_acquisition,
    live_denoiser,
    live_scores,
    live_steps,
    make_patients,
    shipped,
    train_live,
)
from diffspect_nb.prior import pretrained
from diffspect_nb.training import CHECKPOINT

GRID = {
    ("paper", "lambda_dps"): (0.0, 0.1, 0.2, 0.3, 0.6),
    ("paper", "lambda_mlem"): (0.0, 0.1, 0.2, 0.4, 0.6),
    ("paper", "tv_weight"): (0.0, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08),
    ("anchored", "anchor"): (0.001, 0.002, 0.005, 0.02, 0.1),
}
PLACE = ("dose", "views", "jacobian")  # where a slider is moved
COLUMNS = ("patient", *PLACE, "walk", "setting", "value", "psnr_db", "deviance")


def train(config: Path, folder: Path, ship: bool) -> None:
    "Train or go on; with `ship` the checkpoint and the patients go into the package."
    told = LiveConfig.from_json(read_json(config))
    for step in train_live(told, folder):
        if step.index % 100 == 0:
            print(f"{step.index} of {step.total}: {step.scalars['loss']:.4f}", flush=True)
    if ship:
        shutil.copy(folder / CHECKPOINT, shipped("prior"))
        make_patients(shipped("patients"))


def key(row: dict) -> tuple:
    "What tells one row from another."
    return tuple(f"{float(row[k]):g}" if k in ("dose", "value") else str(row[k]) for k in COLUMNS[:-2])


def rows(prior: str, patients: int, place: dict, only: list[str], known: set[tuple]) -> Iterator[dict]:
    "One run for each patient and value of a slider, the others as they are shipped."
    denoise = live_denoiser(pretrained(prior))
    for patient in range(patients):
        state = LiveState(patient=patient, dose=place["dose"], views=place["views"])
        state = replace(state, paper=replace(state.paper, jacobian=place["jacobian"]))
        acquired = live_acquisition(state)
        for (walk, setting), values in GRID.items():
            if only and setting not in only:
                continue
            own = (PAPER if walk == "paper" else ANCHORED)[setting]
            for value in sorted({*values, own}):
                row = {"patient": patient} | place | {"walk": walk, "setting": setting, "value": value}
                if key(row) in known:
                    continue
                weights = replace(getattr(state, walk), **{setting: value})
                *_, last = live_steps(acquired, weights, denoise)
                scores = live_scores(acquired, last.image)
                yield row | {"psnr_db": scores["psnr"], "deviance": scores["deviance"]}


def report(table: list[dict]) -> None:
    "Mean over the patients of each value of each slider."
    found = defaultdict(list)
    for row in table:
        found[row["walk"], row["setting"], float(row["value"])].append(float(row["psnr_db"]))
    for walk, setting in GRID:
        means = {v: np.mean(s) for (w, name, v), s in sorted(found.items()) if (w, name) == (walk, setting)}
        if not means:
            continue
        best = max(means, key=lambda v: means[v])
        told = "  ".join(f"{v:g}: {m:.2f}" for v, m in means.items())
        inside = "inside" if min(means) < best < max(means) else "AT THE END"
        print(f"{walk} {setting}: best {best:g}, {inside} of the range; {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "grid"))
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("live.json"))
    parser.add_argument("--folder", type=Path, default=cache_dir() / "live")
    parser.add_argument("--ship", action="store_true")
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--dose", type=float, default=0.05)
    parser.add_argument("--views", type=int, default=9)
    parser.add_argument("--jacobian", choices=("network", "identity"), default="network", help="of the paper's walk")
    parser.add_argument("--only", nargs="+", default=[], help="of the settings")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_name("live.csv"))
    parser.add_argument("--prior", default=str(shipped("prior")), help="a .safetensors file; default: the shipped one")
    args = parser.parse_args()
    if args.what == "train":
        return train(args.config, args.folder, args.ship)
    table: list[dict] = read_csv(args.csv) if args.csv.exists() else []
    place = {name: getattr(args, name) for name in PLACE}
    for row in rows(args.prior, args.patients, place, args.only, {key(row) for row in table}):
        table.append(row)
        write_csv(args.csv, table)
    report([row for row in table if key(row)[1:4] == (f"{args.dose:g}", str(args.views), args.jacobian)])


if __name__ == "__main__":
    main()
