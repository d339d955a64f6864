"The prior's wing: simulated patients, cohorts, training and resuming, checkpoints, and the shipped priors' papers."

import os
import subprocess
import sys
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

import diffspect_nb
from diffspect_nb.cohort import (
    FIRST_VALIDATION,
    Cohort,
    acquisitions,
    activity_of,
    draw_counts,
    draw_mismatch,
    held_out_study,
    job_groups,
    made_defects,
    painter,
    simulated_patient,
    simulated_study,
    training_study,
)
from diffspect_nb.core import ImageGrid, InputError
from diffspect_nb.defect_probe import AIM, mean_error, probe_rows, shown_phantom
from diffspect_nb.diffusion import cosine_schedule
from diffspect_nb.files import read_json
from diffspect_nb.fit import FitConfig, Run, fit, learning_rate, update
from diffspect_nb.geometry import tiny, tiny_grid
from diffspect_nb.phantom import torso
from diffspect_nb.prior import DEFAULT_PRIOR, Prior, load_checkpoint, network_config, pretrained, save_checkpoint
from diffspect_nb.recipe import Mismatch
from diffspect_nb.slice_network import SliceUNet, UNetConfig
from diffspect_nb.study import keep_views
from diffspect_nb.training import WALKED, TrainConfig, batch_of, begun, noise_objective, train
from diffspect_nb.volume_network import VolumeConfig, VolumeUNet
from diffspect_nb.work import Workers

NETWORK = UNetConfig(n_slices=16, widths=(16, 32), blocks=1, embedding=32, head_width=32)
CONFIG = TrainConfig(
    n_studies=2, steps=12, batch=8, warmup=2, scanner="tiny", grid=tiny_grid(), network=NETWORK, label="mlem50"
)
VOLUMES = replace(CONFIG, batch=2, network=VolumeConfig(widths=(16, 24), blocks=1, embedding=32), label="truth")
DRAWN = (  # expected counts, aperture and scatter of a validation and of a training patient
    (23032369.13432761, 1.0086861983004034, 0.06897647797977802),
    (19720283.387736317, 1.079322787906741, 0.13081420306738678),
)
MODELLED = 6719997.581193987  # expected counts of one acquired as the model says
SUPPORT = torch.ones(tiny_grid().shape, dtype=torch.bool)


@pytest.fixture(scope="module")
def cohort(shared_cache):
    seen = replace(CONFIG.cohort, seen=True)
    list(seen.make("mlem50", workers=1))
    return seen


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_recipe_draws_counts_log_uniformly_and_shares_scanners():
    counts = np.log([draw_counts(rng(i), 1e6, 4e6) for i in range(3000)])
    assert counts.min() >= np.log(1e6) and counts.max() <= np.log(4e6)
    shares = np.histogram(counts, 4, (np.log(1e6), np.log(4e6)))[0] / len(counts)
    assert np.allclose(shares, 0.25, atol=0.04)
    own, shared = Mismatch.draw(rng(7)), Mismatch.draw(rng(571, 1))
    assert draw_mismatch(rng(7)) == own
    mixed = draw_mismatch(rng(7), (571, 1))
    assert mixed == own.of_scanner(shared) and mixed.aperture == shared.aperture and mixed.scatter == own.scatter
    one, two = rng(7), rng(7)
    draw_mismatch(one), draw_mismatch(two, (571, 1))
    assert one.random() == two.random()  # a shared scanner takes nothing from the patient's own draws


@pytest.mark.slow
def test_the_draws_are_those_of_the_recipe():
    "Whoever changes the order of a draw on purpose makes cohorts, priors and tables again."
    held, trained = held_out_study(910_000, "tiny", tiny_grid()), training_study(3, tiny(), tiny_grid())
    modelled = simulated_study(3, "tiny", tiny_grid())
    for study, (counts, aperture, scatter) in zip((held, trained), DRAWN, strict=True):
        assert study.meta["expected_counts"] == pytest.approx(counts, rel=1e-9)
        assert study.meta["mismatch"]["aperture"] == pytest.approx(aperture, rel=1e-9)
        assert study.meta["mismatch"]["scatter"] == pytest.approx(scatter, rel=1e-9)
    assert modelled.meta["expected_counts"] == pytest.approx(MODELLED, rel=1e-9)
    assert held.meta["seed"] == 910_000 and held.reference is None and modelled.reference is not None


