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
# # Which learning rate for each NLI method? English dev pairs only
#
# A comparison is only as fair as the worse-tuned side. So the methods of notebook 07 get rates of
# their own, chosen from a stated grid by English dev accuracy; no other language, no test pair. The
# random ticket alone has LTP's, for the two are to differ in nothing but the choice of weights.

# %% tags=["parameters"]
profile: str = "pocket"  # name of the profile this run belongs to
run_dir: str = ""  # where a batch run wants its results; "" writes nothing
data: str = "embedded"  # embedded, directory (the folder in XLCORE_DATA), hub, or auto
encoder: str = "multilingual-e5-small"  # a model name, a Hub id or a local folder of an encoder
method: str = "ltp"  # any of METHODS
which: str = "learning_rate"  # the rate tried: learning_rate (all but the prompt) or prompt_rate
rates: list[float] = [3e-5, 3e-4, 3e-3]  # the grid
prompt_rate: float = 0.01  # the prompt's rate while learning_rate is tried
tuned: str = "body"  # weights that full tuning moves: all, or body (without word embeddings)
shots: int = 16  # labelled English examples per class
seeds: list[int] = [101, 102]  # draws for this choice only, not those that are reported
epochs: int = 4  # passes over the training examples
length: int = 4  # soft prompt tokens
max_length: int = 128  # tokens of a pair with its template and prompt
mining_language: str = "eng"  # language of the text that decides which weights matter
head_steps: int = 60  # steps that fit a masked-language-model head where the encoder has none
mlm_steps: int = 30  # steps of masked language modelling in which the weights move
mlm_rate: float = 1e-4  # its learning rate
mlm_seed: int = 1  # of its masks and of its batch order
block: int = 64  # tokens of a block of text
batch_size: int = 8  # blocks a step
vocabulary: str = "text"  # words that a masked one is told from: those of the text, or all (full)
strategy: str = "movement"  # what the ticket goes by: movement is LTP's choice
active_ratio: float = 0.2  # share of the weights in scope that a ticket holds
scope: str = "encoder"  # weights a ticket may choose from: encoder, all, embeddings, layers a-b

# %%
import os

import pandas as pd

from xlcore import figures, mining, mlm, prose, runs
from xlcore.checkpoints import cache_folder
from xlcore.devices import choose_device, choose_dtype
from xlcore.encoder_study import EncoderStudy

figures.style()

# %% [markdown]
# ## 1. The grid
#
# The draws have seeds of their own. XNLI's published few-shot splits know no seeds, and the
# comparison is made on them; so from a directory these draws come from a sample of MultiNLI, the
# corpus that XNLI's own training pairs are from. Elsewhere draws are seeded anyway.

# %%
mining.check_ticket(strategy, active_ratio)
mixed = choose_dtype("auto", choose_device()) == "bfloat16"  # weights stay in float32
directory = data == "directory" or (data == "auto" and "XLCORE_DATA" in os.environ)
study = EncoderStudy.plan(
    encoder, ["eng"], data, methods=[method], shots=shots, seeds=seeds, epochs=epochs,
    length=length, prompt_rate=prompt_rate, max_length=max_length, mixed=mixed,
    train_data="mnli_english" if directory else None,
)  # fmt: skip
assert study.drawn == "seeded"
print(len(rates), "rates,", len(seeds), "draws,", method)

# %% [markdown]
# The ticket is the one that notebook 07 trains: mined from plain text, or found in your cache.

# %%
model = study.load()
blocks = mlm.pack(prose.read(data, mining_language), model.tokenizer, block)
settings = mlm.Settings(
    mlm_steps, mlm_rate, batch_size, mlm_seed, vocabulary, study.verbalizer.ids, mixed,
)  # fmt: skip
mined = mining.mined(model, blocks, settings, scope, head_steps, cache_folder())

# %%
told = mined.told(method, seeds[0], strategy, active_ratio, tuned)
history = study.grid(model, method, rates, which, **told)
best = 100 * history.groupby(["rate", "seed"]).dev_accuracy.max().unstack()
assert [*best.index] == sorted(rates) and [*best] == sorted(seeds)  # nothing tried is left out
best.round(1)

# %% [markdown]
# ## 2. The choice
#
# The rate with the highest mean dev accuracy, each draw at its best epoch; of equals, the lower. A
# rate at which a loss was not finite is out. Guessing gives 33.3: does any rate learn more than
# that? Rates whose means lie within the standard error below have not been told apart.

# %%
about = dict(
    study="nli_learning_rates", task="nli", data=study.data.name, backbone=encoder, method=method,
    language="eng", shots=shots, drawn=study.drawn, epochs=epochs, length=length, tried=which,
    strategy=told.get("strategy", "none"), scope=told.get("scope", "none"),
    selection=study.selection,
)  # fmt: skip

# %%
lowest = history.groupby(["rate", "seed"]).dev_loss.min().unstack()
tables = dict(dev_accuracy=best, dev_loss=lowest)
rows = pd.concat(t.stack().dropna().rename("value").reset_index().assign(metric=metric)
                 for metric, t in tables.items())  # fmt: skip
rows = rows.rename(columns={"rate": "learning_rate"}).assign(**about)
described = f"{study.describe(model)}; {shots} shots; tried: {which.replace('_', ' ')}."
named = rows.assign(condition=figures.NAMES.get(method, method))
figure = figures.rate_grid(named, described, "dev_accuracy")

# %% [markdown]
# A best rate at an end of the grid says that the grid was too narrow.

# %%
chosen = best.mean(axis=1, skipna=False).idxmax()
edge = chosen in (min(rates), max(rates)) and len(rates) > 2
print(f"chosen {chosen:g}", "(at the edge of the grid)" if edge else "")
pairs = len(study.draws["eng"][0].dev_ids)
error = 100 * (0.25 / pairs / len(seeds)) ** 0.5  # of a share near one half
print(f"{pairs} dev pairs a draw, {len(seeds)} draws: standard error up to {error:.1f} points")

# %%
results = runs.finish(rows, run_dir, chosen=chosen, mining=mined.about, **study.facts(model))
