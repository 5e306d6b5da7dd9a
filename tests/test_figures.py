"""Figures are drawn from rows alone, say what they show, and are the same for the same rows."""

import itertools

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from xlcore import figures
from xlcore.errors import InputError


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


def test_transfer_profile_puts_near_languages_left(rows):
    ax = figures.transfer_profile(rows[rows.length == 5], "").axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["English", "German", "Swahili"]


def test_same_rows_make_the_same_bytes(rows, tmp_path):
    figures.style()
    for folder in ("one", "two"):
        figures.save(figures.length_curves(rows, "about"), tmp_path / folder, "curve")
    for name in ("curve.svg", "curve.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_pick_names_what_there_is(rows):
    with pytest.raises(InputError, match=r"length 7; there are: 1, 5, 50"):
        figures.pick(rows, length=7)


def test_no_finished_run_names_the_command(tmp_path):
    with pytest.raises(InputError, match="make reproduce PROFILE=pocket"):
        figures.read_runs("pocket", "embedded", tmp_path)