def test_a_patient_made_to_order_has_the_defect_that_was_ordered():
    orders = ("none", "anterior (LAD)", "inferior (RCA)")
    healthy, *ill = (torso(rng(1), tiny_grid(), defects=made_defects(order, 0.6)).activity for order in orders)
    lost = [torch.where(healthy > 0.5, 1 - image / healthy, 0) for image in ill]
    assert [float(part.max()) for part in lost] == pytest.approx([0.6, 0.6], abs=0.1)
    heights = [float(torch.nonzero(part > 0.2)[:, 0].float().mean()) for part in lost]
    assert heights[0] > heights[1]  # anterior is above inferior
    for wrong, message in (({"defect": "everywhere"}, "defect must be"), ({"severity": 2}, "severity must be")):
        with pytest.raises(InputError, match=message):
            simulated_patient(**wrong)


def test_a_patient_is_its_seed():
    one, again, other = (simulated_study(s, "tiny", tiny_grid()) for s in (5, 5, 6))
    assert torch.equal(one.projections, again.projections) and torch.equal(one.reference, again.reference)
    assert not torch.equal(one.truth, other.truth)
    assert 6e6 * 0.99 < one.counts < 20e6 * 1.01


@pytest.mark.slow
def test_a_training_patient_is_its_seed_and_no_inverse_crime():
    one, again = (training_study(3, tiny(), tiny_grid()) for _ in range(2))
    assert torch.equal(one.projections, again.projections) and torch.equal(one.mu, again.mu)
    differs = one.meta["mismatch"]
    assert abs(differs["aperture"] - 1) > 1e-3 and any(differs["ct_shift_mm"])
    assert any(abs(v) > 0.1 for v in differs["offset_mm"])
    assert 0.05 <= differs["scatter"] <= 0.2 and np.linalg.norm(differs["ct_shift_mm"]) <= 10
    others = [training_study(seed, tiny(), tiny_grid(), scanners=2).meta["mismatch"]["aperture"] for seed in (3, 5, 4)]
    assert others[0] == others[1] != others[2]  # two scanners in turn


def test_few_views_are_central_or_any_and_doses_go_down_to_half_a_percent():
    study, found = simulated_study(5, "tiny", tiny_grid()), []
    for seed in range(40):
        found += acquisitions(study, rng(seed))
    few = [group[0].views for group in found if len(group[0].views) < 7]
    central = [views == keep_views(study, len(views)).views for views in few]
    assert 0.4 < np.mean(central) < 0.9 and {len(views) for views in few} == {1, 3, 5}
    doses = [s.count_fraction for group in found for s in group if len(group) == 4]
    assert max(doses) == 1 and 0.005 <= min(doses) < 0.007


def test_a_cohort_is_made_once_and_resumed(cohort):
    assert list(cohort.make("mlem50")) == []
    cohort.path(1).unlink()
    with pytest.raises(InputError, match="000001.safetensors: patient 1"):
        cohort.load("mlem50")
    assert list(cohort.make()) == [1]
    patients = cohort.load("mlem50")
    assert patients.label.shape == patients.ct.shape == patients.heart.shape == (2, 16, 20, 20)
    assert patients.early.shape == patients.late.shape == (2, 8, 16, 20, 20) and patients.ratio.shape == (2, 8)
    assert 0.5 < float(patients.label.max()) < 50 and 0.9 < float(patients.ct.max()) < 2.5
    assert float(patients.late.max()) <= 8 and 0.2 < float(patients.ratio.min()) and float(patients.ratio.max()) < 5
    assert not torch.equal(patients.label, cohort.load("truth").label)
    assert Cohort(1).folder != cohort.folder


def test_a_network_that_looks_at_nothing_learns_from_labels_alone(cohort):
    "Half the work: no other acquisition is made, and what is learned from is the same."
    alone = replace(cohort, seen=False)
    assert CONFIG.cohort == alone and VOLUMES.cohort.seen
    cohort.path(0).rename(aside := cohort.path(0).with_suffix(".aside"))
    try:
        assert not alone.missing("mlem50") and cohort.missing("mlem50") == [(0, "truth")]
        labels = alone.load("mlem50")
    finally:
        aside.rename(cohort.path(0))
    whole = cohort.load("mlem50")
    for name in ("label", "ct", "heart"):
        assert torch.equal(getattr(labels, name), getattr(whole, name))
    torch.testing.assert_close(labels.ratio, whole.ratio[:, :1], rtol=1e-4, atol=0)
    assert torch.equal(labels.acquisition, whole.acquisition[:, :1]) and labels.early.shape == (2, 0)


