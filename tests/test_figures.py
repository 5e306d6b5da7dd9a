"""Figures are drawn from rows alone, say what they show, and are the same for the same rows."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex, to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.path import Path as Line
from matplotlib.text import Text
from scipy.optimize import lsq_linear

from xlcore import figures
from xlcore.errors import InputError
from xlcore.languages import DISTANCES, LANGUAGES, distances

MANY = [x.iso639_3 for x in LANGUAGES if x.xglm_share is not None or x.bloom_share is not None]
NLI = ["ltp", "random_ticket", "fine_tuning", "prompt_only"]
FEW = ["eng", "deu", "fra", "zho", "arb", "hin", "quy", "swh"]


def table_of(codes, **columns):
    """Accuracy of three seeds a language, crossed with the columns' lists, no two values alike."""
    cells = itertools.product(codes, [1, 2, 3], *columns.values())
    rows = pd.DataFrame(cells, columns=["language", "seed", *columns])
    rows["value"] = 30 + 50 * np.random.default_rng(0).random(len(rows)).round(6)
    given = {"method": "soft_prompt", "metric": "accuracy"}
    return rows.assign(**{k: v for k, v in given.items() if k not in columns})


def majority(codes, value=25.0):
    lines = [{"method": "majority", "language": c, "seed": 0, "value": value} for c in codes]
    return pd.DataFrame(lines).assign(metric="accuracy")


def correlations(kinds=DISTANCES):
    found = {"rho": 0.5, "low": 0.25, "high": 0.75, "p": 0.012, "families": 15}
    return pd.DataFrame([found] * len(kinds), index=kinds)


def effects(codes):
    return pd.DataFrame({"language": codes, "effect": np.linspace(-6, 9, len(codes)).round(3)})


def grid(conditions=("soft_prompt", "joint_tuning")):
    cells = itertools.product(conditions, [0.001, 0.01, 0.1], [1, 2])
    rows = pd.DataFrame(cells, columns=["condition", "learning_rate", "seed"])
    rows["value"] = 1.0 + (rows.learning_rate - 0.01).abs() + rows.seed / 10
    return rows.assign(metric="dev_loss")


def ledger(labels, groups=("MLP", "LSTM")):
    rows = pd.DataFrame(itertools.product(groups, labels), columns=["group", "label"])
    rows["effect"] = np.linspace(-5, 5, len(rows))
    return rows.assign(low=rows.effect - 1, high=rows.effect + 1.5)


def drawn(name, codes):
    """One figure of each kind over these languages."""
    both = ["soft_prompt", "joint_tuning"]
    rows = table_of(codes, method=list(figures.METHOD_NAMES))
    if name == "one":
        return figures.transfer_profile(pd.concat([table_of(codes), majority(codes)]), "about")
    if name == "two":
        rows = rows[rows.method.isin(both)]
    if name in ("two", "five"):
        return figures.compare_profile(pd.concat([rows, majority(codes)]), "about")
    if name == "length":
        return figures.length_curves(table_of(codes, length=[1, 5, 50]), "about")
    if name == "distance":
        return figures.effect_by_distance(effects(codes), correlations(), "about")
    if name == "heat":
        return figures.heat_map(rows, "about", "method")
    if name == "difference":
        return figures.heat_map(rows, "about", "method", base="soft_prompt")
    if name == "rates":
        return figures.rate_grid(grid([*figures.METHOD_NAMES][:3]), "about")
    if name == "grid":
        return figures.rate_grid(grid(list(figures.METHOD_NAMES)), "about")
    if name == "shots":
        methods = [*NLI, "bitfit", "dp", "sp", "mp"]
        return figures.shots_curves(table_of(codes, method=methods, shots=[4, 16, 64]), "about")
    if name == "losses":
        return figures.dev_curves(falling(["ltp", *NLI[2:], "bitfit", "mp"]), "about", guess=1.1)
    if name == "layers":
        return figures.ticket_layers(layers(), "about")
    return figures.effect_bars(ledger(map(figures.name_of, codes)), "about")


def falling(methods):
    """Dev losses of four epochs, lowest in the third of seed 1 and in the last of seed 2."""
    cells = itertools.product(methods, ["eng"], (1, 2), range(1, 5))
    rows = pd.DataFrame(cells, columns=["method", "train_language", "seed", "epoch"])
    rises = (rows.seed == 1) & (rows.epoch == 4)
    better = 0.25 * rows.epoch - 0.5 * (rows.epoch == 4)
    loss = 1.5 - 0.1 * rows.epoch + 0.3 * rises
    kept = rows.epoch == rows.seed + 2
    return rows.assign(dev_loss=loss, dev_accuracy=better, kept=kept)


