# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Final figures: from run files alone
#
# Every figure and every verdict of a profile is made here from the `results.jsonl` of its finished
# runs, and from nothing else. Each figure carries the hash of its rows.

# %% tags=["parameters"]
profile: str = "pocket"  # the profile whose runs are read, and whose figures are written
run_dir: str = ""  # where a batch run wants its results; "" writes nothing, figures neither
data: str = "embedded"  # embedded, directory (the folder in XLCORE_DATA) or hub
shots: int = 8  # of the base condition, from which one switch at a time is changed
length: int = 5  # of the base condition's prompt

# %%
import hashlib

import pandas as pd
from IPython.display import display

from xlcore import claims, claims_ltp, figures, runs
from xlcore.statistics import summary

figures.style()
pd.set_option("display.width", 200)
root = figures.repository()
finished = figures.read_runs(profile, data, root)

# %% [markdown]
# ## 1. The runs
#
# What was run, on what, for how long, by which code: its commit, or its hash where none was
# recorded. A run's folder holds the full manifest.

# %%
pd.DataFrame({
    name: {"backbone": m["facts"]["backbone"]["name"], "dtype": m["facts"]["backbone"]["dtype"],
           "rows": len(rows), "minutes": round(m["seconds"] / 60, 1),
           "code": (m.get("commit") or m["code_sha256"])[:8]}
    for name, (rows, m) in finished.items()
}).T  # fmt: skip

# %% [markdown]
# A run's rows must be the ones its manifest was written for.

# %%
for name, (_, manifest) in finished.items():
    path = root / "papermill_runs" / profile / name / "results.jsonl"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == manifest["results_sha256"], name

# %% [markdown]
# All rows in one table. The base condition is what the other conditions are compared with; a
# learning rate is not part of it, since each method has its own.

# %%
rows = pd.concat([r.assign(run=name) for name, (r, _) in finished.items()], ignore_index=True)
base = claims.BASE | dict(shots=shots, length=length)
of_nli = {"tried", "strategy", "active_ratio", "train_language"}
rows = rows.reindex(columns=[*rows.columns, *({*base, *of_nli} - set(rows.columns))])
tickets = rows[rows.study == "winning_tickets"]
tried_nli = rows[rows.study == "nli_learning_rates"]
nli = rows[rows.study.isin(claims_ltp.STUDIES)]
rows = rows[rows.task != "nli"]  # the other task has figures of its own
accuracy, majority = rows[rows.metric == "accuracy"], rows[rows.method == "majority"]

# %%
used = [manifest["facts"]["backbone"] for _, manifest in finished.values()]
heads = {one["name"]: "; MLM head fitted" * (one.get("mlm_head") == "fitted") for one in used}
models = {x["name"]: f"{x['name']} ({x['dtype']}{heads[x['name']]})" for x in used}  # for captions
facts = {name: manifest["facts"] for name, (_, manifest) in finished.items()}
data_name = next(iter(finished.values()))[1]["data"]


# %%
def about_data(part):
    """What the rows were measured on, as their own runs say it."""
    return "; ".join(dict.fromkeys(facts[run]["data"]["description"] for run in part.run))


described = about_data(rows)


# %%
def condition(study, backbone, **changes):
    """Rows of the base condition with these changes; None stands for every value."""
    own = accuracy[(accuracy.study == study) & (accuracy.backbone == backbone)]
    return claims.matching(own, base | changes)


# %%
drawn = {}


def keep(figure, name):
    """Save a figure where the profile's figures lie."""
    if run_dir:
        drawn[name] = figures.save(figure, root / "figures" / profile / data_name, name)[1].name


# %% [markdown]
# ## 2. Frozen and tuned, language by language
#
# One figure for each number of shots. A seed gives both sides the same sentences and the same
# starting prompt.

# %%
for backbone in models:
    part = condition("frozen_transfer", backbone, method=None, shots=None)
    for k, alike in part[part.method.isin(["soft_prompt", "joint_tuning"])].groupby("shots"):
        about = f"{described}; {models[backbone]}; n = {length} tokens, {k} shots."
        figure = figures.compare_profile(pd.concat([alike, majority]), about)
        keep(figure, f"{backbone.split('/')[-1]}-transfer-{k}-shots")

# %% [markdown]
# Every method that was run, on the same draws.

