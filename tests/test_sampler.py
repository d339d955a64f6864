"The two walks with denoisers we know: counted, Gaussian, blurring. No network is needed here."

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
    FLOOR,
    AnchoredWeights,
    PaperWeights,
    anchor_to_counts,
    anchored_walk,
    fitted_lambda_dps,
    fitted_lambda_mlem,
    insert_mlem,
    paper_walk,
    settings_of,
    tv_along_z,
    weights_from_json,
)
from diffspect_nb.study import simulate, thin
from diffspect_nb.system import Measurement

SCHEDULE = cosine_schedule()
OFF = {"lambda_dps": 0.0, "lambda_mlem": 0.0, "tv_weight": 0.0}
FREE = {"anchor": 0.0, "final_updates": 0}


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
def measurement(study) -> Measurement:
    return study.measurement()


@pytest.fixture(scope="module")
def x_in(measurement) -> torch.Tensor:
    return mlem(measurement, 10)


def walk(measurement, x_in, weights, denoise=None):
    steps = paper_walk if isinstance(weights, PaperWeights) else anchored_walk
    return last(steps(denoise or Counted(), measurement, x_in, 1 / float(x_in.max()), weights)).image


# ---- how often the network is asked


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("changes", [OFF, {}, {"ancestral": 1}, {"jacobian": "identity", "mlem_interval": 3}])
def test_the_papers_walk_asks_once_per_step_and_once_more(measurement, x_in, steps, changes):
    denoise = Counted()
    walk(measurement, x_in, PaperWeights(steps=steps, **changes), denoise)
    assert denoise.calls == steps + 1  # the first step is taken from two noise fields


def test_the_anchored_walk_asks_once_per_field(measurement, x_in):
    for fields in (1, 2, 3):
        denoise = Counted()
        walk(measurement, x_in, AnchoredWeights(steps=4, fields=fields), denoise)
        assert denoise.calls == 4 * fields


def test_noise_comes_in_opposite_pairs(measurement, x_in):
    "What a denoiser does in proportion to the noise cancels; an odd field stays alone, and the next step draws anew."
    given = []

    def remember(x, t):
        given.append(x.clone())
        return torch.zeros_like(x)

    walk(measurement, x_in, AnchoredWeights(steps=2, fields=3, anchor=0, final_updates=0), remember)
    first, opposite, alone, *second = given
    middle = (first + opposite) / 2
    torch.testing.assert_close(second[0] + second[1], torch.zeros_like(middle), atol=1e-5, rtol=0)
    noise = [x - middle for x in (first, opposite, alone)] + [second[0], second[2]]
    assert all(float(n.std()) > 0.02 for n in noise)
    correlation = torch.corrcoef(torch.stack([n.ravel() for n in noise]))
    assert correlation[0, 1] < -0.999 and correlation.triu(1).abs().sum() - correlation[0, 1].abs() < 0.5


def test_a_denoiser_that_stacks_gets_the_fields_together(measurement, x_in):
    class Stacking(Counted):
        stacks = True

    stacking, one_by_one = Stacking(), Counted()
    together = walk(measurement, x_in, AnchoredWeights(steps=4), stacking)
    assert stacking.calls == 4 and torch.equal(together, walk(measurement, x_in, AnchoredWeights(steps=4), one_by_one))


# ---- closed forms


def gaussian(mean, deviation):
    "The exact denoiser of activity ~ N(mean, deviation²) in every voxel."

    def denoise(x, t):
        a, s2 = float(SCHEDULE.sqrt_alpha_bar(t)), 1 - float(SCHEDULE.alpha_bar(t))
        return mean + a * deviation**2 / (a**2 * deviation**2 + s2) * (x - a * mean)

    return denoise


def test_fresh_noise_converges_to_the_priors_mean_as_the_closed_form_says(measurement):
    "One step moves the mean by the denoiser's gain k, whatever the noise."
    mean, deviation, start = 2.0, 0.5, 3.0
    gains = [float(SCHEDULE.alpha_bar(t)) for t in (400, 280, 160, 40)]
    wanted = mean + np.prod([a2 * deviation**2 / (a2 * deviation**2 + 1 - a2) for a2 in gains]) * (start - mean)
    spreads = []
    for n in (1, 2, 3):
        weights = AnchoredWeights(steps=4, start=400, end=40, fields=n, **FREE)
        flat = torch.full(measurement.system.image_shape, start)
        image = last(anchored_walk(gaussian(mean, deviation), measurement, flat, 1.0, weights)).image
        assert float(image.mean()) == pytest.approx(wanted, abs=0.02)
        spreads.append(float(image.std()))
    assert spreads[1] < 1e-4 * spreads[0]  # a linear denoiser: opposite fields cancel
    assert spreads[2] == pytest.approx(spreads[0] / 3, rel=0.1)  # and a third one has no opposite


