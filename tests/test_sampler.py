"The sampler with denoisers we know: counted, Gaussian, blurring. No network is needed here."

import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from diffspect_nb.core import InputError, last
from diffspect_nb.diffusion import cosine_schedule, ddim_step, timesteps
from diffspect_nb.geometry import tiny, tiny_grid
from diffspect_nb.mlem import mlem
from diffspect_nb.phantom import torso
from diffspect_nb.reconstruction import measurement_support, reconstruct, reconstruction_steps
from diffspect_nb.sampler import (
    FLOOR, Guidance, anchor_to_counts, default_guidance, fitted_lambda_dps, insert_mlem, paper_guidance, sample,
    tv_along_z,
)
from diffspect_nb.study import simulate, thin
from diffspect_nb.system import SystemMatrix

SCHEDULE = cosine_schedule()


class Counted:
    "A denoiser that shrinks, and counts its calls."

    def __init__(self):
        self.calls = 0

    def __call__(self, x, t):
        self.calls += 1
        return 0.5 * x / (1 + float(SCHEDULE.sigma(t)))


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(21)
    return thin(simulate(torso(rng, tiny_grid()), tiny(), 1e6, rng), 0.1, rng)


@pytest.fixture(scope="module")
def system(study) -> SystemMatrix:
    return study.system()


def run(study, system, guidance, denoise=None, y=None):
    y = study.projections if y is None else y
    x_in = mlem(system, study.projections, 10)
    return last(sample(denoise or Counted(), system, y, x_in, 1 / float(x_in.max()), guidance)).image


DDIM = Guidance(solver="ddim", samples=1, end=0)
EVERYTHING = dataclasses.replace(
    DDIM, lambda_mlem=0.2, tv_weight=0.01, lambda_dps=0.1, dps_jacobian="network", eta=0.5
)
RAW = dataclasses.replace(EVERYTHING, dps_jacobian="raw")


@pytest.mark.parametrize("guidance", [DDIM, EVERYTHING, RAW])
@pytest.mark.parametrize("steps", [1, 7])
def test_one_network_evaluation_per_step(study, system, guidance, steps):
    for two_starts in (False, True):
        denoise = Counted()
        run(study, system, dataclasses.replace(guidance, steps=steps, two_starts=two_starts), denoise)
        assert denoise.calls == steps + two_starts  # the second start is one more first step


@pytest.mark.parametrize("solver", ["dpm2", "renoise"])
def test_other_solvers_count_their_evaluations_too(study, system, solver):
    for first, samples in ((None, 1), (None, 3), (1, 3)) if solver == "renoise" else ((None, 1),):
        denoise = Counted()
        run(study, system, Guidance(solver=solver, steps=4, samples=samples, first_samples=first), denoise)
        assert denoise.calls == (first or samples) + 3 * samples


def test_fresh_noise_converges_to_the_priors_mean_as_the_closed_form_says(system):
    "Activity ~ N(m, τ²): one step moves the mean by the denoiser's gain k, whatever the noise."
    shape, mean, deviation, start = system.image_shape, 2.0, 0.5, 3.0

    def gain(t):
        a2 = float(SCHEDULE.alpha_bar(t))
        return a2 * deviation**2 / (a2 * deviation**2 + 1 - a2)

    def denoise(x, t):
        return mean + gain(t) * (x / float(SCHEDULE.sqrt_alpha_bar(t)) - mean)

    guidance = Guidance(solver="renoise", steps=4, start=400, end=40, anchor=0, final_updates=0)
    spreads = []
    for samples in (1, 4):
        chosen = dataclasses.replace(guidance, samples=samples)
        x_in, counts = torch.full(shape, start), torch.zeros(system.proj_shape)
        image = last(sample(denoise, system, counts, x_in, 1.0, chosen)).image
        wanted = mean + np.prod([gain(t) for t in (400, 280, 160, 40)]) * (start - mean)
        assert float(image.mean()) == pytest.approx(wanted, abs=0.02)
        spreads.append(float(image.std()))
    assert spreads[1] == pytest.approx(spreads[0] / 2, rel=0.1)  # four fields: half the noise


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_known_gaussian_prior_is_sampled_with_its_mean_and_variance(system, eta):
    "Activity ~ N(m, τ²) per voxel, m varying: its exact denoiser for a network, no guidance, from pure noise."
    shape = system.image_shape
    mean = 2 + torch.linspace(0, 1, shape[0]).reshape(-1, 1, 1).expand(shape)
    deviation = 0.3

    def denoise(x, t):
        a, s2 = float(SCHEDULE.sqrt_alpha_bar(t)), 1 - float(SCHEDULE.alpha_bar(t))
        return mean + a * deviation**2 / (a**2 * deviation**2 + s2) * (x - a * mean)

    free = Guidance(solver="ddim", samples=1, end=0, steps=250, start=None, anchor=0, final_updates=0, eta=eta, seed=3)
    counts = torch.zeros(system.proj_shape)
    drawn = last(sample(denoise, system, counts, torch.zeros(shape), 1.0, free)).image - mean
    assert float(drawn.mean()) == pytest.approx(0, abs=5 * deviation / drawn.numel() ** 0.5 + 0.01)
    assert float(drawn.std()) == pytest.approx(deviation, rel=0.05)


