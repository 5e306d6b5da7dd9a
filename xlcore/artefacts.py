"""Prompt and ticket as one safetensors file with its card, and a prompt's way to and from PEFT.

Stands after training and evaluation: what a study found is kept here and used again elsewhere.
SPT section 3, LTP section 3: both are of use only with the very model they were trained on.
"""

import contextlib
import json
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from xlcore import cloze, encoders, prompts
from xlcore.devices import DTYPES
from xlcore.errors import InputError, choose
from xlcore.masked_training import MaskedWeights
from xlcore.tickets import Tensors, Ticket
from xlcore.training import SELECTIONS, Job, Trained

if TYPE_CHECKING:
    import pandas as pd

    from xlcore.backbones import Backbone
    from xlcore.encoders import Encoder
    from xlcore.study import Study

FORMAT = "2"  # raised when files of the old form can no longer be read
TENSOR, PEFT_TENSOR = "prompt", "prompt_embeddings"
VALUES = "ticket.values."  # before parameter names
# Deflated safetensors files: of five mask bits one is 1, and most words' biases in a head are 0.
MASKS, HEAD = "ticket.masks", "head"
TRAINED = (  # what a study's card says of a prompt's training, beside the settings
    "seed", "length", "learning_rate", "selection", "init", "shots", "reparameterization", "hidden",
    "trained",
)  # fmt: skip
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Card:
    """What must be known to use an artefact; `base` and `data` hold at least name and sha256."""

    base: dict  # sha256: `Backbone.sha256`, None where it is not known; encoders: kind, mlm_head
    position: str | None  # None: there is no prompt
    words: dict[str, str] = field(default_factory=dict)  # label -> label word, in label order
    data: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # language -> metric -> %
    ticket: dict = field(default_factory=dict)  # strategy, scope, k, active_ratio, mining

    def __post_init__(self) -> None:
        if not {"name", "sha256"} <= set(self.base):
            raise InputError(f"a card's base needs name and sha256; found {sorted(self.base)}")
        encoder = self.base.get("kind") == "encoder"
        if self.position is not None or not encoder:
            positions = cloze.POSITIONS if encoder else prompts.POSITIONS
            choose("prompt position", self.position, positions)
        needs = {"strategy", "scope", "k", "active_ratio"}
        if self.ticket and (lacking := needs - set(self.ticket)):
            raise InputError(f"a ticket's card lacks {sorted(lacking)}")
        if self.ticket and not self.base["sha256"]:
            raise InputError("a ticket's base needs its sha256: weights are put among its own")


