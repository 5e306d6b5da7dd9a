"""The shared-text path against the plain forward of each prompt alone, for every family.

References: Hugging Face forwards of one text and one prompt (`references.py`).
"""

import copy
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from references import (
    FAMILIES,
    VERBALIZER,
    WORD_IDS,
    padded,
    plain_loss,
    plain_scores,
    random_ids,
    tiny,
)
from transformers import AutoConfig, AutoModelForCausalLM

from xlcore.backbones import (
    Backbone,
    Family,
    Tokens,
    _alibi_slopes,
    causal,
    family_of,
    pad,
    token_ids,
    verify_exactness,
    weights_sha256,
)
from xlcore.checkpoints import tiny_tokenizer
from xlcore.errors import InputError
from xlcore.prompts import Layout
from xlcore.training import TextCache, label_loss

LENGTHS = (1, 3, 15, 16, 17, 40)  # around and beyond tiny-gemma3's window of 16
PROMPTS = (1, 2, 5, 20)
WORDS = list(WORD_IDS)
family = pytest.mark.parametrize("name", FAMILIES)
side = pytest.mark.parametrize("side", ("left", "right"))
position = pytest.mark.parametrize("position", ("suffix", "prefix"))


def joined(text, words, position):
    return text + words if position == "suffix" else words + text


def relative_gap(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


# --- prompts made of real tokens ----------------------------------------------------------------


@family
@side
@position
def test_real_tokens_as_a_prompt_score_like_the_tokens_themselves(name, side, position):
    backbone = tiny(name)
    layout = Layout(PROMPTS, position=position)
    ids, words = random_ids(LENGTHS), random_ids(PROMPTS, seed=1)
    vectors = backbone.word_vectors(torch.tensor([i for prompt in words for i in prompt]))
    hidden = backbone.prompt_states(pad(ids, backbone.device, side), vectors, layout)
    found = backbone.logits(hidden, torch.tensor(WORDS))  # (B, P, K)
    for b, text in enumerate(ids):
        for p, prompt in enumerate(words):
            whole = torch.tensor([joined(text, prompt, position)])
            wanted = backbone.model(input_ids=whole).logits[0, -1, WORDS]
            assert relative_gap(found[b, p], wanted) < 1e-5


@family
@side
@position
def test_real_tokens_as_a_prompt_score_like_a_padded_batch_of_them(name, side, position):
    backbone = tiny(name)
    ids, words = random_ids(LENGTHS), random_ids([5], seed=1)[0]
    whole, mask = padded([joined(text, words, position) for text in ids], side)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    where = {} if name == "tiny-bloom" else dict(position_ids=places)
    logits = backbone.model(input_ids=whole, attention_mask=mask, **where).logits
    last = (places * mask).argmax(1)
    wanted = logits[torch.arange(len(ids)), last][:, WORDS]  # (B, K)
    vectors = backbone.word_vectors(torch.tensor(words))
    layout = Layout((5,), position=position)
    hidden = backbone.prompt_states(pad(ids, backbone.device, side), vectors, layout)
    assert relative_gap(backbone.logits(hidden[:, 0], torch.tensor(WORDS)), wanted) < 1e-5


@family
@side
@position
@pytest.mark.parametrize("max_length", (9, 12, 24))
def test_a_text_too_long_is_cut_for_each_prompt_as_if_it_were_alone(
    name, side, position, max_length
):
    backbone = tiny(name)
    lengths = (1, 4, 7)
    ids = random_ids((3, 8, 11, 30))
    vectors = torch.rand(sum(lengths), backbone.width, generator=torch.Generator().manual_seed(2))
    layout = Layout(lengths, max_length, position)
    hidden = backbone.prompt_states(pad(ids, backbone.device, side), vectors, layout)
    for p, prompt in enumerate(vectors.split(lengths)):
        for b, text in enumerate(ids):
            wanted = plain_scores(backbone.model, text, prompt, position, max_length)
            assert relative_gap(backbone.logits(hidden[b, p]), wanted) < 1e-5


# --- drawn cases: loss and gradient ---------------------------------------------------------------


@st.composite
def cases(draw):
    max_length = draw(st.sampled_from((10, 24, 128)))
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))
    texts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    return dict(
        ids=random_ids(texts, seed=draw(st.integers(0, 99))),
        labels=draw(st.lists(st.integers(0, 6), min_size=len(texts), max_size=len(texts))),
        layout=Layout(tuple(lengths), max_length, draw(st.sampled_from(("suffix", "prefix")))),
        side=draw(st.sampled_from(("left", "right"))),
        kind=draw(st.sampled_from(("vocabulary", "label_words"))),
        source=draw(st.sampled_from(("tokens", "states", "cache"))),
        scale=draw(st.sampled_from((0.05, 0.5, 2.0))),
        seed=draw(st.integers(0, 99)),
    )


