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
# # Start here: a soft prompt in ten minutes
#
# A language model has never been told what *health* or *sports* news is. We show it eight English
# sentences per topic, train a handful of vectors, and let it sort sentences in other languages.

# %% [markdown]
# The method is soft prompt tuning for cross-lingual transfer (**SPT**: Philippy et al. 2024, *Soft
# Prompt Tuning for Cross-Lingual Transfer: When Less is More*). Everything runs here, on this
# machine, with a real pretrained model.

# %% tags=["parameters"]
profile: str = "pocket"  # name of the profile this run belongs to
run_dir: str = ""  # where a batch run wants its results; "" writes nothing
data: str = "embedded"  # embedded, directory (the folder in XLCORE_DATA), hub, or auto
backbone: str = "gemma-3-270m"  # a model name, a Hub id or a local folder
languages: list[str] = ["eng", "fra", "swh", "zho", "hin"]  # languages to test on
shots: int = 8  # labelled English examples per class
length: int = 5  # soft prompt tokens
seed: int = 1  # of the few-shot draw, the start values and the batch order
epochs: int = 8  # passes over the training examples
learning_rate: float = 0.1  # of AdamW, for the prompt

# %%
import matplotlib.pyplot as plt
import pandas as pd
import torch

from xlcore import evaluation, figures, runs
from xlcore.backbones import weights_sha256
from xlcore.study import Study

figures.style()

# %% [markdown]
# ## 1. A plan, checked before anything heavy
#
# `Study.plan` looks at every choice first: the languages, the files, the label words, the prompt's
# length. A typo fails here, in a second, and not after the model has loaded.

# %%
study = Study.plan(
    backbone, languages, data, shots=shots, seeds=[seed], lengths=[length],
    epochs=epochs, learning_rate=learning_rate,
)  # fmt: skip

# %% [markdown]
# The texts are parallel: one `index_id` is the same sentence in every language. That is what makes
# a comparison between languages fair.

# %%
if study.data.source == "embedded":  # benchmark texts are not shown: their licences differ
    for code in languages:
        print(f"{figures.name_of(code):9}", study.data.examples(code, "test").text[6])

# %% [markdown]
# Only English has training examples. The few-shot draw is seeded and balanced: $K$ sentences per
# class to learn from, and $\lceil K/4 \rceil$ per class to choose the best epoch with.

# %%
train, dev = study.draws[0].texts(study.data)
pd.DataFrame({"train": train.label.value_counts(), "dev": dev.label.value_counts()}).T

# %% [markdown]
# ## 2. The verbalizer: one word per label
#
# The model answers in its own vocabulary. Each label gets one English **label word** of exactly one
# token, the same in all languages; the best-scored word is the prediction.

# %%
words = study.verbalizer
pd.DataFrame({"label word": words.words, "token id": words.ids}, index=words.labels).T

# %% [markdown]
# ## 3. The backbone, frozen
#
# Now the weights load. They will not change by one bit: we keep their hash and compare it at the
# end.

# %%
model = study.load()
before = weights_sha256(model.model)
print("width d =", model.width, "| vocabulary V =", model.words)

# %% [markdown]
# ## 4. A hard prompt is a soft prompt made of words
#
# Append the tokens of `" The topic is"` to a text and read which label word would come next. In
# terms of vectors: put those words' embeddings behind the text's.

# %%
ids = torch.tensor(model.tokenizer.encode(" The topic is", add_special_tokens=False))
hard = model.word_vectors(ids)
print([model.tokenizer.decode([i]) for i in ids], "->", tuple(hard.shape), "= (n, d)")

# %% [markdown]
# A check by eye and by `assert`: the vectors give the same scores as feeding the tokens themselves.
# In float32, a position off by one would fail here (0.2 in a score), and so would a wrong scale.

# %%
text = train.text[0]
exact = study.checkpoint.fresh(torch.float32)  # bfloat16 rounds such a difference away
given = exact.tokenizer(text + " The topic is", return_tensors="pt")
plain = exact.model(**given).logits[0, -1, list(words.ids)].detach()
ours = evaluation.score(exact, [exact.word_vectors(ids).detach()], [text], words)[0, 0]
print("tokens:  ", plain.numpy().round(3), "\nvectors: ", ours.numpy().round(3))
assert (ours - plain).abs().max() < 1e-3

