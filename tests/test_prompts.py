"""Start values of soft prompts, their places in the input, and the label words.

References: the embedding matrix itself, masks written as loops, tokenizers made for the purpose.
"""

import pytest
import torch
from references import FAMILIES, WORD_IDS, tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from xlcore.errors import InputError
from xlcore.prompts import (
    REPARAMETERIZATIONS,
    Layout,
    Reparameterization,
    SoftPrompt,
    Verbalizer,
    check_lengths,
    initialize,
)

family = pytest.mark.parametrize("name", FAMILIES)

# --- start values ---------------------------------------------------------------------------------


@family
def test_uniform_start_lies_within_a_half(name):
    start = initialize(tiny(name), 50, seed=3)
    assert start.shape == (50, 32)
    assert -0.5 <= start.min() < -0.45 and 0.45 < start.max() <= 0.5


def test_uniform_start_has_the_spread_of_its_distribution():
    start = initialize(tiny("tiny-llama"), 120, seed=3)
    assert abs(start.mean()) < 4 * (1 / 12 / start.numel()) ** 0.5
    assert start.var().item() == pytest.approx(1 / 12, rel=0.06)


@pytest.mark.parametrize("init", ("uniform", "vocabulary"))
def test_start_depends_on_the_seed_alone(init):
    torch.manual_seed(7)
    first = initialize(tiny("tiny-llama"), 5, 1, init)
    torch.manual_seed(8)
    assert torch.equal(first, initialize(tiny("tiny-llama"), 5, 1, init))
    assert not torch.equal(first, initialize(tiny("tiny-llama"), 5, 2, init))


def test_start_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    initialize(tiny("tiny-llama"), 5, 1, "uniform")
    assert torch.equal(before, torch.get_rng_state())


@family
def test_vocabulary_start_is_distinct_rows_of_the_embedding_matrix(name):
    matrix = tiny(name).model.get_input_embeddings().weight
    start = initialize(tiny(name), 40, 1, "vocabulary")
    rows = [(row == matrix).all(1).nonzero().flatten().tolist() for row in start]
    assert all(len(found) == 1 for found in rows)
    assert len({found[0] for found in rows}) == 40


@family
def test_label_word_start_repeats_the_label_words_in_order(name):
    matrix = tiny(name).model.get_input_embeddings().weight
    start = initialize(tiny(name), 9, 1, "label_words", WORD_IDS)
    wanted = [*WORD_IDS, *WORD_IDS[:2]]
    assert torch.equal(start, matrix[wanted])


@pytest.mark.parametrize("init", ("uniform", "vocabulary", "label_words"))
def test_training_a_prompt_cannot_write_into_the_embedding_matrix(init):
    backbone = tiny("tiny-llama")
    before = backbone.model.get_input_embeddings().weight.clone()
    prompt = SoftPrompt(initialize(backbone, 3, 1, init, WORD_IDS))
    prompt.weight.data += 1
    assert torch.equal(before, backbone.model.get_input_embeddings().weight)


def test_unknown_init_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="init 'vocab'; did you mean vocabulary"):
        initialize(tiny("tiny-llama"), 3, 1, "vocab")


@pytest.mark.parametrize("init", ("uniform", "vocabulary", "label_words"))
def test_impossible_length_is_refused_by_initialize(init):
    with pytest.raises(InputError, match="length 0"):
        initialize(tiny("tiny-llama"), 0, 1, init, WORD_IDS)


# --- lengths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", (0, -1, True, 2.0, "5", None, 127))
def test_impossible_length_is_named_with_the_range(length):
    with pytest.raises(InputError, match=r"prompt length .* allowed: 1 to 126") as error:
        check_lengths([5, length], 128)
    assert repr(length) in str(error.value)


@pytest.mark.parametrize("length", (1, 126))
def test_lengths_at_the_ends_of_the_range_are_allowed(length):
    check_lengths([length], 128)


def test_unknown_position_is_refused_by_prompt_and_layout():
    with pytest.raises(InputError, match="prompt position 'sufix'; did you mean suffix"):
        SoftPrompt(torch.zeros(2, 4), "sufix")
    with pytest.raises(InputError, match="prompt position 'infix'"):
        Layout((2,), position="infix")


# --- layout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(1,), (3,), (1, 1), (2, 3, 1), (5, 1, 4, 2)])
def test_a_prompt_token_sees_its_own_prompt_up_to_itself(lengths):
    owners = [(p, i) for p, n in enumerate(lengths) for i in range(n)]
    wanted = [[a == p and b <= i for a, b in owners] for p, i in owners]
    assert Layout(lengths).visible.tolist() == wanted


@pytest.mark.parametrize("lengths, last", [((1,), [0]), ((4,), [3]), ((2, 3, 1), [1, 4, 5])])
def test_the_label_is_read_at_each_prompts_last_token(lengths, last):
    assert Layout(lengths).last.tolist() == last


def test_steps_and_owners_count_within_and_between_prompts():
    layout = Layout((2, 3, 1))
    assert layout.steps.tolist() == [0, 1, 0, 1, 2, 0]
    assert layout.owner.tolist() == [0, 0, 1, 1, 1, 2]


def test_text_prompt_and_end_token_fill_max_length():
    layout = Layout((2, 5), max_length=20)
    assert [n + layout.budget(n) + 1 for n in layout.lengths] == [20, 20]
    assert layout.budgets.tolist() == [17, 17] + [14] * 5


@pytest.mark.parametrize("room", (1, 4, 5, 7, 100))
@pytest.mark.parametrize("lengths", [(1,), (5, 5, 5), (1, 2, 3, 4, 5, 6), (6, 1, 1, 6, 1)])
def test_groups_keep_the_order_and_the_bound(lengths, room):
    groups = Layout(lengths).groups(room)
    assert [p for group in groups for p in group] == list(range(len(lengths)))
    assert all(len(g) == 1 or sum(lengths[p] for p in g) <= room for g in groups)
    assert all(groups)


