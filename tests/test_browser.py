"The dashboards in a real browser: JupyterLab and the Voilà app, driven by mouse and keyboard."

from __future__ import annotations

import re
import shutil
import sys
import urllib.request

import nbformat
import pytest
from browser import headless, jupyter_lab, open_and_run, serving, wait_for
from conftest import ROOT

pytestmark = pytest.mark.slow
DASHBOARD = """from diffspect_nb.dashboard import ReconstructionDashboard
dashboard = ReconstructionDashboard()
dashboard"""
CLI = "import sys; from diffspect_nb.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def browser():
    with headless() as found:
        yield found


@pytest.fixture(scope="module")
def lab(tmp_path_factory, browser, full_matrix):
    "JupyterLab in a folder of its own, with the dashboard in a notebook."
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "data_samples", folder / "data_samples")
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(DASHBOARD)])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, folder / "dashboard.ipynb")
    with jupyter_lab(folder) as address:
        yield address


@pytest.fixture(scope="module")
def page(lab, browser):
    "The dashboard, after its first reconstruction."
    page = browser.new_page(viewport={"width": 1280, "height": 1500})
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    open_and_run(page, lab, "dashboard.ipynb")
    finished(page, 180)
    yield page
    page.close()


def finished(page, seconds: float = 90) -> None:
    "Wait until a run is done."
    page.locator(".dsd-state", has_text="done in").wait_for(timeout=1000 * seconds)


def begun(page) -> None:
    "Wait until a run is under way."
    page.locator(".dsd-state", has_text=re.compile("step|reading|building")).wait_for(timeout=30_000)


def handle(page, name: str):
    "The handle of a slider of the dashboard."
    return page.locator(f".widget-vbox:has(> .widget-html .dsd-row b:text-is('{name}')) .noUi-handle").first


def drag(page, name: str, pixels: float, moves: int = 5) -> None:
    box = handle(page, name).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + pixels, y, steps=moves)
    page.mouse.up()


def picture(page, volume: str, plane: int = 0) -> str:
    "What one canvas of the viewer shows."
    found = page.locator(".dsv-volume", has=page.get_by_text(volume, exact=True))
    return found.locator("canvas").nth(plane).evaluate("c => c.toDataURL()")


def results(page) -> list[str]:
    "Labels of the results kept."
    return page.locator(".widget-dropdown", has_text="compare").locator("option").all_inner_texts()


def test_drag_changes_the_image(page):
    before, kept = picture(page, "guided"), results(page)
    drag(page, "anchor", 80)
    begun(page)
    finished(page)
    assert picture(page, "guided") != before
    assert len(results(page)) == len(kept) + 1
    assert page.locator(".widget-dropdown", has_text="settings").locator("select").input_value() == "your own"
    support = page.locator(".dsd-map img")
    assert [support.nth(n).evaluate("i => i.naturalWidth") for n in range(support.count())] == [70, 70, 70]
    assert not page.problems


def test_twenty_quick_changes_end_in_one_image(page):
    kept = results(page)
    drag(page, "anchor", -60, moves=20)
    begun(page)
    finished(page)
    page.wait_for_timeout(500)
    assert len(results(page)) == len(kept) + 1, "stale values were run too"
    shown = page.locator(".widget-vbox:has(> .widget-html .dsd-row b:text-is('anchor')) .widget-readout").inner_text()
    code = page.locator(".widget-textarea textarea").input_value()
    assert float(re.search(r"anchor=([\d.]+)", code)[1]) == pytest.approx(float(shown), abs=6e-4)


def test_cancel_in_the_middle_and_run_again(page):
    drag(page, "steps", 150)  # a long run
    page.locator(".dsd-state", has_text=re.compile(r"^step [3-9] of")).wait_for(timeout=60_000)
    kept = results(page)
    page.locator(".dsd").get_by_role("button", name="Cancel", exact=True).click()
    page.locator(".dsd-state", has_text="cancelled at step").wait_for(timeout=10_000)
    at = page.locator(".dsd-state").inner_text()
    page.wait_for_timeout(1500)
    assert page.locator(".dsd-state").inner_text() == at and results(page) == kept, "it went on after cancel"
    drag(page, "steps", -150)
    finished(page)
    assert len(results(page)) == len(kept) + 1


