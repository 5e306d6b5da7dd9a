"""Pretrained masked language models behind one small interface, with soft prompts in their input.

Stands beside `backbones`, which does the same for decoders; `Family` holds what differs by family.
LTP section 3: the prompt stands among the word embeddings, the mask's hidden state is the answer.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from xlcore.backbones import (
    Backbone,
    Tokens,
    additive,
    check_close,
    must_be_exact,
    pad,
    random_texts,
    weights_sha256,
)
from xlcore.cloze import POSITIONS, Cloze, cloze, insert
from xlcore.devices import return_large_buffers
from xlcore.errors import InputError, choose


class Family:
    """An encoder whose positions count from 0 and whose `inputs_embeds` are word embeddings."""

    name = "default"
    trusted = False  # False: the exactness check runs when a model of this family is loaded
    word_prefix = " "  # label words are tokenized as in running text
    model_types: tuple[str, ...] = ()

    def first_position(self, config: object) -> int:
        """Return the position number of a text's first token."""
        return 0


class Bert(Family):
    """Positions count from 0; all tokens are of segment (token type) 0, transformers' default."""

    name, trusted, model_types = "bert", True, ("bert", "distilbert")


class XLMR(Family):
    """Positions count real tokens only, and from behind the padding token's number.

    transformers cannot see padding in `inputs_embeds`: without position ids it counts columns.
    """

    name, trusted = "xlm-roberta", True
    model_types = ("xlm-roberta", "xlm-roberta-xl", "roberta", "camembert")

    def first_position(self, config: object) -> int:
        return config.pad_token_id + 1


FAMILIES = (Bert(), XLMR())
# Those whose every layer takes keys and values beside its own, in transformers.
KEYED = ("bert", "xlm-roberta", "xlm-roberta-xl", "roberta", "camembert")


def family_of(model_type: str) -> Family:
    """Return the adapter of a `model_type`; the default one must pass the exactness check."""
    return next((f for f in FAMILIES if model_type in f.model_types), Family())


def context(config: object, family: Family) -> int | None:
    """Return the longest input in tokens, None where positions have no limit."""
    limit = getattr(config, "max_position_embeddings", None)
    return limit and limit - family.first_position(config)


# --- the encoder --------------------------------------------------------------------------------


