"""Claims, page and ledger on simulated rows whose truth is known."""

import re
import zlib

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from xlcore import claims, statistics
from xlcore.claims import COLUMNS, judge, ledger, page
from xlcore.errors import InputError
from xlcore.languages import DISTANCES, distances, resolve
from xlcore.prompts import REPARAMETERIZATIONS

# Of 14 families; Twi has no genetic distance.
CODES = [
    "eng", "deu", "fra", "rus", "bul", "hin", "aka", "swh", "zul", "yor", "twi", "tam", "arb",
    "bam", "eus", "ind", "jpn", "kor", "quy", "tha", "tur", "vie", "zho",
]  # fmt: skip
BASE = dict(
    method="soft_prompt", shots=8, length=5, init="uniform", position="suffix", loss="vocabulary",
    reparameterization="none", hidden=0, selection="best_dev",
)  # fmt: skip
FAR = distances().syntactic
SEEDS = range(1, 7)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS", 500)


def made(
    study="frozen_transfer", backbone="gemma-3-270m", seeds=SEEDS, shift=0.0, slope=0.0, noise=1.0,
    run="run-a", codes=CODES, **switches,
):  # fmt: skip
    """Rows of one condition: accuracy falls with distance, seeds move all languages alike.

    shift is added to all but English, slope times the syntactic distance to each language.
    """
    rng = np.random.default_rng(zlib.crc32(repr((study, backbone, switches)).encode()))
    draws = {seed: np.random.default_rng(seed).normal() * 5 for seed in seeds}
    return pd.DataFrame(
        dict(
            study=study, task="topics", data="sib200", backbone=backbone, language=code, seed=seed,
            metric="accuracy", run=run, learning_rate=0.05,
            value=80 - 50 * FAR[code] + (code != "eng") * shift + slope * FAR[code] + draws[seed]
            + rng.normal() * noise, **{**BASE, **switches},
        )
        for seed in seeds
        for code in codes
    )  # fmt: skip


def majority(share=25.0):
    none = dict(method="majority", backbone="none", shots=0)
    rows = made(seeds=[0]).drop(columns=list(BASE)).assign(value=share)
    return rows.assign(**none)


def together(*parts):
    return pd.concat([*parts, majority()], ignore_index=True)


def freezing(**tuned):
    return together(made(), made(method="joint_tuning", run="run-b", **tuned))


def lines(rows, claim):
    table = judge(rows, BASE)
    return table[table.claim == claim].reset_index(drop=True)


def first(rows, claim):
    return lines(rows, claim).iloc[0]


# --- the table ----------------------------------------------------------------------------------


def test_columns_are_those_of_claims_csv():
    expected = "claim, backbone, data, languages, seeds, effect, low, high, test, p, verdict, run"
    expected += ", what, shots, low2, high2, notes"
    assert list(judge(freezing(), BASE).columns) == expected.split(", ") == list(COLUMNS)


def test_no_rows_at_all_leave_every_claim_not_run():
    table = judge(freezing().head(0), BASE)
    assert table.claim.tolist() == ["C1", "C2", "C3", "C4", "C5"]
    assert set(table.verdict) == {"not run"}


def test_a_missing_condition_is_not_run_and_named():
    found = first(together(made()), "C1")
    assert found.verdict == "not run"
    assert "needs method joint_tuning in study frozen_transfer" in found.notes


def test_rows_of_studies_without_a_switch_need_no_column_for_it():
    rows = by_length({1: 0, 5: 5}).drop(columns=["reparameterization", "hidden"])
    base = {k: v for k, v in BASE.items() if k in rows}
    table = judge(rows, base).set_index("claim")
    assert table.verdict["C4"] == "contradicted"
    assert table.verdict["C5"] == "not run"


def test_runs_behind_a_line_are_named():
    assert first(freezing(), "C1").run == "run-a, run-b"


def test_the_main_number_of_shots_comes_first():
    more = [made(shots=k, method=m) for k in (4, 32) for m in ("soft_prompt", "joint_tuning")]
    assert lines(pd.concat([freezing(), *more]), "C1").shots.tolist() == [8, 4, 32]


