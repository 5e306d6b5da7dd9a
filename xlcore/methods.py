"""Few-shot methods on one encoder, as one table: what is trained, on which template.

Takes a draw of clozes, leaves the encoder as it was and gives back only what was trained.
LTP section 3 and its baselines (arXiv 2404.01242); templates of Zhao & Schuetze 2021.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlcore import evaluation, prompts, training
from xlcore.cloze import Cloze
from xlcore.devices import mixed_precision
from xlcore.encoders import KEYED, Encoder, moving
from xlcore.errors import InputError, check_number, choose
from xlcore.masked_training import MaskedWeights
from xlcore.mlm import EPS, check_ready
from xlcore.prompts import SoftPrompt, Verbalizer
from xlcore.tickets import Ticket, named
from xlcore.training import RANKS, Labelled, TrainingDiverged, descend
from xlcore.tuning import SCOPES, DeepPrefix, lora_layers

SELECTIONS = (*RANKS, "last")  # which epoch to keep
Reader = Callable[[Cloze], Tensor]  # clozes to the hidden states of their mask tokens (B, d)


@dataclass(frozen=True)
class Settings(training.Settings):
    """How a method is trained: AdamW, linear rate with warm-up, clipping, no dropout.

    learning_rate: of everything but the prompt and its network, which have `prompt_rate`. loss:
    over the label words only (default), or over the full vocabulary. mixed: multiply in bfloat16;
    weights stay in fp32.
    """

    learning_rate: float = 3e-4
    prompt_rate: float = 1e-2
    loss: str = "label_words"
    mixed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        rate = self.prompt_rate
        check_number("prompt_rate", rate, float, "greater than 0", lambda x: x > 0)


@dataclass(frozen=True)
class Recipe:
    """A method of METHODS, and what it must be told: a broken one cannot be made.

    length: vectors of the soft prompt, or positions of the deep one. ticket: which weights, by what
    strategy they were selected, in which scope. scope of full tuning: "all" (default) or "body",
    which leaves out the embedding matrix. language: of the training texts. Raises InputError.
    """

    method: str
    seed: int = 1
    length: int = 4
    ticket: Ticket | None = field(default=None, repr=False)
    strategy: str | None = None
    scope: str | None = None
    init: str = "vocabulary"
    reparameterization: str = "none"
    hidden: int = 200
    language: str = "eng"

    def __post_init__(self) -> None:
        kind = METHODS[choose("method", self.method, METHODS)]
        prompts.check_start(self.init, self.reparameterization, self.hidden)
        check_number("length", self.length, int, "greater than 0", lambda x: x > 0)
        told = (self.ticket, self.strategy, None if kind.full else self.scope)
        if (None in told) if kind.trains is ticket else any(x is not None for x in told):
            needs = "needs a" if kind.trains is ticket else "takes no"
            raise InputError(f"method {self.method!r} {needs} ticket, with its strategy and scope")
        if kind.full:
            choose("scope", self.scope or "all", SCOPES)

    @property
    def kind(self) -> "Method":
        return METHODS[self.method]


@dataclass
class Moved:
    """The parameters that a method trains beside the prompt, on an encoder that reads them."""

    parameters: Mapping[str, nn.Parameter]
    written: Callable[[], object] = lambda: None  # call it when they have changed
    keys: Callable[[], Tensor | None] = lambda: None  # and values, of all layers (L, 2, H, n, d_h)

    def values(self) -> dict[str, Tensor]:
        """Return copies on the CPU, by name."""
        return {n: p.detach().to("cpu", copy=True) for n, p in self.parameters.items()}

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Give the parameters values as `values` returned them."""
        for name, p in self.parameters.items():
            p.copy_(values[name])
        self.written()


# --- what is trained: each freezes all else, and puts the encoder back when its block is left -----


@contextmanager
def nothing(encoder: Encoder, recipe: Recipe) -> Iterator[Moved]:
    """Train no weight of the encoder."""
    with moving(encoder.model, []):
        yield Moved({})


@contextmanager
def everything(encoder: Encoder, recipe: Recipe) -> Iterator[Moved]:
    """Train all weights of encoder and head; the scope "body" leaves out the embedding matrix."""
    model = encoder.model
    ends = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    left_out = {id(p) for p in ends} if recipe.scope == "body" else set()
    chosen = {name: p for name, p in named(model).items() if id(p) not in left_out}
    with moving(model, list(chosen.values())):
        yield Moved(chosen)


