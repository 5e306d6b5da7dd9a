"""Training of many prompts at once against training each alone, by the book.

References: a plain AdamW loop with a full forward per text (`references.plain_fit`).
"""

import dataclasses
import math

import pytest
import torch
from references import FAMILIES, LABELS, VERBALIZER, WORD_IDS, labelled, plain_fit, tiny
from torch.nn import functional as F

from xlcore import methods, study, training, tuning
from xlcore.backbones import Backbone, weights_sha256
from xlcore.errors import InputError
from xlcore.prompts import SoftPrompt
from xlcore.training import (
    Job,
    Settings,
    TextCache,
    TrainingDiverged,
    fit,
    label_loss,
)

QUICK = Settings(epochs=3, batch_size=4, learning_rate=0.05)
ONE_STEP = Settings(epochs=1, batch_size=99, learning_rate=0.05, warmup=0.0)
TRAIN = labelled((3, 12, 7, 20, 5, 9, 30, 4, 8, 11), (0, 1, 2, 3, 4, 5, 6, 0, 1, 2), seed=1)
DEV = labelled((6, 10, 3, 18), (0, 3, 5, 6), seed=2)
OTHER = labelled((9, 4, 14, 6, 21, 3, 5, 8, 16, 2), (6, 5, 4, 3, 2, 1, 0, 6, 5, 4), seed=3)


def start(n, seed=0):
    return torch.rand(n, 32, generator=torch.Generator().manual_seed(seed)) - 0.5


def job(n=3, seed=1, train=TRAIN, dev=DEV, position="suffix", **given):
    return Job(
        SoftPrompt(start(n, seed), position, f"n={n} seed={seed}"), train, dev, seed, **given
    )


def run(jobs, settings=QUICK, name="tiny-llama", **given):
    return fit(tiny(name), jobs, VERBALIZER, settings, progress=False, **given)


def gap(a, b):
    return max(float((a.best - b.best).abs().max()), float((a.last - b.last).abs().max()))


def examples(side):
    ids = [row[mask].tolist() for row, mask in zip(side.tokens.ids, side.tokens.mask, strict=True)]
    return list(zip(ids, side.labels.tolist(), strict=True))


def test_all_that_trains_must_prove_that_the_model_stays_in_every_test():
    for function in (training.fit, study.fit, tuning.tune, methods.train):
        assert function.__code__.co_name == "checked"  # that of conftest.proven


# --- against the plain loop -----------------------------------------------------------------------


@pytest.fixture
def seen_batches(monkeypatch):
    """Record the batches of each epoch, which the plain loop then repeats."""
    seen, whole = [], training._Crowd.batches

    def batches(crowd, epoch):
        seen.append(whole(crowd, epoch))
        return seen[-1]

    monkeypatch.setattr(training._Crowd, "batches", batches)
    return seen


def by_the_book(name, settings, batches, n=3, position="suffix"):
    model, rows = tiny(name).model, [[batch.tolist() for batch in epoch] for epoch in batches]
    return plain_fit(model, examples(TRAIN), examples(DEV), start(n, 1), rows, settings, position)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("position", ("suffix", "prefix"))
@pytest.mark.parametrize("loss", ("vocabulary", "label_words"))
def test_fit_is_the_plain_loop(seen_batches, name, position, loss):
    settings = dataclasses.replace(QUICK, loss=loss, max_length=16)
    (found,) = run([job(position=position)], settings, name)
    best, last, dev = by_the_book(name, settings, seen_batches, position=position)
    assert (found.last - last).abs().max() < 1e-4
    assert (found.best - best).abs().max() < 1e-4
    assert [row["dev_loss"] for row in found.history] == pytest.approx(dev, abs=1e-4)


@pytest.mark.parametrize(
    "changed",
    [dict(warmup=0.0), dict(warmup=0.5), dict(clip=0.01), dict(clip=1e6), dict(weight_decay=0.1)],
    ids=str,
)
def test_each_setting_acts_as_in_the_plain_loop(seen_batches, changed):
    settings = dataclasses.replace(QUICK, epochs=4, **changed)
    (found,) = run([job()], settings)
    _, last, _ = by_the_book("tiny-llama", settings, seen_batches)
    assert (found.last - last).abs().max() < 1e-4


def test_many_epochs_stay_with_the_plain_loop(seen_batches):
    settings = Settings(epochs=12, batch_size=8, learning_rate=5e-3)
    (found,) = run([job()], settings)
    _, last, _ = by_the_book("tiny-llama", settings, seen_batches)
    assert (found.last - last).abs().max() < 1e-4


# --- together as alone ----------------------------------------------------------------------------

