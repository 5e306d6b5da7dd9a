"""How sure a result is: paired effects with intervals, correlations with distance, verdicts.

Takes tidy rows, gives what the figures draw, the claims table holds and the text quotes.
SPT sections 4 and 5 report means; the tests, intervals and verdicts are ours.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from xlcore.errors import InputError

DRAWS = 10_000  # of a bootstrap, seeded: the same rows give the same interval
MIN_SEEDS = 5  # fewer never decide a claim
MIN_FAMILIES = 8  # a bootstrap of fewer clusters is too sure of itself
CORRELATED = (
    "n", "families", "largest", "absent", "rho", "low", "high", "undefined", "raw_p", "p",
    "seeds_low", "seeds_high", "r", "r_low", "r_high", "partial", "partial_low", "partial_high",
)  # fmt: skip
NAN = float("nan")


class Effect(NamedTuple):
    """An effect in the unit of its values with 95 % intervals, and p (two-sided) of its test.

    From `effect`: low, high, p are Student's t over seeds, each averaged over the languages. What
    was sampled is the seed (a draw and start values); the languages are the study's fixed
    population. low2 and high2 take the languages for sampled, too. All are NaN where the seeds show
    no spread.
    """

    value: float
    low: float
    high: float
    p: float
    low2: float
    high2: float
    languages: int
    seeds: int

    def verdict(self, sign: int) -> str:
        """Return "supported" if both intervals are on the side of `sign`, "contradicted" if beyond.

        Otherwise, for a NaN, or with fewer than MIN_SEEDS seeds, "undecided".
        """
        ends = sign * np.array([self.low, self.high, self.low2, self.high2])
        if self.seeds < MIN_SEEDS or not ((ends > 0).all() or (ends < 0).all()):
            return "undecided"
        return "supported" if (ends > 0).all() else "contradicted"


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % Student t interval (mean, low, high); one value has none.

    The values must be independent, so average over languages first and pass one value per seed.
    """
    values = np.asarray(values, dtype=float)
    if not len(values):
        raise InputError("no values to average")
    mean = float(values.mean())
    if len(values) == 1:
        return mean, float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return mean, float(mean - half), float(mean + half)