def test_without_weights_it_is_the_unguided_walk_bit_for_bit(study, system):
    off = Guidance(solver="ddim", samples=1, end=0, anchor=0, final_updates=0, steps=6, shared_noise=True)
    got = run(study, system, off)
    denoise, x_in = Counted(), mlem(system, study.projections, 10)
    scale = 1 / float(x_in.max())
    noise = torch.randn((1, *x_in.shape[1:]), generator=torch.Generator().manual_seed(0)).expand(x_in.shape)
    levels = timesteps(6, off.start, SCHEDULE)
    x = SCHEDULE.sqrt_alpha_bar(levels[0], x_in) * (x_in * scale) + SCHEDULE.sigma(levels[0], x_in) * noise
    for t, t_next in zip(levels, [*levels[1:], -1], strict=True):
        x = ddim_step(x, denoise(x, t), None, t, t_next, SCHEDULE)
    assert torch.equal(got, x.clamp_min(0) / scale)
    assert torch.equal(got, run(study, system, off, y=study.projections * 3))  # the counts have no say
    assert not torch.equal(got, run(study, system, dataclasses.replace(off, anchor=0.1)))


def test_the_seed_decides_and_zero_is_a_seed(study, system):
    for guidance in (Guidance(steps=4), Guidance(solver="ddim", samples=1, end=0, steps=4, eta=1.0)):
        images = [run(study, system, dataclasses.replace(guidance, seed=s)) for s in (0, 0, 1)]
        assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_the_counts_have_the_last_word(study, system):
    before, after = (run(study, system, Guidance(steps=2, final_updates=n)) for n in (0, 2))
    torch.testing.assert_close(after, mlem(system, study.projections, 2, start=before))


def test_closing_the_iterator_stops_the_work(study, system):
    denoise, x_in = Counted(), mlem(system, study.projections, 10)
    steps = sample(denoise, system, study.projections, x_in, 1.0, Guidance(steps=10))
    for step in steps:
        assert torch.is_grad_enabled()  # a paused walk leaves its caller's gradients alone
        if step.index == 3:
            break
    steps.close()
    assert denoise.calls == 3 * Guidance().samples


def test_total_variation_step_is_the_minimiser():
    "Against L-BFGS on the dual problem: min ½‖D'z‖² − z·Dx over |z| ≤ λ, u = x − D'z."
    x = np.random.default_rng(0).normal(size=(12, 3)).cumsum(0)
    d = np.diff(np.eye(12), axis=0)
    for weight in (0.05, 0.7):
        got = tv_along_z(torch.as_tensor(x).reshape(12, 3, 1), weight, 4000).numpy()[..., 0]
        for column in range(3):
            dual = minimize(
                lambda z, c=column: (0.5 * ((d.T @ z) ** 2).sum() - z @ (d @ x[:, c]), d @ (d.T @ z) - d @ x[:, c]),
                np.zeros(11), jac=True, bounds=[(-weight, weight)] * 11, options={"ftol": 1e-15, "gtol": 1e-10},
            )
            np.testing.assert_allclose(got[:, column], x[:, column] - d.T @ dual.x, atol=1e-4)


def test_insertion_is_the_formula(study, system):
    x0 = torch.rand(system.image_shape) - 0.1
    scale, guidance = 0.02, Guidance(lambda_mlem=0.3, mlem_updates=2)
    photons = x0.clamp_min(FLOOR) / scale
    for _ in range(2):
        expected = system.forward(photons)
        ratio = torch.where(expected > 0, study.projections / expected, 0)
        photons = torch.where(system.sensitivity > 0, photons * system.adjoint(ratio) / system.sensitivity, 0)
    wanted = 0.7 * x0 + 0.3 * scale * photons
    got = insert_mlem(x0, system, study.projections, scale, guidance)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_the_anchor_is_one_knob_at_every_dose(study, system):
    "Counts and image scaled together (ten times the dose, the same noise) give the same image in the network's scale."
    x0 = torch.rand(system.image_shape)
    one = anchor_to_counts(x0, system, study.projections, 0.02, Guidance())
    ten = anchor_to_counts(x0, system, study.projections * 10, 0.002, Guidance())
    torch.testing.assert_close(one, ten, rtol=1e-3, atol=1e-4)


