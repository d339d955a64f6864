"""Numbers of the sample study that a rebuilding must not change: MLEM, OSEM, both walks, probe and polar map.

`reference.json` says which commits made them, in float32 (bfloat16 differs
from processor to processor)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffspect_nb import slice_network, volume_network
from diffspect_nb.metrics import masks_of, psnr
from diffspect_nb.mlem import mlem, osem
from diffspect_nb.polar import polar_map
from diffspect_nb.prior import pretrained
from diffspect_nb.probe import ball, probe_region
from diffspect_nb.reconstruction import beginning_steps, outcome, reconstruct
from diffspect_nb.sampler import AnchoredWeights, PaperWeights
from diffspect_nb.study import Study, reduced_study, sample_folder

KNOWN = json.loads(Path(__file__).with_name("reference.json").read_text(encoding="utf-8"))["settings"]
ACQUIRED = {"5 %": (0.05, None), "100 %": (None, None), "9 views": (None, 9)}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "Sums rounded in one order only: the search for a ventricle may tip over in the last digit."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sample() -> Study:
    return Study.load(sample_folder())


@pytest.fixture(scope="module", params=ACQUIRED)
def setting(request, sample) -> tuple[str, Study]:
    return request.param, reduced_study(sample, *ACQUIRED[request.param], seed=0)


@pytest.fixture
def float32(monkeypatch):
    for room in (slice_network, volume_network):
        monkeypatch.setattr(room, "fast_dtype", lambda device: torch.float32)


def numbers(image: torch.Tensor, heart: torch.Tensor) -> list[float]:
    a = image.double()
    places = a.sum(), a.square().mean().sqrt(), a[heart].mean(), a[heart].std(), a.max(), a[25, 39, 31]
    return [float(v) for v in places]


def same(found: list[float], name: str, key: str, rtol: float = 1e-5) -> None:
    np.testing.assert_allclose(found, KNOWN[name][key], rtol=rtol, err_msg=f"{name}, {key}")


@pytest.mark.slow
def test_classical_images(setting, sample):
    name, study = setting
    same(numbers(mlem(study.measurement(), 50), sample.heart), name, "mlem")
    same(numbers(osem(study.measurement(), 5), sample.heart), name, "osem")


@pytest.mark.slow
def test_the_anchored_walk_and_what_is_read_from_it(setting, sample, float32):
    name, study = setting
    weights = AnchoredWeights.for_study(study, steps=3, fields=1)
    done = reconstruct(study, weights, pretrained("diffspect"))
    same(numbers(done.image, sample.heart), name, "anchored short")
    same(
        done.support.reduced, name, "anchored short deviance", 1e-4
    )  # counts drawn by chance tip over in the last digit
    same(done.scale, name, "anchored short scale")
    asked = ball(study.grid, (40.0, -20.0, 0.0))
    probe = probe_region(study.measurement(), done.image * study.count_fraction, asked)
    same([probe.log_likelihood_ratio, probe.amount, probe.standard_error], name, "anchored short probe")
    disc = np.asarray(polar_map(done.image).percent, dtype=float)
    same([disc.mean(), disc.std(ddof=1), disc.min()], name, "anchored short polar")


@pytest.mark.slow
def test_the_papers_walk(setting, sample, float32):
    name, study = setting
    done = reconstruct(study, PaperWeights.for_study(study, steps=3), pretrained("paper"))
    same(numbers(done.image, sample.heart), name, "paper short")
    same(done.support.reduced, name, "paper short deviance", 5e-3)  # its yardstick is one draw of counts
    same(done.scale, name, "paper short scale")


@pytest.mark.slow
def test_what_the_start_alone_keeps_of_x_in(sample):
    "No pull, no counts, no TV: from 999 nothing is left of x_in; from 960 a heart; from 800 more."
    low, heart = reduced_study(sample, 0.05, None, seed=0), masks_of(sample)["heart"]
    alone, prior = {"steps": 4, "lambda_dps": 0.0, "lambda_mlem": 0.0, "tv_weight": 0.0}, pretrained("paper")
    beginning = outcome(beginning_steps(low, PaperWeights(**alone)))
    found = {"x_in": psnr(beginning.late / low.count_fraction, sample.truth, heart)}
    for start in (999, 960, 800):
        image = reconstruct(low, PaperWeights(start=start, **alone), prior, beginning=beginning).image
        found[start] = psnr(image, sample.truth, heart)
    assert found[960] > found[999] + 10 and found[960] > found["x_in"] - 6 and found[800] > found["x_in"] - 4, found
