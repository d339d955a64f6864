"""Build the site into _docs/html: `python docs/build.py`. No network; broken links, missing pictures and pages that
would ask another host for anything fail the build.

Pages are the notebooks with the outputs they are saved with, the texts of docs/site, and what is made here from the
notebooks, the code and benchmarks/results: a page for each wing, the API reference, the benchmark tables, the
gallery."""

from __future__ import annotations

import ast
import base64
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat

from diffspect_nb.live_page import write_live_page

ROOT = Path(__file__).resolve().parents[1]
SOURCE, HTML = ROOT / "_docs" / "source", ROOT / "_docs" / "html"
WINGS = {  # tens digit of the notebooks → name of the wing, and what it hands on
    0: ("The scan", "From a camera's pinholes to a study, its measurement, a classical image and a score."),
    1: ("The prior", "A network that has seen simulated patients: from a noisy image to the clean one it expects."),
    2: ("The method", "The walks in which prior and counts agree on one image, and how sure that image is."),
    3: ("The patient", "Hospital files in and out, attenuation from CT, and the heart as a cardiologist reads it."),
    4: ("The rivals", "What guided diffusion has to beat, each tuned as well as anyone could."),
    5: ("The proof", "Every dose, every number of views, every rival, with intervals; and a reader that never tires."),
    6: ("The face", "What people touch: the viewer, the dashboards, the explorer, the command line."),
}


def _link(notebook: Path, target: str) -> str:
    "A link between notebooks stays; pictures come along; other files of the repository are linked to there."
    path = (notebook.parent / target.split("#")[0]).resolve()
    if path.suffix == ".ipynb" or not path.is_relative_to(ROOT):
        return target
    if path.is_relative_to(ROOT / "docs" / "site"):  # a text of the site, whose folder is the site's root
        there = SOURCE / path.relative_to(ROOT / "docs" / "site")
        return Path(os.path.relpath(there, SOURCE / notebook.parent.relative_to(ROOT))).as_posix()
    if path.suffix in (".png", ".svg"):
        copy = SOURCE / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
        return target
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    cfg = settings["DEFAULT"]
    return f"{cfg['git_url']}/blob/{cfg['branch']}/{path.relative_to(ROOT).as_posix()}"


def _relinked(notebook: Path, text: str) -> str:
    return re.sub(r"\]\((?!\w+:|#)([^)\s]+)\)", lambda m: f"]({_link(notebook, m[1])})", text)


def page_of(notebook: Path, target: Path) -> None:
    "A notebook as a page: directives and hidden cells left out, everything else as it is."
    nb = nbformat.read(notebook, as_version=4)
    kept = []
    for cell in nb.cells:
        flags = {m[1]: m[2] for m in re.finditer(r"^#\|\s*(\S+)[ \t]*(.*)$", cell.source, re.MULTILINE)}
        if cell.cell_type == "code":
            if "hide" in flags or "default_exp" in flags or not cell.source.strip():
                continue
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE)
            for data in (output.get("data", {}) for output in cell.outputs):
                if "text/markdown" in data:  # Sphinx resolves links of the text only, not of what code has printed
                    made = _relinked(notebook, data["text/markdown"])
                    data["text/markdown"] = re.sub(r"\.ipynb(?=[)#])", ".html", made)
        else:
            cell.source = _relinked(notebook, cell.source)
        kept.append(cell)
    nb.cells = kept
    nb.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, target)


def modules() -> list[tuple[str, str]]:
    "Name of each module and the notebook it comes from, in the order of the rooms."
    found = []
    for path in sorted((ROOT / "nbs").glob("[0-9][0-9]*_*.ipynb")):
        if name := re.search(r"#\| default_exp (\w+)", path.read_text(encoding="utf-8")):
            found.append((name[1], path.stem))
    return found


def promise(notebook: Path) -> tuple[str, str]:
    "Title of a notebook and the sentence below it."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    found = re.match(r"# (.+)\s+> ?((?:.|\n)+)", "".join(cells[0]["source"]))
    return found[1], " ".join(line.lstrip("> ") for line in found[2].splitlines()).replace("|", "\\|")


def slug(wing: int) -> str:
    "Name of a wing's page."
    return WINGS[wing][0].lower().replace(" ", "_")


def wing_page(wing: int) -> str:
    "A wing's rooms with what each promises; in the menu they stand below it."
    name, hands_on = WINGS[wing]
    rooms = [(m, room) for m, room in modules() if int(room[0]) == wing]
    rows = [["notebook", "module", "promise"]]
    for module, room in rooms:
        title, sentence = promise(ROOT / "nbs" / f"{room}.ipynb")
        number = room.split("_")[0]
        rows += [[f"[{number} {title}](../nbs/{room}.ipynb)", f"[`{module}`](../api/{module}.md)", sentence]]
    menu = [f"../nbs/{room}" for _, room in rooms]
    toctree = ["```{toctree}", ":hidden:", ":maxdepth: 1", "", *menu, "```", ""]
    return "\n".join([f"# {name}", "", hands_on, "", table(rows), *toctree])


