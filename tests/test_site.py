"The site: it builds without complaint, asks no other host for anything, and its sliders work without a kernel."

from __future__ import annotations

import base64
import csv
import html
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from browser import files_served, headless, least_contrast
from conftest import ROOT

from diffspect_nb.cli_study import file_hash
from diffspect_nb.core import show_slices
from diffspect_nb.explorer import Explorer
from diffspect_nb.files import write_json
from diffspect_nb.knobs import LESSONS, SITE, WEIGHTS
from diffspect_nb.viewer import with_picture

sys.path.insert(0, str(ROOT / "docs"))
import build
import pages

pytestmark = pytest.mark.slow
PRIOR = ROOT / "diffspect_nb" / "weights" / "paper.safetensors"
PAGES = sorted((ROOT / "docs" / "site").rglob("*.md"))


@pytest.fixture(scope="module")
def site() -> Path:
    "The built site; a warning, a broken link or another host's address fails the build."
    done = subprocess.run([sys.executable, ROOT / "docs" / "build.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "_docs" / "html"


@pytest.fixture(scope="module")
def address(site):
    "The site on loopback."
    with files_served(site) as served:
        yield served


@pytest.fixture(scope="module")
def browser():
    with headless() as found:
        yield found


def lessons() -> list[str]:
    "Pages of the learning path, in its order."
    text = (ROOT / "docs" / "site" / "learn.md").read_text(encoding="utf-8")
    rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    return [f"{path}.html" for path in dict.fromkeys(re.findall(r"\]\((nbs/[^)#]+)\.ipynb\)", rows))]


def title_of(page: str) -> str:
    "The heading of a page's text."
    return html.unescape(re.sub("<[^>]+>", "", re.search(r"<h1>(.*?)<a class=\"headerlink", page, re.DOTALL)[1]))


def test_every_notebook_and_module_has_a_page(site):
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        if ".ipynb_checkpoints" not in path.parts:
            assert (site / path.relative_to(ROOT)).with_suffix(".html").is_file()
    for path in (ROOT / "diffspect_nb").glob("[a-z]*.py"):
        assert (site / "api" / f"{path.stem}.html").is_file()
    assert len(list(site.rglob("*.html"))) > 40


def test_the_menu_shows_the_wings_and_their_notebooks(site):
    text = (site / "notebooks.html").read_text(encoding="utf-8")
    menu = re.search(r"<nav class=\"bd-docs-nav.*?</nav>", text, re.DOTALL)
    for wing, (name, _) in build.WINGS.items():
        rooms = [room for _, room in build.modules() if int(room[0]) == wing]
        page = (site / "wings" / f"{build.slug(wing)}.html").read_text(encoding="utf-8")
        assert f">{name}</a>" in menu[0]
        assert rooms and all(f"nbs/{room}.html" in menu[0] and f"nbs/{room}.html" in page for room in rooms)


def test_formulas_are_set_without_a_script(site):
    text = (site / "nbs" / "08_mlem.html").read_text(encoding="utf-8")
    assert text.count("<math") >= 5 and not re.search(r"<script[^>]*mathjax", text, re.IGNORECASE)


def test_pages_stay_small(site):
    large = {p.name: p.stat().st_size for p in site.rglob("*.html") if p.stat().st_size > 6e6}
    assert not large, f"pages above 6 MB: {large}"


def test_the_explorer_works_without_a_kernel(address, browser):
    with browser.new_page(viewport={"width": 1280, "height": 1400}) as page:
        asked, problems = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{address}/nbs/tutorials/explore.html")
        assert page.locator(".dse").count() == 2
        for n in range(2):
            widget = page.locator(".dse").nth(n)
            widget.locator("canvas").first.wait_for()
            page.wait_for_function(f"document.querySelectorAll('.dse')[{n}].dataset.drawn > 0")
            picture = widget.locator("figure").first.locator("canvas").first
            for slider in widget.locator("input[type=range]").all():
                before, text = picture.evaluate("c => c.toDataURL()"), widget.locator(".dse-metrics").inner_text()
                slider.focus()
                slider.press("End")
                at_end = picture.evaluate("c => c.toDataURL()")
                slider.press("Home")
                at_home = picture.evaluate("c => c.toDataURL()")
                assert at_end != at_home and before in (at_end, at_home) or at_end != before
                assert re.search(r"PSNR.*: [\d.]+", text)
        for path in ("index.html", "nbs/20_sampler.html", "api/sampler.html", "wings/the_method.html", "gallery.html"):
            page.goto(f"{address}/{path}")
        assert not problems
        elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
        assert not elsewhere, f"pages ask other hosts: {elsewhere[:3]}"


DOORS = ("learn.html", "howto/index.html", "live.html")
LIVES = {"install": "install.html", "cite": "cite.html", "TV weight": "20_sampler.html", "λ_dps": "20_sampler.html"}


def test_search_finds_first_what_people_type(address, browser):
    with browser.new_page() as page:
        for words, where in LIVES.items():
            page.goto(f"{address}/search.html?q={words}")
            page.locator(".search li a").first.wait_for(timeout=20_000)
            found = page.locator(".search li a").first.get_attribute("href")
            assert where in found, f"{words}: {found} comes first"
        page.goto(f"{address}/search.html?q=sensitivity")
        page.locator(".search li a").first.wait_for(timeout=20_000)
        assert page.locator(".search li a").count() >= 3


def test_the_first_page_tells_all_in_ten_seconds(address, browser, site):
    with browser.new_page(viewport={"width": 1280, "height": 900}) as page:
        page.goto(f"{address}/index.html")
        text = page.locator("article").inner_text()
        above = len(text.split("Six wings")[0].split())
        assert above <= 180, f"{above} words, the doors' names twice; ten seconds are not enough"
        bottom = page.locator("article img").first.evaluate("e => e.getBoundingClientRect().bottom")
        assert 300 < bottom < 700, "the picture is on the first screen"
        assert re.search(r"\+\d\.\d dB", text) and "Not for clinical use" in text and "git clone" in text
        doors = page.locator("article .sd-card").all_inner_texts()
        wings = [name for name, _ in build.WINGS.values()]
        titles = [title_of((site / p).read_text(encoding="utf-8")) for p in DOORS]
        assert [d.splitlines()[0] for d in doors] == [*titles, *wings]
        assert page.locator(f"article a[href='{pages.repository()}']").count()


LOOK = """() => {
  const code = [...document.querySelectorAll('article pre')].filter(e => e.clientWidth);
  const seen = [...document.querySelectorAll('article img, article canvas')].filter(e => e.offsetWidth > 120);
  return {sideways: document.documentElement.scrollWidth - innerWidth, first: seen[0]?.getBoundingClientRect().top,
    code: code.filter(e => e.scrollWidth > e.clientWidth + 1).length}; }"""
SOME = ["index", "learn", "benchmark", "gallery", "api/index", "api/sampler", "glossary", "nbs/index", "howto/data"]


def test_lessons_show_a_figure_at_once_and_nothing_scrolls_sideways(address, browser, site):
    "At 1280 pixels; a page that has no figure says so in its notebook."
    code = 0
    with browser.new_page(viewport={"width": 1280, "height": 900}) as page:
        for path in [*lessons(), *(f"{name}.html" for name in SOME)]:
            page.goto(f"{address}/{path}", wait_until="domcontentloaded")
            page.wait_for_function("[...document.images].every(i => i.complete)")
            found = page.evaluate(LOOK)
            code += found["code"]
            assert found["sideways"] <= 0, f"{path} scrolls sideways by {found['sideways']} pixels"
            assert path not in lessons() or found["first"] <= 1500, f"{path}: first figure at {found['first']}"
    assert code <= 10, f"{code} code blocks scroll sideways"


@pytest.mark.parametrize("width", [800, 390])
def test_narrow_screens_scroll_down_only(address, browser, width):
    shown = [f"{name}.html" for name in SOME] + ["nbs/20_sampler.html", "nbs/tutorials/explore.html"]
    with browser.new_page(viewport={"width": width, "height": 844}) as page:
        for path in shown:
            page.goto(f"{address}/{path}", wait_until="domcontentloaded")
            found = page.evaluate(LOOK)
            assert found["sideways"] <= 0 and found["code"] == 0, f"{path}: {found}"


def test_a_phone_shows_the_image_above_the_sliders(address, browser):
    with browser.new_page(viewport={"width": 390, "height": 844}) as page:
        page.goto(f"{address}/nbs/tutorials/explore.html")
        widget = page.locator(".dse").first
        top = "e => e.getBoundingClientRect().top"
        image, slider = widget.locator("canvas").first, widget.locator("input[type=range]").first
        assert image.evaluate(top) < slider.evaluate(top)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(address, browser, scheme):
    "Contrast of 4.5 at least, in both colour schemes."
    with browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme) as page:
        for path in ("index", "nbs/08_mlem", "benchmark", "gallery", "api/knobs", "nbs/tutorials/explore"):
            page.goto(f"{address}/{path}.html", wait_until="domcontentloaded")
            least, words = least_contrast(page, "article :is(p, td, pre span), figcaption, .dse :not(.dse-edge)")
            assert least >= 4.5, f"{path}, {scheme}, {words!r}: contrast {least:.2f}"


def test_next_follows_the_learning_path_under_the_same_names(site):
    learn = (site / "learn.html").read_text(encoding="utf-8")
    path = lessons()
    titles = [title_of((site / page).read_text(encoding="utf-8")) for page in path]
    for page, title in zip(path, titles, strict=True):
        said = re.findall(rf'href="{page}"[^>]*><span[^>]*>(.*?)</span>', learn)
        assert title in map(html.unescape, said), f"the learning path calls {title!r} {said}"
    for here, page, title in zip(["learn.html", *path], path, titles, strict=False):
        text = (site / here).read_text(encoding="utf-8")
        link = re.search(r'class="right-next"\s+href="([^"]+)".*?class="prev-next-title">(.*?)</p>', text, re.DOTALL)
        assert link[1].endswith(Path(page).name), f"next of {here} is {link[1]}"
        assert html.unescape(link[2]) == title


def test_each_notebook_can_be_downloaded(site):
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        if ".ipynb_checkpoints" in path.parts:
            continue
        page = (site / path.relative_to(ROOT)).with_suffix(".html")
        link = re.search(rf'href="([^"]+/{path.name})"', page.read_text(encoding="utf-8"))
        assert (page.parent / link[1]).read_bytes() == path.read_bytes()


def test_the_api_has_a_line_a_source_and_a_whole_signature_for_each_name(site):
    index = (site / "api" / "index.html").read_text(encoding="utf-8")
    for module, _ in build.modules():
        source, public = build.public_names(module)
        page = (site / "api" / f"{module}.html").read_text(encoding="utf-8")
        text = html.unescape(re.sub("<[^>]+>", "", page))
        for node in public:
            place = build.slug_of(module, node)
            assert f'href="{module}.html#{place}"' in index and f'id="{place}"' in page
            assert f"{module}.py#L{node.lineno}-L{node.end_lineno}" in page
            assert not hasattr(node, "name") or build.one_line(node) != "a constant", f"{module}.{node.name}: no words"
            for line in build.header(source, node).splitlines() if hasattr(node, "args") else ():
                assert line.strip() in text, f"{module}.{node.name}: {line!r} is not in the reference"


def test_the_benchmark_begins_with_its_result_and_curves(site):
    text = (site / "benchmark.html").read_text(encoding="utf-8")
    rows = csv.DictReader((ROOT / "benchmarks" / "results" / "differences.csv").open(encoding="utf-8"))
    of = {"metric": "psnr_db", "mask": "heart", "rival": "best classical", "setting": "counts 0.05"}
    gain = next(f"{float(r['difference']):+.1f} dB" for r in rows if of.items() <= r.items())
    assert text.index(gain) < text.index("curves_psnr_db.png") < text.index("<table")
    assert "against the truth" in text and "against the full-dose MLEM-50" in text


def test_the_gallery_has_captions_three_to_a_row(address, browser):
    with browser.new_page(viewport={"width": 1280, "height": 900}) as page:
        page.goto(f"{address}/gallery.html", wait_until="domcontentloaded")
        cards = page.locator("article .sd-card")
        tops = cards.evaluate_all("a => a.slice(0, 4).map(e => e.getBoundingClientRect().top)")
        assert tops[0] == tops[1] == tops[2] < tops[3]
        captions = cards.all_inner_texts()
        found = [pages.figures(nbformat.read(p, as_version=4)) for p in (ROOT / "nbs").rglob("*.ipynb")]
        assert len(captions) >= sum(map(len, found)) - 1 and all(re.match(r"\S.*: \S", c.strip()) for c in captions)


def picture(volume: np.ndarray) -> str:
    "A volume as a notebook's output, in base64."
    return with_picture({}, lambda: show_slices({"image": volume}, (2, 4, 4), 1.0))[0]["image/png"]


def test_hidden_cells_keep_their_outputs_and_placeholders_are_never_published(tmp_path):
    "A widget without its kernel and a picture of nothing yet are left out; code that was exported is folded."
    empty = picture(np.zeros((5, 9, 9), np.float32))
    full = picture(np.random.default_rng(0).random((5, 9, 9)).astype(np.float32))
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "0"}, "text/plain": "Slider(value=1)"}
    outputs = [widget, widget | {"image/png": full}, {"image/png": empty}]
    made = [nbformat.v4.new_output("display_data", data) for data in outputs]
    sources = {"#| hide\nprint(1)": made, "#| export\ndef f():\n    'One line.'": [], "import os": [], "f()": []}
    cells = [nbformat.v4.new_code_cell(s, outputs=o) for s, o in sources.items()]
    shown = [pages.code_cell(cell, front=False) for cell in cells]
    assert [list(o["data"]) for o in shown[0].outputs] == [["text/plain", "image/png"]]
    assert shown[0].metadata["tags"] == ["remove-input"] and "tags" not in shown[3].metadata
    assert [c.metadata["tags"] for c in shown[1:3]] == [["hide-input"]] * 2
    assert shown[1].metadata["mystnb"]["code_prompt_show"] == "Code: f · One line."
    assert pages.is_placeholder(base64.b64decode(empty)) and not pages.is_placeholder(base64.b64decode(full))