@contextmanager
def biases(encoder: Encoder, recipe: Recipe) -> Iterator[Moved]:
    """Train all biases of encoder and head (BitFit, Ben Zaken et al. 2022)."""
    chosen = {name: p for name, p in named(encoder.model).items() if name.endswith("bias")}
    with moving(encoder.model, list(chosen.values())):
        yield Moved(chosen)


@contextmanager
def ticket(encoder: Encoder, recipe: Recipe) -> Iterator[Moved]:
    """Train the ticket's weights (LTP section 3)."""
    with moving(encoder.model, []), MaskedWeights(encoder.model, recipe.ticket) as weights:
        yield Moved(weights.named_parameters(), weights.write)


@contextmanager
def lora(encoder: Encoder, recipe: Recipe) -> Iterator[Moved]:
    """Train low-rank updates of all linear layers (Hu et al. 2022), by PEFT."""
    with moving(encoder.model, []):
        layers = lora_layers(encoder.model, recipe.seed)
        try:
            yield Moved({n: p for n, p in layers.named_parameters() if p.requires_grad})
        finally:
            layers.unload()


@contextmanager
def deep_prefix(encoder: Encoder, recipe: Recipe) -> Iterator[Moved]:
    """Train keys and values before the text in every layer (Liu et al. 2022, P-tuning v2)."""
    config = encoder.model.config
    choose("model type with deep prompts", config.model_type, KEYED)
    heads = config.num_attention_heads
    shape = (recipe.length, config.num_hidden_layers, heads, config.hidden_size // heads)
    prefix = DeepPrefix(*shape, recipe.seed).to(encoder.device)
    with moving(encoder.model, []):
        yield Moved(dict(prefix.named_parameters()), keys=prefix)


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """One row of the table of methods."""

    trains: Callable[[Encoder, Recipe], AbstractContextManager[Moved]]
    template: str = "plain"
    position: str | None = None  # where the soft prompt stands; None: there is none
    rate: float = 1e-4  # default learning rate of all but the prompt
    scope: str = "none"  # which of the encoder's own weights move, where the recipe does not say

    @property
    def full(self) -> bool:
        """Whether it tunes the full model, so that it takes a scope of full tuning."""
        return self.trains is everything


# Rates of tickets and full tuning: chosen for multilingual-e5-small by notebook 12, profile full.
METHODS = {
    "ltp": Method(ticket, position="prefix", rate=1e-3),
    "random_ticket": Method(ticket, position="prefix", rate=1e-3),
    "fine_tuning": Method(everything, scope="all"),
    "dp": Method(everything, "question", scope="all"),
    "sp": Method(everything, "soft", "infix", scope="all"),
    "mp": Method(everything, "soft_question", "infix", scope="all"),
    "prompt_only": Method(nothing, position="prefix"),
    "bitfit": Method(biases, rate=3e-3, scope="biases"),
    "lora": Method(lora, rate=1e-3),
    "prefix_tuning": Method(deep_prefix, rate=1e-2),
}


# --- training and reading -------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """What a method has trained, on the CPU in fp32, at one epoch."""

    recipe: Recipe
    prompt: Tensor | None  # (n, d)
    weights: dict[str, Tensor] = field(repr=False)  # all else; a ticket's packed as MaskedWeights
    history: list[dict] = field(repr=False)  # as `training.descend` returns
    count: int  # how many numbers were trained


def train(
    encoder: Encoder, recipe: Recipe, learn: Labelled, dev: Labelled, verbalizer: Verbalizer,
    settings: Settings = Settings(), selection: str = "best_dev_accuracy", progress: bool = True,
) -> Trained:  # fmt: skip
    """Train a method on a draw and return it at its best dev epoch (the first of equals), or last.

    selection: the best accuracy (of equals the lowest loss), "best_dev" for the lowest loss, or
    "last". Few pairs are soon learnt by heart; then dev loss rises while accuracy still does.
    The encoder is the same afterwards, to the bit; all methods of a seed see the same batches.
    Raises InputError for weights not in fp32, a head that was never fitted and an unknown
    selection, TrainingDiverged if a loss is not finite.
    """
    choose("selection", selection, SELECTIONS)
    check_ready(encoder, "fitted", "pretrained")
    words = torch.tensor(verbalizer.ids, device=encoder.device)
    prompt = _prompt(encoder, recipe, verbalizer)
    with recipe.kind.trains(encoder, recipe) as moved:
        read = _reader(encoder, recipe, moved, prompt.vectors if prompt else lambda: None)
        weights = list(moved.parameters.values())
        own = [p for p in prompt.parameters() if p.requires_grad] if prompt else []
        groups = [dict(params=weights, lr=settings.learning_rate, eps=EPS)]
        groups += [dict(params=own, lr=settings.prompt_rate)]
        history = descend(
            groups, partial(_measure, encoder, read, words, settings), learn, dev, recipe.seed,
            settings, partial(_check, recipe, settings), selection, progress, moved.written,
        )  # fmt: skip
        count = sum(p.numel() for p in [*weights, *own])
        vectors = prompt and prompt.vectors().detach().cpu()
        return Trained(recipe, vectors, moved.values(), history, count)


@contextmanager
def applied(encoder: Encoder, trained: Trained) -> Iterator[Reader]:
    """Put what was trained on the encoder for a block; yields what reads its mask states (B, d)."""
    recipe = trained.recipe
    with recipe.kind.trains(encoder, recipe) as moved:
        moved.put(trained.weights)
        prompt = trained.prompt
        vectors = None if prompt is None else prompt.to(encoder.device)
        yield _reader(encoder, recipe, moved, lambda: vectors)


@torch.no_grad()
def score(
    encoder: Encoder, read: Reader, tokens: Cloze, verbalizer: Verbalizer, mixed: bool = False
) -> Tensor:
    """Return the label words' scores (N, K) of all rows, in batches of like length."""
    words = torch.tensor(verbalizer.ids, device=encoder.device)
    out = torch.zeros(len(tokens.ids), len(words))
    with mixed_precision(encoder.device, mixed):
        for rows, batch in evaluation.batches(tokens):
            out[rows] = encoder.logits(read(batch), words).cpu()
    return out


def _prompt(encoder: Encoder, recipe: Recipe, verbalizer: Verbalizer) -> SoftPrompt | None:
    if not recipe.kind.position:
        return None
    network, kind = None, recipe.reparameterization
    if kind != "none":
        network = prompts.Reparameterization(kind, encoder.width, recipe.hidden, recipe.seed, False)
    start = prompts.initialize(encoder, recipe.length, recipe.seed, recipe.init, verbalizer.ids)
    return SoftPrompt(start, recipe.kind.position, recipe.method, network).to(encoder.device)


def _reader(encoder, recipe: Recipe, moved: Moved, vectors: Callable) -> Reader:
    """Return what reads the mask states (B, d) with the method's prompt and keys."""
    place = recipe.kind.position or "prefix"
    return lambda tokens: encoder.mask_states(tokens, vectors(), place, moved.keys())


def _check(recipe: Recipe, settings: Settings, loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        what = f"the loss of {recipe.method}, seed {recipe.seed}, is not finite in epoch {epoch}"
        rates = f"({settings.learning_rate:g}; prompt: {settings.prompt_rate:g})"
        raise TrainingDiverged(f"{what}; lower the learning rate {rates}")


def _measure(
    encoder: Encoder, read: Reader, words: Tensor, settings: Settings, side: Labelled, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the mean loss of these rows, with its gradient, and their accuracy."""
    parts = evaluation.halves(side.tokens, rows)
    labels = side.labels[torch.cat(parts)].to(words.device)
    with mixed_precision(encoder.device, settings.mixed):
        hidden = torch.cat([read(side.tokens.rows(part)) for part in parts])  # (B, d)
        if settings.loss == "label_words":
            scores = encoder.logits(hidden, words)  # (B, K)
            loss = F.cross_entropy(scores, labels)
        else:
            every = encoder.logits(hidden)  # (B, V)
            loss, scores = F.cross_entropy(every, words[labels]), every[:, words]
    return loss, (scores.argmax(-1) == labels).float().mean()
