"The benchmark: true reductions, rows that survive an interruption, statistics against closed forms, losses found."

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffspect_nb.benchmark import (
    CLASSICAL,
    differences,
    gains,
    interval,
    paired,
    patient_blocks,
    patient_rows,
    plot_curves,
    plot_strip,
    read_rows,
    run_benchmark,
    summary,
    table_of,
    what_got_worse,
)
from diffspect_nb.cli import main
from diffspect_nb.cohort import FIRST_TEST, FIRST_VALIDATION, held_out_study, simulated_study
from diffspect_nb.core import InputError
from diffspect_nb.files import write_csv
from diffspect_nb.geometry import tiny_grid
from diffspect_nb.methods import guided
from diffspect_nb.mlem import mlem_steps
from diffspect_nb.prior import save_checkpoint
from diffspect_nb.sampler import AnchoredWeights, PaperWeights
from diffspect_nb.slice_network import SliceUNet, UNetConfig
from diffspect_nb.study import reduced
from diffspect_nb.training import TrainConfig


@pytest.fixture(scope="module")
def study():
    return held_out_study(FIRST_VALIDATION + 1, "tiny", tiny_grid())


def twenty(study):
    "MLEM-20 as a method."
    for step in mlem_steps(study.measurement(), 20, likelihood=False):
        yield replace(step, image=step.image / study.count_fraction)


SETTINGS = ["counts 0.1", "counts 1.0", "views 3"]
OPTIONS = {"n_iter": 50}


@pytest.fixture(scope="module")
def rows(study) -> list[dict]:
    return list(patient_rows(study, "one", SETTINGS, {"ours": twenty}, **OPTIONS))


@pytest.mark.slow
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
        assert {*CLASSICAL, "full-dose MLEM-50", "ours"} <= methods
    found = table_of(rows)
    for setting in SETTINGS:  # the oracle may choose iteration 20 too
        best, stop, ours = (found[setting, m]["one"] for m in ("best classical", "best stop", "ours"))
        assert best >= stop >= ours - 1e-6
        assert found[setting, "full-dose best stop"] == found["counts 1.0", "full-dose best stop"]


def test_an_interrupted_benchmark_goes_on_where_it_stopped(study, rows, tmp_path):
    path, runs = tmp_path / "rows.jsonl", []

    def counted(s):
        runs.append(s)
        return twenty(s)

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


def test_rows_of_one_setting_are_on_disk_before_the_next_is_computed(study, tmp_path):
    path, seen = tmp_path / "rows.jsonl", []

    def method(s):
        seen.append({(r["setting"], r["method"]) for r in read_rows(path)} if path.exists() else set())
        return twenty(s)

    settings = ["counts 0.1", "counts 0.2"]
    list(run_benchmark(path, {"one": lambda: study}, settings, {"ours": method}, classical=False))
    assert seen == [set(), {("counts 0.1", "ours")}]


def test_a_background_is_in_the_model_of_every_rival():
    study = simulated_study(FIRST_VALIDATION + 1, "tiny", tiny_grid())  # where nothing else is amiss
    flat = torch.full_like(study.projections, 0.05 * study.counts / study.projections.numel())
    counts = study.projections + torch.poisson(flat, generator=torch.Generator().manual_seed(0))
    dirty = replace(study, projections=counts, background=flat)
    found = [table_of(list(patient_rows(s, "one", ["counts 0.2"], {"ours": twenty}, **OPTIONS)), "nrmse")
             for s in (dirty, replace(dirty, background=None))]  # fmt: skip
    for method in (*CLASSICAL, "ours", "full-dose MLEM-50"):
        known, ignored = (table["counts 0.2", method]["one"] for table in found)
        assert known < ignored, method


class Everywhere:
    "A prior that sees a flat image in everything."

    device, looks_at_data, unit, provenance = torch.device("cpu"), False, 1.0, {}

    def denoiser(self, mu, early, late):
        return lambda x, t: torch.full_like(x, 0.3)


def test_our_method_is_an_iterator_of_steps_whose_weights_decide_the_walk(study):
    low = reduced(study, "counts 0.1")
    steps = list(guided(Everywhere())(low))
    assert [s.index for s in steps] == list(range(1, steps[-1].total + 1)) and (steps[-1].image >= 0).all()
    by_name = {
        "anchored": guided(Everywhere(), lambda s: AnchoredWeights.for_study(s, steps=4)),
        "paper": guided(Everywhere(), lambda s: PaperWeights.for_study(s, steps=2, lambda_dps=0.0)),
    }
    (block, other) = patient_blocks(study, "one", ["counts 0.1"], by_name, classical=False)
    assert {r["method"] for r in block} == {"anchored"} and {r["method"] for r in other} == {"paper"}
    assert block[0]["psnr_db"] != other[0]["psnr_db"]


def test_a_study_without_truth_is_refused(study):
    with pytest.raises(InputError, match="truth"):
        next(patient_rows(replace(study, truth=None), "one", SETTINGS, {}))


def made_up(values: dict[str, list[float]], **more) -> list[dict]:
    "Rows of one setting: method → PSNR of study 0, 1, …"
    base = {"setting": "counts 0.1", "reference": "truth", "mask": "heart", "seconds": 1.0}
    base |= {"nrmse": 0.5, "ssim": 0.5, "defect_error": None} | more
    found = [(method, i, value) for method, column in values.items() for i, value in enumerate(column)]
    return [base | {"method": method, "study": str(i), "psnr_db": value} for method, i, value in found]


