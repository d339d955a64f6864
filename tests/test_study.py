"Studies: statistics of thinning, nesting of views, the study folder, and what it refuses."

import json
import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from diffspect_nb.attenuation import AttenuationMap
from diffspect_nb.core import ImageGrid, InputError
from diffspect_nb.files import load_image, save_image
from diffspect_nb.geometry import Scanner, dnm570c, myospect_es, tiny, tiny_grid
from diffspect_nb.phantom import torso
from diffspect_nb.study import Study, central_row, keep_views, simulate, study_hashes, thin


@pytest.fixture(scope="module")
def study() -> Study:
    rng = np.random.default_rng(31)
    made = simulate(torso(rng, tiny_grid()), tiny(), 4e5, rng)
    return replace(made, reference=made.truth + 1, heart=made.truth > made.truth.max() / 2)


def test_simulated_counts_are_poisson_around_the_projection_of_the_truth(study):
    expected = study.system().forward(study.truth).double()
    assert float(expected.sum()) == pytest.approx(4e5, rel=1e-4)
    z = (study.projections.double() - expected)[expected > 5] / expected[expected > 5].sqrt()
    assert abs(float(z.mean())) < 4 / len(z) ** 0.5 and float(z.std()) == pytest.approx(1, abs=0.06)
    assert torch.equal(study.projections, study.projections.round())


@pytest.mark.parametrize("fraction", [0.5, 0.1, 0.01])
def test_thinning_makes_the_poisson_data_of_a_lower_dose(fraction):
    counts = torch.poisson(torch.full((7, 16, 16), 400.0), generator=torch.Generator().manual_seed(0))
    thinned = thin(Study(counts, tiny(), tiny_grid()), fraction, np.random.default_rng(1))
    y = thinned.projections
    assert thinned.count_fraction == fraction and (y <= counts).all()
    assert float(y.mean()) == pytest.approx(400 * fraction, rel=0.05)
    assert float(y.var() / y.mean()) == pytest.approx(1, abs=0.12)


def test_thinning_twice_multiplies_the_doses(study):
    rng = np.random.default_rng(2)
    twice = thin(thin(study, 0.5, rng), 0.2, rng)
    assert twice.count_fraction == pytest.approx(0.1) and twice.count_level == pytest.approx(0.1, rel=0.05)
    with pytest.raises(InputError, match="integers"):
        thin(replace(study, projections=study.projections * 0.3), 0.5, rng)


def test_fewer_views_are_nested_and_central():
    scanner = dnm570c()
    full = Study(torch.ones(19, 32, 32), scanner, ImageGrid())
    assert central_row(scanner) == list(range(9))
    kept = [keep_views(full, n).views for n in (9, 7, 5, 3, 1)]
    assert kept == [tuple(range(i, 9 - i)) for i in range(5)]
    again = keep_views(keep_views(full, 9), 3)
    assert again.views == (3, 4, 5) and again.count_level == pytest.approx(3 / 19)
    assert scanner.keep_views(kept[0]).pinholes == myospect_es().pinholes
    for wrong in (0, 10, 19):
        with pytest.raises(InputError, match="central row"):
            keep_views(full, wrong)
    with pytest.raises(InputError, match="not in this study"):
        keep_views(keep_views(full, 3), 9)


def test_the_folder_gives_back_what_it_was_given(study, tmp_path):
    low = keep_views(thin(study, 0.3, np.random.default_rng(0)), 3)
    again = Study.load(low.save(tmp_path / "a"))
    for name in ("projections", "mu", "truth", "reference", "heart"):
        assert torch.equal(getattr(again, name), getattr(low, name)), name
    assert (again.scanner, again.grid, again.views, again.count_fraction, again.meta) == (
        low.scanner,
        low.grid,
        low.views,
        low.count_fraction,
        low.meta,
    )
    assert json.loads((tmp_path / "a" / "study.json").read_text())["scanner"] == "tiny"


def test_a_body_larger_than_the_image_is_kept_hashed_and_used(study, tmp_path):
    wide = ImageGrid((10, 14, 14), 24.0, (6.0, 0.0, 3.0))
    with_body = replace(study, mu=None, body=AttenuationMap(torch.full(wide.shape, 0.1), wide))
    folder = with_body.save(tmp_path / "s")
    again = Study.load(folder)
    assert again.body.grid == wide and torch.equal(again.body.mu, with_body.body.mu) and again.mu is None
    assert "body.nii.gz" in study_hashes(folder)
    clear = replace(study, mu=None).measurement().expected(study.truth).sum()
    assert again.measurement().expected(study.truth).sum() < 0.5 * clear
    replace(study, body=None).save(folder)
    assert Study.load(folder).body is None
    with pytest.raises(InputError, match="grid's shape"):
        AttenuationMap(torch.zeros(3, 3, 3), wide)


def test_a_study_may_carry_its_own_scanner(study, tmp_path):
    mine = Scanner.from_json(tiny().to_json() | {"name": "mine", "aperture_mm": 6.0})
    folder = replace(study, scanner=mine).save(tmp_path / "s")
    assert Study.load(folder).scanner == mine
    # a changed scanner under a known name is written out, not taken for the known one
    folder = replace(study, scanner=replace(tiny(), aperture_mm=6.0)).save(tmp_path / "t")
    assert Study.load(folder).scanner.aperture_mm == 6.0