def layers(strategies=("movement", "random")):
    """Counts of tickets over embeddings and three layers of four kinds of weights."""
    cells = itertools.product(strategies, range(4), figures.KINDS)
    rows = pd.DataFrame(cells, columns=["strategy", "layer", "kind"])
    rows = rows[(rows.layer == 0) == (rows.kind == "embeddings")].reset_index(drop=True)
    return rows.assign(active=np.arange(len(rows)) * 10 + 10, total=np.arange(len(rows)) + 1000)


KINDS = ("one", "two", "five", "length", "distance", "heat", "difference", "grid", "bars", "layers",
         "shots", "losses", "rates")  # fmt: skip


@pytest.fixture
def rows():
    cells = itertools.product(["eng", "deu", "swh"], [1, 5, 50], [1, 2, 3])
    made = pd.DataFrame(cells, columns=["language", "length", "seed"])
    made["value"] = 60.0 - made.length / 5 + made.seed - 10 * (made.language == "swh")
    return made.assign(method="soft_prompt", metric="accuracy")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_hash_does_not_depend_on_row_order(rows):
    assert figures.rows_hash(rows) == figures.rows_hash(rows.iloc[::-1])
    assert figures.rows_hash(rows) == figures.rows_hash(rows.assign(unused=None, none=np.nan))


def test_hash_depends_on_every_value(rows):
    other = rows.copy()
    other.loc[3, "value"] += 0.001
    assert figures.rows_hash(rows) != figures.rows_hash(other)


def test_caption_holds_the_hash_and_what_was_measured(rows):
    figure = figures.length_curves(rows, "Corpus (embedded); model.")
    text = figure.get_supxlabel().replace("\n", " ")
    assert "Corpus (embedded)" in text
    assert "3 seeds" in text
    assert figures.rows_hash(rows)[:12] in text


def test_length_curves_draw_the_means(rows):
    left = figures.length_curves(rows, "").axes[0]
    english = next(line for line in left.lines if line.get_label() == "English")
    # mean over seeds 1, 2, 3 of 60 - length / 5 + seed
    assert english.get_ydata().tolist() == pytest.approx([61.8, 61.0, 52.0])


def test_length_curves_can_stand_on_rates_instead(rows):
    by_rate = rows.assign(learning_rate=rows.length / 100).drop(columns="length")
    left, right = figures.length_curves(by_rate, "", by="learning_rate").axes
    assert left.lines[0].get_xdata().tolist() == [0.01, 0.05, 0.5]
    assert left.get_xlabel() == right.get_xlabel() == "learning rate (log scale)"


def test_length_curves_of_one_language_have_no_others(rows):
    left, _ = figures.length_curves(rows[rows.language == "eng"], "").axes
    assert [line.get_label() for line in left.lines] == ["English"]


def test_lengths_names_stand_in_the_order_of_their_lines(rows):
    _, right = figures.length_curves(rows, "").axes
    # at 50 tokens Swahili ends 10 points below the other two, which end at one place
    names = [a.get_text() for a in sorted(right.texts, key=lambda a: a.xyann[1])]
    assert names[0] == "Swahili"
    assert {*names[1:]} == {"English", "German"}


def test_each_language_has_a_look_of_its_own_up_to_its_name():
    codes = FEW[1:7]  # as many as there are looks beside that of English
    _, right = figures.length_curves(table_of(["eng", *codes], length=[1, 5]), "").axes
    looks = {(line.get_color(), line.get_marker()) for line in right.lines}
    assert len(looks) == len(right.lines) == 7
    ends = {line.get_ydata()[-1]: line.get_color() for line in right.lines}
    assert {a.xy[1]: a.arrow_patch.get_edgecolor()[:3] for a in right.texts} == {
        y: to_rgb(colour) for y, colour in ends.items()
    }


def test_length_curves_name_eleven_of_many_languages():
    rows = table_of(MANY, length=[1, 5])
    _, right = figures.length_curves(rows, "").axes
    means = rows[rows.length == 5].groupby("language").value.mean().sort_values()
    ends = {*means.index[:5], *means.index[-5:], "eng"}
    assert {a.get_text() for a in right.texts} == {figures.name_of(c) for c in ends}


wanted = st.lists(st.floats(0, 100), min_size=1, max_size=8).map(sorted)


@given(wanted, st.floats(0, 10))
def test_spread_names_do_not_touch_or_leave(wanted, gap):
    places = figures.spread(wanted, gap, 5, 95)
    assert np.all(np.diff(places) >= gap - 1e-9)
    assert places.min() >= 5 - 1e-9 and places.max() <= 95 + 1e-9


