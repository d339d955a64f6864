"The site: it builds without complaint, asks no other host for anything, and its sliders work without a kernel."

from __future__ import annotations

import re
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import headless
from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import build

pytestmark = pytest.mark.slow
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
    handler = partial(type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}), directory=site)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


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


def test_the_explorer_works_without_a_kernel(address):
    with headless() as browser:
        page, asked, problems = browser.new_page(viewport={"width": 1280, "height": 1400}), [], []
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


def test_search_finds_a_term(address):
    with headless() as browser:
        page = browser.new_page()
        page.goto(f"{address}/search.html?q=sensitivity")
        page.locator(".search li a").first.wait_for(timeout=20_000)
        assert page.locator(".search li a").count() >= 3


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
