"Classical rivals: total variation against its own derivative, OSEM as a special case, oracles that pick the best."

import numpy as np
import pytest
import torch

from diffspect_nb.baselines import best_filter, best_stop, best_tv, mlem_tv_steps, tv_gradient
from diffspect_nb.core import InputError, last
from diffspect_nb.geometry import field_of_view, tiny, tiny_grid
from diffspect_nb.mlem import mlem, mlem_steps, osem
from diffspect_nb.phantom import torso
from diffspect_nb.study import simulate, thin
from diffspect_nb.system import SystemMatrix


@pytest.fixture(scope="module")
def system() -> SystemMatrix:
    return SystemMatrix.build(tiny(), tiny_grid(), cache=False)


@pytest.fixture(scope="module")
def studies():
    rng = np.random.default_rng(8)
    phantom = torso(rng, tiny_grid())
    full = simulate(phantom, tiny(), 3e5, rng, SystemMatrix.build(tiny(), tiny_grid(), cache=False))
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


def test_without_weight_it_is_osem_and_with_weight_it_is_smoother(system, studies):
    y = studies[1].projections
    plain, smooth = (last(mlem_tv_steps(system, y, w, 4, 4)).image for w in (0.0, 0.05))
    assert torch.allclose(plain, osem(system, y, 4, 4), rtol=1e-5)

    def roughness(image):
        return sum(float(torch.diff(image, dim=axis).abs().sum()) for axis in range(3)) / float(image.sum())

    assert roughness(smooth) < 0.8 * roughness(plain) and (smooth >= 0).all()
    stack = last(mlem_tv_steps(system, torch.stack([y, y]), torch.tensor([0.0, 0.05]), 4, 4)).image
    assert torch.allclose(stack[0], plain, rtol=1e-4) and torch.allclose(stack[1], smooth, rtol=1e-4)


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_an_impossible_weight_is_refused(weight, system, studies):
    with pytest.raises(InputError, match="weight"):
        next(mlem_tv_steps(system, studies[0].projections, weight))


def test_the_oracles_find_the_best_there_is(system, studies, masks):
    mask = masks["field of view"]
    stops, kept = best_stop(system, studies, masks, n_iter=30, keep=10)
    for i, study in enumerate(studies):
        errors = [
            float((s.image / study.count_fraction - study.truth)[mask].square().mean())
            for s in mlem_steps(system, study.projections, 30)
        ]
        chosen = stops[i, "field of view"]
        assert chosen.picked == f"iteration {1 + int(np.argmin(errors))}"
        assert float((chosen.image - study.truth)[mask].square().mean()) == pytest.approx(min(errors), rel=1e-3)
        assert torch.allclose(kept[i], mlem(system, study.projections, 10), rtol=1e-4)
    low = int(stops[1, "field of view"].picked.split()[1])
    assert low < int(stops[0, "field of view"].picked.split()[1])  # fewer counts: stop earlier
    filtered = best_filter(kept, studies, masks)[1, "field of view"]
    raw = float((kept[1] / studies[1].count_fraction - studies[1].truth)[mask].square().mean())
    assert float((filtered.image - studies[1].truth)[mask].square().mean()) <= raw and filtered.picked.startswith("σ")
    tv = best_tv(system, studies, masks, weights=(0.0, 0.02), stops=(3, 6))
    assert set(tv) == set(stops) and tv[0, "field of view"].picked.startswith("weight")
