"""The claims C1 to C5 judged from result rows, the page that says so, and the deviation ledger.

Last in the flow, beside the figures: rows -> statistics -> claims.csv and claims.md.
SPT sections 4 and 5; a claim without its rows is "not run", and a null result is a result.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from types import MappingProxyType

import pandas as pd

from xlcore import statistics as st
from xlcore.errors import InputError, choose
from xlcore.languages import coverage, distances, resolve
from xlcore.results import REQUIRED
from xlcore.statistics import NAN, Effect

COLUMNS = (
    "claim", "backbone", "data", "languages", "seeds", "effect", "low", "high", "test", "p",
    "verdict", "run",
)  # fmt: skip
CLAIMS = {  # what SPT says, and the study whose rows judge it
    "C1": ("Freezing the model transfers better than tuning it with the prompt", "frozen_transfer"),
    "C2": ("The gain from freezing grows with distance from English", "frozen_transfer"),
    "C3": ("Freezing reduces the bias toward languages similar to English", "frozen_transfer"),
    "C4": ("Shorter prompts transfer better", "prompt_length"),
    "C5": (
        "Reparameterization helps some languages and hurts others, and the model family matters",
        "reparameterization",
    ),
}
BASE = dict(  # what SPT does, from which one switch at a time is changed; shots and length aside
    method="soft_prompt", init="uniform", position="suffix", loss="vocabulary",
    reparameterization="none", hidden=None, selection="best_dev",
)  # fmt: skip
KINDS = ("mlp", "residual_mlp", "lstm")  # of reparameterization, the paper's first
FAMILIES = "difference between model families"
NOTHING = Effect(NAN, NAN, NAN, NAN, NAN, NAN, 0, 0)


class Missing(LookupError):
    """Rows that a claim needs and that have not been run."""


@dataclass(frozen=True)
class Case:
    """What a claim is judged on: the rows of one study, data set, backbone and number of shots."""

    claim: str
    data: str
    backbone: str
    rows: pd.DataFrame
    base: Mapping[str, object]
    chance: float  # accuracy of the majority label, %; NaN if that was not run
    fertility: pd.Series  # tokens per English token by language; empty if that was not run

    def pick(self, **changes: object) -> pd.DataFrame:
        """Return the rows of the base condition with these changes; Missing if there are none."""
        found = matching(self.rows, {**self.base, **changes})
        if found.empty:
            wanted = [f"{k} {v}" for k, v in changes.items() if v] or ["the base condition"]
            raise Missing(", ".join(wanted))
        return found

    def line(self, what: str, found: Effect, test: str, verdict: str, *rows: pd.DataFrame) -> dict:
        """Return a line of the table; random weights decide nothing."""
        behind = pd.concat([self.rows[:0], *rows])
        if found.low2 == found.low2:
            test += f"; second interval {_span(found.low2, found.high2)}"
        if left := behind.seed.nunique() - found.seeds:
            test += f"; {left} seeds without a partner left out"
        if 0 < found.seeds < st.MIN_SEEDS:
            test += f"; fewer than {st.MIN_SEEDS} seeds decide nothing"
        if "tiny-" in self.backbone and verdict != "not run":
            test, verdict = f"{test}; random weights are no evidence", "undecided"
        return dict(
            claim=self.claim, backbone=self.backbone, data=self.data, languages=found.languages,
            seeds=found.seeds, effect=found.value, low=found.low, high=found.high,
            test=f"{what}; K = {self.base['shots']}; {test}", p=found.p, verdict=verdict,
            run=", ".join(sorted(behind.run.unique())),
        )  # fmt: skip


def matching(rows: pd.DataFrame, wanted: Mapping[str, object]) -> pd.DataFrame:
    """Return the rows with these values; None, or a column that a row lacks, is no difference."""
    for switch, value in wanted.items():
        if value is not None:
            rows = rows[rows[switch].isna() | (rows[switch] == value)]
    return rows


def _number(value: float) -> str:
    return "not defined" if pd.isna(value) else f"{value:+.2f}"


def _span(low: float, high: float) -> str:
    return _number(low) if pd.isna(low) else f"{_number(low)} to {_number(high)}"


def _others(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows.language != "eng"]


def _difference(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    return st.paired(_others(first), _others(second), common_seeds=True)


def freezing(case: Case) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Return the effects of freezing, how they go with each distance, what was held constant.

    Effects are paired differences (languages but English, seeds) of the base condition and joint
    tuning, in points; for the correlations see `statistics.distance_correlations`. Raises Missing
    for a side that was not run.
    """
    effects = _difference(case.pick(), case.pick(method="joint_tuning"))
    families = pd.Series({code: resolve(code).family for code in effects.index})
    controls, held = _controls(case, effects.index)
    return effects, st.distance_correlations(effects, distances(), families, controls), held


