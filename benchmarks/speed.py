"""Speed and memory at full size: `python benchmarks/speed.py [--device cuda] [--prior NAME] [--json FILE]
[--baseline CHECKOUT] [--busy]`.

Medians, 2 threads. Each stage stands beside its limit: bytes ÷ measured bandwidth, or operations ÷ measured rate of a
matrix product in the network's number format. Whole reconstructions run in processes of their own, from a study in
memory to the image; `--baseline` times another checkout (such as the commit before) in turn with this one, `--busy`
repeats the default beside two busy loops and beside a second reconstruction. The file keeps one table per device and
prior, so that a GPU's stands beside the processor's."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from diffspect_nb.attenuation import attenuation_factors
from diffspect_nb.cli_data import commit
from diffspect_nb.core import ImageGrid, usable_device
from diffspect_nb.files import read_json, write_json
from diffspect_nb.geometry import dnm570c
from diffspect_nb.mlem import mlem_steps
from diffspect_nb.phantom import torso
from diffspect_nb.prior import DEFAULT_PRIOR, Prior, early_and_late, intensity_scale, pretrained
from diffspect_nb.products import FootprintMatrix
from diffspect_nb.slice_network import fast_dtype, inner_layers
from diffspect_nb.sparse import written_out
from diffspect_nb.study import sample_folder, simulate, thin
from diffspect_nb.system import Measurement, _load, _save, cache_path

ROOT = Path(__file__).parents[1]
LOOPS = "while True: pass"
COMMAND = "import sys; from diffspect_nb.cli import main; sys.exit(main())"
# What one process times: the same text for this checkout and for a baseline.
WALKS = """
import json, re, statistics, sys, time
import torch
def most_gib():
    try:
        return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20
    except OSError:
        return float("nan")
at_start = most_gib()
from diffspect_nb import system
from diffspect_nb.prior import pretrained
from diffspect_nb.reconstruction import reconstruct
from diffspect_nb.sampler import AnchoredWeights
from diffspect_nb.study import Study, reduced_study, sample_folder
torch.set_num_threads(2)
prior_name, device, runs, names = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4].split(",")
whole, prior = Study.load(sample_folder()), pretrained(prior_name, device)
asked = {
    "default_s": (0.05, None, {}),
    "full_dose_default_s": (None, None, {}),
    "9_views_s": (None, 9, {}),
    "25_steps_s": (0.05, None, {"steps": 25}),
}
found = {}
for name in names:
    counts, views, changes = asked[name.removesuffix("_again_s") + ("_s" if name.endswith("_again_s") else "")]
    study = reduced_study(whole, counts, views, seed=0)
    weights, times = AnchoredWeights.for_study(study, **changes), []
    for _ in range(runs + 1):
        if not name.endswith("_again_s"):
            system._LAST.clear()  # the patient is new: attenuation has to be worked out
        started = time.perf_counter()
        reconstruct(study, weights, prior)
        times.append(time.perf_counter() - started)
    found[name] = statistics.median(times[1:])
