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
from diffspect_nb.geometry import dnm570c
from diffspect_nb.mlem import mlem_steps
from diffspect_nb.prior import early_and_late, intensity_scale
from diffspect_nb.phantom import torso
from diffspect_nb.reconstruction import reconstruct
from diffspect_nb.sampler import default_guidance, sample
from diffspect_nb.study import simulate, thin
from diffspect_nb.footprint import _build_blocks, attenuation_factors
from diffspect_nb.system import SystemMatrix, _load_blocks, _save_blocks, cache_path
from diffspect_nb.prior import DEFAULT_PRIOR, pretrained
from diffspect_nb.slice_network import fast_dtype

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


@torch.no_grad()
def measure(device: torch.device, prior_name: str) -> dict:
    scanner, grid = dnm570c(), ImageGrid()
    rows: dict[str, float] = {}
    if device.type == "cpu":  # where a matrix is built, whatever it is used on
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / cache_path(scanner, grid).name
            rows["build_s"] = seconds(lambda: _build_blocks(scanner, grid), 3)
            _save_blocks(path, _build_blocks(scanner, grid))
            shape = (scanner.n_views, *scanner.pixels)
            rows["load_s"] = seconds(lambda: SystemMatrix._from_blocks(_load_blocks(path), grid.shape, shape))

    rng = np.random.default_rng(900_002)
    phantom = torso(rng, grid)
    mu = phantom.mu.to(device)
    rows["attenuation_s"] = seconds(lambda: attenuation_factors(mu, scanner, grid), 3)
    system = SystemMatrix.build(scanner, grid).to(device).attenuate(attenuation_factors(mu, scanner, grid))
    study = thin(simulate(phantom, scanner, 1e7, rng, system), 0.05, rng)
    assert system.sensitivity.sum() > 0  # computed once, outside the timing

    y = study.projections.to(device)
    rows["matrix_mb"] = system.n_bytes / 1e6
    rows["bandwidth_gb_s"] = bandwidth_bytes_per_s(device) / 1e9
    rows["floor_ms"] = system.n_bytes / rows["bandwidth_gb_s"] / 1e6
    ten = mlem_steps(system, y, 10_000)
    next(ten)
    rows["mlem_iteration_ms"] = 1e3 * seconds(lambda: next(ten), 20)
    rows["mlem_over_floor"] = rows["mlem_iteration_ms"] / rows["floor_ms"]

    early, x_in = early_and_late(system, y)
    scale = intensity_scale(early / study.count_fraction, grid) / study.count_fraction
    prior = pretrained(prior_name, device)
    denoise = Counted(prior.denoiser(phantom.mu, early * scale, x_in * scale))
    guidance, schedule = default_guidance(study.count_level), denoise.denoise.schedule
    bare, volume = [], []
    for _ in range(RUNS + 1):  # side by side, so that a slow moment of the machine slows both
        finish()
        started, denoise.given = time.perf_counter(), []
        last(sample(denoise, system, y, x_in, scale, guidance, schedule))
        finish()
        middle = time.perf_counter()
        for x, t in denoise.given:
            denoise.denoise(x, t)
        finish()
        volume.append(middle - started)
        bare.append(time.perf_counter() - middle)
    rows["network_evaluations"] = sum(1 if x.ndim == 3 else len(x) for x, _ in denoise.given)
    rows["network_s"] = statistics.median(bare[1:]) / rows["network_evaluations"]
    rows["walk_s"] = statistics.median(volume[1:])
    rows["walk_over_network"] = statistics.median(v / n for v, n in zip(volume[1:], bare[1:], strict=True))
    # OSEM, walk and support
    rows["default_s"] = seconds(lambda: reconstruct(study, guidance, system=system, prior=prior), 3)
    plenty = default_guidance(1.0)  # listens more to the counts
    rows["full_dose_default_s"] = seconds(lambda: reconstruct(study, plenty, system=system, prior=prior), 3)
    many = default_guidance(study.count_level, steps=25)
    rows["25_steps_s"] = seconds(lambda: reconstruct(study, many, system=system, prior=prior), 3)
    if device.type == "cuda":
        rows["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    rows["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return rows


TARGETS = {
    "cpu": {"build_s": 10, "load_s": 1, "mlem_iteration_ms": 40, "mlem_over_floor": 2.5, "default_s": 5}
    | {"full_dose_default_s": 5, "25_steps_s": 10, "peak_memory_gib": 3},
    "cuda": {"25_steps_s": 0.25},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--prior", default=DEFAULT_PRIOR, help="shipped, a checkpoint, or an ensemble joined by +")
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
