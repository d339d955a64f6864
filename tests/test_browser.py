"The dashboards in a real browser: JupyterLab and the Voilà app, driven by mouse and keyboard."

from __future__ import annotations

import re
import sys
import urllib.request
from contextlib import contextmanager
from xml.etree import ElementTree

import nbformat
import pytest
from browser import headless, jupyter_lab, least_contrast, open_and_run, serving, until, wait_for
from conftest import ROOT

pytestmark = pytest.mark.slow
DASHBOARD = """import numpy as np
import torch
from diffspect_nb.dashboard import ReconstructionDashboard
from diffspect_nb.geometry import tiny, tiny_grid
from diffspect_nb.mlem import mlem
from diffspect_nb.phantom import torso
from diffspect_nb.prior import Prior
from diffspect_nb.slice_network import SliceUNet, UNetConfig
from diffspect_nb.study import Study, simulate

rng = np.random.default_rng(3)
found = simulate(torso(rng, tiny_grid()), tiny(), 2e6, rng)
study = Study(**{**vars(found), "reference": mlem(found.measurement(), 20)})
config = UNetConfig(n_slices=tiny_grid().shape[0], widths=(16, 32), blocks=1, embedding=32, head_width=32)
prior = Prior(SliceUNet(config).eval(), {"config": {"schedule": "cosine"}})  # the shipped one takes 50 slices
dashboard = ReconstructionDashboard(study, {"paper": prior})
dashboard"""
LIVE = "from diffspect_nb.live_page import LiveWidget\nLiveWidget()"
CLI = "import sys; from diffspect_nb.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def browser():
    with headless() as found:
        yield found


@pytest.fixture(scope="module")
def lab(tmp_path_factory, browser):
    "JupyterLab in a folder of its own: the dashboard of a tiny study in a notebook, the live figure in another."
    folder = tmp_path_factory.mktemp("lab")
    for name, source in (("dashboard", DASHBOARD), ("live", LIVE)):
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(nb, folder / f"{name}.ipynb")
    with jupyter_lab(folder) as address:
        yield address


@pytest.fixture(scope="module")
def page(lab, browser):
    "The dashboard, after its first reconstruction."
    page = browser.new_page(viewport={"width": 1280, "height": 1500})
    page.problems = []
    # anywidget gives a widget two seconds to be ready and complains on a busy machine, though it comes later
    page.on("pageerror", lambda e: None if "initialize model" in str(e) else page.problems.append(str(e)))
    open_and_run(page, lab, "dashboard.ipynb")
    finished(page, 180)
    page.locator(".dst tbody tr.dst-given", has_text="best MLEM").wait_for(timeout=60_000)
    yield page
    page.close()


def finished(page, seconds: float = 90) -> None:
    "Wait until a run is done."
    page.locator(".dsd-state", has_text="done in").wait_for(timeout=1000 * seconds)


@contextmanager
def a_run(page):
    "What is done inside starts a run; wait until one ends. Its states are counted: a short one's are gone at a glance."
    page.evaluate(
        """() => {
            window.ended = 0;
            window.states ??= new MutationObserver(changes => {
                const added = changes.flatMap(c => [...c.addedNodes]).filter(n => n.textContent.includes('done in'));
                window.ended += added.some(n => n.parentElement?.closest('.dsd-state'));
            });
            window.states.observe(document.body, { childList: true, subtree: true });
        }"""
    )
    yield
    page.wait_for_function("window.ended > 0", timeout=90_000)
    page.evaluate("window.states.disconnect()")
    finished(page)


def knob(page, name: str):
    "A weight's slider with its name, box and marks."
    return page.locator(f".dsd-knob:has(b:text-is('{name}'))")


def drag(page, name: str, pixels: float, moves: int = 5) -> None:
    slider = knob(page, name).locator("input[type=range]")
    box = slider.bounding_box()
    share = slider.evaluate("e => (e.value - e.min) / (e.max - e.min)")
    x, y = box["x"] + 8 + share * (box["width"] - 16), box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + pixels, y, steps=moves)
    page.mouse.up()


