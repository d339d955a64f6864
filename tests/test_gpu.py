"On a GPU the same numbers come out as on the processor. Skipped where there is none."

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffspect_nb.attenuation import attenuation_factors
from diffspect_nb.cohort import Cohort, simulated_study
from diffspect_nb.core import InputError, last, usable_device
from diffspect_nb.geometry import tiny_grid
from diffspect_nb.mlem import anchored_em, mlem_steps
from diffspect_nb.prior import Prior, pretrained
from diffspect_nb.reconstruction import reconstruct
from diffspect_nb.sampler import AnchoredWeights, PaperWeights
from diffspect_nb.sparse import written_out
from diffspect_nb.study import thin
from diffspect_nb.system import Measurement
from diffspect_nb.training import TrainConfig, train
from diffspect_nb.uncertainty import posterior_samples
from diffspect_nb.volume_network import VolumeConfig, VolumeDenoiser, VolumeUNet

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no usable CUDA device")
NET = VolumeConfig(widths=(16, 24), blocks=1, embedding=32)


@pytest.fixture(scope="module")
def study():
    return thin(simulated_study(3, "tiny", tiny_grid()), 0.3, np.random.default_rng(0))


def stirred(seed: int = 0) -> VolumeUNet:
    "A network whose zero-initialised layers have an effect."
    torch.manual_seed(seed)
    net = VolumeUNet(NET)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return net.eval()


def prior() -> Prior:
    config = TrainConfig(scanner="tiny", grid=tiny_grid(), network=NET).to_json()
    return Prior(stirred(), {"config": config})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_gpu_that_is_not_there_is_refused_in_one_line():
    assert usable_device("cpu") == torch.device("cpu")
    for ask in (lambda: usable_device("cuda"), lambda: pretrained(device="cuda")):
        with pytest.raises(InputError, match="device cuda: this machine has no usable CUDA device"):
            ask()


def test_blocks_joined_to_one_give_the_same_products(study):
    system = study.system()
    one = replace(system, kept=written_out(system.kept).in_one_block())
    x, y = torch.rand(2, *system.image_shape), torch.rand(2, *system.proj_shape)
    assert len(one.kept.by_pixel) == len(one.kept.by_voxel) == 1
    torch.testing.assert_close(one.forward(x), system.forward(x))
    torch.testing.assert_close(one.adjoint(y), system.adjoint(y))
    torch.testing.assert_close(one.forward(x[0]), system.forward(x[0]))
    torch.testing.assert_close(one.sensitivity, system.sensitivity)
    assert system.to("cpu") is system and system.to("cpu", torch.float64).dtype == torch.float64


@GPU
def test_products_and_updates_are_the_processors(study):
    here = Measurement(study.system().to(dtype=torch.float64), study.projections.double())
    there = here.to("cuda")
    with_mu = (attenuation_factors(study.mu.to(d), study.scanner, study.grid).cpu() for d in ("cpu", "cuda"))
    torch.testing.assert_close(*with_mu, rtol=1e-4, atol=1e-5)
    for n in (1, 4):
        ours, found = (last(mlem_steps(m, 5, n_subsets=n)) for m in (here, there))
        torch.testing.assert_close(found.image.cpu(), ours.image, rtol=1e-9, atol=1e-9)
        assert found.scalars["log_likelihood"] == pytest.approx(ours.scalars["log_likelihood"], rel=1e-9)
        pulled = (anchored_em(m, ours.image.to(m.counts.device), 1e-3, n_subsets=n).cpu() for m in (here, there))
        torch.testing.assert_close(*pulled, rtol=1e-9, atol=1e-9)


@GPU
def test_recorded_kernels_do_what_the_network_does():
    net = stirred().to("cuda")
    images = [torch.rand(9, 10, 12, device="cuda") for _ in range(3)]
    denoise = VolumeDenoiser(net, tuple(images), dtype=torch.float32)
    other = VolumeDenoiser(net, (images[1], images[0], images[2]), dtype=torch.float32)  # shares the recording
    for one, x, t in ((denoise, images[0], 900), (other, images[1], 30), (denoise, torch.stack(images), 400)):
        with torch.no_grad():
            replayed = one.with_variance(x, t)
        with torch.enable_grad():
            eager = one.with_variance(x, t)
        for a, b in zip(replayed, eager, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-2, atol=1e-3)  # convolutions in TF32


@GPU
def test_walks_run_where_the_prior_is(study):
    here, there = prior(), prior()
    there.net.to("cuda")
    assert (here.device.type, there.device.type) == ("cpu", "cuda")
    # with hardly any pull from the prior the walk is EM: the images must explain the same counts although noise differs
    weights = AnchoredWeights(steps=2, start=60, anchor=1e-9, updates=60, subsets=1, final_updates=20)
    images = [reconstruct(study, weights, p).image for p in (here, there)]
    assert [image.device.type for image in images] == ["cpu", "cuda"]
    expected = [study.system().forward(image.cpu()) for image in images]
    assert float((expected[0] - expected[1]).norm() / expected[0].norm()) < 0.03  # two seeds on one device: 0.008
    for few in (AnchoredWeights(steps=2), PaperWeights(steps=2)):
        found = posterior_samples(study, 2, weights=few, prior=there, workers=1)
        assert found.device.type == "cpu" and torch.isfinite(found).all() and not torch.equal(*found)


@GPU
def test_patients_are_made_and_learned_from_there(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSPECT_CACHE", str(tmp_path))
    config = TrainConfig(n_studies=2, steps=4, batch=2, scanner="tiny", grid=tiny_grid(), network=NET)
    assert list(config.cohort.make(workers=1)) == [0, 1]
    here = config.cohort.load()
    for seed in range(2):
        config.cohort.path(seed).unlink()
    assert list(Cohort(2, 0, "tiny", tiny_grid()).make(workers=1, device="cuda")) == [0, 1]
    there = config.cohort.load()
    assert torch.equal(here.label, there.label)
    torch.testing.assert_close(here.early, there.early, rtol=0.02, atol=0.02)
    losses = [step.scalars["loss"] for step in train(config, tmp_path / "run", device="cuda")]
    assert len(losses) == 4 and np.isfinite(losses).all()
    assert pretrained(str(tmp_path / "run" / "checkpoint.safetensors"), "cuda").device.type == "cuda"
