"""Winning tickets: exactly k weights of a model, those that some score holds to matter most.

Stands between `mlm`, which makes start, end and gradients, and `masked_training`.
LTP section 3; strategies in the terms of Zhou et al. 2019, Deconstructing Lottery Tickets.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from xlcore.errors import InputError, choose

Tensors = Mapping[str, Tensor]  # parameter name -> tensor, in the model's order
EPS = 1e-8  # a weight that starts at zero has no infinite relative movement
CHUNK = 1 << 14  # scores looked at together, a multiple of 8: temporaries stay small
DIGIT = 8  # bits of the threshold that one pass finds, with a histogram of 256 counts
# Each takes tensors of one parameter: its weights before and after masked language modelling (w0
# and w1), or at w0 the mean gradient of the MLM loss, or the mean of its square.
STRATEGIES: dict[str, Callable[..., Tensor]] = {
    "movement": lambda start, end: (end - start).abs(),  # LTP's choice
    "relative_movement": lambda start, end: (end - start).abs() / (start.abs() + EPS),
    "magnitude_increase": lambda start, end: end.abs() - start.abs(),
    "large_final": lambda end: end.abs(),
    "large_initial": lambda start: start.abs(),
    "small_movement": lambda start, end: -(end - start).abs(),  # the opposite of LTP's choice
    "random": lambda start, generator: torch.rand(start.shape, generator=generator),
    "fisher": lambda squared_gradient: squared_gradient,  # diagonal of the Fisher information
    # To first order, the change of the loss were the weight zero (Lee et al. 2019).
    "snip": lambda start, gradient: (start * gradient).abs(),
}


def place(name: str) -> tuple[int, str] | None:
    """Return a parameter's layer (0: embeddings, then 1 to L) and kind; None for pooler and heads.

    Kinds: embeddings, attention, feed-forward, LayerNorm (gain and bias), bias (of linear maps).
    """
    block = re.search(r"(?:^|\.)layers?\.(\d+)\.", name)
    if block is None and "embed" not in name:
        return None
    layer = int(block[1]) + 1 if block else 0
    if "norm" in name.lower():
        return layer, "LayerNorm"
    if name.endswith(".bias"):
        return layer, "bias"
    inside = "attention" if re.search("attn|attention", name) else "feed-forward"
    return layer, inside if block else "embeddings"


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters in the model's order, each once, tied ones by their name in the body.

    XLM-R's word embeddings are its head's matrix too, and the head comes first in the model.
    """
    every = list(model.named_parameters(remove_duplicate=False))
    names = {p: name for name, p in reversed(every)}  # the first name of each
    names |= {p: name for name, p in reversed(every) if place(name)}
    return {name: p for name, p in every if names[p] == name}


def parameters(
    model: nn.Module, scope: str = "encoder", layer_norm: bool = True, bias: bool = True
) -> dict[str, nn.Parameter]:
    """Return the parameters a ticket may choose from, by name, in the model's order.

    scope: `encoder` (layers 1 to L), `all` (0 to L), `embeddings` (layer 0) or `layers a-b`.
    Pooler and heads never belong to it. Raises InputError for an unknown or empty scope.
    """
    inside = {name: (p, *at) for name, p in named(model).items() if (at := place(name))}
    last = max((layer for _, layer, _ in inside.values()), default=0)
    whole = {"encoder": range(1, last + 1), "all": range(last + 1), "embeddings": range(1)}
    if window := re.fullmatch(r"layers (\d+)-(\d+)", scope):
        layers = range(int(window[1]), int(window[2]) + 1)
    else:
        layers = whole[choose("ticket scope", scope, [*whole, f"layers 1-{last}"])]
    out = {"LayerNorm": not layer_norm, "bias": not bias}
    found = {n: p for n, (p, at, kind) in inside.items() if at in layers and not out.get(kind)}
    if not found or layers[-1] > last:
        raise InputError(f"scope {scope!r} does not fit: the model has layers 0 to {last}")
    return found


@torch.no_grad()
def score(strategy: str, seed: int = 0, **evidence: Tensors) -> dict[str, Tensor]:
    """Return each weight's score, by parameter name; the highest scores make the ticket.

    evidence: those of `start`, `end`, `gradient`, `squared_gradient` that the strategy reads, in
    fp32 or made so. seed: of `random`. Raises InputError for an unknown strategy and for evidence
    that is missing or about different parameters.
    """
    function = STRATEGIES[choose("ticket strategy", strategy, STRATEGIES)]
    needs = [n for n in inspect.signature(function).parameters if n != "generator"]
    names = [list(evidence.get(n, ())) for n in needs]
    if not all(names) or any(other != names[0] for other in names):
        given = {n: len(x) for n, x in evidence.items()}
        raise InputError(f"{strategy!r} needs {needs} of the same parameters in order, not {given}")
    extra = {"generator": torch.Generator().manual_seed(seed)} if strategy == "random" else {}
    scores = {}
    for name in names[0]:
        known = {n: evidence[n][name].detach() for n in needs}
        wide = {n: x.to(torch.promote_types(x.dtype, torch.float32)) for n, x in known.items()}
        scores[name] = function(**wide, **extra)
    return scores


