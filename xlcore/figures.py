"""House style and the final figures, each drawn from result rows alone.

Last in the flow: rows -> figures; no number is typed here.
SPT sections 4 and 5: transfer per language and distance, prompt length, reparameterization.
"""

import hashlib
import json
import re
import textwrap
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from scipy.optimize import isotonic_regression

from xlcore.errors import InputError, choose
from xlcore.languages import DISTANCES, distances, resolve
from xlcore.statistics import by_seed

# Okabe and Ito's palette, safe for the colour-blind.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
STYLE = {
    "figure.dpi": 110, "savefig.dpi": 200, "figure.constrained_layout.use": True,
    "font.size": 9, "legend.fontsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#dddddd", "grid.linewidth": 0.6,
    "legend.frameon": False, "svg.hashsalt": "xlcore", "svg.fonttype": "none",
}  # fmt: skip
GREY, LIGHT = "#888888", "#e6e6e6"
KINDS = ("embeddings", "attention", "feed-forward", "LayerNorm", "bias")  # of `tickets.place`
PAGE = 6.5  # inches between the margins of a page; no letter is below SMALL points at this width
SMALL = 7
LINES = 3  # conditions whose lines stay apart in one panel of rates; more get a panel each
FEWEST = 3  # seeds that an interval is drawn from; of fewer, each is shown (t is 12.7 at two)
LOOKS = (
    (BLUE, "o"), (RED, "s"), (GREEN, "^"), (ORANGE, "D"), (PURPLE, "v"), (SKY, "P"), (BLACK, "X"),
)  # fmt: skip
METHOD_NAMES = {
    "soft_prompt": "soft prompt, frozen model", "joint_tuning": "soft prompt, model tuned",
    "fine_tuning": "model tuned, no prompt", "lora": "LoRA", "prefix_tuning": "prefix tuning",
}  # fmt: skip
CURVES = {"dev_loss": (-1, "dev loss (nats)"), "dev_accuracy": (100, "dev accuracy (%)")}
SCALES = {  # what accuracy is drawn against
    "length": "prompt length (tokens, log scale)", "learning_rate": "learning rate (log scale)",
}  # fmt: skip
NAMES = METHOD_NAMES | {
    "ltp": "LTP: prompt, ticket", "random_ticket": "prompt, random ticket",
    "prompt_only": "soft prompt only", "bitfit": "BitFit", "dp": "DP", "sp": "SP", "mp": "MP",
    "none": "no network", "mlp": "MLP", "residual_mlp": "residual MLP", "lstm": "LSTM",
    "label_words": "label words", "init": "initialization", "selection": "epoch",
    "best_dev": "best on dev",
}  # fmt: skip


def style() -> None:
    """Use the house style for all figures from here on."""
    plt.rcParams.update(STYLE)


def rows_hash(rows: pd.DataFrame) -> str:
    """Return the sha256 of what a figure was drawn from, whatever the order of rows and columns.

    Empty columns do not count: other runs that are read along bring them.
    """
    told = rows.dropna(axis=1, how="all").to_dict("records")
    lines = sorted(json.dumps(row, sort_keys=True) for row in told)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def caption(figure: Figure, text: str, rows: pd.DataFrame) -> None:
    """Write what stands behind a figure under it: data, model, n, interval, and the rows' hash."""
    whole = f"{text} Rows {rows_hash(rows)[:12]}."
    for part in (" %", " = ", "Rows "):  # stay on one line
        whole = whole.replace(part, part.replace(" ", "\u00a0"))
    width = int(figure.get_figwidth() * 18)
    figure.supxlabel(
        "\n".join(textwrap.wrap(whole, width)), fontsize=7, color="#555555", ha="center"
    )


def save(figure: Figure, folder: Path | str, name: str) -> list[Path]:
    """Write a figure as SVG and PNG, byte for byte the same for the same rows."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    figure.savefig(paths[0], metadata={"Date": None})
    figure.savefig(paths[1], metadata={"Software": None})
    return paths


def name_of(code: str) -> str:
    return resolve(code).name


def readable(name: object) -> str:
    """Return a condition's name for a reader; a network's width, as in "mlp 50", stays behind."""
    code, width = re.fullmatch(r"(.*?)((?:,? (?:hidden )?\d+)?)", str(name)).groups()
    return NAMES.get(code, code.replace("_", " ")) + width


def pick(rows: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """Return the rows with these values; InputError with what there is if none has them."""
    out = rows
    for column, value in wanted.items():
        left = out[out[column] == value]
        if left.empty:
            have = ", ".join(map(str, sorted(out[column].dropna().unique())))
            raise InputError(f"no rows with {column} {value!r}; there are: {have}")
        out = left
    return out


def by_distance(codes: Iterable[str], kind: str = "syntactic") -> list[str]:
    """Order languages by URIEL distance from English; those without one come last."""
    far = distances()[choose("distance", kind, DISTANCES)]
    return sorted(codes, key=lambda c: (far.get(c, float("nan")) != far.get(c), far.get(c, 9), c))


def _checked(table: pd.DataFrame, cell: list[str], *more: str) -> pd.DataFrame:
    """The table; InputError unless it has rows, these columns, no empty value, one row a cell."""
    if lacking := [c for c in (*cell, *more) if c not in table]:
        raise InputError(f"no column {', '.join(lacking)}; there are: {', '.join(table)}")
    if table.empty:
        raise InputError("no rows to draw")
    if table[table.columns.intersection(["value", "effect"])].isna().any(axis=None):
        raise InputError("a row without a value")
    if table.duplicated(cell).any():
        counts = table.groupby(cell, dropna=False).nunique(dropna=False).max()
        mixed = ", ".join(counts.index[counts > 1].difference(more)) or "the rows repeat"
        raise InputError(f"several rows for one {', '.join(cell)}; pick one of each: {mixed}")
    return table


def _looks(names: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Label, colour and marker of each name: a method's own, or in turn for other conditions."""
    names = list(names)
    if len(names) > len(LOOKS):
        raise InputError(f"{len(names)} conditions in one figure; at most {len(LOOKS)} are legible")
    turn = list(METHOD_NAMES) if set(names) <= set(METHOD_NAMES) else names
    return {n: (readable(n), *LOOKS[turn.index(n)]) for n in turn if n in names}


