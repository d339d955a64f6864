"Schedules, steps and the loss against diffusers, closed forms and gradients."

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffspect_nb.diffusion import (
    SCHEDULES,
    add_noise,
    cosine_schedule,
    ddim_step,
    hybrid_loss,
    linear_schedule,
    posterior_mean,
    predict_eps,
    predict_x0,
    regional_error,
    timesteps,
    velocity,
    x0_from_output,
)

PAIRS = {
    "cosine": (cosine_schedule(), {"beta_schedule": "squaredcos_cap_v2"}),
    "linear": (linear_schedule(), {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
}


def image(seed: int, shape=(3, 1, 6, 5)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", PAIRS)
def test_schedules_equal_those_of_diffusers(name):
    ours, options = PAIRS[name]
    theirs = DDPMScheduler(num_train_timesteps=1000, **options)
    torch.testing.assert_close(ours.betas.float(), theirs.betas, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(ours.alphas_bar.float(), theirs.alphas_cumprod, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_a_strided_step_equals_that_of_diffusers(name, eta):
    ours, options = PAIRS[name]
    theirs = DDIMScheduler(1000, clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading", **options)
    theirs.alphas_cumprod = ours.alphas_bar
    theirs.set_timesteps(25)
    x, eps, noise = image(1), image(2), image(3)
    for t in (960, 480, 40):
        wanted = theirs.step(eps, t, x, eta=eta, variance_noise=noise).prev_sample
        got = ddim_step(x, None, eps, (t, t - 40), ours, eta, noise)
        torch.testing.assert_close(got, wanted.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_one_jump_is_many_steps(name):
    "Mean and variance of x_t from the chain x_s = √(1−β_s) x_{s−1} + √β_s ε are those of the closed form."
    schedule, _ = PAIRS[name]
    mean, variance = 1.0, 0.0
    for t, beta in enumerate(schedule.betas.tolist()):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        if t in (0, 10, 500, 900):
            assert mean == pytest.approx(float(schedule.sqrt_alpha_bar(t)), rel=1e-9)
            assert math.sqrt(variance) == pytest.approx(float(schedule.sigma(t)), rel=1e-9)


def test_noise_and_image_are_recovered_exactly():
    schedule, x0, noise, t = cosine_schedule(), image(0), image(1), torch.tensor([3, 400, 980])
    x_t = add_noise(x0, noise, t, schedule)
    torch.testing.assert_close(predict_x0(x_t, noise, t, schedule), x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(predict_eps(x_t, x0, t, schedule), noise, rtol=1e-9, atol=1e-9)
    without_root = (x_t - schedule.sigma(t, x_t) * noise) / schedule.alpha_bar(t, x_t)  # the paper's misprint
    assert float((without_root - x0).norm() / x0.norm()) > 1


def test_the_posterior_mean_is_equation_4():
    schedule, x0, x_t = linear_schedule(), image(0), image(1)
    for t in (1, 300, 999):
        beta, now, before = (float(v) for v in (schedule.betas[t], schedule.alphas_bar[t], schedule.alphas_bar[t - 1]))
        wanted = (math.sqrt(1 - beta) * (1 - before) * x_t + math.sqrt(before) * beta * x0) / (1 - now)
        torch.testing.assert_close(posterior_mean(x_t, x0, t, schedule), wanted)
    torch.testing.assert_close(posterior_mean(x_t, x0, 0, schedule), x0)


def test_the_last_step_is_the_clean_estimate_and_the_learned_variance_interpolates():
    schedule, x, x0 = cosine_schedule(), image(0), image(1)
    assert torch.equal(ddim_step(x, x0, None, (40, -1), schedule), x0)
    noise, levels = image(2), (500, 460)

    def deviation(v: float | None) -> torch.Tensor:
        fraction = None if v is None else torch.full_like(x, v)
        random, quiet = (ddim_step(x, x0, None, levels, schedule, 1.0, n, fraction) for n in (noise, 0 * noise))
        return (random - quiet) / noise

    low, middle, high = (deviation(v) for v in (0.0, 0.5, 1.0))
    torch.testing.assert_close(low, deviation(None))  # v = 0 is the variance of a known clean image
    torch.testing.assert_close(middle**2, low * high)
    assert (high > low).all()


def test_velocity_gives_the_clean_image_back():
    schedule, x0, noise, t = cosine_schedule(), image(1), image(2), torch.tensor([0, 400, 999])
    x_t = add_noise(x0, noise, t, schedule)
    torch.testing.assert_close(x0_from_output(velocity(x0, noise, t, schedule), x_t, t, schedule, "v"), x0)
    torch.testing.assert_close(x0_from_output(noise[:2], x_t[:2], t[:2], schedule), x0[:2])
    with pytest.raises(ValueError, match="predict"):
        x0_from_output(noise, x_t, t, schedule, "x0")


def walk_through_a_gaussian(n_steps: int, mean=2.0, deviation=0.3) -> float:
    "Relative error of a deterministic walk whose exact end is known: every variance is carried along."
    schedule, levels = cosine_schedule(), timesteps(n_steps, 900)

    def spread(t):
        return float((schedule.alpha_bar(t) * deviation**2 + 1 - schedule.alpha_bar(t)).sqrt())

    x = start = image(3)
    for t, t_next in zip(levels[:-1], levels[1:], strict=True):
        a, s2 = float(schedule.sqrt_alpha_bar(t)), 1 - float(schedule.alpha_bar(t))
        x0 = mean + a * deviation**2 / (a**2 * deviation**2 + s2) * (x - a * mean)
        x = ddim_step(x, x0, None, (t, t_next), schedule)
    first, end = (float(schedule.sqrt_alpha_bar(t)) for t in (levels[0], levels[-1]))
    exact = end * mean + spread(levels[-1]) / spread(levels[0]) * (start - first * mean)
    return float((x - exact).norm() / (exact - end * mean).norm())


def test_a_deterministic_walk_is_of_first_order():
    "Twice the steps, half the error."
    few, twice, many = (walk_through_a_gaussian(n) for n in (40, 80, 160))
    assert 1.6 < few / twice < 2.4 and 1.8 < twice / many < 2.2 and many < 0.05


def test_timesteps_descend_evenly_to_zero():
    assert timesteps(25, None, cosine_schedule())[:2] == [999, 957] and timesteps(25, None, cosine_schedule())[-1] == 0
    assert timesteps(5, 400) == [400, 300, 200, 100, 0] and timesteps(1, 400) == [400]
    for wrong in ({"n_steps": 0, "t_start": 9}, {"n_steps": 11, "t_start": 9}, {"n_steps": 2}):
        with pytest.raises(ValueError):
            timesteps(**wrong)


def output(eps: torch.Tensor, raw: float) -> torch.Tensor:
    return torch.cat([eps, torch.full_like(eps, raw)], dim=1)


def test_a_perfect_model_has_no_loss():
    "ε exact and v = 0 (raw −1, the true posterior's variance): both parts vanish for t > 0."
    schedule, x0, noise, t = cosine_schedule(), image(0), image(1), torch.tensor([1, 300, 999])
    _, parts = hybrid_loss(output(noise, -1.0), x0, noise, t, schedule)
    assert float(parts["simple"]) == 0 and abs(float(parts["vlb"])) < 1e-9
    _, worse = hybrid_loss(output(noise + 0.1, 0.3), x0, noise, t, schedule)
    assert float(worse["simple"]) == pytest.approx(0.01) and float(worse["vlb"]) > 0
    exact = velocity(x0, noise, t, schedule)
    _, by_velocity = hybrid_loss(output(exact, -1.0), x0, noise, t, schedule, predict="v")
    assert float(by_velocity["simple"]) == 0 and abs(float(by_velocity["vlb"])) < 1e-9


def test_the_bound_is_that_of_torchs_distributions():
    "Kullback–Leibler divergences of the steps, and −log p(x0 | x1) at t = 0, in bits, T times their mean."
    schedule, x0, noise, t = cosine_schedule(), image(0), image(1), torch.tensor([0, 300, 999])
    x_t = add_noise(x0, noise, t, schedule)
    guess, raw = noise + 0.1, 0.4
    _, parts = hybrid_loss(output(guess, raw), x0, noise, t, schedule)
    v, terms = (raw + 1) / 2, []
    for i, level in enumerate(t.tolist()):
        log_true, log_beta = schedule.log_posterior_variance[level], schedule.betas[level].log()
        spread = (0.5 * (v * log_beta + (1 - v) * log_true)).exp()
        estimate = predict_x0(x_t[i], guess[i], level, schedule)
        means = [posterior_mean(x_t[i], clean, level, schedule) for clean in (x0[i], estimate)]
        pairs = zip(means, ((0.5 * log_true).exp(), spread), strict=True)
        true, model = (torch.distributions.Normal(m, s) for m, s in pairs)
        wanted = -model.log_prob(x0[i]) if level == 0 else torch.distributions.kl_divergence(true, model)
        terms.append(wanted.mean())
    assert float(parts["vlb"]) == pytest.approx(float(sum(terms)) / 3 * 1000 / math.log(2), rel=1e-9)


def test_weights_decide_what_counts():
    schedule, x0, noise, t = cosine_schedule(), image(0), image(1), torch.tensor([5, 300, 900])
    wrong = noise.clone()
    wrong[..., 0] += 1
    weight = torch.ones_like(x0)
    weight[..., 0] = 0
    _, blind = hybrid_loss(output(wrong, 0.0), x0, noise, t, schedule, weight=weight)
    _, seeing = hybrid_loss(output(wrong, 0.0), x0, noise, t, schedule)
    assert float(blind["simple"]) == 0 and float(seeing["simple"]) == pytest.approx(1 / 5)


@pytest.mark.parametrize("shape", [(2, 1, 12, 30, 30), (2, 1, 90, 90)])
def test_a_region_s_shared_error_weighs_more_than_noise(shape):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    white, shared = float(regional_error(noise)), float(regional_error(torch.full(shape, 0.1)))
    assert white == pytest.approx(1, abs=0.1)  # as its own mean square
    assert shared == pytest.approx(0.01 * 3 ** (len(shape) - 2), rel=1e-5)


def test_the_variance_term_teaches_the_variance_alone():
    schedule, x0, noise, t = cosine_schedule(), image(0), image(1), torch.tensor([5, 300, 900])
    gradients = []
    for weight in (0.0, 1.0):
        model = output(noise + 0.2, 0.1).requires_grad_()
        hybrid_loss(model, x0, noise, t, schedule, weight)[0].backward()
        gradients.append(model.grad)
    without, with_vlb = gradients
    assert torch.equal(without[:, 0], with_vlb[:, 0]) and float(without[:, 1].abs().max()) == 0
    assert float(with_vlb[:, 1].abs().max()) > 0


def test_schedules_have_names():
    assert {name: make().name for name, make in SCHEDULES.items()} == {name: name for name in ("cosine", "linear")}


def test_impossible_arguments_are_refused():
    schedule, x = cosine_schedule(), image(0)
    with pytest.raises(ValueError, match="t must be integers"):
        add_noise(x, x, 1000, schedule)
    with pytest.raises(ValueError, match="t_prev must be"):
        ddim_step(x, x, None, (5, 5), schedule)
    with pytest.raises(ValueError, match="eta must be"):
        ddim_step(x, x, None, (5, 4), schedule, eta=2)
    with pytest.raises(ValueError, match="noise must be given"):
        ddim_step(x, x, None, (50, 40), schedule, eta=1)
    with pytest.raises(ValueError, match="x0 or eps must be given"):
        ddim_step(x, None, None, (50, 40), schedule)
    for output_shape, noise in (((3, 1, 6, 5), x), ((3, 2, 6, 5), x[:2]), ((3, 2, 6, 4), x)):
        with pytest.raises(ValueError, match="model_output must be"):
            hybrid_loss(torch.zeros(output_shape), x, noise, torch.tensor([1, 1, 1]), schedule)
