"""Reader studies: textbook numbers, R's published examples, other libraries where they are installed, and simulated
studies in which the truth is known."""

import sys
from dataclasses import replace
from importlib.util import find_spec
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats

from diffspect_nb.cli import main
from diffspect_nb.core import InputError
from diffspect_nb.files import read_csv, write_csv
from diffspect_nb.paired import (
    equivalence,
    friedman,
    holm,
    icc,
    mean_squares,
    plot_post_hoc,
    post_hoc,
    range_survival,
    second_opinion,
    weighted_kappa,
)
from diffspect_nb.reader import (
    Plan,
    Readings,
    SimulatedGrader,
    every_reading,
    found_by,
    plot_report,
    read_readings,
    readings_of,
    report,
    report_text,
    simulated_graders,
    simulated_readings,
)

ORACLES = ("scikit_posthocs", "statsmodels", "sklearn", "pingouin")
NO_ORACLES = "the four libraries are not installed: pip install 'diffspect_nb[reader]'"
needs_oracles = pytest.mark.skipif(not all(map(find_spec, ORACLES)), reason=NO_ORACLES)

# Hollander and Wolfe's rounding times, R's ?friedman.test: round out, narrow angle, wide angle
ROUNDING = np.array(
    [5.40, 5.50, 5.55, 5.85, 5.70, 5.75, 5.20, 5.60, 5.50, 5.55, 5.50, 5.40, 5.90, 5.85, 5.70, 5.45, 5.55, 5.60]
    + [5.40, 5.40, 5.35, 5.45, 5.50, 5.35, 5.25, 5.15, 5.00, 5.85, 5.80, 5.70, 5.25, 5.20, 5.10, 5.65, 5.55, 5.45]
    + [5.60, 5.35, 5.45, 5.05, 5.00, 4.95, 5.50, 5.50, 5.40, 5.45, 5.55, 5.50, 5.55, 5.55, 5.35, 5.45, 5.50, 5.55]
    + [5.50, 5.45, 5.25, 5.65, 5.60, 5.40, 5.70, 5.65, 5.55, 6.30, 6.30, 6.25]
).reshape(22, 3)
JUDGES = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
BLOCKS = np.array([[4, 3, 4, 4, 5, 6, 3], [1, 2, 3, 5, 6, 7, 7], [1, 2, 6, 4, 1, 5, 1]])  # of scikit-posthocs' tests
SPRAYS = np.array(  # R's InsectSprays, A … F
    [[10, 7, 20, 14, 14, 12, 10, 23, 17, 20, 14, 13], [11, 17, 21, 11, 16, 14, 17, 17, 19, 21, 7, 13]]
    + [[0, 1, 7, 2, 3, 1, 2, 1, 3, 0, 1, 4], [3, 5, 12, 6, 4, 3, 5, 5, 5, 5, 2, 4]]
    + [[3, 5, 3, 5, 3, 6, 1, 1, 3, 2, 6, 4], [11, 9, 15, 22, 15, 16, 13, 10, 26, 26, 24, 13]]
).T


def grades_of(table: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    "Two raters' grades from their table of counts."
    counts = np.array(table)
    return tuple(np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))


# ---- textbook numbers


def test_friedman_on_rs_own_example():
    statistic, free, p = friedman(ROUNDING)
    assert (round(statistic, 3), free, round(p, 6)) == (11.143, 2, 0.003805)


def test_conover_and_nemenyi_as_in_r():
    "PMCMRplus's p of frdAllPairsConoverTest (unadjusted, against the first column) and frdAllPairsNemenyiTest."
    pairs = list(combinations(range(7), 2))
    first = [n for n, (i, _) in enumerate(pairs) if i == 0]
    plain = np.array([0.9147508, 0.1518030, 0.2140927, 0.2140927, 0.0181602, 0.5242303])
    nemenyi = [0.9999999, 0.8414506, 0.9177741, 0.9177741, 0.2147827, 0.9976902]
    found = post_hoc(BLOCKS)
    np.testing.assert_allclose(found["Nemenyi"][first], nemenyi, atol=2e-7)
    smallest = found["Conover–Holm"].min()  # Holm's factor of the smallest p is the number of pairs
    assert smallest == pytest.approx(21 * plain.min(), abs=2e-6)


