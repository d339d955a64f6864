"The small 2-D world, and the page that computes it: closed forms in Python, and Python against the page in a browser."

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from browser import files_served, headless

from diffspect_nb.core import InputError
from diffspect_nb.geometry import project_points
from diffspect_nb.live import (
    LiveConfig,
    LiveState,
    draw_strokes,
    live_acquisition,
    live_counts,
    live_denoiser,
    live_grid,
    live_patients,
    live_prior,
    live_scanner,
    live_scores,
    live_steps,
    live_system,
    make_patients,
    shipped,
    spread_views,
    train_live,
    tv_in_plane,
)
from diffspect_nb.live_page import LiveWidget, write_live_page
from diffspect_nb.prior import load_checkpoint
from diffspect_nb.sampler import AnchoredWeights, PaperWeights, tv_along_z
from diffspect_nb.slice_network import UNetConfig
from diffspect_nb.system import adjoint_gap

SETTINGS = {
    "back-propagated, few counts": LiveState(paper=replace(LiveState().paper, steps=7)),
    "without back-propagation, drawn": LiveState(
        patient=3, dose=0.2, views=5, noise=2, strokes=(("heart", 50, 40), ("defect", 0, 30), ("gut", -40, 20)),
        paper=PaperWeights(lambda_dps=0.3, lambda_mlem=0.05, tv_weight=0.02, steps=10, jacobian="identity", seed=3),
        anchored=AnchoredWeights(anchor=0.5, fields=3, steps=5, seed=9),
    ),
    "back-propagated, all counts, late": LiveState(
        patient=7, dose=1.0, views=19,
        paper=PaperWeights(
            lambda_dps=0.1, tv_weight=0, steps=8, start=600, mlem_interval=3, mlem_updates=2, final_updates=4,
            ancestral=3,
        ),
        anchored=AnchoredWeights(anchor=0.01, start=300, end=20, steps=4, updates=3, subsets=2, final_updates=0),
    ),
}  # fmt: skip


# ---- the world


def test_projections_are_a_pair_and_points_land_where_rays_go():
    system, scanner, grid = live_system(), live_scanner(), live_grid()
    assert adjoint_gap(system) < 1e-6
    assert sum(len(block.values()) for block in system.kept.by_pixel) <= 400_000
    point = torch.zeros(1, 64, 64)
    point[0, 30, 36] = 1.0
    seen = system.forward(point)[:, 0].double()
    middle = (seen * torch.arange(32)).sum(1) / seen.sum(1)
    at = grid.centers_mm().reshape(64, 64, 3)[30, 36][None]
    expected = [project_points(at, hole, scanner)[1][0] for hole in scanner.pinholes]
    assert np.abs(middle.numpy() - expected).max() < 0.1  # of a pixel


def test_views_are_spread_over_the_arc():
    assert spread_views(19) == list(range(19)) and spread_views(1) == [9]
    assert all(np.ptp(np.diff(spread_views(n))) <= 1 for n in range(2, 20))


def test_a_lower_dose_keeps_some_of_the_same_photons():
    means = torch.linspace(0, 400, 608).view(19, 1, 32)
    full, low = live_counts(means, 4), live_counts(0.1 * means, 4)
    assert (low <= full).all() and full[means == 0].sum() == 0
    assert abs(float(full.sum() / means.sum()) - 1) < 0.01 and abs(float(low.sum() / means.sum()) - 0.1) < 0.002
    assert not torch.equal(full, live_counts(means, 5))


def test_smoothing_is_the_same_along_both_axes():
    "Of an image that changes along one axis alone it is `tv_along_z` along that axis; the mean stays."
    image = torch.zeros(1, 64, 64)
    image[:, :16] = 1.0
    found = tv_in_plane(image, 0.32)
    torch.testing.assert_close(found.movedim(1, 0), tv_along_z(image.movedim(1, 0), 0.32))
    torch.testing.assert_close(tv_in_plane(image.mT.contiguous(), 0.32), found.mT)
    torch.testing.assert_close(found.mean(), image.mean())
    assert found[0, 15, 0] < 0.99 and tv_in_plane(image, 0.0).equal(image)


def test_the_truth_explains_the_counts():
    for state in (LiveState(views=19, dose=0.02), LiveState(patient=2, views=5, dose=0.5)):
        acquired = live_acquisition(state)
        scores = live_scores(acquired, acquired.truth)
        assert scores["psnr"] == np.inf and 0.85 < scores["deviance"] < 1.15
        assert live_scores(acquired, 0.8 * acquired.truth)["log_likelihood"] < scores["log_likelihood"]


