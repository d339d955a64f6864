"Viewer and dashboards without a browser: what travels, what is kept, what is refused, and one worker under many hands."

from __future__ import annotations

import gc
import json
import random
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffspect_nb.board import StreamView
from diffspect_nb.cohort import simulated_patient
from diffspect_nb.core import ImageGrid, InputError, Step
from diffspect_nb.dashboard import Curves, ReconstructionDashboard
from diffspect_nb.explorer import explore
from diffspect_nb.files import load_image
from diffspect_nb.geometry import tiny, tiny_grid
from diffspect_nb.lessons import diffusion_dashboard, first_views, geometry_dashboard, mlem_dashboard
from diffspect_nb.mlem import mlem
from diffspect_nb.panels import KEPT_RUNS, KNOBS, METHODS, usual_weights
from diffspect_nb.phantom import torso
from diffspect_nb.prior import Prior
from diffspect_nb.reconstruction import beginning_steps, outcome, reconstruct
from diffspect_nb.sampler import AnchoredWeights, PaperWeights, settings_of
from diffspect_nb.slice_network import SliceUNet, UNetConfig
from diffspect_nb.study import Study, simulate, thin
from diffspect_nb.viewer import VolumeViewer, focus_of, to_levels, view_study


@pytest.fixture(scope="module")
def study() -> Study:
    "A tiny full-dose study with truth and reference."
    rng = np.random.default_rng(3)
    found = simulate(torso(rng, tiny_grid()), tiny(), 2e6, rng)
    return Study(**{**vars(found), "reference": mlem(found.measurement(), 20)})


@pytest.fixture(scope="module")
def dashboard(study):
    board = ReconstructionDashboard(study)
    assert board.wait(60) and board.stream.state == "finished", board.message.value
    yield board
    board.close()


# --- viewer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [1e-6, 1.0, 4e6])
def test_levels_keep_a_volume_to_half_a_step(top):
    image = torch.rand(5, 6, 7, dtype=torch.float64) * top
    levels, unit = to_levels(image)
    back = np.frombuffer(levels, "<u2").astype(float).reshape(5, 6, 7) * unit
    assert np.abs(back - image.numpy()).max() <= 0.51 * unit


def test_an_empty_and_a_negative_volume_can_be_shown_but_not_an_infinite_one():
    assert set(to_levels(torch.zeros(3, 3, 3))[0]) == {0}
    assert set(to_levels(-torch.ones(3, 3, 3))[0]) == {0}
    with pytest.raises(InputError, match="NaN"):
        to_levels(torch.full((3, 3, 3), float("nan")))


def test_only_the_volume_that_changed_travels(study):
    viewer = view_study(study, {"a": study.truth, "b": study.truth})
    before = viewer.data_0, viewer.data_1, viewer.data_2
    viewer.update("b", 2 * study.truth)
    assert (viewer.data_0, viewer.data_2) == (before[0], before[2]) and viewer.scales[1] == 2 * viewer.scales[0]
    viewer.show({"c": study.truth})
    assert viewer.names == ["c"] and viewer.data_1 == b""


@pytest.mark.parametrize(
    "volumes, options, reason",
    [
        ({}, {}, "at least one"),
        ({str(k): torch.ones(3, 3, 3) for k in range(5)}, {}, "1 to 4"),
        ({"a": torch.ones(3, 3, 3), "b": torch.ones(3, 3, 4)}, {}, "b: must have the grid's shape"),
        ({"a": torch.ones(3, 3, 3)}, {"ct": torch.ones(2, 3, 3)}, "ct: must have"),
        ({"a": torch.ones(3, 3, 3)}, {"window": (2.0, 1.0)}, "window must rise"),
        ({"a": torch.ones(3, 3, 3)}, {"grid": ImageGrid((4, 3, 3))}, "a: must have"),
    ],
)
def test_what_cannot_be_shown_is_named(volumes, options, reason):
    with pytest.raises(InputError, match=reason):
        VolumeViewer(volumes, **options)


def test_update_of_a_stranger(study):
    with pytest.raises(InputError, match="no volume is called 'x'"):
        view_study(study, {"a": study.truth}).update("x", study.truth)


