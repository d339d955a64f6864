"Notebooks as pages of the site, and the gallery of their pictures."

from __future__ import annotations

import ast
import base64
import io
import json
import os
import re
import shutil
from configparser import ConfigParser
from pathlib import Path

import nbformat
import numpy as np
from notebooks import directives
from PIL import Image
from scipy.ndimage import find_objects, label

from diffspect_nb.cli_study import file_hash

ROOT = Path(__file__).resolve().parents[1]
WIDGET = "application/vnd.jupyter.widget-view+json"
LEAD = {  # which picture of a notebook opens its page, counted from 0; the last one where none is named
    "02_geometry": 0,
    "03_anatomy": 3,
    "05_footprint": 1,
    "06_system": 0,
    "08_mlem": 0,
    "30_dicom": 0,
    "34_polar": 1,
    "35_reading": 4,
    "36_acquired": 1,
    "patients": 1,
}


def is_placeholder(png: bytes) -> bool:
    "A picture whose every dark panel is black to its corners: a dashboard or a slice before anything was computed."
    dark = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).max(2) < 8
    parts, _ = label(dark)
    boxes = [parts[place] == n for n, place in enumerate(find_objects(parts), 1)]
    panels = [box.mean() for box in boxes if box.size > dark.size / 50]
    return bool(panels) and min(panels) > 0.995


def pictures(cell: dict) -> list[bytes]:
    "The PNG pictures that a cell shows."
    found = [output.get("data", {}).get("image/png") for output in cell.get("outputs", [])]
    return [base64.b64decode(data) for data in found if data]


def published(outputs: list) -> list:
    "Outputs without widgets that want a kernel and without placeholders."
    kept = []
    for output in outputs:
        data = output.get("data", {})
        if "image/png" in data:
            if is_placeholder(base64.b64decode(data["image/png"])):
                continue
            data.pop(WIDGET, None)
        if WIDGET not in data:
            kept.append(output)
    return kept


def summary(source: str) -> str:
    "What a folded cell holds, in one line: its imports, or what it defines and the first line of that one's words."
    body = ast.parse(source).body
    if all(isinstance(n, ast.Import | ast.ImportFrom | ast.If) for n in body):
        return "Imports"
    defined = [n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    named = [n.targets[0].id for n in body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)]
    public = [n for n in defined if not n.name.startswith("_")] or defined
    if len(public) == 1 and (words := ast.get_docstring(public[0])):
        return f"Code: {public[0].name} · {words.splitlines()[0]}"
    names = [n.name for n in public] or named
    return "Code" + (f": {', '.join(names)}" if names else "")


def link_of(source: Path, notebook: Path, target: str) -> str:
    "A link between notebooks stays; pictures come along; other files of the repository are linked to there."
    path = (notebook.parent / target.split("#")[0]).resolve()
    if path.suffix == ".ipynb" or not path.is_relative_to(ROOT):
        return target
    if path.is_relative_to(ROOT / "docs" / "site"):  # a text of the site, whose folder is the site's root
        there = source / path.relative_to(ROOT / "docs" / "site")
        return Path(os.path.relpath(there, source / notebook.parent.relative_to(ROOT))).as_posix()
    if path.suffix in (".png", ".svg"):
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
        return target
    return f"{repository()}/blob/{branch()}/{path.relative_to(ROOT).as_posix()}"


def settings() -> dict[str, str]:
    "The project's settings."
    parser = ConfigParser()
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def repository() -> str:
    "Address of the repository."
    return settings()["git_url"]


def branch() -> str:
    "Branch that the site links to."
    return settings()["branch"]


def relinked(source: Path, notebook: Path, text: str) -> str:
    "Markdown of a notebook with links that the site can follow."
    return re.sub(r"\]\((?!\w+:|#)([^)\s]+)\)", lambda m: f"]({link_of(source, notebook, m[1])})", text)


def code_cell(cell: nbformat.NotebookNode, front: bool) -> nbformat.NotebookNode | None:
    "A code cell as the page shows it: imports and library code folded, hidden code left out and its outputs kept."
    flags, cell.outputs = directives(cell.source), published(cell.outputs)
    hidden = "hide" in flags or front
    source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE).strip()
    if "default_exp" in flags or not source or (hidden and not cell.outputs):
        return None
    cell.source, cell.metadata = source, {}
    if hidden:
        cell.metadata["tags"] = ["remove-input"]
    elif "export" in flags or summary(source) == "Imports":
        words = {"code_prompt_show": summary(source), "code_prompt_hide": summary(source)}
        cell.metadata |= {"tags": ["hide-input"], "mystnb": words}
    return cell


