"""Few-shot methods on an encoder: what moves, what stays to the bit, and the way there.

Reference: one unpadded text at a time through the plain forward, dense AdamW written out.
"""

import copy
import math
from dataclasses import replace
from functools import cache

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xlcore import artefacts, methods, tickets
from xlcore.backbones import weights_sha256
from xlcore.checkpoints import find
from xlcore.cloze import POSITIONS, TEMPLATES, strip
from xlcore.data import TASKS
from xlcore.encoders import start_head
from xlcore.errors import InputError
from xlcore.methods import METHODS, Recipe, Settings, applied, score, train
from xlcore.prompts import Verbalizer
from xlcore.training import RANKS, Labelled, TrainingDiverged, epoch_batches
from xlcore.tuning import LORA

TINY = ("tiny-xlm-roberta", "tiny-bert")
family = pytest.mark.parametrize("name", TINY)
every = pytest.mark.parametrize("method", METHODS)
QUICK = Settings(epochs=2, batch_size=4, learning_rate=3e-3, prompt_rate=0.03, clip=0.5)
WEIGHTS_EPS = 1e-6  # as BERT's; prompts have PyTorch's own


@cache
def encoder(name):
    """Return a tiny encoder whose weights, biases and gains are all random."""
    torch.set_num_threads(1)  # thread hand-over costs more than these models' arithmetic
    made = find(name, "encoder").fresh(torch.float32)
    g = torch.Generator().manual_seed(3)
    for weight in made.model.parameters():
        weight.add_(torch.randn(weight.shape, generator=g) * 0.1)
    return replace(made)  # whose hash is that of these weights


@cache
def verbalizer():
    return Verbalizer.build(encoder(TINY[0]).tokenizer, TASKS["nli"].words["default"])


@cache
def chosen(name, ratio=0.2):
    """Return a random ticket over the layers but for key biases, whose gradient is only noise."""
    scores = tickets.score("random", 1, start=tickets.parameters(encoder(name).model))
    scores = {n: s for n, s in scores.items() if not n.endswith("key.bias")}
    return tickets.select(scores, round(ratio * sum(s.numel() for s in scores.values())))


def recipe(name, method, **given):
    if METHODS[method].trains is methods.ticket:
        given = dict(ticket=chosen(name), strategy="random", scope="encoder") | given
    return Recipe(method, **dict(seed=5, length=3) | given)


def side(name, method, count, first=0):
    """Return invented pairs in the method's template, of very different lengths."""
    rows = [
        dict(premise="the river rises" * (1 + i % 4), hypothesis=f"a hill {i} is dry" * (1 + i % 2))
        for i in range(first, first + count)
    ]
    tokens = encoder(name).tokenize(TEMPLATES[METHODS[method].template], rows, 90)
    return Labelled(tokens, torch.arange(first, first + count) % 3)


def run(name, method, settings=QUICK, model=None, selection="last", **given):
    model = model or encoder(name)
    draw = side(name, method, 10), side(name, method, 5, 20)
    how = (verbalizer(), settings, selection, False)
    return train(model, recipe(name, method, **given), *draw, *how)


def read(name, trained, rows):
    """Return the label words' scores after training, by the path that users run."""
    with applied(encoder(name), trained) as states:
        return score(encoder(name), states, rows.tokens, verbalizer())


# --- against the plain loop -----------------------------------------------------------------------