def test_other_metrics_do_not_count():
    rows = freezing()
    assert first(pd.concat([rows, rows.assign(metric="macro_f1", value=0)]), "C1").seeds == 6


def test_random_weights_are_no_evidence():
    tuned = made(backbone="tiny-bloom", method="joint_tuning", shift=-20)
    rows = together(made(backbone="tiny-bloom"), tuned)
    found = first(rows, "C1")
    assert found.verdict == "undecided"
    assert "random weights are no evidence" in found.notes


def test_a_second_learning_rate_in_a_condition_is_refused():
    rows = pd.concat([freezing(), made().assign(learning_rate=0.5)])
    with pytest.raises(InputError, match="differing in learning_rate"):
        judge(rows, BASE)


def test_a_language_that_only_one_condition_has_is_refused():
    rows = pd.concat([made(), made(method="joint_tuning", codes=CODES[:-1]), majority()])
    with pytest.raises(InputError, match="zho seed 1"):
        judge(rows, BASE)


def test_an_unknown_switch_is_refused():
    with pytest.raises(InputError, match="lenght"):
        judge(freezing(), {**BASE, "lenght": 5})


def test_a_base_without_shots_is_refused():
    with pytest.raises(InputError, match="shots"):
        judge(freezing(), {"method": "soft_prompt"})


def test_rows_without_their_run_are_refused():
    with pytest.raises(InputError, match="'run'"):
        judge(freezing().drop(columns="run"), BASE)


# --- C1 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "verdict"), [(-4, "supported"), (4, "contradicted"), (0, "undecided")]
)
def test_c1_says_which_condition_is_better(shift, verdict):
    assert first(freezing(shift=shift, noise=2), "C1").verdict == verdict


def test_c1_is_the_mean_of_paired_differences_without_english():
    rows = freezing(shift=-4)
    kept = rows[rows.language != "eng"]
    means = kept.groupby("method").value.mean()
    found = first(rows, "C1")
    assert found.effect == pytest.approx(means.soft_prompt - means.joint_tuning)
    assert found.languages == len(CODES) - 1


def test_a_condition_without_a_switch_is_a_partner_all_the_same():
    tuned = made(method="joint_tuning", shift=-4).assign(init=None)
    assert first(together(made(), tuned), "C1").verdict == "supported"


def test_seeds_without_a_partner_are_left_out_and_counted():
    rows = pd.concat([made(seeds=range(1, 11)), made(method="joint_tuning"), majority()])
    found = first(rows, "C1")
    assert found.seeds == 6
    assert "4 seeds without a partner left out" in found.notes


@pytest.mark.parametrize(("seeds", "verdict"), [([1], "not defined"), ([1, 2, 3], "undecided")])
def test_few_seeds_are_called_too_few(seeds, verdict):
    rows = pd.concat(
        [made(seeds=seeds), made(seeds=seeds, method="joint_tuning", shift=-20), majority()]
    )
    found = first(rows, "C1")
    assert found.verdict == verdict
    assert "fewer than 5 seeds decide nothing" in found.notes
    assert ("one seed has no interval" in found.notes) == (len(seeds) == 1)


# --- C2 -----------------------------------------------------------------------------------------


def test_c2_has_a_line_for_each_distance():
    found = lines(freezing(), "C2").what
    assert found.str.extract(r"with (\w+) distance$")[0].tolist() == list(DISTANCES)


def test_c2_finds_an_effect_that_grows_with_syntactic_distance():
    found = first(freezing(slope=-40), "C2")
    assert found.verdict == "supported"
    assert "syntactic" in found.what


def test_c2_needs_a_p_below_a_twentieth_after_correction(monkeypatch):
    measured = statistics.distance_correlations
    monkeypatch.setattr(
        statistics, "distance_correlations", lambda *given: measured(*given).assign(p=0.06)
    )
    found = lines(freezing(slope=-40), "C2")
    assert set(found.verdict[found.low.notna()]) == {"undecided"}


def test_c2_finds_the_opposite_too():
    assert first(freezing(slope=40), "C2").verdict == "contradicted"