def test_rare_hearts_are_added_to_a_cohort_without_touching_the_others(cohort):
    mixed = Cohort(40, 0, cohort.scanner, cohort.grid, unusual=0.5)
    kinds = [mixed.heart(seed) for seed in range(40)]
    assert 10 <= sum(k is not None for k in kinds) <= 30 and kinds.count("hypertrophic") > kinds.count("small") > 0
    assert {mixed.path(s) == cohort.path(s) for s, k in enumerate(kinds) if k is None} == {True}
    seed = kinds.index("hypertrophic")
    one = Cohort(1, seed, cohort.scanner, cohort.grid, unusual=0.5)
    assert list(one.make("mlem50", workers=1)) == [seed, seed]
    assert one.path(seed).name == f"{seed:06d}-hypertrophic.safetensors"
    thick = training_study(seed, tiny(), tiny_grid(), "hypertrophic")
    assert thick.meta["phantom"]["heart"]["kind"] == "hypertrophic"
    torch.testing.assert_close(one.load().label[0], activity_of(thick).half())
    assert one.load("mlem50").label.shape == one.load().label.shape
    assert TrainConfig(unusual=0.5).cohort.unusual == 0.5
    assert TrainConfig(scanners=16).cohort == Cohort(400, scanners=16)
    assert mixed.folder != replace(mixed, scanners=16).folder


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_every_worker_has_patients_and_every_group_one_scanner(workers):
    jobs = [(seed, "truth") for seed in range(64)]
    groups = job_groups(Cohort(64), jobs, workers)
    assert len(groups) >= workers and sorted(job for group in groups for job in group) == jobs
    assert all(len({seed % 4 for seed, _ in group}) == 1 for group in groups)


