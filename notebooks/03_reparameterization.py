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
# # Reparameterization: train a small network, keep its output
#
# **Question.** A prompt can be trained directly, or as the output of a small network that is thrown
# away afterwards. Does that help transfer, and does it help every language? (SPT, claim C5)

# %% tags=["parameters"]
profile: str = "pocket"  # name of the profile this run belongs to
run_dir: str = ""  # where a batch run wants its results; "" writes nothing
data: str = "embedded"  # embedded, directory (the folder in XLCORE_DATA), hub, or auto
backbone: str = "gemma-3-270m"  # a model name, a Hub id or a local folder
languages: list[str] | str = ["eng", "fra", "hin", "swh", "zho"]  # languages to test on
shots: int = 8  # labelled English examples per class
length: int = 5  # soft prompt tokens
seeds: list[int] = [1, 2, 3]  # each seed is a draw, start values and a batch order
kinds: list[str] = ["none", "mlp", "residual_mlp", "lstm"]  # the networks to compare
rates: list[float] = [0.1, 0.01, 0.01, 0.003]  # learning rate of each, by 11_learning_rates
widths: list[int] = [200]  # hidden units inside the networks
train_norm: bool = False  # whether the networks' LayerNorm learns; frozen in the released code
epochs: int = 6  # passes over the training examples

# %%
import matplotlib.pyplot as plt
import pandas as pd
import torch

from xlcore import figures, runs
from xlcore.backbones import weights_sha256
from xlcore.prompts import Reparameterization, SoftPrompt
from xlcore.statistics import by_seed
from xlcore.study import Study

figures.style()

# %% [markdown]
# ## 1. The idea on a toy
#
# Trained are $n$ vectors $E$ and a network $g$ that all positions share; the decoder sees
# $P = g(E)$. The paper's $g$ is Linear, ReLU, Linear, LayerNorm:
#
# $$P = \mathrm{LayerNorm}\big(W_2\,\mathrm{ReLU}(W_1 E + b_1) + b_2\big)$$

# %%
toy = Reparameterization("mlp", width=8, hidden=3, seed=1, train_norm=False)
prompt = SoftPrompt(torch.rand(2, 8) - 0.5, network=toy)
print(tuple(prompt.weight.shape), "->", tuple(prompt.vectors().shape))
print("rows have mean", prompt.vectors().mean(1).detach().abs().round(decimals=4).tolist())

# %% [markdown]
# The LayerNorm gives every prompt vector mean 0 and variance 1, up to its gain $\gamma$ and shift
# $\beta$. By hand, from the same weights: another order of the layers would fail here.

# %%
W1, b1, W2, b2, gamma, beta = toy.state_dict().values()
y = torch.relu(prompt.weight @ W1.T + b1) @ W2.T + b2  # (2, 3) -> (2, 8)
y = y - y.mean(1, keepdim=True)
by_hand = gamma * y / (y.square().mean(1, keepdim=True) + 1e-5).sqrt() + beta
assert torch.allclose(prompt.vectors(), by_hand, atol=1e-5)

# %% [markdown]
# The residual MLP adds its input, $P = E + g(E)$ (Razdaibiedina et al. 2023). The LSTM reads $E$ in
# both directions, so that positions see one another: $P = W_2\,\mathrm{ReLU}(W_1\,
# \mathrm{BiLSTM}(E) + b_1) + b_2$ (Liu et al. 2021).

# %%
for kind in ("mlp", "residual_mlp", "lstm"):
    network = Reparameterization(kind, width=8, hidden=3, seed=1, train_norm=False)
    vectors = SoftPrompt(torch.rand(2, 8) - 0.5, network=network).vectors().detach()
    print(f"{kind:<12} {tuple(vectors.shape)}, lengths", vectors.norm(dim=1).numpy().round(2))

# %% [markdown]
# While its LayerNorm is frozen, the MLP chooses directions only: each vector has length $\sqrt d$,
# here 2.83. Plain vectors and the other two networks may have any length.

# %% [markdown]
# ## 2. The plan
#
# All networks see the same draws and start from the same vectors $E$; each has the learning rate
# that English dev loss chose for it.