@given(wanted, st.floats(0, 10))
def test_spread_is_the_least_squares_solution(wanted, gap):
    n = len(wanted)
    # unknowns: the first place and the steps to the next ones, each at least the gap
    lower = np.array([-1e4] + [gap] * (n - 1))
    solved = lsq_linear(np.tri(n), np.array(wanted), (lower - 1e-9, np.full(n, 1e4)), tol=1e-14)
    best = np.sum((np.tri(n) @ solved.x - wanted) ** 2)
    ours = np.sum((figures.spread(wanted, gap, -1e4, 1e4) - wanted) ** 2)
    assert ours <= best + 1e-3


def test_spread_stacks_below_a_bound():
    assert figures.spread([99, 100, 100], 10, 0, 100).tolist() == [80, 90, 100]


def test_transfer_profile_puts_near_languages_left(rows):
    ax = figures.transfer_profile(rows[rows.length == 5], "").axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["English", "German", "Swahili"]


@pytest.mark.parametrize(("methods", "panels"), [(2, 1), (5, 2)])
def test_profile_shows_every_language_once_in_order(methods, panels):
    figure = figures.compare_profile(table_of(MANY, method=[*figures.METHOD_NAMES][:methods]), "")
    labels = [t.get_text() for ax in figure.axes for t in ax.get_xticklabels()]
    far = distances().syntactic.loc[MANY]
    assert len(figure.axes) == panels
    assert labels == [figures.name_of(c) for c in sorted(MANY, key=lambda c: (far[c], c))]


def errorbars(ax):
    """{label: (x, means, lower ends, upper ends)} of the intervals drawn."""
    found = {}
    for bar in ax.containers:
        if isinstance(bar, ErrorbarContainer) and bar.lines[2]:
            ends = np.array(bar.lines[2][0].get_segments())[:, :, 1]
            found[bar.get_label()] = (*bar.lines[0].get_data(), *ends.T)
    return found


def test_profile_draws_means_and_t_intervals():
    rows = pd.DataFrame({"language": "eng", "seed": [1, 2, 3], "value": [60.0, 62.0, 64.0]})
    ax = figures.compare_profile(rows.assign(method="lora"), "").axes[0]
    x, mean, low, high = errorbars(ax)["LoRA"]
    half = 4.302653 * 2 / np.sqrt(3)  # Student's t for 2 degrees of freedom, sd 2, 3 seeds
    assert (*x, *mean, *low, *high) == pytest.approx((0, 62, 62 - half, 62 + half))


def test_profile_draws_each_methods_means_beside_each_other():
    rows = table_of(FEW, method=["soft_prompt", "joint_tuning"])
    found = errorbars(figures.compare_profile(rows, "").axes[0])
    means = rows.groupby(["method", "language"]).value.mean()
    codes = figures.by_distance(FEW)
    for method, shift in (("soft_prompt", -1), ("joint_tuning", 1)):
        x, mean, *_ = found[figures.METHOD_NAMES[method]]
        at = dict(zip(map(round, x), mean, strict=True))
        assert [at[i] for i in range(8)] == pytest.approx(means[method][codes].tolist())
        assert {np.sign(place - round(place)) for place in x} == {shift}