def test_c2_is_undecided_where_nothing_depends_on_distance():
    found = lines(freezing(shift=-5), "C2")
    assert set(found.verdict[found.low.notna()]) == {"undecided"}


def test_a_correlation_without_an_interval_is_not_defined_and_says_why():
    """Outside the largest family every language is equally far from English genetically."""
    found = lines(freezing(), "C2").iloc[list(DISTANCES).index("genetic")]
    assert np.isfinite(found.effect) and np.isnan(found.low)
    assert found.verdict == "not defined"
    assert "of the resamples have no correlation" in found.notes


def test_c2_tells_pearson_with_its_interval_and_what_the_bootstrap_assumes():
    rows = freezing(slope=-40)
    case = next(case for case in claims.cases(rows, BASE) if case.claim == "C2")
    a = claims.freezing(case)[1].loc["syntactic"]
    notes = first(rows, "C2").notes
    assert f"Pearson {a.r:+.2f} ({a.r_low:+.2f} to {a.r_high:+.2f})" in notes
    assert "families are taken for independent draws" in notes
    assert f"{100 * a.absent:.0f} % of the resamples lack the largest (5 languages)" in notes


def test_the_second_interval_of_c2_holds_the_correlation_that_is_told():
    found = lines(freezing(slope=-2, noise=8), "C2")
    assert ((found.low2 < found.effect) & (found.effect < found.high2)).all()


def test_few_families_are_called_too_few():
    few = dict(codes=["eng", "deu", "fra", "swh", "zul", "jpn", "tur"])
    found = lines(together(made(**few), made(method="joint_tuning", **few)), "C2")
    assert set(found.verdict) == {"not defined"}
    assert found.notes.str.contains("fewer than 8 families give no interval").all()


def test_c2_leaves_a_language_without_a_distance_out_of_that_one():
    found = lines(freezing(), "C2")
    genetic = found.what.str.contains("genetic")
    assert set(found.languages[~genetic]) == {len(CODES) - 1}
    assert set(found.languages[genetic]) == {len(CODES) - 2}  # Twi


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ("gemma-3-270m", "XGLM's data share (a proxy) (no fertility)"),
        ("facebook/xglm-564M", "XGLM's data share (no fertility)"),
        ("bigscience/bloom-560m", "BLOOM's data share (no fertility)"),
    ],
)
def test_c2_says_whose_share_is_held_constant(backbone, words):
    rows = pd.concat([made(backbone=backbone), made(backbone=backbone, method="joint_tuning")])
    assert words in first(rows, "C2").notes


def test_a_language_that_the_list_lacks_ties_at_the_lowest_share():
    case = claims.Case("C2", "sib200", "bigscience/bloom-560m", made(), BASE, 25.0, pd.Series())
    shares = claims._controls(case, pd.Index(["deu", "tha", "fra"]))[0].share
    assert shares.tolist() == [0, 0, resolve("fra").bloom_share]


def fertility(backbone="gemma-3-270m"):
    values = np.random.default_rng(0).uniform(1, 4, len(CODES))
    about = dict(method="tokenizer", metric="fertility", backbone=backbone, shots=0)
    return made(seeds=[0]).drop(columns=list(BASE)).assign(**about, value=values)


def test_c2_controls_for_the_fertility_of_this_tokenizer():
    rows = pd.concat([freezing(), fertility(), fertility("facebook/xglm-564M")])
    found = first(rows, "C2")
    assert "a proxy) and fertility constant" in found.notes


def test_c2_needs_no_fertility_of_another_tokenizer():
    rows = pd.concat([freezing(), fertility("facebook/xglm-564M")])
    assert "a proxy) (no fertility) constant" in first(rows, "C2").notes


# --- C3 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "verdict"), [(-40, "supported"), (40, "contradicted")])
def test_c3_judges_slope_and_gap(slope, verdict):
    assert lines(freezing(slope=slope), "C3").verdict.tolist() == [verdict, verdict]