@dataclass(frozen=True, eq=False)
class Artefact:
    """A prompt's vectors (n, d), at the embedding matrix's level, or a ticket, or both; its card.

    values: of the active weights, by parameter; None: a mask alone. head: the MLM head by
    parameter, where the checkpoint has none. Raises InputError for parts that do not fit each
    other or the card, and for numbers that are not finite.
    """

    vectors: Tensor | None
    card: Card
    ticket: Ticket | None = None
    values: Tensors | None = None
    head: Tensors | None = None

    def __post_init__(self) -> None:
        card, ticket = self.card, self.ticket
        lent = card.base.get("mlm_head", "pretrained") != "pretrained"
        said = dict(vectors=card.position is not None, ticket=bool(card.ticket), head=lent)
        if wrong := [x for x, there in said.items() if (getattr(self, x) is not None) != there]:
            raise InputError(f"of content and card, only one has {', '.join(wrong)}")
        if self.vectors is None and ticket is None:
            raise InputError("an artefact needs a prompt or a ticket")
        if self.vectors is not None:
            _check_prompt(self.vectors)
        if ticket is not None and ticket.k != card.ticket["k"]:
            raise InputError(f"ticket of {ticket.k} weights; its card says {card.ticket['k']}")
        if self.values is not None:
            if ticket is None:
                raise InputError("values of active weights need the ticket that says which")
            ticket.check_values(self.values)
        if bad := [name for name, x in (self.head or {}).items() if not x.isfinite().all()]:
            raise InputError(f"numbers of the head's {bad} are not finite")

    def __str__(self) -> str:
        """Return the card as a short markdown page."""
        card, page = self.card, []
        if self.vectors is not None:
            n, width = self.vectors.shape
            page.append(f"# Soft prompt: {n} vectors of width {width}, {card.position}")
        if self.ticket is not None:
            page.append(f"# Winning ticket: {self.ticket}{'' if self.values else ', mask only'}")
        about = {"Base model": card.base, "Data": card.data, "Label words": card.words}
        about |= {"Ticket": card.ticket} if card.ticket else {}
        for title, facts in (about | {"Training": card.training}).items():
            page += [f"## {title}", _table(["", ""], facts.items()) if facts else "Not recorded."]
        metrics = list(dict.fromkeys(m for by in card.scores.values() for m in by))
        rows = [
            [code, *(f"{by[m]:.1f}" if m in by else None for m in metrics)]
            for code, by in card.scores.items()
        ]
        page += ["## Scores (%)", _table(["language", *metrics], rows) if rows else "Not recorded."]
        return "\n\n".join(page) + "\n"

    def save(self, path: str | Path, dtype: str = "float32") -> None:
        """Write all of it to one safetensors file, at once or not at all.

        Values of active weights are kept in `dtype`, all else to the bit. At 20 % active that is
        4.5 (float32) or 2.5 (bfloat16) bytes an active weight; the head that multilingual-e5-small
        needs adds 0.15, or 0.35 if it was fitted on the full vocabulary. Raises InputError for an
        unknown dtype, values beyond it, and a card that JSON cannot hold.
        """
        kept = DTYPES[choose("dtype of values", dtype, DTYPES)]
        ticket = self.ticket or Ticket({}, {})
        values = {name: x.detach().to("cpu", kept) for name, x in (self.values or {}).items()}
        if values:
            ticket.check_values(values)
        tensors = {} if self.vectors is None else {TENSOR: self.vectors}
        tensors |= {VALUES + name: x for name, x in values.items()}
        packed = {MASKS: ticket.bits, HEAD: self.head}
        tensors |= {name: _deflate(part) for name, part in packed.items() if part}
        _write(Path(path), _pack(path, tensors, self.card, ticket.shapes))


