"""Prompts in an encoder's input against the plain forward, loading, and heads that are missing.

Reference: Hugging Face's forward of one unpadded text, the prompt's tokens among its `input_ids`.
"""

import copy
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import random_ids
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForMaskedLM

from xlcore import checkpoints, encoders
from xlcore.backbones import pad, weights_sha256
from xlcore.checkpoints import GEMMA, find, tiny_tokenizer
from xlcore.cloze import POSITIONS, Cloze
from xlcore.encoders import Encoder, Family, family_of, verify_exactness
from xlcore.errors import InputError

TINY = ("tiny-xlm-roberta", "tiny-bert")
SHAPE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
DISTIL = dict(dim=32, n_layers=2, n_heads=4, hidden_dim=64)
DP = "{p} . Question: {h} ? Answer: {mask} ."
MASK = 3  # the tiny tokenizer's mask token


def small(kind, **given):
    """Return a tiny random encoder of any family, its biases and gains random, too."""
    torch.manual_seed(0)
    special = dict(bos_token_id=0, pad_token_id=1, eos_token_id=2, max_position_embeddings=258)
    shape = DISTIL if kind == "distilbert" else SHAPE
    config = AutoConfig.for_model(kind, vocab_size=512, **shape | special | given)
    config.initializer_range = 0.3
    model = AutoModelForMaskedLM.from_config(config).float().eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.add_(torch.randn_like(weight) * 0.3)
    return Encoder(kind, model, tiny_tokenizer(True), family_of(kind))


@cache
def encoder(kind):
    torch.set_num_threads(1)  # thread hand-over costs more than these models' arithmetic
    return small(kind)


def close(found, wanted, tolerance=1e-5):
    return float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


# --- prompts made of real tokens ------------------------------------------------------------------


@st.composite
def cases(draw):
    lengths = draw(st.lists(st.integers(1, 60), min_size=1, max_size=3))
    return dict(
        kind=draw(st.sampled_from(("xlm-roberta", "bert", "distilbert"))),
        texts=random_ids(lengths, seed=draw(st.integers(0, 999))),
        labels=[draw(st.integers(0, n - 1)) for n in lengths],
        infixes=[draw(st.integers(0, n)) for n in lengths],
        prompt=random_ids([draw(st.integers(1, 9))], seed=draw(st.integers(0, 999)))[0],
        position=draw(st.sampled_from(POSITIONS)),
        side=draw(st.sampled_from(("left", "right"))),
        words=draw(st.sampled_from((None, torch.tensor([7]), torch.tensor([400, 9, 33, 9])))),
    )


def batch(case):
    """Return the case's texts, framed by <s> and </s>, as a padded batch."""
    texts = [[0, *text, 2] for text in case["texts"]]
    for text, label in zip(texts, case["labels"], strict=True):
        text[label + 1] = MASK
    tokens = pad(texts, "cpu", case["side"])
    slots = [
        [1, infix + 1, len(text) - 1] for text, infix in zip(texts, case["infixes"], strict=True)
    ]
    return Cloze(tokens.ids, tokens.mask, torch.tensor(case["labels"]) + 1, torch.tensor(slots))


def plain(model, case):
    """Return each text's scores at its mask (B, V), by one forward of ids per text."""
    out = []
    for text, label, infix in zip(case["texts"], case["labels"], case["infixes"], strict=True):
        ids = [*text[:label], MASK, *text[label + 1 :]]
        at = {"prefix": 0, "infix": infix, "suffix": len(ids)}[case["position"]]
        ids = [0, *ids[:at], *case["prompt"], *ids[at:], 2]
        place = label + 1 + (len(case["prompt"]) if at <= label else 0)
        assert ids[place] == MASK
        out.append(model(input_ids=torch.tensor([ids])).logits[0, place])
    return torch.stack(out)


def prompted(model, case):
    """Return the scores (B, V or K) by the path that users run."""
    vectors = model.word_vectors(torch.tensor(case["prompt"]))
    return model.logits(model.mask_states(batch(case), vectors, case["position"]), case["words"])