def test_pause_and_go_on(page):
    page.locator(".dsd").get_by_role("button", name="Run", exact=True).click()
    page.locator(".dsd-state", has_text=re.compile(r"^step [2-9] of")).wait_for(timeout=30_000)
    page.locator(".dsd").get_by_role("button", name="Pause", exact=True).click()
    page.locator(".dsd-state", has_text="paused at").wait_for(timeout=10_000)
    before = picture(page, "guided")
    page.wait_for_timeout(800)
    assert picture(page, "guided") == before
    page.locator(".dsd").get_by_role("button", name="Go on", exact=True).click()
    finished(page)


def test_bad_input_is_one_line(page):
    page.locator(".widget-dropdown", has_text="study").locator("select").select_option("folder")
    field = page.locator(".widget-text", has_text="folder").locator("input").first
    field.fill("no/such/study")
    field.press("Tab")
    page.locator(".dsd").get_by_role("button", name="Load", exact=True).click()
    alert = page.locator(".dsd-error")
    alert.wait_for(timeout=10_000)
    assert alert.inner_text() == "no/such/study: no such study folder"
    page.locator(".widget-dropdown", has_text="study").locator("select").select_option("sample patient")
    finished(page)
    assert alert.count() == 0
    assert not page.problems


def test_viewer_by_keyboard_and_slider(page):
    "Slices are cut in the browser: ten moves take less than a second."
    canvas = page.locator(".dsv-volume canvas").first
    canvas.click()
    before = picture(page, "truth")
    took = page.evaluate(
        """async () => {
            const slider = document.querySelector('.dsv-sliders input'), start = performance.now();
            for (let k = 0; k < 10; k++) {
                slider.value = Number(slider.value) + (k < 5 ? 1 : -2);
                slider.dispatchEvent(new Event('input', { bubbles: true }));
                await new Promise(requestAnimationFrame);
                await new Promise(requestAnimationFrame);
            }
            return performance.now() - start;
        }"""
    )
    assert took < 1000, f"ten slice moves took {took:.0f} ms"
    assert picture(page, "truth") != before
    place = page.locator(".dsv-readout span").first.inner_text()
    canvas.press("ArrowLeft")
    page.wait_for_timeout(200)
    assert page.locator(".dsv-readout span").first.inner_text() != place
    where = page.locator(".dsv-sliders output").first.inner_text()
    canvas.press("PageUp")
    page.wait_for_timeout(200)
    assert page.locator(".dsv-sliders output").first.inner_text() != where


@pytest.mark.parametrize("width", [1280, 800])
def test_nothing_sticks_out(page, width):
    page.set_viewport_size({"width": width, "height": 1500})
    page.wait_for_timeout(300)
    wide = page.evaluate(
        """() => { const box = document.querySelector('.dsd').getBoundingClientRect();
            const out = (e) => e.offsetParent && e.getBoundingClientRect().right > box.right + 3 && !e.closest('svg');
            return [...document.querySelectorAll('.dsd *')].filter(out).map(e => e.tagName + '.' + e.className); }"""
    )
    page.set_viewport_size({"width": 1280, "height": 1500})
    assert not wide


def test_app(browser, full_matrix):
    "`diffspect dashboard`: the same by Voilà, on loopback, asking no other host for anything."
    command = [sys.executable, "-c", CLI, "dashboard", "--no-browser", "--port", "0"]
    with serving(command, r"(http://127\.0\.0\.1:\d+)/", ROOT) as address:
        wait_for(address, 60)
        page, asked = browser.new_page(viewport={"width": 1280, "height": 1500}), []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address, timeout=120_000)
        finished(page, 180)
        before = picture(page, "guided")
        drag(page, "anchor", 80)
        begun(page)
        finished(page)
        assert picture(page, "guided") != before
        elsewhere = [url for url in asked if not re.match(r"(https?|wss?)://127\.0\.0\.1|data:|blob:", url)]
        assert not elsewhere, f"the app asks other hosts: {elsewhere[:3]}"
        page.close()
    with pytest.raises(OSError):  # who ends the command ends its server
        urllib.request.urlopen(address, timeout=5)
