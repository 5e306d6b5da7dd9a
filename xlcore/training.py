"""Training many soft prompts at once on a frozen decoder, on text states made once.

Takes prompts and a few-shot draw each, gives the vectors of the best dev epoch and of the last.
SPT section 4: AdamW, linear decay, warm-up, clipping, best epoch by English dev loss.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import get_linear_schedule_with_warmup

from xlcore import evaluation
from xlcore.backbones import Backbone, TextStates, Tokens, pad
from xlcore.errors import InputError, check_number, choose
from xlcore.prompts import Layout, SoftPrompt, Verbalizer

LOSSES = ("vocabulary", "label_words")
SELECTIONS = {"best_dev": "best", "last": "last"}  # which epoch to keep, and `Trained`'s name
RANKS: dict[str, Callable[[dict], tuple]] = {  # what makes an epoch the best; first of equals
    "best_dev": lambda row: (-row["dev_loss"],),
    "best_dev_accuracy": lambda row: (row["dev_accuracy"], -row["dev_loss"]),
}
HEAD_ROWS = 128  # rows of (V,) scores held at once: 128 MB at 262,144 words
PASS_TOKENS = {"cpu": 1024, "cuda": 8192, "mps": 2048}  # prompt tokens a pass: bounds activations


@dataclass(frozen=True)
class Settings:
    """How a prompt is trained; the defaults are the paper's example except the learning rate."""

    epochs: int = 20
    batch_size: int = 8
    learning_rate: float = 5e-3
    warmup: float = 0.1
    clip: float = 1.0
    weight_decay: float = 0.0
    loss: str = "vocabulary"
    max_length: int = 128

    def __post_init__(self) -> None:
        choose("loss", self.loss, LOSSES)
        for name in ("epochs", "batch_size", "max_length"):
            check_number(name, getattr(self, name), int, "greater than 0", lambda x: x > 0)
        for name in ("learning_rate", "clip"):
            check_number(name, getattr(self, name), float, "greater than 0", lambda x: x > 0)
        check_number("weight_decay", self.weight_decay, float, "at least 0", lambda x: x >= 0)
        check_number(
            "warmup", self.warmup, float, "at least 0 and less than 1", lambda x: 0 <= x < 1
        )


@dataclass(frozen=True)
class Labelled:
    """Texts as tokens with their label numbers (B,): one side of a few-shot draw."""

    tokens: Tokens
    labels: Tensor

    @property
    def content(self) -> tuple[bytes, ...]:
        """The same for two sides exactly if they hold the same texts and labels in order."""
        held = (self.tokens.ids, self.tokens.mask, self.labels)
        return tuple(x.cpu().numpy().tobytes() for x in held)


@dataclass
class Job:
    """One prompt to train, the draw it learns from, and the seed of its batch order."""

    prompt: SoftPrompt
    train: Labelled
    dev: Labelled
    seed: int
    learning_rate: float | None = None  # None: the settings' one

    def rate(self, settings: Settings) -> float:
        return settings.learning_rate if self.learning_rate is None else self.learning_rate


@dataclass
class Trained:
    """What training gives: the best epoch's vectors, the last one's, and the way there."""

    best: Tensor  # (n, d) at the lowest dev loss
    last: Tensor  # (n, d)
    history: list[dict] = field(default_factory=list)  # epoch, train_loss, dev_loss, dev_accuracy

    @property
    def best_epoch(self) -> int:
        return max(self.history, key=RANKS["best_dev"])["epoch"]


class TrainingDiverged(ArithmeticError):
    """A loss is no longer finite; the message names the prompts, the epoch and the rates."""


