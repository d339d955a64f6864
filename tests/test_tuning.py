"""Weights chosen by trials: the table that walks read, the choice, the resumption and the command."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

from diffspect_nb import tables, tuning
from diffspect_nb.cli import main
from diffspect_nb.cohort import simulated_study
from diffspect_nb.core import InputError
from diffspect_nb.geometry import tiny_grid
from diffspect_nb.panels import MethodPanel
from diffspect_nb.refit import cost_of, grid_of, plot_refit, refit_table, trend
from diffspect_nb.sampler import AnchoredWeights, PaperWeights, fitted_lambda_dps
from diffspect_nb.tables import interpolated, shipped_table
from diffspect_nb.tuning import (
    SETTINGS,
    SWEEPS,
    Sweep,
    Trial,
    chosen,
    front_of,
    merit,
    plot_front,
    points_of,
    run_trials,
    tune_steps,
    tuned_table,
)
from diffspect_nb.wishes import Acquisition, Source, Wish


def test_the_table_has_every_setting_and_is_what_walks_take():
    table = shipped_table("anchored")["weights"]
    assert list(table) == list(SETTINGS)
    for setting, row in table.items():
        kind, number = setting.split()
        level = float(number) if kind == "counts" else int(number) / 19
        weights = AnchoredWeights.for_level(level, 1.0 if kind == "counts" else level)
        assert {name: getattr(weights, name) for name in row} == pytest.approx(row, rel=1e-3)


def test_between_its_rows():
    table = {"counts 0.01": {"a": 8.0, "n": 0}, "counts 1.0": {"a": 2.0, "n": 10}, "views 1": {"a": 4.0, "n": 4}}
    assert interpolated(table, 0.1, 1.0) == pytest.approx({"a": 4.0, "n": 5.0})
    assert interpolated(table, 1.0, 1 / 19) == pytest.approx({"a": 4.0, "n": 4.0})
    assert interpolated(table, 0.1, 1 / 19) == pytest.approx({"a": 8.0, "n": 0.0})  # and no further than the table
    assert interpolated(table, 1e-6, 1.0) == interpolated(table, 0.01, 1.0)


@pytest.fixture
def refit(tmp_path, monkeypatch):
    "A table of the paper's walk, as `diffspect tune --method paper --ship` leaves it."
    doses = {f"counts {c}": {"lambda_dps": 0.1 / c**0.5, "lambda_mlem": c, "tv_weight": 0.0} for c in (0.01, 1.0)}
    table = doses | {"views 9": {"lambda_dps": 0.2, "lambda_mlem": 0.5, "tv_weight": 0.01}}
    (tmp_path / "paper.json").write_text(json.dumps({"about": {}, "weights": table}), encoding="utf-8")
    others = tables.table_path
    monkeypatch.setattr(tables, "table_path", lambda m: tmp_path / "paper.json" if m == "paper" else others(m))
    shipped_table.cache_clear()
    yield table
    shipped_table.cache_clear()


def test_the_paper_s_walk_takes_the_refit_where_it_is_asked_for(refit):
    published, ours = PaperWeights.for_level(0.1), PaperWeights.for_level(0.1, fit="refit")
    assert published.lambda_dps == fitted_lambda_dps(0.1) and (published.fit, ours.fit) == ("published", "refit")
    assert ours.lambda_dps == pytest.approx(0.1 / 0.1**0.5, rel=1e-3) and ours.lambda_mlem == pytest.approx(
        0.1, rel=1e-3
    )
    assert PaperWeights.for_level(9 / 19, 9 / 19, fit="refit").lambda_mlem == pytest.approx(0.5, rel=1e-3)
    assert PaperWeights.for_level(0.1, fit="refit", lambda_dps=0.7).lambda_dps == 0.7
    assert replace(ours, fit="published").final_updates == ours.final_updates == published.final_updates


def test_a_walk_that_was_not_tuned_has_no_refit(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "table_path", lambda method: tmp_path / f"{method}.json")
    with pytest.raises(InputError, match="no table yet: `diffspect tune --method paper --ship`"):
        PaperWeights.for_level(0.1, fit="refit")
    with pytest.raises(InputError, match="fit must be one of published, refit"):
        PaperWeights(fit="mine")


def test_the_dashboard_offers_the_refit_and_moves_the_sliders_to_it(refit):
    panel = MethodPanel(lambda: panel.adapt(0.1, 1.0), lambda: None)
    panel.adapt(0.1, 1.0)
    assert panel.fit.layout.display == "" and panel.knobs["lambda_dps"].marks == {
        "paper": fitted_lambda_dps(0.1),
        "refit": pytest.approx(0.1 / 0.1**0.5, rel=1e-3),
    }
    panel.fit.value = "refit"
    assert panel.chosen() == PaperWeights.for_level(0.1, fit="refit")
    assert panel.knobs["lambda_dps"].slider.value == panel.chosen().lambda_dps
    kept = Wish(Source("sample"), Acquisition(0.1), "paper", panel.chosen())
    panel.fit.value = "published"
    assert panel.chosen() == PaperWeights.for_level(0.1)
    panel.restore(Wish.from_json(json.loads(json.dumps(kept.to_json()))), 0.1, 1.0)
    assert panel.fit.value == "refit" and panel.chosen() == kept.weights
    panel.method.value = "anchored"
    assert panel.fit.layout.display == "none"


def test_a_sweep_starts_at_the_present_value_and_keeps_to_the_limits():
    weights = AnchoredWeights(anchor=0.01, updates=1)
    assert Sweep("anchor", (0.5, 2.0)).values(weights) == [0.01, 0.005, 0.02]
    assert Sweep("updates", (0.25, 0.9, 2.0)).values(weights) == [1, 0, 2]
    assert Sweep("anchor", (1e9,)).values(weights) == [0.01]
    for method, sweeps in SWEEPS.items():
        assert all(hasattr(tuning.KINDS[method], sweep.name) for sweep in sweeps)


def rows_with(gain: float, spread: float, contrast: float = 0.1) -> list[dict]:
    noise = spread * (-1.0) ** np.arange(8)
    about = {"setting": "views 9", "defect_error": 0.1}
    rows = [about | {"patient": p, "change": "{}", "heart_db": 20.0} for p in range(8)]
    more = {"change": '{"anchor": 0.5}', "defect_error": contrast}
    return rows + [about | more | {"patient": p, "heart_db": 20 + gain + noise[p]} for p in range(8)]


@pytest.mark.parametrize(
    ("gain", "spread", "contrast", "moves"),
    [
        (0.3, 0.1, 0.1, True),
        (0.3, 2.0, 0.1, False),
        (-0.3, 0.1, 0.1, False),
        (0.3, 0.1, 0.11, False),
        (-0.2, 0.1, 0.08, True),
    ],
)
def test_a_weight_moves_only_where_the_patients_say_so(gain, spread, contrast, moves):
    picked = chosen(rows_with(gain, spread, contrast), "views 9", {}, [{"anchor": 0.5}])
    assert picked == ({"anchor": 0.5} if moves else {})


def test_the_front():
    points = {"a": (20.0, 0.10), "b": (21.0, 0.12), "c": (19.0, 0.11), "d": (20.5, 0.09)}
    assert front_of(points) == ["b", "d"]
    rows = rows_with(0.5, 0.0)
    rows[0]["patient"] = 99  # a patient that one of the changes lacks does not count
    assert points_of(rows, "views 9")["{}"] == pytest.approx((20.0, 0.1))
    assert len(plot_front(rows, {"views 9": {"anchor": 0.5}}).axes) == 4
    with pytest.raises(InputError, match="no trial"):
        points_of(rows, "views 3")


def paper_row(patient: int, setting: str, change: dict, value: float, decibels: float) -> dict:
    about = {"patient": patient, "method": "paper", "setting": setting, "change": json.dumps(change)}
    about |= {"lambda_dps": value, "count_level": float(setting.split()[1]), "defect_error": 0.1}
    return about | {"heart_db": 0.0, "heart_mlem50_db": decibels + 1, "field_of_view_mlem50_db": decibels - 1}


def test_the_papers_walk_is_judged_by_its_own_reference():
    assert merit(paper_row(0, "counts 0.1", {}, 0.1, 25.0)) == 25.0
    assert merit({"heart_db": 20.0, "defect_error": 0.1}) == 15.0


@pytest.mark.parametrize("top", [0.024, 0.4, 0.0])
def test_a_grid_grows_until_the_best_is_inside(top, monkeypatch):
    "Published at 1 %: 0.024. The best is there, beyond four times it, or nothing at all."
    monkeypatch.setattr(tuning, "validation_study", lambda seed: simulated_study(1, "tiny", tiny_grid()))

    def run(trials: list[Trial]) -> list[dict]:
        rows = []
        for trial in trials:
            value = trial.change.get("lambda_dps", PaperWeights.for_level(0.01).lambda_dps)
            lost = abs(np.log(max(value, 1e-3) / max(top, 1e-3)))
            rows += [paper_row(p, trial.setting, trial.change, value, 20 - lost + 0.01 * p) for p in range(8)]
        return rows

    ((sweep, picked),) = tune_steps("paper", [1], ["counts 0.01"], run, ["lambda_dps"])
    found = picked["counts 0.01"].get("lambda_dps", PaperWeights.for_level(0.01).lambda_dps)
    assert sweep.name == "lambda_dps" and found == pytest.approx(top, rel=0.35, abs=1e-9)


def test_a_grid_ends_at_the_weights_limits():
    sweep, weights = Sweep("lambda_mlem", (0.5, 2.0)), PaperWeights(lambda_mlem=0.4)
    assert sweep.beyond(weights, 0.8, [0.2, 0.4, 0.8]) is None and sweep.beyond(weights, 0.4, [0.2, 0.4, 0.8]) is None
    assert sweep.beyond(weights, 0.2, [0.2, 0.4, 0.8]) == 0.1
    assert Sweep("steps", (2.0,)).beyond(weights, 50, [25, 50]) is None


def test_a_walk_without_a_table_is_tuned_from_what_it_takes():
    table = tuned_table("paper", {"views 9": {"lambda_mlem": 0.5}}, {})["weights"]
    assert list(table) == list(SETTINGS)
    assert table["counts 0.05"]["lambda_dps"] == pytest.approx(PaperWeights.for_level(0.05).lambda_dps)
    assert table["views 9"] == vars_of(PaperWeights.for_level(9 / 19)) | {"lambda_mlem": 0.5}
    assert tuned_table("anchored", {}, {})["weights"] == shipped_table("anchored")["weights"]


def vars_of(weights: PaperWeights) -> dict:
    return {name: getattr(weights, name) for name in ("lambda_dps", "lambda_mlem", "tv_weight")}


def test_a_second_tuning_forgets_what_a_first_one_found(monkeypatch):
    "The paper's sweeps start from the published weights, also where a refit ships: one that finds no better says so."
    first = tuned_table("paper", {"counts 0.05": {"lambda_dps": 9.0}, "views 9": {"lambda_dps": 8.0}}, {})
    monkeypatch.setattr(tuning, "has_table", lambda method: True)
    monkeypatch.setattr(tuning, "shipped_table", lambda method: first)
    again = tuned_table("paper", {"counts 0.05": {}}, {})["weights"]
    assert again["counts 0.05"]["lambda_dps"] == pytest.approx(PaperWeights.for_level(0.05).lambda_dps)
    assert again["views 9"]["lambda_dps"] == 8.0


def refit_rows(noise: float) -> list[dict]:
    "λ_dps best at C, costing 0.5 dB for a factor of two; patients differ by what they disagree on."
    rng, rows = np.random.default_rng(0), []
    for c in (0.05, 0.1, 0.2, 0.4):
        for factor in (0.25, 0.5, 1.0, 2.0, 4.0):
            for p in range(8):
                db = 25 - 0.5 * np.log2(factor) ** 2 + noise * rng.normal()
                change = {} if factor == 1 else {"lambda_dps": c * factor}
                rows.append(paper_row(p, f"counts {c}", change, c * factor, db))
    return rows


def test_the_refit_finds_the_tops_their_bands_and_the_trend():
    rows = refit_rows(0.02)
    table = [line for line in refit_table(rows) if line["weight"] == "lambda_dps"]
    assert [line["best"] for line in table] == pytest.approx([0.05, 0.1, 0.2, 0.4])
    for line in table:
        assert line["low"] == line["high"] == line["best"] and line["inside"] and line["patients"] == 8
        assert line["cost_of_half"] == pytest.approx(0.5, abs=0.05) == line["cost_of_double"]
        assert line["half_low"] < line["cost_of_half"] < line["half_high"]
        published = PaperWeights.for_level(line["count_level"]).lambda_dps
        assert line["published"] == pytest.approx(published)
    slope = np.polyfit(np.log([0.05, 0.1, 0.2, 0.4]), [0.05, 0.1, 0.2, 0.4], 1)[0]
    assert trend(rows, "lambda_dps") == pytest.approx((slope,) * 3)
    unsure = [line for line in refit_table(refit_rows(2.0)) if line["weight"] == "lambda_dps"]
    assert any(line["low"] < line["high"] for line in unsure)
    assert len(plot_refit(rows).axes) == 3
    assert cost_of(grid_of(rows, "counts 0.05", "lambda_dps"), 3.0) is None
    with pytest.raises(InputError, match="no sweep of tv_weight"):
        grid_of(rows, "counts 0.05", "tv_weight")


def test_trials_are_resumed_and_appended_once(tmp_path, monkeypatch):
    asked = []

    def made_up(patient: int, trials: list[Trial], prior: str | None, device: str) -> list[dict]:
        asked.append((patient, len(trials)))
        return [t.about(patient) | {"heart_db": 1.0} for t in trials]

    monkeypatch.setattr(tuning, "patient_trials", made_up)
    trials = [Trial("anchored", s, {"anchor": a}) for s in SETTINGS[:2] for a in (0.1, 0.2)]
    path = tmp_path / "rows.jsonl"
    next(run_trials(path, [1, 2], trials[:2]))  # ended after the first patient
    with ThreadPoolExecutor(2) as pool:
        assert sum(len(rows) for rows in run_trials(path, [1, 2], trials, workers=pool)) == 2 + 4
    assert not list(run_trials(path, [1, 2], trials))
    lines = path.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 8 and sorted(asked) == [(1, 2), (1, 2), (2, 4)]


def test_what_the_command_refuses(tmp_path, capsys):
    for words, text in (
        (["--settings", "counts 0.07"], "'counts 0.05'"),
        (["--sweeps", "lambda"], "'anchor'"),
        (["--patients", "0"], "at least 1"),
    ):
        code, said = main(["tune", *words, "--out", str(tmp_path / "out")]), capsys.readouterr().err
        assert code == 2 and text in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_a_small_tuning_end_to_end(tmp_path):
    words = ["tune", "--patients", "1", "--settings", "views 3", "--sweeps", "updates", "--out", str(tmp_path)]
    command = [sys.executable, "-c", "from diffspect_nb.cli import main; raise SystemExit(main())", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0 and "example" in done.stderr, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "anchored.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["change"] for row in rows}) == 3
    assert len({row["heart_db"] for row in rows}) == 3
    table = json.loads((tmp_path / "anchored.json").read_text())
    assert table["about"]["patients"] == [910000] and list(table["weights"]) == list(SETTINGS)
    assert (tmp_path / "front.png").stat().st_size > 5000
    assert main(words) == 0 and len((tmp_path / "anchored.jsonl").read_text().splitlines()) == 3
