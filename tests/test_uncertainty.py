"Uncertainty: samples by seed alone, intervals that cover what they promise, a probe against closed forms."

import csv
import dataclasses
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from diffspect_nb.cardiac import true_ventricle
from diffspect_nb.core import InputError, show_slices
from diffspect_nb.geometry import tiny, tiny_grid
from diffspect_nb.mlem import mlem
from diffspect_nb.observer import area_under_roc
from diffspect_nb.phantom import torso
from diffspect_nb.polar import polar_spread, segment_table
from diffspect_nb.prior import Prior, pretrained
from diffspect_nb.probe import defect_shape, filled_from_around, plot_probe, probe_pair, probe_region
from diffspect_nb.reconstruction import measurement_support
from diffspect_nb.sampler import AnchoredWeights, PaperWeights
from diffspect_nb.study import keep_views, simulate, thin
from diffspect_nb.system import Measurement
from diffspect_nb.uncertainty import (
    FITTED,
    Calibration,
    Spread,
    Walks,
    coverage,
    fingerprint,
    fit_temperature,
    interval_score,
    plot_coverage,
    posterior_samples,
    resampled,
    sample_steps,
    spread,
    uncertainty_of,
)


def halve(x, t):
    "A denoiser that workers can import."
    return 0.5 * x / (1 + t / 300)


def ends_the_process(x, t):
    os._exit(3)


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(21)
    return thin(simulate(torso(rng, tiny_grid()), tiny(), 1e6, rng), 0.1, rng)


@pytest.fixture(scope="module")
def system(study):
    return study.system()


@pytest.fixture(scope="module")
def samples(study):
    return posterior_samples(study, 3, denoise=halve, workers=1)


# ---- samples


@pytest.mark.parametrize("resample", [False, True])
def test_samples_depend_on_seed_and_number_alone(study, samples, resample):
    options = {"denoise": halve, "resample": resample}
    here = posterior_samples(study, 3, workers=1, **options)
    assert here.shape == (3, *study.grid.shape) and torch.isfinite(here).all() and (here >= 0).all()
    assert torch.equal(here[:2], posterior_samples(study, 2, workers=1, **options))
    with ThreadPoolExecutor(3) as pool:
        assert torch.equal(here, posterior_samples(study, 3, executor=pool, **options))
        pool.submit(int).result()  # the caller's executor stays open
    assert torch.equal(here, samples) is not resample
    others = posterior_samples(study, 3, weights=AnchoredWeights.for_study(study, seed=1), workers=1, **options)
    same = [torch.equal(a, b) for a in [*here, *others] for b in [*here, *others]]
    assert sum(same) == 6  # each like itself only


@pytest.mark.slow
def test_processes_find_what_one_process_finds(study, samples):
    steps = list(sample_steps(study, 3, denoise=halve, workers=2))
    assert [s.index for s in steps] == [1, 2, 3] and {s.total for s in steps} == {3}
    assert sorted(s.scalars["sample"] for s in steps) == [0, 1, 2] and all(s.scalars["seconds"] > 0 for s in steps)
    for step in steps:  # one thread or two round differently in the last bits
        torch.testing.assert_close(step.image, samples[int(step.scalars["sample"])], rtol=1e-3, atol=1e-2)


def test_stopping_early_ends_the_workers(study):
    steps = sample_steps(study, 40, denoise=halve, workers=1)
    next(steps)
    steps.close()
    with ThreadPoolExecutor(1) as pool:
        steps = sample_steps(study, 200, denoise=halve, executor=pool)
        next(steps)
        started = time.perf_counter()
        steps.close()
    assert time.perf_counter() - started < 10  # the other 198 were never begun


def test_walks_take_one_noise_field_per_step_and_never_see_the_truth(study, monkeypatch):
    seen = []

    def sample(self, number):
        seen.append(self)
        return torch.zeros(self.study.grid.shape)

    monkeypatch.setattr(Walks, "sample", sample)
    posterior_samples(study, 2, weights=AnchoredWeights(fields=3), denoise=halve, workers=1)
    walks = seen[0]
    assert walks.weights.fields == 1
    assert walks.study.truth is None and walks.study.heart is None and walks.study.reference is None


