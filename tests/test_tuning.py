"""Methods that train weights: what moves, what does not, and that they read what they trained.

References: plain Hugging Face forwards and a plain AdamW loop over `references.plain_scores`.
"""

import dataclasses

import pytest
import torch
from references import FAMILIES, VERBALIZER, WORD_IDS, labelled, plain_scores, random_ids, tiny
from torch.nn import functional as F

from xlcore import checkpoints, tuning
from xlcore.backbones import pad, weights_sha256
from xlcore.errors import InputError
from xlcore.prompts import SoftPrompt
from xlcore.training import Job, Settings, TrainingDiverged

TRAIN = labelled((3, 12, 7, 20, 5, 9, 30, 4), (0, 1, 2, 3, 4, 5, 6, 0), seed=1)
DEV = labelled((6, 10, 3, 18), (0, 3, 5, 6), seed=2)
QUICK = Settings(epochs=2, batch_size=4, learning_rate=0.01)
family = pytest.mark.parametrize("name", FAMILIES)
method = pytest.mark.parametrize("kind", tuning.TUNERS)


def fresh(name):
    return lambda dtype: checkpoints.find(name).fresh(dtype)


def job(n=3, seed=1, position="suffix"):
    start = torch.rand(n, 32, generator=torch.Generator().manual_seed(seed)) - 0.5
    return Job(SoftPrompt(start, position, "a prompt"), TRAIN, DEV, seed)


def tune(name, kind, one=None, settings=QUICK, **given):
    like = tiny(name)
    return tuning.tune(
        fresh(name), like, one or job(), kind, VERBALIZER, settings, progress=False, **given
    )


def same(a, b):
    return weights_sha256(a) == weights_sha256(b)


# --- what moves -----------------------------------------------------------------------------------


@method
@family
def test_the_shared_backbone_and_the_job_stay_as_they_were(name, kind):
    before, one = weights_sha256(tiny(name).model), job()
    start = one.prompt.vectors().detach().clone()
    tune(name, kind, one)
    assert weights_sha256(tiny(name).model) == before
    assert torch.equal(one.prompt.vectors(), start)


@pytest.mark.parametrize("kind", ("joint_tuning", "fine_tuning", "lora"))
def test_the_weights_move(kind):
    assert not same(tune("tiny-llama", kind).backbone.model, tiny("tiny-llama").model)


def test_prefix_tuning_moves_no_weight():
    assert same(tune("tiny-llama", "prefix_tuning").backbone.model, tiny("tiny-llama").model)


@family
def test_body_leaves_out_the_embedding_matrix_and_nothing_else(name):
    found = tune(name, "fine_tuning", scope="body").backbone.model.state_dict()
    before = tiny(name).model.state_dict()
    tied = {k for k in before if "embed_tokens" in k or "lm_head" in k or "word_embeddings" in k}
    tied -= {k for k in tied if "layernorm" in k}
    still = {k for k in before if torch.equal(found[k], before[k])}
    assert {k for k in tied if k.endswith("weight")} == {k for k in still if k.endswith("weight")}


@pytest.mark.parametrize(
    ("kind", "scope", "more"), [("joint_tuning", "all", 3 * 32), ("fine_tuning", "all", 0)]
)
def test_the_number_of_trained_weights_is_the_models_and_the_prompts(kind, scope, more):
    whole = sum(p.numel() for p in tiny("tiny-bloom").model.parameters())
    assert tune("tiny-bloom", kind, scope=scope).trained == whole + more


def test_prefix_tuning_trains_keys_and_values_of_every_layer():
    config = tiny("tiny-llama").model.config
    a_token = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim
    assert tune("tiny-llama", "prefix_tuning").trained == 3 * a_token


# --- against the plain loop -----------------------------------------------------------------------


def plain_joint(name, one, settings):
    """Train prompt and weights together by the book; return the label words' scores of TRAIN."""
    model = checkpoints.find(name).fresh(torch.float32).model.requires_grad_(True)
    prompt = one.prompt.vectors().detach().clone().requires_grad_()
    moved = [*model.parameters(), prompt]
    optimizer = torch.optim.AdamW(moved, lr=settings.learning_rate, weight_decay=0.0)
    ids = [row[m].tolist() for row, m in zip(TRAIN.tokens.ids, TRAIN.tokens.mask, strict=True)]
    total, step = 2 * settings.epochs, 0
    for epoch in range(1, settings.epochs + 1):
        generator = torch.Generator().manual_seed(1000 * one.seed + epoch)
        for rows in torch.randperm(8, generator=generator).split(4):
            optimizer.param_groups[0]["lr"] = settings.learning_rate * (total - step) / total
            optimizer.zero_grad()
            scores = torch.stack([plain_scores(model, ids[r], prompt) for r in rows])
            wanted = torch.tensor(WORD_IDS)[TRAIN.labels[rows]]
            F.cross_entropy(scores, wanted).backward()
            torch.nn.utils.clip_grad_norm_(moved, settings.clip)
            optimizer.step()
            step += 1
    with torch.no_grad():
        found = torch.stack([plain_scores(model, row, prompt) for row in ids])
    return found[:, list(WORD_IDS)]