def fast_hidden(backbone, case, vectors):
    """Return label states (B, P, d) by the path that users run."""
    tokens = pad(case["ids"], backbone.device, case["side"])
    source = case["source"]
    if source == "states":
        tokens = backbone.encode(tokens)
    elif source == "cache" and case["layout"].position == "suffix":
        tokens = TextCache(backbone, [tokens], 2**20).batch(range(len(case["ids"])))
    return backbone.prompt_states(tokens, vectors, case["layout"])


def fast(backbone, case, vectors):
    """Return losses (B, P) by the path that users run."""
    hidden = fast_hidden(backbone, case, vectors)
    return label_loss(backbone, hidden, torch.tensor(case["labels"]), VERBALIZER, case["kind"])


def fast_in_double(backbone, case, vectors):
    """Return losses (B, P) with a head of our own, since `logits` gives fp32."""
    scores = fast_hidden(backbone, case, vectors) @ backbone.model.get_output_embeddings().weight.T
    gold = torch.tensor([WORDS[label] for label in case["labels"]])
    if case["kind"] == "label_words":
        scores, gold = scores[..., WORDS], torch.tensor(case["labels"])
    gold = gold[:, None].expand(scores.shape[:2])
    return torch.nn.functional.cross_entropy(scores.transpose(1, 2), gold, reduction="none")


def slow(backbone, case, vectors):
    """Return losses (B, P) by one full forward per text and prompt."""
    layout = case["layout"]
    how = (case["kind"], layout.position, layout.max_length)
    prompts = vectors.split(list(layout.lengths))
    rows = zip(case["ids"], case["labels"], strict=True)
    losses = [[plain_loss(backbone.model, *row, p, *how) for p in prompts] for row in rows]
    return torch.stack([torch.stack(row) for row in losses])


def with_gradient(path, backbone, case):
    g = torch.Generator().manual_seed(case["seed"])
    shape = (sum(case["layout"].lengths), backbone.width)
    vectors = torch.randn(shape, generator=g).mul(case["scale"]).to(backbone.dtype)
    losses = path(backbone, case, vectors.requires_grad_())
    losses.sum().backward()
    return losses.detach(), vectors.grad


def score_range(backbone, case):
    """Return the largest minus the smallest score of the case's first text alone, at least 1."""
    with torch.no_grad():
        scores = backbone.model(input_ids=torch.tensor(case["ids"][:1])).logits[0, -1]
    return float(scores.max() - scores.min()) or 1.0


drawn = settings(derandomize=True, suppress_health_check=list(HealthCheck))


@family
@settings(drawn, max_examples=130)
@given(case=cases())
def test_drawn_case_has_the_loss_and_gradient_of_the_plain_forward(name, case):
    """In fp32, a loss to 1e-6 of the range of the scores that it is a difference of.

    (Relative to max(1, loss) rounding alone reaches 4e-6 in these models, whose scores are wide.)
    The gradient to 1e-5 of its norm.
    """
    backbone = tiny(name)
    loss, gradient = with_gradient(fast, backbone, case)
    wanted, reference = with_gradient(slow, backbone, case)
    assert (loss - wanted).abs().max() <= 1e-6 * score_range(backbone, case)
    assert (gradient - reference).norm() <= 1e-5 * reference.norm()


