"Hospital files: what is written comes back voxel for voxel, what is damaged is one clear line."

import gzip
import hashlib
import io
import json
import tarfile
import threading
import tracemalloc
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from fuzz import FILES, READERS, damaged, outcome

from diffspect_nb import ct
from diffspect_nb.acquired import read_interfile, read_projections, read_stir_pinhole
from diffspect_nb.cardiac import true_ventricle
from diffspect_nb.chest import focus_on, focus_on_heart, share_inside, with_uniform_tissue
from diffspect_nb.cli import main
from diffspect_nb.core import ImageGrid, InputError
from diffspect_nb.ct import CTVolume, Placement, ct_to_mu, read_ct
from diffspect_nb.dicom import PHYSIONET, fetch_scans, orientation_cube, read_nm, scans_in, stored_axes, write_nm
from diffspect_nb.files import load_image, save_image
from diffspect_nb.geometry import rotating_camera, tiny, tiny_grid
from diffspect_nb.phantom import torso
from diffspect_nb.reconstruction import reconstruct
from diffspect_nb.sampler import AnchoredWeights
from diffspect_nb.study import Study, keep_views, simulate, thin

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
    source.PatientName, source.PatientID, source.StudyID = "Doe^Jane", "QX-4711", "S1"
    source.save_as(tmp_path / "source.dcm")
    kept = pydicom.dcmread(write_nm(tmp_path / "kept.dcm", whole_numbers(), GRID, tmp_path / "source.dcm"))
    assert (str(kept.PatientName), kept.PatientID, kept.StudyID) == ("Doe^Jane", "QX-4711", "S1")
    assert kept.StudyInstanceUID == source.StudyInstanceUID and kept.SeriesInstanceUID != source.SeriesInstanceUID
    write_nm(tmp_path / "nobody.dcm", whole_numbers(), GRID, tmp_path / "source.dcm", anonymize=True)
    nobody = pydicom.dcmread(tmp_path / "nobody.dcm")
    assert nobody.PatientIdentityRemoved == "YES" and nobody.StudyInstanceUID != source.StudyInstanceUID
    raw = (tmp_path / "nobody.dcm").read_bytes()
    assert not [word for word in (b"Doe", b"QX-4711", str(source.StudyInstanceUID).encode()) if word in raw]


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
        (lambda f: f.RotationInformationSequence[0].__delattr__("AngularStep"), r"lacks Angular Step \(0018,1144\)"),
        (lambda f: setattr(f.RotationInformationSequence[0], "RotationDirection", "UP"), "0018,1140"),
        (lambda f: setattr(f.DetectorInformationSequence[0], "CollimatorType", "FANB"), "only parallel-hole"),
        (lambda f: setattr(f, "NumberOfEnergyWindows", 2), "0054,0010"),
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


def stir_folder(folder, hole="0. 0. 0. round 0.2 0.2", sense="CCW"):
    "A rotating pinhole of three views in STIR's files: crystal of 4 mm, 3 per cm."
    path = FILES["interfile"](folder)
    more = ["radius := 60", "scaling factor (mm/pixel) [1] := 1.5", f"!direction of rotation := {sense}"]
    (folder / "input.hs").write_text(path.read_text() + "\n".join(more))
    holes = [f"h{k}: {k} {hole}" for k in (1, 2, 3)]
    (folder / "collimator.txt").write_text("\n".join(["Collimator radius(cm): 2.5", *holes]))
    lines = ["Sigma(cm): 0.05", "Crystal thickness (cm): 0.4", "Crystal attenuation coefficient (cm -1): 3"]
    (folder / "detector.txt").write_text("\n".join([*lines, "ang0(deg): 180.", "incr(deg): 90"]))
    return folder


@pytest.mark.parametrize("sense, turn", [("CCW", 1), ("CW", -1)])
def test_a_stir_pinhole_stands_where_its_files_say(tmp_path, sense, turn):
    "Angles from below the subject; photons stop in the crystal, on average where an integral over its depth says."
    study = read_stir_pinhole(stir_folder(tmp_path, sense=sense), ImageGrid((4, 4, 4), 1.0))
    depth = np.linspace(0, 4, 100_001)  # mm
    stopped = np.exp(-0.3 * depth)
    scanner = study.scanner
    assert scanner.focal_mm == pytest.approx(60 - 25 + (depth * stopped).sum() / stopped.sum(), abs=1e-4)
    assert (scanner.aperture_mm, scanner.pixel_mm) == (2.0, 1.5)
    assert scanner.intrinsic_fwhm_mm == pytest.approx(0.5 * 2 * np.sqrt(2 * np.log(2)))
    for k, p in enumerate(scanner.pinholes):
        angle = np.deg2rad(turn * 90 * k)
        assert p.position_mm == pytest.approx((25 * np.sin(angle), 25 * np.cos(angle), 0.0), abs=1e-9)
    assert study.counts == np.arange(60).sum()