# %%
for backbone in models:
    part = condition("frozen_transfer", backbone, method=None, shots=None)
    for k, alike in part.groupby("shots"):
        if alike.method.nunique() > 1:
            about = f"{described}; {models[backbone]}; {k} English shots."
            figure = figures.heat_map(alike, about, condition="method")
            keep(figure, f"{backbone.split('/')[-1]}-methods-{k}-shots")

# %% [markdown]
# ## 3. The effect of freezing, against distance from English
#
# One dot a language: its mean paired difference, frozen minus tuned. Languages of one family are
# not independent, so intervals resample whole families.

# %%
for case in claims.cases(rows, base):
    if case.claim == "C2" and {"soft_prompt", "joint_tuning"} <= {*case.rows.method}:
        effects, correlations, _ = claims.freezing(case)
        means = effects.mean(axis=1).rename("effect").reset_index().assign(seeds=effects.shape[1])
        backbone, k = case.backbone, case.base["shots"]
        about = f"{described}; {models[backbone]}; {k} shots. Frozen minus tuned."
        figure = figures.effect_by_distance(means, correlations, about)
        keep(figure, f"{backbone.split('/')[-1]}-distance-{k}-shots")

# %% [markdown]
# ## 4. Prompt length

# %%
for backbone in models:
    part = condition("prompt_length", backbone, length=None)
    if len(part):
        own = "; each length at its own learning rate" * (part.learning_rate.nunique() > 1)
        about = f"{described}; {models[backbone]}, frozen; {shots} shots{own}."
        figure = figures.length_curves(part, about)
        keep(figure, f"{backbone.split('/')[-1]}-length")

# %% [markdown]
# ## 5. Reparameterization
#
# Accuracy with a network before the prompt, minus accuracy without, paired.

# %%
for backbone in models:
    part = condition("reparameterization", backbone, reparameterization=None)
    if part.reparameterization.nunique() > 1:
        both = zip(part.reparameterization, part.hidden, strict=True)
        part = part.assign(condition=[f"{a} {h:.0f}" if h > 0 else a for a, h in both])
        about = f"{described}; {models[backbone]}, frozen; n = {length} tokens, {shots} shots."
        figure = figures.heat_map(part, about, base="none")
        keep(figure, f"{backbone.split('/')[-1]}-reparameterization")

# %% [markdown]
# ## 6. How the learning rates were chosen
#
# By English dev loss, on draws that are used for nothing else.

# %%
tried = rows[rows.study == "learning_rates"]
plain = tried[tried.reparameterization == "none"]
networks = tried.drop(plain.index).sort_values(["reparameterization", "hidden"])
switches = ["method", "position", "init", "loss"]
told = [[x if k == "method" else f"{k}: {figures.readable(x)}"
         for k, x in zip(switches, row, strict=True) if x != base[k]]
        for row in plain[switches].itertuples(index=False)]  # fmt: skip
named = plain.assign(condition=[", ".join(one) or base["method"] for one in told])
by_length = named[named.condition == base["method"]].sort_values("length")
widths = [f"{n.reparameterization} {n.hidden:.0f}" for n in networks.itertuples()]

# %%
grids = {
    "rates": named[named.length == length],
    "rates-of-lengths": by_length.assign(condition=[f"n = {n:.0f}" for n in by_length.length]),
    "rates-of-networks": networks.assign(condition=widths),
}
for name, grid in grids.items():
    for (backbone, k), part in grid.groupby(["backbone", "shots"]):
        if name == "rates" or part.condition.nunique() > 1:
            figure = figures.rate_grid(part, f"{described}; {models[backbone]}; {k} shots.")
            keep(figure, f"{backbone.split('/')[-1]}-{name}" + f"-{k}-shots" * (k != shots))
print(len(tried), "numbers from such grids in this profile")

# %% [markdown]
# And what a rate does to transfer, which was not looked at when choosing.

# %%
for backbone in models:
    part = condition("transfer_by_rate", backbone)
    if part.learning_rate.nunique() > 1:
        about = f"{described}; {models[backbone]}, frozen; n = {length} tokens, {shots} shots."
        figure = figures.length_curves(part, about, by="learning_rate")
        keep(figure, f"{backbone.split('/')[-1]}-transfer-by-rate")