found |= {"peak_memory_gib": most_gib(), "above_pytorch_gib": most_gib() - at_start}
print(json.dumps(found))
"""


def seconds(work: Callable[[], object], runs: int = 5) -> float:
    "Median wall time of `work`, after one run to warm up."
    work()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
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


def bandwidth(device: torch.device) -> float:
    "Best measured rate of reading memory in order, bytes per second, with as many threads as the products use."
    block = torch.rand(100_000_000, device=device)
    return block.nbytes / min(seconds(block.sum, 1) for _ in range(5))


def operations_per_s(device: torch.device) -> float:
    "Rate of a matrix product in the network's number format."
    with torch.no_grad(), inner_layers(device, fast_dtype(device)):
        a, b = (torch.rand(2048, 2048, device=device) for _ in range(2))
        return 2 * 2048**3 / min(seconds(lambda: a @ b, 1) for _ in range(5))


@torch.no_grad()
def stages(device: torch.device, prior: Prior) -> Iterator[tuple[str, float, float | None]]:
    "Name, seconds and, where there is one, the least that the machine could need."
    scanner, grid, rng = dnm570c(), ImageGrid(), np.random.default_rng(900_002)
    study = thin(simulate(torso(rng, grid), scanner, 1e7, rng), 0.05, rng)
    yield "matrix_build", seconds(lambda: FootprintMatrix.build(scanner, grid), 1), None
    with tempfile.TemporaryDirectory() as folder:
        path, built = Path(folder) / cache_path(scanner, grid).name, FootprintMatrix.build(scanner, grid)
        _save(path, built)
        size = path.stat().st_size
        yield "matrix_load", seconds(lambda: _load(path, grid.n_voxels, scanner.pixels)), size / bandwidth(device)
    yield "attenuation", seconds(lambda: attenuation_factors(study.mu, scanner, grid)), None
    measurement = study.measurement(device)
    yield from products(measurement, bandwidth(device))
    early, late = early_and_late(measurement)
    scale = intensity_scale(early / study.count_fraction, grid) / study.count_fraction
    denoise, x = prior.denoiser(study.mu, early * scale, late * scale), late * scale
    with FlopCounterMode(display=False, custom_mapping=ONEDNN) as counted:
        denoise(x, 300)
    yield "network", seconds(lambda: denoise(x, 300), 10), counted.get_total_flops() / operations_per_s(device)


def onednn_flops(x_shape: list, weight_shape: list, *how: object, out_shape: list) -> int:
    "Of a convolution that the network asks oneDNN for by name; PyTorch's counter does not know it."
    return conv_flop_count(x_shape, weight_shape, out_shape)


ONEDNN = {torch.ops.aten.mkldnn_convolution: onednn_flops}


def products(measurement: Measurement, rate: float) -> Iterator[tuple[str, float, float | None]]:
    "The two products, an MLEM iteration made of them, and the same products by PyTorch's own sparse blocks."
    system, y = measurement.system, measurement.counts
    assert system.sensitivity.sum() > 0  # computed once, outside the timing
    steps = mlem_steps(measurement, 10_000)
    x, floor = next(steps).image, system.n_bytes / rate
    yield "forward", seconds(lambda: system.forward(x), 20), floor / 2
    yield "adjoint", seconds(lambda: system.adjoint(y), 20), floor / 2
    yield "mlem_iteration", seconds(lambda: next(steps), 20), floor
    if system.device.type == "cpu":
        blocks = written_out(system.kept)
        yield "forward_sparse_blocks", seconds(lambda: blocks.forward(x.reshape(1, -1)), 20), blocks.n_bytes / 2 / rate
        yield "adjoint_sparse_blocks", seconds(lambda: blocks.adjoint(y.reshape(1, -1)), 20), blocks.n_bytes / 2 / rate


def where(root: Path) -> dict[str, str]:
    "The environment in which Python finds that checkout first."
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])}


def walks(root: Path, args: argparse.Namespace, names: list[str], runs: int = 2) -> dict[str, float]:
    "Whole reconstructions in a process of its own, by the checkout in `root`."
    asked = [args.prior, args.device, str(runs), ",".join(names)]
    done = subprocess.run(
        [sys.executable, "-c", WALKS, *asked],
        env=where(root),
        cwd=root,  # which Python searches first
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


@contextmanager
def beside(commands: list[list[str]]) -> Iterator[None]:
    "While these commands run; ended at the end."
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = [subprocess.Popen(command, env=where(ROOT), **quiet) for command in commands]
    try:
        time.sleep(3)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def busy(args: argparse.Namespace, idle: float) -> dict[str, float]:
    "The default beside two busy loops, and beside a second reconstruction, as multiples of the time alone."
    other = [sys.executable, "-c", WALKS, args.prior, args.device, "1000", "default_s"]
    rows = {}
    for name, commands in (("two_busy_loops", 2 * [[sys.executable, "-c", LOOPS]]), ("a_second_one", [other])):
        with beside(commands):
            rows[f"beside_{name}_s"] = walks(ROOT, args, ["default_s"])["default_s"]
        rows[f"beside_{name}_ratio"] = rows[f"beside_{name}_s"] / idle
    return rows


def command_line() -> dict[str, float]:
    "Wall time of `diffspect --help`, and of a reconstruction of the sample from start to exit."
    command, quiet = [sys.executable, "-c", COMMAND], {"stdout": subprocess.DEVNULL, "check": True}
    with tempfile.TemporaryDirectory() as folder:
        asked = [*command, "reconstruct", str(sample_folder()), "--counts", "0.05", "--out", f"{folder}/out"]
        help_s = seconds(lambda: subprocess.run([*command, "--help"], cwd=ROOT, **quiet), 3)
        return {"help_s": help_s, "command_s": seconds(lambda: subprocess.run(asked, cwd=ROOT, **quiet), 3)}


def measure(device: torch.device, args: argparse.Namespace) -> dict[str, float]:
    "Every figure of one device and prior, printed as it comes."
    rows: dict[str, float] = {}
    for name, spent, least in stages(device, pretrained(args.prior, device)):
        rows[f"{name}_s"] = spent
        print(f"{name:24s} {1e3 * spent:9.2f} ms", end="")
        if least is not None:
            rows[f"{name}_limit_s"] = least
            print(f"   at least {1e3 * least:8.2f} ms: {spent / least:.2f} times that", end="")
        print(flush=True)
    names = ["default_s", "default_again_s", "full_dose_default_s", "9_views_s", "25_steps_s"]
    found = [walks(ROOT, args, names)]
    if args.baseline:
        before = walks(args.baseline, args, names)
        found.append(walks(ROOT, args, names))
        for name, value in before.items():
            print(f"{name:24s} {value:9.3f}      by {args.baseline.name}")
            rows[f"before_{name}"] = value
    rows |= {name: statistics.median(f[name] for f in found) for name in found[0]}
    if device.type == "cpu":
        rows |= command_line()
        rows["command_beyond_library_s"] = rows["command_s"] - rows["default_s"]
    return rows | (busy(args, rows["default_s"]) if args.busy else {})


TARGETS = {
    "cpu": {"mlem_iteration_s": 0.015, "default_s": 2.5, "full_dose_default_s": 2.5, "9_views_s": 2.5, "25_steps_s": 5}
    | {"above_pytorch_gib": 1, "help_s": 0.5, "command_beyond_library_s": 2}
    | {"beside_two_busy_loops_ratio": 2.5, "beside_a_second_one_ratio": 2.5},
    "cuda": {"default_s": 0.1, "25_steps_s": 0.2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--prior", default=DEFAULT_PRIOR, help="shipped, or a checkpoint")
    parser.add_argument("--json", type=Path, help="also put the numbers into this file, under the device's name")
    parser.add_argument("--baseline", type=Path, metavar="CHECKOUT", help="another checkout, timed in the same run")
    parser.add_argument("--busy", action="store_true", help="also beside busy processes")
    args = parser.parse_args()
    torch.set_num_threads(2)
    device = usable_device(args.device)
    rows = measure(device, args)
    for name, value in rows.items():
        target = TARGETS[args.device].get(name)
        verdict = "" if target is None else f"  target {target}: {'met' if value <= target else 'MISSED'}"
        if not name.endswith("_limit_s"):
            print(f"{name:30s} {value:10.4g}{verdict}")
    about = {"torch": torch.__version__, "commit": commit(), "date": time.strftime("%Y-%m-%d")}
    about |= {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "spin": os.environ.get("GOMP_SPINCOUNT", "default"),
    }
    name = f"{device_name(device)}; prior {args.prior}"
    print(f"{name}; torch {about['torch']}, commit {about['commit'] or 'unknown'}, {about['date']}")
    if args.json:
        tables = read_json(args.json) if args.json.exists() else {}
        rounded = {key: float(f"{value:.4g}") for key, value in rows.items()}
        write_json(args.json, tables | {name: rounded | about})


if __name__ == "__main__":
    sys.exit(main())