def test_an_explorer_whose_data_changed_fails_the_build(tmp_path):
    "So do a changed script and a changed prior."
    kept = tmp_path / "explorers"
    kept.mkdir()
    data = {"format": "diffspect-explorer/1", "metrics": [1.5], "prior": file_hash(PRIOR)}
    write_json(kept / "x.json", data)
    shown = nbformat.v4.new_output("display_data", {"text/html": Explorer(kept / "x.json").html()})
    cell = nbformat.v4.new_code_cell('Explorer("explorers/x.json")', outputs=[shown])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "page.ipynb")
    assert pages.stale(tmp_path / "page.ipynb") == []
    write_json(kept / "x.json", data | {"metrics": [1.6]})
    assert pages.stale(tmp_path / "page.ipynb") == ["page.ipynb: x.json changed since the notebook was run"]
    write_json(kept / "x.json", data | {"prior": "0"})
    assert "another prior" in pages.stale(tmp_path / "page.ipynb")[1]
    cell.outputs[0].data["text/html"] = cell.outputs[0].data["text/html"].replace("replaceChildren", "other")
    write_json(kept / "x.json", data)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "page.ipynb")
    assert len(pages.stale(tmp_path / "page.ipynb")) == 1


def test_no_page_holds_a_placeholder(site):
    empty = [p.name for p in (site / "_images").glob("*.png") if pages.is_placeholder(p.read_bytes())]
    assert not empty, f"pictures of nothing yet: {empty}"
    scripts = re.compile(r"<script[^>]*widget-view")
    told = [p.name for p in site.rglob("*.html") if scripts.search(p.read_text(encoding="utf-8"))]
    assert not told, f"widgets that want a kernel: {told}"
    text = (site / "nbs" / "tutorials" / "dashboard.html").read_text(encoding="utf-8")
    assert "_images/" in text and "DIFFSPECT_APP" not in text


