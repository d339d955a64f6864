"""The architecture: order of dependence, sizes a reader can take in, modules in step with clean notebooks, one version,
nothing tied to one machine."""

from __future__ import annotations

import ast
import filecmp
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

import diffspect_nb

sys.path.insert(0, str(ROOT / "docs"))
import notebooks

PACKAGE = "diffspect_nb"
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if not any(s[0] in "._" for s in p.parts[-2:]))
NOTEBOOK_IDS = [p.relative_to(ROOT / "nbs").as_posix() for p in NOTEBOOKS]
MODULES = sorted(p.stem for p in (ROOT / PACKAGE).glob("*.py") if not p.stem.startswith("_"))
PROOF, FACE = range(50, 60), range(60, 70)  # numbers of the rooms that benchmark, and of those that people touch
NETWORKS = {"slice_network", "volume_network", "prior", "training"}
COLUMNS = 120


def settings() -> dict[str, str]:
    parser = ConfigParser()
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


@cache
def code_of(path: Path) -> list[str]:
    "The code cells of a notebook."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


@cache
def room_numbers() -> dict[str, float]:
    "Module → number of the notebook that exports it; a room added between two has a letter."
    numbers = {}
    for path in sorted((ROOT / "nbs").glob("[0-9][0-9]*_*.ipynb")):
        found = re.search(r"^#\|\s*default_exp\s+(\S+)", "\n".join(code_of(path)), re.MULTILINE)
        if found:
            numbers[found[1]] = int(path.name[:2]) + "_abcdef".index(path.name[2]) / 10
    return numbers


def widgets() -> set[str]:
    "Modules of the face that hold no command."
    return {module for module, n in room_numbers().items() if int(n) in FACE and not module.startswith("cli")}


