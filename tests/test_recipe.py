"The recipe: patients and acquisitions within their table, an object larger than the image, and what differs does."

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from diffspect_nb.anatomy import HEARTS, draw_heart, heart_frame, mean_wall_mm
from diffspect_nb.attenuation import attenuation_factors
from diffspect_nb.core import ImageGrid, InputError
from diffspect_nb.geometry import dnm570c, rotating_lehr, tiny, tiny_grid
from diffspect_nb.phantom import torso
from diffspect_nb.recipe import (
    ACQUISITION_RANGES,
    PATIENT_RANGES,
    SCANNER_RANGES,
    Mismatch,
    draw_defect,
    draw_patient,
    image_as_phantom,
    misplaced,
    moving,
    positions_mm,
    really_expected,
    simulate_mismatched,
    true_scanner,
)
from diffspect_nb.system import SystemMatrix

GRID = tiny_grid()


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def patient(grid: ImageGrid):
    return torso(rng(12), grid, **draw_patient(12))


@pytest.fixture(scope="module")
def exact():
    "What acquires a patient when nothing differs."
    return Mismatch().true_system(tiny(), GRID, cache=False)


def acquired(counts: float = 1e7, real=None, paint=patient, **mismatch):
    return simulate_mismatched(paint, tiny(), GRID, counts, rng(0), Mismatch(**mismatch), real)


def test_patients_are_their_number_and_within_the_table():
    drawn = [draw_patient(seed) for seed in range(300)]
    assert drawn[3] == draw_patient(3) != drawn[4] and draw_patient(3, "small", "f")["heart"]["kind"] == "small"
    kinds = [d["heart"]["kind"] for d in drawn]
    assert set(kinds) == set(HEARTS) and kinds.count("usual") < 0.65 * len(kinds)
    assert 0.15 < np.mean([len(d["defects"]) == 0 for d in drawn]) < 0.3  # over-represented, and normals there are
    assert all(any(o["uptake"] > 0.2 for o in d["told"]["more"]) and 0.85 <= d["size"] <= 1.25 for d in drawn)
    scars = [d["defects"][-1] for d in drawn if d["heart"]["kind"] == "aneurysmal"]
    assert scars and all(s["severity"] >= 0.6 and s["height_to"] > 1 for s in scars)


def test_defects_are_of_every_kind_and_none_is_below_two_square_centimetres():
    heart = draw_heart(rng(1), "f", "usual")
    frame, radius = heart_frame(heart), heart["inner_radius_mm"] + mean_wall_mm(heart) / 2
    drawn = [draw_defect(rng(i), heart) for i in range(500)]
    for d in drawn:
        across, share = 2 * radius * np.deg2rad(min(d["half_extent_deg"], 180)), d["height_to"] - d["height_from"]
        area = across * share * (frame.apex_mm - frame.base_mm) / 100 * (np.pi / 4 if d["shape"] == "patch" else 1)
        assert area >= 1.99
        assert 0.15 <= d["severity"] <= 1 and 0.3 <= d["edge_mm"] <= 8 and 0.35 <= d["depth"] <= 1
    for name, low, high in (("severity", 0.3, 0.85), ("edge_mm", 1.0, 4.0), ("depth", 0.5, 0.99)):
        values = np.array([d[name] for d in drawn])
        assert (values < low).mean() > 0.1 and (values > high).mean() > 0.1, name
    assert all(0.2 < np.mean([d["shape"] == s for d in drawn]) for s in ("wedge", "patch"))


def test_acquisitions_are_within_the_table():
    drawn = [Mismatch.draw(rng(i)) for i in range(300)]
    norm = lambda name: np.array([np.linalg.norm(getattr(m, name)) for m in drawn])
    lengths = {name: norm(name) for name in ("ct_shift_mm", "ct_turn_deg", "breathing_mm", "drift_mm")}
    numbers = {
        name: np.array([getattr(m, name) for m in drawn]) for name in ("aperture", "distance", "tilt", "scatter")
    }
    for name, values in (lengths | numbers).items():
        r = (SCANNER_RANGES | ACQUISITION_RANGES)[name]
        width = r.high - r.low
        assert r.low <= values.min() < r.low + 0.1 * width and r.high - 0.1 * width < values.max() <= r.high + 1e-9, (
            name
        )
    along = np.abs([m.breathing_mm for m in drawn])
    assert (along[:, 2] > 2 * along[:, 0]).all() and (along[:, 2] > along[:, 1]).all()
    assert 0.1 < np.mean([bool(m.bad_pixels) for m in drawn]) < 0.4
    assert Mismatch(**asdict(drawn[5])) == drawn[5] and drawn[5].of_scanner(drawn[6]).tilt == drawn[6].tilt