def test_saving_again_leaves_nothing_of_the_earlier_study(study, tmp_path):
    study.save(tmp_path / "s")
    replace(study, mu=None, heart=None).save(tmp_path / "s")
    again = Study.load(tmp_path / "s")
    assert again.mu is None and again.heart is None and again.truth is not None


def test_an_interrupted_save_keeps_the_earlier_study(study, tmp_path, monkeypatch):
    folder = study.save(tmp_path / "s")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffspect_nb.study.save_image", full_disk)
    with pytest.raises(InputError, match="No space"):
        thin(study, 0.1, np.random.default_rng(0)).save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_images_are_placed_in_the_patient_and_turned_when_read(tmp_path):
    grid = ImageGrid((3, 4, 5), 8.0)
    image = torch.arange(60.0).reshape(3, 4, 5)
    save_image(tmp_path / "i.nii.gz", image, grid)
    stored = nibabel.load(tmp_path / "i.nii.gz")
    corner = stored.affine @ [0, 0, 0, 1]  # first voxel: right, front, foot; RAS+ counts towards right and front
    assert np.allclose(corner[:3], [16, 12, -8])
    for axes in ("RAS", "LPI", "PSL"):
        turn = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(stored.affine), nibabel.orientations.axcodes2ornt(axes)
        )
        nibabel.save(stored.as_reoriented(turn), tmp_path / "turned.nii.gz")
        assert torch.equal(load_image(tmp_path / "turned.nii.gz", grid), image)
    affine = stored.affine.copy()
    affine[0, 3] += 4
    nibabel.save(nibabel.Nifti1Image(stored.get_fdata(), affine), tmp_path / "shifted.nii.gz")
    with pytest.raises(InputError, match="shifted.nii.gz: its affine"):
        load_image(tmp_path / "shifted.nii.gz", grid)


def change_head(**changes):
    def change(folder):
        head = json.loads((folder / "study.json").read_text())
        (folder / "study.json").write_text(json.dumps(head | changes))

    return change


def change_image(name, function):
    def change(folder):
        image = nibabel.load(folder / name)
        changed = function(image.get_fdata()).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(changed, image.affine), folder / name)

    return change


BAD = {
    "no json": (lambda f: (f / "study.json").write_text("{"), "study.json: not valid JSON"),
    "not an object": (lambda f: (f / "study.json").write_text("[]"), "study.json: must hold a JSON object"),
    "format": (change_head(format="other/2"), "study.json: format must be"),
    "scanner": (change_head(scanner={"name": "x"}), "study.json: scanner description lacks"),
    "grid": (change_head(grid={"shape": [1, 2]}), "study.json: grid must be"),
    "views": (change_head(views=[0, 1, 99]), "views must be distinct"),
    "fraction": (change_head(count_fraction=0), "count_fraction must be in"),
    "nan": (change_image("projections.nii.gz", lambda a: a + np.nan), "projections.nii.gz: values must be finite"),
    "infinite": (change_image("projections.nii.gz", lambda a: a + np.inf), "projections.nii.gz: values must be finite"),
    "negative": (change_image("projections.nii.gz", lambda a: a - 9), "projections.nii.gz: projections must be counts"),
    "empty": (change_image("projections.nii.gz", lambda a: a * 0), "projections.nii.gz: projections are empty"),
    "shape": (change_image("projections.nii.gz", lambda a: a[1:]), "projections.nii.gz: projections must have shape"),
    "mm": (change_image("mu.nii.gz", lambda a: a / 10), "mu.nii.gz: mu must be in cm⁻¹.*mm⁻¹"),
    "hu": (change_image("mu.nii.gz", lambda a: a * 6000 - 1000), "mu.nii.gz: mu must be in cm⁻¹.*Hounsfield"),
    "mu shape": (change_image("mu.nii.gz", lambda a: a[1:]), "mu.nii.gz: must have the grid's shape"),
    "text": (lambda f: (f / "truth.nii.gz").write_text("no image"), "truth.nii.gz: not a readable NIfTI"),
    "flat": (change_image("truth.nii.gz", lambda a: a[0]), "truth.nii.gz: must be three-dimensional"),
}


@pytest.mark.parametrize("case", BAD)
def test_broken_folders_are_refused_by_name(case, study, tmp_path):
    folder = study.save(tmp_path / "s")
    spoil, rule = BAD[case]
    spoil(folder)
    with pytest.raises(InputError, match=rule):
        Study.load(folder)


@pytest.mark.parametrize("name", ["projections.nii.gz", "truth.nii.gz", "mu.nii.gz"])
def test_truncated_files_are_refused_by_name(name, study, tmp_path):
    folder = study.save(tmp_path / "s")
    (folder / name).write_bytes((folder / name).read_bytes()[:-200])
    with pytest.raises(InputError, match=f"{name}: not a readable NIfTI"):
        Study.load(folder)


def test_missing_and_unwritable_folders(study, tmp_path):
    with pytest.raises(InputError, match="no such study folder"):
        Study.load(tmp_path / "nothing")
    folder = study.save(tmp_path / "s")
    (folder / "projections.nii.gz").unlink()
    with pytest.raises(InputError, match="projections.nii.gz: file not found"):
        Study.load(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write there"):
        study.save(tmp_path / "file" / "s")
    shutil.rmtree(folder)