def _panels(high: int, wide: int, height: float, **options: object) -> tuple[Figure, np.ndarray]:
    """Axes (high, wide) on a figure as wide as the page, `height` in inches."""
    size = (PAGE, height)
    return plt.subplots(high, wide, figsize=size, squeeze=False, layout="constrained", **options)


def _small(
    names: Iterable[str], most: int, x: str, y: str, sharex: bool = True
) -> tuple[Figure, dict[str, Axes]]:
    """Small multiples: a panel a name, at most `most` in a row, labelled on the outside."""
    names = list(names)
    high = -(-len(names) // most)
    wide = -(-len(names) // high)
    figure, axes = _panels(high, wide, 1.1 + 1.5 * high, sharex=sharex, sharey=True)
    for ax, name in zip(axes.flat, names, strict=False):
        ax.set_title(readable(name), fontsize="medium", loc="left")
    for ax in axes[:, 0]:
        ax.set_ylabel(y)
    for ax in axes.flat[max(0, len(names) - wide) : len(names)]:  # none stands below
        ax.set_xlabel(x)
        ax.tick_params(labelbottom=True)
    for ax in axes.flat[len(names) :]:
        ax.remove()
    return figure, dict(zip(names, axes.flat, strict=False))


def _seeds(table: pd.DataFrame, by: str) -> str:
    """How many seeds there are (n), of which condition of `by` if they differ."""
    found: dict[str, list[str]] = {}
    for name, n in table.groupby(by, sort=False).n:
        count = f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"
        found.setdefault(f"{count} seed{'s' * (count != '1')}", []).append(readable(name))
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{count} ({'; '.join(names)})" for count, names in found.items())


def _left_out(rows: pd.DataFrame) -> str:
    """What full tuning did not move, in a sentence, where the rows' scope says so."""
    body = "scope" in rows and (rows.scope == "body").any()
    return " Full tuning leaves out the word embeddings." if body else ""


def compare_profile(rows: pd.DataFrame, about: str, kind: str = "syntactic") -> Figure:
    """Draw accuracy per language, nearest to English on the left: means and 95 % intervals.

    rows: one to seven methods' accuracy rows, and those of "majority" for the reference line. A
    single method's seeds are shown as well; of fewer than FEWEST seeds, each is shown instead of an
    interval. Raises InputError for two rows of one method, language and seed.
    """
    shown = _checked(rows[rows.method != "majority"], ["method", "language", "seed"], "value")
    looks = _looks(shown.method.unique())
    codes = by_distance(shown.language.unique(), kind)
    n = -(-len(codes) // (54 if len(looks) <= 2 else 27))
    figure, axes = _panels(n, 1, 0.9 + 2.6 * n)
    for ax, part in zip(axes.flat, np.array_split(codes, n), strict=True):
        _profile(ax, rows, list(part), looks)
    entries = axes[0, 0].get_legend_handles_labels()
    figure.legend(*entries, ncols=3, loc="outside upper right", columnspacing=1)
    counted = by_seed(shown, ["method", "language"])
    order = f"Languages from left to right by {kind} distance from English (URIEL)."
    bars = f"{_seeds(counted, 'method')}; bars: Student t interval (95 %) over seeds"
    if counted.n.min() < FEWEST:
        bars += f", none for fewer than {FEWEST} seeds: a small dot each"
    caption(figure, f"{about}{_left_out(rows)} {bars}. {order}", rows)
    return figure


transfer_profile = compare_profile  # the name it goes by where the rows hold one method


def _profile(ax: Axes, rows: pd.DataFrame, codes: list[str], looks: dict) -> None:
    """Draw the methods side by side for these languages."""
    rows = rows.assign(x=rows.language.map({code: i for i, code in enumerate(codes)}))
    size, width = (2.8, 0.8) if len(codes) * len(looks) > 40 else (4, 1.2)
    for i, (method, (label, colour, marker)) in enumerate(looks.items()):
        part = rows[rows.method == method].dropna(subset="x")
        table, beside = by_seed(part, ["x"]), 0.7 * ((i + 0.5) / len(looks) - 0.5)
        few = part[part.x.isin(table.x[table.n < FEWEST])]
        dots = {"ms": 3, "alpha": 0.6, "mec": "none"}
        if len(looks) == 1:
            ax.plot(part.x - 0.2, part.value, "o", color=SKY, label="seed", **dots)
        else:
            ax.plot(few.x + beside, few.value, "o", color=colour, **dots)
        ends = (table["mean"] - table.low, table.high - table["mean"])
        bars = {"fmt": marker, "ms": size, "lw": width, "color": colour, "label": label}
        error = [end.where(table.n >= FEWEST) for end in ends]
        ax.errorbar(table.x + beside, table["mean"], error, **bars)
    base = rows[rows.method == "majority"].groupby("x").value.mean().reindex(range(len(codes)))
    if base.notna().any():  # errorbar, not plot, to come last in the legend
        dotted = {"fmt": ":", "drawstyle": "steps-mid", "lw": 1, "label": "majority label"}
        ax.errorbar(base.index, base, color=BLACK, **dotted)
    turn = {"rotation": 90, "fontsize": SMALL} if len(codes) > 20 else {"rotation": 40}
    turn |= {"ha": "right", "va": "center", "rotation_mode": "anchor"}
    ax.set_xticks(range(len(codes)), map(name_of, codes), **turn)
    ax.set(ylabel="accuracy (%)", ylim=(0, 100), xlim=(-0.6, len(codes) - 0.4))


def length_curves(
    rows: pd.DataFrame, about: str, source: str = "eng", by: str = "length"
) -> Figure:
    """Draw accuracy against prompt length: English, the mean of the others, and each language.

    by: the column on the x axis, "length" or "learning_rate". The band is the 95 % interval over
    seeds of the mean over languages. Raises InputError for another column, and for two rows of one
    language, length (rate) and seed.
    """
    x_label = SCALES[choose("x axis", by, SCALES)]
    rows = _checked(rows[rows.method != "majority"], ["language", by, "seed"], "value")
    figure, [[left, right]] = _panels(1, 2, 3.5, width_ratios=(1, 1.15), sharey=True)
    groups = (
        ("English", rows[rows.language == source], ORANGE),
        ("mean of the other languages", rows[rows.language != source], BLUE),
    )
    for label, part, colour in [group for group in groups if len(group[1])]:
        table = by_seed(part, [by]).sort_values(by)
        left.plot(table[by], table["mean"], "o-", color=colour, ms=4, label=label)
        left.fill_between(table[by], table.low, table.high, color=colour, alpha=0.18, lw=0)
    figure.legend(ncols=2, loc="outside upper left")
    places = sorted(rows[by].unique())
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_xticks(places, [f"{n:g}" for n in places])
        ax.minorticks_off()
        ax.set(xlabel=x_label, ylim=(0, 100))
    left.set_ylabel("accuracy (%)")
    ends, note = _each_language(right, rows, source, by)
    bands = f"{rows.seed.nunique()} seeds; bands: Student t interval (95 %) over seeds."
    caption(figure, f"{about} {bands} Right: each language{note}.", rows)
    figure.draw_without_rendering()  # names need the final layout
    _name_points(right, ends.assign(offset=14, beside=ends.y))
    return figure


def _each_language(ax: Axes, rows: pd.DataFrame, source: str, by: str) -> tuple[pd.DataFrame, str]:
    """Draw one line a language; return the right ends to name, and what to say of the others."""
    table = by_seed(rows, ["language", by]).sort_values(by)
    table = table.rename(columns={by: "x", "mean": "y"})
    ends = table[table.x == table.x.max()].sort_values("y").set_index("language")
    few = len(ends) <= 16
    others = ends.index.drop(source, errors="ignore")
    named = others if few else others[np.r_[:5, -5:0]]
    own = [look for look in LOOKS if look[0] != ORANGE]  # which is English's
    again = [(own[i][0], own[i - 1][1]) for i in range(len(own))]  # the same colours, other markers
    looks = dict(zip(named, cycle(own + again))) | {source: (ORANGE, "D")}
    for code, line in table.groupby("language"):
        colour, marker = looks.get(code, (LIGHT, ""))
        there = {"lw": 1.5 if code == source else 1, "zorder": 2 if code in looks else 1.5}
        ax.plot(line.x, line.y, color=colour, marker=marker, ms=3, **there)
    ends = ends[ends.index.isin(looks)].assign(colour=lambda t: [looks[c][0] for c in t.index])
    return ends, "" if few else ", named: English and the five at either end"


def spread(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Return the places nearest to ascending `wanted` (least squares) at least `gap` apart.

    They lie in [low, high]; where that is too narrow for the gaps they leave it at the low end.
    """
    # less the gaps this is isotonic regression, and clipping its solution puts it within bounds
    steps = gap * np.arange(len(wanted))
    free = isotonic_regression(np.asarray(wanted) - steps).x
    return np.clip(free, low, high - steps[-1]) + steps


def _name_points(ax: Axes, points: pd.DataFrame) -> None:
    """Write languages' names (index) beside points x, y, near the height `beside` (ascending).

    offset: from the point, in points of a font, to the left if below 0. The lines to them have the
    `colour`s, if any. The figure must have been laid out, so that such points can become units.
    """
    low, high = ax.get_ylim()
    point = (high - low) / ax.get_window_extent().height * ax.figure.dpi / 72
    places = spread(points.beside, 1.2 * SMALL * point, low + 4 * point, high - 4 * point)
    halo = [withStroke(linewidth=2, foreground="white")]
    colours = points.get("colour", [GREY] * len(points))
    for at, place, colour in zip(points.itertuples(), places, colours, strict=True):
        left = at.offset < 0
        line = {"arrowstyle": "-", "lw": 0.5, "color": colour, "shrinkA": 0, "shrinkB": 1}
        line["relpos"] = (float(left), 0.5)
        where = {
            "xy": (at.x, at.y),
            "xytext": (at.offset, place),
            "ha": "right" if left else "left",
        }
        ax.annotate(name_of(at.Index), **where, textcoords=("offset points", "data"), zorder=1.5,
                    va="center", fontsize=SMALL, arrowprops=line, path_effects=halo)  # fmt: skip


def effect_by_distance(effects: pd.DataFrame, statistics: pd.DataFrame, about: str) -> Figure:
    """Draw each language's effect against its distance from English, one panel a distance.

    effects: language, effect (difference in accuracy, points), perhaps seeds (how many it is the
    mean of); English itself is left out. statistics: by kind of distance (index) rho, low, high, p
    corrected for that many tests, and the families that low, high and p resample. The two lowest
    and the two highest effects are named. Raises InputError for an unknown distance or a language
    twice.
    """
    effects = _checked(effects[effects.language != "eng"], ["language"], "effect")
    found = statistics.rename_axis("distance").reset_index()
    found = _checked(found, ["distance"], "rho", "low", "high", "p", "families")
    far = distances()[[choose("distance", kind, DISTANCES) for kind in found.distance]]
    table = effects.set_index("language").rename(columns={"effect": "y"}).sort_values("y")
    n = -(-len(found) // 3)
    figure, axes = _panels(n, 3, 0.5 + 2.15 * n, sharey=True)
    named = {}
    for ax, test in zip(axes.flat, found.itertuples(), strict=False):
        points = table.assign(x=far[test.distance].reindex(table.index)).dropna(subset="x")
        _scatter(ax, points, test)
        named[ax] = points if len(points) < 5 else points.iloc[[0, 1, -2, -1]]
    for ax in axes[:, 0]:
        ax.set_ylabel("effect (points)")
    for ax in axes.flat[len(found) :]:
        ax.remove()
    caption(figure, f"{about} {_tests(effects, found)}", pd.concat([effects, found]))
    figure.draw_without_rendering()  # names need the final layout
    for ax, few in named.items():
        _name_points(ax, _outwards(few, ax))
    return figure


def _tests(effects: pd.DataFrame, found: pd.DataFrame) -> str:
    """What the dots and the correlations of a figure by distance rest on, in words."""
    count = sorted(set(effects.seeds)) if "seeds" in effects else []
    seeds = " or ".join(f"{n:.0f}" for n in count) + " seeds" if count else "seeds"
    families = " or ".join(f"{n:.0f}" for n in sorted(set(found.families)))
    return (
        f"A dot a language but English, its mean over {seeds}; distances from URIEL. ρ: Spearman's;"
        f" its 95 % interval and p resample whole language families ({families}); p corrected for"
        f" {len(found)} tests."
    )


def _outwards(points: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Say where names go, above or below every point, so that no line crosses a name."""
    (low, high), tall = ax.get_xlim(), np.ptp(ax.get_ylim())
    wide = ax.get_window_extent().width * 72 / ax.figure.dpi
    points = points.assign(
        across=(points.x - low) / (high - low) * wide,  # points of a font
        needs=[14 + _text_width(ax, name_of(code), SMALL) for code in points.index],
    )
    up = points.y > points.y.median()
    ends = [(sign, points[up == (sign > 0)]) for sign in (-1, 1)]
    placed = [
        _sideways(part, sign, wide).assign(beside=sign * ((sign * part.y).max() + 0.09 * tall))
        for sign, part in ends
        if len(part)
    ]
    return pd.concat(placed)


def _sideways(part: pd.DataFrame, sign: int, wide: float) -> pd.DataFrame:
    """Order an end's names from the bottom and say to which side each goes, and how far.

    Two go to either side, else towards each other; without room for that all go to one side, their
    ends in line, and that of the farthest point stands outside.
    """
    part = part.sort_values(["across", "y"])
    (first, *_), (*_, last) = part.across, part.across
    left, right = first - part.needs.iloc[0], wide - last - part.needs.iloc[-1]
    if len(part) == 2 and (min(left, right) > 0 or last - first > 14 + part.needs.max()):
        out = 14 if min(left, right) > 0 else -14
        return part.assign(offset=[-out, out]).sort_values("y")
    left, right = first - part.needs.max(), wide - last - part.needs.max()
    out = 14 + min(0, max(left, right))  # nearer where the room is short
    offset = first - part.across - out if left > right else last - part.across + out
    return part.assign(offset=offset, far=sign * offset.abs()).sort_values(["far", "y"])


def _scatter(ax: Axes, points: pd.DataFrame, test: tuple) -> None:
    ax.axhline(0, color=BLACK, lw=0.8, zorder=1)
    ax.plot(points.x, points.y, "o", color=BLUE, ms=3.5, alpha=0.65, mec="none")
    p = "p < 0.001" if test.p < 0.001 else f"p = {test.p:.3f}"
    found = f"ρ = {test.rho:.2f} [{test.low:.2f}, {test.high:.2f}], {p}"
    if not test.low <= test.high:
        found = f"ρ = {test.rho:.2f}, no interval" if test.rho == test.rho else "ρ not defined"
    ax.set_title(found.replace("-", "−"), fontsize=7.5)
    ax.margins(y=0.25)
    ax.set(xlabel=f"{test.distance} distance (n = {len(points)})")


def heat_map(
    rows: pd.DataFrame, about: str, condition: str = "condition", base: object = None
) -> Figure:
    """Draw mean accuracy of languages x conditions, English on top, then by syntactic distance.

    With `base`, one of the conditions, the differences from it are drawn instead, in points.
    Raises InputError for another base, or for two rows of one condition, language and seed.
    """
    shown = _checked(rows[rows.method != "majority"], [condition, "language", "seed"], "value")
    means = by_seed(shown.astype({condition: str}), [condition, "language"])
    table = means.pivot(index="language", columns=condition, values="mean")
    table = table.loc[by_distance(table.index), means[condition].unique()]
    label, look = "mean accuracy (%)", {"cmap": "viridis"}
    if base is not None:
        table = table.sub(table.pop(choose("base", str(base), table.columns)), axis=0)
        about = f"{about} Difference from {readable(base)}."
        label, look = "difference (points)", {"cmap": "RdBu", "norm": CenteredNorm()}
    figure = _heat(table, label, look)
    blank = " Grey: not measured." if table.isna().any(axis=None) else ""
    order = "From top to bottom by syntactic distance from English (URIEL)."
    told = f"{about}{_left_out(rows)} Means over {_seeds(means, condition)}."
    caption(figure, f"{told} {order}{blank}", rows)
    return figure


def _heat(table: pd.DataFrame, label: str, look: dict) -> Figure:
    high, wide = table.shape
    step, size, thick = (0.122, SMALL, 2.5) if high > 20 else (0.21, 8, 4)
    figure, [[ax]] = _panels(1, 1, 2 + high * step)
    figure.set_figwidth(min(PAGE, 2.4 + 0.6 * wide))
    mesh = ax.pcolormesh(table.to_numpy(), edgecolors="white", lw=0.4, **look)
    bar = figure.colorbar(mesh, label=label, location="bottom", aspect=45, pad=0.02)
    bar.outline.set_visible(False)
    if table.index[0] == "eng":
        ax.axhline(1, color="white", lw=thick)
    for (i, j), value in np.ndenumerate(table.to_numpy()):
        if high <= 20 and np.isfinite(value):
            light = np.dot(mesh.to_rgba(value)[:3], (0.299, 0.587, 0.114)) > 0.5  # to the eye
            look = {"color": BLACK if light else "white", "ha": "center", "va": "center"}
            ax.text(j + 0.5, i + 0.5, f"{value:.1f}".replace("-", "−"), fontsize=SMALL, **look)
    ax.set(xlim=(0, wide), ylim=(high, 0), facecolor=LIGHT)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.set_yticks(np.arange(high) + 0.5, map(name_of, table.index), fontsize=size)
    names = list(map(readable, table))
    turn = {"rotation": 35, "ha": "left", "rotation_mode": "anchor"}
    ax.set_xticks(np.arange(wide) + 0.5, names, **(turn if max(map(len, names)) > 9 else {}))
    return figure


def shots_curves(rows: pd.DataFrame, about: str, source: str = "eng") -> Figure:
    """Draw the mean accuracy of the languages other than English against K, one line a method.

    rows: accuracy rows of any number of methods, and those of "majority" for the reference line.
    Bars are 95 % intervals over seeds of the mean over languages. Raises InputError for two rows
    of one method, number of shots, language and seed.
    """
    cell = ["method", "shots", "language", "seed"]
    shown = _checked(rows[(rows.method != "majority") & (rows.language != source)], cell, "value")
    figure, [[ax]] = _panels(1, 1, 3.2)
    methods = sorted(shown.method.unique(), key=[*NAMES, *shown.method].index)
    for i, method in enumerate(methods):
        table = by_seed(shown[shown.method == method], ["shots"]).sort_values("shots")
        x = table.shots * 1.03 ** (i - (len(methods) - 1) / 2)  # side by side, not on one another
        error = [table["mean"] - table.low, table.high - table["mean"]]
        colour, marker = LOOKS[i % len(LOOKS)]
        line = {"marker": marker, "ls": "-" if i < len(LOOKS) else "--", "ms": 4, "lw": 1.2}
        ax.errorbar(x, table["mean"], error, color=colour, label=readable(method), **line)
    if len(base := rows[(rows.method == "majority") & (rows.language != source)]):
        ax.axhline(base.value.mean(), color=BLACK, ls=":", lw=1, label="majority label")
        ax.update_datalim([(x.iloc[0], base.value.mean())])  # a margin below it, too
        ax.autoscale_view()
    ax.set_xscale("log", base=2)
    shots = sorted(shown.shots.unique())
    ax.set_xticks(shots, [f"{k:g}" for k in shots])
    ax.minorticks_off()
    ax.set(xlabel="K, labelled examples per class (log scale)", ylabel="accuracy (%)")
    figure.legend(loc="outside right upper")
    seeds = _seeds(by_seed(shown, ["method", "shots"]), "method")
    mean = f"mean of {shown.language.nunique()} languages without English"
    bars = f"{seeds}; {mean}; bars: Student t interval (95 %) over seeds."
    caption(figure, f"{about}{_left_out(rows)} {bars}", rows)
    return figure


def rate_grid(rows: pd.DataFrame, about: str, metric: str = "dev_loss") -> Figure:
    """Draw a dev metric against learning rate, one line a condition, the best mean ringed.

    rows: metric "dev_loss" (nats, on a log scale) or "dev_accuracy" (%), with condition,
    learning_rate and seed; one dot a seed. More than LINES conditions get a panel each. A rate that
    lacks a seed (its loss was not finite) gets no ring. Raises InputError for no such rows, or for
    two of one condition, rate and seed.
    """
    cell = ["condition", "learning_rate", "seed"]
    sign, name = CURVES[choose("dev metric", metric, CURVES)]
    shown = _checked(pick(rows, metric=metric), cell, "value")
    looks = _looks(shown.condition.unique())
    name = name.replace(" (nats)", "\n(nats, log scale)")
    labels = ("learning rate (log scale)", f"English {name}")
    if len(looks) > LINES:
        figure, panels = _small(looks, 3, *labels, sharex=False)
    else:
        figure, [[ax]] = _panels(1, 1, 3.2)
        panels = dict.fromkeys(looks, ax)
        ax.set(xlabel=labels[0], ylabel=labels[1])
    best = {c: _rates(panels[c], shown[shown.condition == c], sign, looks[c]) for c in looks}
    for ax in dict.fromkeys(panels.values()):
        ax.set_xscale("log")
        if metric == "dev_loss":
            _loss_scale(ax, (1, 2, 5) if len(looks) > LINES else (1, 1.5, 2, 3, 5, 7))
    if len(looks) <= LINES:
        figure.legend(ncols=2, loc="outside upper left")
    seeds = _seeds(by_seed(shown, cell[:2]), "condition")
    told = f"{seeds}, a dot each; lines: means; ring: best mean. No test texts used."
    caption(figure, f"{about} {told}", rows)
    figure.draw_without_rendering()  # how many numbers there is room for depends on the layout
    for ax in dict.fromkeys(panels.values()):
        own = [c for c in looks if panels[c] is ax]
        tried = shown.learning_rate[shown.condition.isin(own)].unique()
        _rate_ticks(ax, tried, [best[c] for c in own])
    return figure


def _rates(ax: Axes, part: pd.DataFrame, sign: float, look: tuple[str, str, str]) -> float:
    """Draw one condition's seeds and means, the best one ringed; return its rate."""
    label, colour, marker = look
    table = by_seed(part, ["learning_rate"]).sort_values("learning_rate")
    seeds = {"ms": 3, "alpha": 0.7, "mec": "white", "mew": 0.4, "zorder": 3}  # above the means
    ax.plot(part.learning_rate, part.value, "o", color=colour, **seeds)
    line = {"marker": marker, "color": colour, "ms": 4, "lw": 1.2, "label": label}
    ax.plot(table.learning_rate, table["mean"], **line)
    best = table.loc[(sign * table["mean"]).where(table.n == table.n.max()).idxmax()]
    ax.plot(best.learning_rate, best["mean"], "o", mfc="none", color=colour, ms=11, mew=1.2)
    return best.learning_rate


def _loss_scale(ax: Axes, subs: tuple[float, ...]) -> None:
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())


def _text_width(ax: Axes, text: str, size: float | str) -> float:
    """How wide a text is drawn, in points; size: in points, or a name that matplotlib knows."""
    drawn = ax.text(0, 0, text, fontsize=size)
    width = drawn.get_window_extent().width * 72 / ax.figure.dpi
    drawn.remove()
    return width


def rate_text(rate: float) -> str:
    """Write a learning rate as one reads it: 2, 0.03 or 3e−5."""
    figures, power = f"{rate:e}".split("e")
    return f"{rate:g}" if rate >= 1e-3 else f"{float(figures):g}e\u2212{-int(power)}"


def _rate_ticks(ax: Axes, rates: Iterable[float], first: Iterable[float]) -> None:
    """Put a tick at each rate, with its number where there is room, before all at the `first`.

    The figure must have been laid out, so that its width is known.
    """
    rates, size = np.sort(rates), plt.rcParams["xtick.labelsize"]
    place = ax.transData.transform(np.column_stack([rates, np.ones(len(rates))]))[:, 0]
    place = dict(zip(rates, place * 72 / ax.figure.dpi, strict=True))  # points
    half = {r: _text_width(ax, rate_text(r), size) / 2 for r in rates}
    named: set[float] = set()
    for one in (*first, *rates):
        if all(abs(place[one] - place[r]) > half[one] + half[r] + 5 for r in named - {one}):
            named.add(one)
    ax.set_xticks(rates, [rate_text(r) if r in named else "" for r in rates])
    ax.minorticks_off()


def dev_curves(
    history: pd.DataFrame, about: str, metric: str = "dev_loss", guess: float | None = None
) -> Figure:
    """Draw a dev metric over the epochs, a panel a method, a line a draw; dotted: guessing.

    history: rows with method, train_language, seed, epoch, dev_loss (nats), dev_accuracy (0 to 1)
    and kept, whether the epoch is the one that is tested: it gets a ring. metric: dev_loss or
    dev_accuracy. Raises InputError for two rows of one draw and epoch.
    """
    draw = ["method", "train_language", "seed"]
    scale, name = CURVES[choose("dev metric", metric, CURVES)]
    shown = _checked(history, [*draw, "epoch"], metric, "kept")
    shown = shown.assign(y=abs(scale) * shown[metric])
    figure, panels = _small(shown.method.unique(), 3, "epoch", name)
    for method, ax in panels.items():
        colours = cycle(colour for colour, _ in LOOKS)
        drawn = shown[shown.method == method].groupby(draw)
        for colour, (_, part) in zip(colours, drawn, strict=False):
            ax.plot(part.epoch, part.y, ".-", color=colour, ms=4, lw=1, alpha=0.8)
            kept = part[part.kept]
            ax.plot(kept.epoch, kept.y, "o", mfc="none", color=colour, ms=8)
        if guess is not None:
            ax.axhline(guess, color=BLACK, ls=":", lw=1)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    told = "; dotted: guessing" * (guess is not None)
    caption(figure, f"{about} A line a draw; rings: the epoch kept{told}.", history)
    return figure


def ticket_layers(counts: pd.DataFrame, about: str) -> Figure:
    """Draw where tickets lie, one panel each: how much of each layer is active, by kind.

    counts: `Ticket.counts` of several tickets, with their names in `strategy`; layer 0 holds the
    embeddings. A bar is the part of its layer's weights that is active; the line is the ticket's
    part of all weights in scope, what chance gives. Raises InputError for a layer and kind twice in
    a ticket. Source: LTP, Figure 3, in parts of the ticket: the same where layers are of one size.
    """
    _checked(counts, ["strategy", "layer", "kind"], "active", "total")
    figure, panels = _small(counts.strategy.unique(), 3, "layer", "active (% of the layer)")
    every = sorted(counts.layer.unique())
    for name, ax in panels.items():
        _layers(ax, counts[counts.strategy == name])
        ax.set_xticks(every[:: 1 + len(every) // 9])
    (first, *_) = panels.values()
    figure.legend(*first.get_legend_handles_labels(), ncols=6, loc="outside upper left",
                  columnspacing=1, handlelength=1)  # fmt: skip
    caption(figure, f"{about}{_embeddings(counts)}", counts)
    return figure


def _embeddings(counts: pd.DataFrame) -> str:
    """Return the embeddings' part of the weights in scope and of each ticket, "" without any."""
    own = counts.assign(own=counts.kind == "embeddings").groupby(["strategy", "own"], sort=False)
    sums = own[["active", "total"]].sum().unstack("own", fill_value=0)
    if True not in sums.total or False not in sums.total:
        return ""
    active, total = (100 * sums[x][True] / sums[x].sum(axis=1) for x in ("active", "total"))
    each = ", ".join(f"{part:.0f} % ({readable(name)})" for name, part in active.items())
    return f" Embeddings are {total.iloc[0]:.0f} % of the weights, and of the tickets {each}."


def _layers(ax: Axes, part: pd.DataFrame) -> None:
    """Draw one ticket's bars, the kinds on top of one another, and the line of chance."""
    colours = dict(zip(KINDS, (PURPLE, BLUE, SKY, ORANGE, GREEN), strict=True))
    whole = part.groupby("layer").total.transform("sum")
    share = part.assign(share=100 * part.active / whole)
    bars = share.pivot(index="layer", columns="kind", values="share").fillna(0)
    below = np.zeros(len(bars))
    for kind in [kind for kind in KINDS if kind in bars]:
        ax.bar(bars.index, bars[kind], 0.8, below, color=colours[kind], label=kind)
        below = below + bars[kind].to_numpy()
    chance = 100 * part.active.sum() / part.total.sum()
    ax.axhline(chance, color=BLACK, lw=1, label="chance")
    ax.grid(visible=False, axis="x")


def effect_bars(table: pd.DataFrame, about: str) -> Figure:
    """Draw paired effects with their intervals around zero, in the table's order from the top.

    table: label, effect, low, high (points), group: a panel each, under one another, or side by
    side where most labels are shared (languages, say); perhaps base, what a group is compared with,
    languages and seeds, told in its title, or beside each label where they differ. Raises
    InputError for a label twice in one.
    """
    _checked(table, ["group", "label"], "effect", "low", "high")
    groups = table.groupby("group", sort=False)
    shared = list(table.label.unique())
    beside = 3 * len(shared) <= 2 * len(table)
    step, size = (0.122, SMALL) if len(shared) > 20 else (0.2, 8)
    high, wide = (1, len(groups)) if beside else (len(groups), 1)
    ratios = None if beside else groups.size()
    height = 0.9 + step * len(shared if beside else table) + 0.35 * high
    figure, axes = _panels(high, wide, height, height_ratios=ratios, sharex=True, sharey=beside)
    for ax, (group, part) in zip(axes.flat, groups, strict=True):
        labels = shared if beside else list(part.label)
        _intervals(ax, part, part.label.map(labels.index))
        ax.set_title(readable(group) + _told(part, beside), fontsize="medium", loc="left")
        names = map(readable, labels) if beside else map(str.__add__, *_apart(part))
        ax.set_yticks(range(len(labels)), names, fontsize=size)
        ax.set_ylim(len(labels) - 0.5, -0.5)
    for ax in axes[-1]:
        ax.set_xlabel("effect (points)")
        ax.spines["bottom"].set_visible(True)
        ax.locator_params(axis="x", nbins=4 if beside else 8)
    bars = f"Bars: 95 % interval of each effect alone, not corrected for all {len(table)}"
    caption(figure, f"{about} {bars}; grey where it holds 0.", table)
    return figure


def _told(part: pd.DataFrame, mixed: bool) -> str:
    """Return what a group is compared with and rests on, in brackets, "" if its table is silent.

    mixed: whether counts that differ are told, too.
    """
    told = [f"base: {readable(part.base.iloc[0])}"] if "base" in part else []
    counts = [name for name in ("languages", "seeds") if name in part]
    for name in [name for name in counts if mixed or part[name].nunique() == 1]:
        low, high = part[name].min(), part[name].max()
        number = f"{low}" if low == high else f"{low} to {high}"
        told.append(f"{number} {name if high > 1 else name.removesuffix('s')}")
    return f" ({'; '.join(told)})" if told else ""


def _apart(part: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return a group's labels, and what each rests on where the group's title cannot tell it."""
    mixed = [n for n in ("languages", "seeds") if n in part and part[n].nunique() > 1]
    counts = [", ".join(f"{n} {name}" for name, n in zip(mixed, row, strict=True))
              for row in part[mixed].itertuples(index=False)]  # fmt: skip
    return [*map(readable, part.label)], [f" ({one})" if one else "" for one in counts]


def _intervals(ax: Axes, part: pd.DataFrame, place: pd.Series) -> None:
    colours = np.where(part.low > 0, BLUE, np.where(part.high < 0, RED, GREY))
    ax.axvline(0, color=BLACK, lw=0.8)
    ax.hlines(place, part.low, part.high, color=colours, lw=1.2)
    ax.scatter(part.effect, place, s=12, c=colours, zorder=3)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)


def repository(start: Path | None = None) -> Path:
    """Return the nearest folder upwards that holds profiles/ and notebooks/."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "profiles").is_dir() and (folder / "notebooks").is_dir():
            return folder
    raise InputError(f"{start.name}/ is not inside a checkout with profiles/ and notebooks/")


def read_runs(profile: str, source: str, root: Path | None = None) -> dict[str, tuple]:
    """Return {run id: (rows, manifest)} of a profile's finished runs on one source of data.

    Raises InputError that names the command to make them if there is none.
    """
    folder = (root or repository()) / "papermill_runs" / profile
    found = {}
    for path in sorted(folder.glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        if manifest["rows"] and manifest["facts"]["data"]["source"] == source:
            rows = pd.read_json(path.with_name("results.jsonl"), lines=True)
            found[path.parent.name] = (rows, manifest)
    if not found:
        raise InputError(
            f"profile {profile!r} has no finished run on {source} data; "
            f"`make reproduce PROFILE={profile}` makes them"
        )
    return found