def test_patients_that_a_lost_process_had_are_made_by_another(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSPECT_CACHE", str(tmp_path))
    asked, pair = [], Cohort(8, 0, "tiny", tiny_grid())

    def make(cohort, jobs, device):
        for job in jobs:
            asked.append(job)
            if len(asked) == 4:
                raise BrokenExecutor("a process was lost")
            cohort.path(*job).parent.mkdir(exist_ok=True)
            cohort.path(*job).touch()
            yield job[0]

    monkeypatch.setattr("diffspect_nb.cohort._make", make)
    assert sorted(pair.make(workers=Workers(lambda: ThreadPoolExecutor(1), 2))) == list(range(8))
    assert len(asked) == 9 and len(set(asked)) == 8
    monkeypatch.setattr("diffspect_nb.cohort._make", lambda *_: (_ for _ in "x" if 1 / 0))
    more = replace(pair, first_seed=8)
    with pytest.raises(ZeroDivisionError):
        list(more.make(workers=Workers(lambda: ThreadPoolExecutor(1), 2)))

    def lost(cohort, jobs, device):
        raise BrokenExecutor("a process was lost")
        yield

    monkeypatch.setattr("diffspect_nb.cohort._make", lost)
    with pytest.raises(InputError, match="000008.safetensors: not made; a process was lost 3 times"):
        list(more.make(workers=Workers(lambda: ThreadPoolExecutor(1), 2)))


@pytest.mark.slow
def test_processes_make_what_one_process_makes(cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSPECT_CACHE", str(tmp_path))
    assert sorted(cohort.make(workers=2)) == [0, 1]
    ours = cohort.load("truth")
    monkeypatch.undo()
    theirs = cohort.load("truth")
    torch.testing.assert_close(ours.late, theirs.late, rtol=0.02, atol=0.02)
    assert torch.equal(ours.label, theirs.label)


def test_batches_depend_on_seed_and_step_alone(cohort):
    patients = cohort.load("truth")
    for config in (replace(CONFIG, batch=4000), replace(VOLUMES, batch=400, condition_dropout=0.2)):
        first, again, later = (batch_of(patients, config, step, 1000, SUPPORT) for step in (3, 3, 4))
        assert all(torch.equal(getattr(first, k), getattr(again, k)) for k in ("x0", "t", "noise"))
        assert not torch.equal(first.t, later.t)
        assert first.t.min() >= 0 and first.t.max() <= 999 and first.x0.shape == first.noise.shape
        ct = first.inputs[-1][:, :1] if config.batch == 400 else first.inputs[-1]
        assert float((ct.flatten(1).abs().sum(1) == 0).float().mean()) == pytest.approx(0.1, abs=0.05)
    blind = (first.inputs[0][:, 1:].flatten(1).abs().sum(1) == 0).float().mean()
    assert float(blind) == pytest.approx(0.2, abs=0.07) and float(first.weight.mean()) == pytest.approx(1, abs=1e-4)


def test_a_share_of_the_examples_dwells_where_walks_work(cohort):
    config = replace(VOLUMES, batch=400, walk_share=0.5)
    t = batch_of(cohort.load("truth"), config, 1, 1000, SUPPORT).t
    inside = ((t >= WALKED[0]) & (t < WALKED[1])).float().mean()
    assert float(inside) == pytest.approx(0.5 + 0.5 * (WALKED[1] - WALKED[0]) / 1000, abs=0.07) and t.max() > 900


def test_an_error_that_regions_share_adds_to_the_loss(cohort):
    "The same untrained network, the same batch: the second loss has the regional term more, and only that."
    losses = []
    for share in (0.0, 2.0):
        config = replace(VOLUMES, regional_weight=share, vlb_weight=0.0)
        batch = batch_of(cohort.load("truth"), config, 1, 1000, SUPPORT)
        run = Run.begin({"net": begun(config, torch.device("cpu"))[0]}, config)
        losses.append(update(run, noise_objective(config, cosine_schedule()), config, 1, batch))
    plain, told = losses
    assert told["regional"] > 0 and told["loss"] == pytest.approx(plain["loss"] + 2 * told["regional"], rel=1e-5)


def test_defects_weigh_more_by_what_they_took(cohort):
    patients = cohort.load("truth")
    assert float(patients.deficit.min()) >= 0 and float(patients.deficit.max()) <= 1
    deficit = torch.zeros_like(patients.deficit)
    deficit[:, 4:8] = 0.5
    patients = replace(patients, deficit=deficit)
    plain, told = (batch_of(patients, replace(VOLUMES, defect_weight=k), 1, 1000, SUPPORT).weight for k in (0.0, 6.0))
    ratio = told / plain
    torch.testing.assert_close(ratio[:, :, 4:8] / ratio[:, :, 9:10, :1, :1], torch.full_like(ratio[:, :, 4:8], 4.0))
    assert float(told.mean()) == pytest.approx(1, abs=1e-5)


EPSILON = replace(VOLUMES, network=replace(VOLUMES.network, predict="epsilon"))


@pytest.mark.parametrize("config", [CONFIG, VOLUMES, EPSILON], ids=["slices", "volumes", "epsilon"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(config, cohort, tmp_path):
    torch.manual_seed(99)
    straight = [s.scalars["simple"] for s in train(config, tmp_path / "straight")]
    for step in train(config, tmp_path / "broken", save_every=5):
        if step.index == 7:
            break
    resumed = list(train(config, tmp_path / "broken", save_every=5))
    assert [s.index for s in resumed] == list(range(6, 13))
    assert np.allclose([s.scalars["simple"] for s in resumed], straight[5:], rtol=0.02)
    ends = [load_checkpoint(tmp_path / run / "checkpoint.safetensors")[0] for run in ("straight", "broken")]
    for a, b in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=3e-3, rtol=0.05)
    with pytest.raises(InputError, match="another configuration"):
        next(train(replace(config, learning_rate=1e-5), tmp_path / "broken"))
    (tmp_path / "broken" / "state.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="state.safetensors"):
        next(train(config, tmp_path / "broken"))


PACE = FitConfig(steps=9, learning_rate=1e-2, warmup=2, seed=3)
TWO = """
import sys
import torch
from diffspect_nb.fit import FitConfig, Team, fit
from safetensors.torch import save_file

def batches(step):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    return {"x": x, "y": x.sin().sum(1, keepdim=True)}

def objective(nets, batch, generator):
    yield "net", (nets["net"](batch["x"]) - batch["y"]).square().mean()

torch.manual_seed(Team.join().rank)  # each process would start elsewhere
net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
*_, last = fit({"net": net}, objective, batches, FitConfig(steps=20, learning_rate=1e-2, warmup=2))
if Team.join().rank == 0:
    tensors = {k: v.detach() for k, v in net.named_parameters()}
    save_file(tensors | {"loss": torch.tensor(last.scalars["loss"])}, sys.argv[1])
"""


def toys() -> dict[str, torch.nn.Module]:
    "Two parts with dropout and a buffer, so that a run has chance and memories beside its weights."
    torch.manual_seed(0)
    make = lambda: torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3))
    return {"one": torch.nn.Sequential(make(), torch.nn.Linear(8, 1)), "two": torch.nn.Linear(1, 1)}


def toy_batches(step: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(16, 3, generator=torch.Generator().manual_seed(step)),)


def toy_objective(nets, batch, generator):
    seen = nets["one"](batch[0]) + torch.randn(1, generator=generator)
    yield "one", (seen - 1).square().mean(), {"mean": seen.mean()}
    yield "two", (nets["two"](seen.detach()) + 1).square().mean()


def test_a_loop_of_several_parts_is_taken_up_bit_for_bit(tmp_path):
    whole, broken, again = toys(), toys(), toys()
    straight = [s.scalars for s in fit(whole, toy_objective, toy_batches, PACE)]
    for step in fit(broken, toy_objective, toy_batches, PACE, tmp_path, save_every=4):
        if step.index == 6:
            break
    torch.manual_seed(99)
    kept: dict = {}
    steps = fit(again, toy_objective, toy_batches, PACE, tmp_path, lambda nets, i: kept.update(nets), save_every=4)
    rest = [s.scalars for s in steps]
    drop = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert len(rest) == 5 and drop(rest) == drop(straight[4:])
    assert set(rest[0]) == {"loss", "one", "two", "mean", "learning_rate", "seconds"}
    for part in whole:
        ends = whole[part].state_dict(), again[part].state_dict()
        assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
        assert not torch.equal(next(kept[part].parameters()), next(again[part].parameters()))
    state = tmp_path / "state.safetensors"
    with pytest.raises(InputError, match="state.safetensors: this state belongs to another configuration"):
        next(fit(toys(), toy_objective, toy_batches, replace(PACE, ema=0.5), tmp_path))
    assert list(fit(toys(), toy_objective, toy_batches, replace(PACE, steps=10), tmp_path))[0].index == 10
    state.write_bytes(state.read_bytes()[:-40])
    with pytest.raises(InputError, match="state.safetensors: the saved training state is damaged"):
        next(fit(toys(), toy_objective, toy_batches, PACE, tmp_path))


def test_an_objective_steps_every_part_once():
    for yields in (["one"], ["one", "one", "two"], []):

        def objective(nets, batch, generator, yields=yields):
            for part in yields:
                yield part, sum(p.square().sum() for p in nets[part].parameters())

        with pytest.raises(ValueError, match="must step each of .'one', 'two'. once"):
            next(fit(toys(), objective, toy_batches, PACE))

    def both(nets, batch, generator):
        yield "one+two", sum(p.square().sum() for net in nets.values() for p in net.parameters())

    before, nets = toys(), toys()
    next(fit(nets, both, toy_batches, PACE))
    assert not any(torch.equal(next(nets[k].parameters()), next(before[k].parameters())) for k in nets)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path):
    "`torchrun` with two processes on one machine: every weight within rounding."
    script, env = tmp_path / "two.py", os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script.write_text(TWO)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, how in (("one", []), ("two", launch)):
        command = [sys.executable, *how, str(script), str(tmp_path / name)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name) for name in ("one", "two"))
    assert set(one) == set(two) and float(one["loss"]) < 2
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)


