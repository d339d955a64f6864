"""Build the site into _docs/html: `python docs/build.py`. No network; broken links, missing pictures, explorers whose
data changed since, and pages that would ask another host for anything fail the build.

Pages are the notebooks with the outputs they are saved with, the texts of docs/site, and what is made here from the
notebooks, the code and benchmarks/results: a page for each wing, the API reference, the benchmark tables, the
gallery."""

from __future__ import annotations

import ast
import csv
import json
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pages import branch, gallery_page, page_of, repository, stale

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


def public_names(module: str) -> tuple[str, list[ast.stmt]]:
    "Source of a module and the statements that define its public names, in its order."
    source = (ROOT / "diffspect_nb" / f"{module}.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    made = [n for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)]
    public = next(ast.literal_eval(n.value) for n in made if n.targets[0].id == "__all__")
    return source, [n for n in tree.body if (n in made or hasattr(n, "name")) and name_of(n) in public]


def name_of(node: ast.stmt) -> str:
    "Name that a statement defines."
    return node.name if hasattr(node, "name") else node.targets[0].id


def one_line(node: ast.stmt) -> str:
    "The first line of what a definition says about itself; a constant says nothing."
    words = ast.get_docstring(node) if hasattr(node, "name") else None
    return (words or "a constant").splitlines()[0].replace("|", "\\|")


def api_index() -> str:
    "Every public name in one line, module by module and wing by wing."
    lines = ["# API reference", "", "Every public name in one line. Signatures carry shapes and units.", ""]
    for wing, (name, _) in WINGS.items():
        found = [module for module, room in modules() if int(room[0]) == wing]
        lines += [f"## {name}", "", "```{toctree}", ":hidden:", ":maxdepth: 1", "", *found, "```", ""]
        for module in found:
            public = public_names(module)[1]
            rows = [[f"[`{name_of(n)}`]({module}.md#{slug_of(module, n)})", one_line(n)] for n in public]
            lines += [f"### [`{module}`]({module}.md)", "", table([["name", "what it is"], *rows])]
    return "\n".join(lines)


def slug_of(module: str, node: ast.stmt) -> str:
    "Place of a name on its module's page."
    name = name_of(node)
    kind = "" if name.islower() else "constant-" if name.isupper() else "class-"  # `Keys`, `KEYS` and `keys` may meet
    return f"{module}-{kind}{name}".lower().replace("_", "-")


def header(source: str, node: ast.AST) -> str:
    "The lines of a definition up to its docstring or first statement: signature, and the comments that explain it."
    first = node.body[0].lineno
    return "\n".join(source.splitlines()[node.lineno - 1 : first - 1])


def members(source: str, node: ast.ClassDef) -> list[str]:
    "Fields and public methods of a class."
    lines = []
    for part in node.body:
        if isinstance(part, ast.AnnAssign):
            text = "\n".join(source.splitlines()[part.lineno - 1 : part.end_lineno])
            lines += ["```python", textwrap.dedent(text), "```"]
        elif isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
            text = textwrap.dedent(header(source, part))
            lines += ["", f"### `{node.name}.{part.name}`", "", "```python", text, "```", ""]
            lines += [ast.get_docstring(part) or "", ""]
    return lines


def api_page(module: str, room: str) -> str:
    "Signatures with their comments (shapes and units), docstrings and source links of a module's public names."
    source, public = public_names(module)
    file = f"{repository()}/blob/{branch()}/diffspect_nb/{module}.py"
    about = f"[Its notebook](../nbs/{room}.ipynb) explains it; [source]({file})."
    lines = [f"# `{module}`", "", ast.get_docstring(ast.parse(source)), "", about, ""]
    for node in public:
        lines += [f"({slug_of(module, node)})=", f"## `{name_of(node)}`", "", "```python"]
        if hasattr(node, "name"):
            lines += [header(source, node) or f"class {node.name}:", "```", "", ast.get_docstring(node) or "", ""]
            lines += members(source, node) if isinstance(node, ast.ClassDef) else []
        else:
            lines += [*source.splitlines()[node.lineno - 1 : node.end_lineno][:12], "```"]
        lines += ["", f"[source]({file}#L{node.lineno}-L{node.end_lineno})", ""]
    return re.sub(r"\n```\n```python\n", "\n", "\n".join(lines)) + "\n"


def table(rows: list[list[str]]) -> str:
    "A Markdown table; the first row is its head."
    head, *body = rows
    return "\n".join("| " + " | ".join(r) + " |" for r in [head, ["---"] * len(head), *body]) + "\n"


def results() -> tuple[dict, list[dict], list[dict]]:
    "What the last benchmark says about itself, its paired differences, and its means."
    folder = ROOT / "benchmarks" / "results"
    read = [list(csv.DictReader((folder / f"{n}.csv").open(encoding="utf-8"))) for n in ("differences", "summary")]
    return json.loads((folder / "about.json").read_text(encoding="utf-8")), *read


def words(setting: str) -> str:
    "A setting as people say it."
    kind, value = setting.split()
    return f"{100 * float(value):g} % of the counts" if kind == "counts" else f"{value} views"


def result_sentence() -> str:
    "The result at 5 % of the counts, with its interval and its patients."
    _, differences, _ = results()
    of = {"metric": "psnr_db", "mask": "heart", "rival": "best classical", "setting": "counts 0.05"}
    row = next(r for r in differences if of.items() <= r.items())
    mean, low, high = (f"{float(row[k]):+.1f}" for k in ("difference", "low", "high"))
    return (
        f"At 5 % of the counts: **{mean} dB** PSNR in the heart (95 % interval {low} to {high}, {row['studies']} "
        "simulated patients) over the best classical image that could be picked with the truth in hand."
    )


def headline() -> str:
    "What the benchmark comes to: against the truth, and by the paper's own reference."
    _, differences, summary = results()
    of = {"metric": "psnr_db", "mask": "heart", "rival": "best classical"}
    rows = [r for r in differences if of.items() <= r.items()]
    gains, clear = [float(r["difference"]) for r in rows], sum(float(r["low"]) > 0 for r in rows)
    at = {"setting": "counts 0.05", "mask": "heart", "reference": "full-dose MLEM-50"}
    by = {r["method"]: float(r["psnr_db"]) for r in summary if at.items() <= r.items()}
    ours = rows[0]["method"]
    return (
        f"{result_sentence()} Over all {len(rows)} settings the gain is {min(gains):+.1f} to {max(gains):+.1f} dB, its "
        f"interval clear of zero at {clear} of them.\n\n"
        f"By the paper's own reference, the full-dose MLEM-50 image, it has {by[ours]:.1f} dB where MLEM-50 of the "
        f"same 5 % of the counts has {by['MLEM-50']:.1f} dB. That image is not the truth: an MLEM image of a part of "
        "its counts shares its blur and its noise and is rewarded for both, and an image that comes nearer to the "
        "truth moves away from it. The tables below have both."
    )


def method_tables() -> list[str]:
    "Every method a row, every setting a column, by both references."
    _, differences, summary = results()
    ours, text = differences[0]["method"], []
    for reference in ("truth", "full-dose MLEM-50"):
        rows = [r for r in summary if (r["reference"], r["mask"]) == (reference, "heart")]
        means = {(r["method"], r["setting"]): float(r["psnr_db"]) for r in rows}
        settings = list(dict.fromkeys(r["setting"] for r in rows))
        methods = sorted(dict.fromkeys(r["method"] for r in rows), key=lambda m: m != ours)
        body = [[m, *(f"{means[m, s]:.1f}" if (m, s) in means else "–" for s in settings)] for m in methods]
        text += [f"## PSNR in the heart against the {reference} (dB)", ""]
        text += [table([["method", *map(words, settings)], *body]), ""]
    return text


def difference_tables() -> list[str]:
    "Paired differences to each rival, with intervals."
    rows, text = results()[1], []
    labels = {"psnr_db": "PSNR (dB), more is better", "nrmse": "NRMSE, less is better", "ssim": "SSIM, more is better"}
    labels["defect_error"] = "Error of defect contrast, less is better"
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
                body = [[words(s), *(cells[s, v] for v in rivals)] for s in settings]
                text += [f"### {label}: {mask}", "", table([[f"{chosen[0]['method']} −", *rivals], *body])]
    return text


def benchmark_page() -> str:
    "Headline, curves, and the tables of the last benchmark."
    about, folder = results()[0], ROOT / "benchmarks" / "results"
    text = ["# Benchmark", "", headline(), ""]
    names = {"psnr_db": "PSNR", "nrmse": "NRMSE", "ssim": "SSIM", "defect_error": "Error of defect contrast"}
    for path in sorted(folder.glob("curves_*.png"), key=lambda p: "psnr" not in p.name):
        shutil.copy(path, SOURCE / path.name)
        text += [f"![{names[path.stem.removeprefix('curves_')]}, over dose and over views]({path.name})", ""]
    text += method_tables()
    text += [
        "## Paired differences",
        "",
        f"{len(about['studies'])} studies, `diffspect benchmark`, {about['date']}, commit `{about['commit']}`. Paired "
        "differences to each rival on the same data: mean and 95 % bootstrap interval over the studies. *Best "
        "classical* is, for each study, the best of all classical images there, chosen with the truth in hand.",
        "",
        *difference_tables(),
    ]
    worse = list(csv.DictReader((folder / "worse.csv").open(encoding="utf-8")))
    text += [
        "## What got worse",
        "",
        f"{len(worse)} cases of a study, a setting, a region and a metric in which ours is behind the best classical "
        "image; the thirty largest losses:",
        "",
    ]
    order = sorted(worse, key=lambda r: -float(r["loss"]) / max(abs(float(r["theirs"])), 1e-9))[:30]
    fields = ("metric", "mask", "setting", "study")
    body = [[*(r[n] for n in fields), f"{float(r['ours']):.3g}", f"{float(r['theirs']):.3g}"] for r in order]
    return "\n".join([*text, table([["metric", "region", "setting", "study", "ours", "best classical"], *body])])


def wings_cards() -> str:
    "The wings as cards, for the first page."
    lines = ["::::{grid} 2 2 4 4", ":gutter: 2", ""]
    for wing, (name, hands_on) in WINGS.items():
        lines += [f":::{{grid-item-card}} {name}", f":link: wings/{slug(wing)}", ":link-type: doc", "", hands_on, ":::"]
    return "\n".join([*lines, "::::"])


def fill_first_pages() -> None:
    "Result, wings and the address of the repository in their places."
    shutil.copytree(ROOT / "docs" / "pictures", SOURCE / "pictures")
    made = {"<!-- result -->": result_sentence(), "<!-- wings -->": wings_cards(), "<!-- repository -->": repository()}
    for name in ("index", "install"):
        page = SOURCE / f"{name}.md"
        text = page.read_text(encoding="utf-8")
        for mark, value in made.items():
            text = text.replace(mark, value)
        page.write_text(text, encoding="utf-8")


def assemble() -> None:
    "All sources of the site in one folder."
    shutil.rmtree(SOURCE.parent, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "site", SOURCE)
    shutil.copy(ROOT / "settings.ini", SOURCE)
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        if not any(part[0] in "._" for part in path.relative_to(ROOT).parts):
            page_of(SOURCE, path)
    for folder in ("api", "wings"):
        (SOURCE / folder).mkdir()
    for module, room in modules():
        (SOURCE / "api" / f"{module}.md").write_text(api_page(module, room), encoding="utf-8")
    (SOURCE / "api" / "index.md").write_text(api_index(), encoding="utf-8")
    for wing in WINGS:
        (SOURCE / "wings" / f"{slug(wing)}.md").write_text(wing_page(wing), encoding="utf-8")
    (SOURCE / "benchmark.md").write_text(benchmark_page(), encoding="utf-8")
    sections = {str(digit): name for digit, (name, _) in WINGS.items()} | {"": "Tutorials"}
    (SOURCE / "gallery.md").write_text(gallery_page(SOURCE, sections), encoding="utf-8")
    fill_first_pages()
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
    if old := [fault for path in (ROOT / "nbs").rglob("[!.]*.ipynb") for fault in stale(path)]:
        print("\n".join(old), file=sys.stderr)
        return 1
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