class TextCache:
    """Keys and values of training texts, made once, kept up to a memory budget.

    Texts beyond `max_bytes` are run again whenever a batch needs them: slower, the same values.
    """

    def __init__(self, backbone: Backbone, tokens: Sequence[Tokens], max_bytes: int) -> None:
        self.backbone, self.room = backbone, max_bytes
        self.ids = [row[m].tolist() for t in tokens for row, m in zip(t.ids, t.mask, strict=True)]
        self.kept: dict[int, Tensor] = {}  # row -> (L, 2, H, T_row, d_h)

    def batch(self, rows: Sequence[int]) -> TextStates:
        """Return the states of these texts, padded on the right to the longest."""
        missing = [r for r in dict.fromkeys(rows) if r not in self.kept]
        fresh = self._run(missing) if missing else {}
        states = [self.kept[r] if r in self.kept else fresh[r] for r in rows]
        tokens = self.tokens(rows)
        L, two, H, _, d_h = states[0].shape
        out = states[0].new_zeros(L, two, len(rows), H, tokens.ids.shape[1], d_h)
        for b, s in enumerate(states):
            out[:, :, b, :, : s.shape[3]] = s
        return TextStates(tokens, tuple((layer[0], layer[1]) for layer in out))

    def tokens(self, rows: Sequence[int]) -> Tokens:
        return pad([self.ids[r] for r in rows], self.backbone.device)

    def _run(self, rows: list[int]) -> dict[int, Tensor]:
        """Encode these texts and keep as many as the budget still allows."""
        states = self.backbone.encode(self.tokens(rows))
        packed = torch.stack([torch.stack(pair) for pair in states.pairs])  # (L, 2, B, H, T, d_h)
        fresh = {}
        for b, row in enumerate(rows):
            fresh[row] = packed[:, :, b, :, : len(self.ids[row])].clone()
            if fresh[row].nbytes <= self.room:
                self.kept[row], self.room = fresh[row], self.room - fresh[row].nbytes
        return fresh


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy (R,) under a frozen head, a few rows at a time, with its gradient."""

    @staticmethod
    def forward(ctx, hidden: Tensor, score: Callable[[Tensor], Tensor], targets: Tensor) -> Tensor:
        losses, grads = [], []
        for h, t in zip(hidden.split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True):
            wanted = ctx.needs_input_grad[0]
            with torch.set_grad_enabled(wanted):
                h = h.detach().requires_grad_(wanted)
                loss = nn.functional.cross_entropy(score(h), t, reduction="none")
                grads += torch.autograd.grad(loss.sum(), h) if wanted else []
            losses.append(loss.detach())
        ctx.save_for_backward(*grads)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple:
        return torch.cat(ctx.saved_tensors) * upstream[:, None].to(ctx.saved_tensors[0]), None, None


def label_loss(
    backbone: Backbone, hidden: Tensor, labels: Tensor, verbalizer: Verbalizer, loss: str
) -> Tensor:
    """Return the cross-entropy (B, P) of hidden states (B, P, d) for label numbers (B,).

    loss: over the full vocabulary (SPT) or over the label words only.
    """
    B, P, d = hidden.shape
    ids = torch.tensor(verbalizer.ids, device=hidden.device)
    labels = labels.to(hidden.device).repeat_interleave(P)  # (B * P,)
    flat = hidden.reshape(B * P, d)
    restricted = loss == "label_words"
    if restricted or backbone.model.get_output_embeddings().weight.requires_grad:
        scores = backbone.logits(flat, ids if restricted else None)  # (B * P, K) or (B * P, V)
        targets = labels if restricted else ids[labels]
        return nn.functional.cross_entropy(scores, targets, reduction="none").view(B, P)
    return _HeadLoss.apply(flat, backbone.logits, ids[labels]).view(B, P)


def fit(
    backbone: Backbone,
    jobs: Sequence[Job],
    verbalizer: Verbalizer,
    settings: Settings = Settings(),
    progress: bool = True,
    max_bytes: int = 2**30,
) -> list[Trained]:
    """Train all jobs' prompts together, step by step, and return one result per job.

    Every prompt has its own gradient clipping, dev selection and batch order (from its seed), so
    which others train beside it changes its result by rounding only. That is below 1e-5 in float32
    (tiny models), but in bfloat16 other company rounds otherwise and training amplifies it: with
    Gemma on SIB-200, one seed, rate and length came out up to 11 points apart in the mean accuracy
    over six languages. Compare conditions over seeds, or train them in the same company.

    `max_bytes` bounds the keys and values of texts that are kept between steps. Raises InputError
    if the jobs' draws differ in their number of batches, TrainingDiverged if a loss is not finite.
    Source: SPT, section 4.
    """
    crowds = _crowds(backbone, jobs, verbalizer, settings, max_bytes)
    optimizer, schedule = _optimizer(jobs, settings)
    results = [Trained(job.prompt.vectors().detach().clone(), torch.empty(0)) for job in jobs]
    rank = RANKS["best_dev"]
    bar = tqdm(total=settings.epochs, unit="epoch", disable=not progress, leave=False)
    for epoch in range(1, settings.epochs + 1):
        train = _epoch(crowds, jobs, optimizer, schedule, settings, epoch)
        dev = {j: found for crowd in crowds for j, found in crowd.dev()}
        check_finite(jobs, [dev[j][0] for j in range(len(jobs))], epoch, settings)
        for j, result in enumerate(results):
            row = dict(zip(("dev_loss", "dev_accuracy"), dev[j], strict=True))
            if all(rank(row) > rank(past) for past in result.history):
                result.best = jobs[j].prompt.vectors().detach().clone()
            result.history.append(dict(epoch=epoch, train_loss=train[j]) | row)
        bar.set_postfix(dev_loss=f"{sum(d[0] for d in dev.values()) / len(jobs):.3f}")
        bar.update()
    bar.close()
    for result, job in zip(results, jobs, strict=True):
        result.last = job.prompt.vectors().detach().clone()
    return results


def _crowds(backbone, jobs, verbalizer, settings, max_bytes) -> list["_Crowd"]:
    """Put jobs on the same draw and seed together, and draws with equal prompts in one crowd."""
    if not jobs:
        raise InputError("no prompt to train: `jobs` is empty")
    sizes = {-(-len(job.train.labels) // settings.batch_size) for job in jobs}
    if len(sizes) > 1:
        raise InputError(
            f"draws of {sorted(sizes)} batches an epoch cannot share one schedule; "
            "train numbers of shots that differ in separate calls"
        )
    draws: dict[tuple, list[int]] = {}
    for j, job in enumerate(jobs):
        job.prompt.to(backbone.device)
        key = (job.train.content, job.dev.content, job.seed, job.prompt.position)
        draws.setdefault(key, []).append(j)
    alike: dict[Layout, list[list[int]]] = {}
    for (*_, position), members in draws.items():
        lengths = tuple(len(jobs[j].prompt) for j in members)
        layout = Layout(lengths, settings.max_length, position)
        alike.setdefault(layout, []).append(members)
    share = max_bytes // len(alike)
    return [
        _Crowd(backbone, jobs, members, layout, verbalizer, settings, share)
        for layout, members in alike.items()
    ]


def _optimizer(jobs: Sequence[Job], settings: Settings) -> tuple:
    """Return AdamW with a group (and rate) per prompt, and the linear schedule with warm-up."""
    groups = [dict(params=list(job.prompt.parameters()), lr=job.rate(settings)) for job in jobs]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    steps = -(-len(jobs[0].train.labels) // settings.batch_size) * settings.epochs
    warm = int(settings.warmup * steps)
    return optimizer, get_linear_schedule_with_warmup(optimizer, warm, steps)


def _epoch(crowds, jobs, optimizer, schedule, settings, epoch) -> list[float]:
    """Run one epoch; return each job's mean training loss."""
    seen: list[list[float]] = [[] for _ in jobs]
    for batches in zip(*(crowd.batches(epoch) for crowd in crowds), strict=True):
        optimizer.zero_grad()
        for crowd, batch in zip(crowds, batches, strict=True):
            for j, loss in crowd.step(batch):
                seen[j].append(loss)
        check_finite(jobs, [losses[-1] for losses in seen], epoch, settings)
        for job in jobs:
            nn.utils.clip_grad_norm_(job.prompt.parameters(), settings.clip)
        optimizer.step()
        schedule.step()
    return [sum(losses) / len(losses) for losses in seen]


