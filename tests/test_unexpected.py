"Valid files that say something unexpected: each is read rightly, or refused in one line that names the field."

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from conftest import ROOT
from fuzz import FILES

from diffspect_nb.acquired import read_interfile, read_projections
from diffspect_nb.cli import main
from diffspect_nb.core import ImageGrid, InputError, check_seed
from diffspect_nb.ct import ct_to_mu, hu_to_mu, read_ct
from diffspect_nb.dicom import read_activity, read_nm, write_nm
from diffspect_nb.files import cached_files, load_image, load_mask, read_image, save_image, trim_cache
from diffspect_nb.footprint import footprints
from diffspect_nb.geometry import rotating_camera, tiny, tiny_grid
from diffspect_nb.memory import check_memory, free_bytes, matrix_entries
from diffspect_nb.mlem import osem
from diffspect_nb.phantom import torso
from diffspect_nb.study import Study, reduced_study, simulate
from diffspect_nb.system import SystemMatrix

GRID = ImageGrid((6, 7, 8), 4.0, (10.0, -20.0, 30.0))
FRONT, BACK = [1, 0, 0, 0, 0, -1], [-1, 0, 0, 0, 0, -1]  # of frames seen from the patient's front and back


def whole_numbers() -> torch.Tensor:
    "No two voxels alike, so that no flip goes unseen."
    return torch.arange(GRID.n_voxels, dtype=torch.float32).reshape(GRID.shape) + 1


def edited(path: Path, *changes) -> Path:
    "A DICOM file after some changes."
    file = pydicom.dcmread(path)
    for change in changes:
        change(file)
    file.save_as(path)
    return path


def put(**values):
    "Sets attributes at the top level; None removes one."

    def change(file, item=None):
        for name, value in values.items():
            where = file if item is None else item
            delattr(where, name) if value is None and name in where else setattr(where, name, value)

    return change


def rotation(**values):
    return lambda file: put(**values)(file, file.RotationInformationSequence[0])


def detector(number=0, **values):
    return lambda file: put(**values)(file, file.DetectorInformationSequence[number])


def recon(folder: Path, *changes) -> Path:
    return edited(write_nm(folder / "recon.dcm", whole_numbers(), GRID), *changes)


def tomo(folder: Path, *changes, heads: int = 1, views: int = 4) -> Path:
    "An acquisition of some heads, clockwise from the front (180°) in steps of 6°; the second begins behind."
    n = heads * views
    counts = torch.arange(n * 6 * 8, dtype=torch.float32).reshape(n, 6, 8)
    path = write_nm(folder / "tomo.dcm", counts, ImageGrid((n, 6, 8), 6.0))
    turn, items = pydicom.Dataset(), [pydicom.Dataset() for _ in range(heads)]
    turn.StartAngle, turn.AngularStep, turn.RotationDirection, turn.RadialPosition = 180, 6, "CW", 220
    for item, facing, start in zip(items, (FRONT, BACK), (180, 0), strict=False):
        item.CollimatorType, item.ImageOrientationPatient, item.StartAngle = "PARA", facing, start
    vectors = put(
        ImageType=["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"],
        RotationInformationSequence=[turn],
        DetectorInformationSequence=items,
        NumberOfDetectors=heads,
        DetectorVector=[1 + k // views for k in range(n)],
        AngularViewVector=[1 + k % views for k in range(n)],
        EnergyWindowVector=[1] * n,
        RotationVector=[1] * n,
        SliceVector=None,
        NumberOfSlices=None,
    )
    return edited(path, vectors, *changes)


def angles_of(study: Study) -> list[int]:
    return [round(float(np.degrees(np.arctan2(*p.position_mm[:2])))) % 360 for p in study.scanner.pinholes]


def radii_of(study: Study) -> list[int]:
    return [round(float(np.hypot(*p.position_mm[:2]))) for p in study.scanner.pinholes]


# --- NM: what each frame is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, named",
    [
        (put(EnergyWindowVector=[1, 1, 1, 2, 2, 2], SliceVector=[1, 2, 3] * 2, NumberOfSlices=3), "0054,0010"),
        (put(EnergyWindowVector=[1, 2] * 3), "0054,0010"),
        (put(TimeSlotVector=[1, 1, 1, 2, 2, 2]), "0054,0070"),
        (put(RotationVector=[1, 1, 1, 2, 2, 2]), "0054,0050"),
        (put(DetectorVector=[1, 1, 1, 2, 2, 2]), "0054,0020"),
        (put(NumberOfSlices=3, SliceVector=None, NumberOfEnergyWindows=2), "0054,0081"),
        (put(NumberOfSlices=None, SliceVector=None, NumberOfTimeSlots=2), "0054,0071"),
        (put(SliceVector=[1, 2, 3, 4, 5, 5]), "0054,0080"),
        (put(SliceVector=[1, 2, 3, 4, 5]), "0054,0080"),
    ],
)
def test_two_volumes_are_not_one(tmp_path, change, named):
    with pytest.raises(InputError, match=named):
        read_nm(recon(tmp_path, change))


@pytest.mark.parametrize("order", [[6, 5, 4, 3, 2, 1], [2, 1, 4, 3, 6, 5], [1, 3, 5, 2, 4, 6]])
def test_slices_go_where_their_vector_says(tmp_path, order):
    "The position is that of the first frame, whichever slice it is."
    frames = [number - 1 for number in order]
    path = recon(tmp_path, put(SliceVector=order, PixelData=whole_numbers()[frames].numpy().astype("<u2").tobytes()))
    z = float(GRID.axes_mm()[0][frames[0]])
    path = edited(path, detector(ImagePositionPatient=[*(float(a[0]) for a in GRID.axes_mm()[:0:-1]), z]))
    image, grid = read_nm(path)
    assert torch.equal(image, whole_numbers()) and grid == GRID


@pytest.mark.parametrize(
    "cosines, flips", [([1, 0, 0, 0, -1, 0], (0, 1)), ([-1, 0, 0, 0, 1, 0], (0, 2)), ([-1, 0, 0, 0, -1, 0], (1, 2))]
)
def test_an_orientation_counts_wherever_it_stands(tmp_path, cosines, flips):
    image, _ = read_nm(recon(tmp_path, detector(ImageOrientationPatient=cosines)))
    assert torch.equal(image, whole_numbers().flip(flips))
    at_top = recon(tmp_path, detector(ImageOrientationPatient=None), put(ImageOrientationPatient=cosines))
    assert torch.equal(read_nm(at_top)[0], image)
    with pytest.raises(InputError, match="0020,0037.*contradicts itself"):
        read_nm(recon(tmp_path, put(ImageOrientationPatient=cosines)))