def value(page, name: str) -> float:
    "What the box beside a slider says."
    return float(knob(page, name).locator("input[type=number]").input_value())


def press(page, name: str) -> None:
    page.locator(".dsd").get_by_role("button", name=name, exact=True).click()


def code(page) -> str:
    "The code that repeats the chosen run."
    return page.locator(".dsd-detail textarea").input_value()


def picture(page, volume: str, plane: int = 0) -> str:
    "What one canvas of the viewer shows."
    found = page.locator(".dsv-volume", has=page.get_by_text(volume, exact=True))
    return found.locator("canvas").nth(plane).evaluate("c => c.toDataURL()")


def rows(page) -> list[str]:
    "Runs that were asked for, as the table lists them."
    return page.locator(".dst tbody tr:not(.dst-given) .dst-name").all_inner_texts()


def one_more(page, kept: int) -> int:
    "Wait until a run has come that was not among the first `kept`, and nothing runs; how many there are."
    page.wait_for_function(
        """n => document.querySelectorAll('.dst tbody tr:not(.dst-given)').length > n &&
            document.querySelector('.dsd-state').textContent.includes('done in')""",
        arg=kept,
        timeout=60_000,
    )
    page.wait_for_timeout(500)
    finished(page)
    return len(rows(page))


def choose(page, number: int) -> None:
    page.locator(".dst-name", has_text=re.compile(f"^{number}: ")).click()
    page.locator(".dst-chosen .dst-name", has_text=re.compile(f"^{number}: ")).wait_for(timeout=10_000)


def test_it_opens_on_the_paper_s_method(page):
    assert page.locator(".widget-dropdown", has_text="method").locator("select").first.input_value().startswith("DiffS")
    names = page.locator(".dsd-knob:visible b").all_inner_texts()
    assert names[:4] == ["λ_dps", "λ_mlem", "TV weight", "steps"]
    assert page.locator(".dsv-title span").all_inner_texts() == ["input", "paper", "anchored", "truth"]
    knob(page, "steps").locator("input[type=number]").fill("4")  # so that the runs of these tests are short
    knob(page, "steps").locator("input[type=number]").press("Enter")
    one_more(page, 1)


def test_drag_changes_the_image(page):
    before, kept = picture(page, "paper"), rows(page)
    drag(page, "λ_mlem", 40)
    assert one_more(page, len(kept)) <= len(kept) + 3 and picture(page, "paper") != before
    assert f"λ_mlem 0.132 → {value(page, 'λ_mlem'):.3g}" in page.locator(".dsd-changed").inner_text()
    support = page.locator(".dsd-map img")
    assert [support.nth(n).evaluate("i => i.naturalWidth") for n in range(support.count())] == [20, 20, 20]
    assert not page.problems


def test_rapid_presses_lose_none_and_any_number_can_be_typed(page):
    kept, slider = len(rows(page)), knob(page, "TV weight").locator("input[type=range]")
    slider.focus()
    for _ in range(15):
        page.keyboard.press("ArrowRight")
    one_more(page, kept)
    until(page, lambda: "tv_weight=0.05," in code(page), 60)
    assert value(page, "TV weight") == 0.05
    last = len(rows(page))
    box = knob(page, "λ_dps").locator("input[type=number]")
    box.fill("0.1234567")
    box.press("Enter")
    one_more(page, last)
    until(page, lambda: "lambda_dps=0.1234567" in code(page), 60)
    knob(page, "λ_dps").locator(".dsk-mark-0").click()  # the paper's value, exactly
    until(page, lambda: "lambda_dps" not in code(page), 60)
    assert value(page, "λ_dps") == 0.1363
    finished(page)


