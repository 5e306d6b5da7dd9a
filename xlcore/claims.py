"""The claims C1 to C5 judged from result rows, the page that says so, and the deviation ledger.

Last in the flow, beside the figures: rows -> statistics -> claims.csv and claims.md.
SPT sections 4 and 5; a claim without its rows is "not run", and a null result is a result.
"""

from collections.abc import Iterable, Iterator, Mapping
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
    "verdict", "run", "what", "shots", "low2", "high2", "notes",
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
NETWORKS = ("mlp", "residual_mlp", "lstm")  # SPT's own first
FAMILIES = "difference between model families"
HEADER = f"""\
The verdict on a claim is that on the first line of its model and data set:

- **supported** or **contradicted**: the 95 % interval over seeds (C2: over language families) and
  the second interval (languages resampled too; C2: a jackknife over seeds) lie on the claim's
  side of 0, or both on the other, from at least {st.MIN_SEEDS} seeds. Where lines are tested
  together, p after Holm's correction is below 0.05, too. C5 is supported if languages differ in
  the effect (p below 0.05) and tests of their own show some helped and some hurt, contradicted if
  all are helped or all are hurt; by family, supported if the mean effects differ.
- **undecided**: the data leave both signs open, or come from fewer than {st.MIN_SEEDS} seeds, from
  random weights or from a part of the baselines. That is a result, too.
- **not defined**: there is an effect, but no interval, as from one seed or too few families.
- **not run**: the rows that the line needs are not there."""
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

    def line(
        self, what: str, found: Effect, test: str, verdict: str, *rows: pd.DataFrame,
        notes: Iterable[str] = (),
    ) -> dict:  # fmt: skip
        """Return a line of the table. No note holds a semicolon.

        Random weights decide nothing, and without an interval there is nothing to decide.
        """
        behind, notes = pd.concat([self.rows[:0], *rows]), [*notes]
        if left := behind.seed.nunique() - found.seeds:
            notes.append(f"{left} seeds without a partner left out")
        if 0 < found.seeds < st.MIN_SEEDS:
            notes.append(f"fewer than {st.MIN_SEEDS} seeds decide nothing")
        if "tiny-" in self.backbone and verdict != "not run":
            notes.append("random weights are no evidence")
            verdict = "undecided"
        if verdict != "not run" and pd.isna(found.low):
            verdict = "not defined"
            notes += ["one seed has no interval"] * (found.seeds == 1)
        return dict(
            claim=self.claim, backbone=self.backbone, data=self.data, languages=found.languages,
            seeds=found.seeds, effect=found.value, low=found.low, high=found.high, test=test,
            p=found.p, verdict=verdict, run=", ".join(sorted(behind.run.unique())), what=what,
            shots=self.base["shots"], low2=found.low2, high2=found.high2, notes="; ".join(notes),
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


def _estimate(value: float, low: float, high: float) -> str:
    return f"{_number(value)} ({_span(low, high)})"


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
        test = f"Spearman, {a.families:.0f} families resampled, Holm over {len(table)}"
        partial = _estimate(a.partial, a.partial_low, a.partial_high)
        notes = [f"Pearson {_estimate(a.r, a.r_low, a.r_high)}", f"with {held} constant {partial}"]
        notes += ["the first interval holds the seeds fixed, the second the languages"]
        notes += _resampled(a)
        if kind in observed:
            notes += [f"at least half the features observed in {observed[kind]} languages"]
        verdict = rho.verdict(1) if a.p < 0.05 else "undecided"
        what = f"rank correlation of the effect of freezing with {kind} distance"
        yield case.line(what, rho, test, verdict, *rows, notes=notes)


def _resampled(a: pd.Series) -> list[str]:
    """What the bootstrap of families takes for granted, or why it gives no interval."""
    if a.n < 3:
        return ["fewer than three languages"]
    if a.families < st.MIN_FAMILIES:
        return [f"fewer than {st.MIN_FAMILIES} families give no interval"]
    notes = ["families are taken for independent draws from one population"]
    notes += [
        f"{100 * a.absent:.0f} % of the resamples lack the largest ({a.largest:.0f} languages)"
    ]
    none = f"{100 * a.undefined:.0f} % of the resamples have no correlation, so no interval"
    return notes + [none] * pd.isna(a.low)


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
    below = [100 * (table.drop(index="eng") < case.chance).mean(axis=None) for table in tables]
    level = f"mean above chance {above[0].value:.1f}, tuned {above[1].value:.1f}"
    level += f" ({below[0]:.0f} % and {below[1]:.0f} % of languages and seeds are below it)"
    floor = "is not clearly above chance, where flat means nothing"
    sides = zip(("frozen", "tuned"), above, strict=True)
    at_floor = [f"{side} {floor}" for side, one in sides if not one.low > 0]
    what = "effect of freezing on the slope from nearest to farthest language, in points"
    verdict = "undecided" if at_floor else slope.verdict(1)
    yield case.line(what, slope, "t over seeds", verdict, *rows, notes=[level, *at_floor])
    what = "effect of freezing on the lag behind English, in percent of English's gain over chance"
    yield case.line(what, gap, "t over seeds", gap.verdict(-1), *rows, notes=[level])


def _c4(case: Case) -> Iterator[dict]:
    rows = case.pick(length=None)
    lengths = sorted(rows.length.dropna().astype(int).unique())
    if len(lengths) < 2:
        raise Missing("more than one length")
    seeds = set.intersection(*({*rows[rows.length == n].seed} for n in lengths))
    if not seeds:
        raise InputError(f"the lengths {lengths} have no common seed")
    alike = _others(rows[rows.seed.isin(seeds)])
    tables = {n: st.grid(alike[alike.length == n]) for n in lengths}
    found = st.effect(st.length_slopes(tables))
    means = {n: table.mean(axis=None) for n, table in tables.items()}
    best = f"best length {max(means, key=means.get)} of "
    best += ", ".join(f"{n} ({mean:.1f} %)" for n, mean in means.items())
    what = "change of the other languages' mean accuracy per doubling of the length, in points"
    yield case.line(
        what, found, "t over seeds", found.verdict(-1), rows, notes=[best, *_rates(alike)]
    )


def _rates(rows: pd.DataFrame) -> list[str]:
    """The lengths' learning rates in words, where they differ: a part of what is compared."""
    if "learning_rate" not in rows or rows.learning_rate.nunique() < 2:
        return []
    each = rows.groupby("length").learning_rate.unique()
    told = (f"{n:.0f} ({', '.join(f'{r:g}' for r in sorted(found))})" for n, found in each.items())
    return [f"each length at a learning rate of its own: {', '.join(told)}"]


def _variants(case: Case, **changes: object) -> dict[str, tuple[pd.DataFrame, list[pd.DataFrame]]]:
    """By reparameterization the differences from none, and the rows behind them, in `_order`.

    changes: as of `Case.pick`, held on both sides.
    """
    none = case.pick(reparameterization="none", hidden=None, **changes)
    rows = case.pick(reparameterization=None, hidden=None, **changes)
    networks = rows[rows.reparameterization.isin(NETWORKS)]
    parts = networks.groupby(["reparameterization", "hidden"], dropna=False)
    out = {
        f"{kind} ({hidden:.0f})": (_difference(part, none), [part, none])
        for (kind, hidden), part in sorted(parts, key=_order)
    }
    if not out:
        raise Missing("a reparameterization")
    return out


def _order(found: tuple) -> tuple:
    """By network, the paper's first; of one, the wider first: 200 is the paper's example."""
    (kind, hidden), _ = found
    return NETWORKS.index(kind), -hidden


def _last_epoch(case: Case) -> dict[str, str]:
    """By reparameterization its effect at the last epoch in words, where that was measured."""
    try:
        rows = case.rows[case.rows.selection == "last"]
        tables = _variants(replace(case, rows=rows), selection="last")
    except Missing:
        return {}
    out = {}
    for name, (table, _) in tables.items():
        mean, spread = st.effect(table), st.heterogeneity(table)[0]
        out[name] = f"mean effect at the last epoch {_estimate(*mean[:3])}"
        out[name] += f" and spread {_estimate(*spread[:3])}"
    return out


def _c5(case: Case) -> Iterator[dict]:
    variants = _variants(case)
    tests = {name: st.heterogeneity(table) for name, (table, _) in variants.items()}
    adjusted, last = st.holm([found.p for found, *_ in tests.values()]), _last_epoch(case)
    for p, (name, (found, ratio, helped, hurt)) in zip(adjusted, tests.items(), strict=True):
        table, rows = variants[name]
        verdict = "supported" if p < 0.05 and helped and hurt else "undecided"
        verdict = "contradicted" if found.languages in (helped, hurt) else verdict
        verdict = verdict if found.seeds >= st.MIN_SEEDS else "undecided"
        mean = st.effect(table)
        notes = [ratio, f"{helped} languages helped, {hurt} hurt (t tests, Holm)"]
        notes += [f"mean effect {_estimate(*mean[:3])}"]
        notes += [last[name]] if name in last else []
        what = f"spread over languages of the effect of {name}, in points"
        test = f"jackknife over seeds, Holm over {len(tests)}"
        yield case.line(what, found._replace(p=p), test, verdict, *rows, notes=notes)


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
        test, common = f"t over seeds, Holm over {len(found)}", ["common languages and seeds"]
        yield case.line(what, effect._replace(p=p), test, verdict, *rows, notes=common)
    if not found:
        need = "needs a second pretrained model of another family"
        for case in cases:
            yield case.line(FAMILIES, NOTHING, "", "not run", notes=[need])


def _family(case: Case) -> str:
    known = ("gemma", "xglm", "bloom", "llama")
    return next((name for name in known if name in case.backbone.lower()), case.backbone)


JUDGES = {"C1": _c1, "C2": _c2, "C3": _c3, "C4": _c4, "C5": _c5}


def judge(rows: pd.DataFrame, base: Mapping[str, object]) -> pd.DataFrame:
    """Judge C1 to C5 for each data set and backbone; the first line of each is the main one.

    rows: tidy, of any number of runs (column `run`), with those of `Study.references`. base: the
    base condition, `method`, `shots` and the other switches by column name, None where one does
    not apply; not what each method has of its own, such as its learning rate or epochs.
    Returns COLUMNS: effect, low, high in the unit that `what` names, low2 and high2 as of `Effect`.
    A claim without its rows is "not run", and `notes` says what it needs. Raises InputError for an
    unknown switch and for rows that cannot be paired.
    """
    lines, reparameterized = [], {}
    for case in cases(rows, base):
        try:
            lines += list(JUDGES[case.claim](case))
        except Missing as lack:
            need = f"needs {lack} in study {CLAIMS[case.claim][1]}"
            lines.append(case.line("judging it", NOTHING, "", "not run", notes=[need]))
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
    needed = ["length", "reparameterization", "hidden", "selection"]
    rows = rows.reindex(columns=rows.columns.union(needed, sort=False))
    # a hidden size of 0 stands for no hidden layer
    rows = rows.assign(hidden=rows.hidden.where(rows.hidden > 0))
    return rows, {**base, "hidden": base.get("hidden") or None}


def _measured(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[(rows.metric == "accuracy") & (rows.method != "majority")]


def page(
    table: pd.DataFrame, figures: Mapping[str, str], command: str,
    commands: Mapping[str, str] = MappingProxyType({}),
    claims: Mapping[str, tuple] = MappingProxyType(CLAIMS),
) -> str:  # fmt: skip
    """Return the text of claims.md: each claim, our finding, verdict, figure, command and details.

    table: from `judge`; figures: by claim, a path from the page; command: what makes all rows;
    commands: by claim, what makes its rows alone; claims: those on the page.
    """
    out = ["# The claims, judged", HEADER]
    for claim, (sentence, _) in claims.items():
        lines = table[table.claim == claim]
        mains = list(_mains(lines))
        found = [_sentence(a) for _, a in mains if a.seeds] or [_needs(lines[lines.seeds == 0])]
        heads = [": ".join(filter(None, [whose, a.verdict])) for whose, a in mains]
        out += [f"## {claim}: {sentence}"]
        out += [f"**Ours.** {one}" for one in found]
        out += [f"**Verdict.** {'; '.join(heads)}."]
        out += [f"Figure: [{figures[claim]}]({figures[claim]})"] if claim in figures else []
        out += [f"Command: `{commands.get(claim, command)}`"]
        out += _details(lines) if lines.seeds.any() else []
    return "\n\n".join(out) + "\n"


def _mains(lines: pd.DataFrame) -> Iterator[tuple[str, tuple]]:
    """Each main line, after its model and what tells it from the other main lines."""
    several = lines.data[lines.data != ""].nunique() > 1
    halves = {FAMILIES: "by family", "in-language": "in-language"}  # C5 and C7 claim two things
    half = lines.what.map(lambda x: "".join(t for k, t in halves.items() if x.startswith(k)))
    for a in lines.assign(half=half).drop_duplicates(["backbone", "data", "half"]).itertuples():
        model = f"{a.backbone} on {a.data}" if several and a.data else a.backbone
        yield ", ".join(filter(None, [model, a.half])), a


def _sentence(line: tuple) -> str:
    noun, _, unit = line.what.partition(", in ")
    size = _number(line.effect) + f" {unit}" * bool(unit and pd.notna(line.effect))
    span = f"95 % {_span(line.low, line.high)}; {line.languages} languages, {line.seeds} seeds"
    return f"{line.backbone} on {line.data}, K = {line.shots}: the {noun} is {size} ({span})."


def _needs(lines: pd.DataFrame) -> str:
    return "Not run: " + "; ".join(dict.fromkeys(lines.what + " " + lines.notes)) + "."


def _details(lines: pd.DataFrame) -> list[str]:
    """What all lines that were run have in common, then a table of all lines with the rest."""
    seen = lines.seeds > 0
    about = lines[["backbone", "data"]].assign(K=lines.shots.astype(str))
    for name in ("languages", "seeds"):
        about[name] = lines[name].astype(str).where(seen, "")
    same = about.columns[about.where(about != "").nunique() == 1]
    notes = (lines.test + "; " + lines.notes).str.strip("; ").str.split("; ")
    common = set.intersection(*map(set, notes[seen]))
    rest = pd.DataFrame({
        "what": lines.what, **about.drop(columns=same),
        "effect": lines.effect.map(_number).where(seen, ""),
        "95 %": _spans(lines.low, lines.high).where(seen, ""),
        "second interval": _spans(lines.low2, lines.high2).where(lines.low2.notna(), ""),
        "p": lines.p.map("{:.2g}".format).where(lines.p.notna(), ""), "verdict": lines.verdict,
        "notes": notes.map(lambda n: "; ".join(one for one in n if one not in common)),
    })  # fmt: skip
    rest = rest.loc[:, (rest != "").any()]
    rows = [rest.columns, ["---"] * rest.shape[1], *rest.to_numpy()]
    held = [f"{name} {value}" for name, value in about.loc[seen, same].iloc[0].items()]
    told = [", ".join(held), *(one for one in notes[seen].iloc[0] if one in common)]
    head = "Every line that was run: " if len(lines) > 1 else ""
    return [
        f"**Details.** {head}{'; '.join(told)}.",
        "\n".join(f"| {' | '.join(cells)} |" for cells in rows),
    ]


def _spans(low: pd.Series, high: pd.Series) -> pd.Series:
    return pd.Series(map(_span, low, high), low.index, dtype=object)


def ledger(rows: pd.DataFrame, base: Mapping[str, object]) -> pd.DataFrame:
    """Return what each switch changes: the paired effect (points) of leaving the base condition.

    Within a study, each condition that differs from `base` (see `judge`) in exactly one switch, on
    English and on the mean of the others that both have; low, high and p are Student's t over the
    common seeds, p_holm is Holm's over all lines of one `on`. Raises InputError for an unknown
    switch and for rows that cannot be paired; says which studies lack the base condition.
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
    table = pd.DataFrame(out)
    if len(table):
        alike = table.groupby(["data", "backbone", "on"]).p
        table.insert(table.columns.get_loc("p") + 1, "p_holm", alike.transform(st.holm))
    return table


def _single_changes(rows: pd.DataFrame, base: Mapping[str, object]) -> Iterator[tuple]:
    """Switch, new value in words and rows of each condition that differs in one switch."""
    for values, part in rows.groupby(list(base), dropna=False, sort=False):
        here = {k: v for k, v in zip(base, values, strict=True) if not pd.isna(v)}
        text = {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in here.items()}
        new = [k for k, v in here.items() if base[k] is not None and v != base[k]]
        if len(new) == 1:
            also = [f"{k} {text[k]}" for k in here if base[k] is None]
            yield new[0], ", ".join([text[new[0]], *also]), part