MIXED = (
    dict(n=1, seed=1),
    dict(n=4, seed=1),
    dict(n=1, seed=2, train=OTHER),
    dict(n=4, seed=2, train=OTHER),
    dict(n=2, seed=3),
    dict(n=3, seed=4, position="prefix"),
    dict(n=2, seed=5, learning_rate=0.01),
)


@pytest.fixture(scope="module")
def alone():
    return [run([job(**given)])[0] for given in MIXED]


@pytest.mark.parametrize("budget", (0, 3000, 2**30))
def test_prompts_trained_together_equal_prompts_trained_alone(alone, budget):
    together = run([job(**given) for given in MIXED], max_bytes=budget)
    assert max(map(gap, together, alone)) < 1e-5


def test_results_do_not_depend_on_the_jobs_order(alone):
    backwards = run([job(**given) for given in reversed(MIXED)])
    assert max(map(gap, reversed(backwards), alone)) < 1e-5


@pytest.mark.parametrize("size", (1, 8, 30))
def test_small_passes_give_the_same_result(monkeypatch, alone, size):
    monkeypatch.setitem(training.PASS_TOKENS, "cpu", size)
    assert max(map(gap, run([job(**given) for given in MIXED]), alone)) < 1e-5


@pytest.mark.parametrize("rows", (1, 3))
def test_few_rows_of_scores_at_once_give_the_same_result(monkeypatch, alone, rows):
    monkeypatch.setattr(training, "HEAD_ROWS", rows)
    assert max(map(gap, run([job(**given) for given in MIXED]), alone)) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_of_other_texts_may_share_a_pass(name):
    given = (dict(seed=1), dict(seed=2, train=OTHER))
    wanted = [run([job(**one)], name=name)[0] for one in given]
    assert max(map(gap, run([job(**one) for one in given], name=name), wanted)) < 1e-5


def test_draws_of_equal_content_share_a_crowd():
    same = [job(train=labelled((3, 12), (0, 1), seed=1)) for _ in range(2)]
    (crowd,) = training._crowds(tiny("tiny-llama"), same, VERBALIZER, QUICK, 2**20)
    assert crowd.members == [[0, 1]]


def test_jobs_on_the_same_texts_keep_their_own_dev_texts():
    given = (dict(n=3), dict(n=3, dev=labelled((5, 8, 2), (1, 1, 4), seed=9)))
    wanted = [run([job(**one)])[0].history for one in given]
    found = [result.history for result in run([job(**one) for one in given])]
    assert [h[0]["dev_loss"] for h in found] == pytest.approx([h[0]["dev_loss"] for h in wanted])


# --- the backbone stays ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("position", ("suffix", "prefix"))
def test_training_leaves_every_bit_of_the_backbone(name, position):
    model = tiny(name).model
    before = weights_sha256(model, dtype=None)
    run([job(position=position)], name=name)
    assert weights_sha256(model, dtype=None) == before
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_results_are_copies_that_further_training_does_not_move():
    one = job()
    (first,) = run([one])
    before = first.best.clone(), first.last.clone()
    run([one])
    assert torch.equal(first.best, before[0]) and torch.equal(first.last, before[1])


# --- seeds and batches ----------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits():
    first, second = run([job()])[0], run([job()])[0]
    assert torch.equal(first.best, second.best) and first.history == second.history


def test_another_seed_gives_another_batch_order():
    first, other = job(), job()
    other.seed = 2
    assert gap(run([first])[0], run([other])[0]) > 1e-4


def test_each_epoch_shows_each_text_once_in_an_order_of_its_own(seen_batches):
    run([job()])
    orders = [torch.cat(epoch).tolist() for epoch in seen_batches]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_the_last_batch_holds_what_is_left(seen_batches):
    run([job()])
    assert [len(batch) for batch in seen_batches[0]] == [4, 4, 2]


def test_the_global_generator_plays_no_part():
    torch.manual_seed(1)
    first = run([job()])[0]
    torch.manual_seed(2)
    assert torch.equal(first.last, run([job()])[0].last)


# --- selection ------------------------------------------------------------------------------------


def test_best_is_the_prompt_of_the_lowest_dev_loss():
    settings = Settings(epochs=8, batch_size=4, learning_rate=0.3)
    (found,) = run([job()], settings)
    losses = [row["dev_loss"] for row in found.history]
    assert found.best_epoch == 1 + losses.index(min(losses)) != 8
    again = labelled((6, 10, 3, 18), (0, 3, 5, 6), seed=2)
    hidden = tiny("tiny-llama").prompt_states(again.tokens, found.best, training.Layout((3,)))
    loss = label_loss(tiny("tiny-llama"), hidden, again.labels, VERBALIZER, "vocabulary").mean()
    assert loss.item() == pytest.approx(min(losses), abs=1e-5)