@dataclass
class Encoder:
    """A masked language model and its tokenizer; frozen when loaded, free to be unfrozen.

    Letters: B texts, T tokens, n prompt tokens, d width, V words. Nothing here stops gradients.
    """

    name: str
    model: nn.Module
    tokenizer: object
    family: Family

    device, dtype, width, words = Backbone.device, Backbone.dtype, Backbone.width, Backbone.words

    def __post_init__(self) -> None:
        self.sha256 = self._digest(torch.bfloat16)  # of the weights as loaded, before any training
        self._exact = self._digest()

    def untouched(self) -> bool:
        """Whether the weights are those that were loaded, to the bit, but for a head fitted."""
        return self._digest() == self._exact

    def _digest(self, dtype: torch.dtype | None = None) -> str:
        """Return the hash of the weights as they now are, or rounded, as in every precision.

        A head that the checkpoint lacks is no part of it: fitted or not, the base is the same.
        """
        own = self.model if self.mlm_head == "pretrained" else self.model.base_model
        return weights_sha256(own, dtype)

    @property
    def mlm_head(self) -> str:
        """Whether the head is "pretrained", "missing" (see `start_head`) or "fitted".

        Kept in the model's configuration, where fitting sets it, so that a saved model says it.
        """
        return getattr(self.model.config, "mlm_head", "pretrained")

    def tokenize(self, template: str, rows: Sequence[Mapping], max_tokens: int) -> Cloze:
        """Return filled templates as tokens (B, T) on the model's device; see `cloze`."""
        return cloze(self.tokenizer, template, rows, max_tokens, device=self.device)

    def word_vectors(self, ids: Tensor) -> Tensor:
        """Return word embeddings (..., d), a prompt's level: before positions and LayerNorm."""
        return self.model.get_input_embeddings()(ids)

    def encode(self, tokens: Tokens) -> Tensor:
        """Return the hidden state at every token, (B, T, d)."""
        return self._run(self.word_vectors(tokens.ids), tokens.mask)

    def mask_states(
        self, tokens: Cloze, vectors: Tensor | None = None, position: str = "prefix",
        keys: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the hidden state at each row's mask token, (B, d).

        vectors: (n, d), or (B, n, d) where each row has a prompt of its own, or None. A prefix
        stands behind the opening token, an infix at the template's {soft} or right before the
        mask, a suffix before the closing token. keys: keys and values (L, 2, H, n, d_h) that all
        tokens of a layer see beside their own, and which take the first n positions (KEYED models
        only). Raises InputError for an unknown position, or if all this exceeds the context.
        """
        slot = tokens.slots[:, POSITIONS.index(choose("prompt position", position, POSITIONS))]
        embeds, mask, label = self.word_vectors(tokens.ids), tokens.mask, tokens.label
        if vectors is not None:
            embeds, mask = insert(embeds, mask, vectors.to(embeds.dtype), slot)
            label = label + vectors.shape[-2] * (slot <= label)
        hidden = self._run(embeds, mask, keys)  # (B, T + n, d)
        column = mask.long().argmax(1) + label  # (B,) the first real token's column and on
        return hidden[torch.arange(len(column), device=column.device), column]

    def logits(self, hidden: Tensor, words: Tensor | None = None) -> Tensor:
        """Return scores of all words (..., V), or of the given word ids only (..., len(words)).

        The model's own head runs on `hidden` alone, its decoder cut to the rows asked for.
        """
        decoder = self.model.get_output_embeddings()
        chosen = slice(None) if words is None else words

        def rows(states: Tensor) -> Tensor:
            bias = None if decoder.bias is None else decoder.bias[chosen]
            return F.linear(states, decoder.weight[chosen], bias)

        def encoded(*_: object, **__: object) -> BaseModelOutput:
            return BaseModelOutput(hidden.to(self.dtype))

        with _standing_in(self.model.base_model, encoded), _standing_in(decoder, rows):
            return self.model().logits.float()

    def _run(self, embeds: Tensor, mask: Tensor, keys: Tensor | None = None) -> Tensor:
        """Run the encoder with positions that count real tokens, whichever side is padded."""
        n = 0 if keys is None else keys.shape[-2]
        room = context(self.model.config, self.family)
        if room and n + mask.shape[1] > room:
            raise InputError(
                f"{n + mask.shape[1]} tokens are longer than the context of {self.name}; allowed: "
                f"up to {room}"
            )
        first = n + self.family.first_position(self.model.config)
        given = dict(attention_mask=mask.long(), position_ids=Tokens(mask, mask).positions + first)
        if keys is not None:
            B = len(mask)
            seen = torch.cat([mask.new_ones(B, n), mask], 1)[:, None, None]  # (B, 1, 1, n + T)
            pairs = [(k.expand(B, *k.shape), v.expand(B, *v.shape)) for k, v in keys]
            # A mask of four dimensions is taken as it is: transformers would count T keys only.
            given |= dict(attention_mask=additive(seen, embeds.dtype))
            given |= dict(past_key_values=DynamicCache(pairs))
        return self.model.base_model(inputs_embeds=embeds, **given).last_hidden_state


@contextlib.contextmanager
def _standing_in(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Let `forward` run in the place of a module's own for a while."""
    before = vars(module).get("forward")  # libraries that place models on devices set one, too
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def head(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the head's own parameters, without the word embeddings it may be tied to."""
    body = {id(p) for p in model.base_model.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) not in body}


@contextlib.contextmanager
def moving(model: nn.Module, moved: Sequence[nn.Parameter]) -> Iterator[dict[nn.Parameter, Tensor]]:
    """Let these parameters alone be trained in a block, then put their values back, to the bit.

    Yields the values to put back, which a caller may replace.
    """
    return_large_buffers(moved)
    flags = [(p, p.requires_grad) for p in model.parameters()]
    kept = {p: p.detach().clone() for p in moved}
    model.requires_grad_(False).zero_grad()
    for p in moved:
        p.requires_grad_()
    try:
        yield kept
    finally:
        model.zero_grad()
        for p, flag in flags:
            p.requires_grad_(flag)
        for p, values in kept.items():
            p.data.copy_(values)


# --- what a loaded model must pass ----------------------------------------------------------------


def start_head(model: nn.Module, missing: Sequence[str]) -> list[str]:
    """Start the head of a checkpoint that lacks it; return what is still missing.

    The scores become word embeddings times LayerNorm(gelu(hidden)): the head's linear map is the
    identity, its LayerNorm has gain 1, all biases are 0. Marked `mlm_head = "missing"` in the
    model's configuration, for a head must be fitted before its scores mean anything.
    """
    inner = sorted(key for key in missing if key.startswith(f"{model.base_model_prefix}."))
    tied = model.get_input_embeddings().weight
    if len(inner) == len(missing) or model.get_output_embeddings().weight is not tied:
        return sorted(missing)
    for module in set(model.modules()) - set(model.base_model.modules()):
        for name, weight in module.named_parameters(recurse=False):
            if weight is not tied:
                square, gain = weight.dim() == 2, name == "weight"
                (nn.init.eye_ if square else nn.init.ones_ if gain else nn.init.zeros_)(weight)
    model.config.mlm_head = "missing"
    return inner


@torch.no_grad()
def verify_exactness(encoder: Encoder, tolerance: float = 1e-4) -> None:
    """Check that prompts made of real tokens give the scores of feeding those tokens.

    Runs four random texts, both paddings and all prompt positions, in fp32. Raises InputError if
    the encoder cannot be run so, or if a score differs by more than `tolerance` of the largest.
    """
    places = [(0, 0, 0, 3), (4, 0, 4, 9), (30, 0, 30, 60), (76, 0, 76, 77)]  # label and slots
    with must_be_exact(encoder.name, encoder.model, "XLM-R, BERT, and encoders that pass"):
        *texts, prompt = random_texts(encoder.words, (3, 9, 60, 77, 5))
        for text, (label, *_) in zip(texts, places, strict=True):
            text[label] = encoder.tokenizer.mask_token_id
        place = torch.tensor(places, device=encoder.device)
        vectors = encoder.word_vectors(torch.tensor(prompt, device=encoder.device))
        for side, position in product(("right", "left"), POSITIONS):
            batch = pad(texts, encoder.device, side)
            tokens = Cloze(batch.ids, batch.mask, place[:, 0], place[:, 1:])
            found = encoder.mask_states(tokens, vectors, position)
            for hidden, text, (label, *slots) in zip(found, texts, places, strict=True):
                at = slots[POSITIONS.index(position)]
                whole = torch.tensor(text[:at] + prompt + text[at:], device=encoder.device)
                moved = label + len(prompt) * (at <= label)
                wanted = encoder.model(input_ids=whole[None]).logits[0, moved].float()  # (V,)
                scores = torch.cat([encoder.logits(hidden), encoder.logits(hidden, whole)])
                check_close(scores, torch.cat([wanted, wanted[whole]]), tolerance)