@given(case=cases())
@settings(derandomize=True, max_examples=450)
def test_real_tokens_as_a_prompt_score_like_the_tokens_themselves(case):
    model = encoder(case["kind"])
    wanted = plain(model.model, case)
    chosen = wanted if case["words"] is None else wanted[:, case["words"]]
    found = prompted(model, case)
    assert (found - chosen).abs().max() <= 1e-5 * wanted.abs().max()


@given(case=cases())
@settings(derandomize=True, max_examples=40)
def test_every_weight_gets_the_gradient_of_the_plain_forward(case):
    """The prompt's tokens are among the weights here, so its vectors' gradient is, too."""
    model = copy.deepcopy(encoder(case["kind"]))
    model.model.requires_grad_(True)
    gold = torch.arange(len(case["texts"]))
    case |= dict(words=None)
    gradients = []
    for scores in (prompted(model, case), plain(model.model, case)):
        model.model.zero_grad()
        F.cross_entropy(scores, gold).backward()
        weights = model.model.named_parameters()
        gradients.append({k: p.grad.clone() for k, p in weights if p.grad is not None})
    found, wanted = gradients
    norm = sum(g.square().sum() for g in wanted.values()).sqrt()
    assert found.keys() == wanted.keys()
    assert all((found[k] - wanted[k]).norm() <= 1e-5 * norm for k in wanted)


@pytest.mark.parametrize("kind", ("xlm-roberta", "bert", "distilbert"))
def test_prompt_vectors_get_a_gradient_from_a_frozen_model(kind):
    tokens = encoder(kind).tokenize(DP, [{"p": "The river", "h": "A hill"}], 60)
    vectors = torch.zeros(4, 32, requires_grad=True)
    hidden = encoder(kind).mask_states(tokens, vectors, "infix")
    encoder(kind).logits(hidden, torch.tensor([9, 33])).sum().backward()
    assert (vectors.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("kind", ("xlm-roberta", "bert"))
def test_without_a_prompt_the_scores_are_those_of_the_text(kind):
    model = encoder(kind)
    tokens = model.tokenize(DP, [{"p": "The river", "h": "A hill"}], 60)
    wanted = model.model(input_ids=tokens.ids).logits[0, tokens.label[0]]
    assert close(model.logits(model.mask_states(tokens))[0], wanted)


def test_each_row_is_read_with_the_prompt_of_its_own():
    model = encoder("xlm-roberta")
    rows = [{"p": "The river", "h": "A hill"}, {"p": "No", "h": "so"}]
    vectors = torch.rand(2, 3, 32)
    both = model.mask_states(model.tokenize(DP, rows, 60), vectors)
    for r, row in enumerate(rows):
        alone = model.mask_states(model.tokenize(DP, [row], 60), vectors[r])
        assert close(both[r], alone[0])


@pytest.mark.parametrize("kind", ("xlm-roberta", "bert"))
def test_states_of_all_tokens_are_those_of_the_plain_forward(kind):
    model = encoder(kind)
    texts = random_ids((4, 30))
    found = model.encode(pad(texts, "cpu", "left"))
    for r, text in enumerate(texts):
        wanted = model.model.base_model(input_ids=torch.tensor([text])).last_hidden_state[0]
        assert close(found[r, -len(text) :], wanted)


def test_position_ids_are_what_xlm_r_needs():
    """Columns as positions, transformers' own choice for embeddings, give other scores."""
    model = encoder("xlm-roberta")
    texts = random_ids((4, 30))
    tokens = pad(texts, "cpu", "left")
    embeds = model.word_vectors(tokens.ids)
    counted = model.model.base_model(inputs_embeds=embeds, attention_mask=tokens.mask.long())
    wanted = model.model.base_model(input_ids=torch.tensor([texts[0]])).last_hidden_state[0]
    assert not close(counted.last_hidden_state[0, -4:], wanted, 1e-2)


def test_the_model_is_itself_again_after_scoring():
    model = encoder("bert")
    model.logits(torch.zeros(1, 32))
    assert not any("forward" in vars(module) for module in model.model.modules())


def test_a_forward_that_another_library_set_survives_scoring():
    model = copy.deepcopy(encoder("bert"))
    base = model.model.base_model
    base.forward = own = base.forward
    model.logits(torch.zeros(1, 32))
    assert vars(base)["forward"] is own


# --- bad input ------------------------------------------------------------------------------------


def test_an_unknown_position_is_refused():
    tokens = encoder("bert").tokenize("{mask}", [{}], 60)
    with pytest.raises(InputError, match="unknown prompt position 'sufix'; did you mean suffix"):
        encoder("bert").mask_states(tokens, torch.zeros(1, 32), "sufix")


@pytest.mark.parametrize("name", TINY)
def test_the_context_is_256_tokens_and_no_more(name):
    """XLM-R's 258 positions hold 256 tokens, for its first is padding's number and one."""
    model = find(name, "encoder").load("cpu", "float32")
    assert find(name, "encoder").context == 256
    model.encode(pad(random_ids([256]), "cpu"))
    with pytest.raises(InputError, match="257 tokens are longer than the context"):
        model.encode(pad(random_ids([257]), "cpu"))


def test_a_length_beyond_the_context_is_refused_before_weights_load(monkeypatch):
    monkeypatch.setattr(checkpoints.Checkpoint, "_weights", lambda *_: pytest.fail("read"))
    find("tiny-xlm-roberta", "encoder").check_length(256)
    with pytest.raises(InputError, match=r"max_length 258 .* tiny-xlm-roberta; .* up to 256"):
        find("tiny-xlm-roberta", "encoder").check_length(258)


@pytest.mark.parametrize("name", (GEMMA, "tiny-llama"))
def test_a_decoder_is_refused_where_an_encoder_is_wanted(name, monkeypatch):
    monkeypatch.setattr(checkpoints, "gemma_folder", lambda: pytest.fail("converted"))
    with pytest.raises(InputError, match=f"{name}.* not a masked language model"):
        find(name, "encoder")


@pytest.mark.parametrize("name", ("multilingual-e5-small", *TINY))
def test_an_encoder_is_refused_where_a_decoder_is_wanted(name, monkeypatch):
    monkeypatch.setattr(checkpoints, "e5_folder", lambda: pytest.fail("converted"))
    with pytest.raises(InputError, match=f"{name}.* not a causal decoder"):
        find(name)


def test_an_encoder_decoder_is_refused(save):
    folder = save("bert")
    AutoConfig.for_model("bart", vocab_size=512, d_model=32).save_pretrained(folder)
    with pytest.raises(InputError, match="'bart', which is not a masked language model"):
        find(folder, "encoder")


def test_an_unknown_encoder_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"did you mean tiny-bert.*FacebookAI/xlm-roberta-base"):
        find("tiny-brt", "encoder")


