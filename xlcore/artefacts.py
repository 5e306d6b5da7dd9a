"""A trained prompt as one safetensors file with its model card, and its way to and from PEFT.

Stands after training and evaluation: what a study found is kept here and used again elsewhere.
SPT section 3: a prompt is n vectors, of use only with the very backbone it was trained on.
"""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from xlcore.errors import InputError, choose
from xlcore.prompts import POSITIONS

if TYPE_CHECKING:
    import pandas as pd

    from xlcore.backbones import Backbone
    from xlcore.study import Study
    from xlcore.training import Job, Trained

FORMAT = "1"  # raised when files of the old form can no longer be read
TENSOR, PEFT_TENSOR = "prompt", "prompt_embeddings"
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Card:
    """What must be known to use a prompt; `base` and `data` hold at least name and sha256."""

    base: dict  # sha256: `Backbone.sha256`, None where it is not known
    position: str
    words: dict[str, str] = field(default_factory=dict)  # label -> label word, in label order
    data: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # language -> metric -> %

    def __post_init__(self) -> None:
        choose("prompt position", self.position, POSITIONS)
        if not {"name", "sha256"} <= set(self.base):
            raise InputError(f"a card's base needs name and sha256; found {sorted(self.base)}")


@dataclass(frozen=True, eq=False)
class Artefact:
    """A prompt's vectors (n, d), at the embedding matrix's level, with its card."""

    vectors: Tensor
    card: Card

    def __str__(self) -> str:
        """Return the card as a short markdown page."""
        (n, width), card = self.vectors.shape, self.card
        page = [f"# Soft prompt: {n} vectors of width {width}, {card.position}"]
        about = {"Base model": card.base, "Data": card.data, "Label words": card.words}
        for title, facts in (about | {"Training": card.training}).items():
            page += [f"## {title}", _table(["", ""], facts.items()) if facts else "Not recorded."]
        metrics = list(dict.fromkeys(m for by in card.scores.values() for m in by))
        rows = [
            [code, *(f"{by[m]:.1f}" if m in by else None for m in metrics)]
            for code, by in card.scores.items()
        ]
        page += ["## Scores (%)", _table(["language", *metrics], rows) if rows else "Not recorded."]
        return "\n\n".join(page) + "\n"


