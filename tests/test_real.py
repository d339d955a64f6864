"Real scans end to end: hospital files in, a study, a guided reconstruction nearer to the scan than MLEM-50."

import tarfile
from dataclasses import replace

import numpy as np
import pydicom
import pytest
import torch

from diffspect_nb.cli import masks_of
from diffspect_nb.core import ImageGrid
from diffspect_nb.dicom import ct_to_mu, read_activity, study_from_image
from diffspect_nb.geometry import dnm570c
from diffspect_nb.metrics import nrmse
from diffspect_nb.sampler import reconstruct
from diffspect_nb.study import keep_views, load_image, thin


@pytest.fixture(scope="module")
def scans(data_dir):
    return data_dir / "physionet_mps_dnm530c"


def test_every_real_scan_is_read_the_right_way_up(scans):
    files = sorted(scans.glob("DICOM/*.dcm")) + sorted(scans.glob("nifti_pairs/*_0000.nii.gz"))
    assert len(files) == 7
    for file in files:
        image, grid = read_activity(file)
        assert grid == ImageGrid()
        seen = image > 0
        # The detectors stand in front and left: the support is cut off flat at the front, round at the back.
        assert seen[:, :10].sum() == 0 and seen[:, 60:].sum() > 5000
        if file.suffix == ".dcm":
            assert np.array_equal(image.numpy(), pydicom.dcmread(file).pixel_array[::-1])


def test_expert_masks_lie_on_the_hot_wall(scans):
    "Image and mask go through the same reader: the wall must be several times hotter than the rest."
    for number in (1, 2):
        image = load_image(scans / f"nifti_pairs/patient00{number}_0000.nii.gz")
        wall = load_image(scans / f"nifti_pairs/patient00{number}.nii.gz") > 0
        rest = (image > 0) & ~wall
        assert 2.5 < image[wall].mean() / image[rest].mean() < 5


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["5 % counts", "9 views"])
def test_a_real_scan_is_reconstructed_nearer_than_by_mlem(scans, setting):
    rng = np.random.default_rng(0)
    full = study_from_image(sorted(scans.glob("DICOM/*.dcm"))[0], dnm570c(), 8e6, rng)
    study = thin(full, 0.05, rng) if setting == "5 % counts" else keep_views(full, 9)
    done = reconstruct(study)
    mask = masks_of(study)["field of view"]
    assert nrmse(done.image, full.truth, mask) < nrmse(done.x_in, full.truth, mask)
    assert 0.7 < done.support.reduced < 1.3


@pytest.mark.slow
def test_a_real_ct_attenuates_a_real_scan(data_dir, scans, tmp_path):
    with tarfile.open(data_dir / "ct_cptac_pda_c3n00249" / "CT_CHEST_102slices_dicom.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    mu = ct_to_mu(tmp_path, ImageGrid())
    tissue = mu[mu > 0.01]
    assert 0.14 < tissue.median() < 0.17 and mu.max() <= 0.293 and (mu < 0.06).float().mean() > 0.1
    file = sorted(scans.glob("DICOM/*.dcm"))[0]
    bare = study_from_image(file, dnm570c(), 8e6, np.random.default_rng(0))
    dimmed = study_from_image(file, dnm570c(), 8e6, np.random.default_rng(0), mu)
    lost = bare.truth.sum() / dimmed.truth.sum()  # photons emitted per counted one, without and with tissue
    assert 0.2 < lost < 0.75
    done = reconstruct(thin(dimmed, 0.05, np.random.default_rng(1)))
    mask = masks_of(dimmed)["field of view"]
    assert nrmse(done.image, dimmed.truth, mask) < nrmse(done.x_in, dimmed.truth, mask)
    # Ignoring the tissue makes the image wrong by the attenuation itself.
    ignorant = reconstruct(replace(thin(dimmed, 0.05, np.random.default_rng(1)), mu=None))
    assert nrmse(ignorant.image, dimmed.truth, mask) > nrmse(done.image, dimmed.truth, mask)
    assert torch.isfinite(ignorant.image).all()
