"Work for many processes: rows are kept once, a lost worker's unit runs again, a stopped run goes on."

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT

from diffspect_nb.core import InputError, Step
from diffspect_nb.mlem import mlem_steps
from diffspect_nb.study import Study
from diffspect_nb.work import Workers, mend, read_rows, run_units, workers_of

N = 12
NO_DASK = "Dask is not installed: pip install 'diffspect_nb[cluster]'"
needs_dask = pytest.mark.skipif(find_spec("distributed") is None, reason=NO_DASK)


def unit(folder: Path, number: int, victim: int | None = None, always: bool = False) -> Iterator[list[dict]]:
    "Two blocks of two rows; the victim takes its process down, the first time or always."
    (folder / f"pid-{os.getpid()}").touch()
    time.sleep(0.1)
    if number == victim and (always or not (folder / "killed").exists()):
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    for part in range(2):
        yield [{"unit": number, "row": 2 * part + i, "value": number**2 + i} for i in range(2)]


def units(folder: Path, **more) -> dict:
    return {f"unit {i}": partial(unit, folder, i, **more) for i in range(N)}


def in_order(path: Path) -> list[str]:
    return sorted(path.read_text().splitlines())


@pytest.fixture
def serial(tmp_path) -> list[str]:
    "What an undisturbed run leaves."
    list(run_units(tmp_path / "serial.jsonl", units(tmp_path)))
    return in_order(tmp_path / "serial.jsonl")


def test_a_block_is_on_disk_before_the_next_is_computed(tmp_path):
    path = tmp_path / "made" / "rows.jsonl"
    for n, rows in enumerate(run_units(path, units(tmp_path)), 1):
        assert len(rows) == 2 and len(read_rows(path)) == 2 * n
    assert len(set(in_order(path))) == 4 * N


def test_any_executor_takes_the_units_and_is_left_open(tmp_path, serial):
    with ThreadPoolExecutor(3) as pool:
        assert all(len(rows) == 4 for rows in run_units(tmp_path / "rows.jsonl", units(tmp_path), pool))
        assert pool.submit(int).result() == 0
    assert in_order(tmp_path / "rows.jsonl") == serial


def test_what_was_cut_short_is_removed_and_what_is_whole_is_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    for torn, kept in (('{"a": 1}\n{"a": 2', 1), ('{"a": 1}\n{"a": 2}', 2), ('{"a"', 0), ("", 0), ('{"a": 1}\n', 1)):
        path.write_text(torn)
        assert len(read_rows(path)) == kept
        mend(path)
        list(run_units(path, {"one": lambda: [[{"a": 3}]]}))
        assert [row["a"] for row in read_rows(path)] == [1, 2, 3][:kept] + [3] * (kept < 3)
    with pytest.raises(InputError, match="no such file"):
        read_rows(tmp_path / "nothing")


def test_a_unit_that_is_always_lost_ends_the_run_in_one_line_and_keeps_the_rest(tmp_path):
    tries = []

    def bad() -> Iterator[list[dict]]:
        tries.append(1)
        raise BrokenExecutor("gone")
        yield

    path, made = tmp_path / "rows.jsonl", {"good": lambda: [[{"a": 1}]], "bad": bad}
    with pytest.raises(InputError, match=r"^bad: the process was lost 3 times .*fewer workers$"):
        list(run_units(path, made, Workers(lambda: ThreadPoolExecutor(1), 1)))
    assert len(tries) == 3 and read_rows(path) == [{"a": 1}]


def test_numbers_of_workers_that_cannot_be(monkeypatch):
    assert workers_of() is None and workers_of(3).n == 3
    with pytest.raises(InputError, match="at least 1"):
        workers_of(0)
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setattr("diffspect_nb.work.find_spec", lambda name: None)
    with pytest.raises(InputError, match="cluster"):
        workers_of(1, "tcp://127.0.0.1:1")


@pytest.mark.slow
def test_a_pool_that_loses_a_worker_leaves_what_an_undisturbed_run_leaves(tmp_path, serial):
    list(run_units(tmp_path / "rows.jsonl", units(tmp_path, victim=5), workers_of(2)))
    assert (tmp_path / "killed").exists() and in_order(tmp_path / "rows.jsonl") == serial


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_work import run_units, units, workers_of
for rows in run_units(sys.argv[1], units(Path(sys.argv[2])), workers_of(2)): print(rows[0]["unit"], flush=True)
"""


def alive(pid: int) -> bool:
    "Whether a process runs; one that ended and was not waited for does not."
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
def test_a_killed_run_goes_on_where_it_stopped_and_leaves_no_process(tmp_path, serial):
    path, env = tmp_path / "rows.jsonl", {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN, path, tmp_path]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(3):
            assert process.stdout.readline().strip().isdigit()
        process.send_signal(signal.SIGKILL)
    pids = {int(p.name[4:]) for p in tmp_path.glob("pid-*")} - {os.getpid()}
    end = time.monotonic() + 20
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < end:
        time.sleep(0.1)
    assert len(pids) == 2 and not left
    there = {row["unit"] for row in read_rows(path)}
    assert 3 <= len(there) < N
    missing = {name: u for i, (name, u) in enumerate(units(tmp_path).items()) if i not in there}
    list(run_units(path, missing))
    assert in_order(path) == serial


# ---- a benchmark of twelve small patients


def blurred(study: Study, folder: Path | None = None) -> Iterator[Step]:
    "MLEM-2; given a folder, the sixth patient takes its process down, once."
    if folder is not None:
        (folder / f"try-{study.meta['seed']}").touch()
        if len(list(folder.glob("try-*"))) == 6 and not (folder / "killed").exists():
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    for step in mlem_steps(study.measurement(), 2, likelihood=False):
        yield replace(step, image=step.image / study.count_fraction)


def benchmark(path: Path, folder: Path | None = None, workers: Workers | None = None) -> list[dict]:
    from diffspect_nb.benchmark import run_benchmark
    from diffspect_nb.cohort import simulated_study
    from diffspect_nb.geometry import tiny_grid

    studies = {f"patient {i}": partial(simulated_study, i, "tiny", tiny_grid()) for i in range(N)}
    method = {"blurred": partial(blurred, folder=folder)}
    list(run_benchmark(path, studies, ["counts 0.1"], method, workers, classical=False))
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(path)]
    rounded = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    return sorted(rounded, key=json.dumps)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> list[dict]:
    return benchmark(tmp_path_factory.mktemp("serial") / "rows.jsonl")


@pytest.mark.slow
def test_a_benchmark_whose_worker_is_killed_has_every_row_once(tmp_path, undisturbed):
    found = benchmark(tmp_path / "rows.jsonl", tmp_path, workers_of(2))
    assert (tmp_path / "killed").exists()
    assert len({row["study"] for row in found}) == N and found == undisturbed


@pytest.mark.slow
@needs_dask
def test_a_dask_cluster_whose_worker_is_killed_has_every_row_once(tmp_path, undisturbed):
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        found = benchmark(tmp_path / "rows.jsonl", tmp_path, workers_of(dask=cluster.scheduler_address))
    assert (tmp_path / "killed").exists()
    assert len({row["study"] for row in found}) == N and found == undisturbed


@needs_dask
def test_a_scheduler_that_is_not_there(tmp_path):
    from diffspect_nb import work

    workers = Workers(partial(work._dask_executor, "tcp://127.0.0.1:1", 0.5))
    with pytest.raises(InputError, match="no Dask scheduler"):
        list(run_units(tmp_path / "rows.jsonl", units(tmp_path), workers))
