"""All prompts of a study scored against one pass over each language's texts.

Takes trained vectors and a language's test texts, gives predictions, accuracy and macro-F1.
SPT section 4: the label is the best-scored label word; accuracy and macro-F1 per language.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from xlcore.backbones import Backbone, Tokens
from xlcore.data import TaskData
from xlcore.prompts import Layout, Verbalizer

PASS_TOKENS = {"cpu": 2048, "cuda": 16384, "mps": 2048}  # text or prompt tokens a pass
SIDE_BY_SIDE = 512  # prompt tokens that share one pass


@torch.no_grad()
def score(
    backbone: Backbone,
    prompts: Sequence[Tensor],
    texts: Sequence[str],
    verbalizer: Verbalizer,
    position: str = "suffix",
    max_length: int = 128,
) -> Tensor:
    """Return every prompt's score for every label word, (P, N, K), in the texts' order.

    prompts: P vectors (n, d), lengths may differ. Texts are sorted by length, trimmed, and each
    batch's keys and values live only as long as the batch: memory does not grow with N.
    """
    layout = Layout(tuple(len(p) for p in prompts), max_length, position)
    tokens = backbone.tokenize(texts, layout.budget(min(layout.lengths)))
    words = torch.tensor(verbalizer.ids, device=backbone.device)
    out = torch.zeros(len(prompts), len(texts), len(words))
    groups = layout.groups(SIDE_BY_SIDE)
    widest = max(sum(layout.lengths[p] for p in group) for group in groups)
    for rows, batch in batches(tokens, widest):
        states = backbone.encode(batch) if position == "suffix" else batch
        for group in groups:
            vectors = torch.cat([prompts[p] for p in group]).to(backbone.device)  # (S, d)
            hidden = backbone.prompt_states(states, vectors, layout.pick(group))  # (B, P, d)
            scores = backbone.logits(hidden, words).cpu()  # (B, P, K)
            out[torch.tensor(group)[:, None], rows] = scores.transpose(0, 1)
    return out


def batches(tokens: Tokens, least: int = 1) -> Iterator[tuple[Tensor, Tokens]]:
    """Split texts by length into trimmed batches of bounded size; yields row numbers and tokens.

    Short texts fill a batch in greater numbers. least: tokens that any text brings into a pass, be
    it as short as it may.
    """
    room, order = PASS_TOKENS[tokens.ids.device.type], tokens.lengths.argsort(stable=True)
    brings = tokens.lengths[order].clamp(min=least).tolist()
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * brings[end] > room:
            rows, start = order[start:end], end
            yield rows.cpu(), tokens.rows(rows)


def halves(tokens: Tokens, rows: Tensor) -> tuple[Tensor, ...]:
    """Split rows (B,) by length, on a CPU in two: there padding costs more than a second pass."""
    order = rows[tokens.lengths[rows.to(tokens.ids.device)].argsort(stable=True).cpu()]
    return order.chunk(2 if tokens.ids.device.type == "cpu" else 1)


def accuracy(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Return the share of equal entries of two label arrays (N,), in percent."""
    return float(100 * np.mean(gold == predicted))


def macro_f1(gold: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Return the mean F1 over `classes` labels, in percent; a class never met counts as 0."""
    table = np.zeros((classes, classes))
    np.add.at(table, (gold, predicted), 1)
    both = table.sum(0) + table.sum(1)  # true positives counted twice, plus all errors
    return float(100 * np.mean(2 * table.diagonal() / np.maximum(both, 1)))


def evaluate(
    backbone: Backbone,
    prompts: Sequence[Tensor],
    data: TaskData,
    verbalizer: Verbalizer,
    languages: Iterable[str] | None = None,
    position: str = "suffix",
    max_length: int = 128,
    progress: bool = True,
) -> pd.DataFrame:
    """Return accuracy and macro-F1 (percent) of every prompt on each language's test texts.

    Columns: prompt (its number), language (ISO 639-3), metric, value. All prompts of a language
    share one pass over its texts.
    """

    def read(rows: pd.DataFrame) -> Tensor:
        return score(backbone, prompts, rows.text, verbalizer, position, max_length)

    return measure(read, data, verbalizer, languages, progress)


def measure(
    read: Callable[[pd.DataFrame], Tensor],
    data: TaskData,
    verbalizer: Verbalizer,
    languages: Iterable[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Return the rows of `evaluate` for anything that turns test rows into scores (P, N, K)."""
    codes = [data.code(x) for x in languages or [x.iso639_3 for x in data.languages]]
    rows = []
    for code in (bar := tqdm(codes, unit="language", disable=not progress, leave=False)):
        bar.set_postfix_str(code)
        test = data.examples(code, "test")
        gold = verbalizer.index(test.label).numpy()
        for p, predicted in enumerate(read(test).argmax(-1).numpy()):
            f1 = macro_f1(gold, predicted, len(verbalizer.labels))
            rows += [(p, code, "accuracy", accuracy(gold, predicted)), (p, code, "macro_f1", f1)]
    return pd.DataFrame(rows, columns=["prompt", "language", "metric", "value"])
