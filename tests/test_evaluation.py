"""Scores of many prompts in one pass, and the two metrics.

References: one text and one prompt at a time in full; confusion matrices counted by hand.
"""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from references import FAMILIES, VERBALIZER, WORD_IDS, plain_scores, tiny

from xlcore import evaluation
from xlcore.backbones import Tokens
from xlcore.data import load
from xlcore.evaluation import accuracy, evaluate, macro_f1, score
from xlcore.prompts import Verbalizer

TEXTS = (
    "A river",
    "The parliament met again on Monday to vote on the budget, for the third time this year.",
    "Rain",
    "Nurses wash their hands before each visit.",
    "The team won.",
    "Telescopes on high mountains see farther because the air above them is thin, dry and calm, "
    "and because few lamps burn nearby.",
)
LENGTHS = (1, 3, 6)
MODES = [(name, position) for name in FAMILIES for position in ("suffix", "prefix")]


def prompts(lengths=LENGTHS):
    g = torch.Generator().manual_seed(4)
    return [torch.rand(n, 32, generator=g) - 0.5 for n in lengths]


def reference(name, position="suffix", max_length=128):
    """Return scores (P, N, K), one text and one prompt at a time."""
    backbone = tiny(name)
    ids = [backbone.tokenizer(text)["input_ids"] for text in TEXTS]
    with torch.no_grad():
        rows = [
            [plain_scores(backbone.model, row, p, position, max_length) for row in ids]
            for p in prompts()
        ]
    return torch.stack([torch.stack(row) for row in rows])[..., list(WORD_IDS)]


@pytest.mark.parametrize("name, position", MODES)
def test_scores_are_those_of_each_text_alone_in_the_texts_order(name, position):
    found = score(tiny(name), prompts(), TEXTS, VERBALIZER, position)
    assert torch.allclose(found, reference(name, position), atol=2e-5)


@pytest.mark.parametrize("position", ("suffix", "prefix"))
def test_texts_are_cut_for_each_prompt_alone(position):
    found = score(tiny("tiny-gemma3"), prompts(), TEXTS, VERBALIZER, position, max_length=16)
    assert torch.allclose(found, reference("tiny-gemma3", position, 16), atol=2e-5)


@pytest.mark.parametrize("bound", ("SIDE_BY_SIDE", "PASS_TOKENS"))
@pytest.mark.parametrize("position", ("suffix", "prefix"))
@pytest.mark.parametrize("size", (1, 7))
def test_scores_do_not_depend_on_how_much_shares_a_pass(monkeypatch, bound, position, size):
    wanted = score(tiny("tiny-xglm"), prompts(), TEXTS, VERBALIZER, position)
    monkeypatch.setattr(evaluation, bound, size if bound == "SIDE_BY_SIDE" else {"cpu": size})
    found = score(tiny("tiny-xglm"), prompts(), TEXTS, VERBALIZER, position)
    assert torch.allclose(found, wanted, atol=2e-5)


def test_a_single_prompt_and_a_single_text_keep_their_axes():
    assert score(tiny("tiny-llama"), prompts((2,)), TEXTS[:1], VERBALIZER).shape == (1, 1, 7)


def test_scoring_leaves_no_gradient():
    trainable = [p.requires_grad_() for p in prompts()]
    assert not score(tiny("tiny-llama"), trainable, TEXTS, VERBALIZER).requires_grad


# --- batches --------------------------------------------------------------------------------------