class Plain:
    """A method by the book, on a dense copy of the model."""

    def __init__(self, name, one):
        self.one, kind = one, one.kind
        self.model = model = copy.deepcopy(encoder(name).model)
        self.first = 2 if name == "tiny-xlm-roberta" else 0
        self.prompt = self.prefix = None
        named = dict(model.named_parameters())
        self.moved = dict(
            everything=list(named.values()),
            ticket=list(named.values()),
            biases=[p for n, p in named.items() if n.endswith(".bias")],
        ).get(kind.trains.__name__, [])
        words = model.get_input_embeddings().weight
        if kind.position:
            at = torch.randperm(512, generator=torch.Generator().manual_seed(one.seed))
            self.prompt = words[at[: one.length]].detach().clone().requires_grad_()
        torch.manual_seed(one.seed)
        if one.method == "lora":
            self.model = peft.get_peft_model(model, peft.LoraConfig(**LORA))
            self.moved = [p for p in self.model.parameters() if p.requires_grad]
        if one.method == "prefix_tuning":
            self.prefix = nn.Embedding(one.length, 2 * 2 * 32).weight
            self.moved = [self.prefix]
        model.requires_grad_(False)
        for p in self.moved:
            p.requires_grad_()
        self.start = {p: p.detach().clone() for p in self.moved}
        self.mask = {p: torch.ones(p.shape, dtype=torch.bool) for p in self.moved}
        if one.ticket:
            self.mask = {p: torch.zeros(p.shape, dtype=torch.bool) for p in self.moved}
            self.mask |= {p: one.ticket.mask(n) for n, p in one.ticket.of(model).items()}

    def scores(self, rows, r):
        """Return the scores of all words (V,) at the mask of one text, unpadded."""
        ids = rows.tokens.ids[r][rows.tokens.mask[r]]
        label = int(rows.tokens.label[r])
        embeds = self.model.get_input_embeddings()(ids)
        if self.prompt is not None:
            at = int(rows.tokens.slots[r, POSITIONS.index(self.one.kind.position)])
            embeds = torch.cat([embeds[:at], self.prompt, embeds[at:]])
            label += len(self.prompt) * (at <= label)
        place = torch.arange(len(embeds)) + self.first
        if self.prefix is not None:
            return self.layers(embeds[None], place[None] + self.one.length)[0, label]
        return self.model(inputs_embeds=embeds[None], position_ids=place[None]).logits[0, label]

    def layers(self, embeds, place):
        """Return all scores (1, T, V) with the prefix's keys and values, attention written out."""
        body = self.model.base_model
        hidden = body.embeddings(inputs_embeds=embeds, position_ids=place)
        n = self.one.length
        for number, layer in enumerate(body.encoder.layer):
            own = layer.attention.self
            keys, values = self.prefix.view(n, 2, 2, 4, 8)[:, number].unbind(1)  # (n, H, d_h)
            q, k, v = (f(hidden)[0].view(-1, 4, 8) for f in (own.query, own.key, own.value))
            k, v = torch.cat([keys, k]), torch.cat([values, v])  # (n + T, H, d_h)
            share = (torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(8)).softmax(-1)
            mixed = torch.einsum("hqk,khd->qhd", share, v).reshape(hidden.shape)
            seen = layer.attention.output(mixed, hidden)
            hidden = layer.output(layer.intermediate(seen), seen)
        return (self.model.cls if hasattr(self.model, "cls") else self.model.lm_head)(hidden)

    def loss(self, rows, which, settings):
        scores = torch.stack([self.scores(rows, r) for r in which])
        words = torch.tensor(verbalizer().ids)
        if settings.loss == "vocabulary":
            return F.cross_entropy(scores, words[rows.labels[which]])
        return F.cross_entropy(scores[:, words], rows.labels[which])

    def step(self, optimizer, rate, settings):
        prompt = [] if self.prompt is None else [self.prompt]
        for p in self.moved:
            if p.grad is not None:
                p.grad *= self.mask[p]
        nn.utils.clip_grad_norm_([*self.moved, *prompt], settings.clip)
        for group, full in zip(optimizer.param_groups, (QUICK.learning_rate, QUICK.prompt_rate),
                               strict=False):  # fmt: skip
            group["lr"] = full * rate
        optimizer.step()
        with torch.no_grad():
            for p in self.moved:
                p.copy_(torch.where(self.mask[p], p, self.start[p]))

    def fit(self, learn, dev, settings):
        """Train; return every epoch's dev loss."""
        prompt = [] if self.prompt is None else [self.prompt]
        groups = [dict(params=self.moved, eps=WEIGHTS_EPS), dict(params=prompt)]
        optimizer, step, losses = torch.optim.AdamW(groups, weight_decay=0.0), 0, []
        rows = torch.arange(len(learn.labels))
        total = math.ceil(len(rows) / settings.batch_size) * settings.epochs
        warm = int(settings.warmup * total)
        for epoch in range(1, settings.epochs + 1):
            for which in epoch_batches(rows, self.one.seed, epoch, settings):
                optimizer.zero_grad()
                self.loss(learn, which, settings).backward()
                rate = step / warm if step < warm else (total - step) / (total - warm)
                self.step(optimizer, rate, settings)
                step += 1
            with torch.no_grad():
                losses.append(self.loss(dev, torch.arange(len(dev.labels)), settings).item())
        return losses


