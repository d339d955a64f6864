"The phantom: reproducible, sized like people, without voxel edges, with defects where they were put."

import numpy as np
import pytest
import torch

from diffspect_nb.anatomy import HEARTS, TERRITORIES, Tissue, draw_defects, draw_heart, lv_mass_g
from diffspect_nb.core import ImageGrid, InputError
from diffspect_nb.geometry import tiny_grid
from diffspect_nb.phantom import dilate, heart_mask, lv_wall_share, torso


def patient(seed: int, **options):
    return torso(np.random.default_rng(seed), **options)


def test_a_patient_is_its_seed():
    one, again, other = patient(1), patient(1), patient(2)
    assert torch.equal(one.activity, again.activity) and torch.equal(one.mu, again.mu) and one.meta == again.meta
    assert not torch.equal(one.activity, other.activity)


@pytest.mark.parametrize("seed", range(6))
def test_sizes_and_uptakes_are_those_of_people(seed):
    p = patient(seed, defects=0)
    usual = (95, 200) if p.meta["sex"] == "m" else (70, 150)
    low, high = {"usual": usual, "small": (45, 120)}.get(p.meta["heart"]["kind"], (100, 300))
    grams = float(lv_wall_share(p).sum()) * 0.4**3 * 1.05
    assert 0.88 * low < grams < 1.12 * high
    assert 9 - 3 < p.meta["heart"]["septum_mm"] < 1.4 * (10.8 + 3)
    assert 0 <= float(p.mu.min()) and 0.18 < float(p.mu.max()) <= 0.293
    mean = lambda image, *tissues: float(image[torch.isin(p.labels, torch.tensor(tissues))].mean())
    assert mean(p.mu, Tissue.LUNG) == pytest.approx(0.04, abs=0.02)
    assert mean(p.mu, Tissue.BODY, Tissue.LV_WALL) == pytest.approx(0.15, abs=0.012)
    wall = lv_wall_share(p) > 0.98
    assert 0.7 < float(p.activity[wall].mean()) < 1.1
    assert mean(p.activity, Tissue.LUNG) < 0.15 < 0.2 < mean(p.activity, Tissue.LIVER) < 1.8
    assert p.activity.shape == p.mu.shape == p.labels.shape == (50, 70, 70) and (p.activity >= 0).all()


def test_the_wall_has_soft_edges():
    share = lv_wall_share(patient(3))
    partly, wholly = (share > 0.05) & (share < 0.95), share >= 0.95
    assert partly.sum() > 0.8 * wholly.sum() > 0
    assert float(share.max()) <= 1 + 1e-5


def test_the_kind_of_heart_can_be_chosen():
    drawn = patient(11, grid=tiny_grid())
    kinds = {kind: patient(11, grid=tiny_grid(), heart=kind) for kind in HEARTS}
    assert torch.equal(kinds[drawn.meta["heart"]["kind"]].activity, drawn.activity)
    wall, cavity = ({k: p.meta["heart"][name] for k, p in kinds.items()} for name in ("septum_mm", "inner_radius_mm"))
    assert wall["hypertrophic"] > 1.2 * wall["usual"]
    assert cavity["dilated"] > 1.1 * cavity["usual"] and cavity["usual"] > 1.1 * cavity["small"]
    assert all(p.defects == drawn.defects and p.meta["uptake"] == drawn.meta["uptake"] for p in kinds.values())


@pytest.mark.parametrize("kind", HEARTS)
def test_every_drawn_heart_has_a_plausible_mass(kind):
    for seed in range(20):
        for sex, (low, high) in {"m": HEARTS[kind].men_g, "f": HEARTS[kind].women_g}.items():
            heart = draw_heart(np.random.default_rng(seed), sex, kind)
            assert heart["kind"] == kind and low <= heart["lv_mass_g"] <= high
            assert lv_mass_g(heart) == heart["lv_mass_g"]
            assert np.linalg.norm(heart["axis"]) == pytest.approx(1)


def test_drawn_defects_have_a_territory_each():
    for seed in range(50):
        found = draw_defects(np.random.default_rng(seed), 3)
        assert {d["territory"] for d in found} == set(TERRITORIES)
        for d in found:
            assert abs((d["center_deg"] - TERRITORIES[d["territory"]] + 180) % 360 - 180) <= 22
            assert 0.15 <= d["severity"] <= 0.95 and d["height_from"] + 0.25 <= d["height_to"]


@pytest.mark.parametrize("territory, angle", [("LAD", 25.0), ("LCx", 270.0), ("RCA", 180.0)])
def test_a_defect_takes_its_share_from_its_place(territory, angle):
    defect = {
        "territory": territory,
        "severity": 0.6,
        "center_deg": angle,
        "half_extent_deg": 35.0,
        "height_from": 0.2,
        "height_to": 0.8,
        "edge_mm": 4.0,
    }
    healthy, ill = patient(5, defects=0), patient(5, defects=[defect])
    wall = lv_wall_share(healthy) > 0.99
    ratio = (ill.activity / healthy.activity.clamp_min(1e-6))[wall]
    assert float(ratio.min()) == pytest.approx(0.4, abs=0.03) and float(ratio.max()) == pytest.approx(1, abs=1e-4)
    assert 0.02 < float((ratio < 0.5).float().mean()) < 0.35
    assert torch.equal(healthy.mu, ill.mu)


def test_the_total_does_not_depend_on_the_grid():
    coarse, fine = patient(7), patient(7, grid=ImageGrid((100, 140, 140), 2.0))
    assert float(fine.activity.sum()) / 8 == pytest.approx(float(coarse.activity.sum()), rel=0.02)
    assert float(fine.mu.mean()) == pytest.approx(float(coarse.mu.mean()), rel=0.02)
    small = patient(7, grid=tiny_grid())
    assert small.activity.shape == (16, 20, 20) and float(small.activity.max()) > 0.2


def test_the_heart_region_holds_the_wall_and_a_margin():
    p = patient(8)
    region, wall = heart_mask(p), lv_wall_share(p) >= 0.5
    assert (region & wall).sum() == wall.sum() and 3 < float(region.sum() / wall.sum()) < 12
    point = torch.zeros(11, 11, 11)
    point[5, 5, 5] = 1
    z, y, x = torch.meshgrid(*[torch.arange(-5, 6)] * 3, indexing="ij")
    assert torch.equal(dilate(point, 3), z**2 + y**2 + x**2 <= 9)


def test_impossible_patients_are_refused():
    with pytest.raises(InputError, match="defects must be 0 to 3"):
        patient(0, defects=7)
    with pytest.raises(InputError, match="sex must be"):
        patient(0, sex="x")
    with pytest.raises(InputError, match="heart must be one of usual, dilated, hypertrophic, small or None, got"):
        patient(0, heart="stiff")