def figures(nb: nbformat.NotebookNode) -> list[tuple[str, bytes]]:
    "Each picture of a notebook under the heading it stands below."
    found, heading = [], ""
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", cell.source, flags=re.S), re.MULTILINE)
            heading = headings[-1] if headings else heading
        found += [(heading, png) for png in pictures(cell) if not is_placeholder(png)]
    return found


def opening(nb: nbformat.NotebookNode, notebook: Path, target: Path) -> str:
    "What stands below the title: the figure that the page comes to, unless one stands there already; the download."
    name = notebook.stem
    copy = target.parent / "download" / notebook.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(notebook, copy)
    text = f"{{download}}`Download this notebook <download/{notebook.name}>`"
    shown, lines = figures(nb), 0
    for cell in nb.cells[1:]:
        if pictures(cell):
            break
        folded = cell.cell_type == "code" and "export" in directives(cell.source)
        lines += 1 if folded else cell.source.count("\n") + 1 + sum(map(len, re.findall(".{100}", cell.source))) // 100
    if not shown or lines <= 25:
        return text
    heading, png = shown[LEAD.get(name, -1)]
    target.with_name(f"{name}_lead.png").write_bytes(png)
    title = f"From *{heading}*, below."
    return f"{text}\n\n:::{{figure}} {name}_lead.png\n:alt: {heading}\n:figclass: lead\n\n{title}\n:::\n"


def page_of(source: Path, notebook: Path) -> None:
    "A notebook as a page of the site in `source`."
    nb, kept = nbformat.read(notebook, as_version=4), []
    target = source / notebook.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    first = opening(nb, notebook, target)
    for cell in nb.cells:
        if cell.cell_type == "code":
            if not (cell := code_cell(cell, notebook.stem == "index")):
                continue
            for data in (output.get("data", {}) for output in cell.outputs):
                if "text/markdown" in data:  # Sphinx resolves links of the text only, not of what code has printed
                    made = relinked(source, notebook, data["text/markdown"])
                    data["text/markdown"] = re.sub(r"\.ipynb(?=[)#])", ".html", made)
        else:
            cell.source = relinked(source, notebook, cell.source)
        kept.append(cell)
    nb.cells = [kept[0], nbformat.v4.new_markdown_cell(first, id="opening"), *kept[1:]]
    nb.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nb, target)


def stale(notebook: Path) -> list[str]:
    "Explorers of a notebook whose saved output is not of their data, script and style as they stand, or of our priors."
    if "explorers/" not in notebook.read_text(encoding="utf-8"):
        return []
    package, found = ROOT / "diffspect_nb", []
    looks = [(package / "static" / f"explorer.{kind}").read_text(encoding="utf-8") for kind in ("js", "css")]
    priors = set(map(file_hash, (package / "weights").glob("*.safetensors")))
    for cell in nbformat.read(notebook, as_version=4).cells:
        files = re.findall(r'"([^"]*explorers/[^"]+\.json)"', cell.source) if cell.cell_type == "code" else []
        shown = "".join(output.get("data", {}).get("text/html", "") for output in cell.get("outputs", []))
        for path in ((notebook.parent / file).resolve() for file in files):
            data = json.loads(path.read_text(encoding="utf-8"))
            written = json.dumps(data, ensure_ascii=False).replace("</", "<\\/")[1:-1]
            if not all(part in shown for part in (written, *looks)):
                found.append(f"{notebook.name}: {path.name} changed since the notebook was run")
            if data.get("prior") not in priors:
                found.append(f"{notebook.name}: {path.name} is of another prior: python benchmarks/explorers.py")
    return found


def gallery_page(source: Path, wings: dict[str, str]) -> str:
    "Every picture of the notebooks, wing by wing, three to a row, captioned and linked to the page that explains it."
    text = ["# Gallery", "", "Every picture of the notebooks; each leads to the page that explains it.", ""]
    folder = source / "gallery_files"
    folder.mkdir(exist_ok=True)
    paths = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
    for digit, wing in wings.items():
        text += [f"## {wing}", "", ":::::{grid} 1 2 3 3", ":gutter: 2", ""]
        for path in (p for p in paths if p.stem.startswith(digit) or (not digit and not p.stem[0].isdigit())):
            nb = nbformat.read(path, as_version=4)
            title, page = re.match(r"# (.+)", nb.cells[0].source)[1], path.relative_to(ROOT).with_suffix("").as_posix()
            for n, (heading, png) in enumerate(figures(nb)):
                name = f"{path.stem}_{n}.png"
                (folder / name).write_bytes(png)
                text += ["::::{grid-item-card}", f":img-top: gallery_files/{name}", f":link: {page}"]
                text += [":link-type: doc", f":img-alt: {heading}", "", f"**{title}**: {heading}", "::::"]
        text += [":::::", ""]
    return "\n".join(text)