@pytest.mark.slow
def test_a_coarse_surrounding_counts_like_a_fine_one():
    "Near and far part together are what one fine matrix of the whole object would give."
    grid = ImageGrid((12, 16, 16), 6.0)
    real = Mismatch().true_system(tiny(), grid, cache=False)
    fine = ImageGrid(tuple(2 * n for n in real.far_grid.shape), grid.voxel_mm)
    whole = patient(fine)
    system = SystemMatrix.build(tiny(), fine, cache=False)
    expected = system.attenuate(attenuation_factors(whole.mu, tiny(), fine)).forward(whole.activity)
    found = really_expected(real, patient, Mismatch())[0]
    assert real.times == 2 and float((found - expected).norm() / expected.norm()) < 0.02
    sizes = zip(real.far_grid.shape, grid.shape, strict=True)
    assert all(far * real.far_grid.voxel_mm >= n * grid.voxel_mm + 2 * 52 for far, n in sizes)


def test_without_mismatch_only_what_lies_beyond_the_grid_differs(exact):
    made = acquired(1e8, exact)
    assert made.counts == pytest.approx(1e8, rel=1e-3)
    model = made.system().forward(made.truth)
    assert 0.7 < float(model.sum() / made.projections.sum()) < 0.98  # the rest comes from beyond the grid
    inside = image_as_phantom(patient(GRID).activity, GRID, patient(GRID).mu)
    alone = acquired(1e8, exact, inside)
    model = alone.system().forward(alone.truth)
    assert float((model - alone.projections).norm() / model.norm()) < 0.03


def test_scatter_adds_its_share_where_there_is_tissue(exact):
    plain, scattered = (acquired(1e7, exact, scatter=s) for s in (0.0, 0.2))
    assert scattered.counts == pytest.approx(1.2e7, rel=1e-3) and torch.equal(scattered.truth, plain.truth)

    def hollow(grid):  # the same activity, but air on the patient's right
        whole = patient(grid)
        return replace(whole, mu=whole.mu * (torch.as_tensor(grid.axes_mm()[2]) > 0).float())

    shapes = [really_expected(exact, paint, Mismatch())[1] for paint in (patient, hollow)]
    shapes = [s / s.sum() for s in shapes]
    assert float((shapes[0] - shapes[1]).abs().sum()) > 0.2


def test_a_scanner_with_other_holes_sees_as_many_photons(exact):
    differs = {"aperture": 1.1, "distance": 0.92, "tilt": 1.1}
    real = Mismatch(**differs).true_system(tiny(), GRID, cache=False)
    plain, other = acquired(1e7, exact), acquired(1e7, real, **differs)
    assert float(other.truth.sum() / plain.truth.sum()) == pytest.approx(1, abs=0.08)  # it is calibrated
    model, nominal = true_scanner(dnm570c(), Mismatch(tilt=1.1)), dnm570c()
    up = [[np.rad2deg(np.arcsin(-p.axis[2])) for p in s.pinholes] for s in (nominal, model)]
    assert np.allclose(up[1], 1.1 * np.array(up[0]), atol=1e-6) and np.ptp(up[0]) == pytest.approx(76)
    camera = rotating_lehr()
    turned = true_scanner(camera, Mismatch(distance=1.1, tilt=1.1))
    assert turned.focal_mm == camera.focal_mm and np.linalg.norm(turned.pinholes[0].position_mm) == pytest.approx(275)


def test_the_ct_is_shifted_and_turned(exact):
    plain, moved = (acquired(1e7, exact, ct_shift_mm=(0.0, 0.0, z)) for z in (0.0, GRID.voxel_mm))
    assert torch.allclose(moved.mu[1:], plain.mu[:-1], atol=1e-5) and torch.equal(moved.projections, plain.projections)
    turned = misplaced(plain.mu, GRID, Mismatch(ct_turn_deg=(0.0, 0.0, 90.0)))
    torch.testing.assert_close(turned, torch.rot90(plain.mu, -1, (1, 2)), atol=1e-4, rtol=0)


def test_motion_blurs_along_its_way_and_the_truth_with_it(exact):
    breath = {"breathing_mm": (0.0, 0.0, 36.0), "drift_mm": (0.0, 0.0, 0.0)}
    still, moved = acquired(1e7, exact), acquired(1e7, exact, **breath)
    assert np.ptp(positions_mm(Mismatch(**breath))[:, 2]) == pytest.approx(36)
    assert np.allclose(positions_mm(Mismatch(**breath)).mean(0), 0)
    torch.testing.assert_close(moved.truth / moved.meta["photons_per_activity"],
                               moving(patient(GRID).activity, GRID, Mismatch(**breath)))  # fmt: skip
    assert float(moved.truth[still.heart].max()) < 0.95 * float(still.truth[still.heart].max())
    assert torch.equal(moving(still.truth, GRID, Mismatch()), still.truth)


def test_dead_and_hot_pixels_count_what_they_say(exact):
    made = acquired(1e7, exact, bad_pixels=((0.25, 0.0), (0.5, 12.0)))
    y = made.projections.ravel()
    assert float(y[len(y) // 4]) == 0 and float(y[len(y) // 2]) == pytest.approx(12 * 1e7 / len(y), rel=0.05)


def test_nothing_to_count_is_refused(exact):
    with pytest.raises(InputError, match="counts must be a positive number"):
        acquired(0, exact)
    assert set(PATIENT_RANGES).isdisjoint(SCANNER_RANGES)