def _table(header: list[str], rows: Iterable) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = [["unknown" if cell is None else str(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def from_study(
    study: "Study", backbone: "Backbone", job: "Job", trained: "Trained", rows: "pd.DataFrame",
    selection: str = "best_dev",
) -> Artefact:  # fmt: skip
    """Gather one trained prompt of a study, at its best dev epoch or its last, and its scores.

    rows: what `Study.evaluate` gave. Raises InputError for an unknown selection, or if the rows
    hold no score, or several, of this prompt for a language and metric.
    """
    best = choose("selection", selection, ("best_dev", "last")) == "best_dev"
    rate = job.learning_rate or study.settings.learning_rate
    key = dict(seed=job.seed, length=len(job.prompt), learning_rate=rate, selection=selection)
    mine = rows[(rows[list(key)] == list(key.values())).all(axis=1)]
    if mine.empty or mine.duplicated(["language", "metric"]).any():
        raise InputError(f"the rows hold {'no' if mine.empty else 'several'} scores of {key}")
    scores: dict[str, dict[str, float]] = {}
    for row in mine.itertuples():
        scores.setdefault(row.language, {})[row.metric] = float(row.value)
    epoch = trained.best_epoch if best else len(trained.history)
    about = dict(epoch=epoch, init=study.init, shots=study.draws[0].shots)
    training = asdict(study.settings) | key | about
    words = dict(zip(study.verbalizer.labels, study.verbalizer.words, strict=True))
    facts = study.facts(backbone)
    card = Card(facts["backbone"], job.prompt.position, words, facts["data"], training, scores)
    return Artefact(trained.best if best else trained.last, card)


def save(path: str | Path, vectors: Tensor, card: Card) -> None:
    """Write vectors (n, d) and card to one safetensors file, all at once or not at all.

    Raises InputError for vectors that are not (n, d) or not finite, and for a card that JSON
    cannot hold.
    """
    _write(Path(path), _pack(path, TENSOR, vectors, card))


def load(path: str | Path, backbone: "Backbone | None" = None) -> Artefact:
    """Read a prompt that `save` wrote, on the CPU; with a backbone, only if it was trained on it.

    Raises InputError if the file is not there, broken, without a card, of another format version,
    made for another base model (by hash) or width, or if its vectors are not finite.
    """
    artefact = Artefact(*_read(Path(path), TENSOR))
    if backbone is not None:
        check_base(path, artefact, backbone)
    return artefact


def describe(path: str | Path) -> str:
    """Return a saved prompt's card as a short markdown page; raises InputError as `load` does."""
    return str(load(path))


def check_base(where: object, artefact: Artefact, backbone: "Backbone") -> None:
    """Refuse a backbone that the prompt was not trained on; say so where no hash tells.

    Raises InputError with the hash expected and found, or the two widths.
    """
    base, width = artefact.card.base, artefact.vectors.shape[1]
    if base["sha256"] is None:
        print(
            f"prompt {where}: made for base model {base['name']!r}, hash unknown; "
            f"not checked that {backbone.name!r} has the same weights"
        )
    elif base["sha256"] != backbone.sha256:
        raise InputError(
            f"prompt {where} belongs to base model {base['name']!r} (expected sha256 "
            f"{base['sha256']}); {backbone.name!r} is another (found sha256 {backbone.sha256})"
        )
    if width != backbone.width:
        raise InputError(
            f"prompt {where} has vectors of width {width}; {backbone.name!r} needs {backbone.width}"
        )


def _pack(where: object, name: str, vectors: Tensor, card: Card) -> bytes:
    """Return a safetensors file's bytes with one tensor and the card."""
    vectors = _checked(where, vectors.detach().cpu().contiguous())
    try:
        text = json.dumps(asdict(card), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: JSON cannot hold this card: {error}") from error
    return to_bytes({name: vectors}, {"format": "pt", "xlcore_format": FORMAT, "xlcore_card": text})


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as temporary:
        made = Path(temporary) / path.name
        made.write_bytes(content)
        made.replace(path)


def _read(path: Path, name: str, need_card: bool = True) -> tuple[Tensor, Card | None]:
    """Return a file's one tensor, checked, and its card (None: it has none and needs none)."""
    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            card = _card(path, file.metadata() or {})
            if card is None and need_card:
                raise InputError(f"{path} has no xlcore card: it is no prompt that xlcore saved")
            if (names := sorted(file.keys())) != [name]:
                raise InputError(f"{path} holds the tensors {names}; expected only {name!r}")
            return _checked(path, file.get_tensor(name).clone()), card
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file, or is cut off: {error}") from error


def _card(where: object, metadata: dict[str, str]) -> Card | None:
    if "xlcore_card" not in metadata:
        return None
    if (version := metadata.get("xlcore_format")) != FORMAT:
        raise InputError(f"{where} has format version {version!r}; this xlcore reads {FORMAT!r}")
    try:
        return Card(**json.loads(metadata["xlcore_card"]))
    except (TypeError, ValueError) as error:
        raise InputError(f"the xlcore card of {where} cannot be read: {error}") from error


def _checked(where: object, vectors: Tensor) -> Tensor:
    if vectors.ndim != 2 or not vectors.is_floating_point() or not vectors.numel():
        found = f"{vectors.dtype} {tuple(vectors.shape)}".removeprefix("torch.")
        raise InputError(f"{where}: a prompt is floats of shape (n, d), not {found}")
    if bad := int((~vectors.isfinite()).sum()):
        raise InputError(f"{where}: {bad} of {vectors.numel()} prompt numbers are not finite")
    return vectors


def to_peft(folder: str | Path, artefact: Artefact, backbone: "Backbone") -> None:
    """Write a prefix prompt as a checkpoint that `peft.PeftModel.from_pretrained` loads.

    PEFT puts its vectors at `inputs_embeds`, so they are lifted by the family's scale. Its scores
    are ours for single and for right-padded texts; in left-padded batches PEFT counts the padding
    into positions (BLOOM excepted). Raises InputError for a suffix prompt or another base model.
    """
    folder, card = Path(folder), artefact.card
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
    content = _pack(folder, PEFT_TENSOR, artefact.vectors * scale, card)
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
    lifted, card = _read(path, PEFT_TENSOR, need_card=False)
    if len(lifted) != (n := config.get("num_virtual_tokens")):
        raise InputError(f"{path} holds {len(lifted)} vectors; its {PEFT_CONFIG} says {n}")
    vectors = lifted.float() / backbone.family.embedding_scale(backbone.model)
    base = dict(name=config.get("base_model_name_or_path") or "unknown", sha256=None)
    artefact = Artefact(vectors, card or Card(base, "prefix", training=dict(source="PEFT")))
    check_base(folder, artefact, backbone)
    return artefact
