"""The findings that the README tells, against the committed tables and run files they come from."""

from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
TABLES, RUNS = ROOT / "figures/full/sib200", ROOT / "papermill_runs/full"
NUMBERS, CLAIMS = pd.read_csv(TABLES / "numbers.csv"), pd.read_csv(TABLES / "claims.csv")
LEDGER = pd.read_csv(TABLES / "ledger.csv")
SEEDS = (1, 2, 3, 4, 5)


def mean(group: str = "others", **condition) -> float:
    """The mean of one condition in numbers.csv."""
    given = dict(selection="best_dev", init="uniform", loss="vocabulary") | condition
    chosen = NUMBERS[(NUMBERS[list(given)] == list(given.values())).all(axis=1)]
    (row,) = chosen[chosen.group == group].itertuples()
    return row.mean


def others(run: str) -> pd.Series:
    """Mean accuracy of a run's other languages, by seed."""
    rows = pd.read_json(RUNS / run / "results.jsonl", lines=True)
    rows = rows[(rows.metric == "accuracy") & (rows.language != "eng")]
    return rows[rows.selection == "best_dev"].groupby("seed").value.mean()


def freezing() -> list[str]:
    frozen = others("sib200-frozen-8")
    tuned = pd.concat([others(f"sib200-joint-8-{seed}") for seed in SEEDS])
    *first, last = (f"{x:+.1f}" for x in frozen.loc[tuned.index] - tuned)
    return [
        f"{frozen.mean():.1f} % over ten seeds against {tuned.mean():.1f} % over five",
        f"standard deviation {tuned.std():.1f} points",
        f"the five paired differences are {', '.join(first)} and {last}.",
    ]


def switches() -> list[str]:
    told = []
    behind, loses = "{} points behind", "loses {} points"
    for switch, value, text in (
        ("method", "lora", behind), ("loss", "label_words", loses), ("position", "prefix", loses)
    ):  # fmt: skip
        chosen = LEDGER[(LEDGER.switch == switch) & (LEDGER.value == value)]
        (row,) = chosen[chosen.on == "others"].itertuples()
        seeds = {5: "five", 10: "ten"}[row.seeds]
        low, high = -row.high, -row.low
        told.append(text.format(f"{-row.effect:.1f}"))
        told.append(f"(95 % {low:.1f} to {high:.1f}; seven languages, {seeds} seeds)")
    return told


def learning_rates() -> list[str]:
    at = [dict(study="transfer_by_rate", learning_rate=rate) for rate in (0.05, 0.1)]
    english, rest = ([mean(group, **rate) for rate in at] for group in ("eng", "others"))
    told = [f"{low:.1f} and {high:.1f} %" for low, high in (english, rest)]
    return [f"({told[0]}); the mean of seven other languages can ({told[1]},"]


def tickets() -> list[str]:
    lines = CLAIMS[(CLAIMS.claim == "C6") & (CLAIMS.shots == 64)]
    (line,) = lines[lines.what.str.contains("fine tuning")].itertuples()
    rows = pd.read_json(RUNS / "sib200-04_winning_tickets/results.jsonl", lines=True)
    again = rows[(rows.metric == "overlap") & (rows.strategy == "movement, seed 2")]
    (ratio,), (by_chance,) = again.value, 100 * again.active_ratio
    return [
        f"({line.effect:+.1f} points, 95 % {line.low:+.1f} to {line.high:+.1f}, five seeds)",
        f"shares {ratio * by_chance:.0f} % with the first, where chance gives {by_chance:.0f} %",
    ]


def in_language() -> list[str]:
    given = dict(data="americasnli", study="in_language_nli", selection="best_dev_accuracy")
    given |= dict(loss="label_words")
    full = mean(**given, method="fine_tuning", init="none")
    ltp = mean(**given, method="ltp", init="vocabulary")
    return [f"full tuning comes to {full:.1f} %, LTP to {ltp:.1f} %:"]


@pytest.mark.parametrize("finding", [freezing, switches, learning_rates, tickets, in_language])
def test_the_readme_tells_the_numbers_of_the_committed_results(finding):
    told = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert [text for text in finding() if text not in told] == []