def test_the_learning_rate_rises_stays_and_falls():
    config = replace(CONFIG, steps=100, warmup=10, cooldown=0.2, learning_rate=1e-3)
    rates = [learning_rate(config, step) for step in range(1, 101)]
    assert rates[0] == pytest.approx(1e-4) and rates[9] == rates[79] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(5e-5) and all(b <= a for a, b in zip(rates[80:], rates[81:], strict=False))


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    save_checkpoint(tmp_path / "prior.safetensors", SliceUNet(NETWORK), {"config": CONFIG.to_json(), "steps": 1})
    return tmp_path / "prior.safetensors"


def test_a_checkpoint_keeps_weights_and_history(checkpoint):
    net, provenance = load_checkpoint(checkpoint)
    assert TrainConfig.from_json(provenance["config"]) == CONFIG and not net.training
    x = torch.rand(tiny_grid().shape)
    denoised = Prior(net, provenance).denoiser()(x, 10)
    assert denoised.shape == x.shape and torch.isfinite(denoised).all()
    with pytest.raises(ValueError, match="kind must be"):
        network_config({"kind": "pictures"})


def test_a_volume_checkpoint_comes_back_as_one(tmp_path):
    save_checkpoint(tmp_path / "v.safetensors", VolumeUNet(VOLUMES.network), {"config": VOLUMES.to_json(), "steps": 1})
    prior = pretrained(str(tmp_path / "v.safetensors"))
    assert isinstance(prior.net, VolumeUNet) and prior.looks_at_data
    assert TrainConfig.from_json(prior.provenance["config"]) == VOLUMES
    x, mu = torch.rand(tiny_grid().shape), torch.rand(tiny_grid().shape) * 0.15
    with torch.no_grad():
        prior.net.look.weight.normal_()
        prior.net.head.weight.normal_()
        seen, blind = (prior.denoiser(mu, *images)(x, 500) for images in ((x, 2 * x), ()))
    assert seen.shape == x.shape and torch.isfinite(seen).all() and not torch.equal(seen, blind)