def test_equal_dev_losses_choose_the_first_epoch(monkeypatch):
    monkeypatch.setattr(training._Crowd, "dev", lambda crowd: [(0, (1.0, 0.5))])
    (found,) = run([job()])
    assert found.best_epoch == 1
    assert not torch.equal(found.best, found.last)


def test_history_has_a_row_per_epoch():
    (found,) = run([job()])
    assert [row["epoch"] for row in found.history] == [1, 2, 3]
    assert set(found.history[0]) == {"epoch", "train_loss", "dev_loss", "dev_accuracy"}


def test_dev_accuracy_is_a_share_of_the_dev_texts():
    model = tiny("tiny-llama")
    (found,) = run([job()], ONE_STEP)
    hidden = model.prompt_states(DEV.tokens, found.last, training.Layout((3,)))
    predicted = model.logits(hidden[:, 0])[:, list(WORD_IDS)].argmax(1)
    wanted = (predicted == DEV.labels).float().mean().item()
    assert found.history[0]["dev_accuracy"] == pytest.approx(wanted)


# --- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", training.LOSSES)
@pytest.mark.parametrize("rows", (1, 5, 64))
def test_label_loss_is_plain_cross_entropy(monkeypatch, kind, rows):
    monkeypatch.setattr(training, "HEAD_ROWS", rows)
    backbone, labels = tiny("tiny-gemma3"), torch.tensor([0, 6, 3, 3])
    hidden = torch.randn(4, 3, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.arange(12.0).reshape(4, 3)
    found = label_loss(backbone, hidden, labels, VERBALIZER, kind)
    (gradient,) = torch.autograd.grad((found * weight).sum(), hidden)
    scores = F.linear(hidden, backbone.model.lm_head.weight)
    gold = torch.tensor(WORD_IDS)[labels]
    if kind == "label_words":
        scores, gold = scores[..., list(WORD_IDS)], labels
    gold = gold[:, None].expand(4, 3)
    wanted = F.cross_entropy(scores.transpose(1, 2), gold, reduction="none")
    (reference,) = torch.autograd.grad((wanted * weight).sum(), hidden)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert (gradient - reference).norm() < 1e-5 * reference.norm()


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_loss_that_overflows_stops_training_with_names_and_rate():
    settings = Settings(epochs=3, batch_size=4, learning_rate=1e30)
    with pytest.raises(TrainingDiverged, match=r"n=3 seed=1.*epoch 1.*1e\+30.*lower"):
        run([job()], settings, "tiny-bloom")


def test_only_the_diverged_prompt_is_named():
    sick = job(n=2, seed=7)
    sick.prompt.weight.data[0, 0] = float("nan")
    with pytest.raises(TrainingDiverged, match=r"prompt n=2 seed=7 is") as error:
        run([job(), sick])
    assert "n=3" not in str(error.value)


def test_a_loss_that_overflows_in_the_last_step_is_noticed():
    settings = dataclasses.replace(ONE_STEP, learning_rate=1e30)
    with pytest.raises(TrainingDiverged):
        run([job()], settings, "tiny-bloom")


def test_draws_of_other_sizes_are_refused():
    few = labelled((3, 4), (0, 1))
    with pytest.raises(InputError, match=r"draws of \[1, 3\] batches"):
        run([job(), job(train=few)])


def test_no_jobs_are_refused():
    with pytest.raises(InputError, match="no prompt to train"):
        run([])


@pytest.mark.parametrize("name", ("epochs", "batch_size", "learning_rate", "clip", "max_length"))
@pytest.mark.parametrize("value", (0, -1, float("nan")))
def test_settings_refuse_what_is_not_positive(name, value):
    with pytest.raises(InputError, match=f"{name} {value!r} must be greater than 0"):
        Settings(**{name: value})


@pytest.mark.parametrize("value", (-0.1, 1.0, 2, float("nan")))
def test_settings_refuse_a_warmup_outside_its_range(value):
    with pytest.raises(InputError, match="warmup"):
        Settings(warmup=value)


def test_settings_refuse_an_unknown_loss():
    with pytest.raises(InputError, match="loss 'label_word'; did you mean label_words"):
        Settings(loss="label_word")


NONSENSE = (
    dict(epochs=1.5),
    dict(batch_size=0.5),
    dict(max_length=60.5),
    dict(epochs=True),
    dict(weight_decay=-1.0),
    dict(learning_rate=math.inf),
    dict(learning_rate="0.1"),
    dict(warmup="0.1"),
)


@pytest.mark.parametrize("given", NONSENSE, ids=str)
def test_settings_refuse_nonsense(given):
    try:
        with pytest.raises(InputError, match=next(iter(given))):
            Settings(**given)
    except TypeError as error:
        raise AssertionError(error) from error


def test_a_learning_rate_of_zero_is_not_replaced():
    (found,) = run([job(learning_rate=0.0)], ONE_STEP)
    assert torch.equal(found.last, start(3, 1))


# --- schedule -------------------------------------------------------------------------------------


def test_rates_rise_in_the_warmup_and_fall_to_zero():
    settings = Settings(epochs=4, batch_size=2, warmup=0.25, learning_rate=0.1)  # 20 steps, 5 warm
    optimizer, schedule = training._optimizer([job(), job(learning_rate=0.2)], settings)
    rates = []
    for _ in range(20):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    shape = [step / 5 if step < 5 else (20 - step) / 15 for step in range(20)]
    assert [r[0] for r in rates] == pytest.approx([0.1 * s for s in shape])
    assert [r[1] for r in rates] == pytest.approx([0.2 * s for s in shape])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


# --- memory ---------------------------------------------------------------------------------------


def short_of_memory(monkeypatch, fails):
    """Let `prompt_states` run out of memory where `fails(rows, number of the call)`."""
    whole, calls = Backbone.prompt_states, []

    def prompt_states(self, texts, vectors, layout):
        calls.append(len(vectors))
        if torch.is_grad_enabled() and fails(len(vectors), len(calls)):
            raise torch.OutOfMemoryError("no room")
        return whole(self, texts, vectors, layout)

    monkeypatch.setattr(Backbone, "prompt_states", prompt_states)
    return calls


def test_too_many_rows_are_halved_until_they_fit(monkeypatch, capsys):
    (wanted,) = run([job()])
    calls = short_of_memory(monkeypatch, lambda rows, call: rows > 1)
    (found,) = run([job()])
    assert gap(found, wanted) < 1e-5
    assert 1 in calls and "out of memory" in capsys.readouterr().out


def test_memory_that_ends_half_way_counts_no_gradient_twice(monkeypatch):
    (wanted,) = run([job()])
    monkeypatch.setitem(training.PASS_TOKENS, "cpu", 6)  # two texts a pass, two passes a batch
    short_of_memory(monkeypatch, lambda rows, call: call == 2)
    (found,) = run([job()])
    assert gap(found, wanted) < 1e-5


def test_memory_that_ends_in_one_crowd_leaves_the_others_gradients(monkeypatch):
    given = (dict(n=3, seed=1), dict(n=2, seed=2, train=OTHER))
    wanted = [run([job(**one)])[0] for one in given]
    short_of_memory(monkeypatch, lambda rows, call: call == 2)  # the second crowd's first pass
    found = run([job(**one) for one in given])
    assert max(map(gap, found, wanted)) < 1e-5


def test_memory_too_small_for_one_text_is_an_error(monkeypatch):
    short_of_memory(monkeypatch, lambda rows, call: True)
    with pytest.raises(torch.OutOfMemoryError):
        run([job()])


# --- the cache ------------------------------------------------------------------------------------


def test_cache_gives_the_states_of_encode():
    backbone = tiny("tiny-gemma3")
    found = TextCache(backbone, [TRAIN.tokens], 2**30).batch([6, 0, 6])
    wanted = backbone.encode(TRAIN.tokens.rows([6, 0, 6]))
    for ours, theirs in zip(found.pairs, wanted.pairs, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            for row in range(3):
                n = int(found.tokens.lengths[row])
                assert torch.allclose(a[row, :, :n], b[row, :, :n], atol=1e-5)


def test_cache_runs_a_kept_text_once(monkeypatch):
    whole, runs = Backbone.encode, []
    spy = lambda self, tokens: runs.append(len(tokens.ids)) or whole(self, tokens)  # noqa: E731
    monkeypatch.setattr(Backbone, "encode", spy)
    cache = TextCache(tiny("tiny-llama"), [TRAIN.tokens], 2**30)
    for rows in ([0, 1], [1, 2], [0, 1, 2]):
        cache.batch(rows)
    assert runs == [2, 1]


@pytest.mark.parametrize("budget", (0, 5000, 9000))
def test_cache_keeps_no_more_than_its_budget(budget):
    cache = TextCache(tiny("tiny-llama"), [TRAIN.tokens], budget)
    cache.batch(range(10))
    assert sum(state.nbytes for state in cache.kept.values()) <= budget


def test_labels_and_words_of_the_references_agree():
    assert len(LABELS) == len(set(WORD_IDS)) == 7