def texts_of(lengths):
    """Tokens with texts of these lengths, padded on the right; the first id is the row's number."""
    ids = torch.arange(len(lengths))[:, None].repeat(1, max(lengths))
    return Tokens(ids, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


@pytest.mark.parametrize("least", (1, 6))
@pytest.mark.parametrize("room", (1, 12, 40, 10**6))
def test_batches_hold_every_text_once_and_as_many_as_there_is_room_for(monkeypatch, room, least):
    lengths = np.random.default_rng(3).integers(1, 12, 57).tolist()
    monkeypatch.setattr(evaluation, "PASS_TOKENS", {"cpu": room})
    found = list(evaluation.batches(texts_of(lengths), least))
    assert sorted(torch.cat([rows for rows, _ in found]).tolist()) == list(range(57))
    sizes = [[max(least, lengths[row]) for row in rows] for rows, _ in found]
    for (rows, tokens), size in zip(found, sizes, strict=True):
        assert tokens.ids[:, 0].tolist() == rows.tolist()
        assert tokens.ids.shape[1] == max(lengths[row] for row in rows)  # trimmed
        assert len(rows) == 1 or len(rows) * max(size) <= room
    for size, (first, *_) in itertools.pairwise(sizes):
        assert max(size) <= first and (len(size) + 1) * first > room  # the next one had no room


def test_no_text_makes_no_batch():
    none = torch.ones(0, 3, dtype=torch.long)
    assert not list(evaluation.batches(Tokens(none, none.bool())))


@pytest.mark.parametrize("count", (1, 2, 7))
def test_halves_hold_each_row_once_the_shorter_texts_first(count):
    lengths = [9, 2, 7, 4, 4, 8, 1, 3]
    rows = torch.tensor([5, 0, 3, 6, 4, 7, 2])[:count]
    parts = evaluation.halves(texts_of(lengths), rows)
    assert sorted(torch.cat(parts).tolist()) == sorted(rows.tolist())
    ordered = [lengths[row] for row in torch.cat(parts)]
    assert ordered == sorted(ordered) and len(parts) == min(2, count)


# --- metrics --------------------------------------------------------------------------------------

# gold, predicted, classes, accuracy, macro-F1 in percent. F1 = 2 TP / (2 TP + FP + FN) by hand.
TABLES = {
    "all right": ([0, 1, 2], [0, 1, 2], 3, 100, 100),
    "all wrong": ([0, 1], [1, 0], 2, 0, 0),
    "2 1 / 0 1": ([0, 0, 0, 1], [0, 0, 1, 1], 2, 75, 100 * (4 / 5 + 2 / 3) / 2),
    "one class predicted": ([0, 0, 1, 1], [0, 0, 0, 0], 2, 50, 100 * (2 / 3 + 0) / 2),
    "class in neither counts 0": ([0, 0, 1], [0, 0, 1], 3, 100, 100 * 2 / 3),
    "class only predicted": ([0, 0, 1], [0, 2, 1], 3, 200 / 3, 100 * (2 / 3 + 1 + 0) / 3),
    "class only in gold": ([0, 2, 1], [0, 0, 1], 3, 200 / 3, 100 * (2 / 3 + 1 + 0) / 3),
}


@pytest.mark.parametrize("table", TABLES)
def test_accuracy_is_the_share_that_is_right(table):
    gold, predicted, _, wanted, _ = TABLES[table]
    assert accuracy(np.array(gold), np.array(predicted)) == pytest.approx(wanted)


@pytest.mark.parametrize("table", TABLES)
def test_macro_f1_is_the_mean_over_all_classes(table):
    gold, predicted, classes, _, wanted = TABLES[table]
    assert macro_f1(np.array(gold), np.array(predicted), classes) == pytest.approx(wanted)


# --- rows -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    return load("topics", ["eng", "swh"], "embedded")


@pytest.fixture(scope="module")
def verbalizer(data):
    return Verbalizer(data.task.labels, VERBALIZER.words, WORD_IDS)


@pytest.fixture(scope="module")
def table(data, verbalizer):
    return evaluate(tiny("tiny-llama"), prompts((1, 2)), data, verbalizer, progress=False)


def test_a_row_per_prompt_language_and_metric(table):
    keys = pd.MultiIndex.from_product([(0, 1), ("eng", "swh"), ("accuracy", "macro_f1")])
    assert set(zip(table.prompt, table.language, table.metric, strict=True)) == set(keys)
    assert len(table) == 8


def test_accuracy_row_is_the_count_of_right_answers(table, data, verbalizer):
    test = data.examples("swh", "test")
    scores = score(tiny("tiny-llama"), prompts((1, 2)), test.text, verbalizer)[1]
    right = sum(
        data.task.labels[int(row.argmax())] == label
        for row, label in zip(scores, test.label, strict=True)
    )
    row = table[(table.prompt == 1) & (table.language == "swh") & (table.metric == "accuracy")]
    assert row.value.item() == pytest.approx(100 * right / len(test))


def test_chosen_languages_may_be_named_by_any_code(data, verbalizer):
    found = evaluate(tiny("tiny-llama"), prompts((1,)), data, verbalizer, ["sw"], progress=False)
    assert set(found.language) == {"swh"}
