"""How sure a mean is: intervals over seeds.

Takes tidy rows, gives what the figures draw and the text quotes.
No paper section: both papers report means; the intervals are ours.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from xlcore.errors import InputError


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Return the mean and its Student t interval (mean, low, high); one value has no interval.

    The values must be independent, so average over languages first and pass one value per seed.
    """
    values = np.asarray(values, dtype=float)
    if not len(values):
        raise InputError("no values to average")
    mean = float(values.mean())
    if len(values) == 1:
        return mean, float("nan"), float("nan")
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values)
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