@pytest.mark.parametrize("ancestral", [0, 1])
def test_a_known_gaussian_prior_is_sampled_with_its_mean_and_variance(measurement, ancestral):
    """Without randomness the average of two starts halves the variance of one start; fresh noise restores it.

    m varies from slice to slice, which share their starting noise."""
    shape = measurement.system.image_shape
    mean = 2 + torch.linspace(0, 1, shape[0]).reshape(-1, 1, 1).expand(shape)
    deviation, weights = 0.3, PaperWeights(steps=250, ancestral=ancestral, seed=3, **OFF)
    drawn = last(paper_walk(gaussian(mean, deviation), measurement, torch.zeros(shape), 1.0, weights)).image - mean
    n = shape[1] * shape[2] * (shape[0] if ancestral else 1)
    assert float(drawn.mean()) == pytest.approx(0, abs=5 * deviation / n**0.5 + 0.01)
    wanted, rel = (deviation, 0.05) if ancestral else (deviation / 2**0.5, 0.12)
    assert float(drawn.std()) == pytest.approx(wanted, rel=rel)


class GaussianPrior:
    """Activity ~ N(2, 0.3²) in every voxel: the exact denoiser, and the exact variance of a step down its levels.

    `steps` holds the closed form, (gain of x − √ᾱ m, variance added) of each step, random or not."""

    mean, deviation = 2.0, 0.3

    def __init__(self, weights):
        self.visited, self.v, self.steps = [], {}, []
        levels = timesteps(weights.steps, weights.start)
        for i, (t, t_next) in enumerate(zip(levels, [*levels[1:], -1], strict=True), 1):
            now, then = float(SCHEDULE.alpha_bar(t)), float(SCHEDULE.alpha_bar(t_next))
            k = now**0.5 * self.deviation**2 / (now * self.deviation**2 + 1 - now)
            if weights.ancestral == 0 or i % weights.ancestral:  # DDIM keeps the noise it found
                found = (1 - now**0.5 * k) / (1 - now) ** 0.5
                self.steps.append((then**0.5 * k + (1 - then) ** 0.5 * found, 0.0))
                continue
            beta = 1 - now / then
            least, share = (1 - then) / (1 - now) * beta, then**0.5 * beta / (1 - now)
            exact = least + share**2 * self.deviation**2 * (1 - now) / (now * self.deviation**2 + 1 - now)
            if then < 1:
                self.v[t] = np.log(exact / least) / np.log(beta / least)
            drawn = exact if weights.variance == "learned" else least
            back = (now / then) ** 0.5 * (1 - then) / (1 - now)
            self.steps.append((share * k + back, drawn if then < 1 else 0.0))

    def __call__(self, x, t):
        self.visited.append(t)
        return gaussian(self.mean, self.deviation)(x, t)

    def with_variance(self, x, t):
        return self(x, t), torch.full_like(x, self.v.get(t, 0.0))

    def outcome(self, weights, x_in):
        "Mean of the last image; variance left of the start's noise, alike in all slices; variance of fresh noise."
        first = float(SCHEDULE.alpha_bar(weights.start))
        mean, shared, fresh = first**0.5 * (x_in - self.mean), (1 - first) / 2, 0.0  # two starts, averaged
        for gain, added in self.steps:
            mean, shared, fresh = gain * mean, gain**2 * shared, gain**2 * fresh + added
        return self.mean + mean, shared, fresh