def test_image_consistency_pulls_towards_x_in(study, system):
    x_in = mlem(system, study.projections, 10)
    for solver in ("ddim", "renoise"):
        distances = []
        for weight in (0.0, 0.2, 0.6):
            guidance = Guidance(solver=solver, anchor=0, final_updates=0, lambda_dps=weight, steps=10, samples=1)
            distances.append(float((run(study, system, guidance) - x_in).norm()))
        assert distances[0] > distances[1] > distances[2]


def test_the_learned_variance_is_used(study, system):
    class WithVariance(Counted):
        v = 0.0

        def with_variance(self, x, t):
            return self(x, t), torch.full_like(x, self.v)

    quiet, loud = WithVariance(), WithVariance()
    loud.v = 1.0
    guidance = Guidance(solver="ddim", samples=1, end=0, steps=5, eta=1.0, anchor=0, final_updates=0)
    assert not torch.equal(run(study, system, guidance, quiet), run(study, system, guidance, loud))
    assert quiet.calls == loud.calls == 5


def test_support_tells_truth_from_fiction(study, system):
    truth = study.truth * study.count_fraction
    right = measurement_support(system, study.projections, truth)
    wrong = measurement_support(system, study.projections, truth.flip(0))
    assert right.reduced == pytest.approx(1, abs=0.1) and wrong.reduced > 1.5
    assert right.deviance.shape == system.proj_shape and right.image.shape == system.image_shape
    assert measurement_support(system, study.projections, truth * 0).reduced > 100


def test_reconstruct_returns_what_its_steps_end_with(study):
    guidance = Guidance(steps=3, iterations=12, subsets=1)
    done = reconstruct(study, guidance, Counted())
    steps = list(reconstruction_steps(study, guidance, Counted()))
    assert [s.index for s in steps] == list(range(1, 16)) and steps[-1].total == 15
    assert torch.equal(steps[-1].image, done.image) and torch.equal(steps[11].image, done.x_in)
    assert done.guidance == guidance and done.scale > 0 and done.provenance["versions"]["torch"] == torch.__version__


def test_fewer_counts_start_earlier_and_hold_the_prior_tighter(study):
    levels = [default_guidance(c) for c in (0.001, 0.01, 0.05, 0.2, 1.0, 1.2)]
    assert all(a.start >= b.start and a.anchor >= b.anchor for a, b in zip(levels, levels[1:], strict=False))
    assert default_guidance(0.2, 0.2).start > default_guidance(0.2).start  # few views: an earlier start
    assert default_guidance(1.0, steps=500).steps == 500 and default_guidance(0.5, solver="ddim", eta=1.0).samples == 1
    plenty, few = default_guidance(1.0), default_guidance(0.2)
    assert plenty.final_updates > default_guidance(0.5).final_updates > few.final_updates == 1
    assert plenty.anchor_subsets > few.anchor_subsets and plenty.first_samples == 1
    assert default_guidance(1.0, 0.2).final_updates == 1  # a fifth of the views is a fifth of what is known
    assert reconstruct(study, denoise=Counted()).guidance == default_guidance(study.count_level)


def test_papers_guidance_and_json_round_trip():
    paper = paper_guidance(0.05)
    assert (paper.steps, paper.start, paper.anchor, paper.two_starts) == (25, None, 0.0, True)
    assert paper.lambda_dps == pytest.approx(0.0698 * np.log(0.05) + 0.3454) == fitted_lambda_dps(0.05)
    assert Guidance.from_json(paper.to_json()) == paper
    with pytest.raises(InputError, match="unknown fields"):
        Guidance.from_json({"lambda": 1})


WRONG = {"steps": 0, "anchor": -1, "lambda_mlem": 1.5, "tv_weight": float("nan"), "eta": 2, "seed": -1, "start": 3}
WRONG |= {"subsets": 13}


@pytest.mark.parametrize("name", WRONG)
def test_impossible_choices_name_the_argument(name):
    with pytest.raises(InputError, match=name):
        Guidance(**{name: WRONG[name]})


@pytest.mark.parametrize(
    "solver, wrong",
    [
        ("renoise", {"eta": 0.5}),
        ("dpm2", {"two_starts": True}),
        ("ddim", {"samples": 2}),
        ("ddim", {"first_samples": 1}),
        ("renoise", {"dps_jacobian": "network"}),
        ("dpm2", {"eta": 1.0}),
    ],
)
def test_choices_of_another_solver_are_refused(solver, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Guidance(solver=solver, **({"samples": 1, "end": 0} | wrong))


def test_shapes_and_scales_that_do_not_fit_are_refused(study, system):
    wrong = [(torch.zeros(2, 2, 2), 1.0, "x_in"), (study.truth, 0.0, "scale"), (study.truth, np.nan, "scale")]
    for x_in, scale, rule in wrong:
        with pytest.raises(InputError, match=rule):
            next(sample(Counted(), system, study.projections, x_in, scale, Guidance()))
