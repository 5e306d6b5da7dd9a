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
# # One condition: a method, its draws, every language
#
# The other notebooks teach; this one is for batches. One run is one row of the study's plan: a
# method and its settings, trained on some few-shot draws and tested in every language.

# %% tags=["parameters"]
profile: str = "pocket"  # name of the profile this run belongs to
run_dir: str = ""  # where a batch run wants its results; "" writes nothing
study: str = "frozen_transfer"  # the question that the rows answer, their column `study`
data: str = "embedded"  # embedded, directory (the folder in XLCORE_DATA), hub, or auto
backbone: str = "gemma-3-270m"  # a model name, a Hub id or a local folder
languages: list[str] | str = ["eng", "fra", "swh"]  # languages to test on; "all" takes every one
method: str = "soft_prompt"  # or joint_tuning, fine_tuning, lora, prefix_tuning
scope: str = "all"  # weights that full tuning moves: all, or body (without the embedding matrix)
shots: int = 8  # labelled English examples per class
length: int = 5  # prompt tokens
seeds: list[int] = [1, 2]  # each seed is a draw, start values and a batch order
epochs: int = 8  # passes over the training examples
learning_rate: float = 0.1  # of AdamW, for all that is trained
init: str = "uniform"  # of the prompt: uniform, vocabulary or label_words
position: str = "suffix"  # of the prompt: suffix or prefix
loss: str = "vocabulary"  # over the full vocabulary, or over the label_words only
reparameterization: str = "none"  # or mlp, residual_mlp, lstm
hidden: int = 200  # width inside the reparameterization
train_norm: bool = False  # whether the reparameterization's LayerNorm learns
selections: list[str] = ["best_dev"]  # epochs to test: best_dev, last, or of a soft prompt both

# %%
import pandas as pd

from xlcore import figures, runs
from xlcore.backbones import weights_sha256
from xlcore.study import Study

figures.style()

# %% [markdown]
# ## 1. The plan
#
# Everything is checked before any weights load. A seed gives the same draw, start values and batch
# order in every condition, so differences between conditions are paired.

# %%
plan = Study.plan(
    backbone, languages, data, shots=shots, seeds=seeds, lengths=[length], epochs=epochs,
    learning_rate=learning_rate, init=init, position=position, loss=loss,
    reparameterization=reparameterization, hidden=hidden, train_norm=train_norm,
)  # fmt: skip
plan.check_method(method, selections)
tested = set(plan.data.frame.query("split == 'test'").index_id)
assert all(not tested & {*d.train_ids, *d.dev_ids} for d in plan.draws)

# %% [markdown]
# ## 2. Train and test
#
# Soft prompts share one frozen backbone and train side by side. Every other method trains a copy of
# it, one draw after the other; the frozen one must not change by a bit.

# %%
model = plan.load()
before = weights_sha256(model.model)
if method == "soft_prompt":
    jobs, trained = plan.train(model)
    losses = pd.concat(
        pd.DataFrame(t.history).assign(seed=j.seed, kept=lambda h, t=t: h.epoch == t.best_epoch)
        for j, t in zip(jobs, trained, strict=True)
    )
    rows = plan.evaluate(model, jobs, trained, study, selections)
else:
    rows, losses = plan.tune(model, method, study, scope, selections)
assert weights_sha256(model.model) == before

# %%
about = f"{plan.data.describe()}; {backbone}; {shots} English shots."
figure = figures.dev_curves(losses.assign(method=method, train_language="eng"), about)

# %% [markdown]
# ## 3. What came out
#
# Accuracy in percent, averaged over the draws.

# %%
shown = figures.pick(rows, metric="accuracy", selection=selections[0])
mean = shown.groupby("language").value.mean().rename(index=figures.name_of)
mean.sort_values(ascending=False).round(1).to_frame("accuracy").T

# %%
best = losses.groupby("seed").dev_loss.min()
facts = rows.drop(columns=["metric", "value"]).query("language == 'eng'").drop_duplicates("seed")
dev = facts.assign(metric="dev_loss", value=facts.seed.map(best))
everything = pd.concat([rows, dev, pd.DataFrame(plan.references(study))])
results = runs.finish(everything, run_dir, **plan.facts(model))
