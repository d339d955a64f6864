"Viewer and dashboards without a browser: what travels, what is kept, what is refused, and one worker under many hands."

from __future__ import annotations

import csv
import gc
import json
import random
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffspect_nb.board import Pace, StreamView
from diffspect_nb.cohort import simulated_patient
from diffspect_nb.core import ImageGrid, InputError, Step
from diffspect_nb.dashboard import ReconstructionDashboard
from diffspect_nb.explorer import explore
from diffspect_nb.files import load_image
from diffspect_nb.geometry import tiny, tiny_grid
from diffspect_nb.knobs import SITE, Slider
from diffspect_nb.lessons import diffusion_dashboard, first_views, geometry_dashboard, mlem_dashboard, walk_dashboard
from diffspect_nb.mlem import mlem
from diffspect_nb.panels import KNOBS, SourcePanel, marks_of, usual_weights
from diffspect_nb.phantom import torso
from diffspect_nb.prior import Prior
from diffspect_nb.reconstruction import beginning_steps, outcome, reconstruct
from diffspect_nb.results import KEPT_RUNS, KEPT_TRAILS, Shelf
from diffspect_nb.runs import Bench, load_session, made_run, rows_of, save_session
from diffspect_nb.sampler import AnchoredWeights, PaperWeights, settings_of
from diffspect_nb.slice_network import SliceUNet, UNetConfig
from diffspect_nb.stage import Curves
from diffspect_nb.study import Study, simulate, thin
from diffspect_nb.sweep import Plan, sweep_steps
from diffspect_nb.viewer import MIDDLE, Trail, VolumeViewer, focus_of, region_of, to_levels, view_study
from diffspect_nb.wishes import METHODS, Acquisition, MlemWeights, Outside, Source, Wish, place_of


@pytest.fixture(scope="module")
def study() -> Study:
    "A tiny full-dose study with truth and reference."
    rng = np.random.default_rng(3)
    found = simulate(torso(rng, tiny_grid()), tiny(), 2e6, rng)
    return Study(**{**vars(found), "reference": mlem(found.measurement(), 20)})


@pytest.fixture(scope="module")
def priors() -> dict[str, Prior]:
    "A slice prior for the tiny grid; the shipped one takes 50 slices."
    config = UNetConfig(n_slices=tiny_grid().shape[0], widths=(16, 32), blocks=1, embedding=32, head_width=32)
    torch.manual_seed(0)
    return {"paper": Prior(SliceUNet(config).eval(), {"config": {"schedule": "cosine"}})}


def opened(study, priors) -> ReconstructionDashboard:
    "A dashboard whose first run has three steps."
    board = ReconstructionDashboard(study, priors)
    board.controls["steps"].value = 3
    assert board.wait(60) and board.stream.state == "finished", board.answer.value
    return board


@pytest.fixture(scope="module")
def dashboard(study, priors):
    board = opened(study, priors)
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
        ({str(k): torch.ones(3, 3, 3) for k in range(7)}, {}, "1 to 6"),
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


# --- sliders and runs -------------------------------------------------------------------------------------------------


def test_a_slider_keeps_what_it_was_given():
    slider = Slider(0.1363, min=0, max=0.6, step=0.005)
    assert slider.value == 0.1363
    slider.value = 7
    assert slider.value == 0.6
    assert isinstance(Slider(25, min=1, max=50, whole=True).value, int)


def test_time_left_counts_what_remains():
    "Five passes of a tenth and four steps of two seconds: not nine times the mean of what has been."
    pace = Pace()
    pace.note("pass", 0.1)
    assert pace.left({"pass": 5, "step": 4}) is None
    pace.note("step", 2.0)
    assert pace.left({"pass": 5, "step": 4}) == pytest.approx(8.5) and pace.left({"pass": 0}) == 0


def test_a_difference_of_an_image_from_itself_is_zero_to_the_bit(study):
    levels, unit = to_levels(study.truth - study.truth, signed=True)
    assert set(np.frombuffer(levels, "<u2")) == {MIDDLE}
    apart = study.truth - study.reference
    levels, unit = to_levels(apart, signed=True)
    back = (np.frombuffer(levels, "<u2").astype(float).reshape(apart.shape) - MIDDLE) * unit
    assert np.abs(back - apart.numpy()).max() <= 0.51 * unit