def _table(header: list[str], rows: Iterable) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = [["unknown" if cell is None else str(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def from_study(
    study: "Study", backbone: "Backbone", job: Job, trained: Trained, rows: "pd.DataFrame",
    selection: str = "best_dev",
) -> Artefact:  # fmt: skip
    """Gather one trained prompt of a study, at its best dev epoch or its last, and its scores.

    rows: what `Study.evaluate` gave. Raises InputError for an unknown selection, or if the rows
    hold no score, or several, of this prompt for a language and metric.
    """
    name = SELECTIONS[choose("selection", selection, SELECTIONS)]
    key = study.about(job) | dict(selection=selection)
    mine = rows[(rows[list(key)] == list(key.values())).all(axis=1)]
    if mine.empty or mine.duplicated(["language", "metric"]).any():
        raise InputError(f"the rows hold {'no' if mine.empty else 'several'} scores of {key}")
    scores: dict[str, dict[str, float]] = {}
    for row in mine.itertuples():
        scores.setdefault(row.language, {})[row.metric] = float(row.value)
    epoch = trained.best_epoch if name == "best" else len(trained.history)
    about = {fact: key[fact] for fact in TRAINED} | dict(epoch=epoch)
    training = asdict(study.settings) | about | dict(train_norm=_norm_learns(job.prompt))
    words = dict(zip(study.verbalizer.labels, study.verbalizer.words, strict=True))
    facts = study.facts(backbone)
    card = Card(facts["backbone"], job.prompt.position, words, facts["data"], training, scores)
    return Artefact(getattr(trained, name), card)


def _norm_learns(prompt: prompts.SoftPrompt) -> bool:
    """Whether the LayerNorm of the prompt's network, if there is one, was trained."""
    norms = [module for module in prompt.modules() if isinstance(module, torch.nn.LayerNorm)]
    return any(weight.requires_grad for norm in norms for weight in norm.parameters())


def from_encoder(
    encoder: "Encoder", vectors: Tensor | None = None, position: str | None = None,
    ticket: Ticket | None = None, values: Tensors | None = None, about: Mapping | None = None,
    **card: dict,
) -> Artefact:  # fmt: skip
    """Gather prompt, ticket or both, trained on an encoder, with the head if it had to be fitted.

    about: the ticket's strategy, its scope and how it was mined (`Mined.about`). card: what else
    the card is to say. Raises InputError if the weights are not those loaded, as within the block
    of `MaskedWeights`, and for parts that do not fit.
    """
    _check_untouched(encoder)
    mark, facts = encoder.mlm_head, {}
    base = dict(name=encoder.name, sha256=encoder.sha256, kind="encoder", mlm_head=mark)
    if ticket is not None:
        ticket.of(encoder.model)
        share = ticket.k / max(ticket.total, 1)
        facts = dict(about or {}) | dict(k=ticket.k, total=ticket.total, active_ratio=share)
    whole = Card(base, position, ticket=facts, **card)
    head = None if mark == "pretrained" else _head_of(encoder)
    return Artefact(vectors, whole, ticket, values, head)


def save(path: str | Path, vectors: Tensor, card: Card) -> None:
    """Write a prompt's vectors (n, d) and card; see `Artefact.save`, also for what is raised."""
    Artefact(vectors, card).save(path)


def load(path: str | Path, backbone: "Backbone | Encoder | None" = None) -> Artefact:
    """Read what was saved, on the CPU; with a backbone, only if it was trained on it.

    Raises InputError if the file is not there, broken, without a card, of another format version,
    made for another base model (by hash) or shapes, or if its numbers are not finite.
    """
    tensors, card, shapes = _read(Path(path))
    masks, head = (_inflate(path, name, tensors.pop(name, None)) for name in (MASKS, HEAD))
    own = [name for name in tensors if name.startswith(VALUES)]
    values = {name.removeprefix(VALUES): tensors.pop(name) for name in own}
    vectors = tensors.pop(TENSOR, None)
    if tensors:
        expected = f"expected only {TENSOR!r} and those of a ticket and a head"
        raise InputError(f"{path} holds the tensors {sorted(tensors)}; {expected}")
    try:
        bits = {name: masks.pop(name) for name in shapes if name in masks} | masks
        ticket = Ticket(shapes, bits) if shapes or masks else None
        artefact = Artefact(vectors, card, ticket, values or None, head or None)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if backbone is not None:
        check_base(path, artefact, backbone)
    return artefact


def describe(path: str | Path) -> str:
    """Return a saved artefact's card as a short markdown page; raises InputError as `load` does."""
    return str(load(path))


@contextlib.contextmanager
def apply(artefact: Artefact, encoder: "Encoder") -> Iterator[Tensor | None]:
    """Put head and ticket on an encoder, frozen, and give the prompt's vectors on its device.

    Leaving the block gives the encoder back to the bit. Raises InputError for another base model,
    for weights that are not those loaded, as under another ticket, and for a mask without values.
    """
    if artefact.ticket is not None and artefact.values is None:
        raise InputError("this ticket has no values, only a mask: there is nothing to put on")
    check_base("to apply", artefact, encoder)
    _check_untouched(encoder)
    ticket, values = artefact.ticket or Ticket({}, {}), artefact.values or {}
    with contextlib.ExitStack() as leaving:
        if artefact.head is not None:
            leaving.callback(_put_head, encoder, _head_of(encoder), encoder.mlm_head)
            _put_head(encoder, artefact.head, artefact.card.base["mlm_head"])
        leaving.enter_context(MaskedWeights(encoder.model, ticket, values))
        encoder.model.requires_grad_(False)
        yield None if artefact.vectors is None else artefact.vectors.to(encoder.device)


def _put_head(encoder: "Encoder", head: Tensors, mark: str) -> None:
    encoder.model.load_state_dict(head, strict=False)
    encoder.model.config.mlm_head = mark


def _head_of(encoder: "Encoder") -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in encoders.head(encoder.model).items()}


def check_base(where: object, artefact: Artefact, backbone: "Backbone | Encoder") -> None:
    """Refuse a backbone that this was not trained on; say so where no hash tells.

    Raises InputError with the hash expected and found, or the two widths or shapes.
    """
    base = artefact.card.base
    if base["sha256"] is None:
        print(
            f"artefact {where}: made for base model {base['name']!r}, hash unknown; "
            f"not checked that {backbone.name!r} has the same weights"
        )
    elif base["sha256"] != backbone.sha256:
        raise InputError(
            f"artefact {where} belongs to base model {base['name']!r} (expected sha256 "
            f"{base['sha256']}); {backbone.name!r} is another (found sha256 {backbone.sha256})"
        )
    name, needs = backbone.name, backbone.width
    if artefact.vectors is not None and (width := artefact.vectors.shape[1]) != needs:
        raise InputError(f"artefact {where} has vectors of width {width}; {name!r} needs {needs}")
    if artefact.ticket is not None:
        artefact.ticket.of(backbone.model)
    if artefact.head is not None:
        heads = (encoders.head(backbone.model), artefact.head)
        own, given = ({n: x.shape for n, x in head.items()} for head in heads)
        if own != given:
            raise InputError(f"artefact {where} has another head than {name!r}: {given} {own}")


def _check_untouched(encoder: "Encoder") -> None:
    if not encoder.untouched():
        raise InputError(
            f"the weights of {encoder.name!r} are not those it was loaded with: take off what was "
            "put on it or trained into it first"
        )


def _pack(where: object, tensors: Tensors, card: Card, shapes: Mapping | None = None) -> bytes:
    """Return a safetensors file's bytes with tensors, the card, and the shapes of a ticket."""
    try:
        text = json.dumps(asdict(card), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: JSON cannot hold this card: {error}") from error
    metadata = {"format": "pt", "xlcore_format": FORMAT, "xlcore_card": text}
    metadata |= {"xlcore_shapes": json.dumps(shapes)} if shapes else {}
    return to_bytes({n: x.detach().cpu().contiguous() for n, x in tensors.items()}, metadata)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as temporary:
        made = Path(temporary) / path.name
        made.write_bytes(content)
        made.replace(path)


def _read(path: Path, need_card: bool = True) -> tuple[dict[str, Tensor], Card | None, dict]:
    """Return a file's tensors, its card (None: has none, needs none), and a ticket's shapes."""
    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            card, shapes = _card(path, metadata)
            if card is None and need_card:
                raise InputError(f"{path} has no xlcore card: xlcore did not save it")
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, card, shapes
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file, or is cut off: {error}") from error


def _deflate(tensors: Tensors) -> Tensor:
    plain = to_bytes({name: x.detach().cpu().contiguous() for name, x in tensors.items()})
    return torch.frombuffer(bytearray(zlib.compress(plain)), dtype=torch.uint8)


def _inflate(path: Path, name: str, packed: Tensor | None) -> dict[str, Tensor]:
    """Return the tensors in a deflated safetensors file, none for None; InputError if broken."""
    try:
        return {} if packed is None else from_bytes(zlib.decompress(packed.numpy()))
    except (SafetensorError, TypeError, ValueError, zlib.error) as error:
        raise InputError(f"{name!r} in {path} cannot be unpacked: {error}") from error


def _card(where: object, metadata: dict[str, str]) -> tuple[Card | None, dict]:
    if "xlcore_card" not in metadata:
        return None, {}
    if (version := metadata.get("xlcore_format")) != FORMAT:
        raise InputError(f"{where} has format version {version!r}; this xlcore reads {FORMAT!r}")
    try:
        shapes = json.loads(metadata.get("xlcore_shapes", "{}"))
        tuples = {name: tuple(map(int, shape)) for name, shape in shapes.items()}
        return Card(**json.loads(metadata["xlcore_card"])), tuples
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"the xlcore card of {where} cannot be read: {error}") from error


def _check_prompt(vectors: Tensor) -> Tensor:
    if vectors.ndim != 2 or not vectors.is_floating_point() or not vectors.numel():
        found = f"{vectors.dtype} {tuple(vectors.shape)}".removeprefix("torch.")
        raise InputError(f"a prompt is floats of shape (n, d), not {found}")
    if bad := int((~vectors.isfinite()).sum()):
        raise InputError(f"{bad} of {vectors.numel()} prompt numbers are not finite")
    return vectors


def to_peft(folder: str | Path, artefact: Artefact, backbone: "Backbone") -> None:
    """Write a prefix prompt as a checkpoint that `peft.PeftModel.from_pretrained` loads.

    PEFT puts its vectors at `inputs_embeds`, so they are lifted by the family's scale. Its scores
    are ours for single and for right-padded texts; in left-padded batches PEFT counts the padding
    into positions (BLOOM excepted). Raises InputError for a suffix prompt, an
    encoder's prompt, or another base model.
    """
    folder, card = Path(folder), artefact.card
    if card.base.get("kind") == "encoder":
        raise InputError("what was trained on an encoder cannot become a PEFT checkpoint here")
    if card.position != "prefix":
        raise InputError(
            f"a {card.position} prompt cannot become a PEFT checkpoint: PEFT puts prompts before "
            "the text; only position 'prefix' can (train one with position='prefix')"
        )
    check_base(folder, artefact, backbone)
    (n, width), config = artefact.vectors.shape, backbone.model.config
    settings = dict(
        peft_type="PROMPT_TUNING", task_type="CAUSAL_LM", inference_mode=True,
        base_model_name_or_path=backbone.name, num_virtual_tokens=n, token_dim=width,
        num_transformer_submodules=1, num_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads, prompt_tuning_init="RANDOM",
    )  # fmt: skip
    scale = backbone.family.embedding_scale(backbone.model)
    content = _pack(folder, {PEFT_TENSOR: artefact.vectors * scale}, card)
    # Without its config, an export that was interrupted is no checkpoint instead of a mixed one.
    (folder / PEFT_CONFIG).unlink(missing_ok=True)
    _write(folder / PEFT_WEIGHTS, content)
    _write(folder / PEFT_CONFIG, json.dumps(settings, indent=2).encode())


def from_peft(folder: str | Path, backbone: "Backbone") -> Artefact:
    """Read a PEFT prompt-tuning checkpoint as a prefix prompt of this backbone.

    PEFT records no hash of its base model: unless `to_peft` wrote the folder, the card says so and
    one line is printed. Raises InputError if the folder is no such checkpoint, is for another
    kind of prompt or task, holds more than a prompt, or does not fit the backbone.
    """
    path = Path(folder) / PEFT_WEIGHTS
    try:
        config = json.loads((Path(folder) / PEFT_CONFIG).read_text(encoding="utf8"))
        kind, task = config["peft_type"], config["task_type"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder} has no readable PEFT {PEFT_CONFIG}: {error!r}") from error
    choose("peft_type", kind, ["PROMPT_TUNING"])
    choose("PEFT task_type", task, ["CAUSAL_LM"])
    tensors, card, _ = _read(path, need_card=False)
    if list(tensors) != [PEFT_TENSOR]:
        raise InputError(
            f"{path} holds the tensors {sorted(tensors)}; expected only {PEFT_TENSOR!r}"
        )
    lifted = _check_prompt(tensors[PEFT_TENSOR])
    if len(lifted) != (n := config.get("num_virtual_tokens")):
        raise InputError(f"{path} holds {len(lifted)} vectors; its {PEFT_CONFIG} says {n}")
    vectors = lifted.float() / backbone.family.embedding_scale(backbone.model)
    base = dict(name=config.get("base_model_name_or_path") or "unknown", sha256=None)
    artefact = Artefact(vectors, card or Card(base, "prefix", training=dict(source="PEFT")))
    check_base(folder, artefact, backbone)
    return artefact