REFERENCED = ("ltp", "fine_tuning", "mp", "sp", "prompt_only", "bitfit", "lora", "prefix_tuning")


@pytest.mark.parametrize("method", REFERENCED)
@family
def test_training_equals_the_plain_loop(name, method):
    plain, trained = Plain(name, recipe(name, method)), run(name, method)
    dev = side(name, method, 5, 20)
    wanted = plain.fit(side(name, method, 10), dev, QUICK)
    assert [row["dev_loss"] for row in trained.history] == pytest.approx(wanted, rel=1e-4)
    with torch.no_grad():
        scores = torch.stack([plain.scores(dev, r) for r in range(5)])[:, list(verbalizer().ids)]
    assert (read(name, trained, dev) - scores).abs().max() <= 1e-4 * scores.abs().max()


def test_the_loss_over_the_vocabulary_equals_the_plain_loop():
    settings = Settings(**vars(QUICK) | dict(loss="vocabulary"))
    plain = Plain("tiny-bert", recipe("tiny-bert", "bitfit"))
    wanted = plain.fit(*(side("tiny-bert", "bitfit", *x) for x in ((10,), (5, 20))), settings)
    found = run("tiny-bert", "bitfit", settings).history
    assert [row["dev_loss"] for row in found] == pytest.approx(wanted, rel=1e-4)


# --- what stays -----------------------------------------------------------------------------------


@every
@family
def test_the_encoder_is_the_same_after_training_and_after_reading(name, method):
    model = encoder(name).model
    before = weights_sha256(model)
    trained = run(name, method)
    assert weights_sha256(model) == before
    read(name, trained, side(name, method, 2))
    assert weights_sha256(model) == before
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def state(model):
    """Return the model's weights by name, without PEFT's wrapping and additions."""
    every = {n.replace(".base_layer", ""): p for n, p in model.named_parameters()}
    return {n: p.detach().clone() for n, p in every.items() if "lora_" not in n}


FROZEN = {  # which weights a method claims to leave alone
    "ltp": lambda name, n, p: ~chosen(name).mask(n) if n in chosen(name).shapes else p == p,
    "random_ticket": lambda name, n, p: FROZEN["ltp"](name, n, p),
    "prompt_only": lambda name, n, p: p == p,
    "bitfit": lambda name, n, p: torch.full(p.shape, not n.endswith(".bias")),
    "lora": lambda name, n, p: p == p,
    "prefix_tuning": lambda name, n, p: p == p,
}


@pytest.mark.parametrize("method", FROZEN)
@family
def test_the_frozen_part_has_the_same_sha256_while_the_method_is_on(name, method):
    frozen = nn.Module()
    trained, hashes = run(name, method), []
    with applied(encoder(name), trained):
        during = state(encoder(name).model)
    for weights in (during, state(encoder(name).model)):
        kept = {n: p[FROZEN[method](name, n, p)] for n, p in weights.items()}
        frozen = nn.ParameterDict({n.replace(".", "/"): p for n, p in kept.items()})
        hashes.append(weights_sha256(frozen))
    assert hashes[0] == hashes[1] and sum(p.numel() for p in kept.values()) > 0


@family
def test_full_tuning_of_the_body_leaves_the_embedding_matrix_alone(name):
    trained = run(name, "fine_tuning", scope="body")
    tied = encoder(name).model.get_input_embeddings().weight
    with applied(encoder(name), trained):
        during = state(encoder(name).model)
    still = {n for n, p in state(encoder(name).model).items() if torch.equal(p, during[n])}
    matrices = {n for n in still if during[n].shape == tied.shape}
    assert len(matrices) == 1 and not {n for n in still if "layer" in n and n.endswith("weight")}


@family
def test_exactly_k_weights_differ_with_a_ticket(name):
    trained, before = run(name, "ltp"), state(encoder(name).model)
    with applied(encoder(name), trained):
        during = state(encoder(name).model)
    differ = {n: during[n] != before[n] for n in before}
    assert sum(int(d.sum()) for d in differ.values()) == chosen(name).k
    assert all(torch.equal(differ[n], chosen(name).mask(n)) for n in chosen(name).shapes)