def test_past_steps_and_a_crop(study):
    trail = Trail()
    trail.add(study.truth)
    trail.add(2 * study.truth)
    torch.testing.assert_close(trail[1], 2 * trail[0])
    z0, z1, y0, y1, x0, x1 = region_of(study.heart, 0)
    assert study.heart[z0:z1, y0:y1, x0:x1].sum() == study.heart.sum() and region_of(torch.zeros(3, 3, 3)) == []


@pytest.mark.parametrize("method", KNOBS)
def test_sliders_and_marks_come_from_the_table_of_weights(dashboard, method):
    dashboard.controls["method"].value = method
    dashboard.method.go_back()
    dashboard.stream.cancel()
    usual = usual_weights(method, 0.05, 1.0)
    for name, knob in shown(dashboard).items():
        setting, value = settings_of(METHODS[method])[name], getattr(usual, name)
        assert (knob.slider.min, knob.slider.max, knob.slider.step) == (*setting.shown, max(setting.step, 0))
        assert setting.meaning in knob.tip and knob.slider.tip == knob.tip
        assert f'href="{SITE}/20_sampler.html#' in knob._head.value or knob.name == "passes"
        assert knob.slider.marks[0]["value"] == value == knob.slider.value
    dashboard.controls["method"].value = "paper"
    dashboard.controls["steps"].value = 3
    assert dashboard.wait(60)


def test_marks_name_the_fit_and_the_default():
    at_20 = marks_of("paper", "lambda_dps", 0.2, 1.0)
    assert at_20 == {"paper": PaperWeights.for_level(0.2).lambda_dps, "default": PaperWeights.lambda_dps}
    assert list(marks_of("anchored", "anchor", 0.05, 1.0))[0] == "ours"


def test_one_table_for_both_methods():
    "A slider that both methods share has one range."
    for name in set(KNOBS["paper"]) & set(KNOBS["anchored"]):
        paper, anchored = (settings_of(METHODS[m])[name] for m in ("paper", "anchored"))
        assert (paper.shown, paper.step) == (anchored.shown, anchored.step), name


WISHES = [
    Wish(Source("given"), Acquisition(0.05, 5, 3), "paper", PaperWeights.for_level(0.05, steps=7, seed=4)),
    Wish(Source("simulated", (1, "f", 1.0, "none", 0.5)), Acquisition(1.0), "diffspect", AnchoredWeights()),
    Wish(Source("folder", ("here",)), Acquisition(0.01), "", MlemWeights(7)),
    Wish(Source("sample"), Acquisition(0.05), "", Outside("some.module:function")),
]


@pytest.mark.parametrize("wish", WISHES, ids=lambda wish: wish.method)
def test_a_wish_survives_json(wish):
    assert Wish.from_json(json.loads(json.dumps(wish.to_json()))) == wish
    assert wish.code().startswith("study = ")


def test_what_is_no_wish_is_refused():
    for broken in ({}, {"source": 3}, WISHES[0].to_json() | {"weights": {"method": "magic"}}):
        with pytest.raises(InputError):
            Wish.from_json(broken)