# %%
assert len(kinds) == len(rates), "one learning rate for each kind of network"
study = Study.plan(
    backbone, languages, data, shots=shots, seeds=seeds, lengths=[length], epochs=epochs
)
variants = [
    Study.plan(
        backbone, languages, data, shots=shots, seeds=seeds, lengths=[length], epochs=epochs,
        learning_rate=rate, reparameterization=kind, hidden=width, train_norm=train_norm,
    )
    for kind, rate in zip(kinds, rates, strict=True)
    for width in (widths if kind != "none" else widths[:1])
]  # fmt: skip

# %% [markdown]
# All variants stand behind the same texts, so they train side by side, none in another's sight.

# %%
model = study.load()
before = weights_sha256(model.model)
jobs = [job for variant in variants for job in variant.jobs(model)]
jobs, trained = study.train(model, jobs)
assert weights_sha256(model.model) == before

# %% [markdown]
# Many more numbers are trained with a network than without, but what is kept is always
# $n \times d$.

# %%
counts = {
    (job.prompt.network.kind, job.prompt.network.hidden) if job.prompt.network else ("none", 0):
    [sum(p.numel() for p in job.prompt.parameters() if p.requires_grad), one.best.numel()]
    for job, one in zip(jobs, trained, strict=True)
}  # fmt: skip
pd.DataFrame(counts, index=["trained", "kept"])

# %% [markdown]
# ## 3. Do they learn English?
#
# Loss on the English dev sentences. A network that has not learned English cannot be judged on
# transfer.

# %%
figure, ax = plt.subplots(figsize=(5.6, 3))
palette = (figures.BLACK, figures.BLUE, figures.ORANGE, figures.GREEN)
colours = dict(zip(kinds, palette, strict=False))
for job, one in zip(jobs, trained, strict=True):
    kind = job.prompt.network.kind if job.prompt.network else "none"
    curve = pd.DataFrame(one.history).set_index("epoch").dev_loss
    ax.plot(curve, color=colours[kind], alpha=0.7)
for kind, colour in colours.items():
    ax.plot([], [], color=colour, label=figures.readable(kind))
ax.set(xlabel="epoch", ylabel="English dev loss (nats)", ylim=(0, None))
_ = ax.legend()

# %% [markdown]
# ## 4. Transfer
#
# All prompts are scored against one pass over each language's texts.

# %%
rows = study.evaluate(model, jobs, trained, "reparameterization")
kept = figures.pick(rows, metric="accuracy", selection="best_dev")
condition = kept.reparameterization + kept.hidden.map(lambda h: f" {h}" if h else "")
kept = kept.assign(condition=condition)
table = kept.pivot_table(index="language", columns="condition", values="value", sort=False)
table.rename(index=figures.name_of).round(1)

# %%
about = f"{study.data.describe()}; {backbone}, frozen; n = {length}, {shots} shots."
figure = figures.heat_map(kept, about, base="none")

# %% [markdown]
# ## 5. Paired differences
#
# A seed has the same draw in every variant, so subtract within seeds. The interval is over seeds.

# %%
wide = kept.pivot_table(index=["language", "seed"], columns="condition", values="value")
effects = wide.drop(columns="none").sub(wide["none"], axis=0).stack().rename("value").reset_index()
effects["group"] = effects.language.where(effects.language == "eng", "others")
by_seed(effects, ["condition", "group"]).round(1)

# %% [markdown]
# The same for each language: is any of them helped or hurt, beyond what the seeds leave open?

# %%
each = by_seed(effects, ["condition", "language"])
each = each.rename(columns={"condition": "group", "mean": "effect"}).drop(columns="n")
each["label"] = each.language.map(figures.name_of)
figure = figures.effect_bars(each, f"{about} Difference from no network; {len(seeds)} seeds.")

# %% [markdown]
# ## What we saw, and what to try
#
# - The network changes what is easy to learn; the frozen LayerNorm, what can be learned at all.
# - With few seeds, intervals hold 0 almost everywhere; profile `full` has ten seeds and two widths
#   ([what it found](../figures/full/sib200/claims.md), C5).
#
# **Exercises.** (1) Set `train_norm = True`: does a free gain matter? (2) Set `widths = [8, 50,
# 200]`: how small may the network be? (3) Give `mlp` the rate of `none`: what happens?

# %%
results = runs.finish(rows, run_dir, **study.facts(model))
