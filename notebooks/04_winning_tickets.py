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
# # Winning tickets: which weights does a language model move, and are they the ones to train?
#
# **Question.** LTP trains a pretrained encoder a little further on English text, without labels,
# and notes which weights move most. Then it goes back to the original weights and trains only
# those, with a soft prompt in front, on a few labelled English examples. Does that transfer better
# than training everything, or nothing, or as many weights at random? (LTP, sections 3 and 4)

# %% tags=["parameters"]
profile: str = "pocket"  # name of the profile this run belongs to
run_dir: str = ""  # where a batch run wants its results; "" writes nothing
data: str = "embedded"  # embedded, directory (the folder in XLCORE_DATA), hub, or auto
encoder: str = "multilingual-e5-small"  # a model name, a Hub id or a local folder of an encoder
languages: list[str] | str = ["eng", "spa", "swh"]  # languages to test on
mining_language: str = "eng"  # language of the text that decides which weights matter
head_steps: int = 60  # steps that fit a masked-language-model head where the encoder has none
mlm_steps: int = 30  # steps of masked language modelling in which the weights move
mlm_rate: float = 1e-4  # its learning rate
block: int = 64  # tokens of a block of text
batch_size: int = 8  # blocks a step
vocabulary: str = "text"  # words that a masked one is told from: those of the text, or all (full)
mlm_seeds: list[int] = [1, 2]  # the first one's ticket is trained; the second says how sure it is
scope: str = "encoder"  # weights a ticket may choose from: encoder, all, embeddings, layers a-b
active_ratio: float = 0.2  # share of those weights that a ticket holds
strategies: list[str] = ["movement", "relative_movement", "magnitude_increase", "large_final"]
methods: list[str] = ["ltp", "random_ticket", "fine_tuning", "prompt_only"]  # what is compared
tuned: str = "body"  # weights that full tuning moves: all, or body (without word embeddings)
shots: int = 16  # labelled English examples per class
seeds: list[int] = [1, 2]  # each seed is a draw, start values and a batch order
epochs: int = 3  # passes over the training examples
length: int = 4  # soft prompt tokens
test_pairs: int | None = None  # test pairs a language, the same in all; None: all there are

# %%
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

# %%
from xlcore import artefacts, figures, mining, mlm, prose, runs, tickets
from xlcore.backbones import weights_sha256
from xlcore.checkpoints import cache_folder
from xlcore.devices import choose_device, choose_dtype
from xlcore.encoder_study import EncoderStudy
from xlcore.masked_training import MaskedWeights
from xlcore.methods import Recipe, applied, score
from xlcore.statistics import against

figures.style()

# %% [markdown]
# ## 1. The idea on a toy
#
# Six weights before and after a little more pretraining. The score of a weight is how far it moved,
#
# $$s_i = |w_i^{(1)} - w_i^{(0)}|,$$
#
# and the ticket is the $k$ weights of the highest score. Which two would you choose?

# %%
start = {"layer.0.weight": torch.tensor([[0.5, -0.2, 0.9], [0.1, 0.4, -0.7]])}
end = {"layer.0.weight": torch.tensor([[0.6, -0.2, 0.2], [0.25, -0.1, -0.8]])}
toy = tickets.select(tickets.score("movement", start=start, end=end), k=2)
pd.DataFrame({
    "before": start["layer.0.weight"].flatten(), "after": end["layer.0.weight"].flatten(),
    "active": toy.mask("layer.0.weight").flatten(),
}).round(2).T  # fmt: skip

# %%
assert toy.indices("layer.0.weight").tolist() == [2, 4]

# %% [markdown]
# Other choices of two, on the same toy: the weights that moved most for their size, those that grew
# most, or those that are largest at the end. No two strategies agree.

# %%
choices = {
    name: tickets.select(tickets.score(name, start=start, end=end), k=2)
    for name in ("movement", "relative_movement", "magnitude_increase", "large_final")
}
pd.DataFrame({n: t.mask("layer.0.weight").flatten().int() for n, t in choices.items()}).T

# %% [markdown]
# Two random tickets of 2 out of 6 share 2 · 2 / 6 = 0.67 weights on average. That is what an
# overlap must be held against:

# %%
pd.DataFrame({n: toy.overlap(t) for n, t in choices.items() if n != "movement"}).T.round(2)

# %% [markdown]
# And then? Back to the six weights of before, and only the two of the ticket may move: here one
# step of gradient descent on a layer that computes two sums. When the block is left, they go back.

