"""Pretrained decoders behind one small interface, frozen, with the text's keys and values shared.

Stands between the data (texts) and the soft prompts; `Family` holds all that differs by family.
SPT section 3: the backbone's weights never move, so what depends on the text alone is made once.
"""

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from xlcore.errors import InputError
from xlcore.prompts import Layout

# --- what differs by family -------------------------------------------------------------------


class Family:
    """A decoder that takes word embeddings as they are, 4-D masks and explicit positions."""

    name = "default"
    trusted = False  # False: the exactness check runs when a model of this family is loaded
    word_prefix = " "  # label words are tokenized as in running text
    model_types: tuple[str, ...] = ()

    def embedding_scale(self, model: nn.Module) -> float:
        """Return the factor between a row of the embedding matrix and `inputs_embeds`."""
        return 1.0

    def inputs(self, model: nn.Module, visible: Tensor, query: Tensor, key: Tensor) -> dict:
        """Turn visibility (B, 1, Q, K) and positions (B, Q), (B, K) into forward arguments."""
        config = model.config
        window = getattr(config, "sliding_window", None)
        near = visible
        if window:
            near = visible & (query[:, None, :, None] - key[:, None, None, :] < window)
        kinds = set(getattr(config, "layer_types", None) or ())
        masks = {"full_attention": visible, "sliding_attention": near}
        if kinds:
            mask = {kind: additive(masks[kind], model.dtype) for kind in kinds}
        else:
            mask = additive(near, model.dtype)
        return {"attention_mask": mask, "position_ids": query}

    @contextlib.contextmanager
    def during(self, decoder: nn.Module, key: Tensor) -> Iterator[None]:
        """Hook around one forward pass; most families need none."""
        yield


class Gemma3(Family):
    """Word embeddings are multiplied by sqrt(d) (rounded to the weights' dtype)."""

    name, trusted, model_types = "gemma3", True, ("gemma3_text",)

    def embedding_scale(self, model: nn.Module) -> float:
        return float(model.get_input_embeddings().embed_scale.to(model.dtype))


class XGLM(Family):
    """Word embeddings are multiplied by sqrt(d); the tokenizer adds the space by itself."""

    name, trusted, model_types, word_prefix = "xglm", True, ("xglm",), ""

    def embedding_scale(self, model: nn.Module) -> float:
        return math.sqrt(model.config.d_model) if model.config.scale_embedding else 1.0


class Bloom(Family):
    """Positions are ALiBi biases of the keys; the embedding LayerNorm is inside the decoder."""

    name, trusted, model_types, word_prefix = "bloom", True, ("bloom",), ""

    def inputs(self, model: nn.Module, visible: Tensor, query: Tensor, key: Tensor) -> dict:
        return {"attention_mask": additive(visible, model.dtype)}

    @contextlib.contextmanager
    def during(self, decoder: nn.Module, key: Tensor) -> Iterator[None]:
        """Give ALiBi the keys' true positions, for prompts side by side share their columns."""
        slopes = _alibi_slopes(decoder.num_heads).to(key.device)  # (H,)

        def build(mask: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
            bias = slopes[None, :, None] * key[:, None, :]  # (B, H, K)
            return bias.reshape(-1, 1, key.shape[1]).to(dtype)  # (B*H, 1, K)

        decoder.build_alibi_tensor = build
        try:
            yield
        finally:
            del decoder.build_alibi_tensor


def _alibi_slopes(heads: int) -> Tensor:
    """Return ALiBi's per-head slopes (Press et al. 2022, section 3)."""
    near = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / near) for i in range(near)]
    slopes += [2 ** (-4 * (2 * i + 1) / near) for i in range(heads - near)]
    return torch.tensor(slopes)


FAMILIES = (Gemma3(), XGLM(), Bloom())


def family_of(model_type: str) -> Family:
    """Return the adapter of a `model_type`; the default one must pass the exactness check."""
    return next((f for f in FAMILIES if model_type in f.model_types), Family())


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where visible and the dtype's minimum elsewhere, shape unchanged."""
    return torch.where(visible, 0.0, torch.finfo(dtype).min).to(dtype)


