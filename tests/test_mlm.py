"""Blocks, masks and training against plain Hugging Face passes that score every position.

Reference: the whole model on the masked input, cross-entropy over all logits but the ignored ones.
"""

import copy
import dataclasses
import hashlib
import json
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from xlcore import mlm, tickets
from xlcore.backbones import weights_sha256
from xlcore.checkpoints import find, tiny_tokenizer
from xlcore.encoders import start_head
from xlcore.errors import InputError
from xlcore.mlm import Settings, corrupt, fit_head, gradients, mine, pack
from xlcore.prose import Text, read
from xlcore.training import TrainingDiverged, epoch_batches

TINY = ("tiny-xlm-roberta", "tiny-bert")
family = pytest.mark.parametrize("name", TINY)
FEW = Settings(steps=6, learning_rate=3e-3, batch_size=4)
IGNORED = -100


@cache
def prose():
    """Return the first paragraphs of the embedded English text: real prose, a small part of it."""
    text = read("embedded")
    return Text(text.name, text.language, text.paragraphs[:300])


@cache
def blocks(length=32, held_out=8):
    torch.set_num_threads(1)  # thread hand-over costs more than these models' arithmetic
    return pack(prose(), tiny_tokenizer(True), length, held_out)


def encoder(name, headless=False):
    fresh = find(name, "encoder").fresh(torch.float32)
    if headless:
        start_head(fresh.model, ["head.bias"])
    return dataclasses.replace(fresh)  # made anew: its hash is that of these weights


def plain_loss(model, rows, seed, epoch, words=None):
    """Return the mean loss of the rows' chosen tokens, from the scores of all positions."""
    inputs, chosen = corrupt(blocks(), rows, seed, epoch)
    labels = blocks().ids[rows].masked_fill(~chosen, IGNORED)
    scores = model(input_ids=inputs).logits  # (B, T, V)
    if words is not None:
        outside = torch.ones(scores.shape[-1], dtype=torch.bool)
        outside[words] = False
        scores = scores.masked_fill(outside, -torch.inf)
    return F.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def plain_mine(model, scope, settings):
    """Train by the book: every position scored, the schedule written out."""
    moved = list(tickets.parameters(model, scope).values())
    head, tied = ("cls.", "lm_head."), model.get_input_embeddings().weight
    moved += [p for n, p in model.named_parameters() if n.startswith(head) and p is not tied]
    model.requires_grad_(False)
    for p in moved:
        p.requires_grad_()
    optimizer = torch.optim.AdamW(moved, settings.learning_rate, eps=1e-6, weight_decay=0.0)
    warm = int(0.1 * settings.steps)
    for step, rows in enumerate(epoch_batches(blocks().train, settings.seed, 1, settings)):
        if step == settings.steps:
            break
        rate = step / warm if step < warm else (settings.steps - step) / (settings.steps - warm)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * rate
        optimizer.zero_grad()
        plain_loss(model, rows, settings.seed, 1).backward()
        norm = torch.cat([p.grad.flatten() for p in moved]).norm()
        if norm > 1:
            for p in moved:
                p.grad /= norm
        optimizer.step()
    return {n: p.detach() for n, p in tickets.parameters(model, scope).items()}


def losses(history, part):
    return [row["loss"] for row in history if row["part"] == part]


# --- blocks ---------------------------------------------------------------------------------------


def test_blocks_are_the_text_s_tokens_in_order_each_in_its_frame():
    tokenizer, found = tiny_tokenizer(True), blocks().ids
    ids = [i for p in prose().paragraphs for i in tokenizer(p)["input_ids"][1:-1]]
    wanted = [[0, *ids[i : i + 30], 2] for i in range(0, len(ids) - 29, 30)]
    assert found.tolist() == wanted


def test_the_blocks_of_the_lowest_sha256_are_held_out():
    digests = [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in blocks().ids]
    low = sorted(range(len(digests)), key=digests.__getitem__)[:8]
    assert blocks().held_out.tolist() == sorted(low)


def test_every_block_is_either_held_out_or_trained_on():
    both = blocks().train.tolist() + blocks().held_out.tolist()
    assert sorted(both) == list(range(len(blocks().ids)))


def test_about_names_the_text_and_its_hash():
    digest = hashlib.sha256("\n".join(prose().paragraphs).encode()).hexdigest()
    about = blocks().about
    assert (about["text"], about["language"], about["text_sha256"]) == (prose().name, "eng", digest)


def test_too_short_a_text_for_its_held_out_blocks_is_refused():
    with pytest.raises(InputError, match=r"'own' is too short.*64 held out need at least 128"):
        pack(Text("own", "eng", ("A few words.",)), tiny_tokenizer(True))


