"MLEM, OSEM and anchored EM against dense linear algebra, a general optimiser and the theorems they rest on."

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from diffspect_nb.core import InputError, last
from diffspect_nb.geometry import tiny, tiny_grid
from diffspect_nb.mlem import anchored_em, mlem, mlem_steps, osem
from diffspect_nb.phantom import torso
from diffspect_nb.prior import early_and_late, intensity_scale
from diffspect_nb.study import keep_views, simulate, thin
from diffspect_nb.system import Measurement, SystemMatrix, poisson_deviance, poisson_log_likelihood


def random_problem(seed: int, bins=(3, 4, 5), voxels=(2, 3, 4)) -> tuple[SystemMatrix, torch.Tensor, np.ndarray]:
    "A dense little system in float64 with a voxel that nobody sees and a bin that sees nothing."
    rng = np.random.default_rng(seed)
    matrix = rng.random((np.prod(bins), np.prod(voxels))) * (rng.random((np.prod(bins), np.prod(voxels))) < 0.5)
    matrix[:, 7], matrix[11] = 0, 0
    system = SystemMatrix.from_matrix(matrix, voxels, bins)
    counts = rng.poisson(matrix @ (10 * rng.random(np.prod(voxels)))).reshape(bins)
    return system, torch.as_tensor(counts, dtype=torch.float64), matrix


@pytest.fixture(scope="module")
def patient():
    rng = np.random.default_rng(11)
    return simulate(torso(rng, tiny_grid()), tiny(), 1e6, rng)


@pytest.mark.parametrize("background", [0.0, 0.7])
def test_mlem_equals_ten_lines_of_dense_algebra(background):
    system, counts, matrix = random_problem(0)
    y, seen, s = counts.numpy().ravel(), matrix.sum(0) > 0, matrix.sum(0)
    x = np.where(seen, y.sum() / s.sum(), 0)
    for _ in range(30):
        expected = matrix @ x + background
        ratio = np.divide(y, expected, out=np.zeros_like(y), where=expected > 0)
        x = np.where(seen, x / np.where(seen, s, 1) * (matrix.T @ ratio), 0)
    got = mlem(Measurement(system, counts, background), 30)
    np.testing.assert_allclose(got.numpy().ravel(), x, rtol=1e-10, atol=1e-12)
    assert float(got.view(-1)[7]) == 0  # the voxel that nobody sees


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("background", [0.0, 0.5])
def test_the_likelihood_never_falls(seed, background):
    system, counts, _ = random_problem(seed)
    values = [s.scalars["log_likelihood"] for s in mlem_steps(Measurement(system, counts, background), 200)]
    assert all(b >= a - 1e-9 * abs(a) for a, b in zip(values, values[1:], strict=False))


def test_the_likelihood_never_falls_on_a_patient_with_attenuation(patient):
    system = patient.system().to(dtype=torch.float64)
    measurement = Measurement(system, patient.projections)
    steps = list(mlem_steps(measurement, 60))
    values = [s.scalars["log_likelihood"] for s in steps]
    assert all(b >= a - 1e-12 * abs(a) for a, b in zip(values, values[1:], strict=False))
    for step in (steps[0], steps[-1]):  # each update reproduces the measured total
        assert float(system.forward(step.image).sum()) == pytest.approx(patient.counts, rel=1e-6)
        expected = poisson_log_likelihood(patient.projections, system.forward(step.image))
        assert step.scalars["log_likelihood"] == pytest.approx(expected) == measurement.log_likelihood(step.image)


def test_osem_is_mlem_with_one_subset_and_faster_with_more(patient):
    measurement = patient.measurement()
    one = last(mlem_steps(measurement, 4, n_subsets=1))
    torch.testing.assert_close(osem(measurement, 4, n_subsets=1), one.image)
    three = last(mlem_steps(measurement, 4, n_subsets=3))
    assert three.scalars["log_likelihood"] > one.scalars["log_likelihood"]
    for n in (0, 8):
        with pytest.raises(InputError, match="number of subsets"):
            osem(measurement, 1, n_subsets=n)


def objective(v, matrix, y, v0, b, background=0.0):
    "−log-likelihood + b/2 ‖v − v⁰‖²."
    expected = matrix @ v + background
    likelihood = (np.where(y > 0, y * np.log(np.maximum(expected, 1e-300)), 0) - expected).sum()
    return b / 2 * ((v - v0) ** 2).sum() - likelihood


@pytest.mark.parametrize("b", [0.05, 1.0, 20.0])
def test_anchored_em_descends_to_the_minimum_that_an_optimiser_finds(b):
    system, counts, matrix = random_problem(3)
    y = counts.numpy().ravel()
    v0 = np.random.default_rng(1).random(24) * 8
    anchor = torch.as_tensor(v0).reshape(system.image_shape)
    path = [objective(v0, matrix, y, v0, b)]
    measurement = Measurement(system, counts)
    for n in range(1, 51):
        path.append(objective(anchored_em(measurement, anchor, b, n).numpy().ravel(), matrix, y, v0, b))
    assert all(after <= before + 1e-9 for before, after in zip(path, path[1:], strict=False))
    v = anchored_em(measurement, anchor, b, 10_000)
    gradient = lambda u: (
        matrix.sum(0) - matrix.T @ np.divide(y, matrix @ u, out=np.zeros_like(y), where=matrix @ u > 0) + b * (u - v0)
    )
    found = minimize(
        lambda u: objective(u, matrix, y, v0, b),
        v0 + 1,
        jac=gradient,
        bounds=[(1e-9, None)] * 24,
        options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10},
    )
    reached, best = objective(v.numpy().ravel(), matrix, y, v0, b), found.fun
    assert reached <= best + 1e-6 * abs(best)
    np.testing.assert_allclose(v.numpy().ravel(), found.x, atol=0.02)