@pytest.mark.parametrize("variance", ["learned", "posterior"])
@pytest.mark.parametrize("ancestral", [1, 2, 5])
def test_ancestral_steps_add_the_variance_of_the_closed_form(measurement, ancestral, variance):
    "What differs from slice to slice is fresh noise alone, since the start's is alike in all."
    weights = PaperWeights(ancestral=ancestral, variance=variance, seed=4, **OFF)
    prior, shape = GaussianPrior(weights), measurement.system.image_shape
    image = last(paper_walk(prior, measurement, torch.full(shape, 3.0), 1.0, weights)).image
    mean, shared, fresh = prior.outcome(weights, 3.0)
    between = image - image.mean(0, keepdim=True)
    assert float(image.mean()) == pytest.approx(mean, abs=5 * (shared / image[0].numel()) ** 0.5 + 0.01)
    assert float(between.square().mean()) == pytest.approx(fresh * (1 - 1 / shape[0]), rel=0.06)
    within = float((image.mean(0) - mean).square().mean())
    assert within == pytest.approx(shared + fresh / shape[0], rel=0.25)  # few columns
    if ancestral == 1 and variance == "learned":  # the exact variance at every step is the prior's at the end
        assert shared + fresh == pytest.approx(prior.deviation**2, rel=0.02)


def test_the_published_walk_takes_these_levels_and_draws_at_every_fifth(measurement, x_in):
    class Told(Counted):
        def __init__(self):
            super().__init__()
            self.plain, self.drawn = [], []

        def __call__(self, x, t):
            self.plain.append(t)
            return super().__call__(x, t)

        def with_variance(self, x, t):
            self.drawn.append(t)
            return super().__call__(x, t), torch.zeros_like(x)

    told, silent = Told(), Told()
    walk(measurement, x_in, PaperWeights(), told)
    assert sorted(told.plain + told.drawn, reverse=True) == [960, *range(960, -1, -40)]  # the first from two starts
    assert told.drawn == [800, 600, 400, 200, 0]
    walk(measurement, x_in, PaperWeights(ancestral=0), silent)
    assert not silent.drawn and len(silent.plain) == 26


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_both_jacobians_agree_where_the_denoiser_is_linear(measurement, x_in, share):
    "x̂0 = c·x_t/√ᾱ_t has the Jacobian c·I/√ᾱ_t: the identity with weight c·λ is the same pull."

    def linear(x, t):
        return share * x / SCHEDULE.sqrt_alpha_bar(t, x)

    few = {"steps": 6, "start": 500}
    network = walk(measurement, x_in, PaperWeights(lambda_dps=0.3, **few), linear)
    identity = PaperWeights(lambda_dps=share * 0.3, jacobian="identity", **few)
    torch.testing.assert_close(network, walk(measurement, x_in, identity, linear), rtol=1e-3, atol=1e-3)
    other = PaperWeights(lambda_dps=0.1, jacobian="identity", **few)
    assert float((network - walk(measurement, x_in, other, linear)).norm() / network.norm()) > 0.01


def test_without_weights_it_is_the_unguided_walk_bit_for_bit(study, measurement, x_in):
    weights = PaperWeights(steps=6, start=600, ancestral=0, final_updates=3, **OFF)
    got, denoise, scale = walk(measurement, x_in, weights), Counted(), 1 / float(x_in.max())
    random, levels = torch.Generator().manual_seed(0), timesteps(6, 600, SCHEDULE)

    def start():
        noise = torch.randn((1, *x_in.shape[1:]), generator=random).expand(x_in.shape)
        return SCHEDULE.sqrt_alpha_bar(levels[0], x_in) * (x_in * scale) + SCHEDULE.sigma(levels[0], x_in) * noise

    for i, (t, t_next) in enumerate(zip(levels, [*levels[1:], -1], strict=True)):
        if i == 0:
            two = [ddim_step(x, denoise(x, t), None, (t, t_next), SCHEDULE) for x in (start(), start())]
            x = (two[0] + two[1]) / 2
        else:
            x = ddim_step(x, denoise(x, t), None, (t, t_next), SCHEDULE)
    assert torch.equal(got, x.clamp_min(0) / scale)
    louder = Measurement(measurement.system, measurement.counts * 3)
    assert torch.equal(got, walk(louder, x_in, weights))  # the counts have no say
    assert not torch.equal(got, walk(louder, x_in, dataclasses.replace(weights, lambda_mlem=0.1)))


