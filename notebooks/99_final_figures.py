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
# Every figure of a profile is drawn here from the `results.jsonl` of its finished runs, and from
# nothing else. Each carries the hash of its rows.

# %% tags=["parameters"]
profile: str = "pocket"  # the profile whose runs are read, and whose figures are written
run_dir: str = ""  # where a batch run wants its results; "" writes nothing, figures neither
data: str = "embedded"  # embedded, directory (the folder in XLCORE_DATA) or hub

# %%
import hashlib

import pandas as pd

from xlcore import figures, runs
from xlcore.statistics import by_seed

figures.style()
root = figures.repository()
finished = figures.read_runs(profile, data, root)

# %% [markdown]
# ## 1. The runs
#
# What was run, on what, for how long. A run's folder holds the full manifest: parameters, hashes of
# code and data, versions.

# %%
pd.DataFrame({
    name: {"backbone": m["facts"]["backbone"]["name"], "dtype": m["facts"]["backbone"]["dtype"],
           "rows": len(rows), "seconds": m["seconds"]}
    for name, (rows, m) in finished.items()
}).T  # fmt: skip

# %% [markdown]
# A run's rows must be the ones its manifest was written for.

# %%
for name, (_, manifest) in finished.items():
    path = root / "papermill_runs" / profile / name / "results.jsonl"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == manifest["results_sha256"], name

# %% [markdown]
# ## 2. The figures
#
# One function per study. A figure's file name says which run it shows.

# %%
DRAW = {"frozen_transfer": figures.transfer_profile, "prompt_length": figures.length_curves}
drawn = []
for name, (rows, manifest) in finished.items():
    if (study := rows.study[0]) in DRAW:
        kept = rows[(rows.metric == "accuracy") & (rows.get("selection") != "last")]
        model, given = manifest["facts"]["backbone"], manifest["parameters"]
        about = f"{manifest['facts']['data']['description']}; {model['name']} ({model['dtype']}), "
        about += f"frozen; {given['shots']} shots, {given['epochs']} epochs."
        figure = DRAW[study](kept, about)
        drawn += figures.save(figure, root / "figures" / profile, name) if run_dir else []

# %% [markdown]
# ## 3. The numbers behind them
#
# Mean accuracy over seeds with its 95 % interval, English and the mean of the other languages.

# %%
tables = []
for name, (rows, _) in finished.items():
    kept = rows[(rows.method == "soft_prompt") & (rows.metric == "accuracy")]
    kept = kept[kept.selection != "last"].assign(run=name)
    kept["group"] = kept.language.where(kept.language == "eng", "others")
    tables.append(by_seed(kept, ["run", "length", "group"]))
numbers = pd.concat(tables, ignore_index=True)
numbers.round(1)

# %%
if run_dir:
    target = root / "figures" / profile / f"{data}-numbers.csv"
    numbers.round(3).to_csv(target, index=False)
    print(*(path.relative_to(root) for path in [*drawn, target]), sep="\n")

# %%
shown = next(iter(finished.values()))[1]["facts"]
results = runs.finish([], run_dir, allow_empty=True, data=shown["data"])
