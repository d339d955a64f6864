"Files to spoil, ways to spoil them, and what a reader did: shared by the tests and benchmarks/fuzz.py."

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import torch

from diffspect_nb.acquired import read_interfile, read_projections
from diffspect_nb.core import ImageGrid, InputError
from diffspect_nb.ct import read_ct
from diffspect_nb.dicom import read_activity, read_nm, write_nm
from diffspect_nb.files import read_json, save_image, write_json
from diffspect_nb.geometry import Scanner, tiny, tiny_grid
from diffspect_nb.phantom import torso
from diffspect_nb.prior import load_checkpoint, save_checkpoint
from diffspect_nb.study import Study, simulate
from diffspect_nb.training import TrainConfig
from diffspect_nb.volume_network import VolumeConfig, VolumeUNet

GRID = ImageGrid((6, 7, 8), 4.0)


def image() -> torch.Tensor:
    return torch.arange(GRID.n_voxels, dtype=torch.float32).reshape(GRID.shape)


def nm(folder: Path) -> Path:
    "A reconstructed volume."
    return write_nm(folder / "volume.dcm", image(), GRID)


def nifti(folder: Path) -> Path:
    save_image(folder / "image.nii.gz", image(), GRID)
    return folder / "image.nii.gz"


def projections(folder: Path) -> Path:
    "An NM TOMO acquisition: four stops of a camera, anterior first, clockwise."
    file = pydicom.dcmread(write_nm(folder / "tomo.dcm", torch.zeros(4, 6, 8), ImageGrid((4, 6, 8), 5.0)))
    file.ImageType = ["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]
    rotation = pydicom.Dataset()
    rotation.StartAngle, rotation.AngularStep, rotation.RotationDirection, rotation.RadialPosition = 180, 45, "CW", 220
    file.RotationInformationSequence = [rotation]
    detector = pydicom.Dataset()
    detector.CollimatorType, detector.ImageOrientationPatient = "PARA", [1, 0, 0, 0, 0, -1]
    file.DetectorInformationSequence = [detector]
    file.PixelData = np.arange(4 * 6 * 8, dtype="<u2").tobytes()
    file.save_as(folder / "tomo.dcm")
    return folder / "tomo.dcm"


def heads(folder: Path) -> Path:
    "The same of two heads of two stops each, told apart by vectors, with a radius for each frame."
    file = pydicom.dcmread(projections(folder))
    rotation, second = file.RotationInformationSequence[0], pydicom.Dataset()
    second.CollimatorType, second.ImageOrientationPatient, second.StartAngle = "PARA", [-1, 0, 0, 0, 0, -1], 0
    file.DetectorInformationSequence.append(second)
    file.DetectorInformationSequence[0].StartAngle, rotation.RadialPosition = 180, [220, 221, 240, 241]
    file.NumberOfDetectors, file.DetectorVector, file.AngularViewVector = 2, [1, 1, 2, 2], [1, 2, 1, 2]
    file.EnergyWindowVector, file.RotationVector = [1] * 4, [1] * 4
    file.save_as(folder / "tomo.dcm")
    return folder / "tomo.dcm"


def oblique(folder: Path) -> Path:
    "An image whose axes are none of the patient's."
    affine = GRID.affine()
    affine[:2, :2] = 4 * np.array([[-0.8, 0.6], [-0.6, -0.8]])
    nibabel.save(nibabel.Nifti1Image(image().numpy().transpose(2, 1, 0), affine), folder / "oblique.nii.gz")
    return folder / "oblique.nii.gz"


def ct(folder: Path) -> Path:
    "A CT series of three slices in a folder, with a padding value."
    (folder / "ct").mkdir(parents=True)
    series = pydicom.uid.generate_uid()
    for k in range(3):
        file = pydicom.dcmread(write_nm(folder / "ct" / f"{k}.dcm", torch.ones(1, 6, 6), ImageGrid((1, 6, 6), 4.0)))
        del file.NumberOfFrames, file.FrameIncrementPointer, file.DetectorInformationSequence
        file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        file.Modality, file.SeriesInstanceUID = "CT", series
        file[0x00280120] = pydicom.DataElement(0x00280120, "US", 4095)
        file.ImageOrientationPatient, file.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 4 * k]
        file.save_as(folder / "ct" / f"{k}.dcm")
    return folder / "ct"


