"The model observer: closed forms, another library, chance where there is nothing to see."

import csv

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, norm

from diffspect_nb.benchmark import read_rows
from diffspect_nb.core import InputError
from diffspect_nb.geometry import tiny, tiny_grid
from diffspect_nb.observer import (
    area_difference,
    area_under_roc,
    contrast_of,
    hotelling_verdicts,
    observer_pair,
    octave_channels,
    responses_of,
)


def test_channels_are_octaves_that_do_not_overlap_and_turn_with_nothing():
    u = octave_channels(65)
    np.testing.assert_allclose(u, u.swapaxes(1, 2), atol=1e-12)
    np.testing.assert_allclose(u, u[:, ::-1], atol=1e-12)
    spectrum = np.abs(np.fft.fft2(u, s=(512, 512))) ** 2
    rho = np.hypot(*np.meshgrid(np.fft.fftfreq(512), np.fft.fftfreq(512)))
    for k in range(1, 4):  # the lowest band is wider than the patch can tell
        inside = (rho >= 2**k / 64) & (rho < 2 ** (k + 1) / 64)
        assert spectrum[k][inside].sum() > 0.8 * spectrum[k].sum()


@pytest.mark.parametrize("bad", [{"pixels": 32}, {"pixels": 5}, {"n": 0}, {"n": 7}, {"lowest": 0.0}])
def test_impossible_channels_are_refused(bad):
    with pytest.raises(InputError):
        octave_channels(**bad)


def test_the_area_is_mann_and_whitneys():
    rng = np.random.default_rng(0)
    present, absent = rng.normal(0.7, 1, 40).round(1), rng.normal(0, 1, 50).round(1)  # with ties
    wanted = mannwhitneyu(present, absent).statistic / (40 * 50)
    assert area_under_roc(present, absent).auc == pytest.approx(wanted, abs=1e-12)


def test_intervals_cover_the_known_area_as_often_as_they_say():
    rng, separation = np.random.default_rng(1), 1.2
    known, hits, paired = norm.cdf(separation / np.sqrt(2)), 0, 0
    for _ in range(400):
        shared = rng.normal(size=(2, 60))
        first, second = (
            (separation + 0.8 * shared[0] + 0.6 * rng.normal(size=60), 0.8 * shared[1] + 0.6 * rng.normal(size=60))
            for _ in range(2)
        )
        found, (_, low, high) = area_under_roc(*first), area_difference(first, second)
        hits += found.low < known < found.high
        paired += low < 0 < high
    assert 0.92 < hits / 400 < 0.98 and 0.92 < paired / 400 < 0.98


def test_a_perfect_reader_is_perfect_and_a_blind_one_tosses_coins():
    assert area_under_roc(np.arange(5) + 10, np.arange(5)).auc == 1
    rng = np.random.default_rng(2)
    aucs = [area_under_roc(*hotelling_verdicts(*rng.normal(size=(2, 30, 4)))).auc for _ in range(40)]
    assert 0.4 < np.mean(aucs) <= 0.53  # judged by others' templates: no better than chance


@pytest.mark.parametrize(
    "present, absent", [(np.zeros((4, 4)), np.zeros((4, 4))), (np.zeros((9, 4)), np.zeros((8, 4)))]
)
def test_too_few_or_unpaired_patients_are_refused(present, absent):
    with pytest.raises(InputError):
        hotelling_verdicts(present, absent)


@pytest.mark.slow
def test_a_pair_differs_by_its_defect_alone_and_the_truth_shows_it():
    pair, grid = observer_pair(960_000, tiny(), tiny_grid(), severity=(0.5, 0.6)), tiny_grid()
    assert torch.equal(pair.present.mu, pair.absent.mu)
    assert not torch.equal(pair.present.projections, pair.absent.projections)
    gone = (pair.absent.truth / pair.absent.truth.sum() - pair.present.truth / pair.present.truth.sum()).clamp_min(0)
    place = np.average(grid.centers_mm(), axis=0, weights=gone.ravel().numpy())
    assert np.linalg.norm(place - pair.center_mm) < 15
    weight = (gone > 0.3 * gone.max()).float().numpy()
    assert contrast_of(pair.present.truth, pair, weight) > contrast_of(pair.absent.truth, pair, weight) + 0.2
    channels = octave_channels()
    seen = [responses_of(s.truth, pair, grid, channels) for s in (pair.present, pair.absent)]
    assert np.abs(seen[0] - seen[1]).max() > 0.05
    doubled = responses_of(2 * pair.present.truth, pair, grid, channels)
    np.testing.assert_allclose(doubled, seen[0], rtol=1e-6)
    with pytest.raises(InputError, match="empty"):
        responses_of(torch.zeros(grid.shape), pair, grid, channels)


def test_the_kept_table_says_what_the_kept_rows_say(root):
    "benchmarks/observer.csv against the responses in observer.jsonl, whatever they are."
    with (root / "benchmarks" / "observer.csv").open(encoding="utf-8") as file:
        table = {(r["setting"], r["method"]): r for r in csv.DictReader(file)}
    responses: dict = {}
    for row in read_rows(root / "benchmarks" / "observer.jsonl"):
        responses.setdefault((row["setting"], row["method"]), {})[row["seed"]] = row["present"], row["absent"]
    assert set(responses) == set(table)
    stacked = {key: np.array([found[seed] for seed in sorted(found)]) for key, found in responses.items()}
    verdicts = {key: hotelling_verdicts(both[:, 0], both[:, 1]) for key, both in stacked.items()}
    for key, row in table.items():
        area, gap = area_under_roc(*verdicts[key]), area_difference(verdicts[key], verdicts["counts 1.0", "MLEM-50"])
        wanted = [float(row[k]) for k in ("auc", "low", "high", "difference", "difference_low", "difference_high")]
        assert [area.auc, area.low, area.high, *gap] == pytest.approx(wanted, abs=1e-9)
        assert int(row["patients"]) == len(responses[key]) >= 50