def test_an_unknown_kind_of_model_is_refused():
    with pytest.raises(InputError, match="kind of model 'encodr'; did you mean encoder"):
        find("tiny-bert", "encodr")


def test_a_tokenizer_without_a_mask_token_is_refused_before_weights_load(save, monkeypatch):
    monkeypatch.setattr(checkpoints.Checkpoint, "_weights", lambda *_: pytest.fail("read"))
    with pytest.raises(InputError, match="no fast tokenizer with a mask token"):
        find(save("bert", tokenizer=tiny_tokenizer()), "encoder")


# --- loading --------------------------------------------------------------------------------------


@pytest.fixture
def save(tmp_path):
    """Return a function that saves a small model, whole or without its head, in a folder."""

    def folder(kind, bare=False, tokenizer=None):
        path, model = tmp_path / kind, small(kind).model
        with checkpoints._quiet():
            (model.base_model if bare else model).save_pretrained(path)
        (tokenizer or tiny_tokenizer(True)).save_pretrained(path)
        return str(path)

    return folder


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_encoder_is_the_same_each_time_and_frozen(name):
    torch.manual_seed(5)
    first, second = (find(name, "encoder").load("cpu", "float32") for _ in range(2))
    assert first.sha256 == second.sha256
    assert not any(p.requires_grad for p in first.model.parameters())
    assert not first.model.training and first.mlm_head == "pretrained"


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_encoder_gives_its_label_words_one_token_each(name):
    tokenizer = find(name, "encoder").tokenizer
    words = [" science", " health", " travel"]
    assert [len(tokenizer(w, add_special_tokens=False)["input_ids"]) for w in words] == [1, 1, 1]


