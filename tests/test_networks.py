"The two networks and their denoisers: shapes, conditioning, gradients, size, and that it can learn."

import copy
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT

from diffspect_nb.core import WATER_PER_CM
from diffspect_nb.diffusion import add_noise, cosine_schedule, hybrid_loss
from diffspect_nb.recording import MOST_RECORDINGS, RECORDINGS, record, replayed
from diffspect_nb.slice_network import Denoiser, SliceUNet, UNetConfig, slice_weights
from diffspect_nb.volume_network import VolumeConfig, VolumeDenoiser, VolumeUNet

SMALL = UNetConfig(n_slices=6, widths=(16, 32), blocks=1, embedding=32, head_width=16)


@pytest.fixture(params=["branch", "beside"])
def awake(request) -> SliceUNet:
    "A small network whose zero-initialised layers have been stirred, so that everything has an effect."
    torch.manual_seed(0)
    net = SliceUNet(replace(SMALL, ct_entry=request.param))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net.eval()


@pytest.mark.parametrize("shape", [(12, 12), (13, 9), (70, 70)])
def test_any_slice_shape_goes_in_and_comes_out(awake, shape):
    out = awake(torch.rand(2, 1, *shape), torch.tensor([3, 900]), torch.tensor([0, 5]), torch.rand(2, 6, *shape))
    assert out.shape == (2, 2, *shape) and torch.isfinite(out).all()


def test_slice_weights_are_the_papers():
    w = slice_weights(50)
    assert w.shape == (50, 50) and float(w[7, 7]) == 1
    assert float(w[0, 49]) == pytest.approx(1 - 49 / 50) and torch.equal(w, w.T)


def test_time_slice_number_and_ct_all_matter(awake):
    x, t, where, ct = torch.rand(1, 1, 12, 12), torch.tensor([500]), torch.tensor([2]), torch.rand(1, 6, 12, 12)
    base = awake(x, t, where, ct)
    assert torch.equal(base, awake(x, t, where, ct))
    for change in ((x, t + 1, where, ct), (x, t, where + 1, ct), (x, t, where, 0 * ct), (x, t, where)):
        assert not torch.allclose(base, awake(*change))
    torch.testing.assert_close(awake(x, t, where, 0 * ct), awake(x, t, where))  # zeros are "no CT"
    far = ct.clone()
    far[:, 5] += 1  # slice 2 sees slice 5 as well, at weight 1/2
    assert not torch.allclose(base, awake(x, t, where, far))


def test_ct_features_can_be_computed_once(awake):
    x, t, where, ct = torch.rand(6, 1, 12, 12), torch.full((6,), 300), torch.arange(6), torch.rand(1, 6, 12, 12)
    once = awake.ct_features(ct, where)
    torch.testing.assert_close(awake(x, t, where, ct_features=once), awake(x, t, where, ct))


def test_the_denoiser_inverts_what_the_network_calls_noise(awake):
    schedule, x = cosine_schedule(), torch.rand(6, 12, 12)
    mu = torch.rand(6, 12, 12) * WATER_PER_CM
    denoise = Denoiser(awake, mu, schedule, dtype=torch.float32)
    x0, v = denoise.with_variance(x, 200)
    out = awake(x[:, None], torch.full((6,), 200), torch.arange(6), (mu / WATER_PER_CM)[None])
    torch.testing.assert_close(add_noise(x0, out[:, 0], 200, schedule), x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(v, (out[:, 1] + 1) / 2)
    torch.testing.assert_close(denoise(x, 200), x0)
    clipped = Denoiser(awake, mu, schedule, clip=(0.0, 0.3), dtype=torch.float32)(x, 200)
    torch.testing.assert_close(clipped, x0.clamp(0, 0.3))


def test_gradients_flow_through_the_denoiser_when_asked(awake):
    denoise = Denoiser(awake, dtype=torch.float32)
    x = torch.rand(6, 12, 12, requires_grad=True)
    denoise(x, 300).square().sum().backward()
    step, direction = 1e-2, torch.randn(6, 12, 12)
    with torch.no_grad():
        up, down = (float(denoise(x + s * direction, 300).double().square().sum()) for s in (step, -step))
    assert float((x.grad * direction).sum()) == pytest.approx((up - down) / (2 * step), rel=0.02)


def test_the_default_network_fits_into_a_checkpoint():
    net = SliceUNet()
    parameters = sum(p.numel() for p in net.parameters())
    assert 2e6 < parameters and 2 * parameters < 12e6
    with torch.no_grad():
        out = net(torch.rand(1, 1, 70, 70), torch.tensor([5]), torch.tensor([0]))
    assert float(out.abs().max()) == 0  # an untrained network predicts nothing


def test_a_small_network_learns_a_small_set():
    torch.manual_seed(0)
    schedule, net = cosine_schedule(), SliceUNet(SMALL)
    x0 = torch.zeros(8, 1, 12, 12)
    x0[:, :, 3:9, 3:9] = 1
    optimizer, losses = torch.optim.AdamW(net.parameters(), lr=3e-3), []
    for _ in range(120):
        t, noise = torch.randint(100, 900, (8,)), torch.randn_like(x0)
        x_t = add_noise(x0, noise, t, schedule)
        loss, parts = hybrid_loss(net(x_t, t, torch.arange(8) % 6), x0, noise, t, schedule)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(parts["simple"]))
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])