# %% [markdown]
# ## 7. The deviation ledger
#
# What each switch changes, one at a time: the paired difference from the base condition, on the
# mean of the languages other than English.

# %%
ledger = claims.ledger(rows, base)
others = ledger[ledger.on == "others"].dropna(subset=["low"]) if len(ledger) else ledger
columns = ["switch", "value", "languages", "seeds", "effect", "low", "high", "p_holm"]
others.reindex(columns=columns).set_index(["switch", "value"]).round(2)

# %%
others = others.rename(columns={"switch": "group", "value": "label"})
for backbone, part in others.groupby("backbone") if len(others) else ():
    about = f"{described}; {models[backbone]}; mean of the languages other than English."
    twice = part.duplicated(["group", "label"], keep=False)  # measured in several studies
    study = ", " + part.study.str.replace("_", " ")
    part = part.assign(label=part.label.map(figures.readable) + study.where(twice, ""))
    figure = figures.effect_bars(part, about)
    keep(figure, f"{backbone.split('/')[-1]}-ledger")

# %% [markdown]
# ## 8. Winning tickets
#
# Where they lie (LTP, Figure 3), and what training them is worth beside other methods.

# %%
mined = tickets[(tickets.method == "mining") & tickets.metric.isin(["active", "total"])]
for (backbone, scope), where in mined.groupby(["backbone", "scope"]):
    cells = ["strategy", "layer", "kind"]
    counts = where.pivot_table(index=cells, columns="metric", values="value", sort=False)
    share = f"{100 * where.active_ratio.iloc[0]:.0f} % of {scope}"
    text = "{text}, {steps} steps".format(**facts[where.run.iloc[0]]["mining"])
    about = f"{models[backbone]}; {share}; mined on {text}."
    figure = figures.ticket_layers(counts.reset_index(), about)
    keep(figure, f"{backbone.split('/')[-1]}-tickets-{scope.replace(' ', '-')}")

# %%
trained = tickets[(tickets.metric == "accuracy") & tickets.backbone.isin(models)]
for (backbone, name, k), part in trained.groupby(["backbone", "data", "shots"]):
    about = f"{about_data(part)}; {models[backbone]}; {k} English shots."
    if part.method.nunique() > 1:
        figure = figures.heat_map(part, about, condition="method")
        keep(figure, f"{backbone.split('/')[-1]}-{name}-{k}-shots")

# %% [markdown]
# ## 9. Tickets against baselines
#
# LTP's comparison on NLI: zero-shot from English, or in-language, each language trained on itself.
# The mean of the languages other than English against K, then every language.

# %%
compared = nli[(nli.metric == "accuracy") & (nli.method != "majority")]
references = nli[nli.method == "majority"].drop_duplicates(["data", "language"])
print(len(compared), "accuracies of NLI methods in this profile")
ways = {claims_ltp.ZERO_SHOT: "trained on English", claims_ltp.OWN: "each trained on itself"}
for (backbone, name, study), part in compared.groupby(["backbone", "data", "study"]):
    about = f"{about_data(part)}; {models[backbone]}; {ways[study]}."
    passes = part.groupby("shots").epochs.first()
    told = ", ".join(f"{epochs:g} epochs at K = {k}" for k, epochs in passes.items())
    chance = references[references.data == name]
    figure = figures.shots_curves(pd.concat([part, chance]), f"{about} {told}.")
    keep(figure, f"{backbone.split('/')[-1]}-{name}-{study}")

# %%
for (backbone, name, study, k), alike in compared.groupby(["backbone", "data", "study", "shots"]):
    about = f"{about_data(alike)}; {models[backbone]}; {ways[study]}."
    shown = f"{about} {k} shots, {alike.epochs.iloc[0]:g} epochs."
    figure = figures.heat_map(alike, shown, condition="method")
    keep(figure, f"{backbone.split('/')[-1]}-{name}-{study}-{k}-shots")

# %% [markdown]
# How the methods' rates were chosen, by English dev accuracy, on draws that serve nothing else.

# %%
names = tried_nli.method.replace(figures.NAMES)
of_prompt = (tried_nli.tried == "prompt_rate") & (tried_nli.method != "prompt_only")
grid = tried_nli.assign(condition=names.where(~of_prompt, names + ", its prompt"))
for (backbone, k), part in grid.groupby(["backbone", "shots"]):
    about = f"{about_data(part)}; {models[backbone]}; {k} shots."
    figure = figures.rate_grid(part, about, "dev_accuracy")
    keep(figure, f"{backbone.split('/')[-1]}-nli-rates-{k}-shots")