def test_the_chosen_run_drives_every_panel_and_gives_its_sliders_back(page):
    def seen():
        return picture(page, "paper"), code(page), *(page.locator(f".dsd {c}").first.inner_html() for c in PANELS)

    PANELS = (".dsd-detail table", ".dsd-map", ".dsd-curves")
    now, weight = seen(), value(page, "TV weight")
    choose(page, 1)
    until(page, lambda: all(a != b for a, b in zip(now, seen(), strict=True)))
    assert value(page, "TV weight") == weight
    assert "the sliders ask for something else" in page.locator(".dsd-state").inner_text()
    kept = rows(page)
    page.locator(".dst-chosen").get_by_role("button", name=re.compile("give the sliders")).click()
    page.locator(".dsd-changed", has_text="nothing changed").wait_for(timeout=10_000)
    assert value(page, "TV weight") == 0.02 and value(page, "steps") == 25
    page.wait_for_timeout(500)
    assert rows(page) == kept, "restoring is no wish for a run"
    scrubber, shown = page.locator(".dsd-scrubber input[type=range]"), picture(page, "paper")
    scrubber.press("Home")  # the first of the past steps
    until(page, lambda: picture(page, "paper") != shown)
    assert rows(page) == kept


def test_two_runs_subtracted_and_in_turns(page):
    page.locator(".dst tbody tr", has_text="2: ").get_by_role("button", name=re.compile("^compare")).click()
    press(page, "A − B")
    page.locator(".dsv-title", has_text="A − B").wait_for(timeout=10_000)
    assert page.locator(".dsv-title span").all_inner_texts()[2] == "A − B"
    first = page.locator(".dsv-volume canvas").first
    before = first.evaluate("c => c.toDataURL()")
    page.get_by_label("blink A and B").check()
    page.wait_for_function("before => document.querySelector('.dsv-volume canvas').toDataURL() !== before", arg=before)
    page.get_by_label("blink A and B").uncheck()
    press(page, "A − B")
    page.locator(".dsv-title").get_by_text("paper", exact=True).wait_for(timeout=10_000)


def test_cancel_in_the_middle_and_run_again(page):
    knob(page, "steps").locator("input[type=range]").press("End")  # a long run
    page.locator(".dsd-state", has_text=re.compile(r"^step ([5-9]|[1-3]\d) of 50")).wait_for(timeout=60_000)
    assert page.locator(".dsv-title", has_text="paper, running").count() == 1
    assert page.locator(".dsd-detail.dsd-stale").count() == 1, "what is of another run must be grey"
    kept = rows(page)
    press(page, "Cancel")
    page.locator(".dsd-state", has_text="cancelled at step").wait_for(timeout=10_000)
    at = page.locator(".dsd-state").inner_text()
    page.wait_for_timeout(700)
    assert page.locator(".dsd-state").inner_text() == at and rows(page) == kept, "it went on after cancel"
    assert page.locator(".dsd-stale").count() == 0
    press(page, "Run")
    page.locator(".dsd-state", has_text=re.compile(r"^step ([5-9]|[1-3]\d) of 50")).wait_for(timeout=60_000)
    press(page, "Pause")
    page.locator(".dsd-state", has_text="paused at").wait_for(timeout=10_000)
    before = picture(page, "paper, running")
    page.wait_for_timeout(500)
    assert picture(page, "paper, running") == before
    press(page, "Go on")
    finished(page)
    assert len(rows(page)) == len(kept) + 1


