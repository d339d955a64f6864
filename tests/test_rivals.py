"The rivals: total variation by ADMM, networks that answer at once, conditional diffusion; by name and from recipes."

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffspect_nb.admm import AdmmTV, AdmmWeights, conjugate_gradient
from diffspect_nb.cli import main
from diffspect_nb.cohort import training_study
from diffspect_nb.conditional import (
    UNCORRECTED,
    ConditionalUNet,
    DiffusionConfig,
    Trained,
    ddim_method,
    ddim_walk,
    guided_method,
    slices_of,
)
from diffspect_nb.core import InputError, Step, last
from diffspect_nb.diffusion import cosine_schedule, predict_eps
from diffspect_nb.files import read_json, write_json
from diffspect_nb.geometry import tiny, tiny_grid
from diffspect_nb.methods import Named, plugins
from diffspect_nb.prior import save_checkpoint
from diffspect_nb.reconstruction import outcome
from diffspect_nb.rivals import RECIPES, RIVALS, is_rival, recipe_path, rival_config, rival_method
from diffspect_nb.sampler import PaperWeights, noise_fields, paper_walk
from diffspect_nb.slice_network import SliceUNet, UNetConfig
from diffspect_nb.study import thin
from diffspect_nb.supervised import (
    RIVAL,
    SEDenseConfig,
    SupervisedConfig,
    denoised,
    finetuned,
    look,
    pairs_of,
    supervised_net,
)
from diffspect_nb.system import Measurement, SystemMatrix
from diffspect_nb.volume_network import VolumeConfig

SHAPE, BINS = (7, 1, 3), (2, 4, 5)
TINY = {"n_studies": 2, "steps": 12, "warmup": 2, "scanner": "tiny", "grid": tiny_grid()}
SLICES = UNetConfig(n_slices=6, widths=(16, 32), blocks=1, embedding=32, head_width=32, ct_entry="beside")
DDSPECT = DiffusionConfig(rival="ddspect", slices=3, ct_slices=3, told_counts=True, batch=8, network=SLICES, **TINY)
DDIM = replace(
    DDSPECT, rival="ddim-spect", slices=1, ct_slices=1, told_counts=False, network=replace(SLICES, n_slices=2)
)
UNET = SupervisedConfig(network=VolumeConfig(widths=(16, 24), blocks=1, embedding=32, conditions=1), **TINY)
SEDENSE = replace(UNET, rival="sedense", network=SEDenseConfig(widths=(16, 32), growth=8))
CONFIGS = {"unet": UNET, "sedense": SEDENSE, "ddim-spect": DDIM, "ddspect": DDSPECT}


@pytest.fixture(scope="module")
def small() -> tuple[Measurement, np.ndarray]:
    "A dense scanner of 40 bins on 21 voxels, with background."
    rng = np.random.default_rng(0)
    size = int(np.prod(BINS)), int(np.prod(SHAPE))
    matrix = rng.uniform(0, 1, size) * (rng.random(size) < 0.3)
    system = SystemMatrix.from_matrix(matrix, SHAPE, BINS)
    counts = torch.from_numpy(rng.poisson(matrix @ rng.uniform(0, 20, matrix.shape[1])).astype(float)).reshape(BINS)
    return Measurement(system, counts, torch.full(BINS, 0.5, dtype=torch.float64)), matrix


@pytest.fixture(scope="module")
def low(shared_cache):
    "A patient nobody learns from, at 5 % of the counts."
    return thin(training_study(40, tiny(), tiny_grid()), 0.05, np.random.default_rng(0))


