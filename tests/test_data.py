"""Loading, its checks, the few-shot draw and one's own files, on invented sentences."""

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlcore import data
from xlcore.data import TASKS, Corpus, Draw, Task, TaskData, draw, from_files, load
from xlcore.errors import InputError
from xlcore.languages import Language, resolve

LABELS = TASKS["topics"].labels
ROWS = {"train": 28, "dev": 7, "test": 14}
ODD_TEXTS = ["NA", "null", '"an open quote', "two\u2028lines", " spaced ", "#", "\\n"]
TOY = replace(
    TASKS["topics"],
    embedded=Corpus("pocket_topics", "Toy Pocket", ROWS),
    benchmark=Corpus("sib200", "Toy SIB", ROWS, "nobody/toy"),
)


def rows_of(language: str, split: str) -> list[tuple[int, str, str]]:
    """Invented rows, ids parallel over languages and disjoint over splits."""
    start = {"train": 0, "dev": 100, "test": 200}[split]
    texts = ODD_TEXTS if split == "test" else []
    return [
        (start + i, LABELS[i % 7], texts[i] if i < len(texts) else f"{language} {split} {i}")
        for i in range(ROWS[split])
    ]


def write_tsv(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["index_id\tcategory\ttext", *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def write_corpus(folder: Path) -> Path:
    for language in ("eng_Latn", "swh_Latn", "fra_Latn"):
        for split in ROWS:
            write_tsv(folder / language / f"{split}.tsv", rows_of(language, split))
    return folder


def pin(root: Path) -> None:
    data.write_checksums(root / "sib200", root / "xlcore" / "checksums" / "sib200.sha256")


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A benchmark directory, its pinned sums and an embedded corpus, all of the same toy rows."""
    (tmp_path / "xlcore" / "checksums").mkdir(parents=True)
    write_corpus(tmp_path / "sib200")
    pin(tmp_path)
    data.write_checksums(write_corpus(tmp_path / "data" / "pocket_topics"))
    monkeypatch.setattr(data, "PACKAGE", tmp_path / "xlcore")
    monkeypatch.delenv("XLCORE_DATA", raising=False)
    return tmp_path


def toy_data(changes: dict | None = None, languages: tuple = ("eng", "swh")) -> TaskData:
    """TaskData of toy rows, cells changed by {(language, split, position): {column: value}}."""
    rows = [
        dict(language=language, split=split, index_id=index, label=label, text=text)
        | (changes or {}).get((language, split, position), {})
        for language in languages
        for split in ROWS
        for position, (index, label, text) in enumerate(rows_of(language, split))
    ]
    known = tuple(map(resolve, languages))
    return TaskData(TOY, "toy", "Toy", "files", "here", known, pd.DataFrame(rows))


# The task


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("xglm", "earth science entertainment politics health travel sports"),
        ("bloom", "earth science fun government health travel play"),
        ("default", "earth science entertainment politics health travel sports"),
    ],
)
def test_label_words_are_those_of_the_protocol(family, words):
    labels = "geography science/technology entertainment politics health travel sports"
    expected = dict(zip(labels.split(), words.split(), strict=True))
    assert TASKS["topics"].words[family] == expected


def test_unknown_task_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="'topic'; did you mean topics"):
        load("topic")


# A directory


def test_directory_keeps_every_character(root):
    texts = load(TOY, ["en"], root).examples("en", "test").text
    assert texts.tolist()[: len(ODD_TEXTS)] == ODD_TEXTS


def test_frame_has_the_contract_columns_and_codes(root):
    frame = load(TOY, ["swahili"], root).frame
    assert frame.columns.tolist() == ["language", "split", "index_id", "label", "text"]
    assert set(frame.language) == {"eng", "swh"}


def test_only_the_asked_languages_are_to_be_tested(root):
    loaded = load(TOY, ["fra"], root)
    splits = {key: set(rows.split) for key, rows in loaded.frame.groupby("language")}
    assert splits == {"eng": {"train", "dev"}, "fra": {"test"}}
    assert loaded.languages == (resolve("fra"),)


def test_all_means_every_language_of_the_source(root):
    assert {x.iso639_3 for x in load(TOY, source=root).languages} == {"eng", "swh", "fra"}


def test_files_not_needed_may_be_absent(root):
    shutil.rmtree(root / "sib200" / "fra_Latn")
    assert len(load(TOY, ["swh"], root).examples("swh", "test")) == ROWS["test"]


def test_missing_file_names_file_place_layout_and_hash(root):
    path = root / "sib200" / "swh_Latn" / "test.tsv"
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    path.unlink()
    with pytest.raises(InputError) as error:
        load(TOY, ["swh"], root)
    for part in ("swh_Latn/test.tsv is missing", str(path), expected, "<flores code>/{train,dev"):
        assert part in str(error.value)


def test_altered_file_names_both_hashes(root):
    path = root / "sib200" / "swh_Latn" / "test.tsv"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes().replace(b"swh", b"SWH", 1))
    after = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=f"{path}.*expected sha256 {before}, found {after}"):
        load(TOY, ["swh"], root)


def test_file_altered_after_a_first_load_is_noticed(root):
    load(TOY, ["swh"], root)
    with (root / "sib200" / "swh_Latn" / "test.tsv").open("a") as file:
        file.write("999\tsports\tone more\n")
    with pytest.raises(InputError, match="altered"):
        load(TOY, ["swh"], root)


def test_a_file_is_hashed_once(root, monkeypatch):
    read = []
    real = Path.read_bytes
    data._hash_file.cache_clear()
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or real(path))
    load(TOY, ["swh"], root)
    load(TOY, ["swh", "fra"], root)
    assert len(read) == len(set(read)) == 4  # English train and dev, two tests


def test_wrong_row_count_is_refused(root):
    write_tsv(root / "sib200" / "swh_Latn" / "test.tsv", rows_of("swh_Latn", "test")[:-1])
    pin(root)
    with pytest.raises(InputError, match="Swahili test has 13 rows, expected 14"):
        load(TOY, ["swh"], root)


def test_missing_column_names_the_nearest(root):
    path = root / "sib200" / "swh_Latn" / "test.tsv"
    path.write_text(path.read_text("utf-8").replace("category", "categorie", 1), "utf-8")
    pin(root)
    with pytest.raises(InputError, match="no column 'category'; nearest: categorie"):
        load(TOY, ["swh"], root)


def test_index_id_that_is_no_number_is_refused(root):
    rows = rows_of("swh_Latn", "test")
    write_tsv(root / "sib200" / "swh_Latn" / "test.tsv", [("x1", *rows[0][1:]), *rows[1:]])
    pin(root)
    with pytest.raises(InputError, match="index_id 'x1'"):
        load(TOY, ["swh"], root)


def test_language_the_corpus_lacks_is_refused(root):
    with pytest.raises(InputError, match="Toy SIB 'deu_Latn'"):
        load(TOY, ["german"], root)


def test_split_the_language_lacks_is_refused(root):
    (root / "sib200" / "swh_Latn" / "train.tsv").unlink()
    pin(root)
    with pytest.raises(InputError, match="with a train split in Toy SIB 'swh_Latn'"):
        load(TOY, ["swh"], root, train_languages=["swh"])


# Which source


def test_auto_takes_the_directory_if_it_is_named(root, monkeypatch):
    monkeypatch.setenv("XLCORE_DATA", str(root))
    loaded = load(TOY, ["en"])
    assert (loaded.source, loaded.name, loaded.location) == ("directory", "sib200", str(root))


def test_auto_takes_the_embedded_corpus_without_asking_the_network(root, monkeypatch):
    monkeypatch.setattr(data, "hub_available", lambda: pytest.fail("asked the network"))
    loaded = load(TOY, ["en"])
    assert (loaded.source, loaded.name) == ("embedded", "pocket_topics")


def test_directory_without_a_name_says_how_to_name_it(root):
    with pytest.raises(InputError, match="set XLCORE_DATA"):
        load(TOY, ["en"], "directory")


def test_misspelt_source_gets_a_suggestion(root):
    with pytest.raises(InputError, match=r"'embeded' does not exist.*did you mean 'embedded'"):
        load(TOY, ["en"], "embeded")


def test_task_without_benchmark_is_refused(root):
    with pytest.raises(InputError, match="'topics' has no data for source 'directory'"):
        load(replace(TOY, benchmark=None), ["en"], root)


def test_altered_embedded_file_is_refused(root):
    write_tsv(root / "data" / "pocket_topics" / "swh_Latn" / "test.tsv", [])
    with pytest.raises(InputError, match=r"Toy Pocket file .* was altered"):
        load(TOY, ["swh"], "embedded")


def test_embedded_data_is_found_inside_an_installed_package(root):
    shutil.move(root / "data", root / "xlcore" / "_data")
    assert data.embedded_folder() == root / "xlcore" / "_data"


def test_embedded_data_without_checksums_says_how_to_write_them(root):
    (root / "data" / "pocket_topics" / "SHA256SUMS").unlink()
    with pytest.raises(InputError, match=r"python -m xlcore\.data checksums data/pocket_topics"):
        load(TOY, ["en"], "embedded")


def test_checksums_command_writes_what_sha256sum_writes(tmp_path):
    write_tsv(tmp_path / "eng_Latn" / "test.tsv", [])
    data.main(["checksums", str(tmp_path)])
    expected = hashlib.sha256(b"index_id\tcategory\ttext\n").hexdigest()
    assert (tmp_path / "SHA256SUMS").read_text("utf-8") == f"{expected}  eng_Latn/test.tsv\n"


def test_load_prints_one_line_that_says_what_was_loaded(root, capsys):
    loaded = load(TOY, ["swh"], root)
    line = f"data: Toy SIB (directory {root}), 2 language(s), rows: train 28, dev 7, test 14, "
    assert capsys.readouterr().out == f"{line}sha256 {loaded.sha256[:12]}\n"


def test_caption_names_title_source_and_test_texts(root):
    assert load(TOY, source=root).describe() == "Toy SIB (directory), 14 test texts per language"


def test_equal_rows_have_equal_hashes_from_any_source(root):
    assert load(TOY, ["swh"], "embedded").sha256 == load(TOY, ["swh"], root).sha256


def test_one_changed_letter_changes_the_hash():
    assert toy_data().sha256 != toy_data({("eng", "dev", 0): {"text": "Eng dev 0"}}).sha256


# The Hub


@pytest.fixture
def hub_folder(tmp_path, monkeypatch) -> Path:
    """A local folder in the Hub's layout, and an empty cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder, configs = tmp_path / "toy", []
    for language in ("eng_Latn", "swh_Latn"):
        configs += [f"- config_name: {language}", "  data_files:"]
        for split, hub_split in data.HUB_SPLITS.items():
            rows = [dict(zip(("index_id", "category", "text"), row, strict=True))
                    for row in rows_of(language, split)]  # fmt: skip
            file = f"data/{language}/{hub_split}.jsonl"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
            configs += [f"  - split: {hub_split}", f"    path: {file}"]
    readme = "\n".join(["---", "configs:", *configs, "---"])
    (folder / "README.md").write_text(readme, encoding="utf-8")
    return folder


def test_hub_layout_gives_the_rows_of_the_directory(root, hub_folder):
    loaded = load(TOY, ["swh"], "hub", hub_id=str(hub_folder))
    assert loaded.sha256 == load(TOY, ["swh"], root).sha256
    assert (loaded.source, loaded.location) == ("hub", str(hub_folder))


def test_wrong_row_count_of_the_hub_is_refused(root, hub_folder):
    path = hub_folder / "data" / "swh_Latn" / "test.jsonl"
    path.write_text(path.read_text("utf-8").split("\n", 1)[1], "utf-8")
    with pytest.raises(InputError, match="Swahili test has 13 rows, expected 14"):
        load(TOY, ["swh"], "hub", hub_id=str(hub_folder))


def test_unknown_label_of_the_hub_is_refused(root, hub_folder):
    path = hub_folder / "data" / "swh_Latn" / "test.jsonl"
    path.write_text(path.read_text("utf-8").replace("sports", "sport", 1), "utf-8")
    with pytest.raises(InputError, match="'sport'; did you mean sports"):
        load(TOY, ["swh"], "hub", hub_id=str(hub_folder))


def test_config_the_hub_lacks_is_refused(root, hub_folder):
    with pytest.raises(InputError, match="French, config 'fra_Latn'"):
        load(TOY, ["fra"], "hub", hub_id=str(hub_folder))


def test_hub_offline_without_cache_names_the_directory_option(root, hub_folder):
    with pytest.raises(InputError, match=r"Toy SIB \(nobody/toy\).*HF_HUB_OFFLINE.*XLCORE_DATA"):
        load(TOY, ["swh"], "hub")


def test_hub_offline_uses_the_local_cache(root, hub_folder, monkeypatch):
    import datasets

    for language in ("eng_Latn", "swh_Latn"):
        built = datasets.load_dataset(str(hub_folder), language)["test"].cache_files[0]["filename"]
        place = hub_folder.parent / "cache" / "nobody___toy" / language / "0.0.0" / ("0" * 40)
        shutil.copytree(Path(built).parent, place)
        for file in place.glob("*.arrow"):  # the cache names its files after the data set
            file.rename(place / f"toy-{file.stem.rsplit('-', 1)[1]}.arrow")
    assert load(TOY, ["swh"], "hub").sha256 == load(TOY, ["swh"], root).sha256


# The checks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "sport"}, "label in swh test, index_id 203: 'sport'; did you mean sports"),
        ({"text": " \t"}, "empty text: swh test, index_id 203"),
        ({"text": None}, "empty text: swh test, index_id 203"),
        ({"index_id": 204}, "repeated index_id: swh test, index_id 204"),
        ({"index_id": 5}, "an index_id that another split has too: eng train, index_id 5"),
        ({"index_id": 777}, "'test' is not parallel: index_id 203 is 'politics' in eng and 'miss"),
        ({"label": "sports"}, "index_id 203 is 'politics' in eng and 'sports' in swh"),
    ],
)
def test_broken_rows_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        toy_data({("swh", "test", 3): changes})


