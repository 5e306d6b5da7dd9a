"""Packed training of a ticket equals dense training under a mask, and leaves all else to the bit.

Reference: dense gradients times dense masks, AdamW on every weight, inactive weights put back.
"""

import copy
import hashlib

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertForMaskedLM, XLMRobertaConfig, XLMRobertaForMaskedLM

from xlcore.backbones import weights_sha256
from xlcore.errors import InputError
from xlcore.masked_training import MaskedWeights
from xlcore.tickets import named, parameters, score, select

TINY = dict(
    vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=64, max_position_embeddings=40, type_vocab_size=2,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
ADAM = dict(lr=3e-3, weight_decay=0.1)
CLIP, ACCUMULATE, STEPS = 0.5, 2, 20
FAMILIES = ("bert", "xlm-roberta")
family = pytest.mark.parametrize("name", FAMILIES)


def tiny(name, seed=0):
    torch.manual_seed(seed)
    if name == "bert":
        return BertForMaskedLM(BertConfig(**TINY))
    return XLMRobertaForMaskedLM(XLMRobertaConfig(**TINY))


def soft_prompt(n=3):
    g = torch.Generator().manual_seed(5)
    return nn.Parameter(torch.rand(n, TINY["hidden_size"], generator=g) - 0.5)


def random_ticket(model, scope="encoder", ratio=0.2, seed=1):
    """Draw a ticket without key biases.

    Softmax is blind to them: their gradient is rounding noise, which Adam blows up to whole steps.
    """
    scores = score("random", seed, start=parameters(model, scope))
    scores = {name: s for name, s in scores.items() if not name.endswith("key.bias")}
    return select(scores, round(ratio * sum(s.numel() for s in scores.values())))


def batches(count):
    """Return seeded batches of token ids (B, T) and one label word each (B,)."""
    g = torch.Generator().manual_seed(7)
    every = torch.randint(5, TINY["vocab_size"], (count, 4, 10), generator=g)
    return [(ids[:, 1:], ids[:, 0]) for ids in every]


def task_loss(model, prompt, batch):
    """Return the loss of each text's label word at its last position, the prompt in front."""
    ids, labels = batch
    words = model.get_input_embeddings()(ids)  # (B, T, d)
    embeds = torch.cat([prompt.expand(len(ids), -1, -1).to(words.dtype), words], 1)
    positions = torch.arange(embeds.shape[1]).expand(len(ids), -1)
    out = model(inputs_embeds=embeds, position_ids=positions)
    return nn.functional.cross_entropy(out.logits[:, -1].float(), labels)


def masks(model, ticket):
    """Return the dense mask of every parameter of the model, False outside the ticket."""
    none = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in named(model).items()}
    return none | {name: ticket.mask(name) for name in ticket.shapes}


def dense_training(model, ticket, extra, loss, adam=ADAM, clip=CLIP, groups=None):
    """Train by the book; loss(i, j): micro-batch j of step i. The slow, obvious reference."""
    mask, params = masks(model, ticket), named(model)
    start = {name: p.detach().clone() for name, p in params.items()}
    optimizer = torch.optim.AdamW([*params.values(), *extra], **adam)
    for i in range(STEPS):
        optimizer.zero_grad()
        for j in range(ACCUMULATE):
            (loss(i, j) / ACCUMULATE).backward()
        for name, p in params.items():
            if p.grad is not None:
                p.grad *= mask[name]
        clip_grad_norm_([*params.values(), *extra], clip)
        optimizer.step()
        with torch.no_grad():
            for name, p in params.items():
                p.copy_(torch.where(mask[name], p, start[name]))


def packed_training(weights, extra, loss, adam=ADAM, clip=CLIP):
    """Train the ticket's weights; all others must have the same hash afterwards."""
    before = frozen_sha256(weights)
    optimizer = torch.optim.AdamW([*weights.parameters(), *extra], **adam)
    for i in range(STEPS):
        for j in range(ACCUMULATE):
            (loss(i, j) / ACCUMULATE).backward()
        clip_grad_norm_([*weights.parameters(), *extra], clip)
        optimizer.step()
        weights.write()
        optimizer.zero_grad()
    assert frozen_sha256(weights) == before