def test_resampled_counts_are_poisson_round_the_measured_ones(study):
    total = np.mean([resampled(study, i).counts for i in range(200)])
    assert abs(total / study.counts - 1) < 4 / np.sqrt(200 * study.counts)
    again = resampled(study, 3).projections
    assert torch.equal(again, resampled(study, 3).projections) and not torch.equal(again, study.projections)
    assert (again[study.projections == 0] == 0).all()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"n": 1}, "n must be"),
        ({"n": 2.5}, "n must be"),
        ({"n": True}, "n must be"),
        ({"workers": 0}, "workers must be"),
        ({"executor": 4}, "executor must be"),
        ({"denoise": lambda x, t: x, "workers": 2}, "cannot be sent to another process"),
        ({"denoise": None, "prior": "no such prior"}, "no shipped checkpoint"),
    ],
)
def test_bad_requests_for_samples_are_refused(study, options, reason):
    with pytest.raises(InputError, match=reason):
        posterior_samples(study, **({"n": 2, "denoise": halve} | options))


@pytest.mark.slow
def test_a_worker_that_dies_is_reported_in_one_line(study):
    with pytest.raises(InputError, match="a worker process died"):
        posterior_samples(study, 2, denoise=ends_the_process, workers=2)


def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from diffspect_nb.uncertainty import start_worker\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), start_worker)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    pool.submit(time.sleep, 60).result()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=env)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    for _ in range(100):
        time.sleep(0.1)
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{worker}/stat").exists() and Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z":
            return  # ended, and nobody has asked how
    os.kill(worker, 9)
    pytest.fail("a worker outlived its parent by ten seconds")


@pytest.mark.slow
def test_a_pool_of_the_callers_own(study, samples):
    import multiprocessing

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = posterior_samples(study, 2, denoise=halve, executor=pool)
    torch.testing.assert_close(found, samples[:2], rtol=1e-3, atol=1e-2)


# ---- spread, coverage, temperature


def test_randomise_then_optimise_samples_a_gaussian_posterior():
    "x ~ N(m, P), y = A x + n: perturbing both prior and data samples the posterior; intervals cover."
    rng = np.random.default_rng(5)
    a, p, r = rng.standard_normal((12, 9)), np.diag(rng.uniform(0.5, 2, 9)), np.diag(rng.uniform(0.2, 1, 12))
    pi, ri = np.linalg.inv(p), np.linalg.inv(r)
    posterior = np.linalg.inv(a.T @ ri @ a + pi)
    inside = []
    for _ in range(300):
        x = rng.multivariate_normal(np.zeros(9), p)
        y = a @ x + rng.multivariate_normal(np.zeros(12), r)
        data = y + rng.multivariate_normal(np.zeros(12), r, 64)
        prior = rng.multivariate_normal(np.zeros(9), p, 64)
        found = spread(torch.from_numpy((data @ ri @ a + prior @ pi) @ posterior))
        inside.append(coverage(found, torch.from_numpy(x)))
    assert abs(np.mean(inside) - 0.9) < 0.025
    assert float((found.std.double() / torch.from_numpy(np.diag(posterior).copy()).sqrt() - 1).abs().max()) < 0.4


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_temperature_undoes_a_wrong_width(factor, level):
    rng = torch.Generator().manual_seed(1)
    mean = torch.rand(30, 30, 30, generator=rng) + 1
    sigma = 0.1 * torch.rand(30, 30, 30, generator=rng) + 0.02
    truth = mean + sigma * torch.randn(30, 30, 30, generator=rng)
    mask = mean > 1.5
    wrong = Spread(mean, factor * sigma, 8, temperature=7.0)  # an older temperature is not counted twice
    found = fit_temperature([wrong], [truth], [mask], level)
    assert abs(found * factor - 1) < 0.03
    cured = dataclasses.replace(wrong, temperature=found)
    for p in (0.5, 0.9):
        assert abs(coverage(cured, truth, ~mask, p) - p) < 0.02  # voxels it was not fitted on
        low, high = cured.interval(p)
        assert abs(float(((low <= truth) & (truth <= high)).float().mean()) - p) < 0.02
    scores = [interval_score(dataclasses.replace(cured, temperature=found * f), truth, mask) for f in (0.6, 1, 1.6)]
    assert min(scores) == scores[1]


def test_the_floor_widens_where_samples_agree():
    one = Spread(torch.full((2, 2, 2), 10.0), torch.zeros(2, 2, 2), 8, temperature=2.0, floor=0.1)
    torch.testing.assert_close(one.sigma, torch.full((2, 2, 2), 2.0))
    low, high = one.interval(0.9)
    torch.testing.assert_close(high - 10, torch.full((2, 2, 2), 2 * 1.6448536), rtol=1e-6, atol=0)
    assert float(Spread(one.mean, 10 * one.mean, 8).interval(0.9)[0].min()) == 0  # no activity below zero