def _c1(case: Case) -> Iterator[dict]:
    rows = case.pick(), case.pick(method="joint_tuning")
    found = st.effect(_difference(*rows))
    what = "effect of freezing on the mean of the other languages, in points"
    yield case.line(what, found, "t over seeds", found.verdict(1), *rows)


def _c2(case: Case) -> Iterator[dict]:
    rows = case.pick(), case.pick(method="joint_tuning")
    effects, table, held = freezing(case)
    observed = (coverage().reindex(effects.index) >= 0.5).sum()
    for kind, a in table.iterrows():
        seeds = effects.shape[1]
        rho = Effect(a.rho, a.low, a.high, a.p, a.seeds_low, a.seeds_high, int(a.n), seeds)
        test = f"Spearman, {a.families:.0f} families resampled, Holm over {len(table)}; Pearson"
        test += f" {_number(a.r)} ({_span(a.r_low, a.r_high)})"
        test += f"; with {held} constant {_number(a.partial)}"
        test += f" ({_span(a.partial_low, a.partial_high)})"
        if kind in observed:
            test += f"; at least half the features observed in {observed[kind]} languages"
        verdict = rho.verdict(1) if a.p < 0.05 else "undecided"
        what = f"rank correlation of the effect of freezing with {kind} distance"
        yield case.line(what, rho, test, verdict, *rows)


def _controls(case: Case, codes: pd.Index) -> tuple[pd.DataFrame, str]:
    """Pre-training share and fertility by language, and in words what they are.

    A language that the list lacks has share 0: in ranks, the only use, it ties below all listed.
    """
    name = case.backbone.lower()
    whose = "bloom" if "bloom" in name else "xglm"
    held = f"{whose.upper()}'s data share" + ("" if whose in name else " (a proxy)")
    shares = {code: getattr(resolve(code), f"{whose}_share") or 0.0 for code in codes}
    controls = pd.DataFrame({"share": shares})
    if case.fertility.empty:
        return controls, f"{held} (no fertility)"
    return controls.assign(fertility=case.fertility), f"{held} and fertility"


def _c3(case: Case) -> Iterator[dict]:
    rows = case.pick(), case.pick(method="joint_tuning")
    if pd.isna(case.chance) or "eng" not in set(rows[0].language):
        raise Missing("method majority, language eng")
    seeds = st.paired(*rows, common_seeds=True).columns
    tables = [st.grid(part)[seeds] for part in rows]
    slope, gap = st.flatness(*tables, distances().syntactic, case.chance)
    above = [st.effect(table.drop(index="eng") - case.chance) for table in tables]
    test = f"t over seeds; mean above chance {above[0].value:.1f}, tuned {above[1].value:.1f}"
    floor = (
        "" if above[0].low > 0 else "; frozen is not clearly above chance, where flat means nothing"
    )
    what = "effect of freezing on the slope from nearest to farthest language, in points"
    yield case.line(what, slope, test + floor, "undecided" if floor else slope.verdict(1), *rows)
    what = "effect of freezing on the lag behind English, in percent of English's gain over chance"
    yield case.line(what, gap, test, gap.verdict(-1), *rows)


def _c4(case: Case) -> Iterator[dict]:
    rows = case.pick(length=None)
    lengths = sorted(rows.length.dropna().astype(int).unique())
    if len(lengths) < 2:
        raise Missing("more than one length")
    tables = {n: st.grid(_others(rows[rows.length == n])) for n in lengths}
    found = st.effect(st.length_slopes(tables))
    means = {n: table.mean(axis=None) for n, table in tables.items()}
    test = f"t over seeds; best length {max(means, key=means.get)} of "
    test += ", ".join(f"{n} ({mean:.1f} %)" for n, mean in means.items())
    what = "change of the other languages' mean accuracy per doubling of the length, in points"
    yield case.line(what, found, test, found.verdict(-1), rows)


