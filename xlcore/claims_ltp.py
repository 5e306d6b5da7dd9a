"""The claims C6, C7 and C10 judged from result rows: tickets with a prompt against baselines.

Stands beside `claims`, whose page and table it shares; rows come from notebook 07.
LTP section 4: XNLI and AmericasNLI, zero-shot and in-language. A null result is a result.
"""

from collections.abc import Iterator

import pandas as pd

from xlcore import statistics as st
from xlcore.claims import COLUMNS, NOTHING, Case, Missing
from xlcore.errors import choose
from xlcore.results import REQUIRED
from xlcore.statistics import NAN

STUDIES = {"zero_shot_nli": "zero-shot transfer", "in_language_nli": "in-language training"}
ZERO_SHOT, OWN = STUDIES
CLAIMS = {  # what LTP says, and the studies whose rows judge it
    "C6": ("A prompt and the 20 % most-changed weights beat the baselines on XNLI", [ZERO_SHOT]),
    "C7": ("The same on AmericasNLI, zero-shot and in-language", [ZERO_SHOT, OWN]),
    "C10": ("A prompt alone is weak on small encoders, a gap that LTP closes", [ZERO_SHOT]),
}
XNLI, AMERICAS = "xnli", "americasnli"
RATIO, TICKETS = 0.2, {"ltp": "movement", "random_ticket": "random"}
BASELINES = (
    "fine_tuning", "dp", "sp", "mp", "prompt_only", "prefix_tuning", "lora", "bitfit",
    "random_ticket",
)  # fmt: skip


def judge(rows: pd.DataFrame) -> pd.DataFrame:
    """Judge C6, C7 and C10 for each data set, backbone, study and number of shots.

    rows: tidy, of any number of runs (column `run`), with those of `EncoderStudy.references`;
    studies other than STUDIES are left out. The languages are those other than English, each
    test is paired over seeds. Returns `claims.COLUMNS`; the first line of each is the main one. A
    claim without its rows is "not run". Raises InputError for rows that cannot be paired.
    """
    lines = []
    for case in cases(rows):
        try:
            lines += list(JUDGES[case.claim](case))
        except Missing as lack:
            study = case.base["study"]
            need = f"needs {lack} in study {study}"
            lines.append(case.line(STUDIES[study], NOTHING, "", "not run", notes=[need]))
    return pd.DataFrame(lines, columns=list(COLUMNS))


def cases(rows: pd.DataFrame) -> Iterator[Case]:
    """Yield what each claim is judged on, by claim, study, data set, backbone and shots.

    A claim without rows has one empty case. Arguments and errors as of `judge`.
    """
    for name in (*REQUIRED, "run"):
        choose("column", name, rows.columns)
    rows = rows[rows.study.isin(STUDIES) & (rows.metric == "accuracy")]
    chance = rows[rows.method == "majority"].groupby("data").value.mean()
    rows = rows[(rows.method != "majority") & (rows.language != "eng")]
    none = pd.Series(dtype=float)
    for claim, (_, studies) in CLAIMS.items():
        own = rows if claim == "C10" else rows[rows.data == (XNLI if claim == "C6" else AMERICAS)]
        for study in studies:
            part = own[own.study == study]
            part = part[part.train_language == "eng"] if len(part) and study != OWN else part
            found = list(part.groupby(["data", "backbone", "shots"]))
            found.sort(key=lambda group: group[0][0] != XNLI)  # the paper's main benchmark first
            for (data, backbone, shots), one in found or [(("", "", "any"), part)]:
                base = dict(shots=shots, study=study)
                yield Case(claim, data, backbone, one, base, chance.get(data, NAN), none)


def _of(case: Case, method: str) -> pd.DataFrame:
    """Return a method's rows, of tickets those that the paper claims; Missing if there are none."""
    found = case.rows[case.rows.method == method]
    wanted = TICKETS.get(method)
    if wanted and len(found):
        found = found[(found.strategy == wanted) & (found.active_ratio.round(3) == RATIO)]
    if found.empty:
        what = f", {100 * RATIO:.0f} % by {wanted}" * bool(wanted)
        raise Missing(f"method {method}{what}")
    return found