def test_groups_are_as_few_as_the_order_allows():
    assert Layout((2, 2, 2, 2, 2)).groups(4) == [[0, 1], [2, 3], [4]]


def test_pick_keeps_everything_but_the_prompts():
    picked = Layout((2, 3, 1), 50, "prefix").pick([2, 0])
    assert (picked.lengths, picked.max_length, picked.position) == ((1, 2), 50, "prefix")


# --- label words ----------------------------------------------------------------------------------


def word_tokenizer(*words, unk="[UNK]"):
    """Return a tokenizer that knows these words only, and pieces p + ##x of others."""
    vocabulary = {w: i for i, w in enumerate((unk, *words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unk, max_input_chars_per_word=99))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unk)


def test_label_words_are_kept_in_order_with_their_ids():
    tokenizer = word_tokenizer("earth", "science")
    found = Verbalizer.build(tokenizer, {"geo": "science", "sci": "earth"})
    assert (found.labels, found.words, found.ids) == (("geo", "sci"), ("science", "earth"), (2, 1))


def test_a_label_word_of_several_tokens_is_named_with_its_pieces():
    tokenizer = word_tokenizer("geo", "##graphy", "science")
    with pytest.raises(InputError, match=r"'geography'.*label 'g'.*2 tokens") as error:
        Verbalizer.build(tokenizer, {"s": "science", "g": "geography"})
    assert "'geo' '##graphy'" in str(error.value)


def test_a_label_word_of_no_token_is_refused():
    with pytest.raises(InputError, match="0 tokens"):
        Verbalizer.build(word_tokenizer("a"), {"x": ""})


def test_two_labels_cannot_share_a_token():
    with pytest.raises(InputError, match="labels 'x' and 'y' share the label word 'a'"):
        Verbalizer.build(word_tokenizer("a"), {"x": "a", "y": "a"})


def test_a_label_word_that_the_tokenizer_does_not_know_is_refused():
    with pytest.raises(InputError, match="'zzz'"):
        Verbalizer.build(word_tokenizer("a"), {"x": "a", "y": "zzz"})


def test_label_words_are_tokenized_as_in_running_text():
    tokenizer = tiny("tiny-llama").tokenizer
    spaced, bare = (Verbalizer.build(tokenizer, {"x": "earth"}, p).ids for p in (" ", ""))
    assert tokenizer.decode(spaced) == " earth" and tokenizer.decode(bare) == "earth"


def test_labels_become_their_numbers():
    found = Verbalizer(("x", "y"), ("a", "b"), (1, 2)).index(["y", "x", "y"])
    assert found.tolist() == [1, 0, 1]


def test_an_unknown_label_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="label 'sport'; did you mean sports"):
        Verbalizer(("travel", "sports"), ("a", "b"), (1, 2)).index(["sport"])


# --- reparameterization ---------------------------------------------------------------------------

VECTORS = torch.rand(4, 12, generator=torch.Generator().manual_seed(2)) - 0.5
network = pytest.mark.parametrize("kind", REPARAMETERIZATIONS[1:])


def made(kind, hidden=3, seed=1, train_norm=False):
    return Reparameterization(kind, 12, hidden, seed, train_norm)


def norm(x):
    """LayerNorm without gain and bias, as its definition has it."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def test_mlp_is_linear_relu_linear_layernorm():
    one = made("mlp")
    first, _, second, _ = one.net
    inner = (VECTORS @ first.weight.T + first.bias).clamp(min=0)
    assert torch.allclose(one(VECTORS), norm(inner @ second.weight.T + second.bias), atol=1e-6)


def test_residual_mlp_adds_its_input():
    plain, residual = made("mlp"), made("residual_mlp")
    assert torch.allclose(residual(VECTORS), VECTORS + plain(VECTORS), atol=1e-6)


@pytest.mark.parametrize("kind", ("mlp", "residual_mlp"))
def test_mlps_treat_each_position_alone(kind):
    one = made(kind)
    alone = torch.cat([one(row[None]) for row in VECTORS])
    assert torch.allclose(one(VECTORS), alone, atol=1e-6)


def test_lstm_reads_the_positions_both_ways():
    one, other = made("lstm", hidden=16), VECTORS.clone()  # some of 16 ReLUs are open
    other[2] += 1
    moved = (one(VECTORS) - one(other)).abs().amax(1)
    assert (moved > 1e-6).all()


@network
def test_network_is_decided_by_its_seed_alone(kind):
    torch.manual_seed(5)
    first = made(kind)(VECTORS)
    torch.manual_seed(6)
    assert torch.equal(first, made(kind)(VECTORS))
    assert not torch.equal(first, made(kind, seed=2)(VECTORS))


@pytest.mark.parametrize(("train_norm", "more"), [(False, 0), (True, 24)])
def test_layernorm_is_frozen_unless_told(train_norm, more):
    network = made("mlp", train_norm=train_norm)
    trained = [p.numel() for p in network.parameters() if p.requires_grad]
    assert sum(trained) == 12 * 3 + 3 + 3 * 12 + 12 + more


@network
def test_gradients_reach_network_and_vectors(kind):
    prompt = SoftPrompt(VECTORS, network=made(kind, hidden=16))
    prompt.vectors().square().mul(torch.arange(12)).sum().backward()
    moved = [p for p in prompt.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in moved)


def test_unknown_network_names_the_nearest():
    with pytest.raises(InputError, match="reparameterization 'mpl'; did you mean mlp"):
        made("mpl")
