"""Does a prior give back the defect that it is shown? The noised truth of validation patients, and what becomes of it.

`python benchmarks/defect_probe.py [--prior diffspect …] [--patients 8] [--csv benchmarks/defect_probe.csv]`
The first validation patients that have a defect of 8 voxels or more, at full dose, each shown at five noise levels,
with all that a walk looks at, with the CT alone and with nothing. One row per prior, patient, defect, sight and level;
printed are mean errors of contrast by level, and at level 100 by depth, size and edge of the defect."""

import argparse
from collections.abc import Callable
from pathlib import Path

from diffspect_nb.cli_data import commit
from diffspect_nb.cohort import FIRST_VALIDATION, painter
from diffspect_nb.core import ImageGrid
from diffspect_nb.defect_probe import AIM, LEVELS, SIGHTS, Shown, mean_error, probe_rows, shown_phantom, shown_study
from diffspect_nb.files import write_csv
from diffspect_nb.prior import pretrained
from diffspect_nb.tuning import validation_study

KINDS: dict[str, Callable[[dict], bool]] = {
    "all": lambda r: True,
    "transmural": lambda r: r["depth"] == 1,
    "subendocardial": lambda r: r["depth"] < 1,
    "less than 40 voxels": lambda r: r["voxels"] < 40,
    "40 to 120 voxels": lambda r: 40 <= r["voxels"] < 120,
    "120 voxels or more": lambda r: r["voxels"] >= 120,
    "edge below 2 mm": lambda r: r["edge_mm"] < 2,
    "edge of 2 mm or more": lambda r: r["edge_mm"] >= 2,
}


def patients_with_defects(n: int) -> list[Shown]:
    "The first n validation patients with a defect that can be measured, acquired."
    found: list[Shown] = []
    seed = FIRST_VALIDATION
    while len(found) < n:
        if shown_phantom(str(seed), painter(seed)(ImageGrid())).defects:
            found.append(shown_study(str(seed), validation_study(seed)))
            print(f"patient {seed}: {len(found[-1].defects)} defects", flush=True)
        seed += 1
    return found


def summary(rows: list[dict]) -> str:
    "Mean errors by sight and level, and at level 100 by kind of defect."
    lines = [f"{'mean error of contrast at level':32}" + "".join(f"{level:>8}" for level in LEVELS)]
    for sight in SIGHTS:
        errors = [mean_error(rows, lambda r, s=sight, t=t: (r["sees"], r["level"]) == (s, t)) for t in LEVELS]
        lines.append(f"sees {sight:27}" + "".join(f"{e:8.3f}" for e in errors))
    lines.append(f"at level 100, seeing everything (aim {AIM}):")
    for kind, of in KINDS.items():
        these = [r for r in rows if of(r) and (r["sees"], r["level"]) == ("everything", 100)]
        lines.append(f"  {kind:24}{mean_error(these):8.3f}  of {len(these)} defects")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", nargs="+", default=["diffspect"], help="shipped names or .safetensors files")
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_name("defect_probe.csv"))
    args = parser.parse_args()
    patients, table = patients_with_defects(args.patients), []
    for name in args.prior:
        rows = probe_rows(pretrained(name), patients)
        table += [{"prior": Path(name).stem, "commit": commit()} | row for row in rows]
        print(f"{name}\n{summary(rows)}", flush=True)
    write_csv(args.csv, table)


if __name__ == "__main__":
    main()