def test_no_rows_are_refused():
    with pytest.raises(InputError, match="no rows"):
        TaskData(TOY, "toy", "Toy", "files", "", (), toy_data().frame.head(0))


def test_examples_come_in_index_order():
    turned = toy_data().frame.iloc[::-1]
    again = TaskData(TOY, "toy", "Toy", "files", "", (resolve("eng"),), turned)
    assert again.examples("English", "dev").index_id.tolist() == list(range(100, 107))


def test_examples_of_a_language_not_loaded_are_refused():
    with pytest.raises(InputError, match="loaded language 'fra'"):
        toy_data().examples("French", "test")


def test_examples_of_a_split_not_loaded_are_refused(root):
    with pytest.raises(InputError, match="loaded split of swh 'train'"):
        load(TOY, ["swh"], root).examples("swh", "train")


# The draw


@st.composite
def pools(draw_from) -> tuple[TaskData, int]:
    """Two-language data of random class sizes and ids, and its largest possible K."""
    sizes = [draw_from(st.tuples(st.integers(1, 12), st.integers(1, 3))) for _ in LABELS]
    total = sum(map(sum, sizes))
    ids = draw_from(st.lists(st.integers(0, 9999), min_size=total, max_size=total, unique=True))
    numbers = iter(ids)
    rows = [
        (split, next(numbers), label)
        for label, (train, dev) in zip(LABELS, sizes, strict=True)
        for split in ["train"] * train + ["dev"] * dev
    ]
    frame = pd.DataFrame(
        [(x, split, index, label, f"{x} {index}") for x in ("eng", "swh")
         for split, index, label in rows],
        columns=["language", "split", "index_id", "label", "text"],
    )  # fmt: skip
    known = (resolve("eng"), resolve("swh"))
    largest = min(min(train, 4 * dev) for train, dev in sizes)
    return TaskData(TOY, "toy", "Toy", "files", "", known, frame), largest