@pytest.mark.parametrize("kind", ("xlm-roberta", "bert", "distilbert"))
def test_a_saved_encoder_is_loaded_with_its_head(save, kind):
    found = find(save(kind), "encoder").load("cpu", "float32")
    assert weights_sha256(found.model) == weights_sha256(small(kind).model)
    assert found.mlm_head == "pretrained"


def test_bfloat16_scores_come_as_float32():
    model = find("tiny-bert", "encoder").load("cpu", "bfloat16")
    tokens = model.tokenize("{p} {mask}", [{"p": "The river"}], 60)
    hidden = model.mask_states(tokens, torch.zeros(2, 32))
    assert (hidden.dtype, model.logits(hidden).dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("kind", ("xlm-roberta", "bert", "distilbert"))
def test_a_missing_head_is_started_as_the_docstring_says(save, kind, capsys):
    """Scores are word embeddings times LayerNorm(gelu(hidden)), and the encoder is marked."""
    found = find(save(kind, bare=True), "encoder").load("cpu", "float32")
    hidden = torch.randn(5, 32)
    words = found.model.get_input_embeddings().weight
    normal = F.layer_norm(F.gelu(hidden), (32,), eps=1e-12)
    assert close(found.logits(hidden), normal @ words.T)
    assert found.mlm_head == "missing" and "MLM head missing" in capsys.readouterr().out


def test_starting_a_head_leaves_the_encoder_and_the_global_generator_alone(save):
    folder = save("bert", bare=True)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = find(folder, "encoder").load("cpu", "float32")
    assert torch.equal(before, torch.get_rng_state())
    assert weights_sha256(found.model.base_model) == weights_sha256(small("bert").model.base_model)


def test_a_head_that_was_never_fitted_stays_missing_when_saved(save, tmp_path):
    found = find(save("bert", bare=True), "encoder").load("cpu", "float32")
    found.model.save_pretrained(tmp_path / "again")
    found.tokenizer.save_pretrained(tmp_path / "again")
    assert find(str(tmp_path / "again"), "encoder").load("cpu", "float32").mlm_head == "missing"


def test_a_checkpoint_that_lacks_a_layer_is_refused(save):
    folder = save("bert")
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = 3
    config.save_pretrained(folder)
    with pytest.raises(InputError, match=r"lacks weights: bert\.encoder\.layer\.2"):
        find(folder, "encoder").load("cpu", "float32")


def test_a_checkpoint_without_head_and_untied_is_refused(save):
    folder = save("bert", bare=True)
    config = AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = False
    config.save_pretrained(folder)
    with pytest.raises(InputError, match="lacks weights: cls"):
        find(folder, "encoder").load("cpu", "float32")


# --- families -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [t for f in encoders.FAMILIES for t in f.model_types])
def test_every_family_with_an_adapter_passes_the_check(kind):
    assert family_of(kind).trusted
    verify_exactness(small(kind), 1e-5)


@pytest.mark.parametrize("kind", ("albert", "electra", "modernbert", "rembert"))
def test_other_encoders_that_take_embeddings_as_they_are_pass_the_check(kind):
    special = dict(cls_token_id=0, sep_token_id=2) if kind == "modernbert" else {}
    special |= dict(input_embedding_size=16) if kind == "rembert" else {}
    assert not family_of(kind).trusted
    verify_exactness(small(kind, **special))


@pytest.mark.parametrize("kind", ("mpnet", "convbert", "fnet"))
def test_encoders_that_would_be_run_wrongly_are_refused(kind):
    """MPNet counts positions like XLM-R; the other two look at padding."""
    with pytest.raises(InputError, match=f"{kind}.*exactness check: scores differ"):
        verify_exactness(small(kind))


def test_xlm_r_without_its_adapter_is_refused():
    model = Encoder("xlm-roberta", encoder("xlm-roberta").model, tiny_tokenizer(True), Family())
    with pytest.raises(InputError, match="scores differ"):
        verify_exactness(model)


def test_an_encoder_that_cannot_run_so_is_refused_in_words():
    with pytest.raises(InputError, match=r"luke.*exactness check"):
        verify_exactness(small("luke", entity_vocab_size=8, entity_emb_size=8))


def test_an_unknown_family_is_checked_when_it_is_loaded(save):
    with pytest.raises(InputError, match="exactness check"):
        find(save("mpnet"), "encoder").load("cpu", "float32")