def _variants(case: Case) -> dict[str, tuple[pd.DataFrame, list[pd.DataFrame]]]:
    """By reparameterization the differences from none, and the rows behind them."""
    none = case.pick(reparameterization="none", hidden=None)
    rows = case.pick(reparameterization=None, hidden=None)
    found = [
        (KINDS.index(kind) if kind in KINDS else len(KINDS), kind, hidden, part)
        for (kind, hidden), part in rows.groupby(["reparameterization", "hidden"], dropna=False)
        if kind != "none"
    ]
    out = {
        f"{kind} ({hidden:.0f})": (_difference(part, none), [part, none])
        for _, kind, hidden, part in sorted(found, key=lambda x: x[:3])
    }
    if not out:
        raise Missing("a reparameterization")
    return out


def _c5(case: Case) -> Iterator[dict]:
    variants = _variants(case)
    tests = {name: st.heterogeneity(table) for name, (table, _) in variants.items()}
    adjusted, last = st.holm([found.p for found, *_ in tests.values()]), _at_last_epoch(case)
    for p, (name, (found, test, helped, hurt)) in zip(adjusted, tests.items(), strict=True):
        table, rows = variants[name]
        verdict = "supported" if p < 0.05 and helped and hurt else "undecided"
        verdict = "contradicted" if found.languages in (helped, hurt) else verdict
        verdict = verdict if found.seeds >= st.MIN_SEEDS else "undecided"
        mean = st.effect(table)
        test += f", Holm over {len(tests)}; {helped} languages helped, {hurt} hurt (t tests, Holm)"
        test += f"; mean effect {_number(mean.value)} ({_span(mean.low, mean.high)})"
        test += f", of the last epochs {_number(last[name])}" if name in last else ""
        what = f"spread over languages of the effect of {name}, in points"
        yield case.line(what, found._replace(p=p), test, verdict, *rows)


def _at_last_epoch(case: Case) -> dict[str, float]:
    """Mean effects by reparameterization where both sides keep the last epoch, if that is there."""
    if "selection" not in case.rows or not (case.rows.selection == "last").any():
        return {}
    last = replace(case, base={**case.base, "selection": "last"})
    return {name: st.effect(table).value for name, (table, _) in _variants(last).items()}


def _families(cases: list[Case]) -> Iterator[dict]:
    """The other half of C5: does a reparameterization's mean effect differ between families?"""
    found = {}
    for one, two in combinations([case for case in cases if "tiny-" not in case.backbone], 2):
        if _family(one) != _family(two):
            a, b = _variants(one), _variants(two)
            pair = f"{one.backbone} minus {two.backbone}"
            for name in sorted(a.keys() & b.keys()):
                x, y = a[name][0].align(b[name][0], join="inner")
                found[pair, name] = st.effect(x - y), a[name][1] + b[name][1]
    adjusted = st.holm([effect.p for effect, _ in found.values()])
    for p, ((pair, name), (effect, rows)) in zip(adjusted, found.items(), strict=True):
        sure = p < 0.05 and effect.verdict(1) != "undecided"  # a difference of either sign
        case, verdict = replace(cases[0], backbone=pair), "supported" if sure else "undecided"
        what = f"{FAMILIES} in the mean effect of {name}, in points"
        test = f"t over seeds, Holm over {len(found)}, common languages and seeds"
        yield case.line(what, effect._replace(p=p), test, verdict, *rows)
    if not found:
        need = "needs a second pretrained model of another family"
        for case in cases:
            yield case.line(FAMILIES, NOTHING, need, "not run")


def _family(case: Case) -> str:
    known = ("gemma", "xglm", "bloom", "llama")
    return next((name for name in known if name in case.backbone.lower()), case.backbone)


JUDGES = {"C1": _c1, "C2": _c2, "C3": _c3, "C4": _c4, "C5": _c5}