def test_what_is_not_a_checkpoint_is_refused(checkpoint, tmp_path):
    whole = checkpoint.read_bytes()
    pickle, cut, flipped, foreign = (tmp_path / f"{n}.safetensors" for n in ("pickle", "cut", "flipped", "foreign"))
    torch.save(SliceUNet(NETWORK).state_dict(), pickle)
    cut.write_bytes(whole[: len(whole) // 2])
    flipped.write_bytes(b"\xff" + whole[1:])
    save_file({"a": torch.zeros(1)}, foreign)
    for path in (pickle, cut, flipped, foreign, tmp_path / "missing.safetensors"):
        with pytest.raises(InputError, match=path.name):
            load_checkpoint(path)
    with pytest.raises(InputError, match="no shipped checkpoint is called 'nothing'"):
        pretrained("nothing")


WRONG = {
    "label": "ct",
    "n_studies": 0,
    "learning_rate": -1,
    "ct_dropout": 2,
    "schedule": "sine",
    "batch": 1.5,
    "unusual": 1.5,
    "scale_jitter": 3,
    "outside_weight": -1,
}


@pytest.mark.parametrize("name", WRONG)
def test_impossible_configurations_name_the_field(name):
    with pytest.raises(InputError, match=name):
        TrainConfig(**{name: WRONG[name]})


def test_a_configuration_that_fits_no_grid_or_has_unknown_fields_is_refused():
    with pytest.raises(InputError, match="n_slices"):
        TrainConfig(grid=tiny_grid(), network=UNetConfig())
    with pytest.raises(InputError, match="unknown fields .'speed'"):
        TrainConfig.from_json({"speed": 3})
    with pytest.raises(InputError, match="training configuration: network"):
        TrainConfig.from_json({"network": {"depth": 3}})


@pytest.mark.parametrize("name", [f"diffspect-{i}" for i in (1, 2, 3, 4)])
def test_the_recipes_beside_the_benchmarks_can_be_read(name, root):
    config = TrainConfig.from_json(read_json(root / "benchmarks" / f"{name}.json"))
    assert TrainConfig.from_json(config.to_json()) == config and isinstance(config.network, VolumeConfig)


def test_the_papers_prior_trains_from_its_recipe(cohort, root, tmp_path):
    "The recipe as it stands, and a tiny network of its kind that learns a few steps and cleans with and without CT."
    config = TrainConfig.from_json(read_json(root / "benchmarks" / "paper.json"))
    assert TrainConfig.from_json(config.to_json()) == config and config.label == "mlem50"
    assert config.n_studies >= 400 and config.steps >= 10_000 and config.batch >= 32
    assert isinstance(config.network, UNetConfig) and config.network.ct_entry == "beside"
    kind = replace(NETWORK, patch=config.network.patch, ct_entry="beside")
    assert list(train(replace(CONFIG, steps=3, network=kind), tmp_path))[-1].index == 3
    prior = pretrained(str(tmp_path / "checkpoint.safetensors"))
    assert prior.net.config == kind
    noisy, mu = torch.randn(tiny_grid().shape), torch.full(tiny_grid().shape, 0.15)
    with torch.no_grad():
        cleaned = [prior.denoiser(given)(noisy, 500) for given in (mu, None)]
    assert all(image.isfinite().all() for image in cleaned) and not torch.equal(*cleaned)


def test_the_shipped_prior_is_small_and_says_where_it_comes_from():
    files = sorted((Path(diffspect_nb.__file__).parent / "weights").glob("*"))
    others = [f.name for f in files if f.suffix != ".safetensors"]
    assert others == ["anchored.json"] and DEFAULT_PRIOR in [f.stem for f in files]
    for file in (f for f in files if f.suffix == ".safetensors"):
        assert file.stat().st_size <= 12e6
        provenance = pretrained(file.stem).provenance
        assert provenance["config"]["n_studies"] >= 150 and provenance["config"]["label"] in ("mlem50", "truth")
        assert provenance["steps"] > 1000 and {"torch", "python", "diffspect_nb"} <= set(provenance["versions"])


DEFECT_ERROR = {"diffspect": 0.065}  # of contrast at level 100, measured; `AIM` is 0.02


@pytest.fixture(scope="module")
def shown():
    return [shown_phantom(str(i), painter(FIRST_VALIDATION + i)(ImageGrid())) for i in (0, 2)]


@pytest.mark.parametrize("name", DEFECT_ERROR)
def test_a_shipped_prior_shown_the_noised_truth_takes_no_more_of_a_defect_than_is_recorded(name, shown):
    "The quick form of `benchmarks/defect_probe.py`; a new prior gets its own figure here, to be `AIM` or less."
    rows = probe_rows(pretrained(name), shown, (100,), ("CT alone",))
    assert len(rows) == 3 and min(row["true"] for row in rows) > 0.2
    assert mean_error(rows) == pytest.approx(DEFECT_ERROR[name], abs=0.006)


def test_the_defect_probe_tells_what_keeps_a_defect_from_what_fills_it_in(shown):
    class Prior:
        unit, device, schedule = 1.0, torch.device("cpu"), pretrained().schedule

        def __init__(self, makes):
            self.denoiser = lambda *looked: lambda x, t: makes(x)

    knows, fills = (Prior(makes) for makes in (lambda x: shown[1].truth, lambda x: torch.ones_like(x)))
    rows = [probe_rows(prior, shown[1:], (40, 500), ("nothing",)) for prior in (knows, fills)]
    assert [len(r) for r in rows] == [2, 2] and mean_error(rows[0]) < 1e-4
    assert mean_error(rows[1]) == pytest.approx(rows[1][0]["true"], abs=1e-4) and AIM < rows[1][0]["true"]
    assert np.isnan(mean_error(rows[0], lambda row: row["level"] == 100))
    healthy = shown_phantom("healthy", painter(FIRST_VALIDATION, "usual", defects=[])(ImageGrid()))
    assert probe_rows(knows, [healthy]) == []


def test_the_shipped_configurations_are_what_the_prior_says_they_were(root):
    told, trainings, files = pretrained().provenance, [], sorted((root / "benchmarks").glob("diffspect-?.json"))
    while told:
        trainings.insert(0, told)
        told = told["started_from"]
    fields = ("n_studies", "learning_rate", "heart_weight", "defect_weight", "batch", "network", "start_from")
    for told, file in zip(trainings, files, strict=True):
        config = TrainConfig.from_json(read_json(file))
        stated = {k: told["config"][k] for k in fields}
        stated |= {k: told["config"].get(k, default) for k, default in (("unusual", 0.0), ("scanners", 4))}
        assert stated == {k: config.to_json()[k] for k in stated} and told["steps"] <= config.steps
