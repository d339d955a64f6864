"""Run notebooks top to bottom, each in a fresh kernel of this Python, against the package of this checkout.

    python docs/notebooks.py                      every notebook, outputs saved in place
    python docs/notebooks.py --check nbs/X.ipynb  nothing saved; cells flagged `#| slow` or `#| gpu` are skipped
    python docs/notebooks.py --fold               nothing runs; JupyterLab opens the notebooks with library code folded

Cells flagged `#| eval: false` never run. Exit code 1 if a cell fails; the cell and its error are printed."""
from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parents[1]
SKIP_TAG = "skip-execution"  # nbclient leaves cells with this tag alone


def directives(source: str) -> dict[str, str]:
    "nbdev's `#| name value` lines of a cell, e.g. {'eval:': 'false', 'slow': ''}."
    lines = re.findall(r"^[ \t]*#[ \t]*\|[ \t]*(\S+)[ \t]*(.*?)[ \t]*$", source, re.MULTILINE)
    return {name.lower(): value.lower() for name, value in lines}


def optional_flags() -> set[str]:
    "The flags of cells that tests leave out, from settings.ini."
    parser = ConfigParser()
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return set(parser["DEFAULT"]["tst_flags"].split())


def run(path: Path, skip_flags: set[str], timeout_s: int) -> nbformat.NotebookNode:
    """Execute a notebook in its own folder and return it with the new outputs; raises nbclient's error if a cell fails.
    A kernel that crashes leaves its exit code, the cell and every thread's stack in the error."""
    nb = nbformat.read(path, as_version=4)
    skipped = []
    for cell in nb.cells:
        found = directives(cell.source) if cell.cell_type == "code" else {}
        if found.get("eval:") == "false" or skip_flags & found.keys():
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), SKIP_TAG]
            skipped.append(cell)
    search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as temporary:
        stacks = Path(temporary) / "stacks.txt"  # a file, since a kernel reads its own stderr
        trap = f"import faulthandler; faulthandler.enable(open({str(stacks)!r}, 'w'))"
        client = NotebookClient(
            nb,
            timeout=timeout_s,
            kernel_name="python3",
            extra_arguments=["--IPKernelApp.log_level=40", f"--IPKernelApp.exec_lines={trap}"],
            resources={"metadata": {"path": str(path.parent)}},
        )
        begun = []
        client.on_cell_start = lambda cell, cell_index: begun.append((cell, client.km.provisioner.process))
        try:
            client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(search)})
        except DeadKernelError as e:
            if not begun:
                raise
            (cell, process), where = begun[-1], stacks.read_text() if stacks.exists() else ""
            raise DeadKernelError(f"{e} with exit code {process.returncode} in the cell\n{cell.source}\n{where}") from e
    for cell in skipped:
        cell.metadata["tags"].remove(SKIP_TAG)
        if not cell.metadata["tags"]:
            del cell.metadata["tags"]
    return folded(without_widgets(nb))


def folded(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "Cells that are exported begin folded in JupyterLab (a click or View, Expand All Code opens them); others do not."
    for cell in nb.cells:
        cell.metadata.pop("jupyter", None)
        if cell.cell_type == "code" and "export" in directives(cell.source):
            cell.metadata["jupyter"] = {"source_hidden": True}
    return nb


def without_widgets(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "A widget without its kernel is an error message: where an output has a picture too, the picture alone is kept."
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data.pop("application/vnd.jupyter.widget-view+json", None)
    return nb


def attempt(path: Path, check: bool, timeout_s: int) -> int:
    "Run a notebook and say how long it took, or which cell failed and why; 0 or 1."
    path, start = path.resolve(), time.perf_counter()
    try:
        nb = run(path, optional_flags() if check else set(), timeout_s)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as e:
        message = re.sub("\x1b" + r"\[[0-9;]*m", "", str(e))
        print(f"{path.name} failed:\n{message}", file=sys.stderr)
        return 1
    if not check:
        nbformat.write(nb, path)
    print(f"{path.name}: {time.perf_counter() - start:.1f} s", flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of nbs/")
    parser.add_argument("--check", action="store_true", help="save nothing, skip the optional cells")
    parser.add_argument("--fold", action="store_true", help="run nothing, only fold what is exported")
    parser.add_argument("--timeout", type=int, default=1800, metavar="S", help="seconds allowed for one cell")
    args = parser.parse_args()
    everything = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if not any(s[0] in "._" for s in p.parts[-2:]))
    for path in args.notebooks or everything:
        if args.fold:
            nbformat.write(folded(nbformat.read(path, as_version=4)), path)
        elif attempt(path, args.check, args.timeout):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
