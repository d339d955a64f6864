"Hospital files: what is written comes back voxel for voxel, what is damaged is one clear line."

import gzip
import json
import tracemalloc
from dataclasses import replace

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from fuzz import FILES, READERS, damaged, outcome

from diffspect_nb.cli import main
from diffspect_nb.core import ImageGrid, InputError
from diffspect_nb.dicom import read_interfile, read_nm, read_projections, write_nm
from diffspect_nb.geometry import tiny, tiny_grid
from diffspect_nb.phantom import torso
from diffspect_nb.study import Study, load_image, save_image, simulate

GRID = ImageGrid((6, 7, 8), 4.0)


def whole_numbers() -> torch.Tensor:
    "No two voxels alike, so that no flip goes unseen."
    return torch.arange(GRID.n_voxels, dtype=torch.float32).reshape(GRID.shape) * 190


@pytest.fixture
def acquisition(tmp_path):
    "A small NM TOMO file with four stops, and the counts in it."
    return FILES["projections"](tmp_path), np.arange(4 * 6 * 8).reshape(4, 6, 8)


def test_dicom_keeps_every_voxel_and_the_grid(tmp_path):
    image, grid = read_nm(write_nm(tmp_path / "a.dcm", whole_numbers(), GRID))
    assert torch.equal(image, whole_numbers()) and grid == GRID
    again, same = read_nm(write_nm(tmp_path / "b.dcm", image, grid, tmp_path / "a.dcm"))
    assert torch.equal(again, image) and same == grid


def test_nifti_keeps_every_voxel_and_the_grid(tmp_path):
    save_image(tmp_path / "a.nii.gz", whole_numbers(), GRID)
    assert torch.equal(load_image(tmp_path / "a.nii.gz", GRID), whole_numbers())


def test_photons_survive_to_half_a_level(tmp_path):
    image = torch.rand(GRID.shape, generator=torch.Generator().manual_seed(0)) * 3e6
    again, _ = read_nm(write_nm(tmp_path / "a.dcm", image, GRID))
    assert (again - image).abs().max() <= 0.51 * float(image.max()) / 65535


def test_the_file_has_what_the_standard_asks_of_a_reconstructed_volume(tmp_path):
    "Attributes of type 1 (a value) and 2 (present) of the NM image's modules, PS3.3 A.5 and C.8.4."
    file = pydicom.dcmread(write_nm(tmp_path / "a.dcm", whole_numbers(), GRID))
    valued = """SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality FrameOfReferenceUID ImageType
        SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation
        NumberOfFrames FrameIncrementPointer NumberOfEnergyWindows NumberOfDetectors NumberOfRotations SliceVector
        NumberOfSlices PixelSpacing PixelData"""
    present = """PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber
        ReferringPhysicianName SeriesNumber InstanceNumber PositionReferenceIndicator Manufacturer
        PatientOrientationCodeSequence PatientGantryRelationshipCodeSequence CountsAccumulated
        EnergyWindowInformationSequence RadiopharmaceuticalInformationSequence DetectorInformationSequence
        RotationInformationSequence SpacingBetweenSlices SliceThickness"""
    assert not [name for name in valued.split() if name not in file or file[name].value in (None, "", [])]
    assert not [name for name in present.split() if name not in file]
    assert file.ImageType[2] == "RECON TOMO" and file.FrameIncrementPointer == (0x0054, 0x0080)
    assert list(file.SliceVector) == list(range(1, 7)) and file.HighBit == file.BitsStored - 1
    assert file.file_meta.MediaStorageSOPInstanceUID == file.SOPInstanceUID
    again = pydicom.dcmread(write_nm(tmp_path / "b.dcm", whole_numbers(), GRID))
    assert again.SOPInstanceUID != file.SOPInstanceUID


def test_identity_is_kept_or_left_out(tmp_path):
    source = pydicom.dcmread(write_nm(tmp_path / "source.dcm", whole_numbers(), GRID))
    source.PatientName, source.PatientID, source.StudyID = "Doe^Jane", "4711", "S1"
    source.save_as(tmp_path / "source.dcm")
    kept = pydicom.dcmread(write_nm(tmp_path / "kept.dcm", whole_numbers(), GRID, tmp_path / "source.dcm"))
    assert (str(kept.PatientName), kept.PatientID, kept.StudyID) == ("Doe^Jane", "4711", "S1")
    assert kept.StudyInstanceUID == source.StudyInstanceUID and kept.SeriesInstanceUID != source.SeriesInstanceUID
    write_nm(tmp_path / "nobody.dcm", whole_numbers(), GRID, tmp_path / "source.dcm", anonymize=True)
    nobody = pydicom.dcmread(tmp_path / "nobody.dcm")
    assert nobody.PatientIdentityRemoved == "YES" and nobody.StudyInstanceUID != source.StudyInstanceUID
    raw = (tmp_path / "nobody.dcm").read_bytes()
    assert not [word for word in (b"Doe", b"4711", str(source.StudyInstanceUID).encode()) if word in raw]


def test_measured_projections_keep_counts_angles_and_radius(acquisition):
    path, counts = acquisition
    study = read_projections(path, hole_mm=1.9)
    assert np.array_equal(study.projections.numpy(), counts) and study.scanner.aperture_mm == 1.9
    for stop, p in enumerate(study.scanner.pinholes):
        angle = np.deg2rad(180 - 45 * stop)
        assert p.position_mm == pytest.approx((220 * np.sin(angle), 220 * np.cos(angle), 0.0))