def test_profile_shows_the_seeds_instead_of_an_interval_of_two():
    rows = table_of(["eng", "deu"], method=["soft_prompt", "joint_tuning"])
    rows = rows[(rows.method == "soft_prompt") | (rows.seed < 3)]
    figure = figures.compare_profile(rows, "")
    bars = [bar for bar in figure.axes[0].containers if isinstance(bar, ErrorbarContainer)]
    intervals = {bar.get_label(): np.size(bar.lines[2][0].get_segments()) // 4 for bar in bars}
    assert intervals == {"soft prompt, frozen model": 2, "soft prompt, model tuned": 0}
    dots = [line for line in figure.axes[0].lines if line.get_markersize() == 3]
    tuned = rows[rows.method == "joint_tuning"].value
    assert sorted(y for line in dots for y in line.get_ydata()) == sorted(tuned)
    assert "none for fewer than 3 seeds" in figure.get_supxlabel().replace("\n", " ")


def test_profile_draws_the_majority_line_of_each_language():
    base = majority(["eng", "deu"]).assign(value=[20.0, 30.0])
    ax = figures.compare_profile(pd.concat([table_of(["eng", "deu"]), base]), "").axes[0]
    line = next(c for c in ax.containers if c.get_label() == "majority label").lines[0]
    assert line.get_ydata().tolist() == [20.0, 30.0]


def test_profile_of_one_method_shows_its_seeds():
    rows = table_of(FEW)
    ax = figures.compare_profile(rows, "").axes[0]
    dots = next(line for line in ax.lines if line.get_label() == "seed")
    assert sorted(dots.get_ydata()) == pytest.approx(sorted(rows.value))


def test_a_method_keeps_its_look_whoever_else_is_shown():
    colours = []
    for methods in (["lora"], ["soft_prompt", "lora"]):
        ax = figures.compare_profile(table_of(["eng"], method=methods), "").axes[0]
        bar = next(c for c in ax.containers if c.get_label() == "LoRA")
        colours.append(to_hex(bar.lines[0].get_color()))
    assert colours[0] == colours[1]


def test_scatter_draws_effect_against_distance_without_english_or_unknown_distances():
    table = effects(MANY)
    figure = figures.effect_by_distance(table, correlations(["genetic"]), "")
    x, y = next(line for line in figure.axes[0].lines if line.get_marker() == "o").get_data()
    far = distances().genetic
    # URIEL's family table has no row for Twi
    known = [(far[c], e) for c, e in table.itertuples(index=False) if c not in ("eng", "twi")]
    assert dict(zip(y, x, strict=True)) == {e: d for d, e in known}
    assert "n = 50" in figure.axes[0].get_xlabel()


def test_scatter_has_a_panel_a_distance_with_its_correlation():
    figure = figures.effect_by_distance(effects(FEW), correlations(), "")
    assert [ax.get_xlabel().split()[0] for ax in figure.axes] == list(DISTANCES)
    assert {ax.get_title() for ax in figure.axes} == {"ρ = 0.50 [0.25, 0.75], p = 0.012"}


def test_scatter_says_what_is_not_known():
    found = correlations(["genetic"]).assign(low=np.nan, high=np.nan, p=np.nan)
    ax = figures.effect_by_distance(effects(FEW), found, "").axes[0]
    assert ax.get_title() == "ρ = 0.50, no interval"


def test_scatter_names_the_extreme_effects():
    figure = figures.effect_by_distance(effects(MANY), correlations(["syntactic"]), "")
    others = [figures.name_of(c) for c in MANY if c != "eng"]  # in the order of their effects
    named = {a.get_text() for a in figure.axes[0].texts}
    assert named == {*others[:2], *others[-2:]}


def test_scatter_says_how_many_seeds_and_what_was_resampled():
    figure = figures.effect_by_distance(effects(FEW).assign(seeds=5), correlations(), "")
    told = " ".join(figure.get_supxlabel().split())
    assert "mean over 5 seeds" in told
    assert "resample whole language families (15); p corrected for 6 tests" in told


@pytest.mark.parametrize("seed", range(4))
def test_no_line_of_a_scatter_crosses_the_name_of_another_language(seed):
    figures.style()
    table = effects(np.random.default_rng(seed).permutation(MANY))
    figure = figures.effect_by_distance(table, correlations(), "")
    figure.draw_without_rendering()
    for ax in figure.axes:
        boxes = {a: Text.get_window_extent(a) for a in ax.texts}
        for a, box in boxes.items():
            left = a.get_ha() == "right"  # of its point
            edge = (box.x1 if left else box.x0, (box.y0 + box.y1) / 2)
            line = Line([edge, ax.transData.transform(a.xy)])
            crossed = [b.get_text() for b in boxes if b is not a and line.intersects_bbox(boxes[b])]
            assert crossed == []
            assert ax.bbox.x0 - 3 < box.x0 and box.x1 < ax.bbox.x1 + 3


def mesh_of(figure):
    """The colours' values as (languages, conditions)."""
    mesh = figure.axes[0].collections[0]
    return mesh, mesh.get_array().reshape(len(figure.axes[0].get_yticks()), -1)


def test_heat_map_holds_the_means_english_on_top():
    rows = table_of(["swh", "eng", "deu"], condition=["none", "MLP"])
    figure = figures.heat_map(rows, "")
    means = rows.groupby(["language", "condition"]).value.mean().unstack()
    expected = means.loc[["eng", "deu", "swh"], ["none", "MLP"]]
    assert mesh_of(figure)[1].filled(np.nan) == pytest.approx(expected.to_numpy())
    ticks = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert ticks == ["English", "German", "Swahili"]


def test_heat_map_of_differences_is_centred_on_no_difference():
    rows = table_of(["eng", "deu"], condition=["none", "MLP"])
    mesh, values = mesh_of(figures.heat_map(rows, "", base="none"))
    means = rows.groupby(["language", "condition"]).value.mean().unstack()
    assert [*values[:, 0]] == pytest.approx([*(means.MLP - means.none)[["eng", "deu"]]])
    assert mesh.norm.vmin == -mesh.norm.vmax


@pytest.mark.parametrize(("codes", "printed"), [(FEW, 16), (MANY, 0)])
def test_heat_map_prints_the_values_of_few_languages_only(codes, printed):
    rows = table_of(codes, condition=["none", "MLP"])
    assert len(figures.heat_map(rows, "").axes[0].texts) == printed


def test_heat_map_says_what_was_not_measured():
    rows = table_of(["eng", "deu"], condition=["none", "MLP"])
    figure = figures.heat_map(rows[(rows.language != "deu") | (rows.condition != "MLP")], "")
    assert mesh_of(figure)[1].mask.tolist() == [[False, False], [False, True]]
    assert "not measured" in figure.get_supxlabel()


def test_shots_curves_draw_means_and_t_intervals_without_english():
    rows = table_of(["eng", "deu", "swh"], method=NLI, shots=[16, 64])
    found = errorbars(figures.shots_curves(rows, "").axes[0])
    assert list(found) == [figures.NAMES[m] for m in ("fine_tuning", *NLI[:2], NLI[3])]
    x, mean, low, high = found[figures.NAMES["ltp"]]
    kept = rows[(rows.language != "eng") & (rows.method == "ltp")]
    for i, k in enumerate((16, 64)):
        seeds = kept[kept.shots == k].groupby("seed").value.mean()
        half = 4.302653 * seeds.std() / np.sqrt(3)  # Student's t for 2 degrees of freedom
        wanted = (seeds.mean(), seeds.mean() - half, seeds.mean() + half)
        assert (mean[i], low[i], high[i]) == pytest.approx(wanted)
        assert x[i] == pytest.approx(k, rel=0.1)


def test_shots_curves_of_one_seed_and_one_k_are_dots_beside_the_majority_line():
    rows = table_of(["eng", "deu"], method=NLI, shots=[16]).query("seed == 1")
    ax = figures.shots_curves(pd.concat([rows, majority(["deu"], 33.3)]), "").axes[0]
    dotted = next(line for line in ax.lines if line.get_label() == "majority label")
    assert set(dotted.get_ydata()) == {33.3}
    assert [t.get_text() for t in ax.get_xticklabels()] == ["16"]


def test_the_majority_line_of_shots_curves_is_never_hidden_by_the_axis():
    rows = table_of(["eng", "deu"], method=NLI, shots=[16]).query("seed == 1")
    edge = figures.shots_curves(rows, "").axes[0].get_ylim()[0]
    again = figures.shots_curves(pd.concat([rows, majority(["deu"], edge)]), "").axes[0]
    assert again.get_ylim()[0] < edge


def test_rate_grid_rings_the_lowest_mean():
    lines = figures.rate_grid(grid(["lora"]), "").axes[0].lines
    curve = next(line for line in lines if line.get_label() == "LoRA")
    # mean over seeds 1, 2 of 1 + |rate - 0.01| + seed / 10
    assert curve.get_ydata().tolist() == pytest.approx([1.159, 1.15, 1.24])
    ring = next(line for line in lines if line.get_markerfacecolor() == "none")
    assert (*ring.get_xdata(), *ring.get_ydata()) == pytest.approx((0.01, 1.15))


def test_rates_of_more_than_three_conditions_have_a_panel_each():
    names = ["n = 1", "n = 2", "n = 5", "n = 10"]
    axes = figures.rate_grid(grid(names), "").axes
    assert [ax.get_title(loc="left") for ax in axes] == names
    for ax in axes:
        (ring,) = (line for line in ax.lines if line.get_markerfacecolor() == "none")
        assert ring.get_xdata() == [0.01]
    assert len(figures.rate_grid(grid(names[:3]), "").axes) == 1


def test_panels_of_rates_that_share_ticks_are_laid_out_in_their_order(monkeypatch):
    seen = []  # the last one sets the ticks of all, so the order must not depend on the process
    monkeypatch.setattr(figures, "_rate_ticks", lambda ax, *_: seen.append(ax))
    figure = figures.rate_grid(grid([f"n = {n}" for n in range(7)]), "")
    assert seen == figure.axes


@pytest.mark.parametrize("n", [1, 4])
def test_rate_grid_has_a_tick_at_each_rate_and_numbers_that_do_not_touch(n):
    figures.style()
    rates = [3e-6, 1e-5, 3e-5, 0.001, 0.02, 0.03, 0.04, 0.05, 1.0, 2.0]
    cells = itertools.product("abcd"[:n], rates, [1, 2])
    rows = pd.DataFrame(cells, columns=["condition", "learning_rate", "seed"])
    rows = rows.assign(value=1 + (rows.learning_rate - 0.03).abs(), metric="dev_loss")
    figure = figures.rate_grid(rows, "")
    figure.draw_without_rendering()
    ax = figure.axes[-1]
    assert [*ax.get_xticks()] == rates and not len(ax.get_xticks(minor=True))
    labels = [t for t in ax.get_xticklabels() if t.get_text()]
    assert {"0.03"} <= {t.get_text() for t in labels} < set(map(figures.rate_text, rates))
    boxes = [t.get_window_extent() for t in labels]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize(
    ("rate", "text"),
    [(3e-6, "3e−6"), (2.5e-4, "2.5e−4"), (0.001, "0.001"), (0.03, "0.03"), (1, "1")],
)
def test_rates_are_written_as_they_are_read(rate, text):
    assert figures.rate_text(rate) == text


def test_rate_grid_of_accuracies_rings_the_highest_mean():
    rows = grid(["lora"]).assign(metric="dev_accuracy")
    (ax,) = figures.rate_grid(rows, "", "dev_accuracy").axes
    ring = next(line for line in ax.lines if line.get_markerfacecolor() == "none")
    assert (*ring.get_xdata(), *ring.get_ydata()) == pytest.approx((0.1, 1.24))
    assert ax.get_ylabel() == "English dev accuracy (%)"


def test_rate_grid_rings_no_rate_that_lost_a_seed():
    rows = grid(["lora"])
    rows = rows[(rows.learning_rate != 0.01) | (rows.seed != 2)]
    lines = figures.rate_grid(rows, "").axes[0].lines
    ring = next(line for line in lines if line.get_markerfacecolor() == "none")
    assert [*ring.get_xdata()] == [0.001]


def test_dev_curves_ring_the_epoch_kept_and_count_whole_epochs():
    figure = figures.dev_curves(falling(["ltp", "mp"]), "", guess=1.1)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["LTP: prompt, ticket", "MP"]
    for ax in figure.axes:
        rings = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
        assert [(*r.get_xdata(), *r.get_ydata()) for r in rings] == [(3, 1.2), (4, 1.1)]
        assert all(float(tick).is_integer() for tick in ax.get_xticks())
        (dotted,) = (line for line in ax.lines if line.get_linestyle() == ":")
        assert set(dotted.get_ydata()) == {1.1}


def test_dev_curves_draw_accuracy_in_percent():
    (ax,) = figures.dev_curves(falling(["mp"]), "", "dev_accuracy").axes
    rings = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
    assert [(*r.get_xdata(), *r.get_ydata()) for r in rings] == [(3, 75.0), (4, 50.0)]
    assert ax.get_ylabel() == "dev accuracy (%)"


def bars_of(ax):
    """{label: (effect, low, high)} of one panel, from the top."""
    names = [t.get_text() for t in ax.figure.axes[0].get_yticklabels()]
    lines, dots = ax.collections
    ends = {round(a[1]): (a[0], b[0]) for a, b in lines.get_segments()}
    return {names[round(y)]: (x, *ends[round(y)]) for x, y in dots.get_offsets()}


def test_ticket_layers_stack_to_the_active_part_of_each_layer():
    counts = layers(["movement"])
    (ax,) = figures.ticket_layers(counts, "").axes
    tops = pd.DataFrame([(b.get_x() + 0.4, b.get_y() + b.get_height()) for b in ax.patches])
    sums = counts.groupby("layer")[["active", "total"]].sum()
    wanted = 100 * sums.active / sums.total
    assert tops.groupby(0)[1].max().to_numpy() == pytest.approx(wanted.to_numpy())


def test_ticket_layers_draw_what_chance_gives():
    counts = layers(["movement"])
    (ax,) = figures.ticket_layers(counts, "").axes
    wanted = 100 * counts.active.sum() / counts.total.sum()
    assert ax.lines[0].get_ydata() == pytest.approx([wanted] * 2)


def test_ticket_layers_tell_the_embeddings_part_of_each_ticket():
    counts = layers(["movement", "large_final"]).assign(active=1, total=2)  # 13 rows a ticket
    counts.loc[counts.layer == 0, "total"] = 8
    told = " ".join(figures.ticket_layers(counts, "").get_supxlabel().split())
    parts = "8 % (movement), 8 % (large final)"
    assert f"Embeddings are 25 % of the weights, and of the tickets {parts}." in told
    rest = figures.ticket_layers(counts[counts.layer > 0], "").get_supxlabel()
    assert "Embeddings" not in rest


def test_ticket_layers_have_a_panel_a_strategy():
    names = ["movement", "random", "large_final", "small_movement"]
    axes = figures.ticket_layers(layers(names), "").axes
    assert [ax.get_title(loc="left") for ax in axes] == [n.replace("_", " ") for n in names]


def test_effect_bars_hold_the_tables_numbers_in_its_order():
    table = ledger(["vocabulary", "label words"], groups=["init"])
    ax = figures.effect_bars(table, "").axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["vocabulary", "label words"]
    bottom, top = ax.get_ylim()
    assert top < bottom  # the first row, at 0, is on top
    assert bars_of(ax) == {"vocabulary": (-5, -6, -3.5), "label words": (5, 4, 6.5)}


def test_effect_bars_name_the_base_and_say_that_nothing_is_corrected():
    table = ledger(["residual_mlp, hidden 50", "lstm, hidden 50"], groups=["reparameterization"])
    figure = figures.effect_bars(table.assign(base="none"), "")
    (ax,) = figure.axes
    assert ax.get_title(loc="left") == "reparameterization (base: no network)"
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names == ["residual MLP, hidden 50", "LSTM, hidden 50"]
    assert "not corrected for all 2" in figure.get_supxlabel()


def test_effect_bars_say_what_each_group_rests_on():
    table = ledger(["a", "b"], groups=["init"]).assign(languages=[7, 51], seeds=1)
    (ax,) = figures.effect_bars(table.assign(base="none"), "").axes
    assert ax.get_title(loc="left") == "initialization (base: no network; 1 seed)"
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names == ["a (7 languages)", "b (51 languages)"]


def test_effect_bars_put_groups_of_the_same_labels_side_by_side():
    table = ledger(["English", "German"])
    axes = figures.effect_bars(table[:3], "").axes  # the second group lacks German
    assert [ax.get_title(loc="left") for ax in axes] == ["MLP", "LSTM"]
    assert len({ax.get_position().y0 for ax in axes}) == 1
    assert [list(bars_of(ax)) for ax in axes] == [["English", "German"], ["English"]]


def test_effect_bars_keep_switches_with_one_label_in_common_under_one_another():
    table = ledger(list("abcd"), groups=["init"]).assign(group=["init", "init", "loss", "loss"])
    axes = figures.effect_bars(table.assign(label=["a", "b", "b", "c"]), "").axes
    assert [[t.get_text() for t in ax.get_yticklabels()] for ax in axes] == [["a", "b"], ["b", "c"]]


def test_effect_bars_grey_what_may_be_nothing():
    table = ledger(list("abc"), groups=["init"]).assign(low=[-9, -1, 2], high=[-2, 1, 9])
    colours = figures.effect_bars(table, "").axes[0].collections[1].get_facecolor()
    assert [to_hex(c).upper() for c in colours] == [figures.RED, figures.GREY, figures.BLUE]


@pytest.mark.parametrize(("kind", "n"), [*((k, 52) for k in KINDS), ("heat", 8), ("bars", 8)])
def test_texts_are_legible(kind, n):
    figures.style()
    figure = drawn(kind, {52: MANY, 8: FEW}[n])
    figure.draw_without_rendering()
    texts = [t for t in figure.findobj(Text) if t.get_text().strip() and t not in unseen(figure)]
    assert min(t.get_fontsize() for t in texts) >= 7
    boxes = [(t.get_text(), Text.get_window_extent(t)) for t in texts]
    cut = [name for name, b in boxes if b.min.min() < -1 or np.any(b.max > figure.bbox.max + 1)]
    straight = [box for t, box in zip(texts, boxes, strict=True) if t.get_rotation() % 90 == 0]
    pairs = itertools.combinations(straight, 2)
    upon = [(s, t) for (s, a), (t, b) in pairs if shared(a, b)]
    assert (cut, upon) == ([], [])


def unseen(figure):
    """Labels of ticks outside their axes, which are never drawn."""
    found = set()
    for ax in figure.axes:
        for axis, ends in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            for tick in axis.get_major_ticks():
                if not min(ends) <= tick.get_loc() <= max(ends):
                    found |= {tick.label1, tick.label2}
                found |= {t for t in (tick.label1, tick.label2) if not t.get_visible()}
    return found


def shared(a, b):
    """Whether two boxes share more than a pixel each way."""
    return bool(np.all(np.minimum(a.max, b.max) - np.maximum(a.min, b.min) > 1))


@pytest.mark.parametrize("kind", ["two", "heat", "grid", "bars"])
def test_captions_carry_the_text_and_a_hash(kind):
    words = drawn(kind, FEW).get_supxlabel().split()
    assert words[0] == "about"
    assert len(words[-1].rstrip(".")) == 12 and int(words[-1].rstrip("."), 16) >= 0


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("residual_mlp 200", "residual MLP 200"),
        ("mlp, hidden 50", "MLP, hidden 50"),
        ("joint_tuning", "soft prompt, model tuned"),
        ("label_words", "label words"),
        ("large_final", "large final"),
        ("n = 10", "n = 10"),
        ("Haitian Creole", "Haitian Creole"),
        (5, "5"),
    ],
)
def test_names_are_readable_and_stay_so(name, wanted):
    assert figures.readable(name) == wanted == figures.readable(wanted)