def test_intervals_and_paired_differences():
    values = np.random.default_rng(0).normal(3, 2, 400)
    mean, low, high = interval(values)
    half = 1.96 * values.std(ddof=1) / 20  # the closed form for a mean of many
    assert (mean, low, high) == pytest.approx((values.mean(), mean - half, mean + half), abs=0.05)
    assert interval([2.0]) == (2.0, 2.0, 2.0) and interval([1.0, 1.0, 1.0]) == (1.0, 1.0, 1.0)
    made = made_up({"ours": [10, 20, 30, 41], "MLEM-50": [9, 19, 29, 39]})
    mean, low, high = paired(made, "ours", "MLEM-50", "counts 0.1")
    assert mean == pytest.approx(1.25) and 1 <= low <= high <= 2  # patients differ by 30 dB, the difference by 1
    assert gains(made, "ours", "MLEM-50", "counts 0.1") == [1, 1, 1, 2]
    with pytest.raises(InputError, match="no study"):
        paired(made, "ours", "nobody", "counts 0.1")


def test_means_of_defects_count_the_patients_that_have_one():
    made = made_up({"ours": [10, 20, 30]}) + made_up({"MLEM-50": [10, 20, 30]})
    for row in made[:2] + made[3:5]:
        row["defect_error"] = 0.1 if row["method"] == "ours" else 0.3
    line = next(line for line in summary(made) if line["method"] == "ours")
    assert (line["studies"], line["studies_with_defect"]) == (3, 2) and line["defect_error"] == pytest.approx(0.1)
    apart = [d for d in differences(made, "ours") if (d["metric"], d["rival"]) == ("defect_error", "MLEM-50")]
    assert [(d["studies"], d["studies_worse"]) for d in apart] == [(2, 0)]


def test_the_best_classical_image_is_chosen_per_study_and_losses_are_listed():
    made = made_up({"ours": [10, 9], "MLEM-50": [9, 8], "best TV": [8, 9.5]})
    assert table_of(made)["counts 0.1", "best classical"] == {"0": 9, "1": 9.5}
    (worse,) = [r for r in what_got_worse(made, "ours") if r["metric"] == "psnr_db"]
    assert (worse["study"], worse["loss"]) == ("1", pytest.approx(0.5))
    line = next(d for d in differences(made, "ours") if d["rival"] == "best classical" and d["metric"] == "psnr_db")
    assert line["difference"] == pytest.approx(0.25) and line["studies_worse"] == 1


def test_tables_and_figures(rows, study, tmp_path):
    write_csv(tmp_path / "summary.csv", summary(rows))
    head, *lines = (tmp_path / "summary.csv").read_text().splitlines()
    assert head.startswith("setting,method,mask,reference,studies,psnr_db,psnr_db_low")
    assert len(lines) == len(summary(rows))
    fig = plot_curves(rows, ("ours", "best classical", "MLEM-50"))
    assert [len(ax.lines) >= 3 for ax in fig.axes] == [True, True]
    doses = [row for row in rows if row["setting"].startswith("counts")]
    (ax,) = plot_curves(doses, ("ours", "MLEM-50")).axes  # no empty axes for what was not run
    assert len(ax.lines) >= 2 and ax.get_legend() is not None
    images: dict = {}
    list(patient_rows(study, "one", SETTINGS[:1], {"ours": twenty}, keep_images=images, **OPTIONS))
    assert {method for _, method in images} >= {*CLASSICAL, "ours", "full-dose MLEM-50"}
    fig = plot_strip(study, images, SETTINGS[0], ("MLEM-50", "ours"))
    assert [ax.get_title() for ax in fig.axes[:3]] == ["truth", "MLEM-50", "ours"]
    json.dumps(rows)


@pytest.mark.slow
def test_the_papers_table_one_comes_from_one_command(tmp_path, capsys):
    "Its terms one by one and MLEM-50 beside them, by both references, resumed without work."
    torch.manual_seed(0)
    config = UNetConfig(n_slices=16, widths=(16, 32), blocks=1, embedding=32, head_width=32)
    told = TrainConfig(grid=tiny_grid(), scanner="tiny", network=config)
    save_checkpoint(tmp_path / "prior.safetensors", SliceUNet(config), {"config": told.to_json(), "steps": 0})
    words = ["benchmark", "--ablation", "--tiny", "--settings", "views 3", "--out", str(tmp_path / "out")]
    words += ["--prior", str(tmp_path / "prior.safetensors")]
    assert main(words) == 0
    said = capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out" / "ablation.jsonl").read_text().splitlines()]
    parts = ["MLEM-50", "no start", "+ start", "+ DPS", "+ TV", "+ MLEM insertion"]
    assert list(dict.fromkeys(row["method"] for row in rows)) == parts
    assert {row["reference"] for row in rows} == {"truth", "full-dose MLEM-50"}
    scores = {tuple(r[k] for k in ("setting", "method", "mask", "reference")): r["psnr_db"] for r in rows}
    assert len(scores) == len(rows) == 6 * 2 * 2 and len(set(scores.values())) == len(rows)
    apart = (tmp_path / "out" / "ablation_differences.csv").read_text().splitlines()
    assert sum("psnr_db" in line for line in apart) == 5 * 2 * 2 and "full-dose MLEM-50,heart" in "".join(apart)
    wanted = scores["views 3", "+ MLEM insertion", "heart", "truth"] - scores["views 3", "MLEM-50", "heart", "truth"]
    assert re.search(rf"views 3 +heart +against truth +{re.escape(f'{wanted:+.2f}')} dB", said)
    assert main(words) == 0 and "patient" not in capsys.readouterr().out  # nothing was missing
    assert len((tmp_path / "out" / "ablation.jsonl").read_text().splitlines()) == len(rows)
