"The benchmark: true reductions, rows that survive an interruption, statistics against closed forms, losses found."

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffspect_nb.benchmark import (
    differences, interval, paired, patient_rows, plot_curves, plot_strip, read_rows, run_benchmark, summary, table_of,
    what_got_worse,
)
from diffspect_nb.cohort import FIRST_TEST, FIRST_VALIDATION, held_out_study
from diffspect_nb.files import write_csv
from diffspect_nb.metrics import contrast_errors, defect_regions
from diffspect_nb.study import reduced
from diffspect_nb.core import ImageGrid, InputError
from diffspect_nb.geometry import tiny, tiny_grid
from diffspect_nb.mlem import mlem
from diffspect_nb.phantom import torso
from diffspect_nb.study import simulate
from diffspect_nb.system import SystemMatrix
from diffspect_nb.training import TrainConfig


@pytest.fixture(scope="module")
def study():
    return held_out_study(FIRST_VALIDATION + 1, "tiny", tiny_grid())


def twenty(study, system):
    return mlem(system, study.projections, 20) / study.count_fraction


SETTINGS = ["counts 0.1", "counts 1.0", "views 3"]
OPTIONS = {"n_iter": 50}


@pytest.fixture(scope="module")
def rows(study) -> list[dict]:
    return list(patient_rows(study, "one", SETTINGS, {"ours": twenty}, **OPTIONS))


def test_held_out_patients_are_repeatable_and_none_is_trained_on(study):
    again = held_out_study(FIRST_VALIDATION + 1, "tiny", tiny_grid())
    assert torch.equal(study.projections, again.projections)
    assert study.meta["mismatch"]["scatter"] > 0 and study.meta["mismatch"]["aperture"] != 1
    config = TrainConfig()
    assert config.first_seed + config.n_studies < FIRST_VALIDATION < FIRST_TEST


def test_settings_reduce_counts_or_views(study):
    low, few = reduced(study, "counts 0.1"), reduced(study, "views 3")
    assert low.counts == pytest.approx(0.1 * study.counts, rel=0.02) and len(low.views) == len(study.views)
    assert len(few.views) == 3 and few.count_fraction == 1
    assert torch.equal(low.projections, reduced(study, "counts 0.1").projections)
    assert not torch.equal(low.projections, reduced(study, "counts 0.1", seed=1).projections)
    with pytest.raises(InputError, match="setting"):
        reduced(study, "dose 3")


def test_every_method_is_scored_in_every_region_against_both_references(rows):
    regions = {(r["mask"], r["reference"]) for r in rows if r["method"] == "ours"}
    assert regions == {(m, r) for m in ("heart", "field of view") for r in ("truth", "full-dose MLEM-50")}
    for setting in SETTINGS:
        methods = {r["method"] for r in rows if r["setting"] == setting}
        assert {
            "MLEM-50",
            "OSEM, 5 × 4",
            "best stop",
            "best Gaussian",
            "best TV",
            "full-dose MLEM-50",
            "ours",
        } <= methods
    found = table_of(rows)
    for setting in SETTINGS:  # the oracle may choose iteration 20 too
        assert (
            found[setting, "best classical"]["one"]
            >= found[setting, "best stop"]["one"]
            >= found[setting, "ours"]["one"] - 1e-6
        )
        assert found[setting, "full-dose best stop"] == found["counts 1.0", "full-dose best stop"]


def test_an_interrupted_benchmark_goes_on_where_it_stopped(study, rows, tmp_path):
    path, runs = tmp_path / "rows.jsonl", []

    def counted(s, system):
        runs.append(s)
        return twenty(s, system)

    def run(settings, methods):
        return list(run_benchmark(path, {"one": lambda: study}, settings, methods, **OPTIONS))

    run(SETTINGS[:1], {"ours": counted})
    assert len(runs) == 1
    run(SETTINGS, {"ours": counted})
    assert len(runs) == len(SETTINGS)
    assert run(SETTINGS, {"ours": counted}) == [] and len(runs) == len(SETTINGS)
    with path.open("a") as file:
        file.write('{"study": "one", "setti')  # cut off in the middle of a line
    after = read_rows(path)

    def key(row):
        return row["setting"], row["method"], row["mask"], row["reference"]

    assert {key(r): r["psnr_db"] for r in after} == pytest.approx({key(r): r["psnr_db"] for r in rows}, abs=1e-3)
    with pytest.raises(InputError, match="no such"):
        read_rows(tmp_path / "nothing")