@pytest.mark.parametrize("plane, axes", [([1, 0, 0, 0, 0, -1], (0, 1)), ([0, 1, 0, 0, 0, -1], None)])
def test_coronal_and_sagittal_volumes_are_turned(tmp_path, plane, axes):
    "The affine says where each voxel is; the value found there is the one stored."
    path = recon(tmp_path, detector(ImageOrientationPatient=plane))
    image, grid = read_nm(path)
    right, down = np.array(plane, float).reshape(2, 3)
    first = np.array(pydicom.dcmread(path).DetectorInformationSequence[0].ImagePositionPatient, float)
    for k, i, j in ((0, 0, 0), (5, 2, 7), (3, 6, 1)):
        place = first + 4.0 * (k * np.cross(right, down) + i * down + j * right)
        z, y, x = (int(np.abs(axis - p).argmin()) for axis, p in zip(grid.axes_mm(), place[::-1], strict=True))
        assert image[z, y, x] == whole_numbers()[k, i, j]


def test_no_orientation_is_no_image(tmp_path):
    with pytest.raises(InputError, match=r"lacks Image Orientation \(Patient\) \(0020,0037\)"):
        read_nm(recon(tmp_path, detector(ImageOrientationPatient=None)))


@pytest.mark.parametrize(
    "change, named",
    [
        (put(ImageType=["DERIVED", "SECONDARY", "RECON TOMO", "TRANSMISSION"]), "0008,0008"),
        (put(ImageType=["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION", "ATTENUATION MAP"]), "0008,0008"),
        (put(Units="1CM"), "of emission"),
        (put(ImageType=["ORIGINAL", "PRIMARY", "RECON GATED TOMO", "EMISSION"]), "reconstructed NM volume"),
        (put(Modality="PT"), "got PT"),
        (put(Modality="OT", SOPClassUID=pydicom.uid.SecondaryCaptureImageStorage), "of class 1.2.840"),
        (put(RescaleSlope=0), "0028,1053"),
        (put(PixelSpacing=[4, 5]), "must be cubes"),
    ],
)
def test_what_is_no_emission_volume_is_refused(tmp_path, change, named):
    with pytest.raises(InputError, match=named):
        read_activity(recon(tmp_path, change))


def test_an_nm_class_is_read_whatever_its_modality_says(tmp_path):
    assert torch.equal(read_activity(recon(tmp_path, put(Modality="OT")))[0], whole_numbers())
    old = recon(tmp_path, put(Modality="OT", SOPClassUID="1.2.840.10008.5.1.4.1.1.5"))
    assert torch.equal(read_activity(old)[0], whole_numbers())
    assert read_projections(tomo(tmp_path, put(Modality="OT"))).counts > 0


# --- NM: where the heads stood ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "heads, change, named",
    [
        (1, put(EnergyWindowVector=[1, 1, 2, 2]), "0054,0010"),
        (1, put(EnergyWindowVector=None, NumberOfEnergyWindows=2), "0054,0011"),
        (1, put(RotationVector=[1, 1, 2, 2]), "0054,0050"),
        (1, put(TimeSlotVector=[1, 2, 1, 2]), "0054,0070"),
        (1, put(AngularViewVector=[1, 2, 2, 3]), "one angle"),
        (1, put(AngularViewVector=[1, 2, 3]), "0054,0090"),
        (1, rotation(AngularStep=0), "one angle"),
        (1, rotation(AngularStep=90, RadialPosition=[200] * 4), None),
        (1, rotation(AngularStep=120), "one angle"),
        (1, put(ImageType=["ORIGINAL", "PRIMARY", "TOMO", "TRANSMISSION"]), "0008,0008"),
        (1, detector(GantryDetectorTilt=15), "0018,1120"),
        (1, detector(ImageOrientationPatient=[0.8, 0.6, 0, 0, 0, -1]), "0020,0037"),
        (2, put(DetectorVector=None), "0054,0020"),
        (2, put(DetectorVector=[1] * 4 + [3] * 4), "0054,0020"),
        (2, detector(1, StartAngle=180), "one angle"),
        (2, put(AngularViewVector=list(range(1, 9))), "0054,0090"),
        (2, lambda f: [detector(h, StartAngle=None, ImageOrientationPatient=None)(f) for h in (0, 1)], "0054,0200"),
    ],
)
def test_an_acquisition_says_where_it_was_taken_or_is_refused(tmp_path, heads, change, named):
    path = tomo(tmp_path, change, heads=heads)
    if named is None:
        assert angles_of(read_projections(path)) == [180, 90, 0, 270]
        return
    with pytest.raises(InputError, match=named) as refused:
        read_projections(path)
    assert "\n" not in str(refused.value)


def test_of_two_energy_windows_one_is_taken_by_its_number(tmp_path, capsys):
    "Photopeak and scatter, frame by frame in turn, of two heads."
    turns = put(
        EnergyWindowVector=[1, 2] * 8,
        NumberOfEnergyWindows=2,
        AngularViewVector=[1, 1, 2, 2, 3, 3, 4, 4] * 2,
        DetectorVector=[1] * 8 + [2] * 8,
    )
    path = tomo(tmp_path, turns, heads=2, views=8)
    stored = torch.tensor(pydicom.dcmread(path).pixel_array).float()
    for window in (1, 2):
        study = read_projections(path, window=window)
        assert torch.equal(study.projections, stored[window - 1 :: 2])
        assert angles_of(study) == [180, 174, 168, 162, 0, 354, 348, 342]
    argv = ["import", str(path), "--out", str(tmp_path / "study"), "--shape", "6", "8", "8", "--voxel-mm", "6"]
    assert main(argv) == 2 and "(0054,0010) is [1, 2], one is read: --window" in capsys.readouterr().err
    assert main([*argv, "--window", "3"]) == 2 and "has no energy window 3" in capsys.readouterr().err
    assert main([*argv, "--window", "2"]) == 0
    assert Study.load(tmp_path / "study").counts == float(stored[1::2].sum())