def api_index() -> str:
    "The modules, wing by wing."
    lines = ["# API reference", "", "Signatures carry shapes and units; each module's notebook explains it.", ""]
    for wing, (name, _) in WINGS.items():
        names = [module for module, room in modules() if int(room[0]) == wing]
        lines += [f"## {name}", "", "```{toctree}", ":maxdepth: 1", "", *names, "```", ""]
    return "\n".join(lines)


def header(source: str, node: ast.AST) -> str:
    "The lines of a definition up to its docstring or first statement: signature, and the comments that explain it."
    first = node.body[0].lineno
    return "\n".join(source.splitlines()[node.lineno - 1 : first - 1])


def api_page(module: str, room: str) -> str:
    "Signatures with their comments (shapes and units), and docstrings, of a module's public names."
    source = (ROOT / "diffspect_nb" / f"{module}.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    public = next(
        ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__"
    )
    lines = [f"# `{module}`", "", ast.get_docstring(tree), "", f"[Its notebook](../nbs/{room}.ipynb) explains it.", ""]
    for node in tree.body:
        if getattr(node, "name", None) not in public:
            continue
        lines += [f"## `{node.name}`", "", "```python", header(source, node) or f"class {node.name}:", "```", ""]
        lines += [ast.get_docstring(node) or "", ""]
        for part in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(part, ast.AnnAssign):
                text = source.splitlines()[part.lineno - 1].strip()
                lines += ["```python", text, "```"]
            elif isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                lines += ["", f"### `{node.name}.{part.name}`", "", "```python", header(source, part), "```", ""]
                lines += [ast.get_docstring(part) or "", ""]
    return re.sub(r"\n```\n```python\n", "\n", "\n".join(lines)) + "\n"


def table(rows: list[list[str]]) -> str:
    "A Markdown table; the first row is its head."
    head, *body = rows
    return "\n".join("| " + " | ".join(r) + " |" for r in [head, ["---"] * len(head), *body]) + "\n"


def benchmark_page() -> str:
    "The tables of the last benchmark."
    results = ROOT / "benchmarks" / "results"
    about = json.loads((results / "about.json").read_text(encoding="utf-8"))
    rows = list(csv.DictReader((results / "differences.csv").open(encoding="utf-8")))
    text = ["# Benchmark", ""]
    text += [
        f"{len(about['studies'])} studies, `diffspect benchmark`, {about['date']}, commit `{about['commit']}`. Paired "
        "differences to each rival on the same data: mean and 95 % bootstrap interval over the studies. *Best "
        "classical* is, for each study, the best of all classical images there, chosen with the truth in hand.",
        "",
    ]
    labels = {"psnr_db": "PSNR (dB), more is better", "nrmse": "NRMSE, less is better", "ssim": "SSIM, more is better"}
    labels["defect_error"] = "error of defect contrast, less is better"
    for metric, label in labels.items():
        for mask in ("heart", "field of view"):
            chosen = [r for r in rows if (r["metric"], r["mask"]) == (metric, mask)]
            settings = list(dict.fromkeys(r["setting"] for r in chosen))
            rivals = list(dict.fromkeys(r["rival"] for r in chosen))
            cells = defaultdict(lambda: "–")
            for r in chosen:
                digits = 2 if metric == "psnr_db" else 3
                mean, low, high = (f"{float(r[k]):+.{digits}f}" for k in ("difference", "low", "high"))
                cells[r["setting"], r["rival"]] = f"**{mean}**<br>{low}…{high}"
            if chosen and not (metric == "defect_error" and mask == "field of view"):
                body = [[s, *(cells[s, v] for v in rivals)] for s in settings]
                text += [f"## {label}: {mask}", "", table([["guided −", *rivals], *body])]
    worse = list(csv.DictReader((results / "worse.csv").open(encoding="utf-8")))
    text += [
        "## What got worse",
        "",
        f"{len(worse)} cases of a study, a setting, a region and a metric in which the guided image is behind the best "
        "classical one; the thirty largest losses:",
        "",
    ]
    order = sorted(worse, key=lambda r: -float(r["loss"]) / max(abs(float(r["theirs"])), 1e-9))[:30]
    names = ("metric", "mask", "setting", "study")
    body = [[*(r[n] for n in names), f"{float(r['ours']):.3g}", f"{float(r['theirs']):.3g}"] for r in order]
    text += [table([["metric", "region", "setting", "study", "guided", "best classical"], *body])]
    for path in sorted(results.glob("curves_*.png")):
        shutil.copy(path, SOURCE / path.name)
        text += [f"![{path.stem.replace('_', ' ')}, over dose and over views]({path.name})", ""]
    return "\n".join(text)