def test_c3_slope_is_in_points_from_nearest_to_farthest():
    """The slope of the seeds' mean differences is the mean of the seeds' slopes."""
    rows = freezing(slope=-40)
    mean = rows[rows.language != "eng"].groupby(["method", "language"]).value.mean().unstack(0)
    ranks = FAR[mean.index].round(9).rank()
    line = np.polyfit((ranks - 1) / (len(ranks) - 1), mean.soft_prompt - mean.joint_tuning, 1)
    assert first(rows, "C3").effect == pytest.approx(line[0])


def test_a_model_at_chance_is_not_called_flat():
    frozen, tuned = made(slope=50, shift=-55), made(method="joint_tuning")
    found = lines(together(frozen, tuned), "C3")
    assert found.effect[0] > 20
    assert found.verdict.tolist() == ["undecided", "contradicted"]
    assert "flat means nothing" in found.notes[0]


def test_a_tuned_model_at_chance_is_no_evidence_against_freezing():
    frozen, tuned = made(), made(method="joint_tuning", slope=50, shift=-55)
    found = lines(together(frozen, tuned), "C3")
    assert found.effect[0] < -20
    assert found.verdict[0] == "undecided"
    assert "tuned is not clearly above chance" in found.notes[0]


def test_c3_counts_what_lies_below_chance():
    frozen, tuned = made(), made(method="joint_tuning", shift=-100)
    told = first(together(frozen, tuned), "C3").notes
    assert "(0 % and 100 % of languages and seeds are below it)" in told


def test_c3_without_english_is_not_run():
    found = first(freezing()[lambda rows: rows.language != "eng"], "C3")
    assert found.verdict == "not run"
    assert "language eng" in found.notes


# --- C4 -----------------------------------------------------------------------------------------


def by_length(shifts):
    return together(*(made("prompt_length", shift=s, length=n) for n, s in shifts.items()))


@pytest.mark.parametrize(("sign", "verdict"), [(-1, "supported"), (1, "contradicted")])
def test_c4_is_the_trend_over_doublings(sign, verdict):
    found = first(by_length({n: sign * 2 * np.log2(n) for n in (1, 2, 5, 10, 50)}), "C4")
    assert found.verdict == verdict
    assert found.effect == pytest.approx(2 * sign, abs=0.2)


def test_c4_names_the_best_length():
    assert "best length 10 of 1 (" in first(by_length({1: 0, 10: 8, 50: -3}), "C4").notes


def test_c4_compares_lengths_over_their_common_seeds():
    rows = by_length({1: 0, 5: 4, 50: 8})
    missing = rows.drop(rows[(rows.length == 50) & (rows.seed > 3)].index)
    line = first(missing, "C4")
    kept = first(rows[(rows.seed <= 3) | (rows.study != "prompt_length")], "C4")
    assert (line.effect, line.seeds) == (kept.effect, 3)
    assert "3 seeds without a partner left out" in line.notes
    apart = rows[(rows.length == 50) == (rows.seed > 3)]
    with pytest.raises(InputError, match="no common seed"):
        first(apart, "C4")


def test_c4_tells_the_lengths_own_learning_rates():
    rows = by_length({1: 0, 10: 8})
    assert "learning rate" not in first(rows, "C4").notes
    rows.loc[rows.length == 1, "learning_rate"] = 0.5
    assert "of its own: 1 (0.5), 10 (0.05)" in first(rows, "C4").notes


def test_one_length_is_not_run():
    assert first(by_length({5: 0}), "C4").verdict == "not run"


# --- C5 -----------------------------------------------------------------------------------------


def reparameterized(backbone="gemma-3-270m", kind="mlp", shift=0.0, slope=0.0):
    about = dict(study="reparameterization", backbone=backbone)
    mlp = made(**about, reparameterization=kind, hidden=50, shift=shift, slope=slope)
    return pd.concat([made(**about), mlp])