@cache
def in_double(name):
    backbone = copy.deepcopy(tiny(name))
    backbone.model.double()
    return backbone


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@family
@settings(drawn, max_examples=60)
@given(case=cases())
def test_drawn_case_is_the_same_function_in_double_precision(double, name, case):
    """Without fp32's rounding a loss is equal to 1e-6 of max(1, loss), whatever the scores."""
    backbone = in_double(name)
    loss, gradient = with_gradient(fast_in_double, backbone, case)
    wanted, reference = with_gradient(slow, backbone, case)
    assert ((loss - wanted).abs() / wanted.clamp(min=1)).max() <= 1e-6
    assert (gradient - reference).norm() <= 1e-5 * reference.norm()


def test_prompts_of_their_own_for_each_text_are_kept_apart():
    backbone = tiny("tiny-gemma3")
    ids, layout = random_ids((4, 20, 9)), Layout((2, 3))
    vectors = torch.rand(3, 5, backbone.width)
    hidden = backbone.prompt_states(pad(ids, backbone.device), vectors, layout)
    for b, text in enumerate(ids):
        for p, prompt in enumerate(vectors[b].split([2, 3])):
            wanted = plain_scores(backbone.model, text, prompt)
            assert relative_gap(backbone.logits(hidden[b, p]), wanted) < 1e-5


@family
def test_a_prompt_is_blind_to_the_prompts_beside_it(name):
    backbone = tiny(name)
    states = backbone.encode(pad(random_ids((6, 20)), backbone.device))
    layout = Layout((3, 4, 2))
    vectors = torch.rand(9, backbone.width)
    other = vectors.clone()
    other[:3], other[7:] = 5.0, -5.0
    before = backbone.prompt_states(states, vectors, layout)[:, 1]
    assert torch.equal(before, backbone.prompt_states(states, other, layout)[:, 1])


@family
def test_encoded_states_survive_their_use(name):
    backbone = tiny(name)
    states = backbone.encode(pad(random_ids((6, 20)), backbone.device))
    vectors = torch.rand(3, backbone.width)
    first = backbone.prompt_states(states, vectors, Layout((3,)))
    assert torch.equal(first, backbone.prompt_states(states, vectors, Layout((3,))))


# --- families -------------------------------------------------------------------------------------


def small(kind, **given):
    """Return a tiny random decoder of another family as a backbone that has not been checked."""
    torch.manual_seed(0)
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    special = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0, max_position_embeddings=512)
    config = AutoConfig.for_model(kind, vocab_size=512, **shape | special | given)
    config.initializer_range = 0.3
    model = AutoModelForCausalLM.from_config(config).float().eval().requires_grad_(False)
    return Backbone(kind, model, tiny_tokenizer(), family_of(kind))


PASSING = {
    "gpt2": {},
    "opt": dict(ffn_dim=64, word_embed_proj_dim=32),
    "gpt_neox": {},
    "mistral": dict(num_key_value_heads=2, sliding_window=16),
    "qwen2": dict(
        num_key_value_heads=2, use_sliding_window=True, sliding_window=16, max_window_layers=1
    ),
    "qwen3": dict(num_key_value_heads=2, head_dim=8),
    "falcon": {},
    "phi": {},
}


@pytest.mark.parametrize("kind", PASSING)
def test_a_decoder_that_takes_its_inputs_as_they_are_passes_the_check(kind):
    verify_exactness(small(kind, **PASSING[kind]))


@pytest.mark.parametrize("kind", ("gemma2", "mpt", "granite", "cohere"))
def test_a_decoder_that_changes_its_inputs_or_scores_is_refused(kind):
    special = dict(embedding_multiplier=3.0, logits_scaling=2.0) if kind == "granite" else {}
    special |= dict(d_model=32, n_layers=2, n_heads=4) if kind == "mpt" else {}
    with pytest.raises(InputError, match=rf"{kind}.*exactness check.*Supported: XGLM, BLOOM"):
        verify_exactness(small(kind, **special))


def test_a_decoder_with_a_window_over_columns_is_refused():
    """GPT-Neo's local layers mask by column, so prompts side by side lose the text's start."""
    layers = dict(num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]])
    with pytest.raises(InputError, match="exactness check"):
        verify_exactness(small("gpt_neo", window_size=256, **layers))


def test_a_decoder_with_a_scale_of_its_own_is_refused():
    backbone = small("llama")
    embeddings = backbone.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, inputs, output: output * 1.01)
    with pytest.raises(InputError, match="scores differ"):
        verify_exactness(backbone)


