"Attenuation without CT: bridges against closed forms, floors against physics, measures against each other."

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from diffspect_nb.attenuation import AttenuationMap
from diffspect_nb.bridge import Bridge, between, bridge_batch, bridge_objective, bridge_step, bridge_walk, translated
from diffspect_nb.cohort import simulated_study
from diffspect_nb.core import WATER_PER_CM, ImageGrid, InputError
from diffspect_nb.fit import FitConfig, fit
from diffspect_nb.geometry import dnm570c, tiny_grid
from diffspect_nb.translation import GAIN, TOP, chang, corrected, in_range, mu_first, range_scores, uncorrected


def test_the_noise_between_the_ends_is_the_schedule_s():
    bridge, random = Bridge(200, 0.5), torch.Generator().manual_seed(1)
    for t in (0, 20, 100, 199):
        x = between(
            bridge, torch.full((50_000, 1), 0.3), torch.full((50_000, 1), -0.4), noise := _noise(50_000, random), t
        )
        m, delta = float(bridge.share[t]), float(bridge.variance[t])
        assert delta == pytest.approx(m * (1 - m)) and noise.shape == x.shape
        assert float(x.mean()) == pytest.approx(0.3 * (1 - m) - 0.4 * m, abs=0.01)
        assert float(x.var()) == pytest.approx(delta, rel=0.03)


def _noise(n: int, random: torch.Generator) -> Tensor:
    return torch.randn(n, 1, generator=random)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_keeps_the_marginal_of_the_lower_level(eta):
    "With the wanted image known, x_t' has mean and variance of its level, whatever η."
    bridge, random = Bridge(), torch.Generator().manual_seed(2)
    x0, y = torch.full((60_000, 1), 0.5), torch.full((60_000, 1), -0.5)
    x = between(bridge, x0, y, _noise(60_000, random), 700)
    lower = bridge_step(bridge, x, x0, y, (700, 450), _noise(60_000, random), eta)
    m = float(bridge.share[450])
    assert float(lower.mean()) == pytest.approx(0.5 * (1 - m) - 0.5 * m, abs=0.01)
    assert float(lower.var()) == pytest.approx(float(bridge.variance[450]), rel=0.03)


def test_walks_of_a_gaussian_end_with_its_mean_and_spread():
    "x₀ given y is normal: the best estimate is linear, and ancestral walks must return the distribution."
    bridge, mean, deviation = Bridge(), 0.25, 0.2
    y = torch.full((20_000, 1), -0.3)

    def best(x: Tensor, t: int) -> Tensor:
        m, delta = float(bridge.share[t]), float(bridge.variance[t])
        gain = (1 - m) * deviation**2 / ((1 - m) ** 2 * deviation**2 + delta)
        return mean + gain * (x - (1 - m) * mean - m * y)

    ends = {steps: list(bridge_walk(best, y, bridge, steps))[-1].x for steps in (10, 100, 1000)}
    for end in ends.values():
        assert float(end.mean()) == pytest.approx(mean, abs=4 * deviation / math.sqrt(20_000) + 2e-3)
    assert float(ends[1000].std()) == pytest.approx(deviation, rel=0.03)
    assert ends[10].std() < ends[100].std() < ends[1000].std()  # few steps narrow the answers
    repeated = [list(bridge_walk(best, y, bridge, 10, eta=0.0, seed=s))[-1].x0 for s in (0, 1)]
    assert torch.equal(*repeated)


class Linear(torch.nn.Module):
    "Names x_t − x₀ from x_t, the level and one channel beside."

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))

    def forward(self, x: Tensor, t: Tensor, beside: Tensor) -> Tensor:
        level = (t / 1000).reshape(-1, 1, 1, 1).expand_as(x)
        return self.layer(torch.stack([x, level, beside], dim=-1)).squeeze(-1)