@every
def test_a_loss_that_is_not_finite_stops_and_leaves_the_encoder_as_it_was(method):
    model = encoder("tiny-bert").model
    before = weights_sha256(model)
    wild = Settings(learning_rate=1e30, prompt_rate=1e30, batch_size=4, warmup=0, clip=1e30)
    with pytest.raises(TrainingDiverged, match=f"{method}, seed 5, is not finite in epoch"):
        run("tiny-bert", method, wild)
    assert weights_sha256(model) == before


# --- draws, epochs, results -----------------------------------------------------------------------


def test_all_methods_of_a_seed_see_the_same_batches(monkeypatch):
    seen = {}
    plain = methods._measure

    def spy(model, read, words, settings, half, rows):
        seen[method].append((len(half.labels), rows.tolist()))
        return plain(model, read, words, settings, half, rows)

    monkeypatch.setattr(methods, "_measure", spy)
    for method in METHODS:
        seen[method] = []
        run("tiny-bert", method)
    assert all(batches == seen["ltp"] for batches in seen.values())
    assert [rows for n, rows in seen["ltp"] if n == 10][:3] == [
        rows.tolist() for rows in epoch_batches(torch.arange(10), 5, 1, QUICK)
    ]


@pytest.mark.parametrize("selection", methods.SELECTIONS)
def test_what_is_kept_has_the_dev_loss_of_the_selected_epoch(selection):
    """Random labels on few texts: the dev loss rises in the end."""
    given = Settings(**vars(QUICK) | dict(epochs=6, learning_rate=0.02))
    trained = run("tiny-bert", "ltp", given, selection=selection)
    losses = [row["dev_loss"] for row in trained.history]
    right = [row["dev_accuracy"] for row in trained.history]
    best = max(range(6), key=lambda i: (right[i], -losses[i]))
    wanted = dict(best_dev=min(losses), last=losses[-1], best_dev_accuracy=losses[best])
    dev = side("tiny-bert", "ltp", 5, 20)
    found = F.cross_entropy(read("tiny-bert", trained, dev), dev.labels).item()
    (told,) = (row["dev_loss"] for row in trained.history if row["kept"])
    assert losses.index(min(losses)) < 5
    assert told == wanted[selection] and found == pytest.approx(told, rel=1e-5)


def test_of_equal_accuracies_the_lower_loss_is_kept_and_of_equal_losses_the_first():
    rank = RANKS["best_dev_accuracy"]
    rows = [(0.5, 0.7), (0.6, 0.9), (0.6, 0.8), (0.6, 0.8), (0.5, 0.1)]
    ranks = [rank(dict(dev_accuracy=right, dev_loss=loss)) for right, loss in rows]
    assert ranks.index(max(ranks)) == 2


def test_scores_do_not_depend_on_the_batch():
    trained, rows = run("tiny-xlm-roberta", "mp"), side("tiny-xlm-roberta", "mp", 40)
    whole = read("tiny-xlm-roberta", trained, rows)
    alone = [
        read("tiny-xlm-roberta", trained, Labelled(rows.tokens.rows([r]), rows.labels[[r]]))
        for r in (0, 17, 39)
    ]
    assert torch.allclose(torch.cat(alone), whole[[0, 17, 39]], rtol=1e-4, atol=1e-5)


@family
def test_numbers_trained_are_counted(name):
    model = encoder(name).model
    whole = sum(p.numel() for p in model.parameters())
    bias = sum(p.numel() for n, p in model.named_parameters() if n.endswith(".bias"))
    maps = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features < 512]
    wanted = dict(
        ltp=chosen(name).k + 96, fine_tuning=whole, sp=whole + 96, prompt_only=96, bitfit=bias,
        prefix_tuning=2 * 2 * 96, lora=8 * sum(m.in_features + m.out_features for m in maps),
    )  # fmt: skip
    assert {method: run(name, method).count for method in wanted} == wanted


def test_what_a_ticket_trained_can_be_saved_and_put_on_a_fresh_encoder(tmp_path):
    trained, fresh = run("tiny-bert", "ltp"), copy.deepcopy(encoder("tiny-bert"))
    made = artefacts.from_encoder(
        encoder("tiny-bert"), trained.prompt, "prefix", chosen("tiny-bert"), trained.weights,
        dict(strategy="random", scope="encoder"),
    )  # fmt: skip
    made.save(tmp_path / "one")
    dev = side("tiny-bert", "ltp", 5, 20)
    with artefacts.apply(artefacts.load(tmp_path / "one", fresh), fresh) as prompt:
        hidden = fresh.mask_states(dev.tokens, prompt)
        scores = fresh.logits(hidden, torch.tensor(verbalizer().ids))
    assert torch.allclose(scores, read("tiny-bert", trained, dev), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ("mlp", "residual_mlp", "lstm"))