def _seeds(case: Case) -> list[str]:
    """What a seed changes, in words, and what it does not."""
    fixed = "drawn" in case.rows and bool((case.rows.drawn == "published").all())
    examples = [] if fixed else ["examples"]
    varied = ", ".join(["start values", "batch order", "random ticket", *examples])
    published = ["the few-shot split is a published one"] * fixed
    return [f"a seed changes {varied}", *published, "LTP's ticket is mined once for all seeds"]


def _name(method: str) -> str:
    short = method.upper() if len(method) < 4 else method  # LTP, DP, SP, MP
    return {"lora": "LoRA", "bitfit": "BitFit"}.get(method, short.replace("_", " "))


def _advantage(case: Case, first: str, second: str) -> tuple[str, pd.DataFrame, list]:
    """What one method gains over another: in words, as differences, and the rows behind them."""
    both = [_of(case, first), _of(case, second)]
    table = st.paired(*both, common_seeds=True)
    return _words(case, _name(first), _name(second)), table, both


def _words(case: Case, first: str, second: str) -> str:
    where = STUDIES[case.base["study"]].split()[0]
    return f"{where} advantage of {first} over {second} on the mean without English, in points"


def _tested(measured: list[tuple[str, pd.DataFrame, list]]) -> list[tuple]:
    """What was measured, its effect with Holm's p, the test, verdict and rows of each."""
    effects = [st.effect(table) for _, table, _ in measured]
    adjusted, out = st.holm([one.p for one in effects]), []
    for (what, _, rows), one, p in zip(measured, effects, adjusted, strict=True):
        tested = f"t over seeds, Holm over {len(measured)}"
        verdict = one.verdict(1) if p < 0.05 else "undecided"
        out.append((what, one._replace(p=p), tested, verdict, rows))
    return out


def _together(verdicts: list[str]) -> str:
    """A claim of several parts: supported if each is, contradicted if one is."""
    if set(verdicts) == {"supported"}:
        return "supported"
    return "contradicted" if "contradicted" in verdicts else "undecided"


def _beats(case: Case) -> Iterator[dict]:
    """C6 and C7: first the baseline that comes nearest to LTP or beats it, then all the others.

    A baseline that was not run might beat it, so the claim stands only over all of BASELINES.
    """
    _of(case, "ltp")
    run = [m for m in BASELINES if (case.rows.method == m).any()]
    if not run:
        raise Missing("a method beside ltp")
    found = sorted(_tested([_advantage(case, "ltp", m) for m in run]), key=lambda x: x[1].value)
    whole = _together([verdict for *_, verdict, _ in found])
    lacking = ", ".join(_name(m) for m in BASELINES if m not in run)
    whole = "undecided" if lacking and whole == "supported" else whole
    for i, (what, effect, test, verdict, rows) in enumerate(found):
        notes = _seeds(case)
        if i == 0:
            what = what.replace(" on the mean", ", the nearest baseline, on the mean")
            notes.append("the verdict is that over all baselines")
            notes += [f"not run: {lacking}"] * bool(lacking)
        yield case.line(what, effect, test, verdict if i else whole, *rows, notes=notes)


def _closes(case: Case) -> Iterator[dict]:
    """C10: the prompt alone is below full tuning, and LTP closes more than half of that gap."""
    ltp, full = (_advantage(case, method, "prompt_only") for method in ("ltp", "fine_tuning"))
    gained, gap = ltp[1].align(full[1], join="inner")
    middle = _words(case, "LTP", "the middle of fine tuning and prompt only")
    found = _tested([ltp, full, (middle, gained - gap / 2, [*ltp[2], *full[2]])])
    above = st.effect(st.grid(_of(case, "prompt_only")) - case.chance)
    level = f"the prompt alone is {above.value:+.1f} points above chance"
    whole = _together([verdict for *_, verdict, _ in found])
    for i, (what, effect, test, verdict, rows) in enumerate(found):
        notes = [*_seeds(case), level] + ["the verdict is that over all three"] * (not i)
        yield case.line(what, effect, test, verdict if i else whole, *rows, notes=notes)


JUDGES = {"C6": _beats, "C7": _beats, "C10": _closes}
