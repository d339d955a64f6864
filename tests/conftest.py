"What every test shares: few threads, one cache for all workers, and the folder of real data where there is one."

from __future__ import annotations

import ctypes
import os
import tempfile
from collections import Counter
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each of several workers, also in the processes they start
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads would take the other worker's core

import matplotlib
import pytest
import torch
from filelock import FileLock

matplotlib.use("Agg")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))

ROOT = Path(__file__).resolve().parents[1]
CACHE = pytest.StashKey[tempfile.TemporaryDirectory]()
# what the longest tests take, in seconds of one core; every other slow one counts as five
SECONDS = {
    **{"[42_conditional.ipynb]": 50, "[63_dashboard.ipynb]": 50, "test_a_small_tuning_end_to_end": 45},
    **{"[20_sampler.ipynb]": 45, "[22_uncertainty.ipynb]": 45, "test_probe_tells_real_from_invented_defects": 40},
    **{"[tutorials/dashboard.ipynb]": 35, "[65_lessons.ipynb]": 30},
}


def pytest_configure(config):
    "Before any worker starts: the folder in which all of them, and what they start, keep system matrices."
    if not os.environ.get("DIFFSPECT_CACHE"):  # a cache that the user has chosen is respected
        config.stash[CACHE] = tempfile.TemporaryDirectory(prefix="diffspect-cache-")
        os.environ["DIFFSPECT_CACHE"] = config.stash[CACHE].name


def pytest_unconfigure(config):
    if folder := config.stash.get(CACHE, None):
        del os.environ["DIFFSPECT_CACHE"]
        folder.cleanup()


def _unit(nodeid: str) -> str:
    "What one worker runs as a whole: a file, whose tests share what they make, or a single notebook."
    return nodeid if "test_notebooks.py" in nodeid else nodeid.split("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    "What takes long comes first, so that no worker is left alone with it at the end."
    seconds: Counter[str] = Counter()
    for item in items:
        if item.get_closest_marker("slow"):
            seconds[_unit(item.nodeid)] += SECONDS.get(item.name.removeprefix("test_notebook_runs"), 5)
    items.sort(key=lambda item: -seconds[_unit(item.nodeid)])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "Workers take unit after unit, in the order above."
    from xdist.scheduler import LoadScopeScheduling

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = _unit
    config.option.loadscopereorder = False
    return scheduler


@pytest.fixture(autouse=True)
def memory_goes_back():
    "System matrices take gigabytes, and the C library keeps what was freed: without this a worker grows to 8 GB."
    yield
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)  # glibc's; others return memory themselves


@pytest.fixture(scope="session")
def shared_cache() -> Path:
    "The folder of system matrices."
    return Path(os.environ["DIFFSPECT_CACHE"])


@pytest.fixture(scope="session")
def full_matrix(shared_cache) -> Path:
    "The cached matrix of the shipped scanner on the default grid: one worker builds it, the other waits for the file."
    from diffspect_nb.core import ImageGrid
    from diffspect_nb.geometry import dnm570c
    from diffspect_nb.system import SystemMatrix, cache_path

    path = cache_path(dnm570c(), ImageGrid())
    shared_cache.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            SystemMatrix.build(dnm570c(), ImageGrid())
    return path


@pytest.fixture(scope="session")
def root() -> Path:
    "The root of the repository."
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    "Real scans: $DIFFSPECT_DATA, else ../shared/data beside the repository; the test is skipped where there are none."
    folder = Path(os.environ.get("DIFFSPECT_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder (set DIFFSPECT_DATA)")
    return folder
