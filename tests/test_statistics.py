"""Effects, correlations and intervals against scipy, slow references and simulated truths."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy import stats

from xlcore import statistics
from xlcore.errors import InputError
from xlcore.statistics import (
    Effect,
    against,
    by_seed,
    correlate,
    distance_correlations,
    effect,
    flatness,
    grid,
    heterogeneity,
    holm,
    length_slopes,
    mean_interval,
    paired,
    relative_gap,
    summary,
)

NAN = float("nan")


def table(values):
    """Values (languages, seeds) as the module's tables, languages named a00, a01, ..."""
    values = np.asarray(values, dtype=float)
    index = pd.Index([f"a{i:02}" for i in range(len(values))], name="language")
    return pd.DataFrame(values, index, pd.RangeIndex(1, values.shape[1] + 1, name="seed"))


CELL = ["language", "seed", "value"]


def rows_of(cells):
    return pd.DataFrame(cells, columns=CELL)


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS", 300)


# --- means over seeds ---------------------------------------------------------------------------


def test_interval_of_three_values_is_students():
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 * 1.0 / math.sqrt(3)  # t table, 2 degrees of freedom, 97.5 %
    assert (mean, low, high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))


def test_summary_says_of_how_many_languages_seeds_and_runs():
    cells = [("a", "deu", 1, 2.0), ("a", "swh", 1, 4.0), ("a", "deu", 2, 3.0), ("a", "swh", 2, 7.0)]
    rows = pd.DataFrame([*cells, ("b", "deu", 1, 9.0)], columns=["method", *CELL])
    found = summary(rows.assign(run=["r2", "r2", "r1", "r1", "r1"]), ["method"]).set_index("method")
    assert found.loc["a", ["mean", "low", "high"]].tolist() == pytest.approx(mean_interval([3, 5]))
    assert found[["languages", "seeds", "run"]].to_numpy().tolist() == [
        [2, 2, "r1, r2"],
        [1, 1, "r1"],
    ]


def test_summary_refuses_seeds_with_other_languages():
    rows = rows_of([("deu", 1, 2.0), ("swh", 1, 4.0), ("deu", 2, 3.0)]).assign(run="r", method="a")
    with pytest.raises(InputError, match="no value at swh seed 2"):
        summary(rows, ["method"])


def test_one_value_has_no_interval():
    mean, low, high = mean_interval([7.0])
    assert mean == 7.0
    assert math.isnan(low) and math.isnan(high)


def test_nothing_to_average_is_refused():
    with pytest.raises(InputError, match="no values"):
        mean_interval([])


def test_languages_of_a_seed_are_averaged_before_the_interval():
    rows = pd.DataFrame(
        [(1, "fra", 10.0), (1, "deu", 30.0), (2, "fra", 40.0), (2, "deu", 60.0)],
        columns=["seed", "language", "value"],
    ).assign(length=5)
    found = by_seed(rows, ["length"])
    assert found.n.tolist() == [2]  # two seeds, not four numbers
    half = 12.706204736432095 * 30 / math.sqrt(2) / math.sqrt(2)  # means 20 and 50, 1 degree
    assert found[["mean", "low", "high"]].iloc[0].tolist() == pytest.approx(
        [35, 35 - half, 35 + half]
    )


# --- pairing ------------------------------------------------------------------------------------


def test_pairs_are_matched_by_language_and_seed_not_by_order():
    first = rows_of([("fra", 1, 10), ("fra", 2, 20), ("deu", 1, 30), ("deu", 2, 40)])
    second = rows_of([("deu", 2, 4), ("fra", 2, 2), ("deu", 1, 3), ("fra", 1, 1)])
    found = paired(first, second)
    assert found.loc["fra"].tolist() == [9, 18]
    assert found.loc["deu"].tolist() == [27, 36]


def test_a_missing_partner_is_named():
    first = rows_of([("fra", 1, 10), ("fra", 2, 20)])
    with pytest.raises(InputError, match="fra seed 2"):
        paired(first, rows_of([("fra", 1, 10)]))


