"""Intervals against formulas written out by hand."""

import math

import pandas as pd
import pytest

from xlcore.errors import InputError
from xlcore.statistics import by_seed, mean_interval


def test_interval_of_three_values_is_students():
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 * 1.0 / math.sqrt(3)  # t table, 2 degrees of freedom, 97.5 %
    assert (mean, low, high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))


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
    table = by_seed(rows, ["length"])
    assert table.n.tolist() == [2]  # two seeds, not four numbers
    half = 12.706204736432095 * 30 / math.sqrt(2) / math.sqrt(2)  # means 20 and 50, 1 degree
    assert table[["mean", "low", "high"]].iloc[0].tolist() == pytest.approx(
        [35, 35 - half, 35 + half]
    )
