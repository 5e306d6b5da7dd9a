"""Pairs of sentences: XNLI, AmericasNLI, few-shot splits and Pocket NLI, on invented pairs."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlcore import data, tasks
from xlcore.data import Draw, draw, load
from xlcore.errors import InputError
from xlcore.languages import resolve

NLI = tasks.TASKS["nli"]
LABELS = NLI.labels
REAL = {name: NLI.benchmarks[name] for name in ("xnli", "americasnli", "xnli_fewshot")}
SHOTS = (1, 2, 4)
SIZES = {"americasnli": {"dev": 15, "test": 9}, "xnli": {"dev": 12, "test": 12}}
MNLI = {"train": 24, "dev": 6}
FIRST = {"dev": 10**6, "test": 2 * 10**6}  # no split shares a number with another
LANGUAGES = {"xnli": ("en", "sw", "fr"), "americasnli": ("aym", "quy", "oto")}
RAGGED = {"oto/dev": 11, "oto/test": 8}


def toy(**hub: str):
    """The task with toy sizes; `hub` are local folders in the Hub's layout."""
    rows = {"train": 30, **SIZES["xnli"]}
    xnli = replace(REAL["xnli"], rows=rows, hub_id=hub.get("xnli", "nobody/xnli"))
    americas = replace(REAL["americasnli"], rows=SIZES["americasnli"], ragged=RAGGED,
                       hub_id=hub.get("americasnli", "nobody/americas"))  # fmt: skip
    few = replace(REAL["xnli_fewshot"], rows={"train": 21, "dev": 21}, shots=SHOTS)
    mnli = replace(NLI.benchmarks["mnli_english"], rows=MNLI)
    return replace(NLI, benchmark=xnli, further=(americas, few, mnli))


TOY = toy()


def pairs(stem: str, number: int) -> list[tuple[str, str, str]]:
    """Invented pairs; labels go round, starting elsewhere for every number of pairs."""
    return [(f"{stem} p{i}", f"{stem} h{i}", LABELS[(i + number) % 3]) for i in range(number)]