def test_a_missing_language_is_named_even_with_common_seeds_only():
    first = rows_of([("fra", 1, 10), ("deu", 1, 20)])
    with pytest.raises(InputError, match="deu seed 1"):
        paired(first, rows_of([("fra", 1, 10), ("fra", 2, 3)]), common_seeds=True)


def test_common_seeds_are_kept_on_request():
    first = rows_of([("fra", s, 10 * s) for s in (1, 2, 3)])
    second = rows_of([("fra", s, 1) for s in (2, 3, 4)])
    found = paired(first, second, common_seeds=True)
    assert found.columns.tolist() == [2, 3]
    assert found.loc["fra"].tolist() == [19, 29]


def test_no_common_seed_is_refused():
    with pytest.raises(InputError, match="no common seed"):
        paired(rows_of([("fra", 1, 1)]), rows_of([("fra", 2, 1)]), common_seeds=True)


def test_repeated_rows_are_refused_with_the_column_that_tells_them_apart():
    rows = rows_of([("fra", 1, 10), ("fra", 1, 20)]).assign(learning_rate=[0.1, 0.2])
    with pytest.raises(InputError, match="fra seed 1, differing in learning_rate"):
        grid(rows)


def test_a_hole_in_one_condition_is_named():
    with pytest.raises(InputError, match="no value at deu seed 2"):
        grid(rows_of([("fra", 1, 10), ("fra", 2, 10), ("deu", 1, 10)]))


@pytest.mark.parametrize("value", [NAN, math.inf])
def test_a_value_that_is_no_number_is_named(value):
    with pytest.raises(InputError, match="no number at deu seed 1"):
        grid(rows_of([("fra", 1, 10), ("deu", 1, value)]))


def test_no_rows_are_refused():
    with pytest.raises(InputError, match="no rows"):
        grid(rows_of([]))


def test_many_bad_cells_are_counted_not_listed():
    with pytest.raises(InputError, match="seed 5 and 15 more"):
        grid(rows_of([("fra", s, NAN) for s in range(1, 21)]))


# --- effect -------------------------------------------------------------------------------------


def test_effect_is_scipys_paired_t_test_over_seed_means(few_draws):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7, 5))
    found = effect(table(a) - table(b))
    reference = stats.ttest_rel(a.mean(axis=0), b.mean(axis=0))
    interval = reference.confidence_interval()
    assert found[:4] == pytest.approx(
        (a.mean() - b.mean(), interval.low, interval.high, reference.pvalue)
    )
    assert (found.languages, found.seeds) == (7, 5)


def test_slope_is_the_mean_of_each_seeds_least_squares_line(few_draws):
    rng = np.random.default_rng(1)
    values, x = rng.normal(size=(9, 6)), rng.uniform(size=9)
    found = effect(table(values), pd.Series(x[::-1], table(values).index[::-1]))
    slopes = [np.polyfit(x, seed, 1)[0] for seed in values.T]
    assert found[:3] == pytest.approx(mean_interval(slopes))


@pytest.mark.parametrize("place", [None, np.linspace(0, 1, 6)])
def test_crossed_bootstrap_is_that_of_a_slow_loop(place):
    rng = np.random.default_rng(2)
    values = rng.normal(size=(6, 5)) + rng.normal(size=5)
    drawn = []
    for _ in range(2000):
        languages, seeds = rng.integers(6, size=6), rng.integers(5, size=5)
        means = values[np.ix_(languages, seeds)].mean(axis=1)
        if place is None:
            drawn.append(means.mean())
        elif len(set(languages)) > 1:
            drawn.append(np.polyfit(place[languages], means, 1)[0])
    x = None if place is None else pd.Series(place, table(values).index)
    found = effect(table(values), x)
    half = stats.t.ppf(0.975, 4) * np.std(drawn) * np.sqrt(5 / 4)  # of the fewer units, the seeds
    assert (found.low2, found.high2) == pytest.approx(
        (found.value - half, found.value + half), abs=0.06 * half
    )