def judge(rows: pd.DataFrame, base: Mapping[str, object]) -> pd.DataFrame:
    """Judge C1 to C5 for each data set and backbone; the first line of each is the main one.

    rows: tidy, of any number of runs (column `run`), with those of `Study.references`. base: the
    base condition, `method`, `shots` and the other switches by column name, None where one does
    not apply; not what each method has of its own, such as its learning rate or epochs.
    Returns COLUMNS. A claim without its rows is "not run", and `test` says what it needs. Raises
    InputError for an unknown switch and for rows that cannot be paired.
    """
    lines, reparameterized = [], {}
    for case in cases(rows, base):
        try:
            lines += list(JUDGES[case.claim](case))
        except Missing as lack:
            need = f"needs {lack} in study {CLAIMS[case.claim][1]}"
            lines.append(case.line("judging it", NOTHING, need, "not run"))
        else:
            if case.claim == "C5":
                reparameterized.setdefault((case.data, case.base["shots"]), []).append(case)
    for alike in reparameterized.values():
        lines += _families(alike)
    table = pd.DataFrame(lines, columns=list(COLUMNS))
    return table.sort_values("claim", kind="stable", ignore_index=True)


def cases(rows: pd.DataFrame, base: Mapping[str, object]) -> Iterator[Case]:
    """Yield what each claim is judged on, by data set, backbone, claim and shots, base shots first.

    Arguments and errors as of `judge`. Without any rows there is one empty case a claim.
    """
    rows, base = _checked(rows, base)
    chance = rows[rows.method == "majority"].groupby("data").value.mean()
    fertility = rows[rows.metric == "fertility"]
    rows = _measured(rows[rows.study.isin({study for _, study in CLAIMS.values()})])
    for (data, backbone), part in list(rows.groupby(["data", "backbone"])) or [(("", ""), rows)]:
        tokens = fertility[(fertility.data == data) & (fertility.backbone == backbone)]
        for claim, (_, study) in CLAIMS.items():
            own = part[part.study == study]
            for shots in dict.fromkeys([base["shots"], *sorted(own.shots.unique())]):
                yield Case(
                    claim, data, backbone, own[own.shots == shots], {**base, "shots": shots},
                    chance.get(data, NAN), tokens.groupby("language").value.mean(),
                )  # fmt: skip


def _checked(
    rows: pd.DataFrame, base: Mapping[str, object]
) -> tuple[pd.DataFrame, dict[str, object]]:
    for name in (*REQUIRED, "run", *base):
        choose("column", name, rows.columns)
    if lack := {"method", "shots"} - set(base):
        raise InputError(f"the base condition does not say its {' and '.join(sorted(lack))}")
    needed = rows.columns.union(["length", "reparameterization", "hidden"], sort=False)
    rows = rows.reindex(columns=needed)
    # a hidden size of 0 stands for no hidden layer
    rows = rows.assign(hidden=rows.hidden.where(rows.hidden > 0))
    return rows, {**base, "hidden": base.get("hidden") or None}


