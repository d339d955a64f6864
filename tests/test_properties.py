"What holds for every scanner, grid, dose and choice of views, not only for those that somebody thought of."

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffspect_nb.core import ImageGrid
from diffspect_nb.geometry import Scanner, rotating_camera, tiny
from diffspect_nb.mlem import anchored_em, mlem, mlem_steps
from diffspect_nb.study import Study, keep_views, thin
from diffspect_nb.system import Measurement, SystemMatrix, adjoint_gap

few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
grids = st.builds(
    ImageGrid,
    st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    st.floats(6, 20).map(lambda v: round(v, 2)),
)


@st.composite
def scanners(draw) -> Scanner:
    "Pinholes of any width and number of pixels, or a camera that stops anywhere."
    pixels = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    if draw(st.booleans()):
        angles = draw(st.lists(st.floats(-360, 360), min_size=1, max_size=5))
        return rotating_camera("any", angles, draw(st.floats(120, 400)), pixels, draw(st.floats(3, 20)))
    kept = draw(st.lists(st.integers(0, 6), min_size=1, max_size=7, unique=True))
    changed = {"aperture_mm": draw(st.floats(1, 12)), "focal_mm": draw(st.floats(20, 120)), "pixels": pixels}
    return replace(tiny().keep_views(kept), pixel_mm=draw(st.floats(2, 12)), **changed)


def acquired(scanner: Scanner, grid: ImageGrid, level: float, seed: int) -> Measurement:
    "Poisson counts of a random image, in float64."
    system = SystemMatrix.build(scanner, grid, cache=False).to(dtype=torch.float64)
    random = torch.Generator().manual_seed(seed)
    mean = system.forward(torch.rand(grid.shape, generator=random, dtype=torch.float64))
    return Measurement(system, torch.poisson(mean * level / mean.sum().clamp_min(1e-30), generator=random))


@pytest.mark.slow
@few
@given(scanners(), grids, st.integers(0, 99))
def test_forward_and_adjoint_belong_together(scanner, grid, seed):
    system = SystemMatrix.build(scanner, grid, cache=False).to(dtype=torch.float64)
    assert adjoint_gap(system, seed) < 1e-10
    assert (system.sensitivity >= 0).all() and (system.sensitivity <= scanner.n_views).all()


@pytest.mark.slow
@few
@given(scanners(), grids, st.floats(5, 1e5), st.integers(0, 99))
def test_mlem_climbs_and_keeps_the_counts(scanner, grid, level, seed):
    measurement = acquired(scanner, grid, level, seed)
    counts, forward = measurement.counts, measurement.system.forward
    steps = list(mlem_steps(measurement, 6))
    likelihood = [s.scalars["log_likelihood"] for s in steps]
    assert all(b >= a - 1e-9 * (1 + abs(a)) for a, b in zip(likelihood, likelihood[1:], strict=False))
    assert all(torch.isfinite(s.image).all() and (s.image >= 0).all() for s in steps)
    seen = forward(torch.ones(grid.shape, dtype=torch.float64)) > 0  # counts that some voxel can explain
    if seen.any() and counts[seen].sum() > 0:
        total = float(forward(steps[-1].image).sum())
        assert np.isclose(total, float(counts[seen].sum()), rtol=1e-6)


@pytest.mark.slow
@few
@given(scanners(), grids, st.floats(5, 1e5), st.floats(0.01, 1), st.integers(0, 99))
def test_a_background_is_expected_beside_the_image(scanner, grid, level, share, seed):
    "With its background explained, MLEM still climbs, and its total is never above that of the image alone."
    bare = acquired(scanner, grid, level, seed)
    measurement = Measurement(bare.system, bare.counts, share * float(bare.counts.mean()))
    steps = list(mlem_steps(measurement, 6))
    likelihood = [s.scalars["log_likelihood"] for s in steps]
    assert all(b >= a - 1e-9 * (1 + abs(a)) for a, b in zip(likelihood, likelihood[1:], strict=False))
    assert np.isclose(measurement.log_likelihood(steps[-1].image), likelihood[-1], rtol=1e-12)
    alone = bare.expected(mlem(bare, 6)).sum()
    assert measurement.system.forward(steps[-1].image).sum() <= alone * (1 + 1e-6) + 1e-9


@pytest.mark.slow
@few
@given(scanners(), grids, st.floats(0, 1e3), st.integers(0, 99))
def test_the_anchor_lies_between_data_and_prior(scanner, grid, strength, seed):
    measurement = acquired(scanner, grid, 1e3, seed)
    anchor = torch.rand(grid.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moved = anchored_em(measurement, anchor, strength, n_iter=2)
    assert torch.isfinite(moved).all() and (moved >= 0).all()
    firm = anchored_em(measurement, anchor, 1e12, n_iter=2)
    assert torch.allclose(firm, anchor, atol=1e-6)


@few
@given(st.floats(0.01, 1), st.integers(1, 5), st.integers(0, 99))
def test_less_dose_and_fewer_views_stay_counts(fraction, n, seed):
    bins = torch.poisson(torch.full((7, 16, 16), 6.0), generator=torch.Generator().manual_seed(seed))
    full = Study(bins, tiny(), ImageGrid((16, 20, 20), 12.0))
    low = keep_views(thin(full, fraction, np.random.default_rng(seed)), n)
    assert (low.projections <= full.projections[list(low.views)]).all()
    assert len(low.views) == n and low.count_fraction == fraction
    assert torch.equal(low.projections, low.projections.round())
    assert 0 < low.count_level <= 1


@pytest.mark.slow
@few
@given(scanner=scanners(), grid=grids, seed=st.integers(0, 99))
def test_the_study_folder_forgets_nothing(scanner, grid, seed, tmp_path):
    random = torch.Generator().manual_seed(seed)
    counts = torch.poisson(torch.full((scanner.n_views, *scanner.pixels), 30.0), generator=random)
    truth = torch.rand(grid.shape, generator=torch.Generator().manual_seed(seed))
    study = Study(counts, scanner, grid, truth=truth, count_fraction=0.5, meta={"seed": seed})
    again = Study.load(study.save(tmp_path / "study"))
    assert torch.equal(again.projections, study.projections) and torch.equal(again.truth, truth)
    assert (again.scanner, again.views, again.count_fraction) == (scanner, study.views, 0.5)
    assert again.grid == grid and again.meta == {"seed": seed}
    assert mlem(again.measurement(), 1).shape == grid.shape