def test_anchored_em_between_its_limits():
    system, counts, _ = random_problem(4)
    anchor = torch.rand(system.image_shape, dtype=torch.float64) + 0.5
    seen, measurement = system.sensitivity > 0, Measurement(system, counts)
    free = anchored_em(measurement, anchor, 0.0, 20)
    torch.testing.assert_close(free[seen], mlem(measurement, 20, start=anchor)[seen])
    torch.testing.assert_close(anchored_em(measurement, anchor, 1e-9, 20)[seen], free[seen], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(anchored_em(measurement, anchor, 1e9, 5), anchor, rtol=1e-6, atol=1e-6)
    assert (anchored_em(measurement, anchor, 0.3, 5) >= 0).all()


def test_deviance_is_zero_for_a_perfect_fit_and_about_one_per_bin_by_chance():
    expected = torch.full((50_000,), 20.0)
    assert float(poisson_deviance(expected, expected).max()) < 1e-12
    noisy = torch.poisson(expected, generator=torch.Generator().manual_seed(0))
    assert float(poisson_deviance(noisy, expected).mean()) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("fraction", [0.5, 0.2, 0.05])
def test_the_scale_does_not_drift_with_the_dose(patient, fraction):
    low = thin(patient, fraction, np.random.default_rng(2))
    full, reduced = (
        intensity_scale(early_and_late(s.measurement())[0] / s.count_fraction, s.grid, len(s.views))
        for s in (patient, low)
    )
    assert reduced == pytest.approx(full, rel=0.1)


def test_the_scale_is_an_inverse_intensity(patient):
    one, seven = (intensity_scale(patient.truth * factor, patient.grid) for factor in (1, 7))
    assert seven == pytest.approx(one / 7, rel=1e-5)
    with pytest.raises(InputError, match="nothing to scale by"):
        intensity_scale(patient.truth * 0, patient.grid)


def test_a_stack_is_reconstructed_as_one_by_one(patient):
    "Acquisitions of one system share the passes over its matrix and nothing else."
    system, low = patient.system(), thin(patient, 0.1, np.random.default_rng(3))
    stack = Measurement(system, torch.stack([patient.projections, low.projections]))
    noisy = Measurement(system, stack.counts, 0.5)
    for measured, n in ((stack, 1), (stack, 3), (noisy, 1)):
        together = osem(measured, 8, n_subsets=n)
        for i, image in enumerate(together):
            alone = osem(Measurement(system, measured.counts[i], measured.background[i]), 8, n_subsets=n)
            torch.testing.assert_close(image, alone, rtol=2e-4, atol=1e-3 * float(image.max()))
    anchors = torch.stack([patient.truth, patient.truth * 0.1])
    both = anchored_em(stack, anchors, 1e-6, 3)
    alone = anchored_em(low.measurement(), anchors[1], 1e-6, 3)
    torch.testing.assert_close(both[1], alone, rtol=2e-4, atol=1e-3 * float(both[1].max()))


def test_impossible_data_are_refused():
    system, counts, _ = random_problem(5)
    for wrong in (counts - 100, counts * float("nan"), counts[1:]):
        with pytest.raises(InputError, match="projections must"):
            Measurement(system, wrong)
    for wrong in (-1.0, float("nan"), counts[1:]):
        with pytest.raises(InputError, match="background must"):
            Measurement(system, counts, wrong)
    with pytest.raises(InputError, match="strength"):
        anchored_em(Measurement(system, counts), torch.ones(system.image_shape), -1.0)
    with pytest.raises(InputError, match="anchor must be"):
        anchored_em(Measurement(system, counts), torch.ones(2, 2, 2), 1.0)


@pytest.mark.parametrize("dead", [[1], [0, 2]])
def test_a_dead_view_of_its_own_subset_erases_nothing(patient, dead):
    "Three views, a subset each: the voxels are those that OSEM finds without the dead ones, and none is lost."
    few = keep_views(patient, 3)
    counts = few.projections.clone()
    counts[dead] = 0
    alive = [v for v in range(3) if v not in dead]
    image = osem(Measurement(few.system(), counts), 5)
    seen = few.system().sensitivity > 0
    assert (image == 0)[seen].float().mean() < 0.25
    only = few.system().keep_views(alive)
    start = torch.where(seen, counts.sum() / few.system().sensitivity.sum(), torch.zeros(()))
    steps = mlem_steps(Measurement(only, counts[alive]), 5, start, n_subsets=len(alive))
    expected = last(steps).image
    there = only.sensitivity > 0
    torch.testing.assert_close(image[there], expected[there])
    assert torch.equal(image[seen & ~there], start[seen & ~there])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
def test_nothing_that_is_no_image_or_background_is_believed(patient, wrong):
    system, y = patient.system(), patient.projections
    for start in (torch.full(system.image_shape, wrong), torch.ones(2, 3, 4)):
        with pytest.raises(InputError, match="start must be finite, >= 0"):
            mlem(Measurement(system, y), 2, start)
    with pytest.raises(InputError, match="background must be finite"):
        Measurement(system, y, wrong)