def dense_tv(hessian: np.ndarray, pull: np.ndarray, tv: float, slopes: np.ndarray) -> np.ndarray:
    "argmin ½xᵀHx − bᵀx + tv‖Dx‖₁ by accelerated projected gradient in its dual, |p| ≤ tv: x = H⁻¹(b − Dᵀp)."
    inverse = np.linalg.inv(hessian)
    square = slopes @ inverse @ slopes.T
    p = q = np.zeros(len(slopes))
    t, step = 1.0, 1 / np.linalg.eigvalsh(square)[-1]
    for _ in range(20_000):
        moved = np.clip(q + step * (slopes @ inverse @ pull - square @ q), -tv, tv)
        after = (1 + np.sqrt(1 + 4 * t * t)) / 2
        q, p, t = moved + (t - 1) / after * (moved - p), moved, after
    return inverse @ (pull - slopes.T @ p)


@pytest.mark.parametrize("poisson", [False, True])
def test_admm_ends_at_the_solution_of_a_dense_solver(small, poisson):
    "A network that knows nothing in between: every iteration starts from zero."
    measurement, matrix = small
    scale, weights = 0.3, AdmmWeights(tv=0.3, rho=0.2, cg_steps=25, poisson=poisson)
    y = measurement.counts.numpy().ravel()
    w = 1 / np.maximum(y, 1) if poisson else np.ones_like(y)
    hessian, pull = matrix.T @ (w[:, None] * matrix), matrix.T @ (w * (y - 0.5))
    unit = hessian.sum(1).mean()
    columns = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    slopes = np.eye(columns.size)[columns[1:].ravel()] - np.eye(columns.size)[columns[:-1].ravel()]
    expected = dense_tv(hessian / unit, scale * pull / unit, weights.tv, slopes)
    admm = AdmmTV(measurement, scale, weights)
    for _ in range(120):
        found = admm(torch.zeros(SHAPE, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy().ravel(), expected, rtol=1e-5, atol=1e-6)
    assert (np.abs(slopes @ expected) < 1e-6).sum() > 2  # flat pieces: the weight does something


def test_admm_of_an_identity_without_variation_returns_the_counts():
    y = torch.rand(SHAPE, dtype=torch.float64) * 9
    admm = AdmmTV(Measurement(SystemMatrix.from_matrix(np.eye(21), SHAPE, SHAPE), y), 1.0, AdmmWeights(0, 0.2, 10))
    x = torch.zeros(SHAPE, dtype=torch.float64)
    for _ in range(40):
        x = admm(x)
    torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_one_step_of_conjugate_gradients_is_the_steepest_descent():
    a = torch.randn(6, 6, dtype=torch.float64)
    a, b, x = a @ a.T + torch.eye(6), torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    r = b - a @ x
    one, all_ = (conjugate_gradient(lambda v: a @ v, b, x, n) for n in (1, 6))
    torch.testing.assert_close(one, x + (r @ r) / (r @ a @ r) * r)
    torch.testing.assert_close(a @ all_, b)
    assert torch.equal(conjugate_gradient(lambda v: v, b, b.clone(), 3), b)  # already there


def test_ddim_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="the DDIM oracle is in diffusers")
    schedule = cosine_schedule()

    def toy(x: torch.Tensor, t: int) -> torch.Tensor:
        return torch.tanh(x) * (1 - t / 2000) + 0.3

    theirs = diffusers.DDIMScheduler(
        1000, trained_betas=schedule.betas.numpy(), clip_sample=False, set_alpha_to_one=True
    )
    theirs.set_timesteps(27)  # a step of 37 levels
    like = torch.zeros(4, 5, 6)
    x = next(noise_fields(tuple(like.shape), 3, like.device)).double()
    ours = list(ddim_walk(lambda x, t: toy(x.double(), t), like, 28, 3, start=999))
    assert [t for t, _ in ours[:3]] == [999, 962, 925] and ours[-1][0] == 0
    for t, x0 in ours:
        torch.testing.assert_close(x0, toy(x, t), rtol=1e-4, atol=1e-4)
        x = theirs.step(predict_eps(x, toy(x, t), t, schedule), t, x).prev_sample
    torch.testing.assert_close(ours[-1][1], x, rtol=1e-4, atol=1e-4)