# %%
layer = torch.nn.Linear(3, 2, bias=False)
sums = torch.nn.ModuleDict({"layer": torch.nn.ModuleList([layer])})
sums.load_state_dict(start)
with MaskedWeights(sums, toy) as active:
    step = torch.optim.SGD(active.parameters(), lr=0.1)
    layer(torch.ones(3)).square().sum().backward()  # all six weights have a gradient
    step.step()
    active.write()
    trained = layer.weight.detach().flatten().clone()
shown = dict(before=start["layer.0.weight"], trained=trained, given_back=layer.weight.detach())
pd.DataFrame({name: w.flatten() for name, w in shown.items()}).round(2).T

# %%
assert (trained != start["layer.0.weight"].flatten()).nonzero().flatten().tolist() == [2, 4]
assert torch.equal(layer.weight, start["layer.0.weight"])

# %% [markdown]
# ## 2. The plan
#
# The task is natural language inference: does the premise entail the hypothesis (*right*),
# contradict it (*wrong*), or neither (*maybe*)? The encoder fills the mask in
# `{premise} . {hypothesis} ? <mask> .`, and the best-scored of the three words is the answer.

# %%
assert "ltp" in methods, "the others are compared with ltp"
assert "movement" in strategies, "the ticket that is trained goes by movement"
mixed = choose_dtype("auto", choose_device()) == "bfloat16"  # weights stay in float32
study = EncoderStudy.plan(
    encoder, languages, data, methods=methods, shots=shots, seeds=seeds, epochs=epochs,
    length=length, test_pairs=test_pairs, mixed=mixed,
)  # fmt: skip
model = study.load()
original = weights_sha256(model.model)

# %% [markdown]
# What the encoder reads, for one test pair: the prompt's vectors stand in front, where words would
# have their embeddings. With a soft prompt alone, nothing but these is trained.

# %%
pair = study.data.examples("eng", "test").head(1)
cloze = study.labelled(model, pair, Recipe("prompt_only", length=length)).tokens
words = model.tokenizer.convert_ids_to_tokens(cloze.ids[0].tolist())
at = int(cloze.slots[0, 0])  # where a prefix stands: behind the opening token
print(*words[:at], *["[vector]"] * length, *words[at:])

# %% [markdown]
# ## 3. Masked language modelling
#
# Fifteen in a hundred tokens are chosen; most become the mask token, some a random token, some
# stay. The model must name what stood there. Here is the beginning of a block, before and after:

# %%
text = prose.read(data, mining_language)
blocks = mlm.pack(text, model.tokenizer, block)
inputs, chosen = mlm.corrupt(blocks, blocks.train[:1], seed=1, epoch=1)
words = [model.tokenizer.convert_ids_to_tokens(ids[0, 1:13].tolist())
         for ids in (blocks.ids[blocks.train[:1]], inputs)]  # fmt: skip
pd.DataFrame(words, index=["text", "the model sees"])

# %% [markdown]
# The pocket encoder was published without the head that names words. So a head is fitted first,
# with the encoder frozen; an encoder that has one skips this. What is mined is kept in your cache.

# %%
settings = mlm.Settings(
    mlm_steps, mlm_rate, batch_size, vocabulary=vocabulary, label_words=study.verbalizer.ids,
    mixed=mixed,
)  # fmt: skip
body = weights_sha256(model.model.base_model)

# %%
mined = [
    mining.mined(model, blocks, replace(settings, seed=seed), scope, head_steps, cache_folder())
    for seed in mlm_seeds
]
assert weights_sha256(model.model.base_model) == body  # mining leaves the encoder where it was
base = weights_sha256(model.model)

# %%
phases = {"the head is fitted": mined[0].head, "the weights move": mined[0].history}
phases = {title: pd.DataFrame(rows) for title, rows in phases.items() if rows}
figure, axes = plt.subplots(1, len(phases), figsize=(6.5, 2.6), squeeze=False, layout="constrained")
for ax, (title, rows) in zip(axes[0], phases.items(), strict=True):
    train, held = (rows[rows.part == part].set_index("step").loss for part in ("train", "held_out"))
    ax.plot(train.rolling(10, min_periods=1).mean(), label="training, mean of 10")
    ax.plot(held, "o", color=figures.BLACK, label="held-out text")
    ax.set(xlabel="step", ylabel="masked-word loss (nats)")
    ax.set_title(title, loc="left")