def ct_archive(folder: Path) -> Path:
    "The same series as a packed archive."
    with tarfile.open(folder / "ct.tar.xz", "w:xz") as archive:
        archive.add(ct(folder / "unpacked"), "ct")
    shutil.rmtree(folder / "unpacked")
    return folder / "ct.tar.xz"


def interfile(folder: Path) -> Path:
    "A header and its numbers."
    np.arange(60, dtype="<f4").tofile(folder / "data.v")
    lines = ["!INTERFILE :=", "!name of data file := data.v", "!number format := float"]
    lines += ["!number of bytes per pixel := 4", "imagedata byte order := LITTLEENDIAN"]
    lines += [f"!matrix size [{axis}] := {n}" for axis, n in ((1, 5), (2, 4), (3, 3))]
    lines += ["data offset in bytes [1] := 0", "image scaling factor [1] := 1", "number of time frames := 1"]
    (folder / "image.hv").write_text("\n".join(lines) + "\n")
    return folder / "image.hv"


def study(folder: Path) -> Path:
    rng = np.random.default_rng(5)
    made = simulate(torso(rng, tiny_grid()), tiny(), 5e5, rng)
    replace(made, background=0.1 * torch.ones_like(made.projections)).save(folder / "study")
    return folder / "study"


def scanner(folder: Path) -> Path:
    write_json(folder / "scanner.json", tiny().to_json())
    return folder / "scanner.json"


def checkpoint(folder: Path) -> Path:
    "A prior of a few thousand weights: a shipped one would be too large to spoil often."
    config = TrainConfig(
        scanner="tiny", grid=tiny_grid(), network=VolumeConfig(widths=(4, 8), blocks=1, embedding=8, groups=2)
    )
    save_checkpoint(folder / "prior.safetensors", VolumeUNet(config.network), {"config": config.to_json(), "steps": 1})
    return folder / "prior.safetensors"


FILES: dict[str, Callable[[Path], Path]] = {
    f.__name__: f
    for f in (nm, nifti, oblique, projections, heads, ct, ct_archive, interfile, study, scanner, checkpoint)
}
READERS: dict[str, Callable[[Path], object]] = {
    "nm": read_nm,
    "nifti": read_activity,
    "oblique": partial(read_activity, resample=True),
    "projections": read_projections,
    "heads": read_projections,
    "ct": read_ct,
    "ct_archive": read_ct,
    "interfile": read_interfile,
    "study": Study.load,
    "scanner": lambda path: Scanner.from_json(read_json(path)),
    "checkpoint": load_checkpoint,
}
INTERESTING = (b"\x00" * 8, b"\xff" * 8, b"\xff\xff\xff\x7f", b"1e999", b"-1", b"NaN", b"999999999999", b"../../x")


def damaged(good: Path, folder: Path, rng: np.random.Generator) -> Path:
    "A copy of the file or folder in which one file was truncated, flipped, spliced, stretched or repeated."
    shutil.rmtree(folder, ignore_errors=True)
    if good.is_dir():
        shutil.copytree(good, folder)
        target, answer = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file())), folder
    else:
        shutil.copytree(good.parent, folder, ignore=shutil.ignore_patterns("damaged"))
        beside = [p for p in folder.iterdir() if p.is_file()]
        target = folder / good.name if rng.random() < 0.8 else rng.choice(sorted(beside))
        answer = folder / good.name
    data = bytearray(Path(target).read_bytes())
    for _ in range(int(rng.integers(1, 4))):
        at, how = int(rng.integers(len(data) + 1)), int(rng.integers(6))
        if how == 0:
            data = data[:at]
        elif how == 1:
            for k in rng.integers(len(data) or 1, size=int(rng.integers(1, 20))):
                if k < len(data):
                    data[k] ^= 1 << int(rng.integers(8))
        elif how == 2:
            data[at : at + 8] = INTERESTING[int(rng.integers(len(INTERESTING)))]
        elif how == 3:
            data[at:at] = rng.bytes(int(rng.integers(1, 200)))
        elif how == 4:
            other = int(rng.integers(len(data) + 1))
            data[at:at] = data[other : other + 64]
        else:
            del data[at : at + int(rng.integers(1, 64))]
    Path(target).write_bytes(data)
    return answer


def outcome(reader: str, path: Path) -> str:
    "What the reader did: 'read', 'refused' (one line that a user can act on), or the exception that nobody should see."
    try:
        READERS[reader](path)
    except InputError as e:
        return "refused" if str(e).strip() else "refused without a word"
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return "read"