@cache
def syntax(module: str) -> ast.Module:
    return ast.parse((ROOT / PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> set[str]:
    "Every module that the code imports, at the top or inside functions, with full names."
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [PACKAGE if node.level else "", node.module or ""]))
            names |= {base} if base != PACKAGE else {f"{PACKAGE}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            names |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant)}
    return names


def siblings(tree: ast.AST) -> set[str]:
    "Modules of this package that the code imports."
    return {name.split(".")[1] for name in imported(tree) if name.startswith(PACKAGE + ".")} & set(MODULES)


def at_import(tree: ast.Module) -> ast.Module:
    "The code that runs when the module is imported: without the bodies of functions and of `if TYPE_CHECKING`."
    tree = ast.parse(ast.unparse(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            node.body = []
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    return tree


def copy_of_checkout(target: Path, *names: str) -> Path:
    "What nbdev needs to work on a copy: the settings and the folders named."
    for name in ("settings.ini", "pyproject.toml", "setup.py", *names):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        else:
            shutil.copy(source, target / name)
    return target


def nbdev(command: str, folder: Path) -> None:
    "Run one of nbdev's commands in a folder; the test fails with its output if the command does."
    modules = {"nbdev_export": "nbdev.doclinks", "nbdev_clean": "nbdev.clean"}
    code = f"import sys; sys.argv = ['{command}']; from {modules[command]} import {command}; {command}()"
    env = {**os.environ, "PYTHONPATH": str(folder)}
    env.pop("IN_TEST", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}{done.stderr}"


def project_files() -> list[Path]:
    "Files that belong to the project: what git tracks or would track, else everything that is not built."
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        return sorted(ROOT / name for name in listed if name and (ROOT / name).is_file())
    except (OSError, subprocess.CalledProcessError):
        folders = ("nbs", PACKAGE, "tests", "docs", "benchmarks", "data_samples")
        found = [p for name in folders for p in (ROOT / name).rglob("*") if "__pycache__" not in p.parts]
        return sorted(p for p in [*found, *ROOT.iterdir()] if p.is_file())


# ---- order of dependence


def test_every_module_has_one_numbered_notebook():
    assert sorted(room_numbers()) == MODULES
    assert len(set(room_numbers().values())) == len(MODULES), f"two rooms share a number: {room_numbers()}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_smaller_numbers_only(module):
    numbers = room_numbers()
    late = {s: numbers.get(s) for s in siblings(syntax(module)) if numbers.get(s, 99) >= numbers[module]}
    assert not late, f"{module} (room {numbers[module]}) imports later rooms: {late}"


@pytest.mark.parametrize("module", MODULES)
def test_no_wing_reaches_into_a_later_one(module):
    "A wing is a tens digit. The networks, for one, are the prior's own affair, and nothing below the face knows it."
    numbers = room_numbers()
    late = {s: numbers.get(s) for s in siblings(syntax(module)) if numbers.get(s, 99) // 10 > numbers[module] // 10}
    assert not late, f"{module} (wing {numbers[module] // 10}) reaches into later wings: {late}"


@pytest.mark.parametrize("module", [m for m, n in room_numbers().items() if n in FACE])
def test_the_face_opens_without_the_benchmark(module):
    "A command loads the benchmark when it is asked for; viewers and dashboards never do."
    proof = {m for m, n in room_numbers().items() if n in PROOF}
    tree = syntax(module)
    early = siblings(tree if module in widgets() else at_import(tree)) & proof
    assert not early, f"{module} imports {early}" + (" (at import)" if module not in widgets() else "")


@pytest.mark.parametrize("module", MODULES)
def test_no_star_imports(module):
    stars = [n.lineno for n in ast.walk(syntax(module)) if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"]
    assert not stars, f"{module}.py imports * in lines {stars}"


@pytest.mark.parametrize("module", MODULES)
def test_third_party_imports_are_requirements(module):
    "What a module needs to be imported is in settings.ini; nbdev and the other development tools are not."
    names = [re.split(r"[<>=!~\[; ]", r)[0].lower() for r in shlex.split(settings()["requirements"])]
    modules = {"scikit-image": "skimage", "pillow": "PIL"}
    allowed = {modules.get(n, n) for n in names} | {PACKAGE} | set(sys.stdlib_module_names)
    foreign = {name.split(".")[0] for name in imported(at_import(syntax(module)))} - allowed
    assert not foreign, f"{module} imports {foreign}, which settings.ini does not require"


def test_walks_take_any_denoiser():
    "The walks know neither a network nor a prior; the reconstruction knows the prior alone, as something to ask."
    assert not NETWORKS & siblings(syntax("sampler"))
    assert NETWORKS & siblings(syntax("reconstruction")) == {"prior"}


IMPORT_EACH = f"""
import gc, importlib, json, os, sys, tempfile
import matplotlib.pyplot, nibabel, numba, pydicom, safetensors.torch, scipy.ndimage, scipy.optimize, scipy.sparse
import scipy.stats, skimage.metrics, skimage.morphology, torch
state = lambda: (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.initial_seed())
found, before = {{}}, state()
gc.freeze()  # a collection in a child would copy all of that memory
for module in sys.argv[1:]:
    with tempfile.TemporaryFile() as said:
        if not (child := os.fork()):
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            importlib.import_module("{PACKAGE}." + module)
            assert state() == before, "torch is not as it was"
            tools = sys.modules.keys() & {{"nbdev", "fastcore", "execnb", "pytest"}}
            assert not tools, f"also imports {{tools}}"
            assert "IPython" not in sys.modules or module in {sorted(widgets())}  # ipywidgets brings it
            sys.stdout.flush()
            os._exit(0)
        code = os.waitpid(child, 0)[1]
        said.seek(0)
        found[module] = [code, said.read().decode()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def imported_alone() -> dict[str, list]:
    "Module → exit code and output of importing it where no other module of this package is loaded."
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", IMPORT_EACH, *MODULES]
    done = subprocess.run(command, cwd=ROOT / "nbs", env=env, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])  # a child that fails leaves by the same door


@pytest.mark.parametrize("module", MODULES)
def test_module_can_be_imported_alone(module, imported_alone):
    "Quietly, without the development tools and without changing torch's settings."
    code, said = imported_alone[module]
    assert code == 0, f"importing {module} fails:\n{said}"
    assert not said, f"importing {module} prints {said}"


# ---- sizes that a reader can take in


def bodies(module: str) -> Iterator[tuple[int, str]]:
    "Lines of each function's body without its docstring, and the function's name."
    for node in ast.walk(syntax(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            yield lines, f"{module}.{node.name} (line {node.lineno})"


def generated(module: str) -> set[int]:
    "Numbers of the lines that nbdev makes as it likes: `__all__`."
    tree = syntax(module)
    names = [n for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"]
    return {line for n in names for line in range(n.lineno, n.end_lineno + 1)}


def test_nine_functions_in_ten_are_short():
    found = sorted((b for m in MODULES for b in bodies(m)), reverse=True)
    limit = found[len(found) - 1 - int(0.9 * len(found))][0]
    longest = ", ".join(f"{name} {n}" for n, name in found[: len(found) // 10] if n > 18)
    assert limit <= 18, f"nine functions in ten have up to {limit} lines, 18 are the aim; longer: {longest}"


@pytest.mark.parametrize("module", MODULES)
def test_no_function_is_long(module):
    "At most 60 lines without the docstring."
    long = [f"{name}: {n} lines" for n, name in bodies(module) if n > 60]
    assert not long, "; ".join(long)


@pytest.mark.parametrize("module", MODULES)
def test_no_function_takes_many_arguments(module):
    "At most eight: what travels together belongs into one object."
    many = []
    for node in ast.walk(syntax(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            n = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)
            many += [f"{module}.{node.name} (line {node.lineno}): {n}"] if n > 8 else []
    assert not many, "; ".join(many)


@pytest.mark.parametrize("module", MODULES)
def test_module_fits_on_its_pages(module):
    "At most 450 lines, none above 120 columns; nbdev's `__all__` alone may be wider."
    lines = (ROOT / PACKAGE / f"{module}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 450, f"{module}.py has {len(lines)} lines: its notebook is two"
    free = generated(module)
    wide = [f"{module}.py:{n}: {len(s)}" for n, s in enumerate(lines, 1) if len(s) > COLUMNS and n not in free]
    assert not wide, f"lines above {COLUMNS} columns (line 1 is the promise of the notebook): {'; '.join(wide)}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NOTEBOOK_IDS)
def test_notebook_fits_in_a_sitting(path):
    "At most 600 lines of code, none above 120 columns."
    cells = code_of(path)
    lines = sum(len(cell.splitlines()) for cell in cells)
    assert lines <= 600, f"{path.name} has {lines} lines of code: it is two notebooks"
    wide = [f"{s.strip()[:40]}… {len(s)}" for cell in cells for s in cell.splitlines() if len(s) > COLUMNS]
    assert not wide, f"{path.name} has lines above {COLUMNS} columns: {'; '.join(wide)}"


def test_an_exported_cell_is_one_idea():
    cells = [(c.count("\n") + 1, p.name) for p in NOTEBOOKS for c in code_of(p) if c.startswith("#| export")]
    middle = statistics.median(n for n, _ in cells)
    assert middle <= 25, f"half of the exported cells have more than {middle} lines; the longest: {max(cells)}"


# ---- notebooks and what is made from them


def test_modules_are_what_the_notebooks_export(tmp_path):
    copy_of_checkout(tmp_path, "nbs")
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / PACKAGE / "__init__.py").write_bytes((ROOT / PACKAGE / "__init__.py").read_bytes())
    nbdev("nbdev_export", tmp_path)
    made = sorted(p.name for p in (tmp_path / PACKAGE).glob("*.py"))
    assert made == sorted(p.name for p in (ROOT / PACKAGE).glob("*.py"))
    _, differ, errors = filecmp.cmpfiles(tmp_path / PACKAGE, ROOT / PACKAGE, made, shallow=False)
    assert not differ and not errors, f"not what the notebooks export (run `make export`): {differ + errors}"


def test_notebooks_are_clean(tmp_path):
    copy_of_checkout(tmp_path, "nbs", PACKAGE)
    nbdev("nbdev_clean", tmp_path)
    pairs = zip(NOTEBOOK_IDS, NOTEBOOKS, strict=True)
    dirty = [name for name, path in pairs if (tmp_path / "nbs" / name).read_bytes() != path.read_bytes()]
    assert not dirty, f"nbdev_clean changes {dirty}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NOTEBOOK_IDS)
def test_notebook_file(path):
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert len(text.encode()) < 2 * 2**20, f"{path.name} has {len(text.encode()) / 2**20:.1f} MB, 2 are allowed"
    assert "widgets" not in notebook["metadata"], "saved widget state breaks nbdev's reader"
    title = "".join(notebook["cells"][0]["source"])
    assert re.fullmatch(r"# .+\n\n> .+", title.strip()), f"first cell must be '# title' and '> promise': {title!r}"
    kinds = [o["output_type"] for c in notebook["cells"] for o in c.get("outputs", [])]
    assert "error" not in kinds, f"{path.name} was saved with an error in its outputs"


def test_library_code_can_begin_folded():
    "In JupyterLab; nbdev_clean keeps the mark, and a notebook is marked throughout or not at all."
    cells = [nbformat.v4.new_code_cell(s) for s in ("#| export\nx = 1", "x")]
    made = notebooks.folded(nbformat.v4.new_notebook(cells=cells))
    assert [dict(c.metadata) for c in made.cells] == [{"jupyter": {"source_hidden": True}}, {}]
    assert "jupyter" in settings()["allowed_cell_metadata_keys"].split()
    for path in NOTEBOOKS:
        cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
        marks = {c["metadata"] != {} for c in cells if "".join(c["source"]).startswith("#| export")}
        assert len(marks) < 2, f"{path.name}: some exported cells are folded, others not; --fold marks all"


def test_readme_is_made_from_the_index():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "readme.py", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\((?!\w+:|#)([^)\s#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    missing = [link for link in links if not (ROOT / link).exists()]
    assert links and not missing, f"README.md links to {missing}"


def test_readme_lists_every_room():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [name for name in MODULES if f"| `{name}` |" not in text]
    assert not missing, f"the table of rooms lacks {missing}"


AMERICAN = (  # spellings that would stand beside the British ones of all other pages
    "color gray center behavior neighbor favor honor labor tumor meter millimeter liter fiber caliber normaliz "
    "optimiz minimiz maximiz regulariz randomiz penaliz discretiz initializ recogniz analyz organiz summariz generaliz "
    "visualiz modeled labeled canceled traveled artifact judgment ischemi anemi"
).split()


def prose() -> Iterator[tuple[str, str]]:
    "Name and text of every page without its code; titles of papers keep their spelling, they are cited in italics."
    pages = [p for p in project_files() if p.suffix == ".md" and p.name != "references.md"]
    texts = {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in pages}
    for name, path in zip(NOTEBOOK_IDS, NOTEBOOKS, strict=True):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts[name] = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    for name, text in texts.items():
        bare = re.sub(r"```.*?```|`[^`]*`|\$[^$]*\$|\]\([^)]*\)|\[LICENSE\]|\*[A-Z][^*]*\*", " ", text, flags=re.DOTALL)
        yield name, bare


def test_one_spelling_and_one_name_for_one_thing():
    "British spelling; the paper's method is DiffSPECT-3D, the library diffspect_nb, the command and a prior diffspect."
    word = re.compile(rf"\b({'|'.join(AMERICAN)})\w*", re.IGNORECASE)
    tag = re.compile(r"Center of Rotation Offset")  # DICOM's own name
    found = [f"{name}: {match[0]}" for name, text in prose() for match in word.finditer(tag.sub("", text))]
    found += [f"{name}: {m[0]}" for name, text in prose() for m in re.finditer(r"\bDiffSPECT\b(?!-3D)", text)]
    assert not found, "; ".join(found)


# ---- one version, no machine


def test_version_comes_from_settings():
    version = settings()["version"]
    assert diffspect_nb.__version__ == version
    assert importlib.metadata.version(PACKAGE) == version, "reinstall: pip install -e ."
    literal = re.compile(rf"(?<![\d.]){re.escape(version)}(?![\d.])")
    others = [p for p in project_files() if p.suffix in {".py", ".toml", ".cfg"} and p.name != "__init__.py"]
    assert not [p.name for p in others if literal.search(p.read_text(encoding="utf-8"))]
    told = {"CITATION.cff": f"\nversion: {version}\n", "docs/site/cite.md": f"{{{version}}}"}
    for name, line in (told | {"CHANGELOG.md": f"\n## {version}"}).items():
        assert line in (ROOT / name).read_text(encoding="utf-8"), f"{name} is not of version {version}"


def test_no_paths_of_one_machine():
    "Neither code nor saved outputs name folders of the machine they were made on."
    pattern = re.compile(r"(?<![\w.\-~/])/(?:work|farm|tmp|home|root|Users|mnt)/[\w.]|[A-Za-z]:\\\\?Users\\", re.ASCII)
    found = []
    for path in project_files():
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode("utf-8", errors="replace").splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line[match.start() : match.start() + 80]}")
    assert not found, "\n".join(found)


def test_built_package_holds_what_the_checkout_ships(tmp_path):
    "A wheel, not only an editable install, carries every module, the checkpoints and the sample studies."
    folders = [n for n in (PACKAGE, "data_samples") if (ROOT / n).is_dir()]
    copy = copy_of_checkout(tmp_path, *folders, "nbs", "README.md", "LICENSE")
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    built = {p.relative_to(tmp_path / "lib" / PACKAGE).as_posix() for p in (tmp_path / "lib").rglob("*") if p.is_file()}
    expected = {p.name for p in (ROOT / PACKAGE).glob("*.py")}
    for folder in ("weights", "normals", "page"):
        expected |= {f"{folder}/{p.name}" for p in (ROOT / PACKAGE / folder).glob("*.safetensors")}
    static = ROOT / PACKAGE / "static"
    expected |= {f"static/{p.relative_to(static).as_posix()}" for p in static.rglob("*") if p.is_file()}
    expected |= {"notebooks/dashboard.ipynb"}
    samples = ROOT / "data_samples"
    expected |= {f"samples/{p.relative_to(samples).as_posix()}" for p in samples.rglob("*") if p.is_file()}
    assert expected <= built, f"the wheel lacks {sorted(expected - built)}"
