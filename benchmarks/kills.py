"""SIGKILL at random moments: `python benchmarks/kills.py [--training 50] [--reconstruct 100] [--json FILE]`.

Training is killed and started again until it ends: its weights must be those of an unbroken run, bit for bit
(on one thread, whose sums have one order).
A reconstruction is killed while it writes over an older result: every file must be whole, old or new."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
from safetensors.numpy import load_file

TRAIN = """
import sys
from dataclasses import replace
from diffspect_nb.geometry import tiny_grid
from diffspect_nb.training import TrainConfig, train
from diffspect_nb.volume_network import VolumeConfig
network = VolumeConfig(widths=(16, 24), blocks=1, embedding=32)
config = TrainConfig(n_studies=2, steps=40, batch=2, warmup=2, scanner="tiny", grid=tiny_grid(), network=network)
for _ in config.cohort.make(config.label): pass
print("begun", flush=True)
for step in train(config, sys.argv[1], save_every=2): print(step.index, flush=True)
"""
RECONSTRUCT = """
import sys
from diffspect_nb.cli import main
print("begun", flush=True)
sys.exit(main(["reconstruct", sys.argv[1], "--out", sys.argv[2], "--method", "osem", "--seed", sys.argv[3]]))
"""
STUDY = """
import sys
import numpy as np
from diffspect_nb.geometry import tiny, tiny_grid
from diffspect_nb.phantom import torso
from diffspect_nb.study import simulate
rng = np.random.default_rng(5)
simulate(torso(rng, tiny_grid()), tiny(), 5e5, rng).save(sys.argv[1])
"""
ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def start(code: str, *arguments) -> subprocess.Popen:
    "A Python process that has said that it begun."
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    process.stdout.readline()
    return process


def training(kills: int, rng: np.random.Generator) -> dict:
    "Kill training again and again, over as many runs as it takes; compare each run's end with the unbroken one."
    runs, exact, killed = 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        straight = Path(folder) / "straight"
        began = time.perf_counter()
        assert start(TRAIN, straight).wait() == 0
        whole_s = time.perf_counter() - began
        wanted = load_file(straight / "checkpoint.safetensors")
        while killed < kills:
            run = Path(folder) / f"run{runs}"
            while True:
                process = start(TRAIN, run)
                time.sleep(rng.uniform(0, 0.5 * whole_s))
                if process.poll() is None and killed < kills:
                    process.send_signal(signal.SIGKILL)
                    killed += process.wait() == -signal.SIGKILL
                elif process.wait() == 0:
                    break
                else:
                    return {"kills": killed, "error": "a resumed run failed"}
            ended = load_file(run / "checkpoint.safetensors")
            exact += all(np.array_equal(ended[k], wanted[k]) for k in wanted) and ended.keys() == wanted.keys()
            runs += 1
    return {"kills": killed, "runs": runs, "runs_that_end_in_the_same_weights": exact}


def whole(out: Path) -> bool:
    "Every file under its final name can be read to its end."
    json.loads((out / "result.json").read_text())
    for name in ("image.nii.gz", "support.nii.gz"):
        assert np.isfinite(np.asarray(nibabel.load(out / name).dataobj)).all()
    return (out / "views.png").read_bytes().endswith(b"IEND\xaeB`\x82")


def reconstruction(kills: int, rng: np.random.Generator) -> dict:
    "Kill `diffspect reconstruct` over an older result; after each kill, everything must be whole."
    broken = killed = left = 0
    with tempfile.TemporaryDirectory() as folder:
        study, out = Path(folder) / "study", Path(folder) / "out"
        subprocess.run([sys.executable, "-c", STUDY, str(study)], env=ENV, check=True)
        began = time.perf_counter()
        assert start(RECONSTRUCT, study, out, 0).wait() == 0
        whole_s = time.perf_counter() - began
        while killed < kills:
            process = start(RECONSTRUCT, study, out, killed)
            time.sleep(rng.uniform(0, whole_s))
            process.send_signal(signal.SIGKILL)
            if process.wait() != -signal.SIGKILL:
                continue
            killed += 1
            try:
                broken += not whole(out)
            except Exception as e:
                print("broken:", e, flush=True)
                broken += 1
            left = len(list(out.glob(".part-*")))
    return {"kills": killed, "half_written_outputs": broken, "temporary_folders_left": left}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=int, default=50, metavar="KILLS")
    parser.add_argument("--reconstruct", type=int, default=100, metavar="KILLS")
    parser.add_argument("--json", type=Path, help="also write the findings here")
    args = parser.parse_args()
    rng, found = np.random.default_rng(0), {}
    for name, work, kills in (("training", training, args.training), ("reconstruct", reconstruction, args.reconstruct)):
        if kills:
            found[name] = work(kills, rng)
            print(name, found[name], flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    train, image = found.get("training", {}), found.get("reconstruct", {})
    same = train.get("runs") == train.get("runs_that_end_in_the_same_weights") and "error" not in train
    return int(not same or image.get("half_written_outputs", 0) > 0)


if __name__ == "__main__":
    sys.exit(main())
