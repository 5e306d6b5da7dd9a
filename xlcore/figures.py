"""House style and the final figures, each drawn from result rows alone.

Last in the flow: rows -> figures; no number is typed here.
SPT sections 4 and 5: transfer per language, prompt length.
"""

import hashlib
import json
import textwrap
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xlcore.errors import InputError
from xlcore.languages import distances, resolve
from xlcore.statistics import by_seed

# Okabe and Ito's palette, safe for the colour-blind.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
STYLE = {
    "figure.dpi": 110, "savefig.dpi": 200, "figure.constrained_layout.use": True,
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#dddddd", "grid.linewidth": 0.6,
    "legend.frameon": False, "svg.hashsalt": "xlcore", "svg.fonttype": "none",
}  # fmt: skip
GREY = "#888888"


def style() -> None:
    """Use the house style for all figures from here on."""
    plt.rcParams.update(STYLE)


def rows_hash(rows: pd.DataFrame) -> str:
    """Return the sha256 of rows, whatever their order: what a figure was drawn from."""
    lines = sorted(json.dumps(row, sort_keys=True) for row in rows.to_dict("records"))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def caption(figure: Figure, text: str, rows: pd.DataFrame) -> None:
    """Write what stands behind a figure under it: data, model, n, interval, and the rows' hash."""
    whole = f"{text} Rows {rows_hash(rows)[:12]}."
    width = int(figure.get_figwidth() * 19)
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
    far = distances()[kind]
    return sorted(codes, key=lambda c: (far.get(c, float("nan")) != far.get(c), far.get(c, 9), c))


def transfer_profile(rows: pd.DataFrame, about: str, kind: str = "syntactic") -> Figure:
    """Draw accuracy per language, nearest to English on the left: seeds, means, 95 % intervals.

    rows: one method's accuracy rows, and those of method "majority" for the reference line.
    """
    shown = rows[rows.method != "majority"]
    codes = by_distance(shown.language.unique(), kind)
    place = {code: i for i, code in enumerate(codes)}
    table = by_seed(shown, ["language"])
    x = table.language.map(place)
    figure, ax = plt.subplots(figsize=(max(6.5, 0.34 * len(codes) + 1.5), 3.9))
    ax.plot(shown.language.map(place), shown.value, "o", color=SKY, ms=3.5, alpha=0.7, label="seed")
    error = [table["mean"] - table.low, table.high - table["mean"]]
    ax.errorbar(x, table["mean"], error, fmt="_", ms=11, color=BLUE, lw=1.4, label="mean, 95 %")
    _majority(ax, rows, place)
    ax.set_xticks(range(len(codes)), [name_of(c) for c in codes], rotation=45, ha="right")
    ax.set(ylabel="accuracy (%)", ylim=(0, 100), xlim=(-0.6, len(codes) - 0.4))
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=3, loc="upper right", bbox_to_anchor=(1, 1.13))
    order = f"Languages from left to right by {kind} distance from English (URIEL)."
    seeds = f"{table.n.min()} seeds, Student t interval over seeds."
    caption(figure, f"{about} {seeds} {order}", rows)
    return figure


def _majority(ax: Axes, rows: pd.DataFrame, place: dict[str, int]) -> None:
    base = rows[rows.method == "majority"].groupby("language").value.mean()
    base = base[base.index.isin(place)]
    if len(base):
        ax.plot(base.index.map(place), base, "_", color=GREY, ms=11, label="majority label")


def length_curves(rows: pd.DataFrame, about: str, source: str = "eng") -> Figure:
    """Draw accuracy against prompt length: English, the mean of the others, and each language.

    The band is the 95 % interval over seeds of the mean over languages.
    """
    rows = rows[rows.method != "majority"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.9), width_ratios=(1, 1.25))
    groups = (
        ("English", rows[rows.language == source], ORANGE),
        ("mean of the other languages", rows[rows.language != source], BLUE),
    )
    for label, part, colour in groups:
        table = by_seed(part, ["length"]).sort_values("length")
        left.plot(table.length, table["mean"], "o-", color=colour, label=label)
        left.fill_between(table.length, table.low, table.high, color=colour, alpha=0.18, lw=0)
    left.legend(ncols=2, loc="upper left", bbox_to_anchor=(-0.02, 1.12), columnspacing=1)
    _each_language(right, rows)
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_xticks(
            sorted(rows.length.unique()), [f"{n:g}" for n in sorted(rows.length.unique())]
        )
        ax.minorticks_off()
        ax.set(xlabel="prompt length (tokens, log scale)", ylim=(0, 100))
    left.set_ylabel("accuracy (%)")
    n = rows.seed.nunique()
    caption(figure, f"{about} {n} seeds; bands: Student t interval (95 %) over seeds.", rows)
    return figure


def _each_language(ax: Axes, rows: pd.DataFrame) -> None:
    """One thin line a language, named at its right end where there is room."""
    table = by_seed(rows, ["language", "length"]).sort_values("length")
    last = table.length.max()
    ends = table[table.length == last].sort_values("mean")
    floor = -100.0
    for code in ends.language:
        line = table[table.language == code]
        far = code != "eng"
        ax.plot(line.length, line["mean"], "-", color=BLUE if far else ORANGE, lw=1, alpha=0.75)
        floor = max(line["mean"].iloc[-1], floor + 4.2)
        if len(ends) <= 20:
            ax.annotate(name_of(code), (last, floor), (4, 0), textcoords="offset points",
                        fontsize=7.5, va="center", color="#333333")  # fmt: skip


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
