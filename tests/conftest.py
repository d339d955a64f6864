"What every test shares: two threads, one cache per session, and the folder of real data where there is one."
import os
import tempfile
from pathlib import Path

import matplotlib
import pytest
import torch

matplotlib.use("Agg")
torch.set_num_threads(2)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def shared_cache():
    "System matrices are built once per session; a cache that the user has chosen is respected."
    if os.environ.get("DIFFSPECT_CACHE"):
        yield Path(os.environ["DIFFSPECT_CACHE"])
        return
    with tempfile.TemporaryDirectory(prefix="diffspect-cache-") as folder:
        os.environ["DIFFSPECT_CACHE"] = folder
        yield Path(folder)
        del os.environ["DIFFSPECT_CACHE"]


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
