"""Soft prompts, where they stand in the input, and the words that stand for the labels.

Between the backbone (which runs them) and the training (which moves them).
SPT section 3: n trainable vectors at the input layer, one label word per class.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from xlcore.errors import InputError, check_number, choose

if TYPE_CHECKING:
    from xlcore.backbones import Backbone

POSITIONS = ("suffix", "prefix")
INITS = ("uniform", "vocabulary", "label_words")
REPARAMETERIZATIONS = ("none", "mlp", "residual_mlp", "lstm")


class Reparameterization(nn.Module):
    """A small network, shared by all positions, between the trained vectors and the prompt (n, d).

    mlp: Linear, ReLU, Linear, LayerNorm (the released SPT code). residual_mlp: the same, added to
    its input (Razdaibiedina et al. 2023). lstm: a bidirectional LSTM over the positions, then
    Linear, ReLU, Linear (Liu et al. 2021, P-tuning). Only its output is kept after training.
    """

    def __init__(self, kind: str, width: int, hidden: int, seed: int, train_norm: bool) -> None:
        super().__init__()
        self.kind = choose("reparameterization", kind, REPARAMETERIZATIONS[1:])
        self.hidden = hidden
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if kind == "lstm":
                self.lstm = nn.LSTM(width, hidden, bidirectional=True, batch_first=True)
            inner = 2 * hidden if kind == "lstm" else width
            layers = [nn.Linear(inner, hidden), nn.ReLU(), nn.Linear(hidden, width)]
            norm = [] if kind == "lstm" else [nn.LayerNorm(width).requires_grad_(train_norm)]
            self.net = nn.Sequential(*layers, *norm)

    def forward(self, vectors: Tensor) -> Tensor:
        if self.kind == "lstm":
            return self.net(self.lstm(vectors[None])[0][0])  # (n, 2h) -> (n, d)
        made = self.net(vectors)  # (n, d)
        return vectors + made if self.kind == "residual_mlp" else made


class SoftPrompt(nn.Module):
    """n trainable vectors (n, d) that stand where word embeddings would."""

    def __init__(
        self, vectors: Tensor, position: str = "suffix", name: str = "",
        network: Reparameterization | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.position = choose("prompt position", position, (*POSITIONS, "infix"))  # see `cloze`
        self.name = name
        self.weight = nn.Parameter(vectors.detach().clone().float())  # (n, d)
        self.network = network

    def __len__(self) -> int:
        return len(self.weight)

    def vectors(self) -> Tensor:
        """Return the prompt (n, d) as the backbone sees it."""
        return self.weight if self.network is None else self.network(self.weight)


def initialize(
    backbone: "Backbone", length: int, seed: int, init: str = "uniform",
    label_ids: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    """Draw the start values (length, d) of a prompt, from its own seeded generator.

    uniform: Uniform(-0.5, 0.5), as in the released SPT code. vocabulary: rows of the embedding
    matrix, sampled without replacement. label_words: the label words' rows, repeated in order.
    Raises InputError for an unknown init and, by `check_lengths`, for an impossible length.
    """
    choose("init", init, INITS)
    check_lengths([length], sys.maxsize)
    generator = torch.Generator().manual_seed(seed)
    if init == "uniform":
        return torch.rand(length, backbone.width, generator=generator) - 0.5
    if init == "vocabulary":
        rows = backbone.model.get_input_embeddings().num_embeddings
        ids = torch.randperm(rows, generator=generator)[:length]
    else:
        ids = torch.tensor([label_ids[i % len(label_ids)] for i in range(length)])
    return backbone.word_vectors(ids.to(backbone.device)).detach().float().cpu()


def check_start(init: str, reparameterization: str, hidden: int) -> None:
    """Refuse an unknown init or reparameterization, and a width inside it that is none."""
    choose("init", init, INITS)
    choose("reparameterization", reparameterization, REPARAMETERIZATIONS)
    check_number("hidden", hidden, int, "greater than 0", lambda x: x > 0)


def check_lengths(lengths: Iterable[int], max_length: int) -> None:
    """Refuse prompt lengths that are not whole, below 1, or leave no room for a text.

    `max_length` counts text, prompt and one end token. Raises InputError that names the length and
    the range allowed.
    """
    for n in lengths:
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= max_length - 2:
            why = f"text, prompt and end token share {max_length} tokens"
            raise InputError(
                f"prompt length {n!r} is not possible; allowed: 1 to {max_length - 2} ({why})"
            )


@dataclass(frozen=True)
class Layout:
    """Several prompts side by side in one pass: who stands where, and who sees whom.

    lengths: tokens of each prompt; their sum is S, their number P. Source: ours; the prompts of
    one text are blind to one another, so the result equals running each alone.
    """

    lengths: tuple[int, ...]
    max_length: int = 128
    position: str = "suffix"
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_lengths(self.lengths, self.max_length)
        choose("prompt position", self.position, POSITIONS)

    def to(self, device: torch.device) -> "Layout":
        return self if str(device) == self.device else replace(self, device=str(device))

    def budget(self, length: int) -> int:
        """Return how many text tokens a prompt of this length leaves room for."""
        return self.max_length - length - 1

    @cached_property
    def owner(self) -> Tensor:
        """Which prompt each token belongs to, (S,)."""
        lengths = torch.tensor(self.lengths, device=self.device)
        return torch.repeat_interleave(torch.arange(len(lengths), device=self.device), lengths)

    @cached_property
    def steps(self) -> Tensor:
        """Each token's place within its own prompt, (S,)."""
        return torch.cat([torch.arange(n, device=self.device) for n in self.lengths])

    @cached_property
    def last(self) -> Tensor:
        """Column of each prompt's last token, where the label word is read, (P,)."""
        return torch.tensor(self.lengths, device=self.device).cumsum(0) - 1

    @cached_property
    def budgets(self) -> Tensor:
        """Text tokens that each prompt token may see, (S,)."""
        lengths = torch.tensor(self.lengths, device=self.device)
        return self.max_length - 1 - lengths[self.owner]

    @cached_property
    def visible(self) -> Tensor:
        """Who sees whom among the prompt tokens: own prompt, own past, (S, S)."""
        same = self.owner[:, None] == self.owner[None, :]
        return same & (self.steps[:, None] >= self.steps[None, :])

    def groups(self, max_tokens: int) -> list[list[int]]:
        """Split the prompts, in order, into runs of at most `max_tokens` tokens each."""
        out: list[list[int]] = []
        room = 0
        for i, n in enumerate(self.lengths):
            if n > room or not out:
                out.append([])
                room = max_tokens
            out[-1].append(i)
            room -= n
        return out

    def pick(self, prompts: Sequence[int]) -> "Layout":
        """Return the layout of some of the prompts only."""
        return replace(self, lengths=tuple(self.lengths[i] for i in prompts))