_ = axes[0][0].legend()

# %% [markdown]
# ## 4. The mask
#
# Every strategy takes exactly as many weights. The ticket is kept as one bit a weight.

# %%
found = {name: mined[0].ticket(name, active_ratio) for name in [*strategies, "random"]}
print(found["movement"], "in scope", scope)

# %% [markdown]
# How far did the weights move? The ticket is what lies right of the line.

# %%
before, after = (mined[0].evidence[end] for end in ("start", "end"))
moved = torch.cat([(after[n] - w).abs().flatten() for n, w in before.items()]).numpy()
inside = torch.cat([found["movement"].mask(n).flatten() for n in before]).numpy()
figure, ax = plt.subplots(figsize=(5.6, 2.6), layout="constrained")
ax.hist(moved, bins=np.linspace(0, np.quantile(moved, 0.999), 100), color=figures.BLUE)
ax.axvline(moved[inside].min(), color=figures.ORANGE, label=f"{100 * active_ratio:.0f} % beyond")
ax.set(xlabel="movement of a weight", ylabel="weights")
_ = ax.legend()

# %% [markdown]
# Were there weights of exactly 0? In the pocket encoder, stored in 4 bits, one in seven. A strategy
# that divides by size takes them all, one that asks for size takes none: mind this before you
# compare strategies on such weights.

# %%
zero = torch.cat([(w == 0).flatten() for w in before.values()])
chosen = {name: torch.cat([t.mask(n).flatten() for n in before]) for name, t in found.items()}
shares = {"all in scope": zero} | {name: zero[mask] for name, mask in chosen.items()}
pd.Series({name: 100 * float(x.float().mean()) for name, x in shares.items()}).round(1).to_frame(
    "% zero"
)

# %% [markdown]
# Where do they lie? A bar above the line says that the ticket takes more of that layer than chance
# would. (LTP, Figure 3)

# %%
counts = pd.concat(t.counts().assign(strategy=name) for name, t in found.items())
about = f"{encoder}; {100 * active_ratio:.0f} % of {scope}; {text.name}, {mlm_steps} steps."
figure = figures.ticket_layers(counts, about)

# %% [markdown]
# ## 5. How sure is the ticket?
#
# The same text in another order, other masks: how many of the same weights move most? As on the
# toy, chance is the measure: it gives a ratio of 1, and the same ticket again 1 / active ratio.

# %%
again = [one.ticket("movement", active_ratio) for one in mined[1:]]
others = {f"movement, seed {s}": t for s, t in zip(mlm_seeds[1:], again, strict=True)}
others |= {name: ticket for name, ticket in found.items() if name != "movement"}
overlap = pd.DataFrame({n: found["movement"].overlap(t) for n, t in others.items()}).T
of_it = (100 * overlap[["shared", "expected"]] / found["movement"].k).round(1)
of_it.set_axis(["% of the ticket shared", "% by chance"], axis=1).assign(
    ratio=overlap.ratio.round(2)
)

# %% [markdown]
# ## 6. Train
#
# Back to the original weights. Only the ticket's weights and the prompt may move; all others must
# stay, to the bit. Every method sees the same sentences in the same order; a random ticket is drawn
# anew for each seed.

# %%
rows, losses, kept = [], [], None
for method in methods:
    for seed in seeds:
        told = mined[0].told(method, seed, "movement", active_ratio, tuned)
        (one,) = study.train(model, method, seeds=[seed], **told)
        rows.append(study.evaluate(model, [one], "winning_tickets"))
        losses.append(study.losses(one))
        kept = one if method == "ltp" else kept
assert weights_sha256(model.model) == base
rows, losses = pd.concat(rows), pd.concat(losses)

# %% [markdown]
# Did they learn English? Accuracy on the English dev pairs, a line a draw; guessing gives 33.3.
# Tested is the ringed epoch: the most accurate, of equals the one of lowest loss. How many dev
# pairs are there? With a dozen, one pair is 8 points.

# %%
print(*(f"draw {d.seed}: {len(d.dev_ids)} English dev pairs" for d in study.draws["eng"]), sep="\n")
about = f"{study.describe(model)}; {shots} English shots."
figure = figures.dev_curves(losses, about, "dev_accuracy", guess=100 / 3)

# %% [markdown]
# ## 7. Transfer
#
# Accuracy in percent, means over draws; guessing gives 33.3.