def test_strokes_change_what_they_should():
    patient = {name: images[0] for name, images in live_patients().items()}
    activity, wall = patient["activity"], patient["wall"]
    inside = torch.nonzero(wall > 0.9)[0]
    x, y = ((float(i) - 31.5) * 4 for i in inside.flip(0))
    defect = draw_strokes(activity, wall, [("defect", x, y)])
    assert (defect <= activity.clamp_min(0.2) + 1e-6).all() and defect[tuple(inside)] < 0.4 * activity[tuple(inside)]
    assert torch.equal(defect[wall == 0], activity[wall == 0])
    assert draw_strokes(activity, wall, [("gut", 60, 40)]).sum() > activity.sum()
    with pytest.raises(InputError, match="stroke must be one of defect, gut, heart, got 'lung'"):
        draw_strokes(activity, wall, [("lung", 0, 0)])


def test_a_state_is_checked_and_comes_back_from_json():
    for state in SETTINGS.values():
        assert LiveState.from_json(json.loads(json.dumps(state.to_json()))) == state
    for wrong, word in (({"patient": 99}, "patient"), ({"dose": 0}, "dose"), ({"views": 20}, "views")):
        with pytest.raises(InputError, match=f"{word} must be"):
            LiveState(**wrong)


def test_shipped_patients_are_made_by_the_command(tmp_path):
    make_patients(tmp_path / "two.safetensors", 2)
    made, kept = (live_patients.__wrapped__(path) for path in (tmp_path / "two.safetensors", shipped("patients")))
    assert all(torch.equal(made[name], kept[name][:2]) for name in kept)


@pytest.mark.slow
def test_training_stops_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSPECT_CACHE", str(tmp_path))
    network = UNetConfig(n_slices=1, widths=(8, 16), blocks=1, embedding=16, head_width=16)
    config = LiveConfig(n_studies=1, steps=4, batch=2, network=network)
    assert LiveConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    whole = [step.scalars["loss"] for step in train_live(config, tmp_path / "whole")]
    for step in train_live(config, tmp_path / "parts", save_every=2):
        if step.index == 3:
            break
    parts = [step.scalars["loss"] for step in train_live(config, tmp_path / "parts", save_every=2)]
    assert parts == whole[2:]
    nets = [load_checkpoint(tmp_path / name / "checkpoint.safetensors")[0] for name in ("whole", "parts")]
    states = [net.state_dict() for net in nets]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_the_small_prior_is_small_and_helps():
    net = live_prior().net
    assert sum(p.numel() for p in net.parameters()) <= 500_000
    denoise, gains = live_denoiser(), []
    for patient in (8, 9, 10):
        state = LiveState(patient=patient)
        acquired = live_acquisition(state)
        *_, step = live_steps(acquired, state.anchored, denoise)
        before = live_scores(acquired, acquired.mlem / acquired.dose)["psnr"]
        gains.append(live_scores(acquired, step.image)["psnr"] - before)
    assert np.mean(gains) > 0.5  # dB above MLEM-50


# ---- the page


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    "The page in a sub-folder of a plain file server."
    top = tmp_path_factory.mktemp("served")
    write_live_page(top / "some" / "where")
    with files_served(top) as served:
        yield f"{served}/some/where/"


@pytest.fixture(scope="module")
def browser():
    with headless() as found:
        yield found


COMPUTE = """async (states) => {
    const worker = new Worker("live_worker.js"), found = [];
    const buffer = await (await fetch("live.safetensors")).arrayBuffer();
    const perform = (state, run) => new Promise((done, failed) => {
        const told = { steps: { paper: [], anchored: [] } };
        worker.onerror = (event) => failed(event.message);
        worker.onmessage = ({ data }) => {
            const { truth, mlem, counts } = data;
            if (data.kind === "input") Object.assign(told, { truth: [...truth], mlem: [...mlem], counts });
            else if (data.kind === "step") told.steps[data.which].push({ image: [...data.image], scores: data.scores });
            else if (data.kind === "end") done(told);
            else if (data.kind === "error") failed(data.text);
        };
        worker.postMessage({ kind: "run", run, state });
    });
    worker.postMessage({ kind: "load", buffer });
    for (const state of states) found.push(await perform(state, found.length + 1));
    worker.terminate();
    return found;
}"""


@pytest.fixture(scope="module")
def computed(browser, address):
    "What the browser makes of each setting."
    page = browser.new_page()
    page.goto(f"{address}live.css")  # a page of that folder on which nothing else computes
    told = page.evaluate(COMPUTE, [state.to_json() | {"walks": ["paper", "anchored"]} for state in SETTINGS.values()])
    page.close()
    return dict(zip(SETTINGS, told, strict=True))