@pytest.mark.parametrize(
    ("shift", "slope", "verdict"),
    [
        (-30, 80, "supported"),
        (25, 0, "contradicted"),
        (0, 0, "undecided"),
        (-10, 100, "undecided"),  # from 0 for German to 48 for Zulu: none is hurt
        (10, -100, "undecided"),
    ],
)
def test_c5_needs_languages_helped_and_languages_hurt(shift, slope, verdict):
    found = first(together(reparameterized(shift=shift, slope=slope)), "C5")
    assert found.verdict == verdict


def test_c5_spread_is_that_of_the_true_effects():
    found = first(together(reparameterized(shift=-30, slope=80)), "C5")
    assert found.low <= (80 * FAR[CODES[1:]]).std() <= found.high


def several(*kinds, **given):
    parts = [reparameterized(kind=kind, **given) for kind in kinds]
    return pd.concat([parts[0], *(p[p.reparameterization != "none"] for p in parts[1:])])


def test_spts_own_network_is_the_main_line():
    found = lines(together(several("lstm", "mlp", "residual_mlp")), "C5")
    named = found.what[:-1].str.extract(r"effect of (\w+) \(")[0]
    assert named.tolist() == ["mlp", "residual_mlp", "lstm"]


def test_every_network_has_its_place():
    assert ("none", *claims.NETWORKS) == REPARAMETERIZATIONS


def test_the_mean_effect_at_the_last_epoch_stands_beside_the_best_one():
    best, last = several("mlp", shift=4), several("mlp", shift=-7).assign(selection="last")
    rows = together(best, last)
    keys = rows[(rows.language != "eng") & (rows.selection == "last")]
    means = keys.pivot_table(index="seed", columns="reparameterization", values="value")
    test = stats.ttest_rel(means.mlp, means.none)
    ends = test.confidence_interval()
    told = f"mean effect at the last epoch {(means.mlp - means.none).mean():+.2f}"
    told += f" ({ends.low:+.2f} to {ends.high:+.2f})"
    assert f"; {told} and spread +0.00 (" in first(rows, "C5").notes
    assert first(rows, "C5").effect == first(together(best), "C5").effect


@pytest.mark.parametrize("kept", [["none"], ["mlp"]])
def test_a_last_epoch_without_its_partner_is_not_reported(kept):
    last = several("mlp").assign(selection="last")
    rows = together(several("mlp"), last[last.reparameterization.isin(kept)])
    assert "last epoch" not in first(rows, "C5").notes


def test_one_model_family_leaves_that_half_not_run():
    found = lines(together(reparameterized(shift=-30, slope=80)), "C5").iloc[-1]
    assert found.verdict == "not run"
    assert "needs a second pretrained model of another family" in found.notes


def test_two_families_whose_effects_differ_are_told_apart():
    rows = together(reparameterized(shift=6), reparameterized("bigscience/bloom-560m", shift=-6))
    found = lines(rows, "C5").iloc[-1]
    assert found.verdict == "supported"
    assert abs(found.effect) == pytest.approx(12, abs=1)
    assert found.backbone == "bigscience/bloom-560m minus gemma-3-270m"


@pytest.mark.parametrize("second", ["gemma-3-1b", "tiny-bloom"])
def test_the_same_family_or_random_weights_are_no_second_family(second):
    rows = together(reparameterized(shift=6), reparameterized(second, shift=-6))
    assert "needs a second pretrained model" in lines(rows, "C5").iloc[-1].notes


def test_several_reparameterizations_are_corrected_together():
    one, lstm = several("mlp", shift=-3, slope=8), several("lstm")
    both = lines(together(one, lstm[lstm.reparameterization == "lstm"]), "C5")
    alone = first(together(one), "C5")
    mlp = both[both.what.str.contains("effect of mlp")].iloc[0]
    assert mlp.p == pytest.approx(2 * alone.p)


# --- the page -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged():
    return judge(freezing(shift=-4), BASE)


@pytest.fixture(scope="module")
def text(judged):
    return page(judged, {"C1": "profile.svg"}, "make all", {"C1": "make one"})


def part(text, claim):
    """What the page says of one claim, block by block."""
    return text.split(f"## {claim}: ")[1].split("\n\n## ")[0].strip().split("\n\n")


