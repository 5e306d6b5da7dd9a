"""Measure the shared-text path beside the ways it replaces, in one process, as ratios.

    python -m benchmarks [BACKBONE]

Every pair alternates and each side's fastest time counts, so that a busy machine hurts both alike.
"""

import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import pad as pad_to

from xlcore import checkpoints
from xlcore.backbones import Backbone, Tokens, pad
from xlcore.prompts import Layout, Verbalizer
from xlcore.training import label_loss

STUDIES = {  # prompts that train on one draw: the study of lengths, and the main condition
    "10 prompts of 1, 2, 5, 10, 20 tokens": (1, 2, 5, 10, 20) * 2,
    "10 prompts of 5 tokens": (5,) * 10,
}
WORDS = Verbalizer(tuple("abcdefg"), tuple("abcdefg"), tuple(range(10, 17)))
B, T = 8, 40  # texts a batch and tokens a text, about SIB-200's English mean
RELEASED = 128  # tokens that the released SPT code pads every text to


def fastest(*ways: Callable[[], object], rounds: int = 4) -> list[float]:
    """Return each way's fastest seconds; the ways take turns."""
    best = [float("inf")] * len(ways)
    for _ in range(rounds):
        for i, way in enumerate(ways):
            started = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best[i] = min(best[i], time.perf_counter() - started)
    return best


def texts(backbone: Backbone) -> Tokens:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(5, backbone.words, (B, T), generator=g).tolist()
    return pad(ids, backbone.device)


def prompts(backbone: Backbone, lengths: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(sum(lengths), backbone.width, device=backbone.device).requires_grad_()


def training(backbone: Backbone, what: str) -> list[tuple[str, float, str]]:
    """Compare a step's loss and gradient for all prompts: together, one by one, the text carried.

    The loss is over the full vocabulary, on all sides.
    """
    tokens = texts(backbone)
    states, lengths = backbone.encode(tokens), STUDIES[what]
    whole = prompts(backbone, lengths)
    parts = [p.detach().requires_grad_() for p in whole.split(list(lengths))]
    labels = torch.arange(B) % len(WORDS.labels)

    def learn(hidden: torch.Tensor) -> None:
        label_loss(backbone, hidden, labels, WORDS, "vocabulary").mean(0).sum().backward()

    def together() -> None:
        learn(backbone.prompt_states(states, whole, Layout(lengths)))

    def one_by_one() -> None:
        for part in parts:
            learn(backbone.prompt_states(states, part, Layout((len(part),))))

    def carried(tokens: Tokens) -> None:
        for part in parts:
            learn(backbone.whole_pass(tokens, part, Layout((len(part),))))

    wide = Tokens(*(pad_to(x, (0, RELEASED - T)) for x in (tokens.ids, tokens.mask)))
    ways = (together, one_by_one, partial(carried, tokens), partial(carried, wide))
    fast, slow, plain, padded = fastest(*ways)
    whole_name = f"training step, {what} on {B} texts of {T} tokens: together / one after the other"
    return [
        (whole_name, fast / slow, f"{fast:.2f} s"),
        ("the same: together / carrying the text through the step", fast / plain, f"{plain:.2f} s"),
        (
            f"the same, the text padded to {RELEASED} tokens as in the released code",
            fast / padded,
            f"{padded:.2f} s",
        ),
    ]


@torch.no_grad()
def evaluation(backbone: Backbone) -> list[tuple[str, float, str]]:
    """Compare what one more prompt adds to a batch's evaluation with its text pass."""
    tokens = texts(backbone)
    states = backbone.encode(tokens)
    n, few, many = 5, 4, 24

    def text() -> None:
        backbone.encode(tokens)

    def with_prompts(count: int) -> Callable[[], object]:
        vectors, layout = prompts(backbone, (n,) * count), Layout((n,) * count)
        return lambda: backbone.prompt_states(states, vectors, layout)

    base, small, large = fastest(text, with_prompts(few), with_prompts(many), rounds=8)
    share = (large - small) / (many - few) / base
    label = f"evaluation, one more prompt of {n} tokens / its share n/T of the text pass"
    return [(label, share / (n / T), f"text pass {base:.3f} s")]


def main(names: list[str]) -> None:
    backbone = checkpoints.load(names[0] if names else checkpoints.GEMMA)
    rows = [row for what in STUDIES for row in training(backbone, what)] + evaluation(backbone)
    lines = [
        "# Benchmarks",
        "",
        f"`{backbone.name}`, {backbone.device}, {str(backbone.dtype).removeprefix('torch.')}, "
        f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}. "
        "Ratios of times taken side by side in one run; below 1 the first way is faster. The "
        "prompts share the texts, as those of one draw do; each further draw brings its own.",
        "",
        "| what | ratio | time |",
        "|---|---|---|",
        *(f"| {what} | {ratio:.2f} | {seconds} |" for what, ratio, seconds in rows),
    ]
    Path(__file__).with_name("results.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