def test_keys(page):
    "r runs, c cancels, [ and ] go through the runs, but not where one writes; focus tells what a thing is."
    kept = rows(page)
    slider = knob(page, "steps").locator("input[type=range]")
    slider.focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    page.locator(".dsd-tip:visible", has_text="noise levels visited").wait_for(timeout=5_000)
    page.keyboard.press("r")
    page.locator(".dsd-state", has_text=re.compile(r"^step")).wait_for(timeout=30_000)
    page.keyboard.press("c")
    page.locator(".dsd-state", has_text="cancelled").wait_for(timeout=10_000)
    choose(page, 2)
    page.keyboard.press("]")
    page.locator(".dst-chosen", has_text="3: ").wait_for(timeout=10_000)
    page.keyboard.press("[")
    page.locator(".dst-chosen", has_text="2: ").wait_for(timeout=10_000)
    folder = page.locator(".dsd .widget-text", has_text="folder").locator("input:visible").first
    folder.fill("")
    folder.press_sequentially("rcr")
    page.wait_for_timeout(400)
    assert folder.input_value() == "rcr" and rows(page) == kept


def test_the_keyboard_reaches_everything(page):
    "Tab visits every button, slider, link, box and plane that can be seen."
    focusable = """[...document.querySelectorAll('a[href], button, input, select, textarea, [tabindex="0"]')]
        .filter(e => e.closest('.dsd')).filter(e => e.offsetParent !== null && !e.disabled && e.tabIndex >= 0)"""
    page.evaluate(f"window.wanted = {focusable}; window.met = new Set(); document.querySelector('.dsd').focus()")
    for _ in range(int(page.evaluate("window.wanted.length")) + 15):
        page.keyboard.press("Tab")
        page.evaluate("window.met.add(document.activeElement)")
    missed = page.evaluate("window.wanted.filter(e => !window.met.has(e)).map(e => e.outerHTML.slice(0, 120))")
    assert not missed


def test_a_sweep_is_drawn_and_opens_its_runs(page):
    "Twelve runs, stopped and gone on with; Enter on a point opens its run."
    with a_run(page):
        knob(page, "steps").locator("input[type=number]").fill("5")
        knob(page, "steps").locator("input[type=number]").press("Enter")
    sweep = page.locator(".widget-vbox:has(> .widget-hbox button:text-is('Sweep'))").last
    for name, number in (("values", "4"), ("seeds", "3")):
        box = sweep.locator(".widget-text", has_text=name).locator("input").first
        box.fill(number)
        box.press("Enter")
    press(page, "Sweep")
    page.wait_for_function("document.querySelectorAll('.dsp-dot').length >= 3", timeout=60_000)
    press(page, "Stop")
    sweep.locator(".dsd-answer", has_text="Resume runs the rest").wait_for(timeout=30_000)
    some = page.locator(".dsp-dot").count()
    press(page, "Resume")
    page.wait_for_function("document.querySelectorAll('.dsp-dot').length === 12", timeout=60_000)
    assert 3 <= some < 12 and sweep.locator(".dsp polygon").count() == 1
    with page.expect_download() as saved:
        sweep.get_by_role("button", name="Save plot").click()
    assert saved.value.suggested_filename.endswith("against_λ_dps.svg")
    root = ElementTree.parse(saved.value.path()).getroot()
    assert root.tag.endswith("svg") and sum(e.tag.endswith("circle") for e in root.iter()) == 12
    dot = page.locator(".dsp-dot").nth(5)
    number = dot.get_attribute("data-id")
    dot.focus()
    page.keyboard.press("Enter")
    page.locator(".dst-chosen .dst-name", has_text=re.compile(f"^{number}: ")).wait_for(timeout=10_000)
    assert not page.problems


def test_bad_input_is_one_line(page):
    page.locator(".widget-dropdown", has_text="study").locator("select").select_option("folder")
    field = page.locator(".dsd-controls .widget-text", has_text="folder").locator("input").first
    field.fill("no/such/study")
    field.press("Tab")
    press(page, "Load")
    alert = page.locator(".dsd-controls .dsd-error")  # beside the button that was pressed
    alert.wait_for(timeout=10_000)
    assert alert.inner_text() == "no/such/study: no such study folder"
    with a_run(page):
        page.locator(".widget-dropdown", has_text="study").locator("select").select_option("the study passed in")
    assert alert.count() == 0
    assert not page.problems