def cells(text, claim):
    """The page's table of one claim."""
    rows = [row.strip("|").split("|") for row in part(text, claim)[-1].splitlines()]
    head, rule, *body = [[cell.strip() for cell in row] for row in rows]
    assert set(rule) == {"---"} and {len(row) for row in body} == {len(head)}
    return pd.DataFrame(body, columns=head)


@pytest.mark.parametrize("claim", ["C1", "C2", "C3", "C4", "C5"])
def test_each_claim_has_its_section(text, claim):
    assert f"\n## {claim}: " in text


def test_a_claim_reads_from_the_finding_to_the_details(text, judged):
    """The numbers are those of the table, rounded."""
    one = judged.iloc[0]
    held = "backbone gemma-3-270m, data sib200, K 8, languages 22, seeds 6"
    assert part(text, "C1")[:-1] == [
        "Freezing the model transfers better than tuning it with the prompt",
        "**Ours.** gemma-3-270m on sib200, K = 8: the effect of freezing on the mean of the other"
        f" languages is {one.effect:+.2f} points (95 % {one.low:+.2f} to {one.high:+.2f};"
        " 22 languages, 6 seeds).",
        "**Verdict.** gemma-3-270m: supported.",
        "Figure: [profile.svg](profile.svg)",
        "Command: `make one`",
        f"**Details.** {held}; t over seeds.",
    ]


def test_the_details_have_every_number_of_every_line(text, judged):
    table, shown = judged[judged.claim == "C2"], cells(text, "C2")
    assert shown.effect.tolist() == [f"{x:+.2f}" for x in table.effect]
    ends = [f"{a:+.2f} to {b:+.2f}" for a, b in zip(table.low2, table.high2, strict=True)]
    assert shown["second interval"].tolist() == ends
    assert shown.p.tolist() == [f"{x:.2g}" if x == x else "" for x in table.p]
    assert shown.verdict.tolist() == table.verdict.tolist()


def test_no_test_or_note_is_lost_and_none_is_repeated(text, judged):
    table, shown = judged[judged.claim == "C2"], cells(text, "C2")
    for line, notes in zip(table.itertuples(), shown.notes, strict=True):
        for note in [line.test, *line.notes.split("; ")]:
            assert (note in notes) != (note in part(text, "C2")[-2])
    assert table.test.iloc[0] in part(text, "C2")[-2]


def test_what_tells_lines_apart_is_a_column():
    more = [made(shots=32, method=m) for m in ("soft_prompt", "joint_tuning")]
    table = judge(pd.concat([freezing(), *more]), BASE)
    shown = page(table, {}, "make all")
    assert cells(shown, "C1").K.tolist() == ["8", "32"]
    assert "K 8" not in shown and "seeds 6" in part(shown, "C1")[-2]


def test_a_model_that_was_not_run_is_named_beside_one_that_was():
    table = judge(pd.concat([freezing(), made(backbone="gemma-3-1b")]), BASE)
    shown = page(table, {}, "make all")
    found = cells(shown, "C1").set_index("backbone")
    assert found.verdict["gemma-3-1b"] == "not run"
    assert found.effect["gemma-3-1b"] == "" and found.effect["gemma-3-270m"] != ""
    assert "needs method joint_tuning" in found.notes["gemma-3-1b"]


def test_without_the_main_number_of_shots_the_other_stands_in_the_details():
    both = [made(shots=32, method=m) for m in ("soft_prompt", "joint_tuning")]
    shown = page(judge(together(*both), BASE), {}, "make all")
    assert part(shown, "C1")[1].startswith("**Ours.** Not run: judging it needs")
    assert cells(shown, "C1").set_index("K").verdict.tolist() == ["not run", "undecided"]


def test_a_claim_without_a_command_of_its_own_needs_all_runs(text):
    assert text.count("Command: `make all`") == 4


def test_a_claim_not_run_says_what_it_needs(text):
    wanted = "**Ours.** Not run: judging it needs the base condition in study prompt_length."
    assert part(text, "C4")[1] == wanted
    assert not any("Details" in block for block in part(text, "C4"))