def test_the_same_values_give_the_same_interval():
    values = table(np.random.default_rng(3).normal(size=(5, 5)))
    assert effect(values) == effect(values)


def covered(found, truth):
    return found.low <= truth <= found.high, found.low2 <= truth <= found.high2


def test_intervals_cover_a_known_effect(few_draws):
    """Languages differ by a fixed amount, seeds shift all of them: t must cover 95 % of times."""
    rng = np.random.default_rng(4)
    fixed = rng.normal(size=(30, 1)) * 4
    inside = []
    for _ in range(200):
        values = 2 + fixed - fixed.mean() + rng.normal(size=5) * 3 + rng.normal(size=(30, 5)) * 2
        inside.append(covered(effect(table(values)), 2)[0])
    assert np.mean(inside) == pytest.approx(0.95, abs=0.045)  # 2.9 standard errors


@pytest.mark.parametrize("seeds", [5, 10])
def test_crossed_bootstrap_covers_when_languages_are_a_sample(few_draws, seeds):
    rng = np.random.default_rng(5)
    inside = []
    for _ in range(100):
        values = rng.normal(size=(30, 1)) * 3 + rng.normal(size=seeds)
        inside.append(covered(effect(table(values + rng.normal(size=(30, seeds)) * 2)), 0))
    t, crossed = np.mean(inside, axis=0)
    assert crossed > 0.88  # 0.95 less 3.2 standard errors
    assert t < crossed  # an interval over seeds alone speaks of these languages only


def test_crossed_bootstrap_covers_when_few_seeds_make_the_noise(few_draws):
    rng = np.random.default_rng(6)
    inside = []
    for _ in range(100):
        values = rng.normal(size=(30, 1)) + rng.normal(size=5) * 3 + rng.normal(size=(30, 5))
        inside.append(covered(effect(table(values)), 0)[1])
    assert np.mean(inside) > 0.88  # the middle of the draws: 0.8


@pytest.mark.parametrize("values", [[[1.0], [2.0]], [[1.0, 1.0, 1.0]] * 4, [[0.0] * 6] * 3])
def test_one_seed_or_no_spread_gives_no_interval_and_no_verdict(values):
    found = effect(table(values))
    assert found.value == np.mean(values)
    assert np.isnan(found[1:6]).all()
    assert found.verdict(1) == "undecided"


@pytest.mark.parametrize(
    ("ends", "seeds", "verdict"),
    [
        ((1, 3, 0.5, 4), 5, "supported"),
        ((-3, -1, -4, -0.5), 5, "contradicted"),
        ((1, 3, -0.5, 4), 5, "undecided"),
        ((-1, 3, 0.5, 4), 5, "undecided"),
        ((1, 3, -4, -0.5), 5, "undecided"),
        ((1, 3, NAN, NAN), 5, "undecided"),
        ((1, 3, 0.5, 4), 4, "undecided"),
        ((0, 3, 0.5, 4), 5, "undecided"),
    ],
)
def test_verdict_needs_both_intervals_on_one_side_and_five_seeds(ends, seeds, verdict):
    found = Effect(2, ends[0], ends[1], 0.01, ends[2], ends[3], 10, seeds)
    assert found.verdict(1) == verdict
    mirror = {"supported": "contradicted", "contradicted": "supported"}
    assert found.verdict(-1) == mirror.get(verdict, verdict)


# --- Holm ---------------------------------------------------------------------------------------


def test_each_condition_is_held_against_the_base_with_holms_p(few_draws):
    rng = np.random.default_rng(3)
    cells = itertools.product("abc", ["deu", "swh"], range(1, 6))
    rows = pd.DataFrame(cells, columns=["method", "language", "seed"])
    rows["value"] = rng.normal(size=len(rows)) + 2 * (rows.method == "a")
    means = rows.pivot_table(index="seed", columns="method", values="value")
    found = against(rows, "a")
    tests = {m: stats.ttest_rel(means.a, means[m]) for m in "bc"}
    ends = [tuple(t.confidence_interval()) for t in tests.values()]
    assert found.index.tolist() == ["b", "c"]
    assert found[["low", "high"]].to_numpy() == pytest.approx(np.array(ends))
    assert found.effect.tolist() == pytest.approx([means.a.mean() - means[m].mean() for m in "bc"])
    assert found.p.tolist() == pytest.approx(holm([t.pvalue for t in tests.values()]).tolist())