def test_paths_start_where_the_user_did(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFSPECT_START", str(tmp_path))
    assert place_of(" out/here ") == tmp_path / "out" / "here" and place_of("/elsewhere").is_absolute()


def halved(study):
    "A method of one's own: half of the truth, in one step."
    return study.truth / 2


def test_a_function_of_one_s_own_is_a_run(study, monkeypatch):
    "By its address, with scores, support and code."
    wish = Wish(Source("given"), Acquisition(0.05), "", Outside(f"{__name__}:halved"))
    run = made_run("1", wish, *outcome(Bench(study).steps(wish)))
    torch.testing.assert_close(run.result.image, study.truth / 2)
    assert run.scores and run.result.support.reduced > 1 and "Named(" in run.wish.code()


# --- the dashboard ----------------------------------------------------------------------------------------------------


def shown(dashboard) -> dict:
    "The sliders of the method that is chosen, by name."
    return {name: knob for name, knob in dashboard.method.knobs.items() if knob.layout.display != "none"}


def ids(dashboard) -> list[str]:
    "Identities of the rows that were asked for, as the table shows them."
    return [row["id"] for row in dashboard.results.table.rows if row["editable"]]


def test_it_opens_on_the_paper_s_method(dashboard, study, priors):
    run = dashboard.history[0]
    assert dashboard.controls["method"].value == "paper" and run.wish.prior == PaperWeights.prior
    assert list(shown(dashboard))[:4] == ["lambda_dps", "lambda_mlem", "tv_weight", "steps"]
    assert dashboard.viewer.names == ["input", "paper", "anchored", "truth"]
    assert {r["reference"] for r in run.scores} == {"truth", "full-dose MLEM-50"}
    again = reconstruct(run.study, run.wish.weights, priors["paper"])
    torch.testing.assert_close(run.result.image, again.image)
    beside = dashboard.results.shelf.beside(run)
    assert set(beside) == {"beside", "input", "best MLEM", "full dose"}
    anchored = reconstruct(run.study, AnchoredWeights.for_study(run.study))
    torch.testing.assert_close(beside["beside"].result.image, anchored.image)
    torch.testing.assert_close(beside["input"].result.image, run.result.x_in)
    n = beside["best MLEM"].wish.weights.passes
    torch.testing.assert_close(beside["best MLEM"].result.image, mlem(run.study.measurement(), n) / 0.05)


def test_what_was_changed_stands_in_a_line_with_a_way_back(dashboard):
    c = dashboard.controls
    c["lambda_dps"].value = 0.3
    assert dashboard.wait(60) and dashboard.last.wish.weights.lambda_dps == 0.3
    assert dashboard.method.changes.value == "paper, changed: steps 25 → 3, λ_dps 0.136 → 0.3"
    c["counts"].value = 0.2  # what was not changed follows the dose
    usual = PaperWeights.for_level(0.2)
    assert dashboard.wish().weights == replace(usual, steps=3, lambda_dps=0.3)
    dashboard.method.back_button.click()
    assert dashboard.wish().weights == usual and "nothing changed" in dashboard.method.changes.value
    c["counts"].value, c["steps"].value = 0.05, 3
    assert dashboard.wait(60)


def test_the_same_data_are_not_begun_twice(dashboard):
    begun = dashboard.bench.begun
    dashboard.controls["tv_weight"].value = 0.05
    assert dashboard.wait(60) and dashboard.bench.begun is begun
    dashboard.method.back_button.click()
    dashboard.controls["steps"].value = 3
    assert dashboard.wait(60) and dashboard.bench.begun is begun


def test_the_input_against_itself_gains_nothing(study):
    "Scatter of 5 %: the likelihood counts it in both images that it compares."
    low = thin(study, 0.05, np.random.default_rng(0))
    background = torch.full_like(low.projections, 0.05 * low.counts / low.projections.numel())
    more = torch.poisson(background, torch.Generator().manual_seed(0))
    low = replace(low, projections=low.projections + more, background=background)
    begun = outcome(beginning_steps(low, AnchoredWeights()))
    curves = Curves(low, begun.measurement, begun.late)
    curves.add(begun.late / low.count_fraction)
    assert abs(curves.likelihood[0]) < 0.01
    forgotten = replace(begun.measurement, background=None).log_likelihood(begun.late) - curves.reached
    assert forgotten < -100, "the background of this test is too small to be missed"
    curves.add(2 * begun.late / low.count_fraction)
    assert curves.likelihood[1] < -100 and len(curves.gains) == 2


def test_the_chosen_run_drives_every_panel(dashboard):
    table, c = dashboard.results.table, dashboard.controls
    c["method"].value = "mlem"
    c["passes"].value = 4
    assert dashboard.wait(60) and dashboard.chosen is dashboard.last and len(dashboard.chosen.trail) == 4

    def seen():
        name = next(n for n in dashboard.viewer.names if n not in ("input", "anchored", "truth"))
        panels = dashboard.results.scores.value, dashboard.results.code.value, dashboard.curves.value
        return dashboard.viewer.images[name], *panels, dashboard.scrubber.slider.max

    after = seen()
    table.press("select", "1")
    before = seen()
    torch.testing.assert_close(before[0], dashboard.history[0].result.image)
    assert all(a != b for a, b in zip(after[1:], before[1:], strict=True)) and "PaperWeights" in before[2]
    assert "ask for something else" in dashboard.state.value
    dashboard.scrubber.slider.value = 2  # a past step, without computing
    torch.testing.assert_close(dashboard.viewer.images["paper"], dashboard.chosen.trail[1])
    table.press("restore", "1")
    assert dashboard.wish() == dashboard.history[0].wish and dashboard.stream.state == "finished"
    assert "ask for something else" not in dashboard.state.value


def test_rows_are_named_pinned_deleted_and_come_back(dashboard):
    table, undo = dashboard.results.table, dashboard.results.buttons["Undo"]
    before = ids(dashboard)
    table.press("pin", before[-1])
    table.press("rename", before[-1], "<b>mine</b>")
    assert ids(dashboard)[0] == before[-1]
    table.press("select", before[-1])
    assert "&lt;b&gt;mine" in dashboard.results.scores.value
    table.press("delete", before[-1])
    assert before[-1] not in ids(dashboard) and dashboard.chosen.id != before[-1]
    for _ in range(3):
        undo.click()
    assert ids(dashboard) == before and dashboard.chosen.id == before[-1]
    dashboard.results.buttons["Next"].click()
    assert dashboard.chosen.id == before[-2]
    dashboard.results.buttons["Previous"].click()
    assert dashboard.chosen.id == before[-1]
    table.press("select", "no such run")
    assert "gone" in dashboard.results.answer.value


def test_the_shipped_samples_are_among_the_studies():
    panel = SourcePanel(None, lambda: None)
    assert panel.chosen() == Source("sample") and Source("sample").code() == "Study.load(sample_folder())"
    panel.kind.value = "sample nine_views"
    source = panel.chosen()
    assert source.code() == "Study.load(sample_folder('nine_views'))" and len(source.load().views) == 9
    panel.restore(Source("sample"))
    assert panel.chosen() == Source("sample")
    panel.restore(source)
    assert panel.chosen() == source and str(source) == "sample nine_views"


def test_nothing_to_undo_is_one_line():
    with pytest.raises(InputError, match="nothing to undo"):
        Shelf().undo()


def test_a_run_does_not_differ_from_itself(dashboard):
    table = dashboard.results.table
    table.press("second", table.second)  # no longer
    dashboard.stage.difference.value = True
    assert "press B" in dashboard.results.answer.value
    table.press("second", dashboard.chosen.id)
    assert float(dashboard.viewer.images["A − B"].abs().max()) == 0 and dashboard.viewer.signed == ["A − B"]
    table.press("second", next(i for i in ids(dashboard) if i != dashboard.chosen.id))
    a, b, apart = list(dashboard.viewer.images.values())[:3]
    torch.testing.assert_close(apart, a - b)
    assert dashboard.viewer.blinking == dashboard.viewer.names[:2] and float(apart.abs().max()) > 0
    dashboard.stage.difference.value = False
    assert dashboard.viewer.names[1] == "paper"


def test_a_session_outlives_its_dashboard(dashboard, study, priors, tmp_path):
    "Saved, loaded by a new dashboard that was given nothing: same table, same images, same sliders."
    dashboard.results.folder.value = str(tmp_path / "session")
    for _ in range(2):  # over itself, too
        dashboard.results.buttons["Save session"].click()
    assert "saved" in dashboard.results.files_answer.value, dashboard.results.files_answer.value
    other = opened(study, priors)
    other.results.folder.value = str(tmp_path / "session")
    other.results.buttons["Load session"].click()
    assert "loaded" in other.results.files_answer.value, other.results.files_answer.value
    assert other.results.table.rows == dashboard.results.table.rows and other.wish() == dashboard.wish()
    assert other.chosen.id == dashboard.chosen.id
    for mine, theirs in zip(other.history, dashboard.history, strict=True):
        assert torch.equal(mine.result.image, theirs.result.image) and torch.equal(mine.trail[0], theirs.trail[0])
    assert other.wait(60)
    other.submit()  # and it goes on from there
    assert other.wait(60) and int(other.last.id) == int(dashboard.last.id) + 1
    other.close()
    assert not [p for p in (tmp_path / "session").rglob("*") if p.suffix in (".pkl", ".pt") or ".part-" in p.name]


@pytest.mark.parametrize("damage", ["no session.json", "another format", "a run is gone", "a run is cut", "no study"])
def test_a_damaged_session_is_one_line(study, tmp_path, damage):
    wish = Wish(Source("given"), Acquisition(0.05), "", MlemWeights(2))
    run = made_run("1", wish, *outcome(Bench(study).steps(wish)))
    save_session(tmp_path, [run], {wish.source: study}, {})
    assert rows_of(load_session(tmp_path)[0]) == rows_of([run])
    images = next(tmp_path.glob("run-*.safetensors"))
    if damage == "no session.json":
        (tmp_path / "session.json").unlink()
    elif damage == "another format":
        (tmp_path / "session.json").write_text('{"format": "other"}')
    elif damage == "a run is gone":
        images.unlink()
    elif damage == "a run is cut":
        images.write_bytes(images.read_bytes()[:200])
    else:
        (next(tmp_path.glob("study-*")) / "study.json").unlink()
    with pytest.raises(InputError):
        load_session(tmp_path)


def test_table_and_export(dashboard, study, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSPECT_START", str(tmp_path))
    dashboard.results.folder.value = "out"
    dashboard.results.buttons["Save table"].click()
    with open(tmp_path / "out" / "runs.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(dashboard.results.shelf.runs) and "ssim heart, full dose" in rows[0]
    dashboard.results.buttons["Export run"].click()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "image.nii.gz", "input.nii.gz", "support.nii.gz", "views.png", "support.png", "result.json", "runs.csv",
    }  # fmt: skip
    result, run = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8")), dashboard.chosen
    assert result["method"] == result["weights"]["method"] == "paper" and result["weights"]["steps"] == 3
    assert "reconstruct(" in result["code"] and result["metrics"]
    torch.testing.assert_close(load_image(tmp_path / "out" / "image.nii.gz", study.grid), run.result.image)
    (tmp_path / "file").write_text("in the way")
    dashboard.results.folder.value = "file/below"
    dashboard.results.buttons["Export run"].click()
    answer = dashboard.results.files_answer.value
    assert "cannot write" in answer and "dsd-error" in answer


def test_probe_at_the_crosshair(dashboard, study):
    "On the hottest voxel: its surroundings are colder, so filling it from there takes photons away."
    image = dashboard.chosen.result.image
    dashboard.viewer.cursor = [int(i) for i in np.unravel_index(int(image.argmax()), image.shape)]
    dashboard.results.buttons["Probe"].click()
    found, answer = dashboard.probe(), dashboard.results.answer.value
    assert str(found) in answer.replace("&#x27;", "'") and "dsd-error" not in answer
    assert found.photons < 0


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
    assert str(tmp_path) in dashboard.source.answer.value and "Traceback" not in dashboard.source.answer.value
    assert len(dashboard.history) == kept
    dashboard.controls["source"].value = "given"
    assert dashboard.wait(60) and dashboard.stream.state == "finished"


def test_a_sweep_survives_a_stop(dashboard):
    "Twelve runs: stopped, gone on with, twelve points; the dashboard answers meanwhile, and a point opens its run."
    sweep, c = dashboard.sweep, dashboard.sweep.controls
    c["first_low"].value, c["first_high"].value, c["first_n"].value = 0.0, 0.3, 3
    c["second"].value, c["second_n"].value, c["seeds"].value = "lambda_mlem", 2, 2
    kept = len(dashboard.history)
    sweep.sweep_button.click()
    while len(sweep.runs) < 3:
        time.sleep(0.01)
    sweep.stop_button.click()
    dashboard.results.table.press("select", "1")
    assert dashboard.chosen.id == "1" and sweep.wait(30)
    done = len(sweep.plot.points)
    assert 3 <= done < 12 and "Resume" in sweep.answer.value and sweep.stream.state == "cancelled"
    sweep.resume_button.click()
    assert sweep.wait(60) and sweep.stream.state == "finished", sweep.answer.value
    assert len(sweep.plot.points) == 12 and len(dashboard.history) == kept + 12
    assert len(sweep.plot.lines) == 2 and all(len(line["x"]) == 3 for line in sweep.plot.lines)
    assert dashboard.chosen.id == "1"  # a sweep does not take the screen away
    point = sweep.plot.points[5]
    sweep.plot.press("select", point["id"])
    weights = dashboard.chosen.wish.weights
    assert dashboard.chosen.id == point["id"] and weights.lambda_dps == point["x"]
    c["patients"].value = "one"
    sweep.sweep_button.click()
    assert "patients must be" in sweep.answer.value


@pytest.mark.slow
def test_a_sweep_on_processes_gives_the_same_images(study):
    weights = AnchoredWeights.for_level(0.05, steps=2, fields=1)
    wish = Wish(Source("given"), Acquisition(0.05), "diffspect", weights)
    wishes, here, there = Plan(wish, (("anchor", (0.02, 0.05)),), (0, 1)).wishes(), {}, {}
    outcome(sweep_steps(wishes, Bench(study), lambda run: here.update({run.wish: run})))
    outcome(sweep_steps(wishes, Bench(study), lambda run: there.update({run.wish: run}), workers=2))
    assert set(here) == set(there) == set(wishes)
    for wish in wishes:
        torch.testing.assert_close(there[wish].result.image, here[wish].result.image)
        both = ([row["psnr_db"] for row in run.scores] for run in (there[wish], here[wish]))
        assert next(both) == pytest.approx(next(both))


def test_the_shelf_is_bounded_but_keeps_what_is_pinned(dashboard):
    shelf, run = Shelf(), dashboard.history[0]
    first = shelf.add(replace(run, id="", pinned=True))
    for _ in range(KEPT_RUNS + 3):
        shelf.add(replace(run, id="", trail=Trail()))
    assert len(shelf.runs) == KEPT_RUNS and first.id in shelf.runs
    assert sum(run.trail is not None for run in shelf.runs.values()) == KEPT_TRAILS


def test_closing_ends_the_workers(study, priors):
    board = opened(study, priors)
    board.close()
    time.sleep(0.3)
    gc.collect()
    assert not any(s._thread.is_alive() for s in (board.stream, board.aside, board.sweep.stream))


def test_lessons_run(study):
    board = geometry_dashboard(tiny())
    board.controls["views"].value = 2
    assert board.wait(60) and board.stream.state == "finished", board.answer.value
    assert float(board.viewer.images["now"].sum()) < float(board.viewer.images["as built"].sum())
    board.close()
    board = mlem_dashboard(study)
    assert board.wait(60) and board.stream.state == "finished", board.answer.value
    assert float(board.viewer.images["MLEM"].max()) > 0 and "PSNR" in board.curves.value
    board.scrubber.slider.value = 3  # past iterations are seen again, nothing is computed
    torch.testing.assert_close(board.viewer.images["MLEM"], board.trail[2])
    board.close()
    board = diffusion_dashboard(study)
    board.controls["t"].value = 700
    assert board.wait(60) and board.stream.state == "finished", board.answer.value
    assert not torch.equal(board.viewer.images["noisy"], board.viewer.images["denoised"])
    board.close()


def test_both_walks_move_side_by_side(study):
    "Each slider moves its own walk and leaves the other alone; a study that cannot be scored is refused."
    board = walk_dashboard(study)
    assert board.wait(60) and board.stream.state == "finished", board.answer.value
    assert "paper" in board.curves.value and "anchored" in board.curves.value
    for slider, moved, still in (("lambda_dps", "paper", "anchored"), ("anchor", "anchored", "paper")):
        before = {name: board.viewer.images[name].clone() for name in (moved, still)}
        board.controls[slider].value = 0.5
        assert board.wait(60) and board.stream.state == "finished", board.answer.value
        assert not torch.equal(board.viewer.images[moved], before[moved])
        torch.testing.assert_close(board.viewer.images[still], before[still])
    board.close()
    with pytest.raises(InputError, match="study must hold a truth and a heart"):
        walk_dashboard(replace(study, truth=None))


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