# %%
accuracy = figures.pick(rows, metric="accuracy")
table = accuracy.pivot_table(index="language", columns="method", values="value", sort=False)
table.rename(index=figures.name_of).round(1)

# %%
figure = figures.heat_map(accuracy, f"{about} {epochs} epochs.", condition="method")

# %% [markdown]
# Paired within draws: LTP minus each other method, on the mean of the languages other than English.
# With few draws and few test pairs, look at the interval before reading anything into a difference.

# %%
differences = against(accuracy[accuracy.language != "eng"], "ltp")
differences[["effect", "low", "high", "p", "languages", "seeds"]].round(2)

# %% [markdown]
# How many numbers each method trains and keeps:

# %%
sizes = rows.drop_duplicates("method").set_index("method")[["trained", "active", "active_ratio"]]
sizes.round(3)

# %% [markdown]
# ## 8. One file
#
# Prompt, mask, the trained values and a head that had to be fitted go into one file with a card:
# 4.6 bytes an active weight, 2.6 in bfloat16. Put on a fresh encoder it gives the same answers, and
# comes off again without a trace.

# %%
one = kept  # the last draw's prompt and ticket
whole = artefacts.from_encoder(
    model, one.prompt, one.recipe.kind.position, one.recipe.ticket, one.weights,
    dict(strategy="movement", **mined[0].about),
)  # fmt: skip
tokens = study.labelled(model, study.data.examples(study.data.languages[0], "test"), one.recipe)
with applied(model, one) as read:
    wanted = score(model, read, tokens.tokens, study.verbalizer, mixed)

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "ticket.safetensors"
    whole.save(path)
    size, loaded, fresh = path.stat().st_size, artefacts.load(path), study.load()
print(f"{size / 1e6:.1f} MB, {size / loaded.ticket.k:.2f} bytes for each of {loaded.ticket}")

# %%
own = model.model.base_model.state_dict()  # the original weights
with artefacts.apply(loaded, fresh) as vectors:
    read = partial(fresh.mask_states, vectors=vectors)
    worn = score(fresh, read, tokens.tokens, study.verbalizer, mixed)
    differ = {n: int((w != own[n]).sum()) for n, w in fresh.model.base_model.state_dict().items()}
print(f"{sum(differ.values()):,} weights differ from the original ones")
print("the same answers:", torch.equal(worn, wanted))
assert torch.equal(worn, wanted) and weights_sha256(fresh.model) == original

# %% [markdown]
# ## What we saw, and what to try
#
# - Which weights move most is a property of the model, the text and the order in which it is read:
#   section 5 says how much of it is noise. After so few steps, that is a good part.
# - With the defaults, sixteen examples a class and a few passes, all methods stay near guessing:
#   they show how the parts fit together, not which method is better.
# - A ticket leaves all other weights as they were, so several tickets can share one encoder.
#
# **Exercises.** (1) Set `mlm_steps = 300`: does the overlap with the second seed grow? And with
# `shots = 48` and `epochs = 10`, who learns? (2) Set `active_ratio = 0.01`: how few weights are
# enough? (3) Mine in Swahili (`mining_language = "swh"`, and `block = 32`, for there is less text):
# another ticket, and does it serve Swahili better? (4) Set `scope = "layers 5-8"` and three times
# the `active_ratio`: as many weights, in the middle.

# %%
ids = dict(study="winning_tickets", task="nli", data=study.data.name, backbone=encoder, seed=0,
           shots=0, language=mining_language, scope=scope, active_ratio=active_ratio)  # fmt: skip
lying = counts.melt(["strategy", "layer", "kind"], ["active", "total"], "metric")
shared = overlap[["ratio"]].rename_axis("strategy").reset_index()
shared = shared.melt("strategy", var_name="metric").replace({"metric": {"ratio": "overlap"}})
moved = pd.concat([lying, shared]).assign(method="mining", **ids)

# %%
curves = pd.concat(pd.DataFrame([*one.head, *one.history]).assign(
    seed=seed, phase=["head"] * len(one.head) + ["weights"] * len(one.history))
    for seed, one in zip(mlm_seeds, mined, strict=True))  # fmt: skip
curves = curves.rename(columns={"loss": "value"}).assign(
    method="mining", **ids | {"seed": curves.seed}
)
curves["metric"] = "mlm_" + curves.pop("part") + "_loss"
everything = pd.concat([rows, moved, curves, pd.DataFrame(study.references("winning_tickets"))])
results = runs.finish(everything, run_dir, mining=mined[0].about, **study.facts(model))