def test_of_a_prompt_encoder_only_its_vectors_are_kept(kind):
    trained = run("tiny-bert", "prompt_only", reparameterization=kind, hidden=7)
    assert trained.prompt.shape == (3, 32) and trained.weights == {} and trained.count > 96
    dev = side("tiny-bert", "prompt_only", 5, 20)
    found = F.cross_entropy(read("tiny-bert", trained, dev), dev.labels).item()
    assert found == pytest.approx(trained.history[-1]["dev_loss"], rel=1e-5)


@pytest.mark.parametrize("method", ("ltp", "fine_tuning", "lora", "prefix_tuning"))
def test_multiplying_in_bfloat16_stays_near_float32_and_keeps_weights_in_it(method):
    near = run("tiny-bert", method, Settings(**vars(QUICK) | dict(mixed=True)))
    wanted = run("tiny-bert", method).history[-1]["dev_loss"]
    assert near.history[-1]["dev_loss"] == pytest.approx(wanted, rel=0.03)
    assert {w.dtype for w in near.weights.values()} == {torch.float32}


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for method in METHODS:
        run("tiny-bert", method)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("It rains.", "It rains"), ("Why?!", "Why"), ("天下雨。", "天下雨"), ("जाता है।", "जाता है"),
     ("لماذا؟ ", "لماذا"), ("a.b", "a.b"), ("(all) ...", "(all"), ("...", ""), ("", "")],
)  # fmt: skip
def test_closing_punctuation_is_stripped(text, wanted):
    assert strip(text) == wanted


def test_full_tuning_is_fine_tuning_and_its_prompted_forms():
    assert [name for name in METHODS if METHODS[name].full] == ["fine_tuning", "dp", "sp", "mp"]


# --- bad input ------------------------------------------------------------------------------------

REFUSED = {
    "method": (dict(method="lpt"), "method 'lpt'; did you mean ltp"),
    "no ticket": (dict(method="ltp"), "'ltp' needs a ticket, with its strategy and scope"),
    "ticket": (dict(method="lora", strategy="movement"), "'lora' takes no ticket"),
    "scope": (dict(method="dp", scope="bdy"), "scope 'bdy'; did you mean body"),
    "init": (dict(method="sp", init="unifrom"), "init 'unifrom'; did you mean uniform"),
    "network": (dict(method="sp", reparameterization="lstn"), "'lstn'; did you mean lstm"),
    "length": (dict(method="sp", length=0), "length 0 must be greater than 0"),
    "hidden": (dict(method="sp", hidden=1.5), "hidden 1.5 must be greater than 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_broken_recipe_is_refused(case):
    given, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        Recipe(**given)


@pytest.mark.parametrize("rate", (0, float("nan"), "0.1"))
def test_an_impossible_prompt_rate_is_refused(rate):
    with pytest.raises(InputError, match="prompt_rate"):
        Settings(prompt_rate=rate)


def test_an_unknown_selection_is_refused():
    with pytest.raises(InputError, match="selection 'best'; did you mean best_dev"):
        run("tiny-bert", "sp", selection="best")


def test_a_head_that_was_never_fitted_is_refused():
    headless = find("tiny-bert", "encoder").fresh(torch.float32)
    start_head(headless.model, ["head.bias"])
    with pytest.raises(InputError, match=r"head of tiny-bert is missing: call `fit_head` first"):
        run("tiny-bert", "sp", model=headless)


def test_weights_in_bfloat16_are_refused():
    with pytest.raises(InputError, match="must be float32"):
        run("tiny-bert", "sp", model=find("tiny-bert", "encoder").fresh(torch.bfloat16))


def test_a_model_whose_layers_take_no_keys_is_refused():
    other = copy.deepcopy(encoder("tiny-bert"))
    other.model.config.model_type = "distilbert"
    with pytest.raises(InputError, match="model type with deep prompts 'distilbert'"):
        run("tiny-bert", "prefix_tuning", model=other)