def test_dunn_as_in_r():
    "PMCMR's vignette on InsectSprays, p without correction."
    known = {(0, 1): 0.75448, (0, 3): 0.00182, (1, 3): 0.00060, (0, 4): 0.00012, (0, 5): 0.68505, (1, 5): 0.92603}
    pairs = list(combinations(range(6), 2))
    found = post_hoc(SPRAYS)["Dunn–Holm"]
    ranks = stats.rankdata(SPRAYS).reshape(SPRAYS.shape)
    plain = np.array(
        [2 * stats.norm.sf(abs(np.ptp(ranks.mean(0)[list(p)])) / np.sqrt(ranks.var(ddof=1) / 6)) for p in pairs]
    )
    for pair, p in known.items():
        assert plain[pairs.index(pair)] == pytest.approx(p, abs=6e-6)
    np.testing.assert_allclose(found, holm(plain), rtol=1e-12)


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1, 1])


@pytest.mark.parametrize("k", [2, 3, 6])
def test_the_range_of_normals_is_scipys(k):
    q = np.array([0.3, 2.0, 4.5])
    np.testing.assert_allclose(range_survival(q, k), stats.studentized_range.sf(q, k, np.inf), atol=1e-8)
    assert range_survival(np.array([0.0, np.inf]), k) == pytest.approx([1, 0], abs=1e-12)


def test_icc_of_shrout_and_fleiss():
    "Their printed values; F and intervals as R's psych::ICC prints them."
    agreement, consistency = icc(JUDGES)
    assert (round(agreement.value, 2), round(consistency.value, 2)) == (0.29, 0.71)
    assert (round(agreement.low, 3), round(agreement.high, 2)) == (0.019, 0.76)
    assert (round(consistency.low, 3), round(consistency.high, 2)) == (0.342, 0.95)
    patients, readers, rest = mean_squares(JUDGES)
    assert [round(m, 2) for m in (patients, readers, rest)] == [11.24, 32.49, 1.02]  # their Table 3
    assert round(patients / rest, 2) == 11.03
    assert stats.f.sf(patients / rest, 5, 15) == pytest.approx(0.000135, abs=5e-7)


def test_icc_of_mcgraw_and_wong():
    "Their Table 6, as R prints it."
    table = [[103, 119], [82, 65], [116, 106], [102, 102], [99, 105], [98, 100], [104, 107], [62, 85], [97, 101]]
    agreement, consistency = icc([*table, [107, 110]])
    assert (round(agreement.value, 3), round(agreement.low, 3), round(agreement.high, 3)) == (0.720, 0.228, 0.922)
    assert (round(consistency.value, 3), round(consistency.low, 3), round(consistency.high, 3)) == (0.714, 0.197, 0.920)


@pytest.mark.parametrize(
    "table, known",
    [
        ([[7, 7, 2, 3], [2, 8, 3, 7], [1, 5, 4, 9], [2, 8, 9, 14]], 0.2374),  # Agresti 1990: 91 couples
        ([[38, 5, 0, 1], [33, 11, 3, 0], [10, 14, 5, 6], [3, 7, 3, 10]], 0.3797),  # Landis and Koch 1977: 149 patients
    ],
)
def test_linear_kappa_as_rs_vcd_prints_it(table, known):
    assert round(weighted_kappa(*grades_of(table), power=1).value, 4) == known


def test_kappa_of_two_grades_is_cohens_and_a_shift_is_no_agreement():
    first, second = grades_of([[20, 5], [10, 15]])  # Cohen's κ = 0.4
    for power in (1, 2):
        found = weighted_kappa(first, second, power)
        assert found.value == pytest.approx(0.4) and found.low < 0.4 < found.high
    up = np.tile([1, 2, 3, 4, 5], 8)
    assert weighted_kappa(up, up).value == 1
    assert weighted_kappa(up, 6 - up).value == pytest.approx(-1)
    assert weighted_kappa(up, up + 1).value == pytest.approx(1 - 1 / (2 * up.var() + 1))