def test_total_variation_step_is_the_minimiser():
    "Against L-BFGS on the dual problem: min ½‖D'z‖² − z·Dx over |z| ≤ λ, u = x − D'z."
    x = np.random.default_rng(0).normal(size=(12, 3)).cumsum(0)
    d = np.diff(np.eye(12), axis=0)
    for weight in (0.05, 0.7):
        got = tv_along_z(torch.as_tensor(x).reshape(12, 3, 1), weight, 4000).numpy()[..., 0]
        for column in range(3):
            dual = minimize(
                lambda z, c=column: (0.5 * ((d.T @ z) ** 2).sum() - z @ (d @ x[:, c]), d @ (d.T @ z) - d @ x[:, c]),
                np.zeros(11),
                jac=True,
                bounds=[(-weight, weight)] * 11,
                options={"ftol": 1e-15, "gtol": 1e-10},
            )
            np.testing.assert_allclose(got[:, column], x[:, column] - d.T @ dual.x, atol=1e-4)


def test_insertion_is_the_formula(study, measurement):
    x0, system = torch.rand(measurement.system.image_shape) - 0.1, measurement.system
    scale = 0.02
    photons = x0.clamp_min(FLOOR) / scale
    for _ in range(2):
        expected = system.forward(photons)
        ratio = torch.where(expected > 0, study.projections / expected, 0)
        photons = torch.where(system.sensitivity > 0, photons * system.adjoint(ratio) / system.sensitivity, 0)
    wanted = 0.7 * x0 + 0.3 * scale * photons
    got = insert_mlem(x0, measurement, scale, PaperWeights(lambda_mlem=0.3, mlem_updates=2))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_the_anchor_is_one_knob_at_every_dose(measurement):
    "Counts and image scaled together (ten times the dose, the same noise) give the same image in the network's scale."
    x0, louder = torch.rand(measurement.system.image_shape), Measurement(measurement.system, measurement.counts * 10)
    one = anchor_to_counts(x0, measurement, 0.02, AnchoredWeights())
    ten = anchor_to_counts(x0, louder, 0.002, AnchoredWeights())
    torch.testing.assert_close(one, ten, rtol=1e-3, atol=1e-4)


# ---- what the settings do


def test_the_seed_decides_and_zero_is_a_seed(measurement, x_in):
    for weights in (AnchoredWeights(steps=4), PaperWeights(steps=4, ancestral=2)):
        images = [walk(measurement, x_in, dataclasses.replace(weights, seed=s)) for s in (0, 0, 1)]
        assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_the_counts_have_the_last_word(measurement, x_in):
    for kind in (AnchoredWeights, PaperWeights):
        before, after = (walk(measurement, x_in, kind(steps=2, final_updates=n)) for n in (0, 2))
        torch.testing.assert_close(after, mlem(measurement, 2, start=before))


def test_the_interval_skips_insertions_but_the_last(measurement, x_in):
    every, seldom = (walk(measurement, x_in, PaperWeights(steps=4, mlem_interval=n)) for n in (1, 1000))
    only_last = walk(measurement, x_in, PaperWeights(steps=4, mlem_interval=4))
    assert torch.equal(seldom, only_last) and not torch.equal(every, seldom)
    assert not torch.equal(seldom, walk(measurement, x_in, PaperWeights(steps=4, lambda_mlem=0.0)))


@pytest.mark.parametrize("jacobian", ["identity", "network"])
def test_image_consistency_pulls_towards_x_in(measurement, x_in, jacobian):
    distances = []
    for weight in (0.0, 0.2, 0.6):
        weights = PaperWeights(steps=10, start=600, jacobian=jacobian, **(OFF | {"lambda_dps": weight}))
        distances.append(float((walk(measurement, x_in, weights) - x_in).norm()))
    assert distances[0] > distances[1] > distances[2]


def test_the_learned_variance_is_used(measurement, x_in):
    class WithVariance(Counted):
        v = 0.0

        def with_variance(self, x, t):
            return self(x, t), torch.full_like(x, self.v)

    quiet, loud = WithVariance(), WithVariance()
    loud.v = 1.0
    weights = PaperWeights(steps=5, ancestral=2, **OFF)
    images = [walk(measurement, x_in, weights, denoise) for denoise in (quiet, loud)]
    assert not torch.equal(*images) and quiet.calls == loud.calls == 6
    lower = walk(measurement, x_in, dataclasses.replace(weights, variance="posterior"), loud)
    torch.testing.assert_close(lower, images[0], rtol=1e-4, atol=1.0)  # v = 0 is β̃


