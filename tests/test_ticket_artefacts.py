"""A ticket's file, with its prompt and a fitted head, makes a fresh encoder the trained one.

References: the trained model's own scores, dense masks written by hand, safetensors read directly.
"""

import dataclasses
import json
import math
import zlib
from functools import cache

import pytest
import torch
from references import rewrite
from safetensors import safe_open
from safetensors.torch import load as from_bytes
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from xlcore import encoders
from xlcore.artefacts import Artefact, Card, apply, describe, from_encoder, load, to_peft
from xlcore.backbones import weights_sha256
from xlcore.checkpoints import find
from xlcore.errors import InputError
from xlcore.masked_training import MaskedWeights
from xlcore.tickets import parameters, score, select

KINDS = [(name, head) for name in ("tiny-xlm-roberta", "tiny-bert")
         for head in ("pretrained", "fitted")]  # fmt: skip
every = pytest.mark.parametrize("kind", KINDS, ids=" ".join)
BERT, FITTED = KINDS[2], KINDS[3]
ROWS = [{"p": "The river rose", "h": "It rained"}, {"p": "No", "h": "A goal in the last minute"}]
ABOUT = dict(strategy="random", scope="encoder", text="made up", language="eng", steps=7)
BASE = dict(name="made up", sha256="a" * 64, kind="encoder")


def fresh(kind, seed=None):
    """Return an encoder as loaded; the head it lacks is started, or with a seed fitted."""
    name, head = kind
    made = find(name, "encoder").fresh(torch.float32)
    if head == "fitted":
        encoders.start_head(made.model, ["head.bias"])
    if seed is not None and head == "fitted":
        g = torch.Generator().manual_seed(seed)
        for p in encoders.head(made.model).values():
            p.data += torch.rand(p.shape, generator=g) - 0.5
        made.model.config.mlm_head = "fitted"
    return dataclasses.replace(made)  # made anew: it keeps the hash of these weights


def random_ticket(model, ratio=0.2):
    scores = score("random", seed=1, start=parameters(model))
    return select(scores, round(ratio * sum(s.numel() for s in scores.values())))


def scores_of(encoder, vectors):
    tokens = encoder.tokenize("{p} . {h} ? {mask} .", ROWS, 60)
    return encoder.logits(encoder.mask_states(tokens, vectors))


@cache
@torch.enable_grad()  # whichever test asks first
def trained(kind):
    """Train prompt and ticket for three steps; return what came of it and the model's scores."""
    torch.set_num_threads(1)  # thread hand-over costs more than these models' arithmetic
    encoder = fresh(kind, seed=3)
    ticket = random_ticket(encoder.model)
    prompt = nn.Parameter(torch.rand(4, 32, generator=torch.Generator().manual_seed(2)) - 0.5)
    with MaskedWeights(encoder.model, ticket) as weights:
        optimizer = torch.optim.AdamW([*weights.parameters(), prompt], lr=0.02)
        for _ in range(3):
            wanted = torch.tensor([17, 30])
            nn.functional.cross_entropy(scores_of(encoder, prompt), wanted).backward()
            optimizer.step()
            weights.write()
            optimizer.zero_grad()
        with torch.no_grad():
            found = scores_of(encoder, prompt)
        values = weights.values()
    more = dict(words={"yes": "right"}, training=dict(seed=1))
    one = from_encoder(encoder, prompt.detach(), "prefix", ticket, values, ABOUT, **more)
    return one, found