def select(scores: Tensors, k: int, budget: str = "global") -> "Ticket":
    """Return the ticket of the k highest scores; of equal scores, those that come first.

    budget: `global` compares all weights, `per_layer` takes the same share of every tensor.
    Nothing is sorted: beside scores and ticket it holds under a megabyte, and a copy of a tensor
    that is not contiguous. Raises InputError for a k that is no whole number from 0 to all, an
    unknown budget, and scores that are not floats or NaN.
    """
    choose("ticket budget", budget, ("global", "per_layer"))
    sizes = [s.numel() for s in scores.values()]
    if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= sum(sizes):
        raise InputError(f"k {k!r} must be a whole number from 0 to {sum(sizes)}, all weights")
    for name, s in scores.items():
        if not s.is_floating_point() or any(part.isnan().any() for part in _parts(s, CHUNK)):
            raise InputError(f"scores of {name!r} must be floats and never NaN ({s.dtype})")
    if budget == "global":
        bits = _top(scores, k)
    else:
        shares = zip(scores.items(), _shares(sizes, k), strict=True)
        bits = {name: _top({name: s}, share)[name] for (name, s), share in shares}
    return Ticket({name: tuple(s.shape) for name, s in scores.items()}, bits)


def _shares(sizes: list[int], k: int) -> list[int]:
    """Split k in proportion to sizes; what rounding leaves goes to the largest fractions."""
    total = max(sum(sizes), 1)
    shares = [k * n // total for n in sizes]
    by_fraction = sorted(range(len(sizes)), key=lambda i: -(k * sizes[i] % total))
    for i in by_fraction[: k - sum(shares)]:
        shares[i] += 1
    return shares


def _top(scores: Tensors, k: int) -> dict[str, Tensor]:
    """Return the packed masks of the k highest scores of these tensors together."""
    dtype = reduce(torch.promote_types, (s.dtype for s in scores.values()), torch.float32)
    limit, room = _threshold(scores, k, dtype)
    bits = {name: torch.zeros(-(-s.numel() // 8), dtype=torch.uint8) for name, s in scores.items()}
    for name, s in scores.items():
        for part, out in zip(_parts(s, CHUNK), _parts(bits[name], CHUNK // 8), strict=True):
            keys = _keys(part, dtype)
            tied = keys == limit
            tied &= tied.cumsum(0) <= room
            room -= int(tied.sum())
            chosen = (tied | (keys > limit)).cpu().numpy()
            out.copy_(torch.from_numpy(np.packbits(chosen, bitorder="little")))
    return bits


def _threshold(scores: Tensors, k: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return the k-th highest key, and how many of the weights with that very key belong.

    A radix search: each pass counts, among the keys that begin with the digits known so far, how
    often each next digit occurs, which tells the next digit of the k-th highest.
    """
    bits, size, room = torch.finfo(dtype).bits, 1 << DIGIT, k
    if k == 0:
        return (1 << bits - 1) - 1, 0  # the key of a NaN, above every score's
    first = -size // 2  # the lowest key of those still in question: keys have a sign
    for shift in range(bits - DIGIT, -1, -DIGIT):
        counts = torch.zeros(size, dtype=torch.int64)
        for part in (part for s in scores.values() for part in _parts(s, CHUNK)):
            digit = (_keys(part, dtype) >> shift) - first
            counts += torch.bincount(digit[(digit >= 0) & (digit < size)], minlength=size).cpu()
        at_least = counts.flip(0).cumsum(0).flip(0)  # keys with this digit or a higher one
        digit = int((at_least >= room).sum()) - 1
        room -= int(at_least[digit] - counts[digit])
        first = (first + digit) << DIGIT if shift else first + digit
    return first, room


def _parts(x: Tensor, size: int) -> Iterator[Tensor]:
    flat = x.detach().flatten()
    return (flat[i : i + size] for i in range(0, max(len(flat), 1), size))


def _keys(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Return whole numbers ordered as the floats are; adding 0.0 makes -0.0 equal 0.0."""
    whole = torch.iinfo(torch.int64 if dtype == torch.float64 else torch.int32)
    bits = (part.to(dtype) + 0.0).view(getattr(torch, whole.dtype))
    return bits ^ ((bits >> whole.bits - 1) & whole.max)


@dataclass(frozen=True, eq=False)
class Ticket:
    """A mask over some parameters of one model, one bit a weight.

    shapes: of the parameters in scope, in the model's order. bits: of the same ones; flat weight
    i is bit i % 8, counted from the lowest, of byte i // 8. Raises InputError if they do not fit.
    """

    shapes: dict[str, tuple[int, ...]]
    bits: dict[str, Tensor]  # (ceil(weights / 8),) uint8 on the CPU

    def __post_init__(self) -> None:
        if list(self.shapes) != list(self.bits):
            raise InputError("shapes and bits of a ticket must name the same parameters in order")
        for name, shape in self.shapes.items():
            n, bits = math.prod(shape), self.bits[name]
            fits = bits.dtype == torch.uint8 and bits.shape == (-(-n // 8),)
            if not fits or bits.device.type != "cpu" or (n % 8 and bits[-1] >> n % 8):
                raise InputError(f"mask of {name!r}: not one bit for each of {n} weights {shape}")

    def __str__(self) -> str:
        share = 100 * self.k / max(self.total, 1)
        return f"{self.k:,} of {self.total:,} weights ({share:.2f} %)"

    @cached_property
    def active(self) -> dict[str, int]:
        """Number of active weights of each parameter."""
        return {name: _ones(bits) for name, bits in self.bits.items()}

    @property
    def k(self) -> int:
        return sum(self.active.values())

    @property
    def total(self) -> int:
        return sum(map(math.prod, self.shapes.values()))

    def mask(self, name: str) -> Tensor:
        """Return one parameter's mask in its own shape, True where active."""
        shape = self.shapes[choose("parameter", name, self.shapes)]
        flat = np.unpackbits(self.bits[name].numpy(), count=math.prod(shape), bitorder="little")
        return torch.from_numpy(flat.view(bool)).view(shape)

    def indices(self, name: str) -> Tensor:
        """Return the flat places of one parameter's active weights (active,), int32 if they fit."""
        at = self.mask(name).flatten().nonzero().flatten()
        return at.int() if math.prod(self.shapes[name]) < 1 << 31 else at

    def counts(self) -> pd.DataFrame:
        """Return active and total weights by layer and kind (LTP, Figure 3).

        Raises InputError for a parameter that lies in no layer.
        """
        if outside := [name for name in self.shapes if place(name) is None]:
            raise InputError(f"{outside} lie neither in the embeddings nor in a layer")
        rows = [(*place(n), self.active[n], math.prod(shape)) for n, shape in self.shapes.items()]
        table = pd.DataFrame(rows, columns=["layer", "kind", "active", "total"])
        return table.groupby(["layer", "kind"], as_index=False).sum()

    def overlap(self, other: "Ticket") -> dict[str, float]:
        """Return shared weights, what chance gives (expected), their ratio, and Jaccard's index.

        expected: k1 * k2 / total, the mean over random tickets of these sizes. Raises InputError
        for tickets over different parameters.
        """
        if self.shapes != other.shapes:
            raise InputError("only tickets over the same parameters can be compared")
        shared = sum(_ones(bits & other.bits[name]) for name, bits in self.bits.items())
        expected, union = self.k * other.k / max(self.total, 1), self.k + other.k - shared
        ratio, jaccard = (shared / x if x else math.nan for x in (expected, union))
        return dict(shared=shared, expected=expected, ratio=ratio, jaccard=jaccard)

    def of(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the model's parameters in scope; raises InputError if names or shapes differ."""
        have = named(model)
        for name, shape in self.shapes.items():
            if (found := tuple(have[choose("parameter", name, have)].shape)) != shape:
                raise InputError(f"the ticket's {name!r} has shape {shape}; this model's, {found}")
        return {name: have[name] for name in self.shapes}

    def check_values(self, values: Tensors) -> None:
        """Raise InputError unless there are `active` finite values for each parameter."""
        if self.shapes.keys() != values.keys():
            differ = sorted(self.shapes.keys() ^ values.keys())
            raise InputError(f"ticket and values are of different parameters: {differ}")
        for name, x in values.items():
            if x.shape != (self.active[name],) or not x.isfinite().all():
                raise InputError(f"{name!r} needs {self.active[name]} values, all of them finite")


def _ones(bits: Tensor) -> int:
    return int(np.bitwise_count(bits.numpy()).sum())