def test_a_base_without_rows_is_refused():
    with pytest.raises(InputError, match="no rows of this condition"):
        against(pd.DataFrame(dict(method=["a"], language=["deu"], seed=[1], value=[1.0])), "b")


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_counts_a_test_without_p():
    assert holm([0.01, NAN, 0.02]) == pytest.approx([0.03, NAN, 0.04], nan_ok=True)


@given(some.lists(some.floats(0, 1), min_size=1, max_size=8), some.floats(0.001, 0.5))
def test_holm_rejects_what_stepping_down_rejects(p, level):
    left, rejected = sorted(range(len(p)), key=p.__getitem__), set()
    while left and p[left[0]] * len(left) <= level:
        rejected.add(left.pop(0))
    assert {i for i, q in enumerate(holm(p)) if q <= level} == rejected


# --- correlations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranked", "reference"), [(True, stats.spearmanr), (False, stats.pearsonr)]
)
def test_correlation_of_draws_is_scipys_on_the_repeated_lines(ranked, reference):
    rng = np.random.default_rng(6)
    columns = rng.integers(5, size=(12, 2)).astype(float)  # with ties
    counts = rng.multinomial(12, [1 / 12] * 12, size=20)
    expected = [reference(*np.repeat(columns, n, axis=0).T).statistic for n in counts]
    assert correlate(columns, counts.astype(float), ranked) == pytest.approx(np.array(expected))


def test_partial_correlation_is_that_of_the_residuals_of_ranks():
    rng = np.random.default_rng(7)
    columns = rng.normal(size=(25, 4)) + rng.normal(size=(25, 1))
    ranks = stats.rankdata(columns, axis=0)
    design = np.column_stack([np.ones(25), ranks[:, 2:]])
    residual = ranks[:, :2] - design @ np.linalg.lstsq(design, ranks[:, :2])[0]
    expected = stats.pearsonr(*residual.T).statistic
    assert correlate(columns, np.ones((1, 25)), True)[0] == pytest.approx(expected)


@pytest.mark.parametrize("ranked", [True, False])
def test_no_spread_is_no_correlation(ranked):
    columns = np.column_stack([np.full(6, 0.1), np.arange(6)])
    assert np.isnan(correlate(columns, np.ones((1, 6)), ranked)).all()


def test_a_column_that_the_controls_explain_has_no_partial_correlation():
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(2, 20))
    assert np.isnan(correlate(np.column_stack([x, y, 3 * x]), np.ones((1, 20)), True)).all()


def world(seed, families=12, each=4, seeds=5):
    """Languages in families: names, family labels, one distance, two controls, noise effects."""
    rng = np.random.default_rng(seed)
    effects = table(rng.normal(size=(families * each, seeds)))
    family = pd.Series(np.repeat(np.arange(families), each), effects.index)
    far = pd.DataFrame({"near": rng.normal(size=len(family))}, effects.index)
    controls = pd.DataFrame(rng.normal(size=(len(family), 2)), effects.index)
    return effects, far, family, controls


def test_correlations_of_the_whole_are_scipys(few_draws):
    effects, far, family, controls = world(9)
    found = distance_correlations(effects, far, family, controls).loc["near"]
    mean = effects.mean(axis=1)
    assert found.rho == pytest.approx(stats.spearmanr(far.near, mean).statistic)
    assert found.r == pytest.approx(stats.pearsonr(far.near, mean).statistic)
    assert (found.n, found.families, found.largest) == (48, 12, 4)