@pytest.fixture
def saved(tmp_path):
    trained(FITTED)[0].save(tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def inflate(packed):
    return from_bytes(zlib.decompress(packed.numpy().tobytes()))


def deflate(tensors):
    return torch.tensor(list(zlib.compress(to_bytes(tensors))), dtype=torch.uint8)


def same_bits(one, other):
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


# --- round trip -----------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_prompt_mask_values_head_and_card_come_back(tmp_path, kind, dtype):
    wanted = trained(kind)[0]
    wanted.save(tmp_path / "a", dtype)
    found = load(tmp_path / "a", fresh(kind))
    assert found.card == wanted.card and same_bits(found.vectors, wanted.vectors)
    assert list(found.ticket.shapes.items()) == list(wanted.ticket.shapes.items())
    for name, bits in wanted.ticket.bits.items():
        assert torch.equal(found.ticket.bits[name], bits)
        assert same_bits(found.values[name], wanted.values[name].to(getattr(torch, dtype)))
    assert (found.head is None) == (kind[1] == "pretrained")
    assert all(same_bits(found.head[name], x) for name, x in (wanted.head or {}).items())


def test_a_mask_alone_can_be_saved(tmp_path):
    encoder = fresh(BERT)
    ticket = random_ticket(encoder.model)
    from_encoder(encoder, ticket=ticket, about=ABOUT).save(tmp_path / "a")
    found = load(tmp_path / "a", encoder)
    assert (found.vectors, found.values, found.ticket.k) == (None, None, ticket.k)


def test_an_encoder_s_prompt_may_stand_before_its_mask(tmp_path):
    from_encoder(fresh(BERT), torch.ones(2, 32), "infix").save(tmp_path / "a")
    assert load(tmp_path / "a", fresh(BERT)).card.position == "infix"


def test_the_card_says_what_the_ticket_is_and_how_it_was_mined(saved):
    ticket = trained(FITTED)[0].ticket
    counts = dict(k=ticket.k, total=ticket.total, active_ratio=ticket.k / ticket.total)
    assert load(saved).card.ticket == ABOUT | counts


def test_the_page_shows_prompt_and_ticket(saved):
    lines = describe(saved).splitlines()
    wanted = [
        "# Soft prompt: 4 vectors of width 32, prefix",
        f"# Winning ticket: {trained(FITTED)[0].ticket}",
        "## Ticket",
        "| strategy | random |",
        "| steps | 7 |",
    ]
    assert [line for line in lines if line in wanted] == wanted


@cache
def e5_sized():
    """Return an artefact of the size of one on multilingual-e5-small, with a fitted head."""
    shape = dict(hidden_size=384, intermediate_size=1536, num_hidden_layers=12)
    with torch.device("meta"):
        model = BertForMaskedLM(BertConfig(vocab_size=250037, num_attention_heads=12, **shape))
    g = torch.Generator().manual_seed(4)
    sizes = {name: p.shape for name, p in parameters(model).items()}
    scores = {name: torch.rand(size, generator=g) for name, size in sizes.items()}
    ticket = select(scores, round(0.2 * sum(s.numel() for s in scores.values())))
    values = {name: torch.randn(n, generator=g) for name, n in ticket.active.items()}
    head = {n: torch.randn(p.shape, generator=g) for n, p in encoders.head(model).items()}
    head["cls.predictions.bias"][14_000:] = 0  # of words that the text does not have
    card = Card(
        BASE | dict(mlm_head="fitted"), "prefix", ticket=dict(ABOUT, k=ticket.k, active_ratio=0.2)
    )
    return Artefact(torch.ones(4, 384), card, ticket, values, head)


@pytest.mark.parametrize("dtype, limit", (("float32", 4.7), ("bfloat16", 2.7)))
def test_a_file_with_a_fitted_head_stays_below_its_bytes_per_active_weight(tmp_path, dtype, limit):
    one = e5_sized()
    one.save(tmp_path / "a", dtype)
    assert one.ticket.k == 4_258_714
    assert (tmp_path / "a").stat().st_size / one.ticket.k < limit


# --- on and off -----------------------------------------------------------------------------------


@every
@torch.no_grad()
def test_a_fresh_encoder_gives_the_trained_one_s_scores_to_the_bit(tmp_path, kind):
    one, wanted = trained(kind)
    one.save(tmp_path / "a")
    encoder = fresh(kind)
    with apply(load(tmp_path / "a"), encoder) as vectors:
        assert torch.equal(scores_of(encoder, vectors), wanted)
        assert encoder.mlm_head == kind[1]


@every
@torch.no_grad()
def test_bfloat16_values_are_those_of_a_dense_mask_written_by_hand(tmp_path, kind):
    one = trained(kind)[0]
    one.save(tmp_path / "a", "bfloat16")
    encoder, by_hand = fresh(kind), fresh(kind).model
    for name, p in by_hand.named_parameters():
        if name in one.ticket.shapes:
            p[one.ticket.mask(name)] = one.values[name].bfloat16().float()
        elif name in (one.head or {}):
            p.copy_(one.head[name])
    with apply(load(tmp_path / "a"), encoder):
        assert weights_sha256(encoder.model) == weights_sha256(by_hand)


@every
@pytest.mark.parametrize("seed", (None, 8), ids=("as loaded", "with a head of its own"))
def test_leaving_the_block_gives_the_encoder_back_to_the_bit(kind, seed):
    encoder = fresh(kind, seed)
    before, mark = weights_sha256(encoder.model), encoder.mlm_head
    with pytest.raises(KeyError), apply(trained(kind)[0], encoder):
        assert weights_sha256(encoder.model) != before
        raise KeyError
    assert (weights_sha256(encoder.model), encoder.mlm_head) == (before, mark)


def test_an_encoder_under_a_ticket_is_frozen_and_can_be_trained_afterwards_as_before():
    encoder = fresh(FITTED)
    flags = [i % 2 == 0 for i, _ in enumerate(encoder.model.parameters())]
    for p, flag in zip(encoder.model.parameters(), flags, strict=True):
        p.requires_grad_(flag)
    with apply(trained(FITTED)[0], encoder):
        assert not any(p.requires_grad for p in encoder.model.parameters())
    assert [p.requires_grad for p in encoder.model.parameters()] == flags


def test_a_prompt_alone_brings_the_head_it_was_trained_with():
    maker, encoder = fresh(FITTED, 3), fresh(FITTED)
    with apply(from_encoder(maker, torch.ones(2, 32), "prefix"), encoder) as vectors:
        assert weights_sha256(encoder.model) == weights_sha256(maker.model)
        assert torch.equal(vectors, torch.ones(2, 32))


# --- the base model -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ("tiny-xlm-roberta", "tiny-bert"))
def test_the_hash_of_a_base_model_without_a_head_is_the_same_once_one_is_fitted(name):
    assert fresh((name, "fitted")).sha256 == fresh((name, "fitted"), 3).sha256


@pytest.mark.parametrize("name", ("tiny-xlm-roberta", "tiny-bert"))
def test_the_hash_of_a_base_model_with_a_pretrained_head_covers_it(name):
    made = fresh((name, "pretrained"))
    next(iter(encoders.head(made.model).values())).data += 1
    assert not made.untouched() and dataclasses.replace(made).sha256 != made.sha256


def test_the_hash_of_a_base_model_is_the_same_in_both_precisions():
    made = fresh(BERT)
    rounded = find("tiny-bert", "encoder").fresh(torch.bfloat16)
    assert dataclasses.replace(rounded).sha256 == made.sha256


def test_a_change_below_bfloat16_s_precision_is_noticed():
    made = fresh(BERT)
    weight = next(iter(parameters(made.model).values())).data
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert dataclasses.replace(made).sha256 == made.sha256 and not made.untouched()
    with pytest.raises(InputError, match="not those it was loaded with"):
        from_encoder(made, torch.ones(2, 32), "prefix")


def test_another_base_model_is_refused_with_both_hashes(saved):
    other = fresh(FITTED)
    next(other.model.base_model.parameters()).data[3, 3] += 1
    other = dataclasses.replace(other)
    for use in (lambda: load(saved, other), lambda: apply(load(saved), other).__enter__()):
        with pytest.raises(InputError) as error:
            use()
        assert all(e.sha256 in str(error.value) for e in (fresh(FITTED), other))


def test_an_encoder_that_has_a_head_is_another_base_model(saved):
    with pytest.raises(InputError, match="is another"):
        load(saved, fresh(BERT))


def test_a_second_ticket_is_not_put_on_top_of_a_first():
    encoder = fresh(FITTED)
    before = weights_sha256(encoder.model)
    with (
        pytest.raises(InputError, match="not those it was loaded with"),
        apply(trained(FITTED)[0], encoder),
        apply(trained(FITTED)[0], encoder),
    ):
        pytest.fail("two tickets at once")
    assert weights_sha256(encoder.model) == before


def test_an_artefact_is_not_gathered_while_the_ticket_is_on():
    encoder, one = fresh(FITTED, 3), trained(FITTED)[0]
    with (
        MaskedWeights(encoder.model, one.ticket, one.values),
        pytest.raises(InputError, match="not those it was loaded with"),
    ):
        from_encoder(encoder, None, None, one.ticket, one.values, ABOUT)


def test_other_shapes_are_refused_though_the_hash_agrees():
    one, encoder = trained(BERT)[0], fresh(BERT)
    encoder.model.config.intermediate_size = 72
    other = dataclasses.replace(encoder, model=BertForMaskedLM(encoder.model.config).eval())
    base = one.card.base | dict(sha256=other.sha256)
    forged = dataclasses.replace(one, card=dataclasses.replace(one.card, base=base))
    with pytest.raises(InputError, match=r"shape \(64, 32\); this model's, \(72, 32\)"):
        apply(forged, other).__enter__()


def test_a_head_of_other_parameters_is_refused():
    one = trained(FITTED)[0]
    head = dict(list(one.head.items())[1:])
    with pytest.raises(InputError, match="has another head than 'tiny-bert'"):
        apply(dataclasses.replace(one, head=head), fresh(FITTED)).__enter__()


# --- what is refused ------------------------------------------------------------------------------


def test_a_mask_without_values_is_not_put_on():
    one = dataclasses.replace(trained(BERT)[0], values=None)
    with pytest.raises(InputError, match="no values, only a mask"):
        apply(one, fresh(BERT)).__enter__()


def test_values_without_their_ticket_are_refused():
    one = trained(BERT)[0]
    card = dataclasses.replace(one.card, ticket={})
    with pytest.raises(InputError, match="need the ticket"):
        Artefact(one.vectors, card, None, one.values)


@pytest.mark.parametrize("part", ("vectors", "ticket", "head"))
def test_content_that_its_card_does_not_speak_of_and_the_reverse_is_refused(part):
    one = trained(FITTED)[0]
    with pytest.raises(InputError, match=f"of content and card, only one has {part}"):
        dataclasses.replace(one, values=None, **{part: None})


def test_an_empty_artefact_is_refused():
    with pytest.raises(InputError, match="needs a prompt or a ticket"):
        Artefact(None, Card(BASE, None))


@pytest.mark.parametrize("lacking", ("strategy", "scope", "k", "active_ratio"))
def test_a_ticket_s_card_needs_all_that_names_the_ticket(lacking):
    about = dict(ABOUT, k=1, active_ratio=0.5)
    del about[lacking]
    with pytest.raises(InputError, match=f"lacks .*{lacking}"):
        Card(BASE, None, ticket=about)


def test_a_ticket_of_another_size_than_its_card_says_is_refused():
    one = trained(BERT)[0]
    card = dataclasses.replace(one.card, ticket=one.card.ticket | dict(k=9))
    with pytest.raises(InputError, match="its card says 9"):
        dataclasses.replace(one, card=card)


def test_a_ticket_needs_the_hash_of_its_base_model():
    with pytest.raises(InputError, match="needs its sha256"):
        Card(BASE | dict(sha256=None), None, ticket=dict(ABOUT, k=1, active_ratio=0.5))


@pytest.mark.parametrize("wrong", ([1.0], [1.0, math.nan], [1.0, math.inf]))
def test_too_few_values_and_values_that_are_not_finite_are_refused(wrong):
    ticket = select({"w": torch.ones(3)}, 2)
    card = Card(BASE, None, ticket=dict(ABOUT, k=2, active_ratio=2 / 3))
    with pytest.raises(InputError, match="'w' needs 2 values"):
        Artefact(None, card, ticket, {"w": torch.tensor(wrong)})


def test_values_beyond_bfloat16_are_never_saved(tmp_path):
    ticket = select({"w": torch.ones(3)}, 1)
    card = Card(BASE, None, ticket=dict(ABOUT, k=1, active_ratio=1 / 3))
    one = Artefact(None, card, ticket, {"w": torch.tensor([3.4028235e38])})
    with pytest.raises(InputError, match="'w' needs 1 values, all of them finite"):
        one.save(tmp_path / "a", "bfloat16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ("ticket.values.", "head", "prompt"))
def test_numbers_in_a_file_that_are_not_finite_are_refused_with_its_name(saved, part):
    tensors = load_file(saved)
    head = inflate(tensors["head"])
    every = [x for name, x in tensors.items() if name.startswith(part)]
    (next(iter(head.values())) if part == "head" else every[0]).view(-1)[0] = math.nan
    rewrite(saved, tensors | dict(head=deflate(head)))
    with pytest.raises(InputError, match=r"a\.safetensors: .*finite"):
        load(saved)


@pytest.mark.parametrize("part", ("ticket.masks", "head"))
@pytest.mark.parametrize("n, dtype", ((0, torch.uint8), (99, torch.uint8), (9, torch.bfloat16)))
def test_masks_and_heads_that_cannot_be_unpacked_are_refused(saved, part, n, dtype):
    rewrite(saved, load_file(saved) | {part: torch.ones(n, dtype=dtype)})
    with pytest.raises(InputError, match=rf"'{part}' in .*a\.safetensors cannot be unpacked"):
        load(saved)


def test_a_head_cut_off_is_refused(saved):
    tensors = load_file(saved)
    rewrite(saved, tensors | dict(head=tensors["head"][:-9]))
    with pytest.raises(InputError, match=r"'head' in .* cannot be unpacked"):
        load(saved)


def test_a_mask_less_than_the_shapes_or_one_more_is_refused(saved):
    tensors = load_file(saved)
    bits = inflate(tensors["ticket.masks"])
    fewer = dict(list(bits.items())[1:])
    for other in (fewer, bits | {"other": torch.ones(2).byte()}):
        rewrite(saved, tensors | {"ticket.masks": deflate(other)})
        with pytest.raises(InputError, match=r"a\.safetensors"):
            load(saved)


@pytest.mark.parametrize("part", ("ticket.masks", "ticket.values.", "head", "prompt"))
def test_a_file_that_lacks_one_tensor_is_refused(saved, part):
    tensors = load_file(saved)
    del tensors[next(name for name in tensors if name.startswith(part))]
    rewrite(saved, tensors)
    with pytest.raises(InputError, match=r"a\.safetensors"):
        load(saved)


@pytest.mark.parametrize("name", ("other", "ticket.values.other"))
def test_a_file_with_a_tensor_of_another_name_is_refused(saved, name):
    rewrite(saved, load_file(saved) | {name: torch.ones(2)})
    with pytest.raises(InputError, match=r"a\.safetensors"):
        load(saved)


@pytest.mark.parametrize("shapes", ("[", "[]", "{}", '{"w": 3}', '{"w": ["x"]}'))
def test_shapes_that_cannot_be_read_or_do_not_fit_are_refused(saved, shapes):
    rewrite(saved, xlcore_shapes=shapes)
    with pytest.raises(InputError, match=r"a\.safetensors"):
        load(saved)


def test_an_unknown_dtype_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(InputError, match="'float16'; did you mean bfloat16"):
        trained(BERT)[0].save(tmp_path / "a", "float16")
    assert list(tmp_path.iterdir()) == []


def test_what_was_trained_on_an_encoder_is_not_exported_to_peft(tmp_path):
    with pytest.raises(InputError, match="trained on an encoder"):
        to_peft(tmp_path, trained(BERT)[0], fresh(BERT))


def test_a_ticket_s_file_needs_no_xlcore_to_read(saved):
    one = trained(FITTED)[0]
    name = next(iter(one.ticket.shapes))
    with safe_open(saved, "pt") as file:
        shape = json.loads(file.metadata()["xlcore_shapes"])[name]
        bits = inflate(file.get_tensor("ticket.masks"))[name]
    mask = [bool(bits[i // 8] >> i % 8 & 1) for i in range(math.prod(shape))]
    assert mask == one.ticket.mask(name).flatten().tolist()