def gallery_page() -> str:
    "Every picture of the notebooks, with the page it comes from."
    text = ["# Gallery", "", "Every picture of the notebooks; each leads to the page that explains it.", ""]
    folder = SOURCE / "gallery_files"
    folder.mkdir(exist_ok=True)
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        nb, n = nbformat.read(path, as_version=4), 0
        title = next((re.match(r"# (.+)", c.source)[1] for c in nb.cells if c.source.startswith("# ")), path.stem)
        page = path.relative_to(ROOT).as_posix()
        shown = []
        for cell in nb.cells:
            for output in cell.get("outputs", []):
                if picture := output.get("data", {}).get("image/png"):
                    name, n = f"{path.stem}_{n}.png", n + 1
                    (folder / name).write_bytes(base64.b64decode(picture))
                    shown.append(f"[![{title}, picture {n}](gallery_files/{name})]({page})")
        if shown:
            text += [f"## {title}", "", *(s + "\n" for s in shown)]
    return "\n".join(text)


def assemble() -> None:
    "All sources of the site in one folder."
    shutil.rmtree(SOURCE.parent, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "site", SOURCE)
    shutil.copy(ROOT / "settings.ini", SOURCE)
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        if not any(part[0] in "._" for part in path.relative_to(ROOT).parts):
            page_of(path, SOURCE / path.relative_to(ROOT))
    for folder in ("api", "wings"):
        (SOURCE / folder).mkdir()
    for module, room in modules():
        (SOURCE / "api" / f"{module}.md").write_text(api_page(module, room), encoding="utf-8")
    (SOURCE / "api" / "index.md").write_text(api_index(), encoding="utf-8")
    for wing in WINGS:
        (SOURCE / "wings" / f"{slug(wing)}.md").write_text(wing_page(wing), encoding="utf-8")
    (SOURCE / "benchmark.md").write_text(benchmark_page(), encoding="utf-8")
    (SOURCE / "gallery.md").write_text(gallery_page(), encoding="utf-8")
    write_live_page(SOURCE / "_static" / "live")


class _Page(HTMLParser):
    "What a page links to, what it loads, and the places within it."

    LOADS = {"img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}

    def __init__(self):
        super().__init__()
        self.links, self.loads, self.places = [], [], set()

    def handle_starttag(self, tag, attributes):
        found = {k: v or "" for k, v in attributes}
        self.places |= {found[k] for k in ("id", "name") if k in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "shortcut icon"):
            self.loads.append(found["href"])
        elif tag in self.LOADS and self.LOADS[tag] in found:
            self.loads.append(found[self.LOADS[tag]])


def faults(folder: Path) -> list[str]:
    "Links and pictures that lead nowhere, and anything that another host would be asked for."
    pages = {}
    for path in (p for p in folder.rglob("*.html") if "_static" not in p.parts):
        pages[path] = _Page()
        pages[path].feed(path.read_text(encoding="utf-8"))
    found = []
    for path, page in pages.items():
        where = path.relative_to(folder)
        for url in page.loads + page.links:
            parts = urlsplit(url)
            if parts.scheme in ("http", "https") or parts.netloc:
                if url in page.loads:
                    found.append(f"{where}: loads {url[:100]} from another host")
            elif parts.scheme in ("", "file"):
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                target = target / "index.html" if target.is_dir() else target
                if not target.is_file():
                    found.append(f"{where}: {url[:100]} leads nowhere")
                elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
                    found.append(f"{where}: {url[:100]}: there is no such place on that page")
    for path in folder.rglob("*.css"):
        for url in re.findall(r"url\(['\"]?(https?:[^)'\"]+)", path.read_text(encoding="utf-8", errors="replace")):
            found.append(f"{path.relative_to(folder)}: loads {url[:100]} from another host")
    return found


def main() -> int:
    start = time.perf_counter()
    assemble()
    done = subprocess.run([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", SOURCE, HTML])
    if done.returncode:
        return done.returncode
    if wrong := faults(HTML):
        print("\n".join(wrong), file=sys.stderr)
        return 1
    pages = list(HTML.rglob("*.html"))
    largest = max(pages, key=lambda p: p.stat().st_size)
    size = f"the largest {largest.stat().st_size / 1e6:.1f} MB ({largest.relative_to(HTML)})"
    print(f"{len(pages)} pages in {HTML.relative_to(ROOT)}, {size}; {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
