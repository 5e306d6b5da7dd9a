"""The slow, obvious versions that the fast paths must equal, written without xlcore's own path.

Each runs one text and one prompt at a time through the plain Hugging Face forward.
SPT section 3: text, then n prompt vectors where word embeddings would stand, cut to `max_length`.
"""

import math
from functools import cache

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from xlcore import checkpoints
from xlcore.prompts import Verbalizer
from xlcore.training import Labelled

FAMILIES = ("tiny-gemma3", "tiny-xglm", "tiny-bloom", "tiny-llama")
LABELS = tuple("abcdefg")
WORD_IDS = (17, 80, 33, 250, 401, 99, 7)
VERBALIZER = Verbalizer(LABELS, tuple(f"word{i}" for i in WORD_IDS), WORD_IDS)
# What stands between a row of the embedding matrix and `inputs_embeds`, from the papers' code.
SCALE = {
    "gemma3_text": lambda config: math.sqrt(config.hidden_size),
    "xglm": lambda config: math.sqrt(config.d_model),
    "bloom": lambda config: 1.0,  # its LayerNorm is inside the decoder
    "llama": lambda config: 1.0,
}


@cache
def tiny(name):
    """Return a tiny backbone on the CPU in fp32, one for all tests: nothing may change it."""
    torch.set_num_threads(1)  # thread hand-over costs more than these models' arithmetic
    return checkpoints.load(name, "cpu", "float32")


def random_ids(lengths, seed=0, words=512):
    """Return one list of random token ids per length."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(5, words, (n,), generator=g).tolist() for n in lengths]


def padded(ids, side="right"):
    """Return ids (B, T) and mask (B, T) of lists padded with 3, a token that is never chosen."""
    T = max(map(len, ids))
    rows, mask = [], []
    for row in ids:
        gap = T - len(row)
        rows.append([3] * gap + row if side == "left" else row + [3] * gap)
        real = [0] * gap + [1] * len(row)
        mask.append(real if side == "left" else real[::-1])
    return torch.tensor(rows), torch.tensor(mask)


def labelled(lengths, labels, seed=0):
    """Return random texts with the given label numbers."""
    from xlcore.backbones import pad

    return Labelled(pad(random_ids(lengths, seed), "cpu"), torch.tensor(labels))


def kept_ids(ids, n, max_length):
    """Return the part of a text that fits with n prompt tokens and one end token."""
    kept = list(ids)
    while len(kept) + n + 1 > max_length:
        kept.pop()
    return kept


def plain_scores(model, ids, prompt, position="suffix", max_length=128):
    """Return the next-token scores (V,) of one text and one prompt (n, d), run in full."""
    scale = SCALE[model.config.model_type](model.config)
    text = model.get_input_embeddings().weight[kept_ids(ids, len(prompt), max_length)] * scale
    parts = [text, prompt * scale] if position == "suffix" else [prompt * scale, text]
    return model(inputs_embeds=torch.cat(parts)[None]).logits[0, -1]


def plain_loss(model, ids, label, prompt, kind="vocabulary", position="suffix", max_length=128):
    """Return the cross-entropy of one text's label word, over all words or the label words."""
    scores = plain_scores(model, ids, prompt, position, max_length)
    if kind == "vocabulary":
        return F.cross_entropy(scores[None], torch.tensor([WORD_IDS[label]]))
    return F.cross_entropy(scores[None, list(WORD_IDS)], torch.tensor([label]))


def plain_fit(model, train, dev, start, batches, settings, position="suffix"):
    """Train one prompt by the book; return (best, last, dev losses).

    train, dev: lists of (ids, label). batches: for each epoch, lists of row numbers.
    """
    prompt = start.clone().requires_grad_()
    decay = settings.weight_decay
    optimizer = torch.optim.AdamW([prompt], lr=settings.learning_rate, weight_decay=decay)
    total = sum(map(len, batches))
    warm, step, best, losses = int(settings.warmup * total), 0, start, []
    how = dict(kind=settings.loss, position=position, max_length=settings.max_length)
    for epoch in batches:
        for rows in epoch:
            rate = step / warm if step < warm else (total - step) / (total - warm)
            optimizer.param_groups[0]["lr"] = settings.learning_rate * rate
            optimizer.zero_grad()
            torch.stack(
                [plain_loss(model, *train[r], prompt, **how) for r in rows]
            ).mean().backward()
            norm = prompt.grad.norm()
            if norm > settings.clip:
                prompt.grad *= settings.clip / norm
            optimizer.step()
            step += 1
        with torch.no_grad():
            loss = sum(plain_loss(model, *row, prompt, **how).item() for row in dev) / len(dev)
        if not losses or loss < min(losses):
            best = prompt.detach().clone()
        losses.append(loss)
    return best, prompt.detach(), losses


def rewrite(path, tensors=None, **changes):
    """Write a file anew, with changed metadata (None removes a key) or other tensors."""
    with safe_open(path, "pt") as file:
        metadata = {k: v for k, v in (file.metadata() | changes).items() if v is not None}
    save_file(tensors or load_file(path), path, metadata)


TINY_VECTORS = torch.rand(5, 32, generator=torch.Generator().manual_seed(9)) - 0.5
