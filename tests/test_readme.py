"""The findings that the README tells, against the committed tables and run files they come from."""

from pathlib import Path

import pandas as pd
import pytest

from xlcore.statistics import mean_interval

ROOT = Path(__file__).parents[1]
TABLES, RUNS = ROOT / "figures/full/sib200", ROOT / "papermill_runs/full"
NUMBERS, CLAIMS = pd.read_csv(TABLES / "numbers.csv"), pd.read_csv(TABLES / "claims.csv")
LEDGER = pd.read_csv(TABLES / "ledger.csv")


def mean(group: str = "others", **condition) -> float:
    """The mean of one condition in numbers.csv."""
    given = dict(selection="best_dev", init="uniform", loss="vocabulary") | condition
    chosen = NUMBERS[(NUMBERS[list(given)] == list(given.values())).all(axis=1)]
    (row,) = chosen[chosen.group == group].itertuples()
    return row.mean


def others(run: str, languages: list[str] | None = None, **given) -> pd.Series:
    """Mean accuracy of a run's other languages (perhaps of some), by seed."""
    rows = pd.read_json(RUNS / run / "results.jsonl", lines=True)
    rows = rows[(rows.metric == "accuracy") & (rows.language != "eng")]
    rows = rows[(rows[list(given)] == list(given.values())).all(axis=1)]
    rows = rows[rows.language.isin(languages or rows.language)]
    return rows[rows.selection == "best_dev"].groupby("seed").value.mean()


COUNTS = {5: "five", 7: "seven", 10: "ten"}


def claim(name: str, shots: int = 8, **given) -> pd.Series:
    """The main line of a claim in claims.csv."""
    lines = CLAIMS[(CLAIMS.claim == name) & (CLAIMS.shots == shots)]
    return lines[(lines[list(given)] == list(given.values())).all(axis=1)].iloc[0]


def sure(line: pd.Series, digits: int = 1) -> str:
    """An effect with its interval, as the README writes it."""
    ends = f"{line.low:+.{digits}f} to {line.high:+.{digits}f}"
    return f"{line.effect:+.{digits}f} points (95 % {ends}"


def change(switch: str, value: str, study: str = "frozen_transfer") -> pd.Series:
    """What leaving the base condition in one switch does to the other languages, in ledger.csv."""
    chosen = LEDGER[(LEDGER.switch == switch) & (LEDGER.value == value) & (LEDGER.on == "others")]
    return chosen[chosen.study == study].iloc[0]


def freezing() -> list[str]:
    line, more = claim("C1"), claim("C1", shots=32)
    frozen = others("sib200-frozen-8")
    tuned = pd.concat([others(f"sib200-joint-8-{seed}") for seed in range(1, 6)])
    assert line.effect == pytest.approx((frozen - tuned).mean(), abs=1e-4)
    return [
        f"{sure(line)}; {line.languages} languages, {COUNTS[line.seeds]} seeds)",
        f"{sure(more)}; {COUNTS[more.seeds]} seeds)",
        f"standard deviation {tuned.std():.1f} points, of frozen ones {frozen.std():.1f}",
    ]


def baselines() -> list[str]:
    told = []
    for value, name in (("lora", "LoRA"), ("fine_tuning", "all weights without a prompt")):
        line = change("method", value)
        told.append(f"{name} {sure(line)})")
    return [*told, f"prefix tuning {sure(change('method', 'prefix_tuning'))})"]


def distance() -> list[str]:
    lines = CLAIMS[(CLAIMS.claim == "C2") & (CLAIMS.shots == 8)]
    return [f"between {lines.effect.min():+.2f} and {lines.effect.max():+.2f}"]


def length() -> list[str]:
    line = claim("C4")
    return [f"{line.effect:+.2f} points (95 % {line.low:+.2f} to {line.high:+.2f})"]


def networks() -> list[str]:
    return [
        f"{name} {sure(change('reparameterization', f'{kind}, hidden {h}', 'reparameterization'))}"
        for kind, name, h in (
            ("mlp", "the paper's MLP", 200), ("lstm", "an LSTM", 200),
            ("residual_mlp", "a residual MLP", 200),
        )
    ]  # fmt: skip


def switches() -> list[str]:
    position, loss = change("position", "prefix"), change("loss", "label_words")
    return [sure(position), sure(loss)]


def survivors() -> list[str]:
    """Which of the ledger's lines on the other languages hold after Holm's correction."""
    lines = LEDGER[LEDGER.on == "others"]
    return [f"{(lines.p_holm < 0.05).sum()} of the {len(lines)} lines"]


def rounding() -> list[str]:
    frozen = others("sib200-frozen-8", ["eng", "deu", "fra", "zho", "arb", "hin", "tur", "swh"])
    beside = pd.concat(
        others(run, method="soft_prompt", reparameterization="none")
        for run in ("sib200-03_reparameterization", "sib200-networks-more-seeds")
    )
    return [f"by {(beside - frozen).std():.1f} points (standard deviation, ten seeds)"]


def learning_rates() -> list[str]:
    found = [others(f"sib200-rate-{rate}") for rate in (0.05, 0.1)]
    mean, low, high = mean_interval(found[1] - found[0])
    return [f"{mean:+.1f} points (95 % {low:+.1f} to {high:+.1f})"]


def tickets() -> list[str]:
    lines = CLAIMS[(CLAIMS.claim == "C6") & (CLAIMS.shots == 64)]
    (line,) = lines[lines.what.str.contains("fine tuning")].itertuples()
    (random,) = lines[lines.what.str.contains("random ticket")].itertuples()
    rows = pd.read_json(RUNS / "sib200-04_winning_tickets/results.jsonl", lines=True)
    again = rows[(rows.metric == "overlap") & (rows.strategy == "movement, seed 2")]
    (ratio,), (by_chance,) = again.value, 100 * again.active_ratio
    return [
        f"({line.effect:+.1f} points, 95 % {line.low:+.1f} to {line.high:+.1f}, five seeds)",
        f"({random.effect:+.1f}, 95 % {random.low:+.1f} to {random.high:+.1f})",
        f"shares {ratio * by_chance:.0f} % with the first, where chance gives {by_chance:.0f} %",
    ]


def in_language() -> list[str]:
    given = dict(data="americasnli", study="in_language_nli", selection="best_dev_accuracy")
    given |= dict(loss="label_words")
    full = mean(**given, method="fine_tuning", init="none")
    ltp = mean(**given, method="ltp", init="vocabulary")
    return [f"full tuning comes to {full:.1f} %, LTP to {ltp:.1f} %:"]


FINDINGS = (
    freezing, baselines, distance, length, networks, switches, survivors, rounding, learning_rates,
    tickets, in_language,
)  # fmt: skip


@pytest.mark.parametrize("finding", FINDINGS)
def test_the_readme_tells_the_numbers_of_the_committed_results(finding):
    told = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert [text for text in finding() if text not in told] == []
