"""Masked language modelling, mostly in English: how far each weight moves is what tickets score.

Stands between `encoders` and `tickets`; the encoder itself is left at its original weights.
LTP section 3: a ticket's weights are those that this phase changes the most.
"""

import math
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import chain, count, islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import get_linear_schedule_with_warmup

from xlcore import tickets
from xlcore.backbones import Tokens
from xlcore.devices import mixed_precision
from xlcore.encoders import Encoder, head, moving
from xlcore.errors import InputError, check_number, choose
from xlcore.prose import Text
from xlcore.training import HEAD_ROWS, TrainingDiverged, epoch_batches

CHOSEN, MASKED, KEPT = 0.15, 0.8, 0.1  # Devlin et al. 2019; of the chosen, the rest is random
WARMUP, CLIP = 0.1, 1.0  # share of steps in which the rate rises; norm of the whole gradient
EPS = 1e-6  # as BERT's: key biases have no gradient but rounding noise, which must not move them


# --- blocks and their masks -----------------------------------------------------------------------


@dataclass(frozen=True)
class Blocks:
    """A text as blocks of T tokens, each between the tokenizer's opening and closing token."""

    ids: Tensor  # (N, T)
    free: Tensor  # (N, T) True where a token may be masked: those that are no special ones
    train: Tensor  # row numbers of the blocks to learn from
    held_out: Tensor  # row numbers of all others
    ordinary: Tensor  # all ids that are no special tokens: what is drawn from
    mask_id: int
    about: dict  # which text, for a manifest


def pack(text: Text, tokenizer: object, length: int = 128, held_out: int = 64) -> Blocks:
    """Cut a text into blocks of `length` tokens, and hold out those of the lowest sha256.

    What is left over at the end, and blocks of special tokens only, are dropped. Needs no weights.
    Raises InputError if fewer blocks than twice `held_out` come out.
    """
    check_number("length", length, int, "at least 8", lambda x: x >= 8)
    check_number("held_out", held_out, int, "greater than 0", lambda x: x > 0)
    found = tokenizer(list(text.paragraphs), add_special_tokens=False, verbose=False)["input_ids"]
    stream = torch.tensor(list(chain(*found)), dtype=torch.long)
    first, *last = tokenizer("")["input_ids"]
    inner = length - 1 - len(last)
    body = stream[: len(stream) // inner * inner].view(-1, inner)
    ordinary = torch.tensor(sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids)))
    body = body[torch.isin(body, ordinary).any(1)]  # some tokenizers know no word of a script
    if len(body) < 2 * held_out:
        raise InputError(
            f"text {text.name!r} is too short: {len(stream)} tokens make {len(body)} blocks of "
            f"{length}, and {held_out} held out need at least {2 * held_out}"
        )
    ids = F.pad(body, (1, len(last)), value=first)  # (N, T)
    ids[:, 1 + inner :] = torch.tensor(last)
    order = sorted(range(len(ids)), key=lambda i: sha256(ids[i].numpy().tobytes()).digest())
    low, rest = (torch.tensor(sorted(x)) for x in (order[:held_out], order[held_out:]))
    digest = sha256("\n".join(text.paragraphs).encode()).hexdigest()
    about = dict(text=text.name, language=text.language, text_sha256=digest, tokens=len(stream),
                 blocks=len(ids), held_out=held_out, length=length)  # fmt: skip
    free = torch.isin(ids, ordinary)
    return Blocks(ids, free, rest, low, ordinary, tokenizer.mask_token_id, about)