@pytest.mark.parametrize(
    "name, old, new, reason",
    [
        ("collimator.txt", "h2:", "x2:", "one centred round hole"),
        ("collimator.txt", "h2: 2 0.", "h2: 2 1.", "one centred round hole"),
        ("collimator.txt", "Collimator radius", "Radius", "lacks a number after 'Collimator radius"),
        ("detector.txt", "0.05", "1.2.3", "not a readable number after 'Sigma"),
        ("input.hs", "CCW", "LEFT", "not a readable STIR acquisition"),
        ("input.hs", "radius := 60", "scaling factor (mm/pixel) [2] := 3\nradius := 60", "must be square"),
    ],
)
def test_a_stir_pinhole_that_cannot_be_used_says_why(tmp_path, name, old, new, reason):
    path = stir_folder(tmp_path) / name
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=reason) as e:
        read_stir_pinhole(tmp_path)
    assert name in str(e.value)


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


# --- CT ---------------------------------------------------------------------------------------------------------------


def test_a_packed_ct_is_the_ct_and_is_unpacked_nowhere(tmp_path):
    folder, archive = FILES["ct"](tmp_path / "a"), FILES["ct_archive"](tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for one, other in zip(read_ct(folder), read_ct(archive), strict=True):
        assert np.array_equal(one, other)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_hostile_archive_is_refused(tmp_path, monkeypatch):
    "A bomb by its sizes, a member that points outside, and one that is no file."
    monkeypatch.setattr(ct, "MOST_ARCHIVE_BYTES", 10_000)
    path = tmp_path / "bomb.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("zeros")
        member.size = 20_000
        archive.addfile(member, io.BytesIO(bytes(20_000)))
    with pytest.raises(InputError, match="more than 10000 bytes"):
        read_ct(path)
    with tarfile.open(tmp_path / "out.tar", "w") as archive:
        for name, kind in (("../../escaped.dcm", tarfile.REGTYPE), ("/etc/passwd", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd" * (kind == tarfile.SYMTYPE)
            archive.addfile(member, io.BytesIO(b""))
    with pytest.raises(InputError, match="found 0"):
        read_ct(tmp_path / "out.tar")
    assert not (tmp_path.parent.parent / "escaped.dcm").exists()


def test_a_nudge_moves_the_ct_as_it_says(tmp_path):
    "A block of bone, nudged by 8 mm to the left and 4 mm towards the head, is found there."
    grid, volume = ImageGrid((12, 14, 16), 4.0), np.zeros((12, 14, 16), np.float32)
    volume[5:7, 6:8, 7:9] = 0.2
    first = np.array([axis[0] for axis in grid.axes_mm()[::-1]])
    block = CTVolume(volume, first, np.full(3, 4.0))
    for placement in (Placement((0, 0, 0)), Placement((0, 0, 0), (0, 0, 90))):
        still, moved = ct_to_mu(block, grid, placement), ct_to_mu(block, grid, placement.nudge((8, 0, 4)))
        torch.testing.assert_close(moved[1:, :, 2:], still[:-1, :, :-2], atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="three numbers"):
        Placement((0, 0, float("nan")))


def test_import_places_a_ct_and_shows_where_it_lies(tmp_path, capsys):
    source, archive = FILES["projections"](tmp_path), FILES["ct_archive"](tmp_path)
    argv = ["import", str(source), "--out", str(tmp_path / "study"), "--shape", "6", "8", "8", "--voxel-mm", "5"]
    center = ["--ct-center", "10", "10", "4"]
    assert main([*argv, "--ct", str(archive), *center]) == 0
    still = Study.load(tmp_path / "study")
    assert (tmp_path / "study" / "registration.png").stat().st_size > 5000 and float(still.mu.max()) > 0.1
    assert main([*argv, "--ct", str(archive), *center, "--ct-nudge", "5", "0", "0"]) == 0
    torch.testing.assert_close(Study.load(tmp_path / "study").mu[..., 1:], still.mu[..., :-1], atol=1e-4, rtol=0)
    assert main([*argv, "--ct", str(archive), *center, "--ct-register"]) == 0
    assert "CT registered" in capsys.readouterr().out


def test_a_ct_reaches_beyond_the_window_that_is_cut_out(tmp_path):
    source, archive = FILES["projections"](tmp_path), FILES["ct_archive"](tmp_path)
    argv = ["import", str(source), "--out", str(tmp_path / "study"), "--shape", "6", "8", "8", "--voxel-mm", "5"]
    assert main([*argv, "--ct", str(archive), "--ct-center", "10", "10", "4", "--heart", "-16", "20", "8"]) == 0
    study = Study.load(tmp_path / "study")
    assert study.grid.shape == (50, 70, 70) and study.mu.shape == study.grid.shape
    assert study.body.grid.shape == (28, 30, 30) and study.body.grid.center_mm == (0, 0, 0)
    assert float(study.mu.max()) > 0.1 and float(study.body.mu[0].max()) > 0.1  # the last slice goes on to the feet


# --- a window round the heart -----------------------------------------------------------------------------------------


def test_a_background_goes_where_its_counts_go(tmp_path):
    rng = np.random.default_rng(0)
    study = simulate(torso(rng, tiny_grid()), tiny(), 5e5, rng)
    study = replace(study, background=torch.rand(study.projections.shape))
    study.save(tmp_path / "study")
    again = Study.load(tmp_path / "study")
    assert torch.equal(again.background, study.background)
    torch.testing.assert_close(thin(again, 0.25, rng).background, 0.25 * study.background)
    few = keep_views(again, 3)
    assert torch.equal(few.background, study.background[list(few.views)])
    replace(study, background=None).save(tmp_path / "study")
    assert Study.load(tmp_path / "study").background is None
    with pytest.raises(InputError, match="background must be"):
        replace(study, background=-study.background)


def test_counts_of_the_background_alone_leave_an_empty_image():
    "All that was measured is explained by the background: the guided image is dark, without it it is not."
    rng = np.random.default_rng(0)
    study = simulate(torso(rng, tiny_grid()), tiny(), 5e5, rng)
    explained = replace(study, background=study.projections * 0.98)
    still = AnchoredWeights(steps=2, fields=1, start=300)
    dark, bright = (reconstruct(s, still, denoise=lambda x, t: x.clamp_min(0)) for s in (explained, study))
    assert dark.image.sum() < 0.1 * bright.image.sum()
    assert dark.support.reduced < 0.1 * bright.support.reduced


def test_shares_of_voxels_add_up_to_the_window():
    wide, window = ImageGrid((10, 12, 14), 6.8), ImageGrid((5, 7, 9), 4.0, (3.0, -2.0, 1.0))
    share = share_inside(wide, window)
    assert float(share.sum() * 6.8**3) == pytest.approx(window.n_voxels * 4.0**3, rel=1e-4)
    assert 0 <= share.min() and share.max() <= 1


def test_tissue_outside_the_window_goes_on_dimming_what_lies_inside():
    "Told the truth, the window with its background expects the very counts that the whole grid expects."
    rng = np.random.default_rng(0)
    study = simulate(torso(rng, tiny_grid()), tiny(), 5e5, rng)
    window = ImageGrid((8, 12, 12), 12.0)
    cut = focus_on(study, (0, 0, 0), window, image=study.truth)
    inside = study.truth[4:12, 4:16, 4:16]
    torch.testing.assert_close(cut.mu, study.mu[4:12, 4:16, 4:16], atol=1e-5, rtol=0)
    expected = study.measurement().expected(study.truth)
    torch.testing.assert_close(cut.measurement().expected(inside), expected, rtol=0.03, atol=0.5)
    blind = replace(cut, body=None).measurement().expected(inside)  # only the window's own tissue
    assert float(blind.sum()) > 1.05 * float(expected.sum())


def test_a_window_outside_the_grid_is_refused():
    rng = np.random.default_rng(0)
    study = simulate(torso(rng, tiny_grid()), tiny(), 5e5, rng)
    with pytest.raises(InputError, match="the heart at"):
        focus_on(study, (900, 0, 0))


def test_the_body_is_outlined_and_the_heart_found_in_a_chest_without_a_ct(tmp_path, capsys):
    chest = ImageGrid((32, 48, 48), 9.0)
    patient = torso(np.random.default_rng(3), chest)
    camera = rotating_camera("a camera", np.arange(-45, 136, 15.0), 250.0, (32, 48), 9.0)
    study = simulate(patient, camera, 4e6, np.random.default_rng(4))
    found = focus_on_heart(with_uniform_tissue(replace(study, mu=None, truth=None, heart=None)))
    true = true_ventricle(patient.meta["heart"]).center_mm
    assert np.linalg.norm(np.subtract(found.meta["heart_mm"], true)) < 15
    assert found.mu is None and found.body.grid == chest and found.grid.shape == (50, 70, 70)
    body, skin = found.body.mu > 0, patient.mu > 0.05
    assert float((body & skin).sum() / skin.sum()) > 0.7 and float((body & ~skin).sum() / body.sum()) < 0.35


# --- which way is up, and where real scans come from ------------------------------------------------------------------


def test_the_cube_shows_the_axes_that_the_file_states(tmp_path):
    path = write_nm(tmp_path / "a.dcm", whole_numbers(), GRID)
    assert np.array_equal(stored_axes(path), np.eye(3)[::-1])
    file = pydicom.dcmread(path)
    file.SpacingBetweenSlices = -4
    file.DetectorInformationSequence[0].ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]
    file.save_as(path)
    # row × column points to the feet, and a negative spacing turns it back
    assert np.array_equal(stored_axes(path), [[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    assert torch.equal(read_nm(path)[0], whole_numbers().flip(2))
    ax = orientation_cube(stored_axes(path))
    assert {"L", "R", "A", "P", "H", "F"} <= {text.get_text().strip() for text in ax.texts}


@pytest.fixture
def server(tmp_path):
    "A set of files on this machine's own loopback, laid out as PhysioNet does, and its address."
    root = tmp_path / "server"
    (root / "DICOM").mkdir(parents=True), (root / "NIfTI").mkdir()
    write_nm(root / "DICOM" / "1.2.dcm", whole_numbers(), GRID)
    write_nm(root / "DICOM" / "1.1.dcm", whole_numbers(), GRID)
    save_image(root / "NIfTI" / "1.2_mask.nii.gz", whole_numbers() > 9, GRID)
    files = [p for p in root.rglob("*") if p.is_file()]
    sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()} {p.relative_to(root)}\n" for p in files]
    (root / "SHA256SUMS.txt").write_text("".join(sums))
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *a: None})
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=root))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield root, f"http://127.0.0.1:{http.server_address[1]}/"
    http.shutdown()