def test_heads_stand_where_their_orientations_say(tmp_path):
    "A start angle for the rotation alone: opposite heads, and heads at right angles (L)."
    bare = [lambda file: [put(StartAngle=None)(file, item) for item in file.DetectorInformationSequence]]
    path = tomo(tmp_path, *bare, heads=2)
    assert angles_of(read_projections(path)) == [180, 174, 168, 162, 0, 354, 348, 342]
    left = [0, 1, 0, 0, 0, -1]  # seen from the patient's left: rows run to the back
    edited(path, detector(1, ImageOrientationPatient=left))
    assert angles_of(read_projections(path)) == [180, 174, 168, 162, 90, 84, 78, 72]
    edited(path, rotation(StartAngle=30))
    with pytest.raises(InputError, match="0054,0200.*orientation agrees"):
        read_projections(path)


@pytest.mark.parametrize("order", [[0, 4, 1, 5, 2, 6, 3, 7], [7, 6, 5, 4, 3, 2, 1, 0], [4, 5, 6, 7, 0, 1, 2, 3]])
def test_frames_may_come_in_any_order(tmp_path, order):
    "Interleaved heads, descending views, second head first: frame, angle and radius stay together."
    straight = read_projections(tomo(tmp_path, rotation(RadialPosition=[200, 201, 202, 203]), heads=2))
    counts = straight.projections[order].numpy().astype("<u2").tobytes()
    head, view = ([[1] * 4 + [2] * 4, [1, 2, 3, 4] * 2][k] for k in (0, 1))
    shuffled = put(
        PixelData=counts, DetectorVector=[head[k] for k in order], AngularViewVector=[view[k] for k in order]
    )
    study = read_projections(tomo(tmp_path, rotation(RadialPosition=[200, 201, 202, 203]), shuffled, heads=2))
    assert torch.equal(study.projections, straight.projections[order])
    assert angles_of(study) == [angles_of(straight)[k] for k in order]
    assert radii_of(study) == [radii_of(straight)[k] for k in order]


def test_the_orientation_is_that_of_the_first_stop_and_not_of_the_first_frame(tmp_path):
    "60 views over 180°, last one first: nothing is turned."
    path = tomo(tmp_path, put(AngularViewVector=list(range(60, 0, -1))), rotation(AngularStep=3), views=60)
    assert np.array_equal(read_projections(path).projections.numpy(), pydicom.dcmread(path).pixel_array)


@pytest.mark.parametrize("facing, flips", [(FRONT, (2,)), ([1, 0, 0, 0, 0, 1], (1, 2)), ([-1, 0, 0, 0, 0, 1], (1,))])
def test_a_mirrored_head_is_turned_alone(tmp_path, facing, flips):
    path = tomo(tmp_path, detector(1, ImageOrientationPatient=facing), heads=2)
    found, stored = read_projections(path).projections, torch.tensor(pydicom.dcmread(path).pixel_array).float()
    assert torch.equal(found[:4], stored[:4]) and torch.equal(found[4:], stored[4:].flip(flips))


def with_border(folder: Path, top: int, bottom: int, left: int, part: float = 0.0) -> Study:
    "A camera whose frames are larger than its detector; `part` of a line beside the field is covered."
    rng = np.random.default_rng(0)
    counts = rng.integers(50, 60, (4, 6, 8))
    frames = np.pad(counts, ((0, 0), (top, bottom), (left, 0)))
    if part:
        frames[:, top - 1, left:] = np.round(part * counts[:, 0])
    image = torch.from_numpy(frames.astype(np.float32))
    path = write_nm(folder / "frames.dcm", image, ImageGrid(image.shape, 6.0))
    tags = {e.tag: e for e in pydicom.dcmread(tomo(folder)) if e.keyword.endswith(("Sequence", "Vector", "ImageType"))}

    def change(file):
        for element in tags.values():
            file.add(element)
        file.NumberOfDetectors, file.NumberOfSlices = 1, None
        del file.NumberOfSlices, file.SliceVector

    shift = 3.0 * (top - bottom)  # puts the middle of the detector itself at z = 0
    return read_projections(edited(path, change), ImageGrid((6, 10, 10), 6.0), z_mm=shift)


@pytest.mark.parametrize("border", [(2, 3, 0, 0.0), (3, 2, 0, 0.4), (0, 4, 0, 0.0)])
def test_lines_that_the_detector_does_not_cover_say_nothing(tmp_path, border):
    plain, bordered = with_border(tmp_path, 0, 0, 0), with_border(tmp_path, *border)
    assert torch.equal(bordered.projections, plain.projections)
    torch.testing.assert_close(osem(bordered.measurement(), 4), osem(plain.measurement(), 4))


def test_a_column_cut_off_moves_every_stop_sideways(tmp_path):
    plain, bordered = with_border(tmp_path, 0, 0, 0), with_border(tmp_path, 0, 0, 2)
    assert torch.equal(bordered.projections, plain.projections)
    for a, b in zip(plain.scanner.pinholes, bordered.scanner.pinholes, strict=True):
        np.testing.assert_allclose(np.subtract(b.position_mm, a.position_mm), 6.0 * np.array(a.column), atol=1e-9)


@pytest.mark.parametrize("heads, flips", [(1, (2,)), (2, None)])
def test_an_orientation_at_the_top_is_of_a_single_head(tmp_path, heads, flips):
    gone = [detector(h, ImageOrientationPatient=None) for h in range(heads)]
    path = tomo(tmp_path, *gone, put(ImageOrientationPatient=BACK), heads=heads)
    if flips is None:
        with pytest.raises(InputError, match="0020,0037.*given once for 2 heads"):
            read_projections(path)
    else:
        stored = torch.tensor(pydicom.dcmread(path).pixel_array).float()
        assert torch.equal(read_projections(path).projections, stored.flip(flips))


@pytest.mark.parametrize(
    "change, expected",
    [
        (rotation(RadialPosition=[200, 201, 202, 203]), [200, 201, 202, 203] * 2),
        (rotation(RadialPosition=[*range(200, 204), *range(240, 244)]), [*range(200, 204), *range(240, 244)]),
        (detector(1, RadialPosition=250), [220] * 4 + [250] * 4),
        (detector(1, RadialPosition=[240, 241, 242, 243]), [220] * 4 + [240, 241, 242, 243]),
        (detector(1, RadialPosition=0), [220] * 8),
        (rotation(RadialPosition=0), None),
        (rotation(RadialPosition=-220), None),
        (rotation(RadialPosition=22), None),
        (rotation(RadialPosition=2200), None),
        (rotation(RadialPosition=None), None),
        (rotation(RadialPosition=[220, 220, 220, 0]), None),
        (rotation(RadialPosition=[220, 221, 222]), None),
    ],
)
def test_a_radius_is_that_of_each_frame_or_must_be_given(tmp_path, change, expected, capsys):
    path = tomo(tmp_path, change, heads=2)
    if expected is not None:
        assert radii_of(read_projections(path)) == expected
        return
    argv = ["import", str(path), "--out", str(tmp_path / "study"), "--shape", "6", "8", "8", "--voxel-mm", "6"]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("Radial Position (0018,1142)", "--radius-mm"))
    assert main([*argv, "--radius-mm", "230"]) == 0
    assert radii_of(Study.load(tmp_path / "study")) == [230] * 8
    assert main([*argv, "--radius-mm", "-230"]) == 2


