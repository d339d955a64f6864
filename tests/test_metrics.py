"Metrics against scikit-image, closed forms and invariances, and what they refuse."

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage import metrics as oracle

from diffspect_nb.core import ImageGrid, InputError
from diffspect_nb.geometry import tiny
from diffspect_nb.metrics import (
    contrast_errors,
    defect_regions,
    masks_of,
    nrmse,
    psnr,
    rmse,
    score,
    score_table,
    scores_of,
    ssim,
)
from diffspect_nb.phantom import torso
from diffspect_nb.study import simulate

SHAPES = [(7, 7, 7), (9, 12, 10), (20, 33, 17)]


def pair(shape, seed=0):
    rng = np.random.default_rng(seed)
    reference = gaussian_filter(rng.random(shape), 1.0) * 40
    return reference + rng.normal(0, 3, shape), reference


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_whole_array_agrees_with_scikit_image(shape, seed):
    image, reference = pair(shape, seed)
    top = reference.max()
    assert psnr(image, reference) == pytest.approx(
        oracle.peak_signal_noise_ratio(reference, image, data_range=top), rel=1e-12
    )
    assert nrmse(image, reference) == pytest.approx(oracle.normalized_root_mse(reference, image), rel=1e-12)
    assert rmse(image, reference) ** 2 == pytest.approx(oracle.mean_squared_error(reference, image), rel=1e-12)
    _, values = oracle.structural_similarity(reference, image, win_size=7, data_range=top, full=True)
    assert ssim(image, reference) == pytest.approx(values.mean(), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_inside_a_mask_agrees_with_scikit_image_on_the_chosen_voxels(shape):
    image, reference = pair(shape)
    mask = np.random.default_rng(5).random(shape) < 0.4
    a, b = image[mask], reference[mask]
    assert psnr(image, reference, mask) == pytest.approx(
        oracle.peak_signal_noise_ratio(b, a, data_range=b.max()), rel=1e-12
    )
    assert nrmse(image, reference, mask) == pytest.approx(oracle.normalized_root_mse(b, a), rel=1e-12)
    _, values = oracle.structural_similarity(reference, image, win_size=7, data_range=b.max(), full=True)
    assert ssim(image, reference, mask) == pytest.approx(values[mask].mean(), rel=1e-12)


def test_ssim_of_the_interior_is_the_mean_scikit_image_reports():
    image, reference = pair((12, 15, 14))
    interior = np.zeros(reference.shape, bool)
    interior[3:-3, 3:-3, 3:-3] = True
    expected = oracle.structural_similarity(reference, image, win_size=7, data_range=50.0)
    assert ssim(image, reference, interior, data_range=50.0) == pytest.approx(expected, rel=1e-12)


def test_ssim_at_one_voxel_is_the_formula():
    image, reference = pair((7, 7, 7))
    centre = np.zeros((7, 7, 7), bool)
    centre[3, 3, 3] = True
    a, b, c1, c2 = image.ravel(), reference.ravel(), 0.01**2 * 40**2, 0.03**2 * 40**2
    (vaa, vab), (_, vbb) = np.cov(a, b)
    expected = (2 * a.mean() * b.mean() + c1) * (2 * vab + c2)
    expected /= (a.mean() ** 2 + b.mean() ** 2 + c1) * (vaa + vbb + c2)
    assert ssim(image, reference, centre, data_range=40) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("error", [0.01, 0.5, 3.0, -2.0])
def test_constant_error_has_a_closed_form(error):
    reference = torch.full((8, 8, 8), 10.0, dtype=torch.float64)
    assert psnr(reference + error, reference) == pytest.approx(20 * math.log10(10 / abs(error)), rel=1e-12)
    assert nrmse(reference + error, reference) == pytest.approx(abs(error) / 10, rel=1e-12)


def test_identical_images():
    _, reference = pair((9, 9, 9))
    assert psnr(reference, reference) == math.inf
    assert nrmse(reference, reference) == 0
    assert ssim(reference, reference) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("factor", [1e-6, 0.37, 2.0, 1e8])
def test_unit_of_activity_does_not_matter(factor):
    image, reference = pair((9, 12, 10))
    for metric in (psnr, nrmse, ssim):
        assert metric(factor * image, factor * reference) == pytest.approx(metric(image, reference), rel=1e-9)


def test_voxels_outside_the_mask_do_not_matter_for_the_pointwise_metrics():
    image, reference = pair((9, 12, 10))
    mask = np.zeros(reference.shape, bool)
    mask[2:6, 3:9, 2:7] = True
    other_image, other_reference = np.where(mask, image, -1e3), np.where(mask, reference, 1e6)
    for metric in (psnr, nrmse):
        assert metric(other_image, other_reference, mask) == metric(image, reference, mask)


def test_order_of_voxels_and_mirrors_do_not_matter():
    image, reference = pair((9, 12, 10))
    shuffled = np.random.default_rng(2).permutation(image.size)
    a, b = (v.ravel()[shuffled].reshape(v.shape) for v in (image, reference))
    assert psnr(a, b) == pytest.approx(psnr(image, reference), rel=1e-12)
    assert nrmse(a, b) == pytest.approx(nrmse(image, reference), rel=1e-12)
    for axis in range(3):
        flipped = ssim(np.flip(image, axis), np.flip(reference, axis))
        assert flipped == pytest.approx(ssim(image, reference), rel=1e-9)


def test_more_noise_scores_worse_everywhere():
    _, reference = pair((16, 16, 16))
    noise = np.random.default_rng(7).normal(size=reference.shape)
    levels = [reference + s * noise for s in (0.5, 1, 2, 4, 8)]
    for metric, sign in ((psnr, -1), (nrmse, 1), (ssim, -1)):
        values = [sign * metric(level, reference) for level in levels]
        assert values == sorted(values) and values[0] < values[-1]


def test_the_kind_of_container_does_not_matter():
    image, reference = (v.astype(np.float32) for v in pair((9, 12, 10)))
    mask = reference > 15
    expected = psnr(image, reference, mask), nrmse(image, reference, mask), ssim(image, reference, mask)
    variants = [
        (torch.tensor(image), torch.tensor(reference), torch.tensor(mask)),
        (torch.tensor(image, requires_grad=True), reference, mask.astype(np.uint8)),
        (image.tolist(), reference, mask.astype(np.float32)),
        (torch.tensor(image).permute(2, 1, 0), torch.tensor(reference).permute(2, 1, 0), mask.T),
    ]
    for args in variants:
        assert (psnr(*args), nrmse(*args), ssim(*args)) == pytest.approx(expected, rel=1e-9)


def test_inputs_are_left_alone():
    image, reference = pair((9, 9, 9))
    before = image.copy(), reference.copy()
    rmse(image, reference, reference > 10)
    score(image, {"truth": reference}, {"all": np.ones_like(reference, bool)})
    assert np.array_equal(image, before[0]) and np.array_equal(reference, before[1])


def test_float32_images_are_compared_in_float64():
    reference = torch.full((8, 8, 8), 1e6)
    assert psnr(reference + 1, reference) == pytest.approx(120, rel=1e-12)


def test_score_has_one_complete_row_per_reference_and_mask():
    image, reference = pair((9, 12, 10))
    references = {"truth": reference, "full dose": reference + 1}
    masks = {"field of view": np.ones_like(reference, bool), "heart": reference > 20}
    rows = score(image, references, masks, name="MLEM-50")
    assert [(row["reference"], row["mask"]) for row in rows] == [(r, m) for r in references for m in masks]
    for row in rows:
        ref, mask = references[row["reference"]], masks[row["mask"]]
        assert row["image"] == "MLEM-50" and row["voxels"] == mask.sum() and row["data_range"] == ref[mask].max()
        assert row["psnr_db"] == psnr(image, ref, mask)
        assert row["nrmse"] == nrmse(image, ref, mask)
        assert row["ssim"] == ssim(image, ref, mask)
    fixed = score(image, references, masks, data_range=100.0)
    assert {row["data_range"] for row in fixed} == {100.0}
    assert fixed[0]["psnr_db"] == psnr(image, reference, data_range=100.0)


def test_table_is_aligned_and_says_reference_mask_and_range():
    image, reference = pair((9, 12, 10))
    everywhere = {"field of view": np.ones_like(reference, bool)}
    rows = score(image, {"truth": reference}, everywhere, "a") + score(
        reference, {"truth": reference}, everywhere, "a much longer name"
    )
    rows[0]["seconds"] = 1.5
    lines = score_table(rows).splitlines()
    header, rule, first, second = lines[:4]
    for word in ("image", "reference", "mask", "data_range", "psnr_db", "nrmse", "ssim", "seconds"):
        assert word in header.split()
    starts = [i for i in range(len(rule)) if rule[i] == "-" and (i == 0 or rule[i - 1] == " ")]
    ends = [rule.find(" ", s) if " " in rule[s:] else len(rule) for s in starts]
    spans = list(zip(starts, ends, strict=True))
    cells = [[line.ljust(len(rule))[s:e].strip() for s, e in spans] for line in (first, second)]
    table = [dict(zip(header.split(), row, strict=True)) for row in cells]
    assert table[0]["mask"] == "field of view" and table[1]["image"] == "a much longer name"
    assert table[0]["psnr_db"] == f"{rows[0]['psnr_db']:.2f}" and table[1]["psnr_db"] == "inf"
    assert table[0]["seconds"] == "1.5" and table[1]["seconds"] == "–"
    assert "maximum of the reference" in lines[-1] and "7-voxel window" in lines[-2]


ONES = np.ones((8, 8, 8))
BAD = [
    ((ONES, np.ones((8, 8, 9))), r"\(8, 8, 8\) and \(8, 8, 9\)"),
    ((np.ones((1, 8, 8)), ONES), r"\(1, 8, 8\) and \(8, 8, 8\)"),
    ((np.ones(()), ONES), r"\(\) and \(8, 8, 8\)"),
    ((ONES, ONES, np.ones((8, 8), bool)), r"\(8, 8, 8\): got \(8, 8\)"),
    ((ONES, ONES, np.zeros((8, 8, 8), bool)), "mask is empty"),
    ((ONES, ONES, np.full((8, 8, 8), 0.5)), "only 0 and 1"),
    ((ONES * np.nan, ONES), "image holds NaN"),
    ((ONES, ONES * np.inf), "reference holds NaN or infinite"),
]


@pytest.mark.parametrize("metric", [psnr, nrmse, ssim, rmse])
@pytest.mark.parametrize(("args", "message"), BAD)
def test_bad_input_is_named(metric, args, message):
    with pytest.raises(InputError, match=message):
        metric(*args)


@pytest.mark.parametrize("data_range", [0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_data_range(metric, data_range):
    with pytest.raises(InputError, match="data_range must be positive"):
        metric(ONES, ONES, None, data_range)


def test_references_without_signal():
    for metric in (psnr, ssim):
        with pytest.raises(InputError, match="data_range must be positive"):
            metric(ONES, 0 * ONES)
    with pytest.raises(InputError, match="zero everywhere"):
        nrmse(ONES, 0 * ONES)


@pytest.mark.parametrize("shape", [(6, 8, 8), (8, 8), (2, 8, 8, 8)])
def test_ssim_needs_a_volume_larger_than_its_window(shape):
    with pytest.raises(InputError, match="7 voxels"):
        ssim(np.ones(shape), np.ones(shape))


def test_errors_name_the_pair_and_tables_need_rows():
    with pytest.raises(InputError, match="'MLEM' against 'truth' in 'heart': mask is empty"):
        score(ONES, {"truth": ONES}, {"heart": ONES < 0}, "MLEM")
    with pytest.raises(InputError, match="at least one row"):
        score_table([])


@pytest.fixture(scope="module")
def patient():
    "A study with two defects; coarse projections, fine voxels."
    grid = ImageGrid((40, 44, 44), 4.0)
    phantom = torso(np.random.default_rng(4), grid, defects=2)
    study = simulate(phantom, tiny(), 1e5, np.random.default_rng(0))
    return replace(study, meta=study.meta | {"defects": list(phantom.defects)})


def test_a_study_is_scored_in_its_regions_against_what_it_has(patient):
    masks = masks_of(patient)
    assert set(masks) == {"field of view", "heart"} and not (masks["heart"] & ~masks["field of view"]).any()
    assert set(masks_of(replace(patient, heart=None))) == {"field of view"}
    both = replace(patient, reference=patient.truth * 1.1)
    rows = scores_of(both, {"a": patient.truth * 0.9})
    assert [(r["reference"], r["mask"]) for r in rows] == [
        (reference, mask) for reference in ("truth", "full-dose MLEM-50") for mask in ("field of view", "heart")
    ]
    assert rows[0]["nrmse"] == pytest.approx(0.1, rel=1e-5)
    assert scores_of(replace(patient, truth=None), {"a": patient.truth}) == []


def test_defect_regions_lie_in_the_wall_and_the_truth_keeps_their_contrast(patient):
    regions = defect_regions(patient)
    assert 1 <= len(regions) <= 2
    for defect, normal in regions:
        assert not (defect & normal).any()
        assert float(patient.truth[defect].mean()) < 0.9 * float(patient.truth[normal].mean())
    assert contrast_errors(patient.truth, patient, regions) == pytest.approx([0.0] * len(regions))
    assert min(contrast_errors(torch.ones(patient.grid.shape), patient, regions)) > 0.1
    assert defect_regions(replace(patient, meta={})) == []