@dataclass(frozen=True)
class Verbalizer:
    """One word per label and its token id; a text's label is the best-scored label word."""

    labels: tuple[str, ...]
    words: tuple[str, ...]
    ids: tuple[int, ...]

    @classmethod
    def build(cls, tokenizer: object, words: dict[str, str], prefix: str = " ") -> "Verbalizer":
        """Check that every label word is one token, and all differ.

        Raises InputError naming the word and the pieces it falls into, or the two labels that
        share a token.
        """
        ids: dict[str, int] = {}
        for label, word in words.items():
            found = tokenizer.encode(prefix + word, add_special_tokens=False)
            if len(found) != 1:
                pieces = tokenizer.convert_ids_to_tokens(found)
                raise InputError(
                    f"label word {word!r} (label {label!r}) is {len(found)} tokens for this "
                    f"tokenizer: {' '.join(map(repr, pieces))}; choose a word of exactly one token"
                )
            if found[0] == tokenizer.unk_token_id:
                raise InputError(
                    f"label word {word!r} (label {label!r}) is unknown to this tokenizer; choose a "
                    "word of its vocabulary"
                )
            if found[0] in ids.values():
                other = next(k for k, v in ids.items() if v == found[0])
                raise InputError(
                    f"labels {other!r} and {label!r} share the label word {word!r}; "
                    "each label needs a word of its own"
                )
            ids[label] = found[0]
        return cls(tuple(words), tuple(words.values()), tuple(ids.values()))

    def index(self, labels: Iterable[str]) -> Tensor:
        """Return each label's number (len(labels),); raises InputError for an unknown one."""
        order = {label: i for i, label in enumerate(self.labels)}
        return torch.tensor([order[choose("label", x, self.labels)] for x in labels])
