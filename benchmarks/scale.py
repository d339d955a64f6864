"""What one patient costs: processor seconds of one thread, and memory, of each part of `diffspect benchmark`.

    python benchmarks/scale.py [--seed 930000] [--json benchmarks/scale.json]
    python benchmarks/scale.py --show          measures nothing: the table of what many patients take

Two settings are run, all views and nine; the others follow from them, since a method's time is a constant and a share
for each view. `docs/site/howto/scale.md` tells what comes of it for many patients on many cores."""

import argparse
import math
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from diffspect_nb.benchmark import COUNTS, VIEWS, Patient, classical_rows, same_views
from diffspect_nb.cli_data import commit
from diffspect_nb.cohort import FIRST_TEST, held_out_study
from diffspect_nb.core import last
from diffspect_nb.files import read_json, write_json
from diffspect_nb.methods import Named

SETTINGS = {"counts 0.05": 19, "views 9": 9}  # setting → views
METHODS = ("anchored", "mlem", "osem")
CORES = (2, 64, 1000)
PATIENTS = (1_000, 100_000)


def seconds(work) -> tuple[float, object]:
    "Processor seconds of a piece of work, and what it returned."
    started = time.process_time()
    found = work()
    return round(time.process_time() - started, 2), found


def measured(seed: int) -> dict:
    "Seconds of each part of one patient: made once, and at each of the two settings."
    make, study = seconds(lambda: held_out_study(seed))
    first, patient = seconds(lambda: Patient.of(study, "one"))
    parts: dict = {"made": make, "reference": first}
    methods = {name: Named(name).ready() for name in METHODS}
    for setting in SETTINGS:
        taken, (group,) = seconds(lambda setting=setting: same_views(study, [setting]))
        found = {"acquired": taken, "classical": seconds(lambda g=group: list(classical_rows(patient, g, 300)))[0]}
        for name, method in methods.items():
            found[name] = seconds(lambda m=method, s=group[setting]: last(m(s)))[0]
        parts[setting] = found
    return parts


def at(parts: dict, what: str, views: int) -> float:
    "Seconds with that many views, on the line through the two that were measured."
    (a, x), (b, y) = ((parts[s][what], v) for s, v in SETTINGS.items())
    return max(0.0, b + (a - b) * (views - y) / (x - y))


def patient_seconds(parts: dict, methods: tuple[str, ...] = ("anchored",)) -> float:
    "All eleven settings of one patient."
    views = [19] * len(COUNTS) + list(VIEWS)
    each = sum(at(parts, what, v) for v in views for what in ("acquired", "classical", *methods))
    return parts["made"] + parts["reference"] + each


def efficiency() -> float:
    "Share of its own speed that each of two processes on two cores keeps, as `benchmarks/speed.py` found it."
    rows = read_json(Path(__file__).with_name("speed.json")).values()
    return min(2 / row["beside_a_second_one_ratio"] for row in rows if "beside_a_second_one_ratio" in row)


def table(parts: dict) -> Iterator[str]:
    "Wall time of many patients on many cores: rounds of one patient a core."
    kept = efficiency()
    one = sum(parts["counts 0.05"][what] for what in ("acquired", "anchored"))
    yield f"{'':27s} {'s a patient':>12s}" + "".join(f"{f'{c:,} cores':>14s}" for c in CORES)
    for what, cost in (("one image", one), ("benchmark, 11 settings", patient_seconds(parts))):
        for n in PATIENTS:
            walls = (math.ceil(n / cores) * cost / kept for cores in CORES)
            yield f"{n:7,} × {what:25s} {cost:4.0f}" + "".join(f"{duration(wall):>14s}" for wall in walls)


def duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=FIRST_TEST)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--show", action="store_true", help="print the table of an earlier measurement")
    args = parser.parse_args()
    if not args.show:
        torch.set_num_threads(1)
        parts = measured(args.seed)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        about = {"patient_s": round(patient_seconds(parts), 1), "peak_memory_gib": round(memory, 2), "commit": commit()}
        write_json(args.json, {"parts_s": parts} | about)
    print("\n".join(table(read_json(args.json)["parts_s"])))


if __name__ == "__main__":
    main()