def test_ddspect_walks_from_960_with_one_noise_for_all_slices_and_every_fifth_step_ancestral(low):
    "With a denoiser that always answers 1, each step's mean is known, and so is the variance of the random ones."
    schedule, seen, v = cosine_schedule(), [], 0.7

    class One:
        def __call__(self, x, t):
            seen.append((t, x.clone()))
            return torch.ones_like(x)

        def with_variance(self, x, t):
            return self(x, t), torch.full_like(x, v)

    weights = PaperWeights(**UNCORRECTED, steps=25, ancestral=5)
    image = last(paper_walk(One(), low.measurement(), torch.full(tiny_grid().shape, 2.0), 1.0, weights)).image
    levels = [t for t, _ in seen]
    assert levels[:3] == [960, 960, 920] and levels[-1] == 0 and torch.equal(image, torch.ones_like(image))
    first = [x for _, x in seen[:2]]
    assert all(torch.equal(x[0], x[9]) for x in first) and not torch.equal(*first)
    signal, sigma = float(schedule.sqrt_alpha_bar(960)), float(schedule.sigma(960))
    assert float(((first[0] - 2 * signal) / sigma).std()) == pytest.approx(1, abs=0.1)
    walk = [(960, sum(first) / 2), *seen[2:]]
    for i, ((t, x), (t_next, x_next)) in enumerate(zip(walk, walk[1:], strict=False), 1):
        now, then = (float(schedule.alpha_bar(level)) for level in (t, t_next))
        beta = 1 - now / then
        lower = (1 - then) / (1 - now) * beta  # β̃
        random = i % 5 == 0
        eps = (x - now**0.5) / (1 - now) ** 0.5
        if i == 1:
            continue  # two fields, averaged after the step
        off = x_next - (then**0.5 + (1 - then - random * lower) ** 0.5 * eps)
        expected = np.exp((v * np.log(beta) + (1 - v) * np.log(lower)) / 2) if random else 0
        assert float(off.std()) == pytest.approx(expected, rel=0.04, abs=2e-5), (i, t)


def stirred(net: torch.nn.Module) -> torch.nn.Module:
    "A network whose every weight does something."
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=random))
    return net.eval()


def test_a_conditional_network_looks_at_every_condition_and_no_further(low):
    looked = outcome(look(low, 1))
    trained = Trained(stirred(ConditionalUNet(SLICES)), DDSPECT)
    x = torch.randn(tiny_grid().shape, generator=torch.Generator().manual_seed(1))

    def answer(**changes):
        with torch.no_grad():
            return trained.denoiser(replace(looked, **changes)).with_variance(x, 300)[1]

    usual, bumped = answer(), looked.late.clone()
    bumped[5] += 1.0
    moved = (answer(late=bumped) - usual).abs().amax((1, 2)) > 0
    assert moved.nonzero().ravel().tolist() == [4, 5, 6]  # its own slice and its neighbours
    assert not torch.equal(answer(mu=None), usual) and not torch.equal(answer(level=looked.level / 10), usual)
    deaf = Trained(trained.net, replace(DDSPECT, told_counts=False))
    with torch.no_grad():
        pair = [deaf.denoiser(replace(looked, level=looked.level * k))(x, 300) for k in (1, 0.1)]
        blind = [deaf.denoiser(looked, with_late=w).with_variance(x, 300)[1] for w in (True, False)]
    assert torch.equal(*pair) and not torch.equal(*blind)