def test_interval_over_seeds_is_a_jackknife_of_the_correlation_that_is_told(few_draws):
    effects, far, family, controls = world(9)
    found = distance_correlations(effects, far, family, controls).loc["near"]
    without = [
        stats.spearmanr(far.near, effects.drop(columns=seed).mean(axis=1)).statistic
        for seed in effects
    ]
    mean, low, high = mean_interval([5 * found.rho - 4 * rho for rho in without])  # pseudo-values
    ends = found.rho + low - mean, found.rho + high - mean
    assert (found.seeds_low, found.seeds_high) == pytest.approx(ends)


def test_interval_over_seeds_covers_where_the_seeds_own_correlations_do_not():
    """Noise of a seed pulls its own correlation toward 0, away from that of the mean."""
    rng, x = np.random.default_rng(24), np.arange(40.0)
    seeds = 0.05 * x[:, None] + rng.normal(size=(300, 40, 5))
    means = [stats.spearmanr(x, y.mean(axis=1)).statistic for y in seeds]
    own = [[stats.spearmanr(x, one).statistic for one in y.T] for y in seeds]
    inside = {
        "own": [mean_interval(rhos)[1:] for rhos in own],
        "jackknife": [statistics._over_seeds(x, y) for y in seeds],
    }
    share = {
        name: np.mean([low <= np.mean(means) <= high for low, high in ends])
        for name, ends in inside.items()
    }
    assert share["jackknife"] == pytest.approx(0.95, abs=0.036)  # 2.9 standard errors
    assert share["own"] < 0.5


def test_one_seed_has_no_interval_over_seeds(few_draws):
    found = distance_correlations(*world(9, seeds=1)).loc["near"]
    assert np.isnan([found.seeds_low, found.seeds_high]).all()


def test_draws_without_the_largest_family_are_counted(few_draws):
    effects, far, family, controls = world(25)
    family = family.where(family > 2, 0)  # twelve of the languages, in one of ten families
    found = distance_correlations(effects, far, family, controls).loc["near"]
    assert (found.families, found.largest) == (10, 12)
    assert found.absent == pytest.approx(0.9**10, abs=0.083)  # 3 standard errors of 300 draws


def test_a_true_relation_is_found_and_its_sign_kept(few_draws):
    effects, far, family, controls = world(10)
    effects = effects.sub(2 * far.near, axis=0)
    found = distance_correlations(effects, far, family, controls).loc["near"]
    assert found.high < 0 and found.seeds_high < 0 and found.partial_high < 0
    assert found.raw_p == pytest.approx(2 / 301)  # no draw of 300 on the other side


def test_families_that_go_together_do_not_pass_for_evidence(few_draws):
    """Distance and effect both follow the family, unrelated: Galton's problem."""
    rng = np.random.default_rng(11)
    clustered, naive = [], []
    for i in range(100):
        effects, far, family, controls = world(100 + i, families=15)
        effects = effects * 0.3 + rng.normal(size=15)[family].reshape(-1, 1)
        far = far * 0.3 + rng.normal(size=15)[family].reshape(-1, 1)
        found = distance_correlations(effects, far, family, controls).loc["near"]
        clustered.append(found.raw_p < 0.05)
        naive.append(stats.spearmanr(far.near, effects.mean(axis=1)).pvalue < 0.05)
    assert np.mean(naive) > 0.2
    assert np.mean(clustered) < 0.12  # 0.05 and 3.2 standard errors


@pytest.mark.parametrize("own", [0.0, 0.7])
def test_families_of_spts_sizes_do_not_pass_for_evidence_either(few_draws, own):
    """own: which part of the effects' variance lies between families."""
    rng, found = np.random.default_rng(26), []
    family = pd.Series(np.repeat(np.arange(15), [18, 15, 4, 2, 2, *[1] * 10]))
    noise = rng.normal(size=(len(family), 3))
    far = pd.DataFrame({"near": rng.normal(size=15)[family] + 0.5 * noise[:, 0]})
    for _ in range(150):
        shared = np.sqrt(own) * rng.normal(size=15)[family]
        effects = pd.DataFrame(shared + np.sqrt(1 - own) * rng.normal(size=len(family)))
        controls = pd.DataFrame(noise[:, 1:])
        found.append(distance_correlations(effects, far, family, controls).raw_p["near"] < 0.05)
    assert np.mean(found) < 0.11  # 0.05 and 3.4 standard errors


