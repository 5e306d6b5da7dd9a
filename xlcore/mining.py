"""What a ticket is chosen from, mined once: the head is fitted, the weights move, a cache keeps it.

Stands between `mlm`, which trains, and `methods`; many runs then share one ticket, to the bit.
LTP section 3: mining happens once, before any task is seen.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from xlcore import backbones, devices, encoders, methods, mlm, tickets, training
from xlcore.backbones import weights_sha256
from xlcore.encoders import Encoder
from xlcore.errors import InputError, check_number, choose
from xlcore.mlm import Blocks, Mined, Settings
from xlcore.tickets import Ticket

# Strategies that need no more than the weights before and after.
STRATEGIES = tuple(
    name for name, f in tickets.STRATEGIES.items()
    if {"start", "end", "generator"}.issuperset(inspect.signature(f).parameters)
)  # fmt: skip


@dataclass(frozen=True)
class Mining(Mined):
    """What mining leaves; head: the loss history of head fitting, empty if there was a head.

    about["held_out_losses"]: the loss on held-out text before and after fitting the head, where
    that was needed, then before and after the weights moved.
    """

    head: list[dict]

    def ticket(self, strategy: str, active_ratio: float, seed: int = 0) -> Ticket:
        """Return the ticket of a strategy with this share of the weights in scope.

        seed: of `random`. Raises InputError as `check_ticket`.
        """
        check_ticket(strategy, active_ratio)
        total = sum(w.numel() for w in self.evidence["start"].values())
        return tickets.select(
            tickets.score(strategy, seed, **self.evidence), round(active_ratio * total)
        )

    def told(
        self, method: str, seed: int, strategy: str = "movement", active_ratio: float = 0.2,
        tuned: str = "body",
    ) -> dict:  # fmt: skip
        """Return what `EncoderStudy.train` must be told of a method.

        That is a ticket, for `random_ticket` one of this seed, or `tuned`, the weights that full
        tuning moves. Raises InputError for an unknown method, and as `check_ticket`.
        """
        kind = methods.METHODS[choose("method", method, methods.METHODS)]
        if kind.trains is not methods.ticket:
            return dict(scope=tuned) if kind.full else {}
        own = "random" if method == "random_ticket" else strategy
        found = self.ticket(own, active_ratio, seed)
        return dict(ticket=found, strategy=own, scope=self.about["scope"])


def check_ticket(strategy: str, active_ratio: float) -> None:
    """Raise InputError for a strategy that mining cannot serve, or a ratio not from 0 to 1."""
    choose("ticket strategy", strategy, STRATEGIES)
    check_number("active_ratio", active_ratio, float, "from 0 to 1", lambda x: 0 <= x <= 1)


def mined(
    encoder: Encoder, blocks: Blocks, settings: Settings, scope: str = "encoder",
    head_steps: int = mlm.HEAD.steps, cache: Path | None = None,
) -> Mining:  # fmt: skip
    """Fit the head where there is none, in `head_steps` steps, and return what `mlm.mine` finds.

    cache: a folder that keeps it, a file for these weights, text, settings and code; who comes
    second reads it and has the same encoder and evidence, to the bit. Two processes at once mine
    once. Raises InputError as `mlm.mine`, and for a file in the cache that was altered.
    """
    tickets.parameters(encoder.model, scope)  # refused here, not after the head was fitted
    if cache is None:
        return _mine(encoder, blocks, settings, scope, head_steps)
    key = _key(encoder, blocks, settings, scope, head_steps)
    path = Path(cache) / f"mined-{key[:24]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.is_file():
            return _read(path, encoder, scope)
        found = _mine(encoder, blocks, settings, scope, head_steps)
        _write(path, encoder, found)
        return found


def _mine(encoder: Encoder, blocks: Blocks, settings: Settings, scope: str, steps: int) -> Mining:
    head = []
    if encoder.mlm_head == "missing":
        rate, seed = mlm.HEAD.learning_rate, mlm.HEAD.seed
        fitting = replace(settings, steps=steps, learning_rate=rate, seed=seed)
        head = mlm.fit_head(encoder, blocks, fitting)
    found = mlm.mine(encoder, blocks, settings, scope)
    ends = [row["loss"] for row in [*head, *found.history] if row["part"] == "held_out"]
    about = found.about | dict(head_steps=steps if head else 0, held_out_losses=ends)
    return Mining(found.evidence, found.history, about, head)


def _key(encoder: Encoder, blocks: Blocks, settings: Settings, scope: str, steps: int) -> str:
    parts = {name: getattr(blocks, name) for name in ("ids", "free", "held_out", "ordinary")}
    modules = (mlm, encoders, backbones, training, devices, tickets)
    sources = [__file__, *(module.__file__ for module in modules)]
    code = [sha256(Path(source).read_bytes()).hexdigest() for source in sources]
    about = [
        encoder.mlm_head, asdict(settings), scope, steps, blocks.about, encoder.device.type, code,
        weights_sha256(encoder.model), _digest(parts),
    ]  # fmt: skip
    return sha256(json.dumps(about).encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    digest = sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(path: Path, encoder: Encoder, found: Mining) -> None:
    """Write the moved weights and a fitted head; the weights at the start are the encoder's."""
    fitted = encoders.head(encoder.model) if found.head else {}
    tensors = {f"head {name}": p.detach().cpu() for name, p in fitted.items()}
    tensors |= {f"end {name}": w for name, w in found.evidence["end"].items()}
    text = json.dumps(dict(history=found.history, about=found.about, head=found.head))
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, dict(mined=text, sha256=_digest(tensors, text)))
    partial.replace(path)


def _read(path: Path, encoder: Encoder, scope: str) -> Mining:
    """Put a fitted head on the encoder and return the evidence; InputError for an altered file."""
    try:
        with safe_open(path, "pt") as file:
            card = file.metadata()
        tensors = load_file(path)
        whole = _digest(tensors, card["mined"]) == card["sha256"]
    except (SafetensorError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}): remove it") from error
    if not whole:
        raise InputError(f"{path} was altered: remove it, and it is mined again")
    told = json.loads(card["mined"])
    with torch.no_grad():
        for name, p in encoders.head(encoder.model).items():
            p.copy_(tensors.get(f"head {name}", p))
    if told["head"]:
        encoder.model.config.mlm_head = "fitted"
    chosen = tickets.parameters(encoder.model, scope)
    start = {name: p.detach().to("cpu", copy=True) for name, p in chosen.items()}
    evidence = dict(start=start, end={name: tensors[f"end {name}"] for name in chosen})
    print(f"mined before: {path.name}")
    return Mining(evidence, **told)