@pytest.mark.parametrize("config", [UNET, SEDENSE], ids=["unet", "sedense"])
def test_a_supervised_network_begins_as_the_identity_and_looks_at_the_ct(config):
    net, x, ct = supervised_net(config.network), torch.rand(2, 1, 16, 20, 20), torch.rand(2, 1, 16, 20, 20)
    torch.testing.assert_close(denoised(net, x, ct), x)
    assert not torch.equal(denoised(stirred(net), x, ct), denoised(net, x, torch.zeros_like(ct)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shared_cache):
    "Every recipe cut down to a tiny network and a dozen steps, by the command; the folder it leaves them in."
    folder = tmp_path_factory.mktemp("rivals")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFSPECT_RIVALS", str(folder))
        for name, config in CONFIGS.items():
            write_json(folder / f"{name}.json", config.to_json())
            assert main(["train", str(folder / f"{name}.json")]) == 0
    return folder


@pytest.fixture
def ready(trained, monkeypatch):
    monkeypatch.setenv("DIFFSPECT_RIVALS", str(trained))
    return trained


def test_pairs_are_drawn_with_their_counts_and_some_without_ct(ready):
    config = replace(SEDENSE, batch=200, ct_dropout=0.3)
    patients, random = config.cohort.load(), torch.Generator().manual_seed(0)
    pairs = pairs_of(patients, config, random)
    assert pairs.late.shape == pairs.target.shape == pairs.ct.shape == (200, 1, *tiny_grid().shape)
    blind = (pairs.ct.flatten(1).amax(1) == 0).float().mean()
    assert float(blind) == pytest.approx(0.3, abs=0.1) and 0 < float(pairs.level.min()) < 0.2
    assert float(pairs.level.max()) == 1 and len(pairs.level.unique()) <= 16
    batch = slices_of(patients, replace(DDSPECT, batch=64, condition_dropout=0.5), torch.Generator().manual_seed(0))
    assert batch.seen.shape == (64, 6, 20, 20) and batch.x0.shape == batch.noise.shape == (64, 1, 20, 20)
    unseen = (batch.seen[:, :3].flatten(1).amax(1) == 0).float().mean()
    assert 0.3 < float(unseen) < 0.75


def test_fine_tuning_climbs_the_likelihood_and_leaves_the_network_alone(ready, low):
    path = ready / "unet" / "checkpoint.safetensors"
    told = [s.scalars["log_likelihood"] for s in finetuned(path, 6, 1e-3)(low) if s.scalars]
    assert len(told) == 6 and told[-1] > told[0]
    again = [s.scalars["log_likelihood"] for s in finetuned(path, 6, 1e-3)(low) if s.scalars]
    assert told == again
    with pytest.raises(InputError, match="updates must be at least 1"):
        finetuned(path, 0)


@pytest.mark.slow
def test_every_rival_by_its_name_gives_an_image_with_and_without_ct(ready, low):
    seen = {}
    for name in [*RIVALS, "unet-no-ct", "ddim-spect-no-ct", "ddspect-no-ct"]:
        steps = list(Named(name).ready()(low))
        assert [s.index for s in steps] == list(range(1, steps[-1].total + 1)), name
        assert all(isinstance(s, Step) and s.image.shape == torch.Size(tiny_grid().shape) for s in steps), name
        seen[name] = steps[-1].image
        assert float(seen[name].max()) > 0, name
    names = list(seen)
    same = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if torch.equal(seen[a], seen[b])]
    assert not same, f"one method under two names: {same}"
    assert torch.equal(last(Named("ddspect")(low)).image, seen["ddspect"])  # its noise is its seed's


@pytest.mark.slow
def test_commands_know_a_trained_rival(ready, low, tmp_path, capsys, monkeypatch):
    low.save(tmp_path / "study")
    told = ["reconstruct", str(tmp_path / "study"), "--out", str(tmp_path / "out"), "--method", "ddspect"]
    assert main(told) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    provenance = result["checkpoints"]["ddspect"]
    assert set(result["checkpoints"]) == {"ddspect", "unet"} and provenance["steps"] == 12
    assert provenance["config"]["rival"] == "ddspect" and len(provenance["generator"]) == 64
    assert main(["info"]) == 0
    (line,) = (s for s in capsys.readouterr().out.splitlines() if s.startswith("rival          ddspect:"))
    assert "first" not in line and "ddspect-no-ct" in line
    monkeypatch.setenv("DIFFSPECT_RIVALS", str(tmp_path))
    assert main(["info"]) == 0
    assert "first `diffspect train ddspect` and `diffspect train unet`" in capsys.readouterr().out


