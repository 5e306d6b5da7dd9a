"""Cloze questions: a filled template with one mask token, and where a soft prompt goes in it.

Between texts and `encoders`: needs a tokenizer only, so it can be checked before weights load.
Templates and positions of Zhao & Schuetze 2021 (DP, SP, MP); LTP puts the prompt in front.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

import torch
from torch import Tensor

from xlcore.backbones import Tokens, pad
from xlcore.errors import InputError, choose

POSITIONS = ("prefix", "infix", "suffix")
TEMPLATES = {
    "plain": "{premise} . {hypothesis} ? {mask} .",
    "question": "{premise} . Question: {hypothesis} ? Answer: {mask} .",
    "soft": "{premise} . {hypothesis} ?{soft} {mask} .",
    "soft_question": "{premise} . Question: {hypothesis} ?{soft} Answer: {mask} .",
}


@dataclass(frozen=True)
class Cloze(Tokens):
    """A padded batch with the place of each row's mask token (B,), and where prompts go (B, 3).

    Places count the row's real tokens from 0; `slots` are in the order of POSITIONS.
    """

    label: Tensor
    slots: Tensor

    def rows(self, index: Sequence[int] | Tensor) -> "Cloze":
        """Return the chosen rows, trimmed to the columns that hold a token."""
        kept = super().rows(index)
        return Cloze(kept.ids, kept.mask, self.label[index], self.slots[index])


def cloze(
    tokenizer: object, template: str, rows: Sequence[Mapping[str, str]], max_tokens: int,
    padding: str = "right", device: torch.device | str = "cpu",
) -> Cloze:  # fmt: skip
    """Fill a template such as "{p} . Question: {h} ? Answer: {mask} ." with rows and tokenize it.

    {mask} is the mask token; {soft} may name the place of an infix, which else stands right before
    the mask. A row of more than `max_tokens` tokens loses the ends of its longest fields. Raises
    InputError for a template without exactly one {mask}, an unknown field, or too few tokens.
    """
    names = [name for _, name, *_ in Formatter().parse(template) if name is not None]
    if names.count("mask") != 1:
        raise InputError(f"template {template!r} must hold {{mask}} exactly once")
    for name in names:
        choose("template field", name, ["mask", "soft", *rows[0]])
    filled = [_fill(template, row, tokenizer.mask_token) for row in rows]
    batch = tokenizer([text for text, _ in filled], return_offsets_mapping=True, verbose=False)
    ids, places = [], []
    for encoding, (_, spans) in zip(batch.encodings, filled, strict=True):
        columns = _fit(encoding.offsets, spans, max_tokens, template)
        ids.append([encoding.ids[c] for c in columns])
        places.append([sum(c < mark for c in columns) for mark in _marks(encoding, spans)])
    tokens, found = pad(ids, device, padding), torch.tensor(places, device=device)
    return Cloze(tokens.ids, tokens.mask, found[:, 0], found[:, 1:])


def strip(text: str) -> str:
    """Return a text without the spaces and punctuation at its end, in whatever script."""
    end = len(text)
    while end and (text[end - 1].isspace() or unicodedata.category(text[end - 1])[0] == "P"):
        end -= 1
    return text[:end]


def _fill(template: str, row: Mapping[str, str], mask: str) -> tuple[str, dict]:
    """Return the filled text and the characters (start, end) of each field in it."""
    text, spans, values = "", {}, {**row, "mask": mask, "soft": ""}
    for literal, name, *_ in Formatter().parse(template):
        text += literal
        if name is not None:
            spans[name] = (len(text), len(text) + len(values[name]))
            text += values[name]
    return text, spans


def _marks(encoding: object, spans: Mapping) -> tuple[int, int, int, int]:
    """Return the mask's column and the columns before which prefix, infix and suffix stand."""
    inside = [c for c, part in enumerate(encoding.sequence_ids) if part is not None]
    mask = encoding.char_to_token(spans["mask"][0])
    soft = spans.get("soft", spans["mask"])[0]
    infix = next((c for c in inside if encoding.offsets[c][1] > soft), inside[-1] + 1)
    return mask, inside[0], infix, inside[-1] + 1


def _fit(offsets: list, spans: Mapping, max_tokens: int, template: str) -> list[int]:
    """Return the columns to keep: the longest field loses its last token until all fit."""
    columns = list(range(len(offsets)))
    fields = [
        [c for c, (a, b) in enumerate(offsets) if start <= a < b <= end]
        for name, (start, end) in spans.items() if name not in ("mask", "soft")
    ]  # fmt: skip
    while len(columns) > max_tokens:
        longest = max(fields, key=len, default=[])
        if len(longest) < 2:
            raise InputError(f"{max_tokens} tokens leave no room for the template {template!r}")
        columns.remove(longest.pop())
    return columns


def insert(embeds: Tensor, mask: Tensor, vectors: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
    """Put vectors (n, d) or (B, n, d) before the real token number `slot` (B,) of each row.

    Returns embeddings (B, T + n, d) and their mask (B, T + n); the padded side stays the same.
    """
    (B, T, d), n = embeds.shape, vectors.shape[-2]
    at = (mask.long().argmax(1) + slot)[:, None]  # (B, 1) column
    column = torch.arange(T + n, device=mask.device)
    behind = torch.where(column < at + n, T + column - at, column - n)
    source = torch.where(column < at, column, behind)  # (B, T + n)
    both = torch.cat([embeds, vectors.expand(B, n, d)], 1)  # (B, T + n, d)
    real = torch.cat([mask, mask.new_ones(B, n)], 1)
    return both.gather(1, source[..., None].expand(-1, -1, d)), real.gather(1, source)