@family
def test_joint_tuning_equals_the_plain_loop(name):
    settings = dataclasses.replace(QUICK, warmup=0.0, learning_rate=1e-3)
    tuned = tune(name, "joint_tuning", settings=settings, selection="last")
    with torch.no_grad():
        states = tuned.method.states(tuned.backbone, TRAIN.tokens)
        found = tuned.backbone.logits(states, torch.tensor(WORD_IDS))[:, 0]
    wanted = plain_joint(name, job(), settings)
    assert (found - wanted).abs().max() < 1e-3 * wanted.abs().max()


@family
@pytest.mark.parametrize("side", ("right", "left"))
def test_text_states_are_the_plain_forwards_last_ones(name, side):
    backbone, ids = tiny(name), random_ids((3, 9, 14))
    found = backbone.logits(backbone.text_states(pad(ids, "cpu", side)))[:, 0]
    with torch.no_grad():
        plain = [backbone.model(input_ids=torch.tensor([row])).logits[0, -1] for row in ids]
    assert torch.allclose(found, torch.stack(plain), atol=1e-4)


@family
@pytest.mark.parametrize("side", ("right", "left"))
def test_a_prefix_of_real_tokens_keys_and_values_is_those_tokens(name, side):
    backbone, front, ids = tiny(name), random_ids((3,), seed=5)[0], random_ids((4, 9, 6))
    one = tuning.PrefixTuning(backbone, job(), 128, "all")
    pairs = backbone.encode(pad([front], "cpu")).pairs
    flat = torch.stack([torch.stack(pair)[:, 0] for pair in pairs])  # (L, 2, H, n, d_h)
    one.encoder.embedding.weight.data = flat.permute(3, 0, 1, 2, 4).reshape(3, -1)
    with torch.no_grad():
        found = backbone.logits(one.states(backbone, pad(ids, "cpu", side)))[:, 0]
        plain = [backbone.model(input_ids=torch.tensor([front + row])).logits[0, -1] for row in ids]
    assert torch.allclose(found, torch.stack(plain), atol=1e-4)


def test_merged_lora_reads_like_the_adapter():
    own = fresh("tiny-llama")(torch.float32)
    one = tuning.LoRA(own, job(), 128, "all")
    for p in one.parameters():
        p.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        apart = own.text_states(DEV.tokens)
        one.weights()
        assert torch.allclose(own.text_states(DEV.tokens), apart, atol=1e-5)


# --- selection, order, bf16 -----------------------------------------------------------------------


@method
def test_the_dev_loss_told_is_the_one_of_the_weights_returned(kind):
    tuned = tune("tiny-gemma3", kind, settings=dataclasses.replace(QUICK, epochs=4))
    with torch.no_grad():
        hidden = tuned.method.states(tuned.backbone, DEV.tokens)
        scores = tuned.backbone.logits(hidden)[:, 0]
    loss = F.cross_entropy(scores, torch.tensor(WORD_IDS)[DEV.labels]).item()
    assert loss == pytest.approx(min(row["dev_loss"] for row in tuned.history), rel=1e-4)


def test_scores_come_in_the_texts_order():
    tuned = tune("tiny-gemma3", "joint_tuning")
    texts = ["a much longer text than the others are", "short", "of middling length"]
    together = tuned.score(texts, VERBALIZER, 100)[0]
    alone = torch.cat([tuned.score([text], VERBALIZER, 100)[0] for text in texts])
    assert torch.allclose(together, alone, atol=1e-5)


@method
def test_bfloat16_training_goes_on_beyond_the_first_step(kind):
    """Bfloat16 copies of the weights that are kept too long would freeze the dev loss."""
    like = checkpoints.load("tiny-llama", "cpu", "bfloat16")
    settings = dataclasses.replace(QUICK, epochs=4, learning_rate=0.05)
    tuned = tuning.tune(
        fresh("tiny-llama"), like, job(), kind, VERBALIZER, settings, progress=False
    )
    losses = [row["dev_loss"] for row in tuned.history]
    assert len(set(losses)) == len(losses)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (dict(kind="joint_tunning"), "method 'joint_tunning'; did you mean joint_tuning"),
        (dict(kind="joint_tuning", scope="bodies"), "scope 'bodies'; did you mean body"),
        (dict(kind="lora", selection="best"), "selection 'best'; did you mean best_dev"),
    ],
)
def test_an_unknown_choice_is_refused_before_weights_load(given, told):
    def read(_):
        pytest.fail("weights were read")

    kind = given.pop("kind")
    with pytest.raises(InputError, match=told):
        tuning.tune(read, tiny("tiny-llama"), job(), kind, VERBALIZER, QUICK, **given)


def test_a_loss_that_is_not_finite_stops_and_names_the_rate():
    settings = dataclasses.replace(QUICK, learning_rate=1e30, clip=1e30)
    with pytest.raises(TrainingDiverged, match=r"learning rate 1e\+30"):
        tune("tiny-llama", "fine_tuning", settings=settings)