def by_seed(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return mean, low, high and n over seeds for each group of `keys`.

    Rows of one seed in one group (several languages, say) are averaged first: the seed, that is
    the draw together with the start values, is what was sampled.
    """
    seeds = rows.groupby([*keys, "seed"], sort=False).value.mean().reset_index()
    out = []
    for key, group in seeds.groupby(list(keys), sort=False):
        mean, low, high = mean_interval(group.value)
        out.append((*key, mean, low, high, len(group)))
    return pd.DataFrame(out, columns=[*keys, "mean", "low", "high", "n"])


def summary(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return `by_seed`'s mean, low and high of each group of `keys`, and what they are of.

    That is how many languages (averaged first) and seeds, and the runs (column `run`). Raises
    InputError as `grid` does, so that every seed of a mean has the same languages, each once.
    """
    out = []
    for key, group in rows.groupby(list(keys), sort=False, dropna=False):
        table, runs = grid(group), ", ".join(sorted(group.run.unique()))
        out.append((*key, *mean_interval(table.mean()), *table.shape, runs))
    return pd.DataFrame(out, columns=[*keys, "mean", "low", "high", "languages", "seeds", "run"])


def grid(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one condition's values as a table (languages, seeds).

    Raises InputError for no rows, a value that is not finite, a cell with two values or with none.
    """
    if rows.empty:
        raise InputError("no rows of this condition")
    cells = pd.MultiIndex.from_frame(rows[["language", "seed"]])
    if not np.isfinite(rows.value).all():
        raise InputError(f"no number at {_few(cells[~np.isfinite(rows.value)])}")
    if (twice := cells.duplicated(keep=False)).any():
        counts = rows[twice].groupby(["language", "seed"]).nunique(dropna=False).max()
        mixed = ", ".join(counts.index[counts > 1].drop("value", errors="ignore"))
        raise InputError(f"two values at {_few(cells[twice])}, differing in {mixed or 'nothing'}")
    if len(missing := pd.MultiIndex.from_product(cells.levels).difference(cells)):
        raise InputError(f"no value at {_few(missing)}")
    return rows.pivot(index="language", columns="seed", values="value")


def _few(cells: pd.Index) -> str:
    named = [f"{language} seed {seed}" for language, seed in cells.unique()]
    return ", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")


def paired(first: pd.DataFrame, second: pd.DataFrame, common_seeds: bool = False) -> pd.DataFrame:
    """Return the rows `first` minus `second` as a table, matched on language and seed.

    With `common_seeds`, seeds that only one of them has are left out; the table's columns are what
    is kept. Raises InputError as `grid` does, and for a missing partner or no common seed.
    """
    tables = [grid(first), grid(second)]
    if common_seeds:
        shared = tables[0].columns.intersection(tables[1].columns)
        if shared.empty:
            raise InputError("the two conditions have no common seed")
        tables = [table[shared] for table in tables]
    cells = [pd.MultiIndex.from_product(table.axes) for table in tables]
    if len(alone := cells[0].symmetric_difference(cells[1])):
        raise InputError(f"only one of the two conditions has {_few(alone)}")
    return tables[0] - tables[1]


def effect(table: pd.DataFrame, place: pd.Series | None = None) -> Effect:
    """Return the mean of paired differences (languages, seeds), or their slope, with intervals.

    With `place` (a number per language) it is the least-squares slope of the values on it. The
    crossed bootstrap draws seeds and languages with replacement (pigeonhole bootstrap, Owen 2007);
    see `_crossed` for its interval.
    """
    values = table.to_numpy(float)
    languages, seeds = values.shape
    x = None if place is None else place.loc[table.index].to_numpy(float)
    per_seed = (_contrast(np.ones((1, languages)), x) @ values)[0]
    value, low, high = mean_interval(per_seed)
    if seeds == 1 or np.ptp(per_seed) < 1e-9:
        return Effect(value, NAN, NAN, NAN, NAN, NAN, languages, seeds)
    rng = np.random.default_rng(0)
    drawn = _contrast(_counts(rng, languages), x) @ values * _counts(rng, seeds) / seeds
    p = float(stats.ttest_1samp(per_seed, 0).pvalue)
    ends = _crossed(value, drawn.sum(axis=1), min(languages, seeds))
    return Effect(value, low, high, p, *ends, languages, seeds)


def against(rows: pd.DataFrame, base: str, column: str = "method") -> pd.DataFrame:
    """Return the paired effects of one condition, `base`, minus each other one, by its name.

    rows: any number of conditions, named in `column`. Columns are those of `Effect`, its value as
    `effect`, and p is Holm's over the conditions. Raises InputError as `paired`.
    """
    first = rows[rows[column] == base]
    found = {
        name: effect(paired(first, part, common_seeds=True))
        for name, part in rows[rows[column] != base].groupby(column, sort=False)
    }
    table = pd.DataFrame.from_dict(found, orient="index", columns=list(Effect._fields))
    table = table.rename(columns={"value": "effect"}).rename_axis(column)
    return table.assign(p=holm(table.p))


def _counts(rng: np.random.Generator, n: int) -> np.ndarray:
    """How often each of n things comes in n draws with replacement: (DRAWS, n)."""
    return rng.multinomial(n, np.full(n, 1 / n), size=DRAWS).astype(float)


def _contrast(counts: np.ndarray, x: np.ndarray | None) -> np.ndarray:
    """Weights of the languages, (draws, languages), that make their mean or their slope on x."""
    total = counts.sum(axis=1, keepdims=True)
    if x is None:
        return counts / total
    centred = counts * (x - (counts @ x)[:, None] / total)
    spread = (centred @ x)[:, None]
    return centred / np.where(spread > 1e-9, spread, NAN)


def _middle(drawn: np.ndarray) -> tuple[float, float]:
    """The middle 95 %; NaN where over 5 % of the draws leave the statistic undefined."""
    if np.isnan(drawn).mean() > 0.05:
        return NAN, NAN
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _crossed(value: float, drawn: np.ndarray, fewest: int) -> tuple[float, float]:
    """95 % interval around a value from its bootstrap; NaN where `_middle` is, or for one unit.

    fewest: units of the less numerous kind. Drawn from n of them, a spread comes out too small by
    (n - 1) / n in its square, and Student's t knows how little n units tell. The middle of the
    draws themselves left out 0 in 17 to 20 % of simulations with five seeds and no effect.
    """
    if fewest < 2 or np.isnan(_middle(drawn)).any():
        return NAN, NAN
    half = stats.t.ppf(0.975, fewest - 1) * np.nanstd(drawn) * np.sqrt(fewest / (fewest - 1))
    return float(value - half), float(value + half)


def holm(p: Sequence[float]) -> np.ndarray:
    """Return Holm's adjusted p values; NaN stays NaN, but counts as a test (Holm 1979)."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)  # NaN last
    out = np.empty(len(p))
    out[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(out, 1)


def distance_correlations(
    effects: pd.DataFrame, distances: pd.DataFrame, families: pd.Series, controls: pd.DataFrame
) -> pd.DataFrame:
    """Correlate effects (languages, seeds), averaged over seeds, with each kind of distance.

    Per kind: n languages, families, how many languages the largest family has; rho (Spearman), its
    p (raw_p, and Holm's over the kinds) and jackknife interval over seeds (seeds_low, seeds_high);
    r (Pearson); partial, which is rho with the ranks of the columns of `controls` held constant.
    low, high, raw_p and the others' _low, _high are from a bootstrap of whole families, whose
    languages are not independent (Galton's problem). It takes the families for independent draws
    from one population, whatever holds within them, and `absent` is the share of the draws that
    lack the largest. On SPT's languages (15 families, the largest of 18 out of 51) effects that
    have nothing to do with distance came below p = 0.05 in 4 to 8 % of simulations. The ends are
    NaN below MIN_FAMILIES, and where over 5 % of the draws have no spread (`undefined` is their
    share), as when a distance differs in one family only; all but n and families are NaN below
    three languages. Raises InputError for a language without a control.
    """
    if lack := set(effects.index) - set(controls.dropna().index):
        raise InputError(f"no value to control for: {', '.join(sorted(lack))}")
    found = {}
    for kind in distances:
        # rounded: 1 - cosine of orthogonal vectors differs in the last digit, which breaks ties
        x = distances[kind].reindex(effects.index).round(9).dropna()
        y, codes = effects.loc[x.index], pd.factorize(families.loc[x.index])[0]
        found[kind] = {"n": len(x), "families": len(set(codes))}
        if len(x) > 2:
            found[kind] |= _correlated(x.to_numpy(), y.to_numpy(), codes, controls.loc[x.index])
    table = pd.DataFrame.from_dict(found, orient="index").rename_axis("distance")
    table = table.reindex(columns=list(CORRELATED))
    return table.assign(p=holm(table.raw_p))


def _correlated(x: np.ndarray, y: np.ndarray, codes: np.ndarray, controls: pd.DataFrame) -> dict:
    families, once, out = codes.max() + 1, np.ones((1, len(x))), {}
    counts = _counts(np.random.default_rng(0), families)[:, codes]
    pair = np.column_stack([x, y.mean(axis=1)])
    for name, columns in (("rho", pair), ("r", pair), ("partial", np.hstack([pair, controls]))):
        drawn = correlate(columns, counts, ranked=name != "r")
        low, high = _middle(drawn) if families >= MIN_FAMILIES else (NAN, NAN)
        out[name] = correlate(columns, once, ranked=name != "r")[0]
        before = "" if name == "rho" else f"{name}_"
        out |= {f"{before}low": low, f"{before}high": high}
        if name == "rho":
            out["undefined"] = np.isnan(drawn).mean()
            drawn = drawn[~np.isnan(drawn)]
            p = 2 * (1 + min((drawn <= 0).sum(), (drawn >= 0).sum())) / (1 + len(drawn))
            out["raw_p"] = min(1.0, p) if low == low else NAN
    largest = np.bincount(codes).argmax()
    out["absent"] = (counts[:, codes == largest] == 0).all(axis=1).mean()
    out["largest"] = (codes == largest).sum()
    return out | dict(zip(("seeds_low", "seeds_high"), _over_seeds(x, y), strict=True))


def _over_seeds(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """95 % jackknife interval over seeds (columns) of Spearman's rho of x and y's mean over them.

    The seeds' own rhos would speak of something else: one seed's noise pulls its rho toward 0.
    """
    seeds, once = y.shape[1], np.ones((1, len(x)))
    if seeds == 1:
        return NAN, NAN
    means = [y, *(np.delete(y, seed, axis=1) for seed in range(seeds))]
    pairs = [np.column_stack([x, one.mean(axis=1)]) for one in means]
    rho, *without = [correlate(pair, once, ranked=True)[0] for pair in pairs]
    half = stats.t.ppf(0.975, seeds - 1) * np.sqrt(seeds - 1) * np.std(without)
    return max(-1.0, rho - half), min(1.0, rho + half)


def correlate(columns: np.ndarray, counts: np.ndarray, ranked: bool) -> np.ndarray:
    """Return the correlation of the first two columns, the others held constant, in each draw.

    columns (n, 2 or more); counts (draws, n) says how often a draw holds each line. With `ranked`
    the columns are ranked within each draw, ties sharing their mean rank. NaN without spread.
    """
    values = np.broadcast_to(columns, (len(counts), *columns.shape))
    if ranked:
        below = (columns[:, None] < columns) + (columns[:, None] == columns) / 2
        values = np.tensordot(counts, below, axes=1)  # (draws, n, columns)
    weights = counts[:, :, None]
    centred = values - (weights * values).sum(axis=1, keepdims=True) / weights.sum(1, keepdims=True)
    cov = (weights * centred).swapaxes(1, 2) @ centred
    a, b = cov[:, :2, :2], cov[:, :2, 2:]
    rest = a - b @ np.linalg.pinv(cov[:, 2:, 2:], hermitian=True) @ b.swapaxes(1, 2)
    spread = np.sqrt(np.maximum(rest[:, 0, 0] * rest[:, 1, 1], 0))
    enough = 1e-9 + 1e-6 * np.sqrt(a[:, 0, 0] * a[:, 1, 1])  # beyond rounding
    return rest[:, 0, 1] / np.where(spread > enough, spread, NAN)


def relative_gap(table: pd.DataFrame, chance: float, source: str = "eng") -> pd.DataFrame:
    """Return how far each language lies behind the source, in % of what the source has over chance.

    0 is as good as the source, 100 is chance. NaN for a seed whose source is not above chance.
    """
    above = (table.loc[source] - chance).where(table.loc[source] > chance)
    return 100 * (table.loc[source] - table.drop(index=source)) / above


def flatness(
    first: pd.DataFrame, second: pd.DataFrame, distance: pd.Series, chance: float
) -> tuple[Effect, Effect]:
    """Return by how much the first table's transfer profile is flatter than the second's.

    Tables (languages with English, seeds). First the slope of accuracy on the rank of `distance`,
    first minus second: points from the nearest language to the farthest, above 0 if flatter. It
    takes every language, and ranks, as a unit of distance has no meaning of its own; but a model at
    chance everywhere is flat, too. So second the mean `relative_gap`, first minus second, below 0
    if flatter: a part of the source's gain, which a model at chance does not have.
    """
    ranks = distance.reindex(first.index).drop("eng").round(9).rank().dropna()
    place = (ranks - 1) / max(1, len(ranks) - 1)
    slope = effect((first - second).loc[place.index], place)
    return slope, effect(relative_gap(first, chance) - relative_gap(second, chance))


def length_slopes(tables: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """Return each language's and seed's slope on log2 of the prompt length (points a doubling).

    tables (languages, seeds) by length. Raises InputError for one length, or unequal tables.
    """
    x = np.log2(list(tables)) - np.log2(list(tables)).mean()
    slopes = sum(w * t for w, t in zip(x / max(x @ x, 1e-9), tables.values(), strict=True))
    if len(tables) < 2 or slopes.isna().any(axis=None):
        raise InputError(f"lengths {list(tables)}: allowed are two or more with the same cells")
    return slopes


def heterogeneity(differences: pd.DataFrame) -> tuple[Effect, str, int, int]:
    """Test whether paired differences (languages, seeds) differ between languages beyond noise.

    Returns the standard deviation of the languages' true effects, the F ratio in words, and how
    many languages are helped and hurt by their own t tests over seeds (Holm). The variance is that
    of the two-way layout without replication, each seed's mean taken off: the languages' mean
    square less the residual one, over the seeds. It equals the mean covariance of two different
    seeds over the languages, so its interval and p are a jackknife over seeds (low2, high2: NaN).
    The textbook F test would take the noise of related languages for independent.
    """
    values = differences.to_numpy(float)
    languages, seeds = values.shape
    found = Effect(NAN, NAN, NAN, NAN, NAN, NAN, languages, seeds)
    if languages < 2 or seeds < 3:
        return found, "F not defined", 0, 0
    shared = np.cov(values.T)
    noise = shared.trace() / seeds  # languages' own and residual variance together
    np.fill_diagonal(shared, 0)
    variance = shared.sum() / seeds / (seeds - 1)
    without = (shared.sum() - 2 * shared.sum(axis=0)) / (seeds - 1) / (seeds - 2)
    over_seeds = effect(pd.DataFrame([seeds * variance - (seeds - 1) * without]))
    sd, low, high = np.sqrt(np.maximum(over_seeds[:3], 0))
    ratio = 1 + seeds * variance / max(noise - variance, 1e-9)
    test = f"F({languages - 1}, {(languages - 1) * (seeds - 1)}) = {ratio:.2f}"
    return found._replace(value=sd, low=low, high=high, p=over_seeds.p), test, *_signs(values)


def _signs(values: np.ndarray) -> tuple[int, int]:
    """How many languages (lines) lie above and below 0 by t tests over seeds, Holm."""
    p = np.full(len(values), NAN)
    spread = np.ptp(values, axis=1) > 1e-9
    p[spread] = stats.ttest_1samp(values[spread], 0, axis=1).pvalue
    sure = values.mean(axis=1)[holm(p) < 0.05]
    return int((sure > 0).sum()), int((sure < 0).sum())
