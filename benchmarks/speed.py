"""Speed and memory at full size: `python benchmarks/speed.py [--device cuda] [--prior NAME] [--json FILE]`.

Medians of 5 runs, 2 threads, ratios within the same run. The file keeps one table per device and prior, so that
a GPU's stands beside the processor's; times end when the image is there."""

import argparse
import platform
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from diffspect_nb.cli_data import commit
from diffspect_nb.core import ImageGrid, last, usable_device
from diffspect_nb.files import read_json, write_json
from diffspect_nb.footprint import attenuation_factors, view_blocks
from diffspect_nb.geometry import dnm570c
from diffspect_nb.mlem import mlem_steps
from diffspect_nb.phantom import torso
from diffspect_nb.prior import DEFAULT_PRIOR, Prior, early_and_late, intensity_scale, pretrained
from diffspect_nb.reconstruction import reconstruct
from diffspect_nb.sampler import AnchoredWeights, anchored_walk
from diffspect_nb.slice_network import fast_dtype
from diffspect_nb.study import Study, simulate, thin
from diffspect_nb.system import Measurement, SystemMatrix, _load_blocks, _save_blocks, cache_path

RUNS = 5


def finish() -> None:
    "Wait for whatever a GPU still has to do."
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds(work, runs: int = RUNS) -> float:
    "Median wall time of `work`, after one run to warm up."
    work()
    times = []
    for _ in range(runs):
        finish()
        started = time.perf_counter()
        work()
        finish()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def device_name(device: torch.device) -> str:
    "What it is, for the table."
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {torch.get_num_threads()} threads, network in {str(fast_dtype(device)).removeprefix('torch.')}"


def bandwidth_bytes_per_s(device: torch.device) -> float:
    "Best measured rate of reading memory in order, with as many threads as the products use."
    block = torch.rand(100_000_000, device=device)
    rates = []
    for _ in range(RUNS + 1):
        finish()
        started = time.perf_counter()
        block.sum()
        finish()
        rates.append(block.nbytes / (time.perf_counter() - started))
    return max(rates)


class Counted:
    "A denoiser that remembers what it was given."

    stacks = True

    def __init__(self, denoise):
        self.denoise, self.given = denoise, []

    def __call__(self, x, t):
        self.given.append((x, t))
        return self.denoise(x, t)


def matrix_times(device: torch.device) -> dict[str, float]:
    "Building, loading and attenuating the system matrix; where it is built is the processor, whatever it is used on."
    scanner, grid, rows = dnm570c(), ImageGrid(), {}
    if device.type == "cpu":
        with tempfile.TemporaryDirectory() as folder:
            path, shape = Path(folder) / cache_path(scanner, grid).name, (scanner.n_views, *scanner.pixels)
            rows["build_s"] = seconds(lambda: view_blocks(scanner, grid), 3)
            _save_blocks(path, view_blocks(scanner, grid))
            rows["load_s"] = seconds(lambda: SystemMatrix._from_blocks(_load_blocks(path), grid.shape, shape))
    mu = torso(np.random.default_rng(900_002), grid).mu.to(device)
    return rows | {"attenuation_s": seconds(lambda: attenuation_factors(mu, scanner, grid), 3)}


def product_times(measurement: Measurement) -> dict[str, float]:
    "MLEM's iteration against the time it takes merely to read the matrix."
    system = measurement.system
    assert system.sensitivity.sum() > 0  # computed once, outside the timing
    rows = {"matrix_mb": system.n_bytes / 1e6, "bandwidth_gb_s": bandwidth_bytes_per_s(system.device) / 1e9}
    rows["floor_ms"] = system.n_bytes / rows["bandwidth_gb_s"] / 1e6
    steps = mlem_steps(measurement, 10_000)
    next(steps)
    rows["mlem_iteration_ms"] = 1e3 * seconds(lambda: next(steps), 20)
    return rows | {"mlem_over_floor": rows["mlem_iteration_ms"] / rows["floor_ms"]}


def walk_times(study: Study, measurement: Measurement, prior: Prior) -> dict[str, float]:
    "The default walk, and its network alone on the same inputs: side by side, so that a slow moment slows both."
    early, x_in = early_and_late(measurement)
    scale = intensity_scale(early / study.count_fraction, study.grid) / study.count_fraction
    denoise, weights = Counted(prior.denoiser(study.mu, early * scale, x_in * scale)), AnchoredWeights.for_study(study)
    bare, whole = [], []
    for _ in range(RUNS + 1):
        finish()
        started, denoise.given = time.perf_counter(), []
        last(anchored_walk(denoise, measurement, x_in, scale, weights, prior.schedule))
        finish()
        middle = time.perf_counter()
        for x, t in denoise.given:
            denoise.denoise(x, t)
        finish()
        whole.append(middle - started)
        bare.append(time.perf_counter() - middle)
    evaluations = sum(1 if x.ndim == 3 else len(x) for x, _ in denoise.given)
    rows = {"network_evaluations": evaluations, "network_s": statistics.median(bare[1:]) / evaluations}
    over = statistics.median(v / n for v, n in zip(whole[1:], bare[1:], strict=True))
    return rows | {"walk_s": statistics.median(whole[1:]), "walk_over_network": over}


@torch.no_grad()
def measure(device: torch.device, prior_name: str) -> dict:
    "Every figure of one device and prior."
    rng, prior, rows = np.random.default_rng(900_002), pretrained(prior_name, device), matrix_times(device)
    study = thin(simulate(torso(rng, ImageGrid()), dnm570c(), 1e7, rng), 0.05, rng)
    measurement = study.measurement(device)
    rows |= product_times(measurement) | walk_times(study, measurement, prior)
    chosen = {
        "default_s": AnchoredWeights.for_study(study),
        "full_dose_default_s": AnchoredWeights.for_level(1.0),  # listens more to the counts
        "25_steps_s": AnchoredWeights.for_study(study, steps=25),
    }
    for name, weights in chosen.items():  # OSEM, walk and support
        rows[name] = seconds(lambda w=weights: reconstruct(study, w, prior, measurement=measurement), 3)
    if device.type == "cuda":
        rows["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return rows | {"peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


TARGETS = {
    "cpu": {"build_s": 10, "load_s": 1, "mlem_iteration_ms": 40, "mlem_over_floor": 2.5, "default_s": 5}
    | {"full_dose_default_s": 5, "25_steps_s": 10, "peak_memory_gib": 3},
    "cuda": {"25_steps_s": 0.25},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--prior", default=DEFAULT_PRIOR, help="shipped, or a checkpoint")
    parser.add_argument("--json", type=Path, help="also put the numbers into this file, under the device's name")
    args = parser.parse_args()
    torch.set_num_threads(2)
    device = usable_device(args.device)
    rows = measure(device, args.prior)
    for name, value in rows.items():
        target = TARGETS[args.device].get(name)
        verdict = "" if target is None else f"  target {target}: {'met' if value <= target else 'MISSED'}"
        print(f"{name:22s} {value:10.4g}{verdict}")
    about = {"torch": torch.__version__, "commit": commit(), "date": time.strftime("%Y-%m-%d")}
    name = f"{device_name(device)}; prior {args.prior}"
    print(f"{name}; torch {about['torch']}, commit {about['commit'] or 'unknown'}, {about['date']}")
    if args.json:
        tables = read_json(args.json) if args.json.exists() else {}
        write_json(args.json, tables | {name: rows | about})


if __name__ == "__main__":
    sys.exit(main())