def test_closing_the_iterator_stops_the_work(measurement, x_in):
    for steps_of, weights, calls in (
        (anchored_walk, AnchoredWeights(steps=10), 3 * AnchoredWeights().fields),
        (paper_walk, PaperWeights(steps=10), 4),
    ):
        denoise = Counted()
        steps = steps_of(denoise, measurement, x_in, 1.0, weights)
        for step in steps:
            assert torch.is_grad_enabled()  # a paused walk leaves its caller's gradients alone
            if step.index == 3:
                break
        steps.close()
        assert denoise.calls == calls


def test_both_walks_count_a_background(study, x_in):
    "Counts of the background alone: told of it, a walk leaves less activity than one that must explain it."
    flat = 0.3 * float(study.projections.mean())
    with_it = Measurement(study.system(), study.projections + flat, flat)
    blind = Measurement(study.system(), study.projections + flat)
    for weights in (AnchoredWeights(steps=3, updates=4), PaperWeights(steps=3, start=300, lambda_mlem=0.8)):
        assert walk(with_it, x_in, weights).sum() < 0.95 * walk(blind, x_in, weights).sum()


# ---- from a study to a reconstruction


def test_support_tells_truth_from_fiction(study, measurement):
    truth = study.truth * study.count_fraction
    right = measurement_support(measurement, truth)
    wrong = measurement_support(measurement, truth.flip(0))
    assert right.reduced == pytest.approx(1, abs=0.1) and wrong.reduced > 1.5
    assert right.deviance.shape == measurement.system.proj_shape and right.image.shape == measurement.system.image_shape
    assert measurement_support(measurement, truth * 0).reduced > 100
    assert right.by_view.shape == (measurement.system.proj_shape[0],) and right.warning == ""
    assert right.to_json() == {"reduced_deviance": right.reduced, "warning": ""}


@pytest.mark.parametrize("by", [0.1, 0.3])
def test_a_warning_says_by_how_much_the_counts_are_missed(study, measurement, by):
    "Every expectation wrong by a share up or down, with counts enough to see it: that share is what is said."
    truth = study.truth * 2e4
    expected = measurement.expected(truth)
    sign = torch.where(torch.rand(expected.shape, generator=torch.Generator().manual_seed(0)) < 0.5, -1.0, 1.0)
    counts = torch.poisson(expected * (1 + by * sign), generator=torch.Generator().manual_seed(1))
    support = measurement_support(dataclasses.replace(measurement, counts=counts), truth)
    assert support.reduced > 2 and support.difference == pytest.approx(by, rel=0.1)
    assert f"reduced deviance {support.reduced:.2f}" in support.warning and f"{by:.0%} beyond noise" in support.warning
    causes = ("radius", "rotation", "attenuation", "motion", "beyond the image")
    assert all(cause in support.warning for cause in causes)


def test_a_view_that_lost_counts_is_named(study, measurement):
    truth = study.truth * 300
    counts = torch.poisson(measurement.expected(truth), generator=torch.Generator().manual_seed(0))
    assert not measurement_support(dataclasses.replace(measurement, counts=counts), truth).warning
    counts[2] = torch.round(counts[2] * 0.5)
    support = measurement_support(dataclasses.replace(measurement, counts=counts), truth)
    assert int(support.by_view.argmax()) == 2 and "in view 2 (the first is 0;" in support.warning


@pytest.mark.parametrize("weights", [PaperWeights(steps=3, iterations=12), AnchoredWeights(steps=3)])
def test_reconstruct_returns_what_its_steps_end_with(study, weights, passes=12):
    done = reconstruct(study, weights, denoise=Counted())
    steps = list(reconstruction_steps(study, weights, denoise=Counted()))
    assert [s.index for s in steps] == list(range(1, passes + 4)) and steps[-1].total == passes + 3
    assert torch.equal(steps[-1].image, done.image) and torch.equal(steps[passes - 1].image, done.x_in)
    assert done.weights == weights and done.scale > 0 and done.provenance["versions"]["torch"] == torch.__version__