def write(path: Path, rows: list[tuple]) -> list[tuple]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(row) for row in [("premise", "hypothesis", "label"), *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return rows


def read(path: Path) -> list[tuple]:
    return [tuple(x.split("\t")) for x in path.read_text("utf-8").splitlines()[1:]]


def pin(root: Path) -> None:
    for name in TOY.benchmarks:
        data.write_checksums(root / name, root / "xlcore" / "checksums" / f"{name}.sha256")


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A directory of all four corpora, pinned in a package folder of its own."""
    (tmp_path / "xlcore" / "checksums").mkdir(parents=True)
    for name, sizes in SIZES.items():
        for code in LANGUAGES[name]:
            for split, size in sizes.items():
                size = RAGGED.get(f"{code}/{split}", size)
                write(tmp_path / name / code / f"{split}.tsv", pairs(f"{code} {split}", size))
    for code in LANGUAGES["xnli"]:
        for split in ("train", "dev"):
            for k in SHOTS:
                path = tmp_path / "xnli_fewshot" / code / f"{split}-{k}.tsv"
                write(path, pairs(f"{code} few {split} {k}", 3 * k))
    for split, size in MNLI.items():
        write(tmp_path / "mnli_english" / f"{split}.tsv", pairs(f"mnli {split}", size))
    pin(tmp_path)
    monkeypatch.setattr(data, "PACKAGE", tmp_path / "xlcore")
    monkeypatch.delenv("XLCORE_DATA", raising=False)
    return tmp_path


def shown(rows: pd.DataFrame) -> list[tuple]:
    return list(rows[["premise", "hypothesis", "label"]].itertuples(index=False, name=None))


def change(path: Path, row: int, **cells: str) -> None:
    """Change cells of one row of a file and pin the file anew."""
    rows = [dict(zip(("premise", "hypothesis", "label"), x, strict=True)) for x in read(path)]
    rows[row] |= cells
    write(path, [tuple(x.values()) for x in rows])
    pin(next(x for x in path.parents if (x / "xlcore").is_dir()))


# The task


def test_label_words_are_those_of_the_protocol():
    expected = {"entailment": "right", "neutral": "maybe", "contradiction": "wrong"}
    assert (LABELS, NLI.words) == (tuple(expected), {"default": expected})


@pytest.mark.parametrize(
    ("query", "corpus", "code"),
    [("sw", "xnli", "sw"), ("swh", "xnli", "sw"), ("zho_Hans", "xnli", "zh"),
     ("aym", "americasnli", "aym"), ("ayr", "americasnli", "aym"), ("nah", "americasnli", "nah"),
     ("oto", "americasnli", "oto"), ("Guarani", "americasnli", "gn"), ("sw", "americasnli", None),
     ("en", "mnli_english", "en"), ("fr", "mnli_english", None)],
)  # fmt: skip
def test_any_code_of_a_language_finds_the_corpus_own(query, corpus, code):
    assert NLI.benchmarks[corpus].code(resolve(query)) == code


# Zero-shot and in-language


def test_zero_shot_trains_on_the_english_few_shot_splits(root):
    loaded = load(TOY, ["sw", "fr"], root)
    splits = {key: set(rows.split) for key, rows in loaded.frame.groupby("language")}
    assert splits == {"eng": {"train", "dev"}, "fra": {"test"}, "swh": {"test"}}
    assert shown(loaded.examples("en", "train"))[:3] == pairs("en few train 1", 3)


def test_frame_has_both_texts(root):
    columns = ["language", "split", "index_id", "label", "premise", "hypothesis"]
    assert load(TOY, ["sw"], root).frame.columns.tolist() == columns


def test_a_test_pair_is_known_by_its_row(root):
    test = load(TOY, ["sw"], root).examples("sw", "test")
    assert test.index_id.tolist() == [FIRST["test"] + i for i in range(12)]
    assert shown(test) == read(root / "xnli" / "sw" / "test.tsv")


def test_in_language_xnli_trains_on_the_own_few_shot_split(root):
    loaded = load(TOY, ["sw"], root, train_languages=["sw"])
    assert shown(loaded.examples("sw", "dev"))[:3] == pairs("sw few dev 1", 3)


def test_zero_shot_americasnli_trains_on_the_english_few_shot_splits(root):
    loaded = load(TOY, "all", root, data="americasnli")
    assert [x.iso639_3 for x in loaded.languages] == ["ayr", "oto", "quy"]
    assert shown(loaded.examples("en", "train"))[:3] == pairs("en few train 1", 3)


def test_in_language_americasnli_trains_on_its_own_dev(root):
    loaded = load(TOY, ["quy"], root, data="americasnli", train_languages=["quy"])
    assert set(loaded.frame.split) == {"dev", "test"}
    assert shown(loaded.pools("quy")["train"]) == read(root / "americasnli/quy/dev.tsv")


def test_a_sample_of_multinli_can_replace_the_few_shot_splits(root):
    loaded = load(TOY, ["sw"], root, train_data="mnli_english")
    assert shown(loaded.examples("en", "train")) == read(root / "mnli_english" / "train.tsv")


@pytest.mark.parametrize(
    ("how", "caption"),
    [
        (dict(), "XNLI, trained on XNLI few-shot splits (directory), 12 test pairs per language"),
        (
            dict(data="americasnli", train_languages=["quy"]),
            "AmericasNLI (directory), 8 to 9 test pairs per language",
        ),
    ],
)
def test_caption_names_what_was_trained_on(root, how, caption):
    assert load(TOY, "all", root, **how).describe() == caption


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(data="xnly"), "'xnly'; did you mean xnli"),
        (dict(data="xnli_fewshot"), "'xnli_fewshot'.* allowed: xnli, americasnli$"),
        (dict(train_data="mnli"), "train_data 'mnli'; did you mean mnli_english"),
        (dict(train_languages=["jpn"]), "language of XNLI 'Japanese'.* allowed: en, fr, sw$"),
        (dict(train_languages=["swahilli"]), r"'swahilli'; did you mean Swahili \(swh\)"),
        (dict(languages=["aym"]), "language of XNLI 'Aymara'"),
        (dict(data="americasnli", languages=["sw"]), "language of AmericasNLI 'Swahili'"),
        (
            dict(data="americasnli", languages=["quy"], train_languages=["en", "quy"]),
            "language of AmericasNLI 'English'.* allowed: aym, oto, quy$",
        ),
        (dict(train_data="mnli_english", train_languages=["fr"]), "MultiNLI 'French'.*: en$"),
    ],
)
def test_wrong_choice_is_refused(root, how, message):
    with pytest.raises(InputError, match=message):
        load(TOY, **{"languages": ["sw"], "source": root, **how})


@pytest.mark.parametrize(
    ("task", "source", "own"),
    [("topics", "embedded", "pocket_topics"), ("nli", "embedded", "pocket_nli"),
     ("nli", "hub", "xnli")],
)  # fmt: skip
def test_source_that_trains_on_its_own_takes_no_other_training_data(task, source, own):
    with pytest.raises(InputError, match=f"train_data 'mnli_english'.* allowed: {own}$"):
        load(task, ["en"], source, train_data="mnli_english")


# Files


def test_missing_few_shot_file_names_place_layout_and_hash(root):
    path = root / "xnli_fewshot" / "en" / "dev-4.tsv"
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    path.unlink()
    with pytest.raises(InputError) as error:
        load(TOY, ["sw"], root)
    layout = "<folder>/xnli_fewshot/<xnli code>/{train,dev}-<K>.tsv"
    for part in ("en/dev-4.tsv is missing", str(path), expected, layout):
        assert part in str(error.value)


def test_altered_few_shot_file_names_both_hashes(root):
    path = root / "xnli_fewshot" / "en" / "train-2.tsv"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    write(path, pairs("altered", 6))
    after = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=f"{path}.*expected sha256 {before}, found {after}"):
        load(TOY, ["sw"], root)


def test_wrong_row_count_of_a_ragged_file_is_refused(root):
    write(root / "americasnli" / "oto" / "test.tsv", pairs("oto", 9))
    pin(root)
    with pytest.raises(InputError, match="AmericasNLI Otomi test has 9 rows, expected 8"):
        load(TOY, ["oto"], root, data="americasnli")


def test_pair_that_lacks_one_text_is_kept_and_counted(root, capsys):
    change(root / "xnli" / "sw" / "test.tsv", 4, premise="")
    loaded = load(TOY, ["sw"], root)
    assert loaded.examples("sw", "test").premise[4] == ""
    assert "test 12 (1 with an empty text)" in capsys.readouterr().out


def test_pair_without_any_text_is_refused(root):
    change(root / "xnli" / "sw" / "test.tsv", 4, premise=" ", hypothesis="")
    with pytest.raises(InputError, match=f"empty text: swh test, index_id {FIRST['test'] + 4}"):
        load(TOY, ["sw"], root)


def test_pairs_must_be_parallel(root):
    path = root / "xnli" / "sw" / "test.tsv"
    change(path, 0, label=read(path)[1][2])
    with pytest.raises(InputError, match="split 'test' is not parallel"):
        load(TOY, ["sw", "fr"], root)


def test_ragged_pairs_share_no_number_with_another_language(root):
    frame = load(TOY, "all", root, data="americasnli").frame
    own = set(frame.index_id[frame.language == "oto"])
    assert not own & set(frame.index_id[frame.language != "oto"])


def test_checksums_of_a_corpus_without_language_folders(root):
    sums = data._sums(TOY.benchmarks["mnli_english"], None)
    assert set(sums) == {"train.tsv", "dev.tsv"}


# No test pair in training


@pytest.mark.parametrize(
    ("trained", "tested", "how"),
    [
        ("xnli_fewshot/en/train-2.tsv", "xnli/en/test.tsv", dict()),
        ("xnli_fewshot/en/dev-4.tsv", "xnli/en/test.tsv", dict()),
        ("xnli_fewshot/en/train-2.tsv", "xnli/en/test.tsv", dict(data="americasnli")),
        ("mnli_english/dev.tsv", "xnli/en/test.tsv", dict(train_data="mnli_english")),
        ("xnli_fewshot/sw/dev-1.tsv", "xnli/sw/test.tsv", dict(train_languages=["sw"])),
        (
            "americasnli/quy/dev.tsv",
            "americasnli/quy/test.tsv",
            dict(data="americasnli", train_languages=["quy"]),
        ),
    ],
)
def test_a_test_pair_in_training_is_refused_whatever_language_is_tested(root, trained, tested, how):
    premise, hypothesis, _ = read(root / tested)[5]
    change(root / trained, 1, premise=f" {premise} ", hypothesis=hypothesis.replace(" ", "  "))
    languages = ["aym"] if "data" in how else ["fr"]
    with pytest.raises(InputError, match=r"in train or dev, but a test example: \w+ (train|dev)"):
        load(TOY, languages, root, **how)


# The draw


@pytest.mark.parametrize("shots", SHOTS)
def test_published_split_is_the_file_of_that_k(root, shots):
    loaded = load(TOY, ["sw"], root)
    for split, rows in zip(data.FITTING, draw(loaded, shots, 3).texts(loaded), strict=True):
        assert shown(rows) == read(root / "xnli_fewshot" / "en" / f"{split}-{shots}.tsv")


def test_published_split_is_the_same_for_every_seed_and_language(root):
    loaded = load(TOY, ["sw"], root, train_languages=["en", "sw"])
    ids = {(d.train_ids, d.dev_ids) for d in
           [draw(loaded, 2, seed, x) for seed in (1, 2) for x in ("en", "sw")]}  # fmt: skip
    assert len(ids) == 1


def test_k_without_a_published_split_is_refused_with_the_allowed(root):
    with pytest.raises(InputError, match=r"K of XNLI few-shot splits '3'.*allowed: 1, 2, 4$"):
        draw(load(TOY, ["sw"], root), 3, 0)


@pytest.mark.parametrize("how", [dict(), dict(data="americasnli", train_languages=["aym"])])
def test_all_is_no_count_where_nothing_else_would_be_left(root, how):
    loaded = load(TOY, "all", root, **how)
    with pytest.raises(InputError, match=r"shots is 'all'; allowed are whole numbers from 1$"):
        draw(loaded, "all", 0, loaded.languages[0])


cheap = settings(max_examples=25)
seeds = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def in_language(tmp_path_factory) -> data.TaskData:
    """AmericasNLI to train on in three languages; only Otomi's rows are its own."""
    rows = [
        dict(language=x, split=split, index_id=start + i, label=label, premise=p, hypothesis=h)
        for x, split, start, size in [
            ("ayr", "dev", FIRST["dev"], 15), ("quy", "dev", FIRST["dev"], 15),
            ("oto", "dev", -9 * 10**6, 11), ("oto", "test", -8 * 10**6, 8),
        ]
        for i, (p, h, label) in enumerate(pairs(f"{x} {split}", size))
    ]  # fmt: skip
    fit, known = TOY.benchmarks["americasnli"], (resolve("oto"),)
    return data.TaskData(TOY, "toy", "Toy", "files", "", known, pd.DataFrame(rows), fit=fit)


@cheap
@given(seed=seeds, shots=st.integers(1, 4))
def test_in_language_draw_is_balanced(in_language, seed, shots):
    train, _ = draw(in_language, shots, seed, "aym").texts(in_language, "aym")
    assert Counter(train.label) == dict.fromkeys(LABELS, shots)


@cheap
@given(seed=seeds, shots=st.integers(1, 2))
def test_in_language_selection_is_the_rest_of_dev(in_language, seed, shots):
    drawn = draw(in_language, shots, seed, "oto")
    whole = sorted(in_language.examples("oto", "dev").index_id)
    assert sorted(drawn.train_ids + drawn.dev_ids) == whole


@cheap
@given(seed=seeds, shots=st.integers(1, 4))
def test_in_language_draw_is_shared_by_the_parallel_languages(in_language, seed, shots):
    assert draw(in_language, shots, seed, "aym") == draw(in_language, shots, seed, "quy")


@cheap
@given(seed=seeds)
def test_in_language_training_sets_are_nested(in_language, seed):
    ids = [set(draw(in_language, k, seed, "quy").train_ids) for k in (1, 2, 4)]
    assert ids[0] <= ids[1] <= ids[2]


def test_in_language_draw_that_leaves_a_class_nothing_is_refused(in_language):
    # Otomi's 11 pairs are 4, 4 and 3 of a class.
    scarce = next(x for x, n in Counter(p[2] for p in pairs("", 11)).items() if n == 3)
    message = f"shots=3 needs 3 train and at least 1 dev .* '{scarce}' has 3 .* here is 2$"
    with pytest.raises(InputError, match=message):
        draw(in_language, 3, 0, "oto")


def test_draw_of_a_parallel_language_is_refused_for_a_ragged_one(in_language):
    with pytest.raises(InputError, match="made on other data"):
        draw(in_language, 2, 0, "quy").texts(in_language, "oto")


def test_draw_from_the_multinli_sample_differs_between_seeds(root):
    loaded = load(TOY, ["sw"], root, train_data="mnli_english")
    drawn = [draw(loaded, 3, seed) for seed in range(20)]
    assert {len(x.dev_ids) for x in drawn} == {3}  # ceil(3 / 4) of each class
    assert len({x.train_ids for x in drawn}) > 15


# The Hub


def publish(folder: Path, parts: dict[str, dict[str, list[tuple]]]) -> str:
    """Write {code: {split: pairs}} as the Hub keeps them: Parquet, labels as numbers of classes."""
    from datasets import ClassLabel, Dataset, Features, Value

    text = Value("string")
    labels = ClassLabel(names=["entailment", "neutral", "contradiction"])
    features = Features(premise=text, hypothesis=text, label=labels)
    configs = []
    for code, splits in parts.items():
        files = []
        for split, rows in splits.items():
            path = folder / code / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            table = [dict(zip(features, row, strict=True)) for row in rows]
            Dataset.from_list(table, features=features).to_parquet(path)
            files.append(dict(split=split, path=f"{code}/{split}-*"))
        configs.append(dict(config_name=code, data_files=files))
    card = f"---\n{json.dumps(dict(configs=configs))}\n---\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    return str(folder)


@pytest.fixture
def hub(root, monkeypatch):
    """The toy task with both of its Hub ids local, and an empty cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
    datasets.disable_progress_bars()
    found = {name: {code: {data.HUB_SPLITS[split]: read(root / name / code / f"{split}.tsv")
                           for split in sizes} for code in LANGUAGES[name]}
             for name, sizes in SIZES.items()}  # fmt: skip
    for code, splits in found["xnli"].items():
        splits["train"] = pairs(f"{code} hub train", 30)
    return toy(**{name: publish(root / "hub" / name, parts) for name, parts in found.items()})


def test_hub_tests_are_those_of_the_directory(root, hub):
    there, here = load(hub, ["sw"], "hub"), load(TOY, ["sw"], root)
    pd.testing.assert_frame_equal(there.examples("sw", "test"), here.examples("sw", "test"))


def test_hub_trains_on_its_own_splits_with_seeded_draws(hub):
    loaded = load(hub, ["sw"], "hub")
    assert shown(loaded.examples("en", "train")) == pairs("en hub train", 30)
    train, dev = draw(loaded, 5, 1).texts(loaded)
    assert (Counter(train.label), Counter(dev.label)) == (
        dict.fromkeys(LABELS, 5),
        dict.fromkeys(LABELS, 2),
    )


def test_zero_shot_americasnli_of_the_hub_trains_on_its_xnli(hub):
    loaded = load(hub, ["aym"], "hub", data="americasnli")
    assert shown(loaded.examples("en", "train")) == pairs("en hub train", 30)


def test_in_language_americasnli_of_the_hub_equals_the_directory(root, hub):
    how = dict(data="americasnli", train_languages=["oto"])
    assert load(hub, ["oto"], "hub", **how).sha256 == load(TOY, ["oto"], root, **how).sha256


def test_hub_away_names_both_data_sets(root):
    with pytest.raises(InputError, match=re.escape("XNLI (nobody/xnli), AmericasNLI (nobody/am")):
        load(TOY, ["aym"], "hub", data="americasnli")


def test_unlabelled_pair_of_the_hub_is_refused(root, hub):
    rows = [*pairs("x", 11), ("p", "h", -1)]
    splits = dict(train=pairs("t", 9), validation=pairs("v", 9), test=rows)
    publish(root / "hub" / "xnli", {"sw": splits})
    with pytest.raises(InputError, match=r"split 'test', could not be loaded: .*label -1$"):
        load(hub, ["sw"], "hub", train_languages=["sw"])


# The data itself


@pytest.fixture
def pocket(monkeypatch) -> data.TaskData:
    monkeypatch.delenv("XLCORE_DATA", raising=False)
    return load("nli", train_languages=["en", "es", "sw", "tr"])


def test_pocket_nli_loads_whole(pocket):
    rows = pocket.frame.groupby(["language", "split"]).size().unstack(fill_value=0)
    trained = {"eng", "spa", "swh", "tur"}
    assert {code: tuple(rows.loc[code, list(data.SPLITS)]) for code in rows.index} == {
        x.iso639_3: (144, 48, 66) if x.iso639_3 in trained else (0, 0, 66) for x in pocket.languages
    }
    assert len(pocket.languages) == 10


def test_pocket_nli_is_balanced(pocket):
    counts = pocket.frame.groupby(["language", "split"]).label.value_counts()
    assert all(counts.groupby(["language", "split"]).nunique() == 1)


def test_no_text_of_pocket_nli_is_empty(pocket):
    assert not data._empty(pocket.frame, pocket.task).any(axis=None)


def test_pocket_nli_without_checksums_says_how_to_write_them(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "PACKAGE", tmp_path / "xlcore")
    with pytest.raises(InputError, match=r"python -m xlcore\.data checksums data/pocket_nli"):
        load("nli", ["en"], "embedded")


def test_pinned_tables_cover_the_languages_and_splits():
    sums = {name: set(data._sums(corpus, None)) for name, corpus in NLI.benchmarks.items()}
    xnli = [
        "ar",
        "bg",
        "de",
        "el",
        "en",
        "es",
        "fr",
        "hi",
        "ru",
        "sw",
        "th",
        "tr",
        "ur",
        "vi",
        "zh",
    ]
    americas = ["aym", "bzd", "cni", "gn", "hch", "nah", "oto", "quy", "shp", "tar"]
    files = [f"{split}-{2**i}.tsv" for split in data.FITTING for i in range(9)]
    assert sums == {
        "xnli": {f"{x}/{split}.tsv" for x in xnli for split in ("dev", "test")},
        "americasnli": {f"{x}/{split}.tsv" for x in americas for split in ("dev", "test")},
        "xnli_fewshot": {f"{x}/{file}" for x in xnli for file in files},
        "mnli_english": {"train.tsv", "dev.tsv"},
    }


@pytest.mark.real_data
def test_xnli_loads_whole_and_trains_on_no_test_pair(data_dir):
    covered = sorted({file.split("/")[0] for file in data._sums(NLI.benchmark, None)})
    xnli = load("nli", "all", data_dir, train_languages=covered)
    assert len(xnli.frame) == 15 * (2 * 1533 + 5010)


@pytest.fixture(scope="module")
def xnli(data_dir) -> data.TaskData:
    return load("nli", ["en", "es", "sw", "tr"], data_dir)


@pytest.mark.real_data
@pytest.mark.parametrize("shots", [2**i for i in range(9)])
def test_published_splits_have_k_pairs_of_each_class(xnli, shots):
    for rows in draw(xnli, shots, 1).texts(xnli):
        assert Counter(rows.label) == dict.fromkeys(LABELS, shots)


@pytest.mark.real_data
def test_published_dev_pairs_are_of_xnli_dev(xnli, data_dir):
    dev = data._read_table(data_dir / "xnli" / "en" / "dev.tsv", **data.TSV, lineterminator="\n")
    published = xnli.examples("en", "dev")
    assert set(published.hypothesis) <= set(dev.hypothesis)


@pytest.mark.real_data
def test_americasnli_has_the_published_sizes(data_dir):
    """Dev and test pairs of Ebrahimi et al. 2022, table 1."""
    covered = sorted({file.split("/")[0] for file in data._sums(REAL["americasnli"], None)})
    americas = load("nli", "all", data_dir, data="americasnli", train_languages=covered)
    sizes = americas.frame.groupby(["language", "split"]).size()
    codes = [x.iso639_3 for x in americas.languages]
    usual = {(x, split): size for x in codes for split, size in (("dev", 743), ("test", 750))}
    other = {("cni", "dev"): 658, ("nah", "dev"): 585, ("nah", "test"): 738,
             ("oto", "dev"): 222, ("oto", "test"): 748}  # fmt: skip
    assert sizes.to_dict() == usual | other


@pytest.mark.real_data
def test_largest_in_language_draw_of_otomi_is_68(data_dir):
    otomi = load("nli", ["oto"], data_dir, data="americasnli", train_languages=["oto"])
    with pytest.raises(InputError, match=r"'neutral' has 69 for both; the largest .* is 68"):
        draw(otomi, 69, 0, "oto")


@pytest.mark.real_data
def test_multinli_sample_loads_whole(data_dir):
    loaded = load("nli", ["sw"], data_dir, train_data="mnli_english")
    assert isinstance(draw(loaded, 1024, 1), Draw)


@pytest.mark.real_data
def test_pocket_nli_holds_no_benchmark_text(xnli, pocket):
    texts = {text for column in ("premise", "hypothesis") for text in xnli.frame[column]}
    assert not texts & {*pocket.frame.premise, *pocket.frame.hypothesis}
