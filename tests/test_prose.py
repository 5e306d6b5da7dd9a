"""Text to model language on: what each source gives, and never a sentence to select or test on.

References: the files themselves, read line by line.
"""

import json

import pytest

from xlcore.data import embedded_folder
from xlcore.errors import InputError
from xlcore.prose import WIKITEXT, Text, read


def sentences(language, split):
    """Return all cells of text in the embedded corpora's files of one language and split."""
    files = embedded_folder().glob(f"*/{language}/{split}.tsv")
    rows = [line.split("\t") for f in files for line in f.read_text("utf-8").splitlines()[1:]]
    return {cell for row in rows for cell in row[2:]}


@pytest.mark.parametrize(("code", "folder"), [("eng", "eng_Latn"), ("sw", "swh_Latn")])
def test_embedded_text_has_the_corpora_to_train_on(code, folder):
    assert sentences(folder, "train") <= set(read("embedded", code).paragraphs)


@pytest.mark.parametrize(("code", "folder"), [("eng", "eng_Latn"), ("sw", "swh_Latn")])
def test_embedded_text_has_no_sentence_to_select_or_test_on(code, folder):
    kept_back = sentences(folder, "dev") | sentences(folder, "test")
    assert not (kept_back - sentences(folder, "train")) & set(read("embedded", code).paragraphs)


def test_embedded_english_is_mostly_python_s_manual_without_code():
    text = read("embedded")
    manual = set(text.paragraphs) - sentences("eng_Latn", "train")
    assert sum(map(len, manual)) > 100_000
    assert not [p for p in manual if "::=" in p[:40] or p.startswith(">>>")]


def layout(folder, **files):
    for name, content in files.items():
        path = folder / (name.replace("__", "/") + ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


def test_directory_gives_english_from_all_its_files_in_order(tmp_path, monkeypatch):
    files = dict(english_text__b="two\nthree", english_text__a="one", wikipedia_paragraphs__en="x")
    monkeypatch.setenv("XLCORE_DATA", str(layout(tmp_path, **files)))
    assert read().paragraphs == ("one", "two", "three")


def test_directory_gives_other_languages_by_any_of_their_codes(tmp_path):
    folder = layout(tmp_path, wikipedia_paragraphs__sw="moja\nmbili")
    assert read(folder, "swh_Latn") == Text(
        "wikipedia_paragraphs/ sw.txt", "swh", ("moja", "mbili")
    )


def test_a_repeated_paragraph_is_read_once(tmp_path):
    file = layout(tmp_path, own="one\n\n two \none\ntwo\n") / "own.txt"
    assert read(file).paragraphs == ("one", "two")


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """A local folder in the Hub's layout, and an empty cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "toy"
    folder.mkdir()
    front = ["---", "configs:", "- config_name: raw", "  data_files:"]
    for split in ("train", "test"):
        rows = [{"text": f" = {split} = \n"}, {"text": ""}, {"text": f"A {split} line\nand more"}]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        front += [f"  - split: {split}", f"    path: {split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*front, "---"]), encoding="utf-8")
    return folder


def test_hub_gives_the_paragraphs_of_the_train_split(hub_folder):
    found = read("hub", hub=(str(hub_folder), "raw"))
    assert found.paragraphs == ("= train =", "A train line", "and more")


def test_configuration_the_hub_lacks_is_refused(hub_folder):
    with pytest.raises(InputError, match="cooked"):
        read("hub", hub=(str(hub_folder), "cooked"))


def test_hub_out_of_reach_is_named(hub_folder):
    with pytest.raises(InputError, match=r"Salesforce/wikitext.*HF_HUB_OFFLINE.*text file"):
        read("hub")


def test_default_text_of_the_hub_is_for_english_only():
    with pytest.raises(InputError, match=f"{WIKITEXT[0]} is English; for Swahili"):
        read("hub", "sw")


def test_unknown_source_names_the_nearest():
    with pytest.raises(InputError, match="'embeded'; did you mean embedded"):
        read("embeded")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"unknown text file.*none\.txt"):
        read(tmp_path / "none.txt")


def test_empty_text_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"own\.txt.*is empty"):
        read(layout(tmp_path, own=" \n\n") / "own.txt")


def test_language_without_embedded_text_is_refused():
    with pytest.raises(InputError, match="in Greek is empty"):
        read("embedded", "el")


def test_folder_without_the_language_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no text in Greek.*wikipedia_paragraphs/el\.txt"):
        read(tmp_path, "el")


def test_directory_without_a_name_is_refused(monkeypatch):
    monkeypatch.delenv("XLCORE_DATA", raising=False)
    with pytest.raises(InputError, match="set XLCORE_DATA"):
        read("directory")


def test_file_that_is_no_utf_8_is_refused(tmp_path):
    (tmp_path / "own.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        read(tmp_path / "own.txt")
