"Every notebook runs top to bottom in a fresh kernel and leaves nothing behind."

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
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
DATA = os.environ.get("DIFFSPECT_DATA") or str(ROOT.parent / "shared" / "data")
ENV = {**os.environ, "DIFFSPECT_DATA": DATA}
ENV.pop("MPLBACKEND", None)  # pictures are shown as in a browser


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


def cold(path: Path, seconds: float = SECONDS_PER_NOTEBOOK) -> tuple[int, str]:
    "The exit code of the command that users run too, and what it said."
    command = [sys.executable, ROOT / "docs" / "notebooks.py", "--check", path]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=seconds)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="session")
def check():
    "The same by forks of one process that has imported torch and the like (docs/warm.py), where there are pidfds."
    if sys.platform != "linux":
        yield cold
        return
    command = [sys.executable, ROOT / "docs" / "warm.py"]
    with subprocess.Popen(command, env=ENV, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        def warm(path: Path, seconds: float = SECONDS_PER_NOTEBOOK) -> tuple[int, str]:
            print(json.dumps({"path": str(path), "seconds": seconds}), file=process.stdin, flush=True)
            answer = json.loads(process.stdout.readline())
            return answer["code"], answer["said"]

        yield warm


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name, copied_nbs, full_matrix, check):
    "Cells flagged `#| slow`, `#| gpu` or `#| eval: false` are left out (see docs/notebooks.py)."
    before = contents(copied_nbs)
    code, said = check(copied_nbs / name)
    assert code == 0, said
    litter = contents(copied_nbs) - before
    assert not litter, f"{name} leaves {sorted(litter)} behind: write into a temporary folder"


BROKEN = {
    "an error": ("x = 1 / 0", ["x = 1 / 0", "ZeroDivisionError: division by zero"]),
    "a crash": ("import os; os.abort()", ["exit code -6 in the cell", "os.abort()", "Fatal Python error: Aborted"]),
    "too long": ("import time; time.sleep(100)", ["takes more than 5 seconds"]),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_cell_is_named_with_its_error(how, tmp_path, check):
    cell, wanted = BROKEN[how]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in ("y = 1", cell)])
    nbformat.write(nb, tmp_path / "broken.ipynb")
    code, said = check(tmp_path / "broken.ipynb", 5 if how == "too long" else SECONDS_PER_NOTEBOOK)
    assert code != 0 and all(text in said for text in wanted), said


def test_a_kernel_shares_nothing_with_the_one_before(tmp_path, check):
    "Nor is the package there from the start; pictures and widgets work, and optional cells are left out."
    cells = [
        "import sys, matplotlib.pyplot as plt",
        "assert not {m for m in sys.modules if m.startswith('diffspect_nb')} and not hasattr(sys, 'left')",
        "sys.left = plt.plot([1, 2])",
        "assert not plt.get_fignums()  # shown at the end of the cell, and closed",
        "import ipywidgets; assert ipywidgets.IntSlider().comm.kernel",
        "#| slow\n1 / 0",
    ]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    nbformat.write(nb, tmp_path / "fresh.ipynb")
    for _ in range(2):
        code, said = check(tmp_path / "fresh.ipynb")
        assert code == 0, said