@pytest.mark.parametrize("given", [dict(length=4), dict(held_out=0), dict(length=32.5)])
def test_sizes_of_blocks_are_checked(given):
    with pytest.raises(InputError, match=f"{next(iter(given))} .* must be"):
        pack(prose(), tiny_tokenizer(True), **given)


# --- masks ----------------------------------------------------------------------------------------


def test_chosen_masked_random_and_kept_tokens_are_as_frequent_as_stated():
    rows, words = blocks().train, len(blocks().ordinary)
    drawn = [corrupt(blocks(), rows, 0, epoch) for epoch in (1, 2, 3)]
    inputs, chosen = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    truth = blocks().ids[rows].repeat(3, 1)
    counts = [
        int((~chosen & blocks().free[rows].repeat(3, 1)).sum()),
        int((inputs[chosen] == 3).sum()),
        int(((inputs != truth) & (inputs != 3) & chosen).sum()),
        int((inputs == truth)[chosen].sum()),
    ]
    same = 0.1 / words  # a random token may be the very one it replaces
    none = 0.85**30 / 30  # a block without any chosen token is given one
    shares = np.array([0.85 - none, *((0.15 + none) * np.array([0.8, 0.1 - same, 0.1 + same]))])
    assert stats.chisquare(counts, shares * sum(counts)).pvalue > 0.01


def test_random_tokens_are_drawn_evenly_from_all_but_special_ones():
    rows, truth = blocks().train, blocks().ids[blocks().train]
    drawn = torch.cat([
        inputs[chosen & (inputs != truth) & (inputs != 3)]
        for inputs, chosen in (corrupt(blocks(), rows, 0, epoch) for epoch in range(1, 9))
    ])  # fmt: skip
    counts = drawn.bincount(minlength=512)
    assert not counts[[0, 1, 2, 3]].any() and stats.chisquare(counts[4:]).pvalue > 0.01


def test_frames_are_never_chosen():
    _, chosen = corrupt(blocks(), blocks().train, 0, 1)
    assert not chosen[:, [0, -1]].any()


def test_special_tokens_in_the_text_are_never_chosen():
    text = Text("own", "eng", ("<mask> and <pad> ",) * 200)
    own = pack(text, tiny_tokenizer(True), 16, 1)
    chosen = corrupt(own, torch.arange(len(own.ids)), 0, 1)[1]
    assert set(own.ids[chosen].tolist()).isdisjoint({0, 1, 2, 3})


def test_nothing_but_chosen_tokens_changes():
    inputs, chosen = corrupt(blocks(), blocks().train, 0, 1)
    assert torch.equal(inputs[~chosen], blocks().ids[blocks().train][~chosen])


def test_every_block_has_a_token_to_predict():
    short = pack(prose(), tiny_tokenizer(True), 8, 8)
    assert corrupt(short, short.train, 0, 1)[1].any(1).all()


def test_a_block_s_mask_does_not_depend_on_its_batch():
    whole = torch.stack(corrupt(blocks(), blocks().train, 5, 2))
    order = torch.randperm(len(blocks().train), generator=torch.Generator().manual_seed(0))
    for part in order.split(7)[:9]:
        alone = torch.stack(corrupt(blocks(), blocks().train[part], 5, 2))
        assert torch.equal(alone, whole[:, part])


@pytest.mark.parametrize("other", [(6, 2), (5, 3)])
def test_another_seed_or_epoch_gives_another_mask(other):
    found = [corrupt(blocks(), blocks().train, *key)[1] for key in ((5, 2), other)]
    assert not torch.equal(*found)


# --- the loss -------------------------------------------------------------------------------------


@family
@pytest.mark.parametrize("vocabulary", ["full", "text"])
def test_head_on_chosen_positions_gives_loss_and_gradient_of_all_positions(
    name, vocabulary, monkeypatch
):
    monkeypatch.setattr(mlm, "HEAD_ROWS", 7)  # several parts, the last one shorter
    e, rows = encoder(name), blocks().train[:5]
    e.model.requires_grad_()
    given = Settings(vocabulary=vocabulary, label_words=(500, 9))
    words = mlm._words(e, blocks(), given)
    found = mlm._loss(e, blocks(), rows, given, words, 1)[0]
    gradient = {n: p.grad.clone() for n, p in e.model.named_parameters() if p.grad is not None}
    e.model.zero_grad()
    own = None if vocabulary == "full" else [*blocks().ids.flatten().tolist(), 500, 9]
    wanted = plain_loss(e.model, rows, 0, 1, own)
    wanted.backward()
    assert found == pytest.approx(wanted.item(), rel=1e-5)
    for n, g in gradient.items():
        assert torch.allclose(g, e.model.get_parameter(n).grad, rtol=1e-4, atol=1e-6), n