def test_the_crosshair_finds_a_bright_ball_without_a_mask(study):
    image = torch.zeros(study.grid.shape)
    image[7:10, 9:12, 9:12] = 5
    blind = Study(**{**vars(study), "heart": None, "truth": None, "reference": None})
    center, (low, high) = focus_of(blind, image)
    assert all(abs(c - m) <= 1 for c, m in zip(center, (8, 10, 10), strict=True)) and (low, high) == (0, 5)


# --- the worker -------------------------------------------------------------------------------------------------------


def test_many_hands_one_worker():
    "Requests, pauses and cancels from four threads: never two iterations at once, each closed, the last one finished."
    alive, most, opened, closed, finished = [0], [0], [0], [0], []

    def steps(n):
        opened[0] += 1
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        try:
            for k in range(5):
                time.sleep(0.001)
                yield Step(k + 1, 5, torch.zeros(1))
        finally:
            alive[0] -= 1
            closed[0] += 1
        return n

    def note(state, request, detail):
        if state == "finished":
            finished.append(detail)

    stream = StreamView(steps, lambda n, step: None, note, debounce_s=0.002)

    def fiddle(seed):
        random_ = random.Random(seed)
        for k in range(60):
            act = random_.choice([stream.submit, stream.submit, stream.cancel, stream.pause, stream.resume])
            act(k) if act == stream.submit else act()
            time.sleep(random_.random() * 0.004)

    hands = [threading.Thread(target=fiddle, args=(seed,)) for seed in range(4)]
    [h.start() for h in hands]
    [h.join() for h in hands]
    stream.resume()
    stream.submit("last")
    assert stream.wait(10) and finished[-1] == "last"
    assert most[0] == 1 and opened[0] == closed[0] and alive[0] == 0
    stream.close()


def test_an_error_in_drawing_is_told_and_survived():
    told = []
    stream = StreamView(
        lambda n: iter([Step(1, 1, torch.zeros(1))]),
        lambda n, step: 1 / n,
        lambda state, n, detail: told.append((state, type(detail).__name__)),
    )
    stream.submit(0)
    stream.wait(5)
    stream.submit(1)
    stream.wait(5)
    assert [state for state, _ in told] == ["running", "failed", "running", "finished"]
    assert told[1][1] == "ZeroDivisionError"
    stream.close()


# --- dashboards -------------------------------------------------------------------------------------------------------


def test_a_run_is_the_library_s_reconstruction(dashboard, study):
    run = dashboard.last
    assert run.wish.acquisition.counts == 0.05 and run.wish.prior == "diffspect"
    assert {r["reference"] for r in run.scores} == {"truth", "full-dose MLEM-50"}
    torch.testing.assert_close(run.result.image, reconstruct(run.study, run.wish.weights).image)
    assert dashboard.viewer.names == ["input", "guided", "full dose", "truth"]
    assert "<svg" in dashboard.curves.value and "done in" in dashboard.state.value


def test_the_same_data_are_not_begun_twice(dashboard):
    begun = dashboard._begun
    dashboard.controls["anchor"].value = 0.11
    assert dashboard.wait(60) and dashboard._begun is begun
    dashboard.controls["counts"].value = 0.2
    assert dashboard.wait(60) and dashboard._begun is not begun and dashboard.last.wish.acquisition.counts == 0.2
    dashboard.controls["counts"].value = 0.05
    dashboard.controls["preset"].value = "anchored"
    dashboard.wait(60)


def test_the_input_against_itself_gains_nothing(study):
    "Scatter of 5 %: the likelihood counts it in both images that it compares."
    low = thin(study, 0.05, np.random.default_rng(0))
    background = torch.full_like(low.projections, 0.05 * low.counts / low.projections.numel())
    more = torch.poisson(background, torch.Generator().manual_seed(0))
    low = replace(low, projections=low.projections + more, background=background)
    begun = outcome(beginning_steps(low, AnchoredWeights()))
    curves = Curves(low, begun)
    curves.add(begun.late / low.count_fraction)
    assert abs(curves.likelihood[0]) < 0.01
    forgotten = replace(begun.measurement, background=None).log_likelihood(begun.late) - curves.reached
    assert forgotten < -100, "the background of this test is too small to be missed"
    curves.add(2 * begun.late / low.count_fraction)
    assert curves.likelihood[1] < -100 and "log-likelihood gained" in curves.html(2)