def corrupt(blocks: Blocks, rows: Tensor, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Return the rows' masked input (B, T), and which positions are to be predicted (B, T).

    Of the ordinary tokens 15 % are chosen, each by itself, and at least the one of the lowest draw:
    80 % of them become the mask, 10 % another token, 10 % stay (Devlin et al. 2019, section 3.1).
    A row's draws depend on seed, epoch and row number only. Epoch 0 is that of held-out blocks.
    """
    ids, free = blocks.ids[rows], blocks.free[rows]
    shape = (3, ids.shape[1])
    draws = [np.random.default_rng((seed, epoch, row)).random(shape) for row in rows.tolist()]
    choice, fate, word = torch.from_numpy(np.stack(draws, 1))  # (B, T) each, in [0, 1)
    choice = choice.masked_fill(~free, 2.0)
    chosen = (choice < CHOSEN) | (choice == choice.amin(1, keepdim=True))
    other = blocks.ordinary[(word * len(blocks.ordinary)).long()]
    fresh = torch.where(fate < MASKED, blocks.mask_id, torch.where(fate < 1 - KEPT, other, ids))
    return torch.where(chosen, fresh, ids), chosen


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How a masked language model is trained: AdamW without weight decay, linear rate, no dropout.

    vocabulary: "full", or "text": the softmax runs over the words of the text, held-out blocks
    included, and the `label_words` (ids) only. mixed: multiply in bfloat16; weights stay in fp32.
    """

    steps: int = 300
    learning_rate: float = 1e-4
    batch_size: int = 16
    seed: int = 0
    vocabulary: str = "full"
    label_words: tuple[int, ...] = ()
    mixed: bool = False

    def __post_init__(self) -> None:
        choose("vocabulary", self.vocabulary, ("full", "text"))
        for name in ("steps", "batch_size"):
            check_number(name, getattr(self, name), int, "greater than 0", lambda x: x > 0)
        check_number("seed", self.seed, int, "at least 0", lambda x: x >= 0)
        check_number("learning_rate", self.learning_rate, float, "at least 0", lambda x: x >= 0)


HEAD = Settings(steps=200, learning_rate=1e-3)


@dataclass(frozen=True)
class Mined:
    """What masked language modelling leaves: evidence for `tickets.score`, and the way there."""

    evidence: dict[str, dict[str, Tensor]]  # "start" and "end": parameter name -> weights, fp32
    history: list[dict]  # step, part ("train" or "held_out"), loss
    about: dict  # text, settings and scope, for a manifest


def fit_head(encoder: Encoder, blocks: Blocks, settings: Settings = HEAD) -> list[dict]:
    """Fit the head of an encoder that has none, and return the loss history as in `Mined`.

    Only the head's own weights move; the encoder and the word embeddings, to which the head is
    tied, stay to the bit. Raises InputError if there is a head, or the weights are not in fp32.
    """
    _check(encoder, settings, "missing")
    with moving(encoder.model, moved := [*head(encoder.model).values()]) as kept:
        history = _learn(encoder, blocks, settings, moved)
        kept.update({p: p.detach().clone() for p in moved})
    encoder.model.config.mlm_head = "fitted"
    return history


def mine(
    encoder: Encoder, blocks: Blocks, settings: Settings = Settings(), scope: str = "encoder"
) -> Mined:
    """Train the weights in `scope` and the head, keep both ends, and put everything back.

    scope: as `tickets.parameters`; `all` is the plain form, `encoder` leaves word embeddings alone,
    which saves their gradient and Adam's moments. Raises InputError for an unknown scope, a head
    that was never fitted or weights not in fp32, TrainingDiverged if a loss is not finite.
    """
    chosen = tickets.parameters(encoder.model, scope)
    _check(encoder, settings, "fitted", "pretrained")
    moved = [*chosen.values(), *head(encoder.model).values()]
    with moving(encoder.model, moved) as kept:
        history = _learn(encoder, blocks, settings, moved)
        end = {name: p.detach().to("cpu", copy=True) for name, p in chosen.items()}
    start = {name: kept[p].to("cpu") for name, p in chosen.items()}
    about = dict(**blocks.about, **asdict(settings), scope=scope, mlm_head=encoder.mlm_head)
    return Mined(dict(start=start, end=end), history, about)


def gradients(
    encoder: Encoder, blocks: Blocks, settings: Settings = Settings(), scope: str = "encoder",
    examples: int = 256,
) -> dict[str, dict[str, Tensor]]:  # fmt: skip
    """Return `gradient` and `squared_gradient` for `tickets.score`, at the weights as they are.

    Means over at most `examples` blocks, the first that training would see, with the same masks;
    a block is one example of the empirical Fisher information, its loss the mean over its chosen
    tokens. Raises InputError as `mine`.
    """
    check_number("examples", examples, int, "greater than 0", lambda x: x > 0)
    chosen = tickets.parameters(encoder.model, scope)
    _check(encoder, settings, "fitted", "pretrained")
    words = _words(encoder, blocks, settings)
    rows = torch.cat(epoch_batches(blocks.train, settings.seed, 1, settings))[:examples]
    mean, square = ({n: torch.zeros(p.shape) for n, p in chosen.items()} for _ in range(2))
    with moving(encoder.model, list(chosen.values())):
        for row in tqdm(rows.split(1), unit="block", leave=False):
            _loss(encoder, blocks, row, settings, words, 1)
            for name, p in chosen.items():
                mean[name].add_(g := p.grad.cpu(), alpha=1 / len(rows))
                square[name].addcmul_(g, g, value=1 / len(rows))
                p.grad = None
    return dict(gradient=mean, squared_gradient=square)


def _check(encoder: Encoder, settings: Settings, *heads: str) -> None:
    check_ready(encoder, *heads)
    if wrong := [w for w in settings.label_words if not 0 <= w < encoder.words]:
        raise InputError(f"label words {wrong} are no ids from 0 to {encoder.words - 1}")


def check_ready(encoder: Encoder, *heads: str) -> None:
    """Raise InputError unless the encoder's head is one of these, and its weights are in fp32."""
    if encoder.mlm_head not in heads:
        how = "call `fit_head` first" if "fitted" in heads else "there is nothing to fit"
        raise InputError(f"the MLM head of {encoder.name} is {encoder.mlm_head}: {how}")
    if encoder.dtype != torch.float32:
        raise InputError(
            f"weights of {encoder.name} must be float32, not {encoder.dtype}, in which small steps "
            "are rounded away; `mixed` multiplies in bfloat16"
        )


def _words(encoder: Encoder, blocks: Blocks, settings: Settings) -> Tensor | None:
    """Return the ids of the output vocabulary in order, None for all."""
    extra = torch.tensor(settings.label_words, dtype=torch.long)
    words = torch.cat([blocks.ids.unique(), extra]).unique().to(encoder.device)
    return words if settings.vocabulary == "text" else None


def _learn(encoder: Encoder, blocks: Blocks, settings: Settings, moved: list) -> list[dict]:
    """Train the parameters in `moved`; return every step's loss, and held-out ones at both ends."""
    words, steps = _words(encoder, blocks, settings), settings.steps
    optimizer = torch.optim.AdamW(moved, settings.learning_rate, eps=EPS, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * steps), steps)
    shuffled = (
        (epoch, rows)
        for epoch in count(1)
        for rows in epoch_batches(blocks.train, settings.seed, epoch, settings)
    )
    history = [dict(step=0, part="held_out", loss=_held_out(encoder, blocks, settings, words))]
    every = tqdm(islice(shuffled, steps), total=steps, unit="step", leave=False)
    for step, (epoch, rows) in enumerate(every, 1):
        loss = _loss(encoder, blocks, rows, settings, words, epoch)[0]
        history.append(dict(step=step, part="train", loss=loss))
        nn.utils.clip_grad_norm_(moved, CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    loss = _held_out(encoder, blocks, settings, words)
    return [*history, dict(step=steps, part="held_out", loss=loss)]


@torch.no_grad()
def _held_out(encoder, blocks, settings, words) -> float:
    """Return the mean loss over the held-out blocks' chosen tokens, always the same ones."""
    parts = blocks.held_out.split(settings.batch_size)
    found = [_loss(encoder, blocks, rows, settings, words, 0) for rows in parts]
    return sum(loss * n for loss, n in found) / sum(n for _, n in found)


def _loss(encoder, blocks, rows, settings, words, epoch: int) -> tuple[float, int]:
    """Return the mean loss of the rows' chosen tokens and their number, and add its gradient.

    The head runs on the chosen positions only, a few at a time, each with a backward pass of its
    own down to the hidden states, so that no more than HEAD_ROWS scores over all words exist.
    """
    inputs, chosen = (x.to(encoder.device) for x in corrupt(blocks, rows, settings.seed, epoch))
    targets = blocks.ids[rows].to(encoder.device)[chosen]  # (M,)
    targets = targets if words is None else torch.searchsorted(words, targets)
    total = 0.0
    with mixed_precision(encoder.device, settings.mixed):
        hidden = encoder.encode(Tokens(inputs, torch.ones_like(chosen)))[chosen]  # (M, d)
        apart = hidden.detach().requires_grad_(hidden.requires_grad)
        for h, t in zip(apart.split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True):
            loss = F.cross_entropy(encoder.logits(h, words), t, reduction="sum") / len(targets)
            if loss.requires_grad:
                loss.backward()
            total += loss.item()
    if not math.isfinite(total):
        rate = settings.learning_rate
        raise TrainingDiverged(f"the loss is not finite; lower the learning rate ({rate:g})")
    if hidden.requires_grad:
        hidden.backward(apart.grad)
    return total, len(targets)