# %% [markdown]
# ## 5. A soft prompt is learned
#
# Replace the words' embeddings by $n$ free vectors $P \in \mathbb{R}^{n \times d}$ and train only
# them. With $h$ the hidden state at the last prompt position and $w_y$ the label word:
#
# $$\mathcal{L}(P) = -\log \mathrm{softmax}\big(W h([x; P])\big)_{w_y}$$

# %% [markdown]
# In a causal decoder the text stands *before* the prompt, so its keys and values do not depend on
# $P$. They are computed once; each step runs only $n$ tokens per text.

# %%
jobs, trained = study.train(model)
prompt = trained[0]
print(f"{prompt.best.numel()} trained numbers, best epoch {prompt.best_epoch} of {epochs}")

# %%
history = pd.DataFrame(prompt.history).set_index("epoch")
figure, ax = plt.subplots(figsize=(5.2, 3))
ax.plot(history.train_loss, "o-", color=figures.BLUE, label="train")
ax.plot(history.dev_loss, "s-", color=figures.ORANGE, label="dev")
ax.set(xlabel="epoch", ylabel="cross-entropy (nats)", ylim=(0, None), xticks=history.index)
_ = ax.legend()

# %% [markdown]
# You should see both losses fall. The dev loss decides which epoch is kept; with two dev sentences
# per class it is a noisy judge.

# %% [markdown]
# ## 6. Other languages, without one example of them
#
# The same vectors, the same English label words, other languages' sentences: zero-shot transfer.

# %%
both = evaluation.evaluate(model, [hard, prompt.best], study.data, words)
table = both[both.metric == "accuracy"].pivot(index="language", columns="prompt", values="value")
table = table.loc[[study.data.code(code) for code in languages]]
table.columns = ["hard prompt", "soft prompt"]
table.round(1)

# %%
figure, ax = plt.subplots(figsize=(6, 3.4))
shown = table.rename(index=figures.name_of)
shown.plot.bar(ax=ax, color=[figures.GREY, figures.BLUE], rot=0, width=0.75, legend=False)
ax.axhline(100 / len(words.labels), color="black", ls=":", lw=1, label="chance")
ax.set(xlabel="", ylabel="accuracy (%)", ylim=(0, 100))
ax.grid(axis="x", visible=False)
figure.legend(ncols=3, loc="outside upper right")
figures.caption(figure, f"{study.data.describe()}; {backbone}, one seed, {shots} shots.", both)

# %% [markdown]
# One seed on few sentences says little about a language: with 70 texts an accuracy near 50 % has a
# standard error of 6 points. The next notebooks repeat it over seeds.

# %% [markdown]
# ## 7. Nothing else moved
#
# The hash of all weights is what it was. The whole difference between the grey and the blue bars is
# in the prompt's vectors.

# %%
assert weights_sha256(model.model) == before
assert not set(train.index_id) & set(study.data.examples("eng", "test").index_id)
print("weights unchanged:", before[:16])

# %% [markdown]
# ## What we saw, and what to try
#
# - A label word and $n$ vectors turn a language model into a classifier, with its weights frozen.
# - What is learned in English carries over, less so to languages that the model knows less.
#
# **Exercises.** (1) Set `languages` to others, such as `"fin"` or `"ell"`; which is best, and is it
# the nearest to English? (2) Set `shots = 2`. (3) Change `seed` five times and note the spread.
#
# **Next.** `01_frozen_transfer` looks at all languages, `02_prompt_length` at how long a prompt
# should be.

# %%
about = dict(study="start_here", task="topics", data=study.data.name, backbone=backbone, seed=seed,
             shots=shots, selection="best_dev")  # fmt: skip
rows = both.assign(**about, method=both.prompt.map({0: "hard_prompt", 1: "soft_prompt"}),
                   length=both.prompt.map({0: len(hard), 1: length}))  # fmt: skip
results = runs.finish(rows.drop(columns="prompt"), run_dir, **study.facts(model))