def test_parts_of_a_patient_count_for_kappa_but_do_not_narrow_it():
    rng = np.random.default_rng(0)
    a = rng.integers(1, 6, 30)
    b = np.clip(a + rng.integers(-1, 2, 30), 1, 5)
    one, five = weighted_kappa(a, b), weighted_kappa(*(np.repeat(x[:, None], 5, 1) for x in (a, b)))
    assert five.value == pytest.approx(one.value) and five.low == pytest.approx(one.low)
    wrong = weighted_kappa(np.repeat(a, 5), np.repeat(b, 5))
    assert wrong.high - wrong.low < 0.6 * (one.high - one.low)


def test_equivalence_in_closed_form():
    d = np.array([-1.0, 0.0, 1.0, 2.0])  # mean 0.5, standard error √(5/3)/2
    error = np.sqrt(5 / 3) / 2
    found = equivalence(d + 7, np.full(4, 7.0), 2.0)
    assert found.difference == pytest.approx(0.5)
    assert found.p == pytest.approx(max(stats.t.sf((0.5 + 2) / error, 3), stats.t.cdf((0.5 - 2) / error, 3)))
    assert found.high - 0.5 == pytest.approx(2.353363 * error, rel=1e-6)  # t of 95 %, 3 degrees of freedom
    at_the_end = equivalence(d, np.zeros(4), found.high)  # the interval just touches the margin
    assert at_the_end.p == pytest.approx(0.05)
    assert not found.shown and equivalence(d, np.zeros(4), 2.1).shown


# ---- other libraries


@needs_oracles
@pytest.mark.slow
def test_four_libraries_give_the_same_numbers():
    rng = np.random.default_rng(1)
    for values in (Plan(patients=20, effect=0.4).draw(rng).of_patients(), rng.integers(1, 6, (12, 5)), ROUNDING):
        lines = second_opinion(values)
        assert {line["library"].split()[0] for line in lines} == {
            "scikit-posthocs",
            "statsmodels",
            "scikit-learn",
            "pingouin",
        }
        assert all(line["largest_difference"] < 1e-7 for line in lines), lines


def test_without_the_libraries_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"a second opinion needs pandas: pip install 'diffspect_nb\[reader\]'"):
        second_opinion(ROUNDING)


# ---- what is asked of a paired test


def test_paired_tests_see_neither_the_patients_level_nor_the_unit():
    values = np.random.default_rng(2).normal(size=(15, 4))
    easier = values + 10 * np.random.default_rng(3).normal(size=(15, 1))
    for name in ("Conover–Holm", "Nemenyi"):
        np.testing.assert_array_equal(post_hoc(values)[name], post_hoc(easier)[name])
        np.testing.assert_array_equal(post_hoc(values)[name], post_hoc(np.exp(values))[name])
    assert friedman(values) == friedman(easier) == friedman(np.exp(values))


STUDIES = 150
CHANCE = 2.6 * np.sqrt(0.05 * 0.95 / STUDIES)  # 99 % of what chance makes of a true 5 %


@pytest.fixture(scope="module")
def nothing() -> dict[str, float]:
    "How often a difference is found where there is none: simulated graders, equally good methods."
    return found_by(Plan(patients=24), STUDIES, seed=5)


def test_no_test_cries_wolf_more_often_than_it_says(nothing):
    assert nothing["Dunn–Holm"] <= 0.05 + CHANCE and nothing["Nemenyi"] <= 0.05 + CHANCE
    assert abs(nothing["Conover–Holm"] - 0.05) < CHANCE


def test_readings_taken_for_patients_cry_wolf(nothing):
    assert nothing["Conover–Holm, readings as patients"] > 0.05 + 1.5 * CHANCE


def test_readings_may_count_where_nothing_is_shared():
    "The same test on the same number of rows is right if images of a patient differ in nothing that all readers see."
    shares = found_by(Plan(patients=24, image_sd=0.0), STUDIES, seed=6)
    assert shares["Conover–Holm, readings as patients"] <= 0.05 + CHANCE