def test_beside_is_one_convolution_of_the_slice_and_the_whole_ct():
    "Twice the CT is twice its share of the first layer; through a branch of its own it is not."
    ct, where = torch.rand(1, 6, 12, 12), torch.tensor([2])
    for entry, linear in (("beside", True), ("branch", False)):
        net = SliceUNet(replace(SMALL, patch=1, ct_entry=entry))
        one, two = net.ct_features(ct, where), net.ct_features(2 * ct, where)
        assert torch.allclose(2 * one, two, atol=1e-6) is linear
    kernel = SliceUNet(replace(SMALL, patch=1, ct_entry="beside"))
    far = torch.zeros(1, 6, 12, 12)
    far[0, 5, 6, 6] = 1.0  # slice 2 sees slice 5 at weight 1/2
    seen = kernel.ct_features(far, where)[0, :, 6, 6]
    torch.testing.assert_close(seen, 0.5 * kernel.ct_wide.weight[:, 5, 1, 1])


def test_a_configuration_made_before_the_option_has_a_branch():
    old = {k: v for k, v in SMALL.to_json().items() if k != "ct_entry"}
    assert UNetConfig.from_json(old) == SMALL and SMALL.ct_entry == "branch"


@pytest.mark.parametrize(
    "field, value", [("widths", (10,)), ("blocks", 0), ("embedding", 30), ("head_width", 50), ("ct_entry", "above")]
)
def test_impossible_configurations_name_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        UNetConfig(**{field: value})
    assert UNetConfig.from_json(SMALL.to_json()) == SMALL
    with pytest.raises(ValueError, match="unknown"):
        UNetConfig.from_json({"depth": 3})


def test_volumes_that_do_not_fit_are_refused(awake):
    with pytest.raises(ValueError, match="x must be"):
        Denoiser(awake)(torch.rand(5, 12, 12), 3)
    with pytest.raises(ValueError, match="ct must be"):
        Denoiser(awake, torch.rand(5, 12, 12))
    with pytest.raises(ValueError, match="noisy must be"):
        awake(torch.rand(1, 2, 12, 12), torch.tensor([1]), torch.tensor([1]))
    with pytest.raises(ValueError, match="clip must be"):
        Denoiser(awake, clip=(1.0, 0.0))


@pytest.fixture
def volumes() -> VolumeUNet:
    "A small volume network, stirred."
    torch.manual_seed(1)
    net = VolumeUNet(VolumeConfig(widths=(16, 32), blocks=1, embedding=32))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return net.eval()


@pytest.mark.parametrize("shape", [(8, 12, 12), (7, 13, 9), (16, 20, 20)])
def test_any_volume_goes_in_and_comes_out(volumes, shape):
    out = volumes(torch.rand(2, 1, *shape), torch.tensor([3, 900]), torch.rand(2, 3, *shape))
    assert out.shape == (2, 2, *shape) and torch.isfinite(out).all()


