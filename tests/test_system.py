"The projector against closed forms, a dense matrix, and an integration along rays that knows no system matrix."

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from diffspect_nb.attenuation import AttenuationMap, attenuation_factors, check_mu
from diffspect_nb.core import ImageGrid, InputError
from diffspect_nb.geometry import Pinhole, Scanner, dnm570c, rotating_camera, tiny, tiny_grid
from diffspect_nb.phantom import torso
from diffspect_nb.sparse import written_out
from diffspect_nb.study import Study, keep_views
from diffspect_nb.system import SystemMatrix, adjoint_gap, cache_path


@pytest.fixture(scope="module")
def full() -> SystemMatrix:
    return SystemMatrix.build(dnm570c(), ImageGrid())


@pytest.fixture(scope="module")
def small() -> SystemMatrix:
    return SystemMatrix.build(tiny(), tiny_grid())


@pytest.fixture(scope="module")
def patient():
    return torso(np.random.default_rng(900_003))


def water(grid: ImageGrid, radius_mm: float) -> torch.Tensor:
    "A ball of water round the origin."
    inside = (grid.centers_mm() ** 2).sum(1).reshape(grid.shape) < radius_mm**2
    return torch.as_tensor(0.154 * inside, dtype=torch.float32)


def test_column_indices_have_room_behind_them(small):
    "MKL reads them 64 bytes at a time, beyond the last one too: without room that was a crash, once in a hundred runs."
    own = SystemMatrix.from_matrix(scipy.sparse.random(27, 64, 0.5, random_state=0), (4, 4, 4), (3, 3, 3)).kept
    long = written_out(small.kept)
    dimmed = long.attenuated(torch.ones(small.proj_shape[0], int(np.prod(small.image_shape))))
    for matrix in (long, long.of_views([1]), dimmed, long.to(torch.device("cpu"), torch.float64), own):
        for block in (*matrix.by_pixel, *matrix.by_voxel):
            col = block.col_indices()
            assert col.untyped_storage().nbytes() - col.data_ptr() + col.untyped_storage().data_ptr() >= col.nbytes + 64


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_footprints_and_written_out_blocks_are_one_matrix(small, kind):
    "Products, views, subsets and attenuation of both ways to keep the numbers."
    a = small.attenuate(attenuation_factors(water(tiny_grid(), 90), tiny(), tiny_grid())).to(dtype=kind)
    b = replace(a, kept=written_out(a.kept))
    tolerance = {"rtol": 1e-12, "atol": 0} if kind == torch.float64 else {"rtol": 1e-5, "atol": 1e-9}
    x, y = torch.rand(2, *a.image_shape, dtype=kind), torch.rand(2, *a.proj_shape, dtype=kind)
    for one, other in (
        (a, b),
        (a.keep_views([5, 2]), b.keep_views([5, 2])),
        (a.ordered_subsets(4)[1][1], b.ordered_subsets(4)[1][1]),
    ):
        counts = y[:, : one.proj_shape[0]]
        torch.testing.assert_close(one.forward(x), other.forward(x), **tolerance)
        torch.testing.assert_close(one.adjoint(counts), other.adjoint(counts), **tolerance)
        torch.testing.assert_close(one.forward(x)[0], one.forward(x[0]), rtol=0, atol=0)