def test_fewer_counts_start_earlier_and_hold_the_prior_tighter(study):
    of = AnchoredWeights.for_level
    levels = [of(c) for c in (0.001, 0.01, 0.05, 0.2, 1.0, 1.2)]
    assert all(a.start >= b.start for a, b in zip(levels, levels[1:], strict=False))
    few, many = ([w.anchor for w in some] for some in (levels[:3], levels[3:]))  # above, any small anchor will do
    assert few == sorted(few, reverse=True) and min(few) > 5 * max(many)
    assert of(0.2, 0.2).start > of(0.2).start  # few views: an earlier start
    assert of(1.0, steps=500).steps == 500
    assert of(1.0).final_updates > of(0.5).final_updates > of(0.2).final_updates == 1
    assert of(1.0).subsets > of(0.2).subsets
    assert of(1.0, 0.2).final_updates == 1  # a fifth of the views is a fifth of what is known
    assert reconstruct(study, denoise=Counted()).weights == of(study.count_level) == AnchoredWeights.for_study(study)


# ---- the table of settings


def test_papers_weights_are_its_fits():
    paper = PaperWeights.for_level(0.05)
    assert (paper.steps, paper.start, paper.mlem_interval, paper.jacobian) == (25, 960, 1, "network")
    assert (paper.ancestral, paper.variance) == (5, "learned")
    assert [PaperWeights.for_level(c).final_updates for c in (0.05, 0.2, 0.52, 1.0)] == [1, 2, 5, 10]
    assert paper.lambda_dps == pytest.approx(0.0698 * np.log(0.05) + 0.3454) == fitted_lambda_dps(0.05)
    assert paper.lambda_mlem == fitted_lambda_mlem(0.05)
    for wrong in (0.0, -1.0, 2.0):
        with pytest.raises(InputError, match="count_level"):
            PaperWeights.for_level(wrong)


@pytest.mark.parametrize("kind", [PaperWeights, AnchoredWeights])
def test_every_setting_is_described_and_survives_json(kind):
    weights = kind.for_level(0.2, seed=5)
    assert weights_from_json(weights.to_json()) == weights and weights.to_json()["method"] == kind.method
    assert set(settings_of(kind)) == {f.name for f in dataclasses.fields(kind)}
    for name, s in settings_of(kind).items():
        assert s.symbol and s.meaning and (s.choices or s.low <= getattr(kind, name) <= s.high), name
    with pytest.raises(InputError, match="no settings"):
        weights_from_json({"method": kind.method, "lambda": 1})
    with pytest.raises(InputError, match="method must be one of"):
        weights_from_json(weights.to_json() | {"method": "magic"})


WRONG = [
    (PaperWeights, {"lambda_mlem": 1.5}), (PaperWeights, {"tv_weight": float("nan")}),
    (PaperWeights, {"ancestral": -1}), (PaperWeights, {"jacobian": "raw"}), (PaperWeights, {"steps": 2.5}),
    (PaperWeights, {"start": 3}),
    (PaperWeights, {"variance": "none"}), (PaperWeights, {"final_updates": -1}), (PaperWeights, {"ancestral": 2.5}),
    (PaperWeights, {"seed": -1}), (PaperWeights, {"steps": True}), (AnchoredWeights, {"steps": 0}),
    (AnchoredWeights, {"anchor": -1}), (AnchoredWeights, {"anchor": "much"}), (AnchoredWeights, {"fields": 0}),
    (AnchoredWeights, {"start": 45}), (AnchoredWeights, {"iterations": 3}),
]  # fmt: skip


@pytest.mark.parametrize("kind, wrong", WRONG, ids=[f"{k.method} {w}" for k, w in WRONG])
def test_impossible_choices_name_the_argument(kind, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        kind(**wrong)


@pytest.mark.parametrize("kind, other", [(PaperWeights, "anchor"), (AnchoredWeights, "lambda_dps")])
def test_settings_of_the_other_walk_are_refused(kind, other):
    with pytest.raises(TypeError, match=other):
        kind(**{other: 0.1})


def test_shapes_and_scales_that_do_not_fit_are_refused(study, measurement):
    wrong = [(torch.zeros(2, 2, 2), 1.0, "x_in"), (study.truth, 0.0, "scale"), (study.truth, np.nan, "scale")]
    for x, scale, rule in wrong:
        with pytest.raises(InputError, match=rule):
            next(anchored_walk(Counted(), measurement, x, scale, AnchoredWeights()))
        with pytest.raises(InputError, match=rule):
            next(paper_walk(Counted(), measurement, x, scale, PaperWeights()))
        with pytest.raises(InputError, match=rule):  # also where the caller brings a schedule
            next(anchored_walk(Counted(), measurement, x, scale, AnchoredWeights(), SCHEDULE))
