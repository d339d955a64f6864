"""What lies beyond the grid: counted as background where the counts ask for it, and only there."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffspect_nb.attenuation import AttenuationMap
from diffspect_nb.core import ImageGrid
from diffspect_nb.geometry import named_scanner, rotating_camera, tiny, tiny_grid
from diffspect_nb.mlem import osem
from diffspect_nb.phantom import torso
from diffspect_nb.study import Study, keep_views, simulate, thin
from diffspect_nb.surroundings import (
    CLEAR_MM,
    beyond,
    shell_factors,
    shell_grid,
    shell_matrix,
    surrounded,
    surrounded_matrix,
)
from diffspect_nb.system import SystemMatrix, adjoint_gap


@pytest.fixture(scope="module")
def far_study() -> Study:
    "A patient on a coarse grid, acquired with 72 mm more on every side than the study's grid holds."
    small = ImageGrid((25, 35, 35), 8.0)
    large = ImageGrid(tuple(n + 18 for n in small.shape), 8.0)
    patient = torso(np.random.default_rng(3), large)
    whole = simulate(patient, named_scanner("dnm570c"), 5e6, np.random.default_rng(0))
    cut = (slice(9, -9),) * 3
    truth, mu = (image[cut].contiguous() for image in (whole.truth, patient.mu))
    return Study(whole.projections, whole.scanner, small, mu, truth=truth)


@pytest.mark.parametrize("grid", [ImageGrid(), tiny_grid(), ImageGrid((7, 9, 12), 6.0, (3.0, -8.0, 1.0))])
def test_the_shell_surrounds_the_grid(grid):
    points = shell_grid(grid).centers_mm()[beyond(grid).ravel()] - grid.center_mm
    half = np.array(grid.shape[::-1]) * grid.voxel_mm / 2
    assert (np.abs(points) >= half).any(axis=1).all()
    assert (np.abs(points).max(axis=0) > half + 30).all()
    volume = (~beyond(grid)).sum() * (2 * grid.voxel_mm) ** 3
    assert volume == pytest.approx(grid.n_voxels * grid.voxel_mm**3, rel=0.25)  # odd numbers of voxels overlap


def test_a_module_does_not_see_what_lies_right_before_it():
    scanner, grid = tiny(), tiny_grid()
    points = shell_grid(grid).centers_mm()[beyond(grid).ravel()]
    seen = shell_matrix(scanner, grid).kept.views
    for p, view in zip(scanner.pinholes, seen, strict=True):
        assert ((points[view.voxel] - p.position_mm) @ np.array(p.axis)).min() > CLEAR_MM


def test_image_and_shell_are_one_matrix():
    scanner, grid = tiny(), tiny_grid()
    inner, shell = SystemMatrix.build(scanner, grid), shell_matrix(scanner, grid)
    both = surrounded_matrix(inner, shell)
    x, s = torch.rand(inner.image_shape), torch.rand(shell.image_shape)
    together = both.forward(torch.cat([x.flatten(), s.flatten()]).reshape(both.image_shape))
    assert torch.allclose(together, inner.forward(x) + shell.forward(s), rtol=1e-5)
    assert adjoint_gap(both) < 1e-5
    few = both.keep_views([2, 0])
    assert torch.allclose(few.forward(torch.ones(few.image_shape)), both.forward(torch.ones(both.image_shape))[[2, 0]])


def test_the_shell_sees_what_the_whole_grid_sees():
    "A point beyond the grid projects as it does on a grid that holds it."
    scanner, grid = tiny(), tiny_grid()
    whole, outside = SystemMatrix.build(scanner, shell_grid(grid)), torch.from_numpy(beyond(grid))
    image = torch.zeros(whole.image_shape)
    image[outside] = torch.rand(int(outside.sum()))
    points = shell_grid(grid).centers_mm()
    for p in scanner.pinholes:  # but for what is too near to a hole
        near = torch.from_numpy((points - p.position_mm) @ np.array(p.axis) < CLEAR_MM + 1).reshape(whole.image_shape)
        image[near] = 0
    expected = shell_matrix(scanner, grid).forward(image[outside].reshape(-1, 1, 1))
    other = whole.forward(image)  # its footprints are tabulated at other depths
    assert float((expected - other).norm()) < 0.02 * float(other.norm())


def test_it_mends_the_image(far_study):
    low = thin(far_study, 0.2, np.random.default_rng(1))
    around = surrounded(low)
    assert around.meta["beyond_grid"] > 0.02
    errors = [float((osem(s.measurement(), 8) / s.count_fraction - s.truth).norm()) for s in (low, around)]
    assert errors[1] < 0.9 * errors[0]
    fits = [float(s.measurement().deviance(osem(s.measurement(), 8)).sum()) for s in (low, around)]
    assert fits[1] < fits[0]


def test_the_shell_is_dimmed_by_the_whole_body_where_it_is_known():
    grid, far = tiny_grid(), ImageGrid((32, 40, 40), 12.0)
    air = torch.zeros(grid.shape)
    with_body = shell_factors(AttenuationMap(torch.full(far.shape, 0.15), far), tiny(), grid)
    assert float(shell_factors(air, tiny(), grid).min()) == 1  # the image's own edge goes on
    assert float(with_body.min()) < 0.1


def test_a_background_is_kept_and_added_to(far_study):
    scatter = torch.full_like(far_study.projections, 0.5)
    around = surrounded(replace(far_study, background=scatter))
    assert (around.background >= scatter).all() and around.background.sum() > 1.5 * scatter.sum()


def test_where_it_is_not_asked_for(far_study):
    inside = simulate(torso(np.random.default_rng(3), far_study.grid), far_study.scanner, 5e6, np.random.default_rng(0))
    alone = surrounded(inside)
    assert alone.meta["beyond_grid"] == 0 and alone.background is None
    again = surrounded(surrounded(far_study))
    assert torch.equal(again.background, surrounded(far_study).background)
    few = keep_views(far_study, 3)
    assert surrounded(few) is few
    camera = rotating_camera("camera", np.arange(6) * 30.0, 200.0, (20, 20), 12.0)
    turning = Study(torch.ones(6, 20, 20), camera, tiny_grid())
    assert surrounded(turning) is turning