cheap = settings(max_examples=25)
seeds = st.integers(0, 2**32)


@cheap
@given(pools(), seeds, st.data())
def test_draw_is_balanced(pool, seed, choice):
    toy, largest = pool
    shots = choice.draw(st.integers(1, largest))
    for rows, size in zip(draw(toy, shots, seed).texts(toy), (shots, -(-shots // 4)), strict=True):
        assert rows.label.value_counts().to_dict() == dict.fromkeys(LABELS, size)


@cheap
@given(pools(), seeds)
def test_draw_is_the_same_in_every_language(pool, seed):
    toy, largest = pool
    assert draw(toy, largest, seed) == draw(toy, largest, seed, language="swh")


@cheap
@given(pools(), seeds, st.randoms(use_true_random=False))
def test_draw_does_not_depend_on_row_order(pool, seed, random):
    toy, largest = pool
    order = random.sample(range(len(toy.frame)), len(toy.frame))
    mixed = replace(toy, frame=toy.frame.iloc[order])
    assert draw(toy, largest, seed) == draw(mixed, largest, seed)


@cheap
@given(pools(), seeds)
def test_smaller_draw_is_part_of_a_larger_one(pool, seed):
    toy, largest = pool
    small, large = draw(toy, math.ceil(largest / 2), seed), draw(toy, largest, seed)
    assert set(small.train_ids) <= set(large.train_ids)
    assert set(small.dev_ids) <= set(large.dev_ids)


@cheap
@given(pools(), seeds)
def test_draw_beyond_the_largest_k_is_refused(pool, seed):
    toy, largest = pool
    with pytest.raises(InputError, match=f"largest K allowed here is {largest}$"):
        draw(toy, largest + 1, seed)


def test_error_of_a_scarce_class_names_it_and_the_numbers():
    message = "shots=5 needs 5 train and 2 dev .* 'geography' has 4 and 1"
    with pytest.raises(InputError, match=message):
        draw(toy_data(), 5, 0)


def test_drawn_train_and_dev_meet_no_test_id():
    toy, drawn = toy_data(), draw(toy_data(), 4, 0)
    test_ids = set(toy.examples("swh", "test").index_id)
    assert not test_ids & {*drawn.train_ids, *drawn.dev_ids}


def test_seeds_give_different_draws():
    toy = toy_data()
    assert len({draw(toy, 2, seed).train_ids for seed in range(20)}) > 15


def test_every_example_is_drawn_about_equally_often():
    # 1 of 4 per class: over 400 seeds an id is drawn 100 +- 8.7 times, so 5 sigma is 43.
    toy = toy_data()
    drawn = [index for seed in range(400) for index in draw(toy, 1, seed).train_ids]
    counts = np.bincount(drawn, minlength=ROWS["train"])
    assert np.abs(counts - 100).max() < 5 * math.sqrt(400 * 0.25 * 0.75)


def test_draw_of_all_takes_both_splits():
    train, dev = draw(toy_data(), "all", 0).texts(toy_data(), "swh")
    assert (len(train), len(dev)) == (ROWS["train"], ROWS["dev"])


@pytest.mark.parametrize("shots", [0, -1, 2.0, True, "some"])
def test_shots_that_are_no_count_are_refused(shots):
    with pytest.raises(InputError, match=r'shots is .*whole numbers from 1 or "all"'):
        draw(toy_data(), shots, 0)


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_seed_that_is_no_whole_number_is_refused(seed):
    with pytest.raises(InputError, match=r"seed is .*whole numbers from 0"):
        draw(toy_data(), 1, seed)


def test_numpy_counts_are_recorded_as_plain_numbers():
    drawn = draw(toy_data(), np.int64(1), np.int64(3))
    assert json.dumps([drawn.shots, drawn.seed, drawn.train_ids])


def test_draw_of_other_data_is_refused():
    with pytest.raises(InputError, match="eng lacks 1 drawn index_ids, 999 the first"):
        Draw(0, 1, (0, 999), (100,)).texts(toy_data())


# One's own files

OWN = [
    {"text": "a goal", "label": "good", "split": "train", "language": "en"},
    {"text": "an own goal", "label": "bad", "split": "train", "language": "en"},
    {"text": "bao", "label": "good", "split": "validation", "language": "sw"},
    {"text": "NA", "label": "bad", "split": "test", "language": "sw"},
]


def write_own(path: Path, rows: list[dict]) -> Path:
    frame = pd.DataFrame(rows)
    if path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_own_file_gives_a_task_of_its_own(tmp_path, kind):
    own = from_files(write_own(tmp_path / f"own.{kind}", OWN))
    assert own.task == Task("own", ("bad", "good"), {"default": {"bad": "bad", "good": "good"}})
    assert own.frame.set_index("text").loc["NA", ["language", "split"]].tolist() == ["swh", "test"]


def test_own_files_one_per_language_need_no_language_column(tmp_path):
    rows = pd.DataFrame(OWN[:3]).drop(columns="language").to_dict("records")
    paths = {x: write_own(tmp_path / f"{x}.csv", rows) for x in ("english", "swh")}
    assert [x.iso639_3 for x in from_files(paths).languages] == ["eng", "swh"]


def test_own_language_may_stand_in_no_table(tmp_path):
    toki = Language("tok", "Toki Pona", "Latn", "Artificial", *[None] * 6, ())
    own = from_files({toki: write_own(tmp_path / "tok.csv", OWN)})
    assert len(own.examples("toki pona", "train")) == 2


def test_own_columns_may_have_other_names(tmp_path):
    rows = [{"satz": x["text"], "klasse": x["label"], "teil": x["split"]} for x in OWN]
    path = write_own(tmp_path / "own.csv", rows)
    own = from_files({"deu": path}, text="satz", label="klasse", split="teil")
    assert own.examples("deu", "train").label.tolist() == ["good", "bad"]


def test_own_files_with_ids_must_be_parallel(tmp_path):
    rows = [x | {"id": number} for number, x in enumerate(OWN)]
    paths = {
        "eng": write_own(tmp_path / "eng.csv", rows),
        "swh": write_own(tmp_path / "swh.csv", rows[1:]),
    }
    with pytest.raises(InputError, match="not parallel: index_id 0 is 'good' in eng and 'missing'"):
        from_files(paths, index_id="id")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a goal"}, "repeated text"),
        ({"text": None}, "empty text"),
        ({"label": "god"}, "'god'; did you mean good"),
        ({"split": "tst"}, "split 'tst'; did you mean test"),
        ({"language": "englsh"}, "'englsh'"),
    ],
)
def test_broken_own_row_is_refused(tmp_path, row, message):
    path = write_own(tmp_path / "own.jsonl", [*OWN, OWN[0] | {"text": "more"} | row])
    with pytest.raises(InputError, match=message):
        from_files(path, labels=["good", "bad"])


def test_own_file_without_the_named_column_is_refused(tmp_path):
    with pytest.raises(InputError, match="no column 'txt'; nearest: text"):
        from_files(write_own(tmp_path / "own.csv", OWN), text="txt")


def test_own_file_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"own\.csv does not exist"):
        from_files(tmp_path / "own.csv")