def test_frames_stored_the_other_way_round_are_turned(acquisition):
    path, counts = acquisition
    file = pydicom.dcmread(path)
    file.DetectorInformationSequence[0].ImageOrientationPatient = [-1, 0, 0, 0, 0, 1]
    file.save_as(path)
    assert np.array_equal(read_projections(path).projections.numpy(), counts[:, ::-1, ::-1])


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda f: f.RotationInformationSequence[0].__delattr__("AngularStep"), "not a readable NM acquisition"),
        (lambda f: setattr(f.RotationInformationSequence[0], "RotationDirection", "UP"), "not a readable NM acq"),
        (lambda f: setattr(f.DetectorInformationSequence[0], "CollimatorType", "FANB"), "only parallel-hole"),
        (lambda f: setattr(f, "NumberOfEnergyWindows", 2), "one energy window"),
        (lambda f: setattr(f, "PixelSpacing", [4, 5]), "must be square"),
        (lambda f: setattr(f, "Modality", "CT"), "must be an NM acquisition"),
        (lambda f: setattr(f, "NumberOfFrames", 10**9), "not a readable NM acquisition"),
    ],
)
def test_an_acquisition_that_cannot_be_used_says_why(acquisition, change, reason):
    path, _ = acquisition
    file = pydicom.dcmread(path)
    change(file)
    file.save_as(path)
    with pytest.raises(InputError, match=reason) as e:
        read_projections(path)
    assert str(path) in str(e.value)


def test_interfile_is_read_in_its_own_order(tmp_path):
    path = FILES["interfile"](tmp_path)
    keys, array = read_interfile(path)
    assert keys["number format"] == "float" and np.array_equal(array, np.arange(60.0).reshape(3, 4, 5))
    with gzip.open(tmp_path / "data.v.gz", "wb") as file:
        file.write((tmp_path / "data.v").read_bytes())
    (tmp_path / "data.v").unlink()
    assert np.array_equal(read_interfile(path)[1], array)


@pytest.mark.parametrize(
    "old, new, reason",
    [
        ("data.v", "../data.v", "must lie beside its header"),
        ("data.v", "/etc/passwd", "must lie beside its header"),
        (":= 5", ":= 1000000000000", "promises"),
        (":= 5", ":= 6", "its header promises"),
        (":= float", ":= complex", "not a readable Interfile header"),
        ("!INTERFILE", "!OTHERFILE", "not an Interfile header"),
    ],
)
def test_a_hostile_interfile_header_is_refused(tmp_path, old, new, reason):
    path = FILES["interfile"](tmp_path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=reason):
        read_interfile(path)


def test_a_nifti_that_promises_too_much_takes_no_memory(tmp_path):
    "A bomb: a header of 32,767³ voxels, a few bytes of data."
    path = tmp_path / "bomb.nii.gz"
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((32767, 32767, 32767))
    with gzip.open(path, "wb") as file:
        file.write(header.binaryblock + bytes(1000))
    tracemalloc.start()
    with pytest.raises(InputError, match="promises"):
        load_image(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore")  # pydicom says much about damaged files
@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_refused_or_read_never_worse(reader, tmp_path):
    "A short form of benchmarks/fuzz.py: truncated, flipped, spliced and stretched files."
    files, rng = FILES[reader](tmp_path), np.random.default_rng(0)
    for n in range(150):
        path = damaged(files, tmp_path / "damaged", np.random.default_rng(rng.integers(2**32)))
        kind = outcome(reader, path)
        assert kind in ("read", "refused"), f"{reader}, damage {n}: {kind}"


@pytest.fixture(scope="module")
def tiny_study(tmp_path_factory):
    rng = np.random.default_rng(5)
    folder = tmp_path_factory.mktemp("study") / "study"
    simulate(torso(rng, tiny_grid()), tiny(), 5e5, rng).save(folder)
    return folder


@pytest.mark.parametrize("method", ["osem", "diffspect"])
def test_a_result_repeats_itself_bit_for_bit(tiny_study, tmp_path, method, capsys):
    out, again = tmp_path / "a", tmp_path / "b"
    options = ["--counts", "0.3", "--seed", "4", "--steps", "2"]
    options += ["--anchor", "0.2"] if method == "diffspect" else []
    assert main(["reconstruct", str(tiny_study), "--out", str(out), "--method", method, *options, "--dicom"]) == 0
    assert main(["reconstruct", "--from", str(out / "result.json"), "--out", str(again)]) == 0
    first, second = (nibabel.load(f / "image.nii.gz").get_fdata() for f in (out, again))
    assert np.array_equal(first, second) and first.max() > 0
    image, grid = read_nm(out / "image.dcm")
    assert grid == Study.load(tiny_study).grid
    assert (image - load_image(out / "image.nii.gz")).abs().max() <= 0.51 * float(image.max()) / 65535
    # With another study under the same name the result is not "the same once more".
    moved = tmp_path / "moved"
    study = Study.load(tiny_study)
    replace(study, projections=study.projections + 1).save(moved)
    capsys.readouterr()
    assert main(["reconstruct", str(moved), "--from", str(out / "result.json"), "--out", str(again)]) == 2
    assert "other contents" in capsys.readouterr().err
    (out / "result.json").write_text(json.dumps({"method": "osem"}))
    assert main(["reconstruct", "--from", str(out / "result.json"), "--out", str(again)]) == 2
    assert "not a result" in capsys.readouterr().err