def test_power_rises_with_the_effect_and_with_patients():
    power = [found_by(Plan(patients=24, effect=e), 40, seed=7)["Conover–Holm"] for e in (0.0, 0.4, 0.8)]
    assert power[0] < 0.2 < power[1] < power[2] and power[2] > 0.8
    assert found_by(Plan(patients=60, effect=0.4), 40, seed=7)["Conover–Holm"] > power[1]


def test_dunn_on_paired_images_finds_less():
    shares = found_by(Plan(effect=0.5), 60, seed=8)
    assert shares["Dunn–Holm"] < shares["Nemenyi"] <= shares["Conover–Holm"]


# ---- simulated graders


def test_a_simulated_grader_counts_its_cuts():
    exact = SimulatedGrader((1.0, 2.0, 3.0), bias=0.0, noise=0.0)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(exact.grade(np.array([0.5, 1.0, 2.5, 9.0]), rng), [1, 2, 3, 4])
    mild = SimulatedGrader((1.0, 2.0, 3.0), bias=1.0, noise=0.0)
    np.testing.assert_array_equal(mild.grade(np.array([0.5, 1.0, 2.5, 9.0]), rng), [2, 3, 4, 4])


def test_grades_are_used_equally_and_bias_and_noise_cost_agreement():
    measure, rng = np.random.default_rng(0).normal(size=(400, 1)), np.random.default_rng(1)
    plain = simulated_graders(measure, rng, n=2, bias=0.0, noise=0.0)
    grades = simulated_readings(measure, ["one"], plain, rng).grades
    assert np.bincount(grades[..., 0, 0, 0].ravel().astype(int))[1:].tolist() == [80] * 5
    found = {}
    for spread, noise in ((0.0, 0.5), (0.0, 1.0), (0.8, 0.5)):
        graders = [replace(plain[0], bias=spread * b, noise=noise) for b in (-1, 0, 1)]
        said = simulated_readings(measure, ["one"], graders, rng).grades[:, 0, :, 0, 0]
        found[spread, noise] = [e.value for e in icc(said)]
    assert found[0.0, 0.5][0] > found[0.0, 1.0][0] + 0.1
    assert found[0.8, 0.5][0] < found[0.0, 0.5][0] - 0.1  # a bias is no agreement …
    assert found[0.8, 0.5][1] > found[0.8, 0.5][0] + 0.1  # … but it is consistent


@pytest.mark.parametrize(
    "bad",
    [{"n": 0}, {"grades": 1}, {"noise": -1.0}, {"bias": -0.1}, {"measure": np.zeros(5)}, {"measure": [1.0, np.nan]}],
)
def test_impossible_graders_are_refused(bad):
    with pytest.raises(InputError, match="graders need"):
        simulated_graders(**{"measure": np.arange(5.0), "rng": np.random.default_rng(0)} | bad)


# ---- tables and reports


def study(**changes) -> Readings:
    "Twelve patients, three methods, three simulated graders, two sittings, two sides."
    rng = np.random.default_rng(9)
    measure = rng.normal(size=(12, 1, 1)) + 0.3 * rng.normal(size=(12, 3, 2)) + np.array([0, 0.2, 1.0])[:, None]
    kept = {"methods": ["5 min", "U-Net", "25 min"], "sittings": 2} | changes
    graders = simulated_graders(measure, rng, n=kept.pop("n", 3))
    return simulated_readings(measure[:, : len(kept["methods"])], graders=graders, rng=rng, **kept)


def test_a_table_comes_back_as_it_was(tmp_path):
    readings = study()
    again = readings_of(np.random.default_rng(0).permutation(readings.rows()))
    order = [[again.labels[a].index(name) for name in names] for a, names in readings.labels.items()]
    np.testing.assert_array_equal(again.grades[np.ix_(*order)], readings.grades)
    path = tmp_path / "table.csv"
    lines = [
        "patient,method,reader,sitting,part,grade",
        *(",".join(str(v) for v in r.values()) for r in readings.rows()),
    ]
    path.write_text("\n".join(lines), encoding="utf-8-sig")  # as spreadsheets write it
    assert read_readings(path).who == "3 simulated graders"
    np.testing.assert_array_equal(read_readings(path).grades, readings.grades)
    np.testing.assert_allclose(readings.of_patients(), readings.grades.reshape(12, 3, -1).mean(-1))