@pytest.mark.parametrize("codes", [["eng", "twi"], ["eng", "deu", "twi"], CODES])
@pytest.mark.parametrize("seeds", [[1], [1, 2]])
@pytest.mark.parametrize("constant", [False, True])
def test_the_smallest_study_is_undecided_and_reads_well(codes, seeds, constant):
    small = dict(codes=codes, seeds=seeds)
    rows = together(
        made(**small), made(method="joint_tuning", **small), made("prompt_length", **small),
        made("prompt_length", length=1, **small), made("reparameterization", **small),
        made("reparameterization", reparameterization="mlp", hidden=50, **small),
    )  # fmt: skip
    table = judge(rows.assign(value=25.0) if constant else rows, BASE)
    measured = table.seeds > 0
    assert set(table.verdict[measured & table.low.notna()]) <= {"undecided"}
    assert set(table.verdict[measured & table.low.isna()]) <= {"not defined"}
    assert set(table.verdict[~measured]) <= {"not run"}
    assert "nan" not in page(table, {}, "make")


def test_the_page_says_what_each_verdict_means(text, judged):
    told = set(re.findall(r"\*\*([a-z ]+)\*\*", text.split("## C1")[0]))
    assert set(judged.verdict) <= told == {
        "supported", "contradicted", "undecided", "not defined", "not run",
    }  # fmt: skip


def test_c5_shows_the_verdicts_of_both_its_halves():
    table = judge(together(reparameterized(shift=-30, slope=80)), BASE)
    shown = page(table, {}, "make").split("## C5")[1]
    assert "**Verdict.** gemma-3-270m: supported; gemma-3-270m, by family: not run." in shown


# --- the ledger ---------------------------------------------------------------------------------


def test_ledger_has_each_single_change_once_on_english_and_on_the_others():
    rows = together(
        made(), made(init="vocabulary"), made(position="prefix"),
        made(init="vocabulary", position="prefix"), made(reparameterization="mlp", hidden=50),
    )  # fmt: skip
    found = ledger(rows, BASE)
    expected = [("init", "vocabulary"), ("position", "prefix"),
                ("reparameterization", "mlp, hidden 50")]  # fmt: skip
    pairs = list(zip(found.switch, found.value, strict=True))
    assert pairs == [pair for pair in expected for _ in range(2)]
    assert found.on.tolist() == ["English", "others"] * 3


def test_ledger_measures_the_change_from_the_base():
    rows = together(made(), made(init="vocabulary", shift=7))
    found = ledger(rows, BASE).set_index("on")
    english = rows[(rows.language == "eng") & (rows.method != "majority")].pivot(
        index="seed", columns="init", values="value"
    )
    reference = stats.ttest_rel(english.vocabulary, english.uniform).confidence_interval()
    assert tuple(found.loc["English", ["low", "high"]]) == pytest.approx(tuple(reference))
    assert found.effect["others"] == pytest.approx(7, abs=0.5)


def test_ledger_corrects_p_for_all_its_lines_on_the_same_languages():
    rows = together(made(), made(init="vocabulary", shift=7), made(position="prefix", shift=1))
    for _, part in ledger(rows, BASE).groupby("on"):
        assert part.p_holm.tolist() == statistics.holm(part.p).tolist()


def test_ledger_hidden_size_is_a_switch_where_the_base_has_one():
    base = {**BASE, "reparameterization": "mlp", "hidden": 50}
    sizes = [made(reparameterization="mlp", hidden=h) for h in (50, 200)]
    found = ledger(together(*sizes, made()), base)
    assert found.switch.unique().tolist() == ["hidden", "reparameterization"]
    assert found.value.unique().tolist() == ["200", "none"]


def test_a_method_without_a_switch_does_not_differ_in_it():
    plain = made(method="fine_tuning").assign(length=np.nan, init=None)
    assert ledger(together(made(), plain), BASE).switch.unique().tolist() == ["method"]


def test_a_study_without_the_base_condition_is_named(capsys):
    found = ledger(together(made(), made("prompt_length", length=1)), BASE)
    assert found.empty
    assert "no base condition in prompt_length" in capsys.readouterr().out