def test_viewer_by_keyboard_and_slider(page):
    "Slices are cut in the browser: ten moves take less than a second."
    canvas = page.locator(".dsv-volume canvas").first
    canvas.click()
    before = picture(page, "truth")
    move = """async () => {
        const slider = document.querySelector('.dsv-sliders input'), start = performance.now();
        for (let k = 0; k < 10; k++) {
            slider.value = Number(slider.value) + (k < 5 ? 1 : -2);
            slider.dispatchEvent(new Event('input', { bubbles: true }));
            await new Promise(requestAnimationFrame);
            await new Promise(requestAnimationFrame);
        }
        return performance.now() - start;
    }"""
    took = page.evaluate(move)
    for _ in range(9):  # what another program takes away is not the viewer's
        took = took if took < 1000 else min(took, page.evaluate(move))
    assert took < 1000, f"ten slice moves took {took:.0f} ms"
    assert picture(page, "truth") != before
    place = page.locator(".dsv-readout span").first.inner_text()
    canvas.press("ArrowLeft")
    until(page, lambda: page.locator(".dsv-readout span").first.inner_text() != place)
    where = page.locator(".dsv-sliders output").first.inner_text()
    canvas.press("PageUp")
    until(page, lambda: page.locator(".dsv-sliders output").first.inner_text() != where)