def test_captions_say_which_condition_has_how_many_seeds():
    rows = table_of(["eng", "deu"], method=["soft_prompt", "joint_tuning"])
    rows = rows[(rows.method == "soft_prompt") | (rows.seed == 1)]
    wanted = "3 seeds (soft prompt, frozen model), 1 seed (soft prompt, model tuned)"
    for figure in (figures.compare_profile(rows, ""), figures.heat_map(rows, "", "method")):
        assert wanted in " ".join(figure.get_supxlabel().split())


@pytest.mark.parametrize("pad", range(12))
def test_captions_keep_a_number_with_its_sign(rows, pad):
    figure, _ = plt.subplots()
    figures.caption(figure, " ".join(["x" * (90 + pad), "5 %", "n = 5"] * 3), rows)
    assert {"%", "=", "5"}.isdisjoint(figure.get_supxlabel().replace("\u00a0", "_").split())


@pytest.mark.parametrize("change", ["effect", "rho"])
def test_scatter_hash_depends_on_effects_and_statistics(change):
    table, found = effects(FEW), correlations(["syntactic"])
    before = figures.effect_by_distance(table, found, "").get_supxlabel()
    (table if change == "effect" else found)[change] += 0.001
    assert figures.effect_by_distance(table, found, "").get_supxlabel() != before