def made_up(values: dict[str, list[float]]) -> list[dict]:
    "Rows of one setting: method → PSNR of study 0, 1, …"
    base = {
        "setting": "counts 0.1",
        "reference": "truth",
        "mask": "heart",
        "nrmse": 0.5,
        "ssim": 0.5,
        "defect_error": None,
        "seconds": 1.0,
    }
    return [
        base | {"method": m, "study": str(i), "psnr_db": v}
        for m, column in values.items()
        for i, v in enumerate(column)
    ]


def test_intervals_and_paired_differences():
    values = np.random.default_rng(0).normal(3, 2, 400)
    mean, low, high = interval(values)
    half = 1.96 * values.std(ddof=1) / 20  # the closed form for a mean of many
    assert (
        mean == pytest.approx(values.mean())
        and low == pytest.approx(mean - half, abs=0.05)
        and high == pytest.approx(mean + half, abs=0.05)
    )
    assert interval([2.0]) == (2.0, 2.0, 2.0) and interval([1.0, 1.0, 1.0]) == (1.0, 1.0, 1.0)
    made = made_up({"ours": [10, 20, 30, 41], "MLEM-50": [9, 19, 29, 39]})
    mean, low, high = paired(made, "ours", "MLEM-50", "counts 0.1")
    assert mean == pytest.approx(1.25) and 1 <= low <= high <= 2  # patients differ by 30 dB, the difference by 1
    with pytest.raises(InputError, match="no study"):
        paired(made, "ours", "nobody", "counts 0.1")


def test_the_best_classical_image_is_chosen_per_study_and_losses_are_listed():
    made = made_up({"ours": [10, 9], "MLEM-50": [9, 8], "best TV": [8, 9.5]})
    assert table_of(made)["counts 0.1", "best classical"] == {"0": 9, "1": 9.5}
    (worse,) = [r for r in what_got_worse(made, "ours") if r["metric"] == "psnr_db"]
    assert (worse["study"], worse["loss"]) == ("1", pytest.approx(0.5))
    line = next(d for d in differences(made, "ours") if d["rival"] == "best classical" and d["metric"] == "psnr_db")
    assert line["difference"] == pytest.approx(0.25) and line["studies_worse"] == 1


def test_defect_regions_lie_in_the_wall_and_the_truth_keeps_their_contrast():
    grid = ImageGrid((40, 44, 44), 4.0)
    phantom = torso(np.random.default_rng(4), grid, defects=2)
    full = simulate(phantom, tiny(), 1e5, np.random.default_rng(0), SystemMatrix.build(tiny(), grid, cache=False))
    full = replace(full, meta=full.meta | {"defects": list(phantom.defects)})
    regions = defect_regions(full)
    assert 1 <= len(regions) <= 2
    for defect, normal in regions:
        assert not (defect & normal).any()
        assert float(full.truth[defect].mean()) < 0.9 * float(full.truth[normal].mean())
    assert contrast_errors(full.truth, full, regions) == pytest.approx([0.0] * len(regions))
    flat = torch.ones(grid.shape)
    assert min(contrast_errors(flat, full, regions)) > 0.1
    assert defect_regions(replace(full, meta={})) == []


def test_tables_and_figures(rows, study, tmp_path):
    write_csv(tmp_path / "summary.csv", summary(rows))
    head, *lines = (tmp_path / "summary.csv").read_text().splitlines()
    assert head.startswith("setting,method,mask,reference,studies,psnr_db,psnr_db_low") and len(lines) == len(
        summary(rows)
    )
    fig = plot_curves(rows, ("ours", "best classical", "MLEM-50"))
    assert [len(ax.lines) >= 3 for ax in fig.axes] == [True, True]
    doses = [row for row in rows if row["setting"].startswith("counts")]
    (ax,) = plot_curves(doses, ("ours", "MLEM-50")).axes  # no empty axes for what was not run
    assert len(ax.lines) >= 2 and ax.get_legend() is not None
    images: dict = {}
    list(patient_rows(study, "one", SETTINGS[:1], {"ours": twenty}, keep_images=images, **OPTIONS))
    fig = plot_strip(study, images, SETTINGS[0], ("MLEM-50", "ours"))
    assert [ax.get_title() for ax in fig.axes[:3]] == ["truth", "MLEM-50", "ours"]
    json.dumps(rows)