def shown(dashboard) -> dict:
    "The sliders of the method that is chosen, by name."
    return {name: knob for name, knob in dashboard.method.knobs.items() if knob.layout.display != "none"}


def test_presets_bring_the_sliders_of_their_method(dashboard):
    config = UNetConfig(n_slices=tiny_grid().shape[0], widths=(16, 32), blocks=1, embedding=32, head_width=32)
    prior = Prior(SliceUNet(config).eval(), {"config": {"schedule": "cosine"}})  # the shipped one takes 50 slices
    c, dashboard._priors["mlem50"] = dashboard.controls, prior
    c["preset"].value = "paper"
    assert tuple(shown(dashboard)) == KNOBS["paper"] and dashboard.wish().prior == PaperWeights.prior
    assert (c["steps"].value, c["start"].value, c["tv_weight"].value) == (25, 960, 0.02) and c["lambda_dps"].value > 0.1
    c["lambda_mlem"].value = 0.2
    c["steps"].value = 3
    assert dashboard.wait(120) and c["preset"].value == "own", dashboard.message.value
    last = dashboard.last.wish.weights
    assert isinstance(last, PaperWeights) and (last.lambda_mlem, last.steps) == (0.2, 3)
    assert last.lambda_dps == pytest.approx(PaperWeights.for_level(0.05).lambda_dps, abs=1e-6)
    torch.testing.assert_close(dashboard.last.result.image, reconstruct(dashboard.last.study, last, prior).image)
    c["preset"].value = "anchored"
    assert dashboard.wait(60) and set(shown(dashboard)) == set(KNOBS["anchored"])
    usual = usual_weights("anchored", 0.05, 1.0)
    assert dashboard.last.wish.weights == usual and c["steps"].value == usual.steps


@pytest.mark.parametrize("method", METHODS)
def test_sliders_and_marks_come_from_the_table_of_weights(dashboard, method):
    dashboard.controls["preset"].value = method
    usual, word = METHODS[method].for_level(0.05), {"paper": "paper", "anchored": "default"}[method]
    for name, knob in shown(dashboard).items():
        setting, value = settings_of(METHODS[method])[name], getattr(usual, name)
        assert (knob.slider.min, knob.slider.max, knob.slider.step) == (*setting.shown, setting.step)
        assert setting.meaning in knob.tip and f"{word} {value:.3g}" in knob._head.value
        low, high = setting.shown
        assert f"left:{100 * (value - low) / (high - low):.1f}%" in knob._strip.value
    dashboard.controls["preset"].value = "anchored"
    assert dashboard.wait(60)


def test_one_table_for_both_methods():
    "A slider that both methods share has one range."
    for name in set(KNOBS["paper"]) & set(KNOBS["anchored"]):
        paper, anchored = (settings_of(METHODS[m])[name] for m in ("paper", "anchored"))
        assert (paper.shown, paper.step) == (anchored.shown, anchored.step), name


def test_compare_and_export(dashboard, study, tmp_path):
    dashboard.controls["seed"].value = 5
    assert dashboard.wait(60)
    dashboard.results.compare_button.click()
    assert len(dashboard.viewer.names) == 3 and dashboard.viewer.names[-1] == "truth"
    dashboard.results.live_button.click()
    assert dashboard.viewer.names[0] == "input"
    dashboard.results.export_to.value = str(tmp_path / "out")
    dashboard.results.export_button.click()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "image.nii.gz", "input.nii.gz", "support.nii.gz", "views.png", "support.png", "result.json",
    }  # fmt: skip
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert result["method"] == result["weights"]["method"] == "anchored" and result["weights"]["seed"] == 5
    assert "reconstruct(" in result["code"] and result["metrics"]
    torch.testing.assert_close(load_image(tmp_path / "out" / "image.nii.gz", study.grid), dashboard.last.result.image)
    (tmp_path / "file").write_text("in the way")
    dashboard.results.export_to.value = str(tmp_path / "file" / "below")
    dashboard.results.export_button.click()
    assert "cannot write" in dashboard.message.value and "dsd-error" in dashboard.message.value