def difference(theirs: list[float], ours: torch.Tensor) -> float:
    "Largest difference, relative to the largest value."
    return float((torch.tensor(theirs).view(ours.shape) - ours).abs().max() / ours.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_page_and_python_agree_at_every_step(name, computed):
    state, told = SETTINGS[name], computed[name]
    acquired, denoise = live_acquisition(state), live_denoiser()
    assert told["counts"] == float(acquired.measurement.counts.sum())
    assert difference(told["truth"], acquired.truth) < 1e-6
    assert difference(told["mlem"], acquired.mlem / acquired.dose) < 1e-4
    for which in ("paper", "anchored"):
        ours, theirs = list(live_steps(acquired, getattr(state, which), denoise)), told["steps"][which]
        assert len(ours) == len(theirs)
        assert max(difference(t["image"], o.image) for t, o in zip(theirs, ours, strict=True)) < 1e-4
        for score, value in live_scores(acquired, ours[-1].image).items():
            assert theirs[-1]["scores"][score] == pytest.approx(value, rel=1e-4)


def done(page, run: int = 1) -> None:
    "Wait until an order of at least that number is finished, and none is newer."
    root = "const r = document.getElementById('live'), done = Number(r.dataset.done)"
    ready = f"(() => {{ {root}; return done >= {run} && done === r.live.run; }})()"
    page.wait_for_function(ready, timeout=120_000)


@pytest.fixture(scope="module")
def page(browser, address):
    "The page after its first computation, with what it asked for and what went wrong."
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.asked, page.problems, page.bytes = [], [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("response", lambda response: page.bytes.append(len(response.body())))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(f'{address}#patient=5&dose=0.2&paper.steps=5&strokes=[["gut",-40,30]]')
    done(page)
    yield page
    page.close()


@pytest.mark.slow
def test_the_address_holds_the_state_and_nothing_leaves_the_host(page, address):
    state = page.evaluate("document.getElementById('live').live.state")
    told = (state["patient"], state["dose"], state["paper"]["steps"], state["strokes"])
    assert told == (5, 0.2, 5, [["gut", -40, 30]])
    assert all(url.startswith((address, "blob:", "data:")) for url in page.asked) and not page.problems
    assert sum(page.bytes) < 8e6
    page.locator("button", has_text="share").click()
    assert "patient=5" in page.evaluate("location.hash") and "paper.steps=5" in page.evaluate("location.hash")


@pytest.mark.slow
def test_many_events_end_in_one_image_of_the_last_values(page):
    slider = page.locator("input[aria-label^='λ_dps']")
    before = page.evaluate("document.getElementById('live').live.steps.anchored.length")
    run = page.evaluate("document.getElementById('live').live.run")
    drag = """(e) => { let n = 0; return new Promise((go) => { const timer = setInterval(() => {
        e.value = 0.01 * (n % 60); e.dispatchEvent(new Event("input"));
        if (++n === 60) { clearInterval(timer); go(); } }, 10); }); }"""
    slider.evaluate(drag)
    done(page, run + 1)
    live = "document.getElementById('live').live"
    assert page.evaluate(f"{live}.state.paper.lambda_dps") == pytest.approx(0.59)
    assert page.evaluate(f"{live}.steps.paper.map((s) => s.run)") == [page.evaluate(f"{live}.run")] * 5
    assert page.evaluate(f"{live}.steps.anchored.length") == before  # the other walk is not computed again


@pytest.mark.slow
def test_pointer_and_keys_draw_and_steps_are_revisited(page):
    live, run = "document.getElementById('live').live", page.evaluate("document.getElementById('live').live.run")
    patient = page.locator(".dsl-overlay")
    page.locator("button", has_text="a second heart").click()
    box = patient.bounding_box()
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 0.5 * box["height"])
    patient.press("ArrowLeft")
    patient.press("Enter")
    strokes = page.evaluate(f"{live}.state.strokes")
    assert [s[0] for s in strokes] == ["gut", "heart", "heart"] and strokes[1][1] == pytest.approx(64, abs=3)
    assert strokes[2][1] == strokes[1][1] - 4
    page.locator("button", has_text="undo").click()
    done(page, run + 1)
    last = page.locator("canvas[aria-label='the paper\\'s walk']").evaluate("c => c.toDataURL()")
    page.locator(".dsl-scrub input").press("Home")
    assert page.locator("canvas[aria-label='the paper\\'s walk']").evaluate("c => c.toDataURL()") != last
    assert re.search(r"step 1 of 5", page.locator(".dsl-note").nth(2).inner_text())


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out(page, width):
    page.set_viewport_size({"width": width, "height": 1000})
    page.wait_for_timeout(200)
    assert not page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")


@pytest.mark.slow
def test_an_older_browser_keeps_what_the_page_said(browser, address):
    page = browser.new_page()
    page.add_init_script("delete window.Worker")
    page.goto(address)
    page.wait_for_timeout(500)
    assert "needs one of the last few years" in page.locator("#live").inner_text()
    page.close()


def test_the_widget_holds_all_that_the_page_loads():
    widget = LiveWidget()
    assert len(widget.bundle) < 4e6 and "paperWalk" in widget.worker
    assert LiveState.from_json(widget.state) == LiveState()
    widget.close()