def test_multiplying_in_bfloat16_changes_little():
    e, rows = encoder("tiny-xlm-roberta"), blocks().train[:16]
    exact, mixed = (
        mlm._loss(e, blocks(), rows, Settings(mixed=m), None, 1)[0] for m in (False, True)
    )
    assert mixed != exact and mixed == pytest.approx(exact, rel=2**-7)


# --- fitting a head -------------------------------------------------------------------------------


@family
def test_fitting_a_head_leaves_the_encoder_to_the_bit(name):
    e = encoder(name, headless=True)
    before = weights_sha256(e.model.base_model)
    fit_head(e, blocks(), FEW)
    assert weights_sha256(e.model.base_model) == before


@family
def test_fitting_a_head_lowers_the_held_out_loss(name):
    e = encoder(name, headless=True)
    first, last = losses(fit_head(e, blocks(), Settings(60, 1e-2, 8)), "held_out")
    assert last < first - 0.5


def test_a_fitted_head_is_marked_and_no_part_of_the_base_model_s_hash():
    e = encoder("tiny-bert", headless=True)
    fit_head(e, blocks(), FEW)
    assert e.mlm_head == "fitted" and e.untouched()
    assert dataclasses.replace(e).sha256 == e.sha256


def test_the_fitted_head_is_the_one_whose_loss_was_measured():
    e = encoder("tiny-bert", headless=True)
    last = losses(fit_head(e, blocks(), FEW), "held_out")[-1]
    assert mlm._held_out(e, blocks(), FEW, None) == pytest.approx(last, rel=1e-6)


def test_a_pretrained_head_is_not_fitted_again():
    with pytest.raises(InputError, match="is pretrained: there is nothing to fit"):
        fit_head(encoder("tiny-bert"), blocks())


# --- mining ---------------------------------------------------------------------------------------


@family
@pytest.mark.parametrize("scope", ["encoder", "all", "layers 2-2"])
def test_mining_equals_a_plain_training_loop(name, scope):
    found = mine(encoder(name), blocks(), FEW, scope).evidence["end"]
    wanted = plain_mine(encoder(name).model, scope, FEW)
    assert list(found) == list(wanted)
    for n in (n for n in found if not n.endswith("key.bias")):  # rounding noise moves those
        assert torch.allclose(found[n], wanted[n], rtol=0, atol=5e-6), n


@family
def test_mining_lowers_the_held_out_loss(name):
    first, last = losses(mine(encoder(name), blocks(), Settings(60, 3e-3, 8)).history, "held_out")
    assert last < first - 0.5


@family
def test_mining_leaves_the_model_to_the_bit(name):
    e = encoder(name)
    before = weights_sha256(e.model)
    mine(e, blocks(), FEW, "all")
    assert weights_sha256(e.model) == before


def test_start_is_the_model_s_own_weights_and_end_is_elsewhere():
    e = encoder("tiny-bert")
    own = {n: p.clone() for n, p in tickets.parameters(e.model).items()}
    evidence = mine(e, blocks(), FEW).evidence
    assert all(torch.equal(own[n], w) for n, w in evidence["start"].items())
    assert all(not torch.equal(own[n], w) for n, w in evidence["end"].items() if "query" in n)


def test_mining_gives_back_what_could_be_trained_and_no_gradients():
    e = encoder("tiny-bert")
    flags = {n: i % 2 == 0 for i, (n, _) in enumerate(e.model.named_parameters())}
    for n, p in e.model.named_parameters():
        p.requires_grad_(flags[n])
    mine(e, blocks(), FEW)
    assert {n: p.requires_grad for n, p in e.model.named_parameters()} == flags
    assert all(p.grad is None for p in e.model.parameters())


def test_a_rate_of_zero_moves_nothing():
    evidence = mine(encoder("tiny-bert"), blocks(), Settings(3, 0.0, 4)).evidence
    assert all(not s.any() for s in tickets.score("movement", **evidence).values())


def test_key_biases_hardly_move():
    """Softmax is blind to them; their gradient is rounding noise, which Adam must not blow up."""
    evidence = mine(encoder("tiny-bert"), blocks(), Settings(30, 3e-3, 8)).evidence
    moved = {n: s.mean() for n, s in tickets.score("movement", **evidence).items()}
    keys, others = ([m for n, m in moved.items() if n.endswith(f"{k}.bias")] for k in
                    ("key", "value"))  # fmt: skip
    assert max(keys) < 0.1 * min(others)