def test_probe_at_the_crosshair(dashboard, study):
    "On the hottest voxel: its surroundings are colder, so filling it from there takes photons away."
    image = dashboard.last.result.image
    dashboard.viewer.cursor = [int(i) for i in np.unravel_index(int(image.argmax()), image.shape)]
    dashboard.results.probe_button.click()
    found = dashboard.probe()
    assert str(found) in dashboard.message.value.replace("&#x27;", "'") and "dsd-error" not in dashboard.message.value
    assert found.photons < 0
    assert "measurement support" in dashboard.results.scores.value


@pytest.mark.parametrize("damage", ["no study.json", "not JSON", "truncated counts"])
def test_a_damaged_study_is_one_line(dashboard, study, tmp_path, damage):
    study.save(tmp_path)
    if damage == "no study.json":
        (tmp_path / "study.json").unlink()
    elif damage == "not JSON":
        (tmp_path / "study.json").write_text("{")
    else:
        counts = tmp_path / "projections.nii.gz"
        counts.write_bytes(counts.read_bytes()[:200])
    kept = len(dashboard.history)
    dashboard.controls["source"].value, dashboard.controls["folder"].value = "folder", str(tmp_path)
    dashboard.source.load_button.click()
    assert dashboard.wait(30) and dashboard.stream.state == "failed"
    assert str(tmp_path) in dashboard.message.value and "Traceback" not in dashboard.message.value
    assert len(dashboard.history) == kept
    dashboard.controls["source"].value = "given"
    assert dashboard.wait(60) and dashboard.stream.state == "finished"


@pytest.mark.slow
def test_the_history_is_bounded(dashboard):
    for seed in range(KEPT_RUNS + 2):
        dashboard.controls["seed"].value = 100 + seed
        assert dashboard.wait(60)
    assert len(dashboard.history) == KEPT_RUNS == len(dashboard.results.first.options)
    assert dashboard.last.wish.weights.seed == 100 + KEPT_RUNS + 1


def test_closing_ends_the_worker(study):
    board = ReconstructionDashboard(study)
    board.wait(60)
    board.close()
    time.sleep(0.3)
    gc.collect()
    assert not board.stream._thread.is_alive()


def test_lessons_run(study):
    board = geometry_dashboard(tiny())
    board.controls["views"].value = 2
    assert board.wait(60) and board.stream.state == "finished", board.message.value
    assert float(board.viewer.images["now"].sum()) < float(board.viewer.images["as built"].sum())
    board.close()
    board = mlem_dashboard(study)
    assert board.wait(60) and board.stream.state == "finished", board.message.value
    assert float(board.viewer.images["MLEM"].max()) > 0 and "PSNR" in board.curves.value
    board.close()
    board = diffusion_dashboard(study)
    board.controls["t"].value = 700
    assert board.wait(60) and board.stream.state == "finished", board.message.value
    assert not torch.equal(board.viewer.images["noisy"], board.viewer.images["denoised"])
    board.close()


def test_first_views_grow_from_the_middle(study):
    "Each number of views keeps those of the smaller one in the central row, then adds the others."
    scanner = study.scanner
    kept = [first_views(scanner, n) for n in range(1, scanner.n_views + 1)]
    assert [len(set(views)) for views in kept] == list(range(1, scanner.n_views + 1))
    assert kept[-1] == list(range(scanner.n_views))


def test_explored_knobs_belong_to_the_method(study):
    with pytest.raises(InputError, match="knobs must be of .*lambda_dps.*got anchor"):
        next(explore(study, {"anchor": [0.1]}, PaperWeights.for_study))
    with pytest.raises(InputError, match="got lambda_dps"):
        next(explore(study, {"lambda_dps": [0.1]}))
    page = outcome(explore(study, {"views": [1, 3], "steps": [2, 3]}, denoise=lambda x, t: x, start={"steps": 3}))
    assert [knob["name"] for knob in page["knobs"]] == ["central views", "steps"] and page["start"] == [1, 1]
    assert page["others"] == {"input": [4, 5], "full dose": [6], "truth": [7]} and page["follows"]["input"] == 0


def test_a_patient_to_order_has_the_defect_that_was_ordered():
    with pytest.raises(InputError, match="defect must be one of"):
        simulated_patient(defect="everywhere")
    with pytest.raises(InputError, match="severity"):
        simulated_patient(severity=2)
    with pytest.raises(InputError, match="size"):
        torso(np.random.default_rng(0), tiny_grid(), size=2.0)