def test_threads_share_the_work_and_agree(full):
    "Any number of threads gives the same products, within rounding."
    x, y, before = torch.rand(full.image_shape), torch.rand(full.proj_shape), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append((full.forward(x), full.adjoint(y)))
    finally:
        torch.set_num_threads(before)
    assert full.n_bytes < 120e6  # 58 MB each way, where 52 million entries written out take 420
    for forward, adjoint in found[1:]:
        torch.testing.assert_close(forward, found[0][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(adjoint, found[0][1], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_forward_and_adjoint_are_transposes(full, small, seed):
    assert adjoint_gap(full, seed) < 1e-5
    assert adjoint_gap(full.keep_views([0, 7, 18]), seed) < 1e-5
    dimmed = small.attenuate(attenuation_factors(water(tiny_grid(), 90), tiny(), tiny_grid()))
    assert adjoint_gap(dimmed, seed) < 1e-5
    assert adjoint_gap(dimmed.to(dtype=torch.float64), seed) < 1e-13


def test_products_equal_a_dense_matrix(small):
    exact = small.to(dtype=torch.float64)
    dense = torch.cat([b.to_dense() for b in written_out(exact.kept).by_pixel])
    x, y = torch.rand(exact.image_shape, dtype=torch.float64), torch.rand(exact.proj_shape, dtype=torch.float64)
    torch.testing.assert_close(exact.forward(x).ravel(), dense @ x.ravel())
    torch.testing.assert_close(exact.adjoint(y).ravel(), dense.T @ y.ravel())
    torch.testing.assert_close(exact.forward(x.ravel()), dense @ x.ravel())
    torch.testing.assert_close(exact.sensitivity.ravel(), dense.sum(0))
    again = SystemMatrix.from_matrix(scipy.sparse.csr_matrix(dense.numpy()), exact.image_shape, exact.proj_shape)
    torch.testing.assert_close(again.forward(x), exact.forward(x))


def test_views_and_subsets_are_rows_of_the_whole(full):
    x = torch.rand(full.image_shape)
    whole = full.forward(x)
    torch.testing.assert_close(full.keep_views([3, 0, 11]).forward(x), whole[[3, 0, 11]])
    parts = full.ordered_subsets(4)
    assert sorted(v for views, _ in parts for v in views) == list(range(19))
    torch.testing.assert_close(sum(part.sensitivity for _, part in parts), full.sensitivity, rtol=1e-4, atol=1e-9)


def test_sensitivity_of_points_near_the_axis_is_the_closed_form(full):
    "d² cos³θ / 16 h², summed over the modules, within 1 %."
    scanner, points = dnm570c(), ImageGrid().centers_mm()
    near = np.flatnonzero(((points - [24, -7, 0]) ** 2).sum(1) < 14**2)
    for voxel in near[::5]:
        expected = 0.0
        for p in scanner.pinholes:
            q = points[voxel] - p.position_mm
            h = q @ np.array(p.axis)
            expected += scanner.aperture_mm**2 / (16 * h**2) * (h / np.linalg.norm(q)) ** 3
        assert float(full.sensitivity.view(-1)[voxel]) == pytest.approx(expected, rel=0.01)


# -- an independent projector: radiance along rays, summed over sub-pixels and points of the hole


def interpolate(volume: np.ndarray, points_mm: np.ndarray, grid: ImageGrid) -> np.ndarray:
    "Trilinear value of a volume at points (…, 3) = x, y, z; zero outside the outermost voxels' faces."
    n = np.array(grid.shape)
    index = points_mm[..., ::-1] / grid.voxel_mm + (n - 1) / 2
    inside = ((index > -0.5) & (index < n - 0.5)).all(-1)
    return map_coordinates(volume, np.moveaxis(index, -1, 0), order=1, mode="nearest") * inside


def disc_points(n_rings: int = 3) -> np.ndarray:
    "Points of equal area on the unit disc, (N, 2)."
    points = [
        np.sqrt((ring + 0.5) / n_rings) * np.array([np.cos(angle), np.sin(angle)])
        for ring in range(n_rings)
        for angle in np.linspace(0, 2 * np.pi, 6, endpoint=False) + 0.5 * ring
    ]
    return np.array(points)


def integrate_rays(activity, mu, grid: ImageGrid, scanner: Scanner, pinhole: Pinhole, sub=2, step_mm=2.0) -> np.ndarray:
    """Expected counts (rows, columns): ∫pixel ∫hole L cosθ cosθ′ / r², L = (1/4π) ∫ a exp(−∫μ) dl.

    The detector's own blur is applied to the finely sampled detector image, which reaches beyond the pixels."""
    hole, axis, row, col = (np.array(v) for v in (pinhole.position_mm, pinhole.axis, pinhole.row, pinhole.column))
    margin, pitch = 3, scanner.pixel_mm / sub
    n = [(pixels + 2 * margin) * sub for pixels in scanner.pixels]
    r, c = ((np.arange(k) - (k - 1) / 2) * pitch for k in n)
    detector = hole - scanner.focal_mm * axis + r[:, None, None] * row + c[None, :, None] * col
    density = activity / grid.voxel_mm**3  # photons per mm³
    depths = np.arange(0.5, 400 / step_mm) * step_mm  # along the axis, from the hole to beyond the grid's far corner
    image = np.zeros(n)
    offsets = disc_points() * scanner.aperture_mm / 2
    area = np.pi * scanner.aperture_mm**2 / 4 / len(offsets)
    for u, v in offsets:
        through = hole + u * row + v * col
        direction = through - detector  # (R, C, 3); its component along the axis is the focal length
        length = np.linalg.norm(direction, axis=-1)
        per_depth = direction / scanner.focal_mm  # mm travelled per mm of depth
        stretch = length / scanner.focal_mm
        radiance, path = np.zeros(n), np.zeros(n)
        for depth in depths:
            points = through + depth * per_depth
            here = interpolate(density, points, grid)
            if mu is not None:
                dimming = interpolate(mu, points, grid) / 10 * step_mm * stretch
                here = here * np.exp(-(path + dimming / 2))
                path += dimming
            radiance += here * step_mm * stretch
        cosine = scanner.focal_mm / length
        image += radiance / (4 * np.pi) * cosine**2 / length**2 * area * pitch**2
    image = gaussian_filter(image, scanner.intrinsic_fwhm_mm / np.sqrt(8 * np.log(2)) / pitch, mode="constant")
    pixels = image.reshape(n[0] // sub, sub, n[1] // sub, sub).sum((1, 3))
    return pixels[margin:-margin, margin:-margin]


@pytest.mark.slow
@pytest.mark.parametrize("attenuated", [False, True])
def test_projections_agree_with_an_independent_ray_integration(full, patient, attenuated):
    "Totals within 1 %, projections within 3 % (relative L2), on a central, an outer and a lateral view."
    grid, scanner = ImageGrid(), dnm570c()
    system = full.attenuate(attenuation_factors(patient.mu, scanner, grid)) if attenuated else full
    projections = system.forward(patient.activity).numpy()
    mu = patient.mu.numpy().astype(float) if attenuated else None
    activity = patient.activity.numpy().astype(float)
    views = [4, 16, 0]
    expected = np.stack([integrate_rays(activity, mu, grid, scanner, scanner.pinholes[v]) for v in views])
    got = projections[views]
    print("total", got.sum() / expected.sum(), "L2", np.linalg.norm(got - expected) / np.linalg.norm(expected))
    assert got.sum() == pytest.approx(expected.sum(), rel=0.01)
    for g, e in zip(got, expected, strict=True):
        assert np.linalg.norm(g - e) < 0.03 * np.linalg.norm(e)


# -- attenuation


def test_attenuation_of_a_uniform_slab_is_the_closed_form():
    "A voxel t mm deep in water keeps exp(−μ t / cos θ), for any module that looks at the slab from the front."
    grid = ImageGrid()
    scanner = dnm570c(tilt_deg=0)
    z, y, x = np.meshgrid(*grid.axes_mm(), indexing="ij")
    slab = torch.as_tensor(0.154 * (y > -42), dtype=torch.float32)
    for view in (2, 3):  # 22.5° and 0° from straight ahead
        pinhole = scanner.pinholes[view]
        only = scanner.keep_views([view])
        factors = attenuation_factors(slab, only, grid)[0].reshape(grid.shape).numpy()
        ray = np.stack([x, y, z], -1) - pinhole.position_mm
        share_inside = (y + 40) / ray[..., 1]  # the slab's face lies midway between voxel centres at −42 and −38
        expected = np.exp(-0.0154 * np.linalg.norm(ray, axis=-1) * share_inside)
        inside = (y > -20) & (np.abs(x) < 40) & (np.abs(z) < 40) & (y < 90)
        assert np.abs(factors - expected)[inside].max() < 0.01


def test_a_map_may_reach_beyond_the_image():
    "The middle of a grid, dimmed by a map of the whole, has the factors that it has in the whole."
    whole, middle = ImageGrid((40, 48, 48), 4.0), ImageGrid((20, 24, 24), 4.0)
    mu, scanner = water(whole, 70), dnm570c().keep_views([4, 12])
    expected = attenuation_factors(mu, scanner, whole).reshape(2, *whole.shape)[:, 10:30, 12:36, 12:36]
    found = attenuation_factors(AttenuationMap(mu, whole), scanner, middle).reshape(expected.shape)
    assert (found - expected).abs().max() < 0.01
    alone = attenuation_factors(mu[10:30, 12:36, 12:36], scanner, middle).reshape(expected.shape)
    assert (alone - expected).min() > -0.01 and (alone - expected).max() > 0.1


def test_attenuation_at_the_centre_of_a_ball():
    grid = ImageGrid()
    factors = attenuation_factors(water(grid, 80), dnm570c(focus_mm=(0, 0, 0)), grid)
    middle = [np.ravel_multi_index((k, j, i), grid.shape) for k in (24, 25) for j in (34, 35) for i in (34, 35)]
    assert np.allclose(factors[:, middle].mean(1), np.exp(-0.0154 * 80), rtol=0.02)
    assert float(factors.max()) <= 1 and float(factors.min()) > 0


def test_more_tissue_means_fewer_counts(small):
    grid = tiny_grid()
    activity = (water(grid, 60) > 0).float()
    totals = [
        float(small.attenuate(attenuation_factors(mu, tiny(), grid)).forward(activity).sum())
        for mu in (water(grid, 60) * 0, water(grid, 60), water(grid, 100))
    ]
    assert totals[0] == pytest.approx(float(small.forward(activity).sum()))
    assert totals[0] > 1.5 * totals[1] > 1.5 * 1.2 * totals[2]


BAD_MU = {
    "Hounsfield": lambda mu: mu / 0.154 * 1000 - 1000,
    "mm⁻¹": lambda mu: mu / 10,
    "finite": lambda mu: mu / 0,
    ">= 0": lambda mu: mu - 0.1,
    "shape": lambda mu: mu[1:],
}


@pytest.mark.parametrize("rule", BAD_MU)
def test_impossible_attenuation_maps_are_refused(rule):
    with pytest.raises(InputError, match=rule):
        check_mu(BAD_MU[rule](water(tiny_grid(), 80)), tiny_grid().shape)


# -- the cache


def moved(scanner: Scanner, by_mm: float) -> Scanner:
    "The scanner with its first pinhole moved."
    d = scanner.to_json()
    d["pinholes"][0]["position_mm"][0] += by_mm
    return Scanner.from_json(d)


def test_the_cache_knows_content_not_names():
    grid = tiny_grid()
    assert cache_path(tiny(), grid) == cache_path(Scanner.from_json(tiny().to_json() | {"name": "mine"}), grid)
    assert cache_path(moved(tiny(), 1e-3), grid) != cache_path(tiny(), grid)
    assert cache_path(tiny(), ImageGrid((16, 20, 20), 12.1)) != cache_path(tiny(), grid)


@pytest.mark.slow
def test_a_cached_matrix_is_the_built_one(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSPECT_CACHE", str(tmp_path))
    built = SystemMatrix.build(tiny(), tiny_grid())
    assert cache_path(tiny(), tiny_grid()).exists()
    loaded, fresh = (SystemMatrix.build(tiny(), tiny_grid(), cache=c) for c in (True, False))
    x = torch.rand(built.image_shape)
    assert torch.equal(built.forward(x), loaded.forward(x)) and torch.equal(built.forward(x), fresh.forward(x))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_cache_file_is_named(damage, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSPECT_CACHE", str(tmp_path))
    SystemMatrix.build(tiny(), tiny_grid())
    path = cache_path(tiny(), tiny_grid())
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes({"cut": data[: len(data) // 2], "flip": data, "empty": b""}[damage])
    with pytest.raises(InputError, match=path.name):
        SystemMatrix.build(tiny(), tiny_grid())


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSPECT_CACHE", str(tmp_path))

    def interrupted(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("diffspect_nb.system.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SystemMatrix.build(tiny(), tiny_grid())
    assert list(tmp_path.iterdir()) == []


def test_wrong_shapes_and_matrices_are_refused(small):
    with pytest.raises(InputError, match="image must have shape"):
        small.forward(torch.zeros(3, 3, 3))
    with pytest.raises(InputError, match="projections must have shape"):
        small.adjoint(torch.zeros(5))
    with pytest.raises(InputError, match="views must be distinct"):
        small.keep_views([0, 0])
    with pytest.raises(InputError, match="must be \\(bins, voxels\\)"):
        SystemMatrix.from_matrix(np.eye(3), (1, 1, 2), (1, 1, 3))
    with pytest.raises(InputError, match=">= 0"):
        SystemMatrix.from_matrix(-np.eye(2), (1, 1, 2), (1, 1, 2))


# --- parallel holes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def camera() -> Scanner:
    return rotating_camera(angles_deg=[180, 90, 30], radius_mm=[200, 180, 220], pixels=(32, 48), pixel_mm=4.0)


def test_a_point_before_parallel_holes_is_the_blur_of_the_textbook(camera):
    "One voxel: where it lands, how many photons get through, and how wide the spot is, in closed form."
    grid = ImageGrid((20, 24, 24), 4.0)
    system = SystemMatrix.build(camera, grid, cache=False)
    assert adjoint_gap(system) < 1e-5
    for voxel in ((10, 12, 12), (6, 20, 3)):
        image = torch.zeros(grid.shape)
        image[voxel] = 1
        z, y, x = (axis[i] for axis, i in zip(grid.axes_mm(), voxel, strict=True))
        for view, (angle, radius) in enumerate(zip(np.deg2rad([180, 90, 30]), (200, 180, 220), strict=True)):
            spot = system.forward(image)[view].double()
            depth = radius - (x * np.sin(angle) + y * np.cos(angle))  # from the collimator's face
            across = -x * np.cos(angle) + y * np.sin(angle)
            rows, columns = torch.arange(32.0) - 15.5, torch.arange(48.0) - 23.5
            assert float(spot.sum()) == pytest.approx((0.26 * 1.5**2 / (35 * 1.7)) ** 2, rel=1e-3)
            assert float((spot.sum(0) * columns).sum() / spot.sum()) * 4 == pytest.approx(across, abs=0.3)
            assert float((spot.sum(1) * rows).sum() / spot.sum()) * 4 == pytest.approx(-z, abs=0.3)
            variance = (3.8**2 + (1.5 * (1 + depth / 35)) ** 2) / (8 * np.log(2)) + 2 * 4.0**2 / 12  # voxel and pixel
            off = columns * 4 - across
            assert float((spot.sum(0) * off**2).sum() / spot.sum()) == pytest.approx(variance, rel=0.05)  # pruned tails


def test_parallel_rays_through_water(camera):
    "A slab across the anterior view: exp(−μ t) for the depth t of each voxel, the same in every column."
    grid = ImageGrid((20, 24, 24), 4.0)
    z, y, x = np.meshgrid(*grid.axes_mm(), indexing="ij")
    slab = torch.as_tensor(np.where(y > -20, 0.154, 0.0), dtype=torch.float32)
    factor = attenuation_factors(slab, camera, grid)[0].reshape(grid.shape).numpy()
    wanted = np.exp(-0.0154 * np.clip(y + 20, 0, None))
    inside = (y < 40) & (abs(x) < 40) & (abs(z) < 34)
    assert abs(factor - wanted)[inside].max() < 0.015


def test_a_rotating_camera_sees_what_a_projection_of_rays_sees(camera, patient):
    "Against a projector that only rotates and adds: without blur's help the sums over each view agree."
    grid = patient.grid
    two = rotating_camera(angles_deg=[180, 135], radius_mm=250, pixels=(64, 64), pixel_mm=6.8)
    system = SystemMatrix.build(two, grid, cache=False)
    views = system.forward(patient.activity)
    gain = (0.26 * 1.5**2 / (35 * 1.7)) ** 2
    assert views.sum((1, 2)).numpy() == pytest.approx(gain * float(patient.activity.sum()), rel=2e-3)
    profile = views[0].sum(0).numpy()  # anterior: one line integral per x
    lines = patient.activity.sum((0, 1)).numpy()
    x, columns = grid.axes_mm()[2], (np.arange(64) - 31.5) * 6.8
    assert (profile * columns).sum() / profile.sum() == pytest.approx((lines * x).sum() / lines.sum(), abs=0.5)


def test_a_rotating_camera_survives_the_study_folder(tmp_path, camera):
    grid = ImageGrid((12, 12, 12), 8.0)
    counts = torch.poisson(torch.full((3, 32, 48), 5.0), generator=torch.Generator().manual_seed(0))
    Study(counts, camera, grid).save(tmp_path / "s")
    again = Study.load(tmp_path / "s")
    assert again.scanner == camera and torch.equal(again.projections, counts)
    assert again.system().proj_shape == (3, 32, 48)
    assert keep_views(again, 2).views == (0, 2)  # spread, not the middle


def test_an_unknown_collimator_is_refused(camera):
    with pytest.raises(InputError, match="collimator must be 'pinhole' or 'parallel'"):
        Scanner.from_json(camera.to_json() | {"collimator": "fan"})