def test_a_distance_that_differs_in_one_family_only_gets_no_interval(few_draws):
    effects, far, family, controls = world(12)
    saturated = far.where(family == 0, 1.0).rename(columns={"near": "genetic"})
    found = distance_correlations(effects, far.join(saturated), family, controls)
    assert np.isnan(found.loc["genetic", ["low", "high", "raw_p", "p"]].to_list()).all()
    assert not np.isnan(found.loc["genetic", "rho"])
    assert found.loc["near", "p"] == min(1, 2 * found.loc["near", "raw_p"])  # still two tests


def test_distances_equal_but_for_rounding_are_ties(few_draws):
    effects, far, family, controls = world(13)
    exact = far.where(far.near < 0, 1.0)
    noise = 1e-15 * np.arange(len(far)).reshape(-1, 1)
    found = [
        distance_correlations(effects, f, family, controls).rho for f in (exact, exact + noise)
    ]
    assert found[0].item() == found[1].item()


def test_languages_without_a_distance_are_left_out_of_it_alone(few_draws):
    effects, far, family, controls = world(14)
    far = far.assign(holes=far.near.mask(family == 3))
    assert distance_correlations(effects, far, family, controls).n.tolist() == [48, 44]


def test_few_families_give_no_interval(few_draws):
    found = distance_correlations(*world(15, families=7)).loc["near"]
    assert np.isnan(found[["low", "high", "raw_p"]].to_list()).all()


def test_a_language_without_a_control_is_named(few_draws):
    effects, far, family, controls = world(16)
    controls.iloc[3, 0] = NAN
    with pytest.raises(InputError, match="control for: a03"):
        distance_correlations(effects, far, family, controls)


# --- flatness -----------------------------------------------------------------------------------


def profile(slope, english=80.0, floor=None):
    """Accuracy of English and five languages that fall by `slope` from nearest to farthest."""
    falls = english - 5 - slope * np.array([0, 0.25, 0.5, 0.75, 1])
    values = np.concatenate([[english], falls if floor is None else np.full(5, floor)])
    rng = np.random.default_rng(17)
    codes = pd.Index(["eng", "deu", "fra", "rus", "hin", "jpn"], name="language")
    return pd.DataFrame(values[:, None] + rng.normal(size=6), codes, range(1, 7))


FAR = pd.Series({"eng": 0, "hin": 0.4, "deu": 0.1, "jpn": 0.5, "fra": 0.2, "rus": 0.21})


def test_flatness_is_the_difference_in_points_from_nearest_to_farthest():
    slope, _ = flatness(profile(10), profile(30), FAR, 25)
    assert slope.value == pytest.approx(20)
    assert slope.languages == 5


def test_a_model_at_chance_is_flat_by_slope_but_not_by_gap():
    tuned = profile(30) + np.random.default_rng(0).normal(size=(6, 6))
    slope, gap = flatness(profile(0, floor=25), tuned, FAR, 25)
    assert slope.verdict(1) == "supported"
    assert gap.verdict(-1) == "contradicted"


def test_relative_gap_by_hand():
    values = pd.DataFrame({1: [75.0, 50.0, 25.0]}, ["eng", "fra", "quy"])
    assert relative_gap(values, chance=25)[1].tolist() == [50, 100]


def test_a_source_at_chance_has_no_gap():
    values = pd.DataFrame({1: [25.0, 20.0], 2: [75.0, 50.0]}, ["eng", "fra"])
    found = relative_gap(values, chance=25).loc["fra"]
    assert found.tolist() == pytest.approx([NAN, 50], nan_ok=True)


# --- length -------------------------------------------------------------------------------------