def test_held_out_blocks_are_never_trained_on(monkeypatch):
    seen = {True: [], False: []}

    def watched(blocks, rows, seed, epoch):
        seen[torch.is_grad_enabled()] += rows.tolist()
        return corrupt(blocks, rows, seed, epoch)

    monkeypatch.setattr(mlm, "corrupt", watched)
    whole = -(-len(blocks().train) // 32)  # one epoch
    mine(encoder("tiny-bert"), blocks(), Settings(whole, 1e-4, 32))
    assert sorted(seen[True]) == blocks().train.tolist()
    assert seen[False] == 2 * blocks().held_out.tolist()


def test_same_seed_gives_the_same_movement():
    one, two = (mine(encoder("tiny-bert"), blocks(), FEW).evidence["end"] for _ in range(2))
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_another_seed_gives_another_movement():
    other = Settings(steps=6, learning_rate=3e-3, batch_size=4, seed=1)
    one, two = (mine(encoder("tiny-bert"), blocks(), s).evidence["end"] for s in (FEW, other))
    assert any(not torch.equal(one[n], two[n]) for n in one)


def test_history_has_every_step_and_both_ends():
    history = mine(encoder("tiny-bert"), blocks(), FEW).history
    places = [(row["step"], row["part"]) for row in history]
    steps = [(step, "train") for step in range(1, 7)]
    assert places == [(0, "held_out"), *steps, (6, "held_out")]


def test_about_goes_into_a_manifest():
    about = json.loads(json.dumps(mine(encoder("tiny-bert"), blocks(), FEW, "all").about))
    stated = (about["text"], about["steps"], about["scope"], about["mlm_head"])
    assert stated == (prose().name, 6, "all", "pretrained")


# --- gradients ------------------------------------------------------------------------------------


@family
def test_gradients_are_means_over_blocks_run_alone(name):
    found = gradients(encoder(name), blocks(), FEW, examples=5)
    model = encoder(name).model.requires_grad_()
    chosen = tickets.parameters(model)
    each = []
    for row in torch.cat(epoch_batches(blocks().train, FEW.seed, 1, FEW))[:5]:
        loss = plain_loss(model, row[None], FEW.seed, 1)
        each.append(dict(zip(chosen, torch.autograd.grad(loss, chosen.values()), strict=True)))
    for n in chosen:
        g = torch.stack([one[n] for one in each])
        assert torch.allclose(found["gradient"][n], g.mean(0), rtol=1e-4, atol=1e-6), n
        square = g.square().mean(0)
        assert torch.allclose(found["squared_gradient"][n], square, rtol=1e-3, atol=1e-8), n


def test_gradients_leave_the_model_to_the_bit():
    e = encoder("tiny-bert")
    before = weights_sha256(e.model)
    gradients(e, blocks(), FEW, examples=2)
    assert weights_sha256(e.model) == before


@pytest.mark.parametrize("strategy", tickets.STRATEGIES)
def test_every_strategy_finds_its_evidence(strategy):
    e = copy.copy(encoder("tiny-bert"))
    evidence = mine(e, blocks(), FEW).evidence | gradients(e, blocks(), FEW, examples=2)
    ticket = tickets.select(tickets.score(strategy, **evidence), 100)
    assert ticket.of(e.model).keys() == tickets.parameters(e.model).keys()


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [dict(steps=0), dict(batch_size=0), dict(learning_rate=-1.0), dict(learning_rate=float("nan")),
     dict(seed=-1), dict(vocabulary="words")],
)  # fmt: skip
def test_settings_are_checked(wrong):
    with pytest.raises(InputError, match=str(next(iter(wrong)))):
        Settings(**wrong)


@pytest.mark.parametrize("use", [mine, gradients])
def test_a_head_that_was_never_fitted_is_refused(use):
    with pytest.raises(InputError, match="is missing: call `fit_head` first"):
        use(encoder("tiny-bert", headless=True), blocks())


@pytest.mark.parametrize("use", [mine, gradients])
def test_weights_in_bfloat16_are_refused(use):
    with pytest.raises(InputError, match=r"must be float32, not torch\.bfloat16"):
        use(find("tiny-bert", "encoder").fresh(torch.bfloat16), blocks())


@pytest.mark.parametrize("use", [mine, gradients])
def test_unknown_scope_is_refused(use):
    with pytest.raises(InputError, match="ticket scope 'encodr'"):
        use(encoder("tiny-bert"), blocks(), FEW, "encodr")


def test_label_words_outside_the_vocabulary_are_refused():
    with pytest.raises(InputError, match=r"label words \[512\] are no ids from 0 to 511"):
        mine(encoder("tiny-bert"), blocks(), Settings(label_words=(9, 512)))


def test_a_loss_that_is_not_finite_stops_training_and_leaves_the_model_to_the_bit():
    e = encoder("tiny-bert")
    before = weights_sha256(e.model)
    with pytest.raises(TrainingDiverged, match="learning rate"):
        mine(e, blocks(), Settings(6, 1e30, 4))
    assert weights_sha256(e.model) == before