def test_scans_are_fetched_checked_and_paired_with_their_masks(server, tmp_path):
    root, url = server
    out = tmp_path / "set"
    assert len(fetch_scans(out, url=url)) == 3
    listed = scans_in(out)
    assert [p.name for p in listed] == ["1.2.dcm", "1.1.dcm"]  # with a mask first
    assert [m and m.name for m in listed.values()] == ["1.2_mask.nii.gz", None]
    kept = (out / "DICOM" / "1.1.dcm").stat().st_mtime_ns
    assert len(fetch_scans(out, "DICOM/*", url)) == 2 and (out / "DICOM" / "1.1.dcm").stat().st_mtime_ns == kept
    with pytest.raises(InputError, match="no file that matches"):
        fetch_scans(out, "*.exe", url)


def test_a_server_that_lies_is_not_believed(server, tmp_path):
    root, url = server
    (root / "DICOM" / "1.1.dcm").write_bytes(b"other contents")
    with pytest.raises(InputError, match="cannot be fetched"):
        fetch_scans(tmp_path / "a", "DICOM/1.1.dcm", url)
    assert not list((tmp_path / "a").rglob("*.dcm"))
    (root / "SHA256SUMS.txt").write_text("0" * 64 + " ../../outside.dcm\n")
    with pytest.raises(InputError, match="no file of a set"):
        fetch_scans(tmp_path / "b", url=url)
    with pytest.raises(InputError, match="cannot be fetched"):
        fetch_scans(tmp_path / "c", url="http://127.0.0.1:9/")
    assert PHYSIONET.startswith("https://physionet.org/")
    with pytest.raises(InputError, match="530c set"):
        scans_in(tmp_path / "server" / "NIfTI")


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


@pytest.mark.parametrize("method", ["osem", "anchored"])
def test_a_result_repeats_itself_bit_for_bit(tiny_study, tmp_path, method, capsys):
    out, again = tmp_path / "a", tmp_path / "b"
    options = ["--counts", "0.3", "--seed", "4"] + (["--steps", "2", "--anchor", "0.2"] if method == "anchored" else [])
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