def test_a_trained_bridge_looks_at_what_lies_beside():
    "The wanted value is the channel beside, not the given image: a network that ignores it cannot answer."
    bridge, net = Bridge(), Linear()

    def batches(step: int):
        drawn = torch.Generator().manual_seed(step)
        wanted = 2 * torch.rand(64, 1, 1, 1, generator=drawn) - 1
        return bridge_batch(wanted, torch.zeros_like(wanted), wanted, bridge, drawn)

    torch.manual_seed(0)
    for _ in fit({"net": net}, bridge_objective(bridge), batches, FitConfig(400, 5e-3)):
        pass
    wanted, zeros = torch.linspace(-0.8, 0.8, 40).reshape(-1, 1, 1, 1), torch.zeros(40, 1, 1, 1)
    told, untold = (list(translated(net, zeros, beside, steps=10, eta=0.0))[-1].x0 for beside in (wanted, zeros))
    assert (told - wanted).abs().mean() < 0.25 * (untold - wanted).abs().mean()


def test_bridges_refuse_what_they_cannot_do():
    with pytest.raises(InputError, match="n_levels must be at least 2"):
        Bridge(1)
    with pytest.raises(InputError, match="spread must be finite and > 0"):
        Bridge(spread=0.0)
    with pytest.raises(InputError, match="steps must be 1 … 1000, got 0"):
        next(bridge_walk(lambda x, t: x, torch.zeros(1, 1), steps=0))
    with pytest.raises(ValueError, match="levels must fall"):
        bridge_step(Bridge(), torch.zeros(1), torch.zeros(1), torch.zeros(1), (3, 3))


def test_chang_in_a_ball_has_a_closed_form():
    "From the middle of a ball every ray crosses one radius; half-way out the mean over the views is smaller."
    grid = ImageGrid((25, 25, 25), 8.0)
    inside = np.linalg.norm(grid.centers_mm(), axis=1).reshape(grid.shape) < 80
    ball = AttenuationMap(torch.from_numpy(inside * np.float32(WATER_PER_CM)), grid)
    found = chang(torch.ones(grid.shape), ball, dnm570c(), grid)
    assert float(found[12, 12, 12]) == pytest.approx(math.exp(8 * WATER_PER_CM), rel=0.05)
    assert float(found[12, 6, 18]) < float(found[12, 12, 12])
    nothing = AttenuationMap(torch.zeros(grid.shape), grid)
    torch.testing.assert_close(chang(torch.ones(grid.shape), nothing, dnm570c(), grid), torch.ones(grid.shape))


@pytest.fixture(scope="module")
def toy():
    return simulated_study(4, "tiny", tiny_grid())


def test_a_pair_is_made_of_the_same_counts(toy):
    asked = uncorrected(toy)
    assert asked.study.mu is None and torch.equal(asked.study.projections, toy.projections)
    wanted = corrected(toy, asked.scale)
    assert wanted.shape == asked.image.shape and float(wanted.sum()) > float(asked.image.sum() / GAIN)
    again = uncorrected(replace(toy, mu=0.5 * toy.mu))  # a translator must not be told the tissue
    torch.testing.assert_close(again.image, asked.image)
    torch.testing.assert_close(mu_first(lambda image: toy.mu)(asked), wanted)
    torch.testing.assert_close(mu_first(lambda image: 0 * image)(asked), asked.image / GAIN)


def test_measures_come_from_one_error():
    rng = np.random.default_rng(0)
    wanted = rng.uniform(0, TOP, (5, 16, 16))
    off = wanted + 0.1 * TOP * np.where(wanted < TOP / 2, 1, -1)  # u differs by 0.2 everywhere
    scores = range_scores(off, wanted)
    assert scores["rmse"] == pytest.approx(0.2) and scores["psnr_db"] == pytest.approx(20.0)
    assert range_scores(wanted, wanted) == {"rmse": 0.0, "psnr_db": math.inf, "ssim": 1.0}
    assert in_range(np.array([-1.0, 0.0, TOP, 9.0])).tolist() == [-1.0, -1.0, 1.0, 1.0]
    with pytest.raises(InputError, match="slices of one shape"):
        range_scores(wanted, wanted[:4])
    with pytest.raises(InputError, match="7 pixels wide at least"):
        range_scores(wanted[:, :5], wanted[:, :5])