def test_readings_that_are_missing_doubled_or_no_numbers_are_named(tmp_path):
    rows = study().rows()
    with pytest.raises(
        InputError, match="1 readings are missing, the first: patient 1, method 5 min, reader simulated 1"
    ):
        readings_of(rows[1:])
    with pytest.raises(InputError, match="line 434: a second grade for patient 1, method 5 min"):
        readings_of([*rows, rows[0]])
    for bad in ("", "good", "nan", None):
        with pytest.raises(InputError, match="line 2: grade must be a number"):
            readings_of([{**rows[0], "grade": bad}, *rows[1:]])
    with pytest.raises(InputError, match="missing: grade, reader"):
        readings_of([{"patient": "1", "method": "a"}])
    with pytest.raises(InputError, match="missing: grade, method, patient, reader"):
        readings_of([])
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="empty.csv: a table of readings has columns"):
        read_readings(tmp_path / "empty.csv")
    with pytest.raises(InputError, match="file not found"):
        read_readings(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="not a readable table of readings"):
        read_readings(tmp_path / "binary.csv")


def test_readings_know_who_is_simulated_and_what_is_amiss():
    names = {"patient": ("p", "q"), "method": ("m",), "sitting": ("1",), "part": ("1",)}
    for readers, who in ((("A",), "1 reader"), (("A", "simulated 1", "simulated 2"), "3 readers, 2 of them simulated")):
        assert Readings(np.ones((2, 1, len(readers), 1, 1)), names | {"reader": readers}).who == who
    for shape, readers in (((2, 1, 2, 1, 1), ("A", "A")), ((3, 1, 1, 1, 1), ("A",)), ((2, 1, 1, 1), ("A",))):
        with pytest.raises(InputError, match="grades must be finite, one for each name"):
            Readings(np.ones(shape), names | {"reader": readers})
    with pytest.raises(InputError, match="one for each name"):
        simulated_readings(np.ones((4, 2)), ["one"], [SimulatedGrader((0.5,), 0, 1)], np.random.default_rng(0))


def test_a_report_says_what_the_parts_say():
    readings = study()
    tables = report(readings, "25 min", margin=0.4)
    values = readings.of_patients()
    assert tables["friedman"][0]["p"] == friedman(values)[2] and tables["friedman"][0]["patients"] == 12
    short = next(line for line in tables["methods"] if line["method"] == "5 min")
    assert short["p_tost"] == equivalence(values[:, 0], values[:, 2], 0.4).p and short["grade"] == values[:, 0].mean()
    assert [line["Conover–Holm"] for line in tables["pairs"]] == post_hoc(values)["Conover–Holm"].tolist()
    consensus = np.median(readings.grades[:, 2, :, 0], axis=1)
    kappa = next(r for r in tables["agreement"] if (r["what"], r["method"]) == ("κ quadratic", "U-Net"))
    assert kappa["value"] == weighted_kappa(readings.grades[:, 1, 0, 0], consensus).value
    kinds = [line["what"] for line in tables["agreement"]]
    assert [kinds.count(k) for k in ("κ linear", "ICC(3,1) within", "ICC(2,1) between")] == [6, 9, 3]
    figure = plot_report(readings, "25 min", 0.4)
    assert "simulated graders" in figure.get_suptitle() and "25 min" in report_text(tables)
    plt.close(figure)


def test_a_study_of_one_reader_two_methods_and_one_sitting_has_a_shorter_report():
    readings = study(methods=["5 min", "25 min"], sittings=1, n=1)
    tables = report(readings, "25 min")
    assert tables["friedman"] == [] and len(tables["pairs"]) == 1
    assert {line["what"] for line in tables["agreement"]} == {"κ linear", "κ quadratic"}
    assert "friedman" not in report_text(tables)
    plt.close(plot_report(readings))


