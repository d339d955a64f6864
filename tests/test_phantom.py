"The phantom: reproducible, sized like people, without voxel edges, with defects where they were put."

import numpy as np
import pytest
import torch

from diffspect_nb.anatomy import HEARTS, TERRITORIES, Tissue, draw_defects, draw_heart, heart_frame, lv_mass_g
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


CLOSE = ImageGrid((56, 50, 50), 2.0)
LATERAL = {"territory": "LCx", "severity": 0.8, "center_deg": 270.0, "half_extent_deg": 30.0, "edge_mm": 0.5}
LATERAL |= {"height_from": 0.25, "height_to": 0.75}


def share_left(**changes) -> tuple[np.ndarray, np.ndarray]:
    "Activity with the lateral defect ÷ without, and the depth in the wall, 0 inside … 1 outside; of wall voxels alone."
    heart = draw_heart(np.random.default_rng(2), "m", "usual") | {"centroid_mm": [0.0, 0.0, 0.0], "motion_mm": 0.0}
    healthy, ill = (patient(5, grid=CLOSE, heart=heart, sex="m", defects=d) for d in ([], [LATERAL | changes]))
    wall = (lv_wall_share(healthy) > 0.99).numpy()
    z, y, x = CLOSE.axes_mm()
    outer, inner = (w.distance(x, y[:, None], z[:, None, None]) for w in heart_frame(heart).walls)
    return (ill.activity / healthy.activity.clamp_min(1e-6)).numpy()[wall], (inner / (inner - outer))[wall]


def test_a_defect_reaches_as_deep_as_it_says():
    ratio, depth = share_left(depth=0.5)
    assert ratio[depth > 0.6].min() > 0.99 and ratio[depth < 0.4].min() == pytest.approx(0.2, abs=0.02)
    whole = share_left()[0]
    assert 0.3 < (1 - ratio).sum() / (1 - whole).sum() < 0.65


def test_edges_are_hard_or_soft_and_a_patch_is_an_ellipse():
    hard, soft, patch = (share_left(**c)[0] for c in ({}, {"edge_mm": 6.0}, {"shape": "patch"}))
    fading = [((r > 0.25) & (r < 0.95)).sum() for r in (hard, soft)]
    assert fading[1] > 3 * fading[0]
    assert (1 - patch).sum() / (1 - hard).sum() == pytest.approx(np.pi / 4, abs=0.05)


def test_a_defect_may_be_uneven_inside():
    even, uneven = (share_left(**c)[0] for c in ({"severity": 0.5}, {"severity": 0.5, "uneven": 0.4}))
    inside = even < 0.51
    assert even[inside].std() < 0.01 < 0.1 < uneven[inside].std() and uneven[even > 0.999].min() > 0.99
    assert uneven[inside].mean() == pytest.approx(0.5, abs=0.15)


def test_an_aneurysm_bulges_beyond_the_apex_behind_a_thin_wall():
    heart = draw_heart(np.random.default_rng(4), "m", "aneurysmal") | {"unevenness_mm": 0.0}
    plain = {k: v for k, v in heart.items() if k != "bulge"}
    frame = heart_frame(heart)
    along = np.linspace(frame.apex_mm - 30, frame.apex_mm + 40, 701)
    at = (frame.origin_mm + along[:, None] * frame.axis).T
    walls = [[w.distance(*at) < 0 for w in heart_frame(h).walls] for h in (plain, heart)]
    thick = [(outer & ~inner).sum() * 0.1 for outer, inner in walls]
    assert walls[1][1].sum() > walls[0][1].sum() + 50
    assert thick[1] < thick[0] and thick[1] == pytest.approx(heart["bulge"][1], abs=0.3)


def test_what_a_torso_is_told_replaces_what_it_draws():
    ball = {"tissue": "GUT", "middle_mm": [0.0, 0.0, -40.0], "radii_mm": [30.0, 12.0, 12.0], "uptake": 3.0}
    told = {"uptake": {"apex": 0.8}, "arms_down": True, "more": [ball | {"axes": np.eye(3).tolist()}]}
    wide = ImageGrid((20, 40, 60), 10.0)
    plain, changed = (patient(9, grid=wide, told=t) for t in (None, told))
    assert changed.meta["uptake"] == plain.meta["uptake"] | {"apex": 0.8} and changed.meta["organs"]["arms_down"]
    assert float(changed.mu.sum()) > float(plain.mu.sum())
    added = (changed.labels == Tissue.GUT) & (plain.labels != Tissue.GUT)
    assert added.sum() > 5 and float(changed.activity[added].max()) > 2
    heart = patient(3, grid=wide).meta["heart"]
    assert patient(9, grid=wide, heart=heart).meta["heart"] == heart


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
    with pytest.raises(InputError, match="one of usual, dilated, hypertrophic, small, aneurysmal or None, got"):
        patient(0, heart="stiff")
