"""Weights chosen by trials: the table that walks read, the choice, the resumption and the command."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT

from diffspect_nb import tuning
from diffspect_nb.core import InputError
from diffspect_nb.sampler import AnchoredWeights
from diffspect_nb.tables import interpolated, shipped_table
from diffspect_nb.tuning import SETTINGS, SWEEPS, Sweep, Trial, chosen, front_of, plot_front, points_of, run_trials


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


def test_trials_are_resumed_and_appended_once(tmp_path, monkeypatch):
    asked = []

    def made_up(patient: int, trials: list[Trial], prior: str | None) -> list[dict]:
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


def run(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from diffspect_nb.cli import main; raise SystemExit(main())", "tune", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=dict(os.environ), check=False)


def test_what_the_command_refuses(tmp_path):
    for words, text in (
        (["--settings", "counts 0.07"], "'counts 0.05'"),
        (["--sweeps", "lambda"], "'anchor'"),
        (["--patients", "0"], "at least 1"),
    ):
        done = run(*words, "--out", str(tmp_path / "out"))
        assert done.returncode == 2 and text in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_a_small_tuning_end_to_end(tmp_path):
    words = ["--patients", "1", "--settings", "views 3", "--sweeps", "updates", "--out", str(tmp_path)]
    done = run(*words)
    assert done.returncode == 0 and "example" in done.stderr, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "anchored.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["change"] for row in rows}) == 3
    assert len({row["heart_db"] for row in rows}) == 3
    table = json.loads((tmp_path / "anchored.json").read_text())
    assert table["about"]["patients"] == [910000] and list(table["weights"]) == list(SETTINGS)
    assert (tmp_path / "front.png").stat().st_size > 5000
    assert run(*words).returncode == 0 and len((tmp_path / "anchored.jsonl").read_text().splitlines()) == 3