def frozen_sha256(weights):
    """Return the hash of all that may not move: inactive weights, and those out of scope."""
    active = {id(part.weight): part.index.long() for part in weights._parts.values()}
    digest = hashlib.sha256()
    for p, _ in weights._flags:
        still = torch.ones(p.numel(), dtype=torch.bool)
        still[active.get(id(p), [])] = False
        digest.update(p.detach().reshape(-1)[still].view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def train(how, model, ticket, prompt, context=None):
    """Train model and prompt on the task, dense or packed; return the packed weights' owner."""
    data = batches(STEPS * ACCUMULATE)

    def loss(i, j):
        with context() if context else torch.enable_grad():
            return task_loss(model, prompt, data[i * ACCUMULATE + j])

    if how == "dense":
        return dense_training(model, ticket, [prompt], loss)
    weights = MaskedWeights(model, ticket)
    packed_training(weights, [prompt], loss)
    return weights


def assert_same_weights(found, wanted, tolerance=1e-6):
    for (name, a), (_, b) in zip(found.named_parameters(), wanted.named_parameters(), strict=True):
        assert float((a - b).detach().abs().max()) <= tolerance, name


def inactive_sha256(model, ticket):
    """Return the hash of all weights that the ticket leaves alone."""
    mask, digest = masks(model, ticket), hashlib.sha256()
    for name, p in named(model).items():
        digest.update(name.encode())
        digest.update(p.detach()[~mask[name]].view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def changed(model, start):
    return {name: p.detach() != start[name] for name, p in named(model).items()}


# --- against dense training -----------------------------------------------------------------------


@family
@pytest.mark.parametrize("scope", ("encoder", "all", "embeddings", "layers 2-2"))
def test_twenty_steps_equal_dense_training_under_a_mask(name, scope):
    model, reference = tiny(name), tiny(name)
    ticket = random_ticket(model, scope)
    prompt, reference_prompt = soft_prompt(), soft_prompt()
    frozen = inactive_sha256(model, ticket)
    train("packed", model, ticket, prompt)
    train("dense", reference, ticket, reference_prompt)
    assert_same_weights(model, reference)
    assert float((prompt - reference_prompt).detach().abs().max()) <= 1e-6
    assert float((prompt - soft_prompt()).detach().abs().max()) > 1e-2
    assert inactive_sha256(model, ticket) == frozen


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@family
@pytest.mark.parametrize("reentrant", (True, False))
def test_checkpointing_changes_nothing(name, reentrant):
    model, reference = tiny(name), tiny(name)
    ticket = random_ticket(model)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    train("packed", model, ticket, soft_prompt())
    train("dense", reference, ticket, soft_prompt())
    assert_same_weights(model, reference)


@family
def test_autocast_in_bfloat16_equals_dense_training_under_autocast(name):
    model, reference, plain = tiny(name), tiny(name), tiny(name)
    ticket = random_ticket(model)

    def context():
        return torch.autocast("cpu", torch.bfloat16)

    frozen = inactive_sha256(model, ticket)
    train("packed", model, ticket, soft_prompt(), context)
    train("dense", reference, ticket, soft_prompt(), context)
    train("dense", plain, ticket, soft_prompt())
    assert_same_weights(model, reference)
    assert any((a != b).any() for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert inactive_sha256(model, ticket) == frozen


class Toy(nn.Module):
    """Two maps with a non-linearity; the second may be the first one's transpose, tied."""

    def __init__(self, width, hidden, tied):
        super().__init__()
        self.first, self.norm = nn.Linear(width, hidden), nn.LayerNorm(hidden)
        self.second = nn.Linear(hidden, hidden)
        if tied:
            self.third = nn.Linear(hidden, hidden)
            self.third.weight = self.second.weight

    def forward(self, x):
        x = self.second(self.norm(self.first(x).tanh()).tanh())
        return self.third(x.tanh()) if hasattr(self, "third") else x


@settings(max_examples=25)
@given(
    st.integers(1, 5), st.integers(2, 6), st.booleans(), st.floats(0, 1), st.integers(0, 99),
    st.sampled_from((0.0, 0.3)), st.sampled_from((1e-2, 1e3)),
)  # fmt: skip
def test_drawn_toys_train_as_dense_ones_do(width, hidden, tied, ratio, seed, decay, clip):
    torch.manual_seed(seed)
    toy = Toy(width, hidden, tied).double()  # Adam's first steps blow rounding up to the rate
    inputs = torch.randn(STEPS, ACCUMULATE, 6, width).double()
    reference, start = copy.deepcopy(toy), {n: p.detach().clone() for n, p in named(toy).items()}
    scores = score("random", seed, start=start)
    ticket = select(scores, round(ratio * sum(s.numel() for s in scores.values())))
    how = dict(adam=dict(lr=1e-2, weight_decay=decay), clip=clip)

    def loss(model):
        return lambda i, j: model(inputs[i, j]).square().sum()

    dense_training(reference, ticket, [], loss(reference), **how)
    if ticket.k:
        packed_training(MaskedWeights(toy, ticket), [], loss(toy), **how)
    assert_same_weights(toy, reference)
    mask = masks(toy, ticket)
    assert not any((moved & ~mask[n]).any() for n, moved in changed(toy, start).items())


@family
def test_accelerate_prepares_accumulates_clips_and_steps_as_the_plain_loop(name):
    model, reference = tiny(name), tiny(name)
    ticket = random_ticket(model)
    prompt = soft_prompt()
    data = batches(STEPS * ACCUMULATE)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    model, loader = accelerator.prepare(model, torch.utils.data.DataLoader(data, batch_size=None))
    weights = MaskedWeights(accelerator.unwrap_model(model), ticket)
    trained, frozen = [*weights.parameters(), prompt], frozen_sha256(weights)
    optimizer = accelerator.prepare(torch.optim.AdamW(trained, **ADAM))
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(task_loss(model, prompt, batch))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(trained, CLIP)
            optimizer.step()
            weights.write()
            optimizer.zero_grad()
    assert frozen_sha256(weights) == frozen
    train("dense", reference, ticket, soft_prompt())
    assert_same_weights(accelerator.unwrap_model(model), reference)


@pytest.mark.parametrize("option", ({"foreach": True}, {"fused": True}))
def test_the_optimizers_variants_all_drive_it(option):
    model, reference = tiny("bert"), tiny("bert")
    ticket = random_ticket(model)
    data = batches(STEPS * ACCUMULATE)
    prompts = soft_prompt(), soft_prompt()
    adam = ADAM | option
    packed_training(
        MaskedWeights(model, ticket), [prompts[0]],
        lambda i, j: task_loss(model, prompts[0], data[i * ACCUMULATE + j]), adam,
    )  # fmt: skip
    dense_training(
        reference, ticket, [prompts[1]],
        lambda i, j: task_loss(reference, prompts[1], data[i * ACCUMULATE + j]), adam,
    )  # fmt: skip
    assert_same_weights(model, reference)


# --- what moves, and what comes back --------------------------------------------------------------


@family
@pytest.mark.parametrize("budget", ("global", "per_layer"))
def test_exactly_k_weights_differ_after_training(name, budget):
    model = tiny(name)
    start = {n: p.detach().clone() for n, p in named(model).items()}
    scores = score("random", 3, start=parameters(model))
    ticket = select(scores, 1234, budget)
    train("packed", model, ticket, soft_prompt())
    moved, mask = changed(model, start), masks(model, ticket)
    assert sum(int(m.sum()) for m in moved.values()) == 1234
    assert all(torch.equal(moved[n], mask[n]) for n in moved)


@family
def test_training_in_bfloat16_keeps_steps_that_bfloat16_would_round_away(name):
    model = tiny(name).bfloat16()
    ticket = random_ticket(model)
    frozen = inactive_sha256(model, ticket)
    with MaskedWeights(model, ticket) as untrained:
        before = untrained.values()
    weights = train("packed", model, ticket, soft_prompt().bfloat16().detach().requires_grad_())
    after = weights.values()
    assert inactive_sha256(model, ticket) == frozen
    for n, p in ticket.of(model).items():
        assert torch.equal(p.detach()[ticket.mask(n)], after[n].bfloat16())
    assert any((after[n].bfloat16().float() != after[n]).any() for n in after)
    assert any((after[n] != before[n]).any() for n in after)


@family
def test_leaving_the_block_gives_the_model_back_to_the_bit(name):
    model = tiny(name)
    model.get_input_embeddings().weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    before, ticket = weights_sha256(model), random_ticket(model)
    with MaskedWeights(model, ticket) as weights:
        packed_training(weights, [], lambda i, j: task_loss(model, soft_prompt(), batches(1)[0]))
        assert weights_sha256(model) != before
    assert weights_sha256(model) == before
    assert [p.requires_grad for p in model.parameters()] == flags
    task_loss(model, soft_prompt(), batches(1)[0]).backward()
    assert all((p.grad is not None) == p.requires_grad for n, p in named(model).items()
               if ".layer." in n)  # fmt: skip


@family
def test_a_block_left_by_an_error_gives_the_model_back_too(name):
    model = tiny(name)
    before = weights_sha256(model)
    with pytest.raises(KeyError), MaskedWeights(model, random_ticket(model)) as weights:
        weights.write({n: x + 1 for n, x in weights.values().items()})
        assert weights_sha256(model) != before
        raise KeyError
    assert weights_sha256(model) == before


@family
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_values_go_onto_a_fresh_model_and_off_again_to_the_bit(name, dtype):
    model, fresh = tiny(name), tiny(name)
    ticket, before = random_ticket(model, "all"), weights_sha256(fresh)
    trained = train("packed", model, ticket, soft_prompt()).values()
    values = {n: x.to(getattr(torch, dtype)) for n, x in trained.items()}
    wanted = tiny(name)
    with torch.no_grad():
        for n, p in ticket.of(wanted).items():
            p[ticket.mask(n)] = values[n].float()
    with MaskedWeights(fresh, ticket, values):
        assert weights_sha256(fresh) == weights_sha256(wanted)
    assert weights_sha256(fresh) == before


def test_earlier_values_can_be_written_back_while_training():
    model = tiny("bert")
    ticket = random_ticket(model)
    weights = MaskedWeights(model, ticket)
    best, before = weights.values(), weights_sha256(model)
    packed_training(weights, [], lambda i, j: task_loss(model, soft_prompt(), batches(1)[0]))
    weights.write(best)
    assert weights_sha256(model) == before
    assert all(torch.equal(weights.values()[n], best[n]) for n in best)


def test_an_earlier_dense_gradient_is_not_trained_on():
    model, reference = tiny("bert"), tiny("bert")
    ticket = random_ticket(model)
    task_loss(model, soft_prompt(), batches(1)[0]).backward()
    train("packed", model, ticket, soft_prompt())
    train("dense", reference, ticket, soft_prompt())
    assert_same_weights(model, reference)


# --- memory ---------------------------------------------------------------------------------------


def deep(width=192, layers=8):
    """Return a deep narrow chain whose weights dwarf its activations."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


def step_peak(step):
    """Return the most bytes that torch's allocator held at once beyond those before the step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return int(np.cumsum([0, *sizes]).max())


def test_a_backward_pass_holds_one_layers_dense_gradient_beside_the_packed_ones():
    model, x = deep(), torch.randn(1, 192)
    ticket = select(score("random", start=dict(model.named_parameters())), 30_000)
    layer, every = 192 * 193 * 4, 8 * 192 * 193 * 4
    dense = step_peak(lambda: model(x).sum().backward())
    with MaskedWeights(model, ticket) as weights:
        packed = step_peak(lambda: model(x).sum().backward())
        assert all(p.grad is None for p in model.parameters())
        assert sum(p.grad.numel() for p in weights.parameters()) == ticket.k
    assert dense > every
    # Indices of one layer are widened to int64 while its entries are gathered.
    assert packed < ticket.k * 4 + layer + 8 * max(ticket.active.values()) + 20_000


def test_values_gradients_and_moments_have_one_entry_per_active_weight():
    model = tiny("xlm-roberta")
    ticket = random_ticket(model)
    weights = MaskedWeights(model, ticket)
    optimizer = torch.optim.AdamW(weights.parameters())
    task_loss(model, soft_prompt(), batches(1)[0]).backward()
    optimizer.step()
    assert all(p.grad is None for p in model.parameters())
    moments = [x for state in optimizer.state.values() for x in state.values() if x.ndim]
    assert sum(p.numel() for p in weights.parameters()) == ticket.k
    assert sum(p.grad.numel() for p in weights.parameters()) == ticket.k
    assert sum(x.numel() for x in moments) == 2 * ticket.k


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ({}, {"foreach": True}, {"fused": True}))
def test_a_forgotten_write_is_noticed_at_the_next_backward_pass(option):
    model = tiny("bert")
    weights = MaskedWeights(model, random_ticket(model))
    optimizer = torch.optim.AdamW(weights.parameters(), **option)
    task_loss(model, soft_prompt(), batches(1)[0]).backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="write"):
        task_loss(model, soft_prompt(), batches(1)[0]).backward()


def test_another_model_and_values_of_another_ticket_are_refused_before_anything_changes():
    model = tiny("bert")
    before = weights_sha256(model)
    ticket, other = random_ticket(model), random_ticket(model, seed=2)
    with pytest.raises(InputError, match="unknown parameter"):
        MaskedWeights(tiny("xlm-roberta"), ticket)
    values = MaskedWeights(model, other).values()
    model = tiny("bert")
    with pytest.raises(InputError, match="values"):
        MaskedWeights(model, ticket, values)
    assert weights_sha256(model) == before
    assert all(p.requires_grad for p in model.parameters())


def test_two_tickets_at_once_on_one_model_are_noticed():
    model = tiny("bert")
    both = [MaskedWeights(model, random_ticket(model, seed=seed)) for seed in (1, 2)]
    with pytest.raises(RuntimeError, match=r"remove\(\)"):
        task_loss(model, soft_prompt(), batches(1)[0]).backward()
    assert len(both) == 2


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="one process"):
        MaskedWeights(model := tiny("bert"), random_ticket(model))
