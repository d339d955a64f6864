"What every test shares: few threads, one cache for all workers, and the folder of real data where there is one."
from __future__ import annotations

import os
import tempfile
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


def pytest_configure(config):
    "Before any worker starts: the folder in which all of them, and what they start, keep system matrices."
    if not os.environ.get("DIFFSPECT_CACHE"):  # a cache that the user has chosen is respected
        config.stash[CACHE] = tempfile.TemporaryDirectory(prefix="diffspect-cache-")
        os.environ["DIFFSPECT_CACHE"] = config.stash[CACHE].name


def pytest_unconfigure(config):
    if folder := config.stash.get(CACHE, None):
        del os.environ["DIFFSPECT_CACHE"]
        folder.cleanup()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests of one file share what they make, so one worker runs them, unless they say `xdist_group` themselves; pytest's
    order of parts becomes the order in which workers take them, so the dear ones come first."""
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def shared_cache() -> Path:
    "The folder of system matrices."
    return Path(os.environ["DIFFSPECT_CACHE"])


@pytest.fixture(scope="session")
def full_system(shared_cache):
    "The shipped scanner's matrix on the default grid: whoever comes first builds it, the others wait and read it."
    from diffspect_nb.core import ImageGrid
    from diffspect_nb.geometry import dnm570c
    from diffspect_nb.system import SystemMatrix

    shared_cache.mkdir(parents=True, exist_ok=True)
    with FileLock(shared_cache / "full_system.lock"):
        return SystemMatrix.build(dnm570c(), ImageGrid())


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