def test_length_slope_is_polyfits_on_log2():
    rng = np.random.default_rng(18)
    lengths, values = [1, 2, 5, 50], rng.normal(size=(4, 3, 2))
    found = length_slopes(dict(zip(lengths, map(table, values), strict=True)))
    for i, j in itertools.product(range(3), range(2)):
        expected = np.polyfit(np.log2(lengths), values[:, i, j], 1)[0]
        assert found.iloc[i, j] == pytest.approx(expected)


@pytest.mark.parametrize("other", [{}, {2: table(np.ones((3, 4)))}])
def test_one_length_or_unequal_seeds_are_refused(other):
    with pytest.raises(InputError, match="two or more with the same cells"):
        length_slopes({1: table(np.ones((3, 5))), **other})


# --- heterogeneity ------------------------------------------------------------------------------


def anova(values):
    """Mean squares of languages and residuals, cell by cell from the two-way model."""
    rows, columns = values.shape
    fitted = np.add.outer(values.mean(axis=1), values.mean(axis=0)) - values.mean()
    residual = ((values - fitted) ** 2).sum() / ((rows - 1) * (columns - 1))
    return columns * values.mean(axis=1).var(ddof=1), residual


def test_spread_is_the_variance_component_of_the_two_way_layout(few_draws):
    values = np.random.default_rng(19).normal(size=(12, 6)) + np.arange(12)[:, None]
    languages, residual = anova(values)
    found, text, *_ = heterogeneity(table(values))
    assert found.value == pytest.approx(np.sqrt((languages - residual) / 6))
    assert text == f"F(11, 55) = {languages / residual:.2f}"


def test_interval_of_the_spread_is_the_jackknife_over_seeds(few_draws):
    values = np.random.default_rng(20).normal(size=(12, 6)) + np.arange(12)[:, None]

    def component(kept):
        languages, residual = anova(kept)
        return (languages - residual) / kept.shape[1]

    pseudo = [
        6 * component(values) - 5 * component(np.delete(values, seed, axis=1)) for seed in range(6)
    ]
    _, low, high = mean_interval(pseudo)
    found, *_ = heterogeneity(table(values))
    assert (found.low, found.high) == pytest.approx((np.sqrt(low), np.sqrt(high)))


def test_correlated_noise_is_not_taken_for_languages_that_differ(few_draws):
    """Noise shared by languages fools the textbook F test, and must not fool ours."""
    rng = np.random.default_rng(21)
    ours, textbook = [], []
    for _ in range(150):
        shared = np.outer(rng.normal(size=40), rng.normal(size=6))
        values = rng.normal(size=6) * 3 + shared + rng.normal(size=(40, 6))
        languages, residual = anova(values)
        ours.append(heterogeneity(table(values))[0].p < 0.05)
        textbook.append(stats.f.sf(languages / residual, 39, 195) < 0.05)
    assert np.mean(textbook) > 0.12
    assert np.mean(ours) <= 0.05


def test_interval_covers_a_known_spread(few_draws):
    rng = np.random.default_rng(22)
    true = np.linspace(-2, 2, 30)[:, None]
    inside = []
    for _ in range(100):
        found, *_ = heterogeneity(table(true + rng.normal(size=5) + rng.normal(size=(30, 5)) * 2))
        inside.append(found.low <= true.std(ddof=1) <= found.high)
    assert np.mean(inside) > 0.88  # 0.95 less 3.2 standard errors


def test_languages_helped_and_hurt_are_counted(few_draws):
    shifts = np.array([50, 50, 50, -50, -50, 0, 0, 0])[:, None]
    noise = np.random.default_rng(23).normal(size=(8, 6))
    assert heterogeneity(table(shifts + noise - noise.mean(axis=1, keepdims=True)))[2:] == (3, 2)


@pytest.mark.parametrize("values", [np.ones((4, 5)), np.ones((1, 5)), np.ones((4, 2))])
def test_without_noise_languages_or_seeds_there_is_no_test(values):
    found, _, helped, hurt = heterogeneity(table(values))
    assert math.isnan(found.p) and (helped, hurt) == (0, 0)