def test_a_rival_that_nobody_trained_names_the_command_that_makes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIFFSPECT_RIVALS", str(tmp_path))
    for name, command in (("mbir-no-ct", "ddim-spect"), ("sedense", "sedense"), ("paper+ddspect", "ddspect")):
        with pytest.raises(InputError, match=f"no such checkpoint; `diffspect train {command}` makes it"):
            Named(name).ready()
    assert main(["benchmark", "--tiny", "--out", str(tmp_path / "b"), "--method", "unet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "`diffspect train unet` makes it" in line and not (tmp_path / "b" / "rows.jsonl").exists()
    assert main(["train", "transformer", "--out", str(tmp_path / "t")]) == 2
    assert "no recipe is called 'transformer'; there are unet, sedense" in capsys.readouterr().err
    assert not is_rival("unguided-no-ct") and not set(plugins()) & set(RIVALS)
    with pytest.raises(InputError, match="no rival is called 'mlem'"):
        rival_method("mlem")


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    foreign, wrong = tmp_path / "prior.safetensors", tmp_path / "unet.safetensors"
    told = {"config": DDIM.to_json(), "steps": 1}
    save_checkpoint(foreign, SliceUNet(DDIM.network), told)
    save_checkpoint(wrong, supervised_net(UNET.network), {"config": UNET.to_json(), "steps": 1}, RIVAL)
    with pytest.raises(InputError, match="prior.safetensors: .* not a diffspect checkpoint"):
        ddim_method(foreign)
    with pytest.raises(InputError, match="unet.safetensors: .* network kind must be 'slices'"):
        ddim_method(wrong)
    save_checkpoint(wrong, ConditionalUNet(DDIM.network), told, RIVAL)
    with pytest.raises(InputError, match="walk must be one of anchored, paper, got 'run'"):
        guided_method(wrong, "run")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DiffusionConfig(slices=2), "slices must be odd"),
        (lambda: DiffusionConfig(predict="x0"), "predict must be 'epsilon' or 'v'"),
        (lambda: DiffusionConfig(ct_slices=3), "network.n_slices must be slices [+] ct_slices = 4, got 2"),
        (lambda: SupervisedConfig(network=VolumeConfig()), "network.conditions must be 1"),
        (lambda: SupervisedConfig(batch=0), "batch must be"),
        (lambda: rival_config({"rival": "unet", "speed": 3}), "unknown fields .'speed'"),
        (lambda: rival_config({"rival": "gan"}), "rival must be one of unet, sedense, ddim-spect, ddspect, got 'gan'"),
        (lambda: rival_config({"rival": "sedense", "network": {"kind": "slices"}}), "network kind must be"),
        (lambda: AdmmWeights(tv=-1), "tv must be"),
        (lambda: AdmmWeights(rho=0), "rho must be"),
        (lambda: AdmmWeights(cg_steps=0), "cg_steps must be"),
    ],
)
def test_impossible_settings_name_the_field(make, says):
    with pytest.raises(InputError, match=says):
        make()


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_can_be_read_and_their_networks_are_small(name):
    config = rival_config(read_json(recipe_path(name)))
    assert config.rival == name and rival_config(config.to_json()) == config and config.n_studies == 400
    supervised = isinstance(config, SupervisedConfig)
    net = supervised_net(config.network) if supervised else ConditionalUNet(config.network)
    assert 2 * sum(p.numel() for p in net.parameters()) <= 12e6  # bytes in float16
    assert config.ct_dropout > 0  # one checkpoint is asked with and without CT