def test_spread_of_a_map(samples):
    whole = spread(samples)
    torch.testing.assert_close(whole.mean, samples.mean(0))
    torch.testing.assert_close(whole.std, samples.std(0))
    total = spread(samples, of=lambda image: image.sum((1, 2)))
    torch.testing.assert_close(total.std, samples.sum((2, 3)).std(0))
    assert total.n == 3


def test_bad_spreads_are_refused():
    ones = torch.ones(2, 2, 2)
    good = Spread(ones, ones, 2)
    for make, reason in (
        (lambda: spread([ones]), "2 samples or more"),
        (lambda: spread([]), "2 samples or more"),
        (lambda: spread([ones, ones * np.nan]), "finite"),
        (lambda: Spread(ones, ones, 2, temperature=0.0), "temperature must be"),
        (lambda: Spread(ones, ones, 2, floor=-0.1), "floor must be"),
        (lambda: good.interval(1.0), "level must be"),
        (lambda: coverage(good, torch.ones(3, 2, 2)), "truth must have"),
        (lambda: coverage(good, ones, ones * 0), "at least one voxel"),
        (lambda: fit_temperature([], [], []), "at least one study"),
        (lambda: fit_temperature([Spread(ones, 0 * ones, 2)], [2 * ones], [None]), "too many voxels"),
    ):
        with pytest.raises(InputError, match=reason):
            make()


def test_temperatures_run_smoothly_from_level_to_level():
    table = Calibration(((0.01, 3.0), (0.1, 2.0), (1.0, 1.0)), 0.05, 8, False, "")
    assert table.temperature(0.1) == pytest.approx(2) and table.temperature(10**-1.5) == pytest.approx(2.5)
    assert (table.temperature(1e-4), table.temperature(1.0)) == (3.0, 1.0)
    assert all(t > 0 for _, t in FITTED.temperatures) and FITTED.command == "python benchmarks/uncertainty.py"
    assert (Path(__file__).resolve().parents[1] / FITTED.command.split()[1]).is_file()


def test_shipped_temperatures_belong_to_the_shipped_walk():
    prior = pretrained(AnchoredWeights.prior)
    assert fingerprint(prior) == FITTED.walk, f"run `{FITTED.command}` and copy what it prints"
    assert fingerprint(prior, PaperWeights) != FITTED.walk


def test_a_fingerprint_is_of_network_and_settings(monkeypatch):
    net = torch.nn.Linear(2, 2)
    one = fingerprint(Prior(net, {}))
    assert one == fingerprint(Prior(net, {"other": "history"}))
    with torch.no_grad():
        net.weight.add_(1)
    other = fingerprint(Prior(net, {}))
    monkeypatch.setattr(AnchoredWeights, "for_level", classmethod(lambda cls, level, **changes: cls(anchor=0.5)))
    assert len({one, other, fingerprint(Prior(net, {}))}) == 3


def test_the_long_study_holds_what_is_claimed(root):
    "benchmarks/uncertainty.*, as last measured: what ships was fitted there; coverage and probe keep their promises."
    about = json.loads((root / "benchmarks" / "uncertainty.json").read_text(encoding="utf-8"))
    assert about["calibration"] == json.loads(json.dumps(dataclasses.asdict(FITTED)))
    assert not set(about["validation"]) & set(about["test"])
    with (root / "benchmarks" / "uncertainty.csv").open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["part"] == "test, calibrated"]
    assert {float(r["dose"]) for r in rows} >= {0.01, 0.05, 0.2} and min(int(r["patients"]) for r in rows) >= 6
    assert all(0.85 <= float(r["coverage_90"]) <= 0.95 for r in rows)
    probed = [r for r in about["probe"] if (r["setting"], r["defects"]) == ("counts 0.2", "all")]
    assert len(probed) == 4 and all(r["pairs"] >= 24 and r["auc"] >= 0.95 for r in probed)


def test_temperatures_of_another_walk_are_refused(study):
    for other in (
        {"denoise": halve},
        {"weights": AnchoredWeights.for_study(study, anchor=0.3)},
        {"weights": PaperWeights.for_study(study)},
        {"prior": "paper"},
    ):
        with pytest.raises(InputError, match="fitted for another prior, method or settings"):
            uncertainty_of(study, 2, workers=1, **other)


