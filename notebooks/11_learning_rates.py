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
# # Which learning rate? One grid per condition, English dev only
#
# A comparison is only as fair as the worse-tuned side. So each condition gets its own rate, chosen
# from a stated grid by English dev loss; no other language and no test sentence is looked at.

# %% tags=["parameters"]
profile: str = "pocket"  # name of the profile this run belongs to
run_dir: str = ""  # where a batch run wants its results; "" writes nothing
data: str = "embedded"  # embedded, directory (the folder in XLCORE_DATA), hub, or auto
backbone: str = "gemma-3-270m"  # a model name, a Hub id or a local folder
method: str = "soft_prompt"  # or joint_tuning, fine_tuning, lora, prefix_tuning
scope: str = "all"  # weights that full tuning moves: all, or body (without the embedding matrix)
rates: list[float] = [0.05, 0.1, 0.2, 0.5, 1.0]  # the grid
shots: int = 8  # labelled English examples per class
length: int = 5  # prompt tokens
seeds: list[int] = [101, 102]  # draws for this choice only, not those that are reported
epochs: int = 8  # passes over the training examples
init: str = "uniform"  # of the prompt: uniform, vocabulary or label_words
position: str = "suffix"  # of the prompt: suffix or prefix
loss: str = "vocabulary"  # over the full vocabulary, or over the label_words only
reparameterization: str = "none"  # or mlp, residual_mlp, lstm
hidden: int = 200  # width inside the reparameterization
train_norm: bool = False  # whether the reparameterization's LayerNorm learns

# %%
from xlcore import figures, runs
from xlcore.study import Study

figures.style()

# %% [markdown]
# ## 1. The grid
#
# The draws have seeds of their own: a rate chosen on the very draws that are reported would favour
# whichever condition has the larger grid.

# %%
study = Study.plan(
    backbone, ["eng"], data, shots=shots, seeds=seeds, lengths=[length], epochs=epochs,
    init=init, position=position, loss=loss, reparameterization=reparameterization,
    hidden=hidden, train_norm=train_norm,
)  # fmt: skip
study.check_method(method, ["best_dev"])
print(len(rates), "rates,", len(seeds), "draws,", method)

# %%
model = study.load()
losses = study.rates(model, method, rates, scope)
best = losses.groupby(["learning_rate", "seed"]).dev_loss.min().unstack()
assert [*best.index] == sorted(rates) and [*best] == sorted(seeds)  # nothing tried is left out
best.round(3)

# %% [markdown]
# ## 2. The choice
#
# The rate with the lowest mean dev loss, each draw at its best epoch. A rate at which a loss was
# not finite is out.

# %%
about = dict(
    study="learning_rates", task="topics", data=study.data.name, backbone=backbone, method=method,
    language="eng", shots=shots, length=length, init=init, position=position, loss=loss,
    reparameterization=reparameterization, hidden=hidden, scope=scope, metric="dev_loss",
)  # fmt: skip
rows = best.stack().dropna().rename("value").reset_index().assign(**about)
described = f"{study.data.describe()}; {backbone}; {shots} shots."
figure = figures.rate_grid(rows.assign(condition=method), described)

# %% [markdown]
# A minimum at an end of the grid says that the grid was too narrow. Two draws and two dev sentences
# a class are a noisy judge: the series takes the rates that SIB-200 chose, for 5 tokens from ten
# draws ([all grids](../figures/full/sib200/gemma-3-270m-rates.png),
# [by length](../figures/full/sib200/gemma-3-270m-rates-of-lengths.png)).

# %%
means = best.mean(axis=1, skipna=False)
assert means.notna().any(), "a loss was not finite at every rate; try lower ones"
chosen = means.idxmin()
edge = chosen in (min(rates), max(rates)) and len(rates) > 1
print(f"chosen {chosen:g}", "(at the edge of the grid)" if edge else "")

# %%
results = runs.finish(rows, run_dir, chosen=chosen, **study.facts(model))