def test_own_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"kind of file '\.xlsx'"):
        from_files(write_own(tmp_path / "own.xlsx", OWN))


def test_own_file_with_unquoted_commas_is_refused(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("text,label,split,language\na, goal,good,train,en\n", encoding="utf-8")
    with pytest.raises(InputError, match="more fields than its header"):
        from_files(path)


# The data itself


def test_embedded_corpus_loads_whole(monkeypatch):
    monkeypatch.delenv("XLCORE_DATA", raising=False)
    pocket = load()
    assert pocket.examples("eng", "train").label.value_counts().to_dict() == dict.fromkeys(
        LABELS, 16
    )


def test_pinned_table_covers_all_splits_of_the_52_languages():
    sums = data._sums(TASKS["topics"].benchmark, None)
    languages = {file.split("/")[0] for file in sums}
    assert len(languages) == 52
    assert set(sums) == {f"{x}/{split}.tsv" for x in languages for split in ROWS}


@pytest.mark.real_data
@pytest.mark.parametrize("shots", (8, 32))
def test_no_draw_of_sib200_holds_a_test_sentence_of_any_language(data_dir, shots):
    found = load("topics", ["eng", "deu", "quy"], data_dir)
    tested = set(found.frame.query("split == 'test'").index_id)
    texts = set(found.frame.query("split == 'test'").text)
    assert len(tested) == 204
    for seed in (*range(1, 11), *range(101, 111)):
        drawn = draw(found, shots, seed)
        assert not tested & {*drawn.train_ids, *drawn.dev_ids}
        assert not any(texts & set(side.text) for side in drawn.texts(found, "eng"))


@pytest.mark.real_data
def test_sib200_loads_whole(data_dir):
    languages = sorted({f.split("/")[0] for f in data._sums(TASKS["topics"].benchmark, None)})
    sib = load("topics", languages, data_dir, train_languages=languages)
    assert len(sib.frame) == 52 * (701 + 99 + 204)


@pytest.mark.real_data
def test_sib200_class_counts_are_the_published_ones(data_dir):
    counts = load("topics", ["en"], data_dir).examples("en", "train").label.value_counts()
    assert counts[list(LABELS)].tolist() == [58, 176, 65, 102, 77, 138, 85]


@pytest.mark.real_data
def test_largest_draw_of_sib200_is_32(data_dir):
    sib = load("topics", ["en"], data_dir)
    with pytest.raises(InputError, match=r"'geography' has 58 and 8; the largest .* is 32"):
        draw(sib, 33, 0)


@pytest.mark.real_data
def test_embedded_corpus_holds_no_benchmark_text(data_dir):
    sib = load("topics", source=data_dir)
    assert not set(sib.frame.text) & set(load("topics", source="embedded").frame.text)