def test_one_grade_throughout_is_no_agreement_no_difference_and_no_error():
    rows = [{"patient": p, "method": m, "reader": r, "grade": 3} for p in range(5) for m in "abc" for r in "xy"]
    readings = readings_of(rows)
    tables = report(readings)
    assert tables["friedman"][0]["p"] == 1
    assert all(line[name] == 1 for line in tables["pairs"] for name in ("Dunn–Holm", "Conover–Holm", "Nemenyi"))
    assert all(np.isnan(line["value"]) for line in tables["agreement"])
    assert [line["p_tost"] for line in tables["methods"]] == [None, 0.0, 0.0]
    assert "–" in report_text(tables) and readings.who == "2 readers"
    plt.close(plot_report(readings))
    plt.close(plot_post_hoc(readings.of_patients(), readings.methods))


def test_every_patient_ranked_alike_is_the_surest_answer():
    values = np.arange(3.0) + 10 * np.arange(6.0)[:, None]
    assert post_hoc(values)["Conover–Holm"].tolist() == [0, 0, 0] and friedman(values)[0] == pytest.approx(12)
    same = np.repeat(np.arange(6.0)[:, None], 3, 1)
    assert [e.value for e in icc(same)] == [1, 1] and [e.low for e in icc(same)] == [1, 1]
    levels = icc(same + [0, 1, 5])  # readers differ by their level alone
    assert levels[1].value == 1 and 0 < levels[0].low < levels[0].value < levels[0].high < 1
    only_readers = icc(np.ones((6, 1)) * [1, 2, 5])
    assert np.isnan([e.value for e in only_readers]).all()


def test_input_that_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="3 methods or more"):
        friedman(ROUNDING[:, :2])
    for bad in (ROUNDING[:1], ROUNDING[:, :1], ROUNDING[0], np.full((4, 3), np.nan)):
        for function in (friedman, post_hoc, icc):
            with pytest.raises(InputError, match="finite table of 2 patients and 2 methods"):
                function(bad)
    for margin in (0, -1, np.nan, np.inf):
        with pytest.raises(InputError, match="margin must be above 0"):
            equivalence([1, 2], [2, 1], margin)
    with pytest.raises(InputError, match="two patients at least"):
        equivalence([1], [2], 1)
    for a, b in (([1, 2], [1, 2, 3]), ([], []), ([1, np.nan], [1, 2])):
        with pytest.raises(InputError, match="κ takes two finite sets of grades"):
            weighted_kappa(a, b)
    with pytest.raises(InputError, match="no method 'PET' in the table; there are '5 min', 'U-Net', '25 min'"):
        report(study(), "PET")


def test_the_mistake_has_a_row_for_each_reading():
    readings = study()
    rows = every_reading(readings)
    assert rows.shape == (12 * 3 * 2 * 2, 3)
    np.testing.assert_allclose(rows.mean(0), readings.of_patients().mean(0))


def test_the_command_prints_draws_and_writes_the_report(tmp_path, capsys):
    write_csv(tmp_path / "table.csv", study().rows())
    out = tmp_path / "out"
    argv = ["readers", str(tmp_path / "table.csv"), "--out", str(out)]
    assert main([*argv, "--reference", "25 min", "--margin", "0.4"]) == 0
    printed = capsys.readouterr().out
    assert "Conover–Holm" in printed and "12 patients, 3 simulated graders" in printed
    names = {"friedman.csv", "methods.csv", "pairs.csv", "agreement.csv", "report.png"}
    assert {p.name for p in out.iterdir()} == names
    short = read_csv(out / "methods.csv")[0]
    wanted = equivalence(*study().of_patients()[:, [0, 2]].T, 0.4)
    assert float(short["p_tost"]) == pytest.approx(wanted.p, rel=1e-4) and short["against"] == "25 min"
    for bad, line in (
        (["--reference", "PET"], "no method 'PET'"),
        (["--margin", "0"], "margin must be above 0"),
        (["--out", str(tmp_path / "table.csv")], "cannot write there"),
    ):
        assert main([*argv, *bad]) == 2
        said = capsys.readouterr().err
        assert line in said and said.count("\n") == 1


def test_the_command_says_what_its_check_needs(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    write_csv(tmp_path / "table.csv", study().rows())
    assert main(["readers", str(tmp_path / "table.csv"), "--out", str(tmp_path / "out"), "--check"]) == 2
    assert "pip install 'diffspect_nb[reader]'" in capsys.readouterr().err