def epoch_batches(rows: Tensor, seed: int, epoch: int, settings: Settings) -> tuple[Tensor, ...]:
    """Return an epoch's batches of row numbers: the same for every method on a draw."""
    generator = torch.Generator().manual_seed(1000 * seed + epoch)
    shuffled = rows[torch.randperm(len(rows), generator=generator)]
    return shuffled.split(settings.batch_size)


def descend(
    groups: Sequence[dict],
    measure: Callable[[Labelled, Tensor], tuple[Tensor, Tensor]],
    train: Labelled,
    dev: Labelled,
    seed: int,
    settings: Settings,
    check: Callable[[float, int], None],
    selection: str = "best_dev",
    progress: bool = True,
    written: Callable[[], object] = lambda: None,
) -> list[dict]:
    """Run all epochs of AdamW and leave the parameters of the selected one in place.

    groups: parameters with their rate. measure: mean loss, with its gradient, and accuracy of some
    rows. check: raises if the loss of an epoch is not finite. selection: "last", or one of RANKS.
    written: is called when parameters have changed. Returns a row an epoch: epoch, train_loss,
    dev_loss, dev_accuracy, and whether it is the one that was kept.
    """
    parameters = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
    steps = -(-len(train.labels) // settings.batch_size) * settings.epochs
    schedule = get_linear_schedule_with_warmup(optimizer, int(settings.warmup * steps), steps)
    history: list[dict] = []
    best: list[Tensor] = []
    for epoch in (bar := tqdm(range(1, settings.epochs + 1), disable=not progress, leave=False)):
        losses = []
        for rows in epoch_batches(torch.arange(len(train.labels)), seed, epoch, settings):
            optimizer.zero_grad()
            loss = measure(train, rows)[0]
            loss.backward()
            losses.append(loss.item())
            check(losses[-1], epoch)
            nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimizer.step()
            schedule.step()
            written()
        row = dict(epoch=epoch, train_loss=sum(losses) / len(losses))
        row |= _held_out(measure, dev)
        check(row["dev_loss"], epoch)
        rank = RANKS.get(selection)
        row["kept"] = rank is None or all(rank(row) > rank(past) for past in history)
        if row["kept"]:
            best = [p.detach().clone() for p in parameters] if rank else []
            history = [past | dict(kept=False) for past in history]
        history.append(row)
        bar.set_postfix(dev_loss=f"{row['dev_loss']:.3f}")
    with torch.no_grad():
        for p, kept in zip(parameters, best or parameters, strict=True):
            p.copy_(kept)
            p.grad = None  # as large as the weights, and not needed to read them
    written()
    return history


@torch.no_grad()
def _held_out(measure, dev: Labelled) -> dict[str, float]:
    """Return dev loss and accuracy, averaged over texts."""
    parts = [rows for rows, _ in evaluation.batches(dev.tokens)]
    found = [measure(dev, rows) for rows in parts]
    shares = [len(rows) / len(dev.labels) for rows in parts]
    loss, right = (sum(s * v[i].item() for s, v in zip(shares, found, strict=True)) for i in (0, 1))
    return dict(dev_loss=loss, dev_accuracy=right)


def check_finite(
    jobs: Sequence[Job], losses: Sequence[float], epoch: int, settings: Settings
) -> None:
    """Raise TrainingDiverged, naming the prompts and rates, if a loss is not finite."""
    lost = [job for job, loss in zip(jobs, losses, strict=True) if not math.isfinite(loss)]
    if lost:
        rates = sorted({job.rate(settings) for job in lost})
        names = ", ".join(f"{job.prompt.name or len(job.prompt)}" for job in lost)
        raise TrainingDiverged(
            f"the loss of prompt {names} is not finite in epoch {epoch} (learning rate "
            f"{', '.join(f'{r:g}' for r in rates)}); lower the learning rate"
        )


class _Crowd:
    """Draws whose prompts have the same lengths: their texts and prompts share each pass.

    G draws, each with P prompts of S tokens in all; a batch takes `batch_size` texts of each draw.
    """

    def __init__(self, backbone, jobs, members, layout, verbalizer, settings, max_bytes) -> None:
        self.backbone, self.jobs, self.members = backbone, jobs, members
        self.layout, self.verbalizer, self.settings = layout, verbalizer, settings
        self.rows = max(1, PASS_TOKENS[backbone.device.type] // sum(layout.lengths))
        first = [jobs[m[0]] for m in members]  # one job stands for each draw
        self.seeds = [job.seed for job in first]
        self.train = _Side(backbone, [job.train for job in first], max_bytes)
        self.held_out = _Side(backbone, [job.dev for job in first], max_bytes // 4)

    def batches(self, epoch: int) -> list[Tensor]:
        """Return the epoch's batches: row numbers, a batch of every draw side by side."""
        orders = []
        for seed, rows in zip(self.seeds, self.train.rows, strict=True):
            orders.append(epoch_batches(rows, seed, epoch, self.settings))
        return [torch.cat(parts) for parts in zip(*orders, strict=True)]

    def step(self, batch: Tensor) -> list[tuple[int, float]]:
        """Add the batch's gradients; return (job, loss) pairs. Halves its pass if memory ends."""
        while True:
            try:
                means = self._means(batch, self.train, self._loss, backward=True)
                return [(j, loss) for j, (loss, _) in means]
            except torch.OutOfMemoryError:
                if self.rows == 1:
                    raise
            for j in (j for members in self.members for j in members):
                self.jobs[j].prompt.zero_grad()  # half-made gradients would count twice
            torch.cuda.empty_cache()
            self.rows //= 2
            print(f"out of memory: going on with {self.rows} texts a pass")

    @torch.no_grad()
    def dev(self) -> list[tuple[int, tuple[float, float]]]:
        """Return (job, (dev loss, dev accuracy)) pairs."""
        return self._means(torch.cat(self.held_out.rows), self.held_out, self._dev_measures)

    def _means(self, rows, side, measure, backward=False) -> list[tuple[int, tuple]]:
        """Average measures (M, B, P) over each draw's rows, a bounded number of rows a pass."""
        draw = side.draw[rows]
        count = draw.bincount(minlength=len(self.members))[draw]  # (N,) rows of the row's draw
        total = torch.zeros(len(self.members), len(self.layout.lengths), 2)  # (G, P, M)
        for part, share in zip(rows.split(self.rows), (1 / count).split(self.rows), strict=True):
            values = measure(part, side) * share[:, None].to(self.backbone.device)  # (M, B, P)
            if backward:
                values.sum().backward()
            found = values.detach().float().cpu().permute(1, 2, 0)  # (B, P, M)
            total[..., : found.shape[-1]].index_add_(0, side.draw[part], found)
        means = total.tolist()
        return [(j, means[g][p]) for g, m in enumerate(self.members) for p, j in enumerate(m)]

    def _hidden(self, rows: Tensor, side: "_Side") -> Tensor:
        """Return the label positions' hidden states of these rows, (B, P, d)."""
        prompts = [[self.jobs[j].prompt.vectors() for j in members] for members in self.members]
        vectors = torch.stack([torch.cat(own) for own in prompts])  # (G, S, d)
        own = vectors[side.draw[rows].to(vectors.device)]  # (B, S, d)
        whole = self.layout.position == "suffix"
        states = side.cache.batch(rows.tolist()) if whole else side.cache.tokens(rows.tolist())
        return self.backbone.prompt_states(states, own, self.layout)

    def _loss(self, rows: Tensor, side: "_Side", hidden: Tensor | None = None) -> Tensor:
        hidden = self._hidden(rows, side) if hidden is None else hidden
        name, labels = self.settings.loss, side.labels[rows]
        return label_loss(self.backbone, hidden, labels, self.verbalizer, name)[None]  # (1, B, P)

    def _dev_measures(self, rows: Tensor, side: "_Side") -> Tensor:
        hidden = self._hidden(rows, side)  # (B, P, d)
        ids = torch.tensor(self.verbalizer.ids, device=hidden.device)
        guess = self.backbone.logits(hidden, ids).argmax(-1)  # (B, P)
        right = (guess == side.labels[rows, None].to(guess.device)).float()
        return torch.cat([self._loss(rows, side, hidden), right[None]])  # (2, B, P)


class _Side:
    """The training (or dev) texts of several draws in one cache, with their labels."""

    def __init__(self, backbone: Backbone, draws: Sequence[Labelled], max_bytes: int) -> None:
        sizes = torch.tensor([len(d.labels) for d in draws])
        self.labels = torch.cat([d.labels for d in draws])  # (N,)
        self.draw = torch.repeat_interleave(torch.arange(len(draws)), sizes)  # (N,)
        self.rows = torch.arange(len(self.labels)).split(sizes.tolist())
        self.cache = TextCache(backbone, [d.tokens for d in draws], max_bytes)