# --- texts and their keys and values ------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """A padded batch of token ids (B, T) with its mask (B, T), True on real tokens."""

    ids: Tensor
    mask: Tensor

    @property
    def positions(self) -> Tensor:
        """Position of each token in its own text (B, T), whichever side is padded."""
        return (self.mask.long().cumsum(1) - 1).clamp(min=0)

    @property
    def lengths(self) -> Tensor:
        return self.mask.sum(1)

    def rows(self, index: Sequence[int] | Tensor) -> "Tokens":
        """Return the chosen rows, trimmed to the columns that hold a token."""
        index = torch.as_tensor(index, device=self.ids.device)
        used = self.mask[index].any(0)
        return Tokens(self.ids[index][:, used], self.mask[index][:, used])


@dataclass(frozen=True)
class TextStates:
    """A batch's keys and values, one pair (B, H, T, d_h) a layer, with its tokens."""

    tokens: Tokens
    pairs: tuple[tuple[Tensor, Tensor], ...]


# --- the backbone -------------------------------------------------------------------------------


@dataclass
class Backbone:
    """A frozen causal decoder and its tokenizer.

    Letters: B texts, T text tokens, S prompt tokens side by side, P prompts, d width, V words.
    """

    name: str
    model: nn.Module
    tokenizer: object
    family: Family

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def width(self) -> int:
        return self.model.get_input_embeddings().weight.shape[1]

    @property
    def words(self) -> int:
        return self.model.get_input_embeddings().num_embeddings

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights rounded to bfloat16: equal for a model loaded in fp32 or bf16."""
        return weights_sha256(self.model, torch.bfloat16)

    def tokenize(self, texts: Sequence[str], max_tokens: int, padding: str = "right") -> Tokens:
        """Return the texts' tokens (B, T), T the longest, each cut to `max_tokens`."""
        return pad(token_ids(self.tokenizer, texts, max_tokens), self.device, padding)

    def word_vectors(self, ids: Tensor) -> Tensor:
        """Return rows of the embedding matrix (..., d), before any scale: a prompt's level."""
        return self.model.get_input_embeddings().weight[ids]

    def lift(self, vectors: Tensor) -> Tensor:
        """Bring prompt vectors from the embedding matrix's level to the decoder's input."""
        return (vectors * self.family.embedding_scale(self.model)).to(self.dtype)

    @torch.no_grad()
    def encode(self, tokens: Tokens) -> TextStates:
        """Run the texts once and keep their keys and values."""
        cache = DynamicCache()
        pos, mask = tokens.positions, tokens.mask
        embeds = self.lift(self.word_vectors(tokens.ids))  # (B, T, d)
        self._decode(embeds, pos, pos, causal(pos, mask), cache)
        return TextStates(tokens, tuple((layer.keys, layer.values) for layer in cache.layers))

    def prompt_states(self, texts: TextStates | Tokens, vectors: Tensor, layout: Layout) -> Tensor:
        """Return the hidden state at each prompt's label position, (B, P, d).

        vectors: (S, d), or (B, S, d) where each text has prompts of its own. Suffix prompts share
        the texts' keys and values and are blind to one another; for prefix prompts, on which those
        depend, the text is carried through one pass per prompt. Each prompt sees as much of the
        text as it would alone: text, prompt and one end token fit in `max_length` (SPT).
        """
        if layout.position == "prefix":
            texts = texts.tokens if isinstance(texts, TextStates) else texts
            parts = vectors.split(list(layout.lengths), dim=-2)
            alone = [layout.pick([p]) for p in range(len(parts))]
            passes = map(lambda v, a: self.whole_pass(texts, v, a), parts, alone)
            return torch.cat(list(passes), 1)
        states = texts if isinstance(texts, TextStates) else self.encode(texts)
        vectors = vectors.expand(len(states.tokens.ids), *vectors.shape[-2:])  # (B, S, d)
        query, key, visible = beside(states.tokens, layout)
        cache = DynamicCache(states.pairs)
        hidden = self._decode(self.lift(vectors), query, key, visible, cache)  # (B, S, d)
        return hidden[:, layout.last.to(hidden.device)]  # (B, P, d)

    def whole_pass(self, tokens: Tokens, vectors: Tensor, layout: Layout) -> Tensor:
        """Return the label state (B, 1, d) of one prompt (n, d), the text carried along."""
        (n,) = layout.lengths
        B = len(tokens.ids)
        keep = tokens.mask & (tokens.positions < layout.budget(n))  # (B, T)
        text = self.lift(self.word_vectors(tokens.ids))  # (B, T, d)
        prompt = self.lift(vectors).expand(B, n, -1)  # (B, n, d)
        steps = torch.arange(n, device=self.device).expand(B, n)
        real = torch.ones_like(steps, dtype=torch.bool)
        if layout.position == "prefix":
            embeds = torch.cat([prompt, text], 1)
            pos = torch.cat([steps, tokens.positions + n], 1)
            mask = torch.cat([real, keep], 1)
        else:
            embeds = torch.cat([text, prompt], 1)
            pos = torch.cat([tokens.positions, keep.sum(1, keepdim=True) + steps], 1)
            mask = torch.cat([keep, real], 1)
        return self._last(self._decode(embeds, pos, pos, causal(pos, mask)), pos, mask)

    def text_states(
        self, tokens: Tokens, before: DynamicCache | None = None, n: int = 0,
        visible: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the hidden state at each text's last token, (B, 1, d).

        before: keys and values of n positions that stand before the text in every layer; then
        `visible` (B, T, n + T) tells which of them and of the text each token sees.
        """
        pos, mask = tokens.positions + n, tokens.mask
        embeds = self.lift(self.word_vectors(tokens.ids))  # (B, T, d)
        early = torch.arange(n, device=pos.device).expand(len(pos), n)
        seen = causal(pos, mask) if visible is None else visible
        hidden = self._decode(embeds, pos, torch.cat([early, pos], 1), seen, before)
        return self._last(hidden, pos, mask)

    def _last(self, hidden: Tensor, pos: Tensor, mask: Tensor) -> Tensor:
        """Pick each text's last real position from (B, T, d): (B, 1, d)."""
        label = torch.where(mask, pos, -1).argmax(1)  # (B,)
        return hidden[torch.arange(len(label), device=label.device), label][:, None]

    def logits(self, hidden: Tensor, words: Tensor | None = None) -> Tensor:
        """Return scores of all words (..., V), or of the given word ids only (..., len(words))."""
        head = self.model.get_output_embeddings()
        weight, bias = head.weight, getattr(head, "bias", None)
        if words is not None:
            weight, bias = weight[words], None if bias is None else bias[words]
        scores = nn.functional.linear(hidden.to(weight.dtype), weight, bias).float()
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return scores if cap is None else torch.tanh(scores / cap) * cap

    def _decode(
        self, embeds: Tensor, query: Tensor, key: Tensor, visible: Tensor,
        cache: DynamicCache | None = None,
    ) -> Tensor:  # fmt: skip
        decoder = self.model.base_model
        given = self.family.inputs(self.model, visible[:, None], query, key)
        with self.family.during(decoder, key):
            out = decoder(
                inputs_embeds=embeds, past_key_values=cache, use_cache=cache is not None, **given
            )
        return out.last_hidden_state


def causal(positions: Tensor, mask: Tensor) -> Tensor:
    """Visibility (B, T, T) of a padded batch; padding sees itself, so that no row is empty."""
    back = positions[:, :, None] >= positions[:, None, :]
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return (back & mask[:, None, :]) | itself


def beside(tokens: Tokens, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Place a layout's prompts behind each text, side by side and blind to one another.

    Returns query positions (B, S), key positions (B, T + S) and visibility (B, S, T + S).
    """
    layout = layout.to(tokens.ids.device)
    pos, mask = tokens.positions, tokens.mask
    room = layout.budgets[None, :]  # (1, S): text tokens that a prompt's length leaves room for
    query = torch.minimum(tokens.lengths[:, None], room) + layout.steps  # (B, S)
    text = mask[:, None, :] & (pos[:, None, :] < room[:, :, None])  # (B, S, T)
    prompt = layout.visible.expand(len(pos), -1, -1)  # (B, S, S)
    return query, torch.cat([pos, query], 1), torch.cat([text, prompt], 2)


def token_ids(tokenizer: object, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Return each text's ids, cut to `max_tokens`, with the tokenizer's own opening token."""
    return tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]


def pad(ids: list[list[int]], device: torch.device, side: str = "right") -> Tokens:
    """Pad lists of ids to one batch; the padding id is 0 and is never seen."""
    T = max(map(len, ids))
    shift = [T - len(row) if side == "left" else 0 for row in ids]
    out = torch.zeros(len(ids), T, dtype=torch.long)
    mask = torch.zeros(len(ids), T, dtype=torch.bool)
    for r, row in enumerate(ids):
        out[r, shift[r] : shift[r] + len(row)] = torch.tensor(row)
        mask[r, shift[r] : shift[r] + len(row)] = True
    return Tokens(out.to(device), mask.to(device))


def weights_sha256(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """Return the sha256 over all weights and buffers, by name, in `dtype` (None: as stored)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        data = tensor.detach().cpu()
        data = data.to(dtype) if dtype and data.is_floating_point() else data
        digest.update(name.encode() + b"\0")
        digest.update(data.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def verify_exactness(backbone: Backbone, tolerance: float = 1e-4) -> None:
    """Check that prompts made of real tokens give the scores of feeding those tokens.

    Runs four random texts, among them a long one, behind them more prompt tokens than a pass ever
    holds, with both paddings, in fp32. Raises InputError if the decoder cannot be run so, or if a
    score differs by more than `tolerance` of the largest.
    """
    layout = Layout((50,) * 10 + (5, 2))
    *ids, prompt = random_texts(backbone.words, (3, 9, 60, 77, sum(layout.lengths)))
    last = prompt[-7:-2], prompt[-2:]  # the prompts farthest from their texts
    supported = "XGLM, BLOOM, Gemma 3, and decoders that pass (Llama-like ones do)"
    with must_be_exact(backbone.name, backbone.model, supported):
        vectors = backbone.word_vectors(torch.tensor(prompt, device=backbone.device))
        for side in ("right", "left"):
            states = backbone.encode(pad(ids, backbone.device, side))
            found = backbone.prompt_states(states, vectors, layout)
            for r, text in enumerate(ids):
                for hidden, words in zip(found[r, -2:], last, strict=True):
                    whole = torch.tensor([text + words], device=backbone.device)
                    wanted = backbone.model(input_ids=whole).logits[0, -1].float()  # (V,)
                    check_close(backbone.logits(hidden), wanted, tolerance)


@contextlib.contextmanager
def must_be_exact(name: str, model: nn.Module, supported: str) -> Iterator[None]:
    """Turn whatever fails in the block into InputError: the model has not passed."""
    try:
        yield
    except Exception as error:  # another family's code may fail in any way
        raise InputError(
            f"model {name!r} ({type(model).__name__}) does not pass the exactness check: {error}; "
            f"soft prompts would not stand where its word embeddings do. Supported: {supported}"
        ) from error


def random_texts(words: int, lengths: Sequence[int]) -> list[list[int]]:
    """Return a text of random token ids for each length, always the same."""
    g = torch.Generator().manual_seed(0)
    return [torch.randint(5, words, (n,), generator=g).tolist() for n in lengths]


def check_close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Raise ArithmeticError if scores differ by more than `tolerance` of the largest wanted."""
    gap = (found - wanted).abs().max() / wanted.abs().max()
    if not gap <= tolerance:
        raise ArithmeticError(f"scores differ by {gap:.1e} of the largest")
