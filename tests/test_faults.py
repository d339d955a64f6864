"Killed processes, left-overs, two writers at once: nothing half-written, nothing lost."

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from fuzz import READERS
from safetensors.numpy import load_file

from diffspect_nb.files import atomic_folder, atomic_path, write_json
from diffspect_nb.geometry import tiny, tiny_grid
from diffspect_nb.phantom import torso
from diffspect_nb.study import simulate

BUILD = """
import sys
from diffspect_nb.geometry import tiny, tiny_grid
from diffspect_nb.system import SystemMatrix
print(float(SystemMatrix.build(tiny(), tiny_grid()).sensitivity.sum()))
"""


@pytest.mark.slow
def test_kills_at_random_moments_leave_whole_files_and_the_same_weights(tmp_path):
    "A short form of benchmarks/kills.py."
    command = [sys.executable, ROOT / "benchmarks" / "kills.py", "--training", "1", "--reconstruct", "2"]
    done = subprocess.run([*command, "--json", tmp_path / "found.json"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["training"]["kills"] == 1 and found["reconstruct"]["kills"] == 2
    assert found["reconstruct"]["half_written_outputs"] == 0


def test_the_long_checks_held_what_is_claimed():
    "benchmarks/kills.json and fuzz.json, as they were last found."
    kills, fuzz = (json.loads((ROOT / "benchmarks" / f"{name}.json").read_text()) for name in ("kills", "fuzz"))
    training, image = kills["training"], kills["reconstruct"]
    assert training["kills"] >= 50 and training["runs"] == training["runs_that_end_in_the_same_weights"] > 0
    assert image["kills"] >= 100 and image["half_written_outputs"] == 0
    assert set(fuzz["readers"]) == set(READERS) and fuzz["inputs"] >= 5000
    for name, found in fuzz["readers"].items():
        assert set(found["outcomes"]) <= {"read", "refused"} and sum(found["outcomes"].values()) >= 5000, name
        assert found["slowest_s"] < 10 and found["memory_above_start_mib"] < 1024, name


@pytest.mark.slow
def test_a_kill_between_checkpoint_and_state_resumes_to_the_same_weights(tmp_path):
    "The two files of a save are written one after the other; a process may end between them, at the last save too."
    code = """
import os, signal, sys
from diffspect_nb import training
from diffspect_nb.geometry import tiny_grid
from diffspect_nb.volume_network import VolumeConfig
network = VolumeConfig(widths=(16, 24), blocks=1, embedding=32)
config = training.TrainConfig(n_studies=2, steps=8, warmup=2, scanner="tiny", grid=tiny_grid(), network=network)
for _ in config.cohort.make(config.label): pass
write, saves = training.save_checkpoint, []
def dying(path, *rest):
    write(path, *rest)
    saves.append(path)
    if len(saves) == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
training.save_checkpoint = dying
for _ in training.train(config, sys.argv[1], save_every=2): pass
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def run(folder: str, dies_at: int) -> int:
        return subprocess.run([sys.executable, "-c", code, tmp_path / folder, str(dies_at)], env=env).returncode

    assert run("straight", 0) == 0
    assert [run("killed", n) for n in (2, 3, 0)] == [-signal.SIGKILL, -signal.SIGKILL, 0]
    wanted, ended = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("straight", "killed"))
    assert all(np.array_equal(ended[k], wanted[k]) for k in wanted)


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [True, False])
def test_ctrl_c_in_a_reconstruction_is_one_line_and_keeps_the_old_result(tmp_path, earlier):
    code = """
import signal, sys
from diffspect_nb import cli, methods
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs without
steps = methods.mlem_steps
def interrupted(*args, **options):
    for step in steps(*args, **options):
        yield step
        if step.index == 2: signal.raise_signal(signal.SIGINT)
methods.mlem_steps = interrupted
sys.exit(cli.main(["reconstruct", sys.argv[1], "--out", sys.argv[2], "--method", "osem"]))
"""
    rng = np.random.default_rng(5)
    simulate(torso(rng, tiny_grid()), tiny(), 5e5, rng).save(tmp_path / "study")
    if earlier:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "result.json").write_text("{}")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, tmp_path / "study", tmp_path / "out"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr.strip().splitlines()[-1].startswith("diffspect: interrupted")
    assert "Traceback" not in done.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["result.json"] * earlier


def test_what_a_killed_process_left_is_swept(tmp_path):
    for name, age_s in ((".part-old", 7200), (".part-new", 60)):
        for path in (tmp_path / name, tmp_path / f"{name}.json"):
            path.mkdir() if path.suffix == "" else path.write_text("half")
            os.utime(path, (time.time() - age_s,) * 2)
    write_json(tmp_path / "a.json", {"whole": True})
    left = sorted(p.name for p in tmp_path.iterdir())
    assert ".part-old" not in left and ".part-old.json" not in left
    assert ".part-new" in left and ".part-new.json" in left and "a.json" in left  # another process may be at work


def test_an_interrupted_writer_keeps_the_old_result(tmp_path):
    write_json(tmp_path / "a.json", {"n": 1})
    for writer in (atomic_path(tmp_path / "a.json"), atomic_folder(tmp_path)):
        try:
            with writer as place:
                (place / "a.json" if place.is_dir() else place).write_text('{"n": 2')
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert json.loads((tmp_path / "a.json").read_text()) == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.slow
def test_two_processes_build_one_matrix_at_once(tmp_path):
    "Both get it, the cache holds one whole file, a third process reads it."
    env = {**os.environ, "DIFFSPECT_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BUILD]
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = [p.communicate(timeout=120)[0] for p in both]
    third = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert sums[0] == sums[1] == third
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path):
    "A file stands where the cache's folder should be."
    (tmp_path / "cache").write_text("in the way")
    env = {**os.environ, "DIFFSPECT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", BUILD], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and float(done.stdout) > 0, done.stderr


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_keeps_the_old_result(tmp_path):
    "The operating system says so when the file is to be on the disk."
    code = """
import errno, os, sys
from diffspect_nb.cli import main
def full(handle): raise OSError(errno.ENOSPC, "No space left on device")
os.fsync = full
sys.exit(main(["simulate", "--scanner", "tiny", "--out", sys.argv[1], "--no-reference", "--counts-total", "1e5"]))
"""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "study.json").write_text("{}")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], env=env, capture_output=True, text=True)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert lines[-1].startswith("diffspect: ") and lines[-1].count("No space left") == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["study.json"]
    assert (tmp_path / "out" / "study.json").read_text() == "{}"