def test_same_rows_make_the_same_bytes(rows, tmp_path):
    figures.style()
    for folder in ("one", "two"):
        figures.save(figures.length_curves(rows, "about"), tmp_path / folder, "curve")
    for name in ("curve.svg", "curve.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("kind", ["heat", "bars"])
def test_other_figures_are_the_same_twice_too(kind, tmp_path):
    figures.style()
    one, two = (figures.save(drawn(kind, FEW), tmp_path / n, kind) for n in ("one", "two"))
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


def twice(codes):
    return table_of(codes, selection=["best_dev", "last"], length=[5], condition=["MLP"])


@pytest.mark.parametrize("draw", [figures.compare_profile, figures.length_curves, figures.heat_map])
def test_rows_that_hold_a_cell_twice_are_refused(draw):
    with pytest.raises(InputError, match="pick one of each: selection"):
        draw(twice(FEW), "")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: figures.compare_profile(majority(FEW), ""), "no rows to draw"),
        (lambda: figures.length_curves(table_of(FEW), ""), "no column length; there are: "),
        (lambda: figures.compare_profile(table_of(FEW), "", "syntax"), "mean syntactic"),
        (lambda: figures.shots_curves(twice(FEW).assign(shots=4), ""), "one of each: selection"),
        (lambda: figures.rate_grid(table_of(FEW), ""), "'dev_loss'; there are: accuracy"),
        (lambda: figures.rate_grid(grid("abcdefgh"), ""), "at most 7 are legible"),
        (lambda: figures.dev_curves(falling(["mp", "mp"]), ""), "several rows for one method"),
        (lambda: figures.effect_bars(ledger("aa"), ""), "several rows for one group, label"),
        (
            lambda: figures.heat_map(table_of(FEW, condition=["MLP"]), "", base="mlp"),
            "unknown base 'mlp'; did you mean MLP",
        ),
        (
            lambda: figures.effect_by_distance(effects(FEW), correlations(["genetics"]), ""),
            "mean genetic",
        ),
        (
            lambda: figures.effect_by_distance(effects(FEW * 2), correlations(), ""),
            "several rows for one language",
        ),
        (
            lambda: figures.effect_bars(ledger("ab").assign(effect=np.nan), ""),
            "a row without a value",
        ),
    ],
)
def test_bad_input_is_named(draw, message):
    with pytest.raises(InputError, match=message):
        draw()


def test_pick_names_what_there_is(rows):
    with pytest.raises(InputError, match=r"length 7; there are: 1, 5, 50"):
        figures.pick(rows, length=7)


def test_no_finished_run_names_the_command(tmp_path):
    with pytest.raises(InputError, match="make reproduce PROFILE=pocket"):
        figures.read_runs("pocket", "embedded", tmp_path)