def test_a_decoder_that_gives_nan_is_refused():
    backbone = small("llama")
    backbone.model.lm_head.weight[7] = float("nan")
    with pytest.raises(InputError, match="exactness check"):
        verify_exactness(backbone)


@pytest.mark.parametrize("kind, adapter", [("gemma3_text", "gemma3"), ("opt", "default")])
def test_family_of_gives_the_adapter_by_model_type(kind, adapter):
    assert family_of(kind).name == adapter


def test_only_families_with_an_adapter_are_trusted():
    assert not Family.trusted
    assert all(family_of(kind).trusted for kind in ("gemma3_text", "xglm", "bloom"))


@pytest.mark.parametrize("heads", (4, 6, 8, 12, 16))
def test_alibi_slopes_are_those_of_bloom(heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    reference = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
    assert torch.allclose(_alibi_slopes(heads), reference, rtol=1e-6)


def test_bloom_with_a_head_count_that_is_no_power_of_two_is_exact():
    verify_exactness(small("bloom", hidden_size=48, n_head=6, n_layer=2))


def test_bloom_is_itself_again_after_a_pass():
    backbone = tiny("tiny-bloom")
    backbone.encode(pad(random_ids((3,)), backbone.device))
    assert "build_alibi_tensor" not in vars(backbone.model.base_model)


@pytest.mark.parametrize("name, scale", [("tiny-gemma3", 32**0.5), ("tiny-xglm", 32**0.5),
                                         ("tiny-bloom", 1), ("tiny-llama", 1)])  # fmt: skip
def test_lift_is_the_scale_of_the_family(name, scale):
    backbone = tiny(name)
    one = torch.ones(1, backbone.width)
    assert torch.allclose(backbone.lift(one), one * scale)


# --- tokens, masks and hashes ---------------------------------------------------------------------


@side
def test_positions_count_real_tokens_only(side):
    tokens = pad([[5, 6, 7], [8]], "cpu", side)
    assert [tokens.positions[r][tokens.mask[r]].tolist() for r in (0, 1)] == [[0, 1, 2], [0]]


@side
def test_rows_are_trimmed_to_what_they_hold(side):
    rows = pad([[5, 6, 7], [8], [9, 10]], "cpu", side).rows([2, 1])
    wanted = [[0, 8], [9, 10]] if side == "left" else [[8, 0], [9, 10]]
    assert rows.ids.tolist() == wanted[::-1]


def test_lengths_are_those_before_padding():
    assert pad([[5, 6, 7], [8]], "cpu").lengths.tolist() == [3, 1]


def test_causal_mask_hides_padding_and_the_future_from_tokens():
    mask = torch.tensor([[False, True, True]])
    found = causal(Tokens(mask.long(), mask).positions, mask)[0]
    assert found[1:].tolist() == [[False, True, False], [False, True, True]]


def test_causal_mask_has_no_empty_row():
    mask = torch.tensor([[False, False, True, True], [True, True, True, False]])
    assert causal(Tokens(mask.long(), mask).positions, mask).any(-1).all()


def test_token_ids_are_cut_from_the_end():
    text = "one two three four five six"
    whole = token_ids(tiny_tokenizer(), [text], 99)[0]
    assert token_ids(tiny_tokenizer(), [text], 4)[0] == whole[:4]


def test_scores_of_chosen_words_are_columns_of_all_scores():
    backbone = small("gemma3_text", head_dim=8, final_logit_softcapping=3.0)
    hidden = torch.randn(2, 3, backbone.width)
    found = backbone.logits(hidden, torch.tensor(WORDS))
    assert torch.allclose(found, backbone.logits(hidden)[..., WORDS], atol=1e-6)


def test_weights_hash_changes_with_one_bit_of_one_weight():
    model = small("llama").model
    before = weights_sha256(model)
    weight = model.lm_head.weight.view(torch.int32)
    weight[3, 3] ^= 1
    assert weights_sha256(model) != before


def test_weights_hash_is_the_same_for_fp32_and_bf16_copies():
    backbone = small("llama")
    other = small("llama")
    other.model.to(torch.bfloat16)
    assert other.sha256 == backbone.sha256