def _measured(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[(rows.metric == "accuracy") & (rows.method != "majority")]


def page(
    table: pd.DataFrame, figures: Mapping[str, str], command: str,
    made_by: Callable[[list[str]], str] | None = None,
    claims: Mapping[str, tuple] = MappingProxyType(CLAIMS),
) -> str:  # fmt: skip
    """Return the text of claims.md: each claim, our finding, verdict, figure and command.

    table: from `judge`; figures: by claim, a path from the page; command: what makes all rows;
    made_by: gives the command that makes some runs' rows; claims: those on the page.
    """
    out = [
        "# The claims, judged",
        "Supported or contradicted: the 95 % interval over seeds (C2: over language families) and"
        " the second one (languages resampled too; C2: seeds, by the jackknife) lie on one side"
        f" of 0, from at least {st.MIN_SEEDS} seeds. Undecided: the data leave both signs open,"
        " which is a result, too, or an interval is not defined. Of each model and data set, the"
        " first line of the details is the main one.",
    ]
    for claim, (sentence, _) in claims.items():
        lines = table[table.claim == claim]
        heads = [": ".join(filter(None, pair)) for pair in _heads(lines)]
        out += [f"## {claim}: {sentence}", f"**Verdict.** {'; '.join(heads)}."]
        found = list(lines.itertuples())
        out += [f"**Ours.** {_sentence(found[0])}."]
        out += [f"Figure: [{figures[claim]}]({figures[claim]})"] if claim in figures else []
        behind = dict.fromkeys(run for cell in lines.run for run in cell.split(", ") if run)
        call = made_by([*behind]) if made_by and behind else command
        out += [f"Command: `{call}`"]
        out += ["\n".join([DETAILS, *map(_details, found)])]
    return "\n\n".join(out) + "\n"


def _heads(lines: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Each main line's model, with what tells it from the other main lines, and its verdict."""
    several = lines.data[lines.data != ""].nunique() > 1
    halves = {FAMILIES: "by family", "in-language": "in-language"}  # C5 and C7 claim two things
    half = lines.test.map(lambda x: "".join(t for k, t in halves.items() if x.startswith(k)))
    for a in lines.assign(half=half).drop_duplicates(["backbone", "data", "half"]).itertuples():
        model = f"{a.backbone} on {a.data}" if several and a.data else a.backbone
        yield ", ".join(filter(None, [model, a.half])), a.verdict


def _sentence(line: tuple) -> str:
    what, shots, test = line.test.split("; ", 2)
    of = ", ".join(filter(None, [line.backbone, line.data, shots]))
    if line.seeds == 0:
        return f"{of}: {what} {test}"
    noun, _, unit = what.partition(", in")
    span = f"95 % {_span(line.low, line.high)}; {line.languages} languages, {line.seeds} seeds"
    size = _number(line.effect) + ("" if pd.isna(line.effect) else unit)
    return f"{of}: the {noun} is {size} ({span})"


DETAILS = """\
| model, data, examples | what | effect | 95 % | p | verdict | how |
| --- | --- | --- | --- | --- | --- | --- |"""


def _details(line: tuple) -> str:
    """Return a line of the table with all that the sentence leaves out."""
    what, shots, test = line.test.split("; ", 2)
    of = ", ".join(filter(None, [line.backbone, line.data, shots]))
    p = "" if pd.isna(line.p) else f"{line.p:.2g}"
    there = line.seeds > 0
    found = [_number(line.effect), _span(line.low, line.high)] if there else ["", ""]
    number = f"{line.languages} languages, {line.seeds} seeds; " * there
    cells = [of, what, *found, p, line.verdict, number + test]
    return f"| {' | '.join(cells)} |"


def ledger(rows: pd.DataFrame, base: Mapping[str, object]) -> pd.DataFrame:
    """Return what each switch changes: the paired effect (points) of leaving the base condition.

    Within a study, each condition that differs from `base` (see `judge`) in exactly one switch, on
    English and on the mean of the others that both have; low, high and p are Student's t over the
    common seeds. Raises InputError for an unknown switch and for rows that cannot be paired; says
    which studies lack the base condition.
    """
    rows, base = _checked(rows, base)
    out = []
    for (data, backbone, study), part in _measured(rows).groupby(["data", "backbone", "study"]):
        plain = matching(part, base)
        if plain.empty:
            print(f"ledger: no base condition in {study}, {backbone}, {data}; left out")
            continue
        for switch, value, other in _single_changes(part, base):
            for on in ("English", "others"):
                both = set(other.language) & set(plain.language)
                both = [code for code in both if (code == "eng") == (on == "English")]
                pair = [p[p.language.isin(both)] for p in (other, plain)]
                if not both:
                    continue
                found = st.effect(st.paired(*pair, common_seeds=True))
                runs = ", ".join(sorted({*other.run, *plain.run}))
                out.append(dict(
                    data=data, backbone=backbone, study=study, switch=switch, base=base[switch],
                    value=value, on=on, languages=found.languages, seeds=found.seeds,
                    effect=found.value, low=found.low, high=found.high, p=found.p, run=runs,
                ))  # fmt: skip
    return pd.DataFrame(out)


def _single_changes(rows: pd.DataFrame, base: Mapping[str, object]) -> Iterator[tuple]:
    """Switch, new value in words and rows of each condition that differs in one switch."""
    for values, part in rows.groupby(list(base), dropna=False, sort=False):
        here = {k: v for k, v in zip(base, values, strict=True) if not pd.isna(v)}
        text = {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in here.items()}
        new = [k for k, v in here.items() if base[k] is not None and v != base[k]]
        if len(new) == 1:
            also = [f"{k} {text[k]}" for k in here if base[k] is None]
            yield new[0], ", ".join([text[new[0]], *also]), part