def test_fewer_views_are_warned_of(study, monkeypatch):
    few = keep_views(study, 3)
    monkeypatch.setattr("diffspect_nb.uncertainty.posterior_samples", lambda study, n, **o: torch.ones(n, 2, 2, 2))
    with pytest.warns(UserWarning, match="3 of 7"):
        found = uncertainty_of(few, 2)
    assert found.temperature == FITTED.temperature(few.count_level) and found.floor == FITTED.floor


# ---- the probe


@pytest.fixture(scope="module")
def scene(study, system):
    "An image without zeros, what it makes the scanner expect, and a region in its middle."
    image = mlem(study.measurement(), 20) + 0.05 * study.truth.max() * study.count_fraction
    region = torch.zeros(image.shape, dtype=torch.bool)
    region[7:9, 9:12, 9:12] = True
    return image, system.forward(image), region


def test_probe_is_a_difference_of_log_likelihoods(system, scene):
    image, expected, region = scene
    y = torch.poisson(expected, generator=torch.Generator().manual_seed(2))
    for r in (None, 0.5):
        measured = Measurement(system, y, r)
        for filled in (None, 0.0, 2 * image):
            found = probe_region(measured, image, region, filled)
            if filled is None:
                other = filled_from_around(image, region)
            else:
                other = torch.where(region, torch.as_tensor(filled, dtype=image.dtype), image)
            difference = measured.log_likelihood(image) - measured.log_likelihood(other)
            assert found.log_likelihood_ratio == pytest.approx(difference, rel=1e-3, abs=0.02)
            assert np.interp(1, found.amounts, found.curve) == pytest.approx(-difference, rel=0.02, abs=0.1)
            assert found.photons == pytest.approx(float((other - image).sum()), rel=1e-4)


@pytest.mark.parametrize("true_amount", [0.0, 0.4, 1.0])
def test_preferred_amount_is_unbiased_and_scatters_as_promised(system, scene, true_amount):
    image, _, region = scene
    other = torch.where(region, 0.2 * image, image)
    expected = system.forward(image + true_amount * (other - image))
    found = []
    for i in range(150):
        y = torch.poisson(expected, generator=torch.Generator().manual_seed(i))
        found.append(probe_region(Measurement(system, y), image, region, other))
    amounts, promised = np.array([p.amount for p in found]), np.mean([p.standard_error for p in found])
    assert abs(amounts.mean() - true_amount) < 4 * promised / np.sqrt(len(found))
    assert abs(amounts.std() / promised - 1) < 0.2


def test_a_polar_map_of_walks_that_differ_in_one_wall():
    "Walks of one heart whose inferior wall is 100, 80 or 60 % of the rest: mean and deviation there, none elsewhere."
    phantom = torso(np.random.default_rng(3), defects=[], sex="m")
    v = true_ventricle(phantom.meta["heart"])
    heart = torch.from_numpy(gaussian_filter(phantom.activity.numpy(), 1.3))
    away = torch.from_numpy((phantom.grid.centers_mm() - v.center_mm) @ v.anterior).reshape(heart.shape)
    walks = [torch.where(away < -15, share * heart, heart) for share in (1.0, 0.8, 0.6)]
    found, disc = polar_spread(walks, v, phantom.grid)
    assert found.n == 3 and disc.ventricle == v
    deviation, mean = ({r["name"]: r["mean"] for r in segment_table(disc, m.numpy())} for m in (found.std, found.mean))
    assert 14 < deviation["mid inferior"] < 21 and deviation["mid anterior"] < 1
    assert 0.75 < mean["mid inferior"] / mean["mid anterior"] < 0.9
    with pytest.raises(InputError, match="2 samples"):
        polar_spread(walks[:1], v, phantom.grid)


def test_verdicts(system, scene):
    image, expected, region = scene
    bright = 100 * image
    emptied = torch.where(region, 0 * bright, bright)
    cases = {
        "the counts support what the image shows": system.forward(bright),
        "the counts contradict what the image shows": system.forward(emptied),
        "the counts prefer something in between": system.forward((bright + emptied) / 2),
    }
    for verdict, y in cases.items():
        assert probe_region(Measurement(system, y), bright, region, emptied).verdict == verdict
    dim = 1e-4 * image
    faint = Measurement(system, system.forward(dim))
    assert probe_region(faint, dim, region, 0.0).verdict == "the counts cannot tell"


