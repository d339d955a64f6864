"Classical rivals: total variation against its own derivative, OSEM as a special case, oracles that pick the best."

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from diffspect_nb.baselines import best_filter, best_gaussian, best_stop, best_tv, mlem_tv_steps, stacked, tv_gradient
from diffspect_nb.core import InputError, last
from diffspect_nb.geometry import field_of_view, tiny, tiny_grid
from diffspect_nb.metrics import psnr, rmse
from diffspect_nb.mlem import mlem, mlem_steps, osem
from diffspect_nb.phantom import torso
from diffspect_nb.study import simulate, thin
from diffspect_nb.system import Measurement


@pytest.fixture(scope="module")
def studies():
    rng = np.random.default_rng(8)
    full = simulate(torso(rng, tiny_grid()), tiny(), 3e5, rng)
    return [full, thin(full, 0.1, rng)]


@pytest.fixture(scope="module")
def masks() -> dict:
    return {"field of view": torch.from_numpy(field_of_view(tiny(), tiny_grid()))}


def test_the_gradient_of_total_variation_is_its_derivative():
    random = torch.Generator().manual_seed(0)
    image = torch.rand(4, 5, 6, generator=random, dtype=torch.float64).requires_grad_()
    steps = [torch.diff(image, dim=axis, append=image.narrow(axis, image.shape[axis] - 1, 1)) for axis in range(3)]
    torch.sqrt(sum(s**2 for s in steps) + 0.1**2).sum().backward()
    assert torch.allclose(tv_gradient(image.detach(), 0.1), image.grad, atol=1e-12)
    assert torch.equal(tv_gradient(torch.ones(2, 4, 4, 4), 0.1), torch.zeros(2, 4, 4, 4))


def test_without_weight_it_is_osem_and_with_weight_it_is_smoother(studies):
    measurement = studies[1].measurement()
    plain, smooth = (last(mlem_tv_steps(measurement, w, 4, 4)).image for w in (0.0, 0.05))
    assert torch.allclose(plain, osem(measurement, 4, 4), rtol=1e-5)

    def roughness(image):
        return sum(float(torch.diff(image, dim=axis).abs().sum()) for axis in range(3)) / float(image.sum())

    assert roughness(smooth) < 0.8 * roughness(plain) and (smooth >= 0).all()
    stack = last(mlem_tv_steps(stacked([studies[1]] * 2), torch.tensor([0.0, 0.05]), 4, 4)).image
    assert torch.allclose(stack[0], plain, rtol=1e-4) and torch.allclose(stack[1], smooth, rtol=1e-4)


def test_it_models_the_background(studies):
    system, r = studies[0].system(), 3.0
    exact = Measurement(system, system.forward(studies[0].truth) + r, r)
    step = last(mlem_tv_steps(exact, 0.0, 3, 4))
    assert torch.allclose(step.image, osem(exact, 3, 4), rtol=1e-5)
    clean, unknown = (Measurement(system, y) for y in (exact.counts - r, exact.counts))
    totals = [float(last(mlem_tv_steps(m, 0.02, 6, 4)).image.sum()) for m in (clean, exact, unknown)]
    assert abs(totals[1] / totals[0] - 1) < 0.01 < totals[2] / totals[0] - 1  # modelled: not painted into the image


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_an_impossible_weight_is_refused(weight, studies):
    with pytest.raises(InputError, match="weight"):
        next(mlem_tv_steps(studies[0].measurement(), weight))


def test_a_stack_keeps_each_ones_background(studies):
    full, low = studies
    noted = replace(low, background=torch.full_like(low.projections, 0.5))
    stack = stacked([full, noted])
    assert torch.equal(stack.counts[1], low.projections)
    assert not stack.background[0].any() and (stack.background[1] == 0.5).all()
    one = mlem(stack, 4)
    assert torch.allclose(one[0], mlem(full.measurement(), 4), rtol=1e-4)
    assert torch.allclose(one[1], mlem(noted.measurement(), 4), rtol=1e-4)


def test_the_oracles_find_the_best_there_is(studies, masks):
    mask, stack = masks["field of view"], stacked(studies)
    stops, kept = best_stop(stack, studies, masks, n_iter=30, keep=10)
    for i, study in enumerate(studies):
        images = [step.image / study.count_fraction for step in mlem_steps(study.measurement(), 30)]
        errors = [float((image - study.truth)[mask].square().mean()) for image in images]
        chosen = stops[i, "field of view"]
        assert chosen.picked == f"iteration {1 + int(np.argmin(errors))}"
        assert float((chosen.image - study.truth)[mask].square().mean()) == pytest.approx(min(errors), rel=1e-3)
        assert torch.allclose(kept[i], mlem(study.measurement(), 10), rtol=1e-4)
    low = int(stops[1, "field of view"].picked.split()[1])
    assert low < int(stops[0, "field of view"].picked.split()[1])  # fewer counts: stop earlier
    filtered = best_filter(kept, studies, masks)[1, "field of view"]
    raw = rmse(kept[1] / studies[1].count_fraction, studies[1].truth, mask)
    assert rmse(filtered.image, studies[1].truth, mask) <= raw and filtered.picked.startswith("σ")
    tv = best_tv(stack, studies, masks, weights=(0.0, 0.02), stops=(3, 6))
    assert set(tv) == set(stops) and tv[0, "field of view"].picked.startswith("weight")


def test_an_oracle_needs_the_truth(studies, masks):
    blind = replace(studies[0], truth=None)
    with pytest.raises(InputError, match="truth"):
        best_stop(stacked([blind]), [blind], masks, 2, 1)


def test_best_gaussian_is_the_minimum_over_the_widths():
    rng = np.random.default_rng(3)
    reference = gaussian_filter(rng.random((16, 20, 18)), 1.0) * 40
    noisy = reference + rng.normal(0, 4, reference.shape)
    before, mask, sigmas = noisy.copy(), reference > np.median(reference), (0, 0.5, 1.0, 1.5, 2.5)
    filtered, sigma = best_gaussian(noisy, reference, mask, sigmas)
    trials = {s: psnr(gaussian_filter(noisy, s) if s else noisy, reference, mask) for s in sigmas}
    assert sigma == max(trials, key=trials.get) and 0 < sigma < 2.5
    assert filtered.dtype == torch.float32 and np.array_equal(noisy, before)
    np.testing.assert_allclose(filtered.numpy(), gaussian_filter(noisy, sigma), rtol=1e-6, atol=1e-5)
    assert float(filtered.sum()) == pytest.approx(noisy.sum(), rel=1e-5)
    assert best_gaussian(reference, reference, mask, sigmas)[1] == 0


@pytest.mark.parametrize("sigmas", [(), (-1,), (math.nan,)])
def test_bad_widths(sigmas):
    with pytest.raises(InputError, match="sigmas_voxels"):
        best_gaussian(torch.ones(8, 8, 8), torch.ones(8, 8, 8), None, sigmas)


@pytest.mark.parametrize("bad", [torch.ones(8, 8, 9), torch.full((8, 8, 8), math.nan)])
def test_what_cannot_be_compared_is_not_filtered(bad):
    with pytest.raises(InputError):
        best_gaussian(bad, torch.ones(8, 8, 8))