# --- one affine rule --------------------------------------------------------------------------------------------------


def nifti(path: Path, affine=None, array=None, unit="mm") -> Path:
    "A NIfTI file with a matrix and a unit."
    array = whole_numbers().numpy().transpose(2, 1, 0) if array is None else array
    image = nibabel.Nifti1Image(array, GRID.affine() if affine is None else affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path


def turned(degrees: float, axis: int = 2) -> np.ndarray:
    "The grid's affine turned about an axis."
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn, (i, j) = np.eye(4), [k for k in range(3) if k != axis]
    turn[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    return turn @ GRID.affine()


@pytest.mark.parametrize("degrees, axis", [(30, 2), (44, 2), (2, 2), (10, 0), (5, 1)])
def test_an_oblique_image_is_refused_or_resampled(tmp_path, degrees, axis):
    path = nifti(tmp_path / "a.nii.gz", turned(degrees, axis))
    with pytest.raises(InputError, match="oblique images are not supported.*--resample"):
        read_activity(path)
    image, grid = read_activity(path, resample=True)
    to_index = np.linalg.inv(turned(degrees, axis)) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    where = (to_index @ np.c_[grid.centers_mm(), np.ones(grid.n_voxels)].T)[:3]  # x, y, z of the file
    inside = ((where > 0) & (where < [[7], [6], [5]])).all(0)
    linear = 1 + where[0] + 8 * where[1] + 56 * where[2]  # the values are linear in the index
    assert inside.sum() > 100 and np.allclose(image.numpy().ravel()[inside], linear[inside], rtol=1e-4)


def test_millimetres_come_from_the_affine_in_its_unit(tmp_path):
    in_metres = GRID.affine()
    in_metres[:3] /= 1000
    assert read_image(nifti(tmp_path / "m.nii", in_metres, unit="meter"))[1] == GRID
    in_micrometres = GRID.affine()
    in_micrometres[:3] *= 1000
    assert read_image(nifti(tmp_path / "u.nii", in_micrometres, unit="micron"))[1] == GRID
    assert read_image(nifti(tmp_path / "x.nii", unit="unknown"))[1] == GRID
    with pytest.raises(InputError, match="edges of voxels"):
        read_image(nifti(tmp_path / "m.nii", unit="meter"))


def test_sform_and_qform_agree_or_one_of_them_counts(tmp_path):
    path = tmp_path / "a.nii"
    image = nibabel.Nifti1Image(whole_numbers().numpy().transpose(2, 1, 0), GRID.affine())
    image.header["pixdim"][1:4] = 2  # edges that contradict the matrix
    for code in (0, 1):
        image.header["qform_code"] = code
        nibabel.save(image, path)
        if code == 0:
            assert read_image(path)[1] == GRID
        else:
            with pytest.raises(InputError, match="qform and sform"):
                read_image(path)
    for kept, dropped in (("qform", "sform"), ("sform", "qform")):
        image = nibabel.Nifti1Image(whole_numbers().numpy().transpose(2, 1, 0), None)
        getattr(image.header, f"set_{dropped}")(np.diag([2.0, 3.0, 4.0, 1.0]), 0)
        getattr(image.header, f"set_{kept}")(GRID.affine(), 1)
        nibabel.save(image, path)
        found, grid = read_image(path)
        assert torch.equal(found, whole_numbers()) and grid == GRID
    nibabel.save(nibabel.Nifti1Image(whole_numbers().numpy().transpose(2, 1, 0), None), path)
    with pytest.raises(InputError, match="which way its axes run"):
        read_image(path)


@pytest.mark.parametrize("name", ["UP.NII.GZ", "Up.Nii", "pair.img", "two.nii"])
def test_a_nifti_is_one_by_any_spelling(tmp_path, name):
    kind = {"pair.img": nibabel.Nifti1Pair, "two.nii": nibabel.Nifti2Image}.get(name, nibabel.Nifti1Image)
    plain = tmp_path / (name.lower() if name.startswith(("U", "u")) else name)
    nibabel.save(kind(whole_numbers().numpy().transpose(2, 1, 0), GRID.affine()), plain)
    plain.rename(tmp_path / name)
    image, grid = read_activity(tmp_path / name)
    assert torch.equal(image, whole_numbers()) and grid == GRID


def test_a_fourth_axis_of_one_and_a_hair_below_zero_are_read(tmp_path):
    array = whole_numbers().numpy().transpose(2, 1, 0).copy()
    array[2, 2, 2] = -1e-6
    image, grid = read_activity(nifti(tmp_path / "a.nii.gz", array=array[..., None]))
    assert float(image.min()) == 0 and grid == GRID
    array[2, 2, 2] = -50
    with pytest.raises(InputError, match="its minimum is -50"):
        read_activity(nifti(tmp_path / "a.nii.gz", array=array))
    for wrong in (np.stack([array] * 2, -1), array[0], array.astype(np.complex64)):
        with pytest.raises(InputError, match="three-dimensional, real"):
            read_activity(nifti(tmp_path / "a.nii.gz", array=wrong))


def test_voxels_that_are_no_cubes_become_cubes_on_request(tmp_path):
    "Slices of 8 mm: twice as many of 4 mm, the values between them."
    affine = GRID.affine()
    affine[:, 2] *= [1, 1, 2, 1]
    path = nifti(tmp_path / "a.nii", affine)
    with pytest.raises(InputError, match="must be cubes, got .4.0, 4.0, 8.0"):
        read_image(path)
    image, grid = read_image(path, resample=True)
    assert grid.shape == (12, 7, 8) and grid.voxel_mm == 4
    torch.testing.assert_close(image[1::2][1:5], 0.75 * whole_numbers()[1:5] + 0.25 * whole_numbers()[2:6])


def test_world_coordinates_are_the_same_from_dicom_and_nifti(tmp_path):
    image, grid = read_nm(write_nm(tmp_path / "a.dcm", whole_numbers(), GRID))
    save_image(tmp_path / "a.nii.gz", image, grid)
    assert grid == GRID and read_image(tmp_path / "a.nii.gz")[1] == GRID
    assert torch.equal(load_image(tmp_path / "a.nii.gz", grid), image)


# --- grids are compared before images are -----------------------------------------------------------------------------

ROOMY = replace(GRID, shape=(8, 9, 10))  # structural similarity takes seven voxels
ELSEWHERE = {
    "moved": {"center_mm": (14.0, -20.0, 30.0)},
    "of other voxels": {"voxel_mm": 5.0},
    "of another shape": {"shape": (8, 9, 11)},
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_images_that_lie_elsewhere_are_not_compared(tmp_path, case, capsys):
    a, b, mask = (str(tmp_path / f"{name}.nii.gz") for name in ("a", "b", "mask"))
    save_image(a, torch.arange(720.0).reshape(ROOMY.shape), ROOMY)
    other = replace(ROOMY, **ELSEWHERE[case])
    save_image(b, torch.ones(other.shape), other)
    save_image(mask, torch.ones(other.shape), other)
    assert main(["evaluate", a, b]) == 2 and "--resample" in capsys.readouterr().err
    assert main(["evaluate", a, a, "--mask", mask]) == 2 and "mask.nii.gz" in capsys.readouterr().err
    assert main(["evaluate", a, b, "--resample"]) == 0
    mirrored = nibabel.as_closest_canonical(nibabel.load(a))  # the same image in another order is the same image
    nibabel.save(mirrored, b)
    assert main(["evaluate", a, b]) == 0
    assert "inf" in capsys.readouterr().out


def test_resampling_finds_each_value_where_it_lies(tmp_path):
    save_image(tmp_path / "a.nii.gz", whole_numbers(), GRID)
    left = replace(GRID, **ELSEWHERE["moved"])  # by a voxel
    moved = load_image(tmp_path / "a.nii.gz", left, resample=True)
    assert torch.equal(moved[..., :-1], whole_numbers()[..., 1:]) and not moved[..., -1].any()
    region = (whole_numbers() > 200).float()
    save_image(tmp_path / "m.nii.gz", region, GRID)
    assert torch.equal(load_mask(tmp_path / "m.nii.gz", left, True)[..., :-1], region[..., 1:] > 0)


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_heart_s_mask_lies_on_its_image(tmp_path, case, capsys):
    save_image(tmp_path / "a.nii.gz", whole_numbers(), GRID)
    other = replace(GRID, **ELSEWHERE[case])
    save_image(tmp_path / "heart.nii.gz", torch.ones(other.shape), other)
    image, mask, out = (str(tmp_path / name) for name in ("a.nii.gz", "heart.nii.gz", "out"))
    asked = ["simulate", "--scanner", "tiny", "--no-reference", "--counts-total", "1e5", "--out", out]
    asked += ["--activity", image, "--heart", mask]
    assert main(asked) == 2 and "heart.nii.gz" in capsys.readouterr().err
    assert main([*asked, "--resample"]) == 0
    assert Study.load(out).grid == replace(GRID, center_mm=(0, 0, 0)) and Study.load(out).heart is not None
    for argv in ([image, "--mask", mask], [image, mask]):
        assert main(["read", *argv, "--out", out]) == 2 and "heart.nii.gz" in capsys.readouterr().err


@pytest.mark.slow
def test_a_heart_is_read_in_the_coordinates_of_its_file(tmp_path, capsys):
    "The same image on a grid moved by (40, 0, −30) mm; rest lies elsewhere and is resampled on request."
    phantom = torso(np.random.default_rng(3), sex="m")
    found = {}
    for name, move in (("at 0", (0.0, 0.0, 0.0)), ("moved", (40.0, 0.0, -30.0))):
        save_image(tmp_path / f"{name}.nii.gz", phantom.activity, replace(phantom.grid, center_mm=move))
        assert main(["read", str(tmp_path / f"{name}.nii.gz"), "--out", str(tmp_path / "out")]) == 0
        reading = json.loads((tmp_path / "out" / "reading.json").read_text())
        found[name] = np.array(reading["images"]["image"]["center_mm"])
    assert np.allclose(found["moved"] - found["at 0"], [40, 0, -30], atol=0.5)
    both = [str(tmp_path / f"{name}.nii.gz") for name in ("at 0", "moved")]
    assert main(["read", *both, "--out", str(tmp_path / "out")]) == 2
    assert "--resample" in capsys.readouterr().err


# --- CT ---------------------------------------------------------------------------------------------------------------


def ct(folder: Path, *changes, number: int | None = None, count: int = 4) -> Path:
    "Slices of water, the corner pixel stored as 3000; changes are made to all slices, or to one."
    (folder / "ct").mkdir()
    series = pydicom.uid.generate_uid()
    for k in range(count):
        stored = np.full((6, 6), 1024, "<u2")
        stored[0, 0] = 3000
        path = write_nm(folder / "ct" / f"{k}.dcm", torch.ones(1, 6, 6), ImageGrid((1, 6, 6), 4.0))
        plain = put(NumberOfFrames=None, FrameIncrementPointer=None, DetectorInformationSequence=None)
        about = put(
            Modality="CT",
            SeriesInstanceUID=series,
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, 0, 4 * k],
            RescaleSlope=1,
            RescaleIntercept=-1024,
            PixelData=stored.tobytes(),
        )
        edited(path, plain, about, *(changes if number in (None, k) else ()))
    return folder / "ct"


@pytest.mark.parametrize(
    "corner, kind, padding",
    [
        (3000, "US", (3000,)),
        (3000, "US", (2900, 3100)),
        (3000, "US", (3100, 2900)),
        (63536, "SS", (-2000,)),  # unsigned pixels, a signed padding
        (-2000, "SS", (-2000,)),
        (-2000, "US", (63536,)),
        (0, "US", (0,)),
    ],
)
def test_padding_is_air_whatever_its_value(tmp_path, corner, kind, padding):
    def padded(file):
        stored = np.full((6, 6), 1024, "<i4")
        stored[0, 0] = corner
        file.PixelRepresentation = int(corner < 0)
        file.PixelData = stored.astype("<i2" if corner < 0 else "<u2").tobytes()
        for tag, value in zip((0x00280120, 0x00280121), padding, strict=False):
            file[tag] = pydicom.DataElement(tag, kind, value)

    hu, _, _ = read_ct(ct(tmp_path, padded))
    assert (hu[:, 0, 0] == -1000).all() and (hu[:, 1:] == 0).all() and not hu_to_mu(hu)[:, 0, 0].any()


def test_without_padding_a_dense_pixel_is_bone(tmp_path):
    assert (read_ct(ct(tmp_path))[0][:, 0, 0] == 3000 - 1024).all()


@pytest.mark.parametrize(
    "change, named",
    [
        (put(ImagePositionPatient=[0, 0, 4]), "two slices lie at z = 4 mm"),
        (put(ImagePositionPatient=[3, 0, 8]), "0020,0032"),
        (put(ImagePositionPatient=[0, -2, 8]), "0020,0032"),
        (put(ImagePositionPatient=[0, 0, 9]), "not evenly spaced"),
        (put(PixelSpacing=[4.5, 4.5]), "0028,0030"),
        (put(ImageOrientationPatient=[1, 0, 0, 0, -1, 0]), "0020,0037"),
        (put(Rows=4, Columns=9), "0028,0010"),
        (put(RescaleType="HU_MOD"), "0028,1054"),
        (put(RescaleSlope=None), "0028,1053"),
        (put(NumberOfFrames=2, Rows=3), "0028,0010"),
        (put(PixelSpacing=None), "0028,0030"),
    ],
)
def test_every_slice_of_a_ct_is_checked(tmp_path, change, named):
    with pytest.raises(InputError, match=named) as refused:
        ct_to_mu(ct(tmp_path, change, number=2), ImageGrid((4, 6, 6), 4.0))
    assert "\n" not in str(refused.value)


def test_each_slice_has_its_own_slope(tmp_path):
    hu, _, size = read_ct(ct(tmp_path, put(RescaleIntercept=-1000), number=2))
    assert hu[2, 3, 3] == 24 and hu[1, 3, 3] == 0 and size.tolist() == [4, 4, 4]


# --- Interfile --------------------------------------------------------------------------------------------------------

VALUES = np.arange(120).reshape(4, 5, 6) * 500 + 300


def interfile(folder: Path, *more: str, dtype: str = "<u2", pad: bytes = b"", drop: tuple[str, ...] = ()) -> Path:
    "A header with the usual keys, without those dropped, and with more."
    (folder / "d.i").write_bytes(pad + VALUES.astype(dtype).tobytes())
    lines = ["!INTERFILE :=", "!imaging modality := nucmed", "!version of keys := 3.3", "!name of data file := d.i"]
    lines += ["!type of data := Tomographic", "imagedata byte order := LITTLEENDIAN"]
    lines += ["!number format := unsigned integer", "!number of bytes per pixel := 2"]
    lines += [f"!matrix size [{axis}] := {n}" for axis, n in ((1, 6), (2, 5), (3, 4))]
    kept = [line for line in lines if not any(line.lstrip("!").startswith(key) for key in drop)]
    (folder / "h.hv").write_bytes("\n".join([*kept, *more]).encode("latin-1"))
    return folder / "h.hv"


FORMAT = ("number format", "number of bytes per pixel")


@pytest.mark.parametrize(
    "options, more",
    [
        ({"dtype": ">u2", "drop": ("imagedata byte order",)}, ()),
        ({"dtype": ">u2", "drop": ("imagedata byte order",)}, ("IMAGEDATA  BYTE\tORDER := big endian",)),
        ({"drop": ("imagedata byte order",)}, ("imagedata_byte_order := LittleEndian",)),
        ({"pad": bytes(512)}, ("data offset in bytes [1] := 512",)),
        ({"pad": bytes(512)}, ("!Data  Offset in\tbytes[1]:=512",)),
        ({"pad": bytes(4096)}, ("data starting block := 2",)),
        ({"pad": bytes(2048)}, ("data starting block := 1", "data offset in bytes := 2048")),
        ({"dtype": "<f8", "drop": FORMAT}, ("number format := long float",)),
        ({"dtype": "<f4", "drop": FORMAT}, ("number format := Short Float", "number of bytes per pixel := 4")),
        ({"dtype": "<i4", "drop": FORMAT}, ("!number format := signed integer", "!number of bytes per pixel := 4")),
        ({"drop": ("number format",)}, ()),
        ({"drop": ("matrix size [3]",)}, ("!number of projections := 4",)),
        ({"drop": ("matrix size [3]",)}, ("!total number of images := 4",)),
        ({}, ("patient name := M\u00fcller", "; a comment := 1", "study date := 2026:11:27 ; of the study")),
        ({}, ("number of time frames := 1", "number of energy windows := 1", "image scaling factor[1] := 1.0")),
        ({}, ("!END OF INTERFILE :=", "number of time frames := 8")),
        ({}, ("data compression := none", "number of dimensions := 3", "matrix axis label [1] := x")),
        ({}, ("scaling factor (mm/pixel) [1] := 6.8", "maximum pixel count := 59800", "number of iterations := 20")),
    ],
)
def test_interfile_is_read_as_stir_documents_it(tmp_path, options, more):
    _, array = read_interfile(interfile(tmp_path, *more, **options))
    assert np.array_equal(array, VALUES)


def test_interfile_begins_with_a_mark_or_not(tmp_path):
    path = interfile(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert np.array_equal(read_interfile(path)[1], VALUES)


@pytest.mark.parametrize(
    "more, factor",
    [
        (("image scaling factor[1] := 2.5",), 2.5),
        (("quantification units := 0.25",), 0.25),
        (("quantification units := 4", "image scaling factor [1] := 4"), 4),
        (("rescale slope := 2",), 2),
        (("image scaling factor [1] := {1, 2, 3, 4}",), np.array([1, 2, 3, 4]).reshape(4, 1, 1)),
    ],
)
def test_scale_factors_of_interfile_scale(tmp_path, more, factor):
    assert np.allclose(read_interfile(interfile(tmp_path, *more))[1], VALUES * factor)
    both = interfile(tmp_path, "rescale slope := 2", "rescale intercept := -7")
    assert np.allclose(read_interfile(both)[1], 2 * VALUES - 7)


@pytest.mark.parametrize(
    "more, drop",
    [
        (("number of time frames := 2",), ()),
        (("number of energy windows := 2",), ()),
        (("!number of detector heads := 2",), ()),
        (("number of time slots := 8",), ()),
        (("image scaling factor[2] := 3",), ()),
        (("image scaling factor[1] := 2", "quantification units := 3"), ()),
        (("image scaling factor[1] := {1, 2}",), ()),
        (("image scaling factor[1] := 0",), ()),
        (("calibration factor := 1.7",), ()),
        (("data compression := gzip",), ()),
        (("data encode := uuencode",), ()),
        (("matrix axis label [1] := z",), ()),
        (("!type of data := Dynamic",), ("type of data",)),
        (("number format := ASCII",), ("number format",)),
        (("number format := short float",), ("number format",)),
        (("imagedata byte order := middle",), ("imagedata byte order",)),
        (("number of bytes per pixel := 3",), ("number of bytes per pixel",)),
        ((), ("number of bytes per pixel",)),
        (("number of bytes per pixel := 4",), ()),
        (("data starting block := 1", "data offset in bytes := 512"), ()),
        (("!matrix size [4] := 2",), ()),
        (("!matrix size [1] := {6, 5}",), ("matrix size [1]",)),
        ((), ("matrix size [3]",)),
        (("!matrix size [3] := 2",), ("matrix size [3]",)),
    ],
)
def test_what_interfile_says_and_we_do_not_understand_is_refused(tmp_path, more, drop):
    "The last one: half of the file would be left over."
    with pytest.raises(InputError, match="h.hv|d.i") as refused:
        read_interfile(interfile(tmp_path, *more, drop=drop))
    assert "\n" not in str(refused.value)


# --- back to the archive ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "charset, name",
    [
        ("ISO_IR 192", "Wang^XiaoDong=王^小东"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 144", "Люксембург^Роза"),
        ("ISO_IR 126", "Διονυσίου^Ελένη"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 100", "Müller^Jürg"),
        ("ISO_IR 101", "Wałęsa^Łucja"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    ],
)
@pytest.mark.parametrize("description", ["9 views", "élan"])
def test_a_name_survives_the_way_back(tmp_path, charset, name, description):
    source = recon(tmp_path, put(SpecificCharacterSet=charset), put(PatientName=name, PatientID="4711"))
    path = write_nm(tmp_path / "out.dcm", whole_numbers(), GRID, source, description=description)
    out, given = pydicom.dcmread(path), pydicom.dcmread(source)
    assert str(given.PatientName) == name == str(out.PatientName) and out.SeriesDescription == description
    assert description != "9 views" or out.SpecificCharacterSet == given.SpecificCharacterSet
    assert out.FrameOfReferenceUID != given.FrameOfReferenceUID and out.StudyInstanceUID == given.StudyInstanceUID


def test_a_name_without_a_character_set_keeps_its_bytes(tmp_path):
    source = recon(tmp_path, put(PatientName="Mueller^Juerg"))
    source.write_bytes(source.read_bytes().replace(b"Mueller^Juerg", b"M\xfcll r^J\xfcrg  "))
    out = write_nm(tmp_path / "out.dcm", whole_numbers(), GRID, source)
    assert b"M\xfcll r^J\xfcrg" in out.read_bytes() and "SpecificCharacterSet" not in pydicom.dcmread(out)


@pytest.mark.parametrize("edge", [10 / 3, 6.799385, 4.0])
def test_any_voxel_size_fits_into_a_decimal_string(tmp_path, edge):
    grid = ImageGrid((6, 7, 8), edge, (1 / 3, -77.570656, 491.7))
    _, again = read_nm(write_nm(tmp_path / "a.dcm", whole_numbers(), grid))
    assert again.voxel_mm == pytest.approx(edge, abs=1e-5) and np.allclose(again.center_mm, grid.center_mm, atol=1e-3)


# --- one line instead of a traceback ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_study(tmp_path_factory) -> Path:
    rng = np.random.default_rng(5)
    return simulate(torso(rng, tiny_grid()), tiny(), 5e5, rng).save(tmp_path_factory.mktemp("study"))


def test_a_source_that_is_none_is_refused_before_any_work(tiny_study, tmp_path, capsys):
    (tmp_path / "note.dcm").write_text("no DICOM")
    bare = edited(write_nm(tmp_path / "bare.dcm", whole_numbers(), GRID), put(StudyInstanceUID=None))
    for source in (tmp_path / "nope.dcm", tmp_path / "note.dcm", tmp_path, bare):
        out = tmp_path / "out"
        argv = ["reconstruct", str(tiny_study), "--method", "osem", "--dicom", str(source), "--out", str(out)]
        assert main(argv) == 2
        assert capsys.readouterr().err.count("\n") == 1 and not list(out.iterdir())


@pytest.mark.parametrize("seed", ["-1", str(2**64), str(2**63)])
def test_a_seed_that_no_generator_takes_is_refused(tiny_study, tmp_path, seed, capsys):
    for argv in (["reconstruct", str(tiny_study), "--method", "osem", "--counts", "0.5"], ["simulate"], ["demo"]):
        assert main([*argv, "--seed", seed, "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert "--seed must be 0 …" in said and said.count("\n") == 1
    with pytest.raises(InputError, match="seed must be"):
        reduced_study(Study.load(tiny_study), 0.5, None, int(seed))
    assert check_seed(0) == 0 and check_seed(2**63 - 1) == 2**63 - 1


def ran(argv: list[str], **environment: str) -> subprocess.CompletedProcess:
    "The command line in a process of its own."
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    code = "import sys; from diffspect_nb.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *argv], env=env, capture_output=True)


@pytest.mark.slow
def test_any_code_page_will_do(tiny_study, tmp_path):
    "A terminal that has neither … nor ° nor ⁶³, and a folder whose name is no text."
    out = str(tmp_path / "o\udcff")
    for argv in (["reconstruct", "--help"], ["reconstruct", str(tiny_study), "--method", "osem", "--out", out]):
        done = ran(argv, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert (Path(out) / "result.json").exists()


@pytest.mark.slow
def test_a_user_without_a_home_has_a_cache(tmp_path):
    "Python finds no home where neither HOME nor the list of users names one."
    code = "import os, pwd, sys\ndef nobody(*_): raise KeyError\npwd.getpwuid = nobody\n"
    code += "from diffspect_nb.cli import main\nsys.exit(main(['info']))"
    gone = ("HOME", "XDG_CACHE_HOME", "DIFFSPECT_CACHE", "USERPROFILE")
    env = {k: v for k, v in os.environ.items() if k not in gone} | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and str(tmp_path) in done.stdout, done.stderr


def test_a_format_whose_library_is_missing_is_one_line(tmp_path, capsys, monkeypatch):
    "As nibabel meets an HDF5 MINC file where h5py is not installed."
    file = tmp_path / "small.mnc"
    file.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(2000))

    def load(*_):
        raise ModuleNotFoundError("No module named 'h5py'", name="h5py")

    monkeypatch.setattr(nibabel, "load", load)
    assert main(["evaluate", str(file), str(file)]) == 2
    said = capsys.readouterr().err
    assert "small.mnc" in said and "h5py" in said and said.count("\n") == 1


# --- memory and the cache ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scanner, grid",
    [
        (tiny(), tiny_grid()),
        (rotating_camera(angles_deg=range(0, 180, 45)), ImageGrid((10, 24, 24), 12.0)),
        (rotating_camera(angles_deg=range(0, 180, 45), pixels=(16, 16)), ImageGrid((10, 24, 24), 6.0)),
    ],
)
def test_a_matrix_is_foreseen(scanner, grid):
    true = sum(len(view.voxel) for view in footprints(scanner, grid).views)
    assert 0.6 < matrix_entries(scanner, grid) / true < 1.6


def test_too_large_a_study_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    "60 stops: one line with what would help; larger voxels are taken."
    study = tmp_path / "study"
    argv = ["import", str(tomo(tmp_path, rotation(AngularStep=3), views=60)), "--out", str(study)]
    assert main([*argv, "--shape", "50", "108", "108", "--voxel-mm", "4"]) == 0
    monkeypatch.setenv("DIFFSPECT_MEMORY_GB", "0.5")
    out = tmp_path / "out"
    assert main(["reconstruct", str(study), "--method", "osem", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "GB are free" in said and not list(out.iterdir())
    monkeypatch.setenv("DIFFSPECT_MEMORY_GB", "6")
    camera, fine = rotating_camera(angles_deg=range(0, 180, 3)), ImageGrid((100, 216, 216), 2.0)
    with pytest.raises(InputError, match="--voxel-mm"):
        check_memory(camera, fine)
    check_memory(camera, ImageGrid((50, 108, 108), 4.0), network=True)
    monkeypatch.setenv("DIFFSPECT_MEMORY_GB", "much")
    with pytest.raises(InputError, match="DIFFSPECT_MEMORY_GB"):
        check_memory(camera, fine)


def test_free_memory_is_the_machine_s_or_the_container_s(tmp_path, monkeypatch):
    monkeypatch.delenv("DIFFSPECT_MEMORY_GB", raising=False)
    group = tmp_path / "sys" / "fs" / "cgroup"
    for folder in (tmp_path / "proc", group):
        folder.mkdir(parents=True)
    assert free_bytes(tmp_path) is None
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable:    5000000 kB\n")
    assert free_bytes(tmp_path) == 5_000_000 * 1024
    (group / "memory.current").write_text("3000000000\n")
    (group / "memory.max").write_text("max\n")
    assert free_bytes(tmp_path) == 5_000_000 * 1024
    (group / "memory.max").write_text("4000000000\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 500000000\nactive_file 7\n")
    assert free_bytes(tmp_path) == 1_500_000_000


def test_the_cache_has_a_limit_and_can_be_emptied(tmp_path, capsys, monkeypatch):
    "What was used longest ago goes first; other files, and patients of a cohort that grows, stay."
    monkeypatch.setenv("DIFFSPECT_CACHE", str(tmp_path))
    monkeypatch.setenv("DIFFSPECT_CACHE_GB", "2e-6")  # 2,000 bytes
    (tmp_path / "cohort-1").mkdir()
    names = ["system-a.safetensors", "system-b.safetensors", "cohort-1/000001.safetensors", "mine.txt"]
    for age, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes(900))
        os.utime(tmp_path / name, (1e9 - age,) * 2)
    assert trim_cache() == 900 and not (tmp_path / "system-b.safetensors").exists()
    SystemMatrix.build(tiny(), tiny_grid())  # larger than all that is allowed: it goes as well
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert left == ["cohort-1/000001.safetensors", "mine.txt"]
    assert main(["info"]) == 0 and "1 files, 0 of at most 0 MB" in capsys.readouterr().out
    assert main(["info", "--clear-cache"]) == 0
    assert not cached_files() and (tmp_path / "mine.txt").exists()
    monkeypatch.setenv("DIFFSPECT_CACHE_GB", "lots")
    assert main(["info"]) == 2 and "DIFFSPECT_CACHE_GB" in capsys.readouterr().err


def test_every_kind_of_file_is_still_read(tmp_path):
    "What the fuzzer spoils is whole to begin with."
    assert read_projections(FILES["projections"](tmp_path)).counts > 0


# --- what was made of a file, in words --------------------------------------------------------------------------------


def test_a_file_without_a_heart_keeps_the_whole_field_and_says_so(tmp_path, capsys):
    path, out = tomo(tmp_path), tmp_path / "study"
    assert main(["import", str(path), "--out", str(out), "--no-attenuation"]) == 0
    said = capsys.readouterr()
    assert "warning: no heart in view" in said.err and "--heart X Y Z" in said.err and "uniform" not in said.out
    study = Study.load(out)
    assert study.grid == ImageGrid((6, 8, 8), 6.0) and study.background is None and study.body is None
    assert main(["import", str(path), "--out", str(out), "--heart", "-16", "22", "8"]) == 0
    said, study = capsys.readouterr(), Study.load(out)
    assert "uniform tissue of 0.12 per cm" in said.out and "as told" in said.out and not said.err
    assert study.grid == ImageGrid() and study.body.grid.shape == (6, 8, 8)


@pytest.mark.slow
def test_a_result_that_its_counts_contradict_is_written_with_a_warning(tmp_path, capsys):
    rng = np.random.default_rng(0)
    study = simulate(torso(rng, tiny_grid()), tiny(), 2e5, rng)
    study = replace(study, meta={"beyond_grid": 0.0})  # nothing lies there
    lost = study.projections.clone()
    lost[4] = torch.round(lost[4] / 5)
    for counts, said in ((study.projections, ""), (lost, "warning: reduced deviance ")):
        replace(study, projections=counts).save(tmp_path / "study")
        argv = ["reconstruct", str(tmp_path / "study"), "--out", str(tmp_path / "out"), "--method", "osem"]
        assert main([*argv, "--iterations", "12"]) == 0
        told, warning = capsys.readouterr().err, json.loads((tmp_path / "out" / "result.json").read_text())["warning"]
        assert bool(warning) == bool(said) and (f"warning: {warning}\n" in told if said else "warning" not in told)
        assert (tmp_path / "out" / "support.png").stat().st_size > 5000
