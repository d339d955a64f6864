"Real scans end to end: hospital files in, a study, a guided reconstruction nearer to the scan than MLEM-50."

from dataclasses import replace

import numpy as np
import pydicom
import pytest
import torch
from scipy.ndimage import map_coordinates

from diffspect_nb.acquired import read_projections, read_stir_pinhole
from diffspect_nb.chest import with_uniform_tissue
from diffspect_nb.cli import main
from diffspect_nb.core import ImageGrid
from diffspect_nb.ct import ct_to_mu
from diffspect_nb.dicom import read_activity, study_from_image
from diffspect_nb.files import load_image
from diffspect_nb.geometry import dnm570c
from diffspect_nb.metrics import masks_of, nrmse
from diffspect_nb.mlem import osem
from diffspect_nb.reconstruction import measurement_support, reconstruct
from diffspect_nb.study import Study, keep_views, thin


@pytest.fixture(scope="module")
def scans(data_dir):
    return data_dir / "physionet_mps_dnm530c"


def test_every_real_scan_is_read_the_right_way_up(scans):
    files = sorted(scans.glob("DICOM/*.dcm")) + sorted(scans.glob("nifti_pairs/*_0000.nii.gz"))
    assert len(files) == 7
    for file in files:
        image, grid = read_activity(file)
        assert (grid.shape, grid.voxel_mm) == ((50, 70, 70), 4.0)
        assert 400 < grid.center_mm[2] < 700  # where the bed stood
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
def test_a_real_ct_attenuates_a_real_scan(data_dir, scans):
    mu = ct_to_mu(data_dir / "ct_cptac_pda_c3n00249" / "CT_CHEST_102slices_dicom.tar.xz", ImageGrid())
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


# --- measured projections of other cameras --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_simulated_single_pinhole_finds_its_line_sources(data_dir):
    "GATE's three capillaries: in the centre, 10 mm below and 10 mm to the side; found within half a millimetre."
    study = keep_views(read_stir_pinhole(data_dir / "stir_pinhole_spect"), list(range(0, 91, 3)))
    plane = osem(study.measurement(), 20, n_subsets=5)[10:30].sum(0)
    y, x = (torch.from_numpy(a) for a in study.grid.axes_mm()[1:])
    for place in ((0, 0), (0, 10), (-10, 0)):
        near = plane * ((x[None] - place[0]) ** 2 + (y[:, None] - place[1]) ** 2 < 16)
        found = [float((near * axis).sum() / near.sum()) for axis in (x[None], y[:, None])]
        assert np.hypot(found[0] - place[0], found[1] - place[1]) < 0.5
        assert 0.25 < near.sum() / plane.sum() < 0.4  # a third of the activity in each


@pytest.mark.slow
def test_a_patient_before_a_rotating_camera_has_a_horseshoe_for_a_heart(data_dir, tmp_path):
    "Real stress projections, half of the stops: a bright wall round a dark cavity, open to the base (behind, right)."
    source, study = data_dir / "rimd_spect_projection" / "00001.dcm", tmp_path / "study"
    argv = ["import", str(source), "--out", str(study), "--shape", "20", "52", "52", "--voxel-mm", "6.8"]
    assert main(argv) == 0
    imported = Study.load(study)
    assert imported.counts == 3_824_412 and imported.projections.shape == (30, 56, 64)  # the field is not so high
    half = keep_views(imported, 15)
    volume = osem(half.measurement(), 6, n_subsets=5).numpy()
    inner = volume[4:16, 8:-8, 8:-8]  # activity beyond the grid gathers at its edges
    place = np.argwhere(inner > np.percentile(inner, 99.2)) + [4, 8, 8]
    middle = np.average(place, axis=0, weights=volume[tuple(place.T)])
    z, y, x = (middle - (np.array(volume.shape) - 1) / 2) * 6.8
    assert x > 30 and y < 20  # on the left, in front
    check_horseshoe(volume[round(middle[0])], middle[1], middle[2], 6.8)


def check_horseshoe(plane: np.ndarray, row: float, column: float, voxel_mm: float) -> None:
    "A bright wall round a dark cavity at (row, column), open to the base: behind and right of it."
    angle, radius = np.deg2rad(np.arange(0, 360, 15)), np.arange(0, 50, 2) / voxel_mm
    rows, columns = row + radius * np.sin(angle)[:, None], column + radius * np.cos(angle)[:, None]
    wall = map_coordinates(plane, [rows, columns], order=1).max(1)
    cavity = map_coordinates(plane, [[row], [column]], order=1)[0]
    assert cavity < 0.3 * wall.max()
    assert (wall > 0.4 * wall.max()).mean() > 0.65
    assert 80 <= np.rad2deg(angle[wall.argmin()]) <= 190 and wall.min() < 0.3 * wall.max()


@pytest.mark.slow
def test_a_whole_chest_is_cut_to_the_heart_by_a_plain_command(data_dir, tmp_path, capsys):
    "No grid, no heart, no CT: all three are made from the file, and the guided image explains the counts."
    source = data_dir / "rimd_spect_projection" / "00001.dcm"
    assert main(["import", str(source), "--out", str(tmp_path / "study")]) == 0
    said = capsys.readouterr().out
    assert "heart at" in said and "uniform tissue" in said
    study = Study.load(tmp_path / "study")
    assert np.abs(np.subtract(study.meta["heart_mm"], (65, -5, -10))).max() < 8
    assert study.grid.shape == (50, 70, 70) and 0.4 < study.background.sum() / study.counts < 0.8
    assert study.mu is None and 0.05 < (study.body.mu > 0).float().mean() < 0.8
    done = reconstruct(keep_views(study, list(range(0, 30, 3))))
    places = zip(study.meta["heart_mm"][::-1], study.grid.axes_mm(), strict=True)
    z, y, x = (round((p - axis[0]) / 4) for p, axis in places)
    check_horseshoe(done.image[z].numpy(), y, x, 4.0)
    assert done.support.reduced < 1.5 and not done.support.warning


MISREAD = {
    "right": lambda file: None,
    "turned the other way": lambda file: setattr(file.RotationInformationSequence[0], "RotationDirection", "CC"),
    "half the counts of a view lost": lambda file: setattr(file, "PixelData", half_of_view(file, 12)),
}


def half_of_view(file: pydicom.Dataset, view: int) -> bytes:
    frames = file.pixel_array.copy()
    frames[view] = np.random.default_rng(0).binomial(frames[view], 0.5)
    return frames.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("case", MISREAD)
def test_real_counts_that_do_not_fit_are_told_in_words(data_dir, tmp_path, case):
    file = pydicom.dcmread(data_dir / "rimd_spect_projection" / "00001.dcm")
    MISREAD[case](file)
    file.save_as(tmp_path / "file.dcm")
    study = with_uniform_tissue(read_projections(tmp_path / "file.dcm"))
    measurement = study.measurement()
    warning = measurement_support(measurement, osem(measurement, 6)).warning
    assert bool(warning) == (case != "right")
    assert ("in view 12 " in warning) == ("half" in case)