def test_the_volume_denoiser_looks_at_each_image_and_at_the_level(volumes):
    x, ct, early, late = torch.rand(4, 8, 12, 12).unbind()

    def denoised(*images, t=400, of=x):
        return VolumeDenoiser(volumes, images)(of, t)

    base = denoised(ct, early, late)
    assert base.shape == x.shape
    fewer = (denoised(ct, early), denoised(None, early, late), denoised(ct, None, late), denoised())
    for other in (*fewer, denoised(ct, early, late, t=800)):
        assert not torch.allclose(base, other, atol=1e-4)
    torch.testing.assert_close(denoised(None, None, None), denoised())
    both = denoised(ct, early, late, of=torch.stack([x, 2 * x]))
    torch.testing.assert_close(both[0], base, atol=2e-2, rtol=2e-2)
    with pytest.raises(ValueError, match="looks at 3"):
        VolumeDenoiser(volumes, (ct, early, late, late))


@pytest.mark.parametrize("batch", [1, 2])
def test_volume_network_in_float32_agrees_with_float64(batch):
    torch.manual_seed(3)
    net = VolumeUNet(VolumeConfig(widths=(16, 24), blocks=1, embedding=16))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    exact = copy.deepcopy(net).double()
    x, t, found = torch.rand(batch, 1, 13, 12, 9), torch.full((batch,), 100), []
    for each, dtype in ((net, torch.float32), (exact, torch.float64)):
        leaf = x.to(dtype, copy=True).requires_grad_()
        out = each(leaf, t, torch.rand(batch, 3, 13, 12, 9, generator=torch.Generator().manual_seed(4)).to(dtype))
        out.square().sum().backward()
        found.append([out.detach(), leaf.grad, *(p.grad for p in each.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 20
    for single, double in zip(*found, strict=True):
        assert float((single - double).norm() / double.norm()) < 1e-4


def test_the_default_volume_network_fits_into_a_checkpoint():
    assert sum(p.numel() for p in VolumeUNet(VolumeConfig()).parameters()) * 2 < 12e6
    config = VolumeConfig(widths=(16, 32), predict="epsilon")
    assert VolumeConfig.from_json(config.to_json()) == config
    for wrong in ({"widths": (15,)}, {"predict": "x"}, {"patch": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            VolumeConfig(**wrong)


def test_what_is_recorded_is_kept_by_shape_and_key_and_forgotten_in_turn():
    net, calls = torch.nn.Linear(2, 2), []

    def function(x, shift):
        calls.append(x.shape)
        return net(x) if shift is None else net(x) + shift

    with torch.no_grad():
        for n in range(1, MOST_RECORDINGS + 2):
            x = torch.rand(n, 2)
            torch.testing.assert_close(replayed(net, function, "key", (x, None)), net(x))
        kept = list(RECORDINGS[net])
        assert len(kept) == MOST_RECORDINGS and len(calls) == 2 * (MOST_RECORDINGS + 1)  # recorded, then replayed
        x, shift = torch.rand(5, 2), torch.ones(5, 2)
        replayed(net, function, "key", (x, None))
        assert list(RECORDINGS[net]) == kept  # an old acquaintance
        for key, inputs in (("other key", (x, None)), ("key", (x, shift)), ("key", (x.double().float(), shift))):
            torch.testing.assert_close(replayed(net, function, key, inputs), net(x) + (inputs[1] is not None))
        assert len(set(RECORDINGS[net]) - set(kept)) == 2


def test_a_recording_works_on_its_own_memory():
    x = torch.tensor([1.0, 2.0])
    double = record(lambda a: 2 * a, [x])
    x.zero_()
    assert double.output.tolist() == [2, 4] and double.inputs[0].tolist() == [1, 2]
    double.inputs[0].copy_(torch.tensor([5.0, 6.0]))
    answer = double.output
    double.replay()
    assert answer.tolist() == [10, 12]


def test_a_processor_told_to_do_without_bfloat16_does():
    "oneDNN would emulate it, many times slower than float32."
    code = "from diffspect_nb.slice_network import fast_dtype; print(fast_dtype('cpu'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout.strip() == "torch.float32"