def test_each_slider_leads_to_its_place_in_a_lesson(site):
    cfg = pages.settings()
    assert f"{cfg['doc_host']}{cfg['doc_baseurl']}/nbs" == SITE
    for name, lesson in (LESSONS | {"other weights": WEIGHTS}).items():
        page, place = lesson.split("#")
        text = (site / "nbs" / page).read_text(encoding="utf-8")
        assert f'id="{place}"' in text, f"{name}: {page} has no place {place}"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_python_on_the_pages_runs(path, tmp_path, monkeypatch):
    "Each page's Python, top to bottom, in a namespace of its own."
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    if not blocks:
        pytest.skip("no Python on this page")
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks), {"__name__": path.stem})


def test_faults_are_found(tmp_path):
    "The check that guards the build: a dead link, a missing picture and a foreign script are each named."
    away = '<a href="https://example.org">a link to follow</a>'
    (tmp_path / "a.html").write_text(f'<a href="b.html">b</a><img src="p.png"><a href="#here">x</a>{away}')
    foreign = '<script src="https://example.org/x.js"></script>'
    (tmp_path / "c.html").write_text(f'{foreign}<p id="here"></p><a href="#here">ok</a>')
    found = "\n".join(build.faults(tmp_path))
    assert "b.html leads nowhere" in found and "p.png leads nowhere" in found
    assert "no such place" in found and "another host" in found and len(found.splitlines()) == 4