def reach(page) -> int:
    "Millimetres from the middle of the first transverse plane to its right edge."
    canvas = page.locator(".dsv-volume canvas").first
    box, found = canvas.bounding_box(), []
    for share in (0.5, 0.99, 0.5):
        canvas.click(position={"x": share * box["width"], "y": box["height"] / 2})
        page.evaluate("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        found.append(int(re.search(r"x (-?\d+)", page.locator(".dsv-readout span").first.inner_text())[1]))
    return abs(found[1] - found[0])


def test_a_zoom_of_two_shows_half_round_the_crosshair(page):
    "And nothing is computed; the crop to the heart is tried on the app's study, whose grid is larger."
    kept, zoom = rows(page), page.get_by_label("zoom round the crosshair")
    until(page, lambda: reach(page) > 0)
    whole = reach(page)
    zoom.fill("2")
    until(page, lambda: 0.3 * whole < reach(page) < 0.6 * whole)
    zoom.fill("1")
    assert rows(page) == kept


def test_the_table_is_sorted_by_any_column(page):
    "Best first, then the other way, then as the runs came; what has no number stays below, the chosen run chosen."
    names = page.locator(".dst tbody .dst-name")
    as_they_came, chosen = names.all_inner_texts(), page.locator(".dst-chosen .dst-name").inner_text()
    sorter = page.locator(".dst thead button", has_text="PSNR").first
    column = 1 + sorter.evaluate("e => [...e.closest('tr').children].indexOf(e.closest('th'))")

    def after_a_press() -> tuple[list[float], str]:
        sorter.click()
        cells = page.locator(f".dst tbody tr > :nth-child({column})").all_inner_texts()
        told = [float(cell) for cell in cells if cell.strip()]
        assert "" not in [cell.strip() for cell in cells][: len(told)], "what has no number must stay below"
        return told, sorter.locator("..").get_attribute("aria-sort")

    falling, rising, last = (after_a_press() for _ in range(3))
    assert falling == (sorted(falling[0], reverse=True), "descending") and len(set(falling[0])) > 2
    assert rising == (falling[0][::-1], "ascending") and last[1] == "none"
    assert names.all_inner_texts() == as_they_came and page.locator(".dst-chosen .dst-name").inner_text() == chosen


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_dashboard_can_be_read_in_both_themes(page, lab, theme):
    "Contrast of 4.5 at least for every text that is not grey because it is stale."
    sheet = page.add_style_tag(url=f"{lab}/lab/api/themes/@jupyterlab/theme-{theme}-extension/index.css")
    page.evaluate("theme => document.body.dataset.jpThemeLight = String(theme === 'light')", theme)
    page.evaluate("e => document.documentElement.append(e)", sheet)  # as JupyterLab changes its theme, and last
    least, words = least_contrast(page, ".dsd :not(.dsd-stale *, .dsv-edge)")
    ground = page.locator(".dst tbody tr td").last.evaluate("e => getComputedStyle(e.parentElement).backgroundColor")
    sheet.evaluate("e => e.remove()")
    page.evaluate("document.body.dataset.jpThemeLight = 'true'")
    assert int(re.search(r"\d+", ground)[0]) > 200 if theme == "light" else int(re.search(r"\d+", ground)[0]) < 60
    assert least >= 4.5, f"{words!r}: contrast {least:.2f}"


@pytest.mark.parametrize("width", [1280, 800])
def test_nothing_sticks_out_or_is_cut(page, width):
    page.set_viewport_size({"width": width, "height": 1500})
    page.wait_for_timeout(300)
    wide = page.evaluate(
        """() => { const box = document.querySelector('.dsd').getBoundingClientRect();
            const out = (e) => e.offsetParent && e.getBoundingClientRect().right > box.right + 3 &&
                !e.closest('svg') && !e.closest('.dst-box');
            return [...document.querySelectorAll('.dsd *')].filter(out).map(e => e.tagName + '.' + e.className); }"""
    )
    cut = page.evaluate(
        """() => [...document.querySelectorAll('.dsd .widget-label, .dsd .widget-button, .dsd .dsd-row b')]
            .filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 1 && e.clientWidth)
            .map(e => e.textContent)"""
    )
    scrolls = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    page.set_viewport_size({"width": 1280, "height": 1500})
    assert not wide and not cut and not scrolls


def test_keys_move_the_live_figures_sliders(browser, lab):
    "JupyterLab folds headings with the same arrows."
    page = browser.new_page()
    open_and_run(page, lab, "live.ipynb")
    slider = page.locator("input[aria-label^='λ_dps']")
    slider.focus(timeout=120_000)
    before = float(slider.input_value())
    page.keyboard.press("ArrowRight")
    assert float(slider.input_value()) == pytest.approx(before + 0.01)
    page.locator(":text-matches('done in')").wait_for(timeout=120_000)
    page.close()


def test_app(browser, full_matrix):
    "`diffspect dashboard`: the same by Voilà, on loopback, asking no other host for anything."
    command = [sys.executable, "-c", CLI, "dashboard", "--no-browser", "--port", "0"]
    with serving(command, r"(http://127\.0\.0\.1:\d+)/", ROOT) as address:
        wait_for(address, 60)
        page, asked = browser.new_page(viewport={"width": 1280, "height": 1500}), []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address, timeout=120_000)
        page.locator(".dsd-state", has_text=re.compile(r"^step \d+ of")).wait_for(timeout=180_000)  # the paper's walk
        until(page, lambda: reach(page) > 0)
        heart = reach(page)
        page.get_by_label("part of the volume").select_option("whole")
        until(page, lambda: heart < 0.8 * reach(page))  # the heart is part of the volume
        page.locator(".widget-dropdown", has_text="method").locator("select").first.select_option("OSEM")
        page.locator(".dst-chosen", has_text="osem").wait_for(timeout=90_000)
        before = picture(page, "osem")
        with a_run(page):
            drag(page, "passes", 80)
        until(page, lambda: picture(page, "osem") != before, 60)  # an earlier run may end first
        elsewhere = [url for url in asked if not re.match(r"(https?|wss?)://127\.0\.0\.1|data:|blob:", url)]
        assert not elsewhere, f"the app asks other hosts: {elsewhere[:3]}"
        page.close()
    with pytest.raises(OSError):  # who ends the command ends its server
        urllib.request.urlopen(address, timeout=5)