# %% [markdown]
# ## 10. The claims
#
# Each claim of the papers with its effect, interval and verdict. *Undecided* is a result: the runs
# leave both signs open. *Not run* and *not defined* say that there is nothing to decide.

# %%
verdicts = pd.concat([claims.judge(rows, base), claims_ltp.judge(nli)], ignore_index=True)
shown = ["backbone", "shots", "languages", "seeds", "effect", "low", "high", "verdict"]
verdicts.set_index(["claim", "what"])[shown].round(2)

# %% [markdown]
# ## 11. The numbers behind them
#
# Mean accuracy over seeds with its 95 % interval, English and the mean of the other languages. Such
# means compare only over the same languages, so each says of how many it is.

# %%
ticket = ["strategy", "active_ratio", "trained_on"]
keys = ["backbone", "data", "study", *base, "learning_rate", *ticket, "group"]
measured = pd.concat([accuracy[accuracy.backbone.isin(models)], compared])
measured["trained_on"] = measured.train_language.fillna("eng")
measured.loc[measured.study == claims_ltp.OWN, "trained_on"] = "own"
for name in ("length", "hidden", "learning_rate", "active_ratio"):
    measured[name] = measured[name].map("{:.4g}".format, na_action="ignore")
measured[keys[:-1]] = measured[keys[:-1]].astype(object).fillna("none")

# %%
english, nli_rows = measured.language == "eng", measured.task == "nli"
groups = measured.assign(group=english.map({True: "eng", False: "others"}))
each = measured[nli_rows & ~english].assign(group=lambda t: t.language)
numbers = summary(pd.concat([groups, each]), keys)
assert (numbers.languages[numbers.group != "others"] == 1).all() and (numbers.data != "none").all()
means = numbers[numbers.group.isin(["eng", "others"])]
for _, part in means.groupby(["backbone", "data", "study"], sort=False):
    varied = [k for k in keys[3:-1] if k != "method" and part[k].nunique() > 1]
    wide = part.set_index(["study", "method", *varied, "group"])[["mean", "languages"]]
    wide = wide.unstack(sort=False)
    both = wide["mean"].reindex(columns=["eng", "others"]).round(1)
    display(both.assign(languages=wide["languages"].max(axis=1).astype(int)))

# %%
if run_dir:
    target = root / "figures" / profile / data_name
    target.mkdir(parents=True, exist_ok=True)
    tables = {"numbers": numbers, "claims": verdicts, "ledger": ledger}
    for name, table in tables.items():
        table.to_csv(target / f"{name}.csv", index=False, float_format="%.6g")

# %%
benchmark = "xnli" if "xnli" in set(nli.data) else "pocket_nli"
parts = dict.fromkeys(["C1", "C3"], f"transfer-{shots}-shots")
parts |= {"C2": f"distance-{shots}-shots", "C4": "length", "C5": "reparameterization"}
parts |= dict.fromkeys(["C6", "C10"], f"{benchmark}-zero_shot_nli")
parts |= {"C7": "americasnli-zero_shot_nli"}
shown = {c: n for c, part in parts.items() for k, n in drawn.items() if k.endswith(f"-{part}")}

# %%
behind = verdicts[verdicts.run != ""].groupby("claim").run.agg(", ".join)
behind = {claim: sorted({*text.split(", ")}) for claim, text in behind.items()}
if run_dir:
    manifests = {name: manifest for name, (_, manifest) in finished.items()}
    final = f"make run PROFILE={profile} RUN={data_name}-99_final_figures"  # judges them
    calls = {
        c: f"{runs.command(*map(manifests.get, names))} && {final}" for c, names in behind.items()
    }
    every = claims.CLAIMS | claims_ltp.CLAIMS
    page = claims.page(verdicts, shown, f"make reproduce PROFILE={profile}", calls, every)
    (target / "claims.md").write_text(page, encoding="utf-8")

# %%
data_read = next(iter(facts.values()))["data"]
results = runs.finish([], run_dir, allow_empty=True, data=data_read)