def test_a_count_where_nothing_is_expected_speaks_loudly(system, scene):
    _, _, region = scene
    only = region.float() * 1000
    y = torch.poisson(system.forward(only), generator=torch.Generator().manual_seed(0))
    found = probe_region(Measurement(system, y), only, region, 0.0)
    assert found.log_likelihood_ratio > 5 * float(y.sum()) and found.amount < 0.2


def test_surroundings_fill_hot_and_cold_regions():
    image = torch.full((9, 9, 9), 4.0)
    image[:, :, 6:] = 10.0
    region = torch.zeros(9, 9, 9, dtype=torch.bool)
    region[4, 4, 4] = True
    hot, cold = image.clone(), image.clone()
    hot[region], cold[region] = 50.0, 0.0
    assert float(filled_from_around(hot, region)[region]) == 4.0
    assert float(filled_from_around(cold, region)[region]) in (4.0, 10.0)
    assert torch.equal(filled_from_around(hot, region)[~region], hot[~region])
    with pytest.raises(InputError, match="no surroundings"):
        filled_from_around(image, torch.ones(9, 9, 9, dtype=torch.bool))


def test_bad_probes_are_refused(system, scene):
    image, expected, region = scene
    measured = Measurement(system, expected)
    for args, reason in (
        ((image[1:], region), "system's shape"),
        ((image, region[1:]), "system's shape"),
        ((image, region & ~region), "region is empty"),
        ((image, region, -1.0), "finite and >= 0"),
        ((image, region, float("nan")), "finite and >= 0"),
        ((image, region, image), "nothing to compare"),
    ):
        with pytest.raises(InputError, match=reason):
            probe_region(measured, *args)
    unseen = system.sensitivity == 0
    if unseen.any():
        with pytest.raises(InputError, match="no view sees"):
            probe_region(measured, image, unseen, 1.0)


def test_a_defects_shape_darkens_the_wall_alone():
    sick, healthy = (torso(np.random.default_rng(4), defects=n) for n in (1, 0))
    sharp, soft = (defect_shape(sick, healthy, blur) for blur in (0, 1.5))
    severity = sick.defects[0]["severity"]
    assert float(sharp.min()) == pytest.approx(1 - severity, abs=0.05) and float(sharp.max()) == pytest.approx(1)
    assert 1 - severity < float(soft.min()) < 1 - severity / 2 and float(soft.max()) == pytest.approx(1)
    assert float((soft < 0.99).float().mean()) < 0.02
    assert torch.equal(defect_shape(healthy, healthy), torch.ones(healthy.grid.shape))


@pytest.mark.slow
def test_probe_tells_real_from_invented_defects():
    "The short form of `benchmarks/uncertainty.py`: matched scanner, OSEM, 20 % of the counts; one of them is mild."
    rows = [row for seed in range(930_100, 930_104) for row in probe_pair(seed, mismatched=False)]
    assert len(rows) >= 3 and min(r["severity"] for r in rows) < 0.2
    for way in ("shape", "region"):
        real, invented = ([r[f"{kind}_{way}_llr"] for r in rows] for kind in ("real", "invented"))
        assert area_under_roc(real, invented).auc >= 0.95
    for r in rows:  # as shown is right for the real one, without it for the invented one
        assert abs(r["real_shape_amount"]) < 0.3 and abs(r["invented_shape_amount"] - 1) < 0.3


def test_plots_return_axes(samples, study, system, scene):
    image, expected, region = scene
    one = spread(samples)
    ax = plot_coverage({"raw": (one, study.truth, study.heart)})
    assert len(ax.lines) == 2 and ax.get_xlabel()
    support = measurement_support(study.measurement(), image)
    figure = show_slices({"image": image}, maps={"support": support.map, "± 90 %": one.map(float(image.max()))})
    assert len(figure.axes) == 3 * 4 and "deviance" in figure.axes[-2].get_ylabel()  # three planes a row, a scale each
    assert float(one.map(1.0).volume.max()) == pytest.approx(1.6449 * float(one.sigma.max()), rel=1e-4)
    measured = Measurement(system, expected)
    probes = {name: probe_region(measured, image, region, level) for name, level in (("a", None), ("b", 0.0))}
    ax = plot_probe(probes)
    assert len(ax.get_legend().get_texts()) == 2
