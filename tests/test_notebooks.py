"Every notebook runs top to bottom in a fresh kernel and leaves nothing behind."

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow
NBS = ROOT / "nbs"
NOTEBOOKS = [
    p.relative_to(NBS).as_posix()
    for p in sorted(NBS.rglob("*.ipynb"))
    if not any(s[0] in "._" for s in p.relative_to(NBS).parts)
]
SECONDS_PER_NOTEBOOK = 900


@pytest.fixture(scope="module")
def copied_nbs(tmp_path_factory) -> Path:
    "A copy of nbs/ to run in; the rest of the checkout stands beside it as links."
    top = tmp_path_factory.mktemp("checkout")
    shutil.copytree(NBS, top / "nbs", ignore=shutil.ignore_patterns(".*", "_proc"))
    for name in ("data_samples", "benchmarks", "docs", "diffspect_nb", "settings.ini", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            (top / name).symlink_to(ROOT / name)
    return top / "nbs"


def contents(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_there_are_notebooks():
    assert "index.ipynb" in NOTEBOOKS and len(NOTEBOOKS) > 3


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name, copied_nbs, full_matrix):
    "Cells flagged `#| slow`, `#| gpu` or `#| eval: false` are left out (see docs/notebooks.py)."
    shared_data = os.environ.get("DIFFSPECT_DATA") or str(ROOT.parent / "shared" / "data")
    env = {**os.environ, "DIFFSPECT_DATA": shared_data}
    before = contents(copied_nbs)
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "notebooks.py", "--check", copied_nbs / name],
        env=env,
        capture_output=True,
        text=True,
        timeout=SECONDS_PER_NOTEBOOK,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    litter = contents(copied_nbs) - before
    assert not litter, f"{name} leaves {sorted(litter)} behind: write into a temporary folder"
