"""Running text to model language on: embedded, from files of one's own, or from the Hub.

Stands before `mlm`, which cuts a text into blocks; text of test examples is never among it.
LTP section 3: the text is English; other languages are a question of our own.
"""

import contextlib
import os
import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from platform import python_version

from xlcore.data import SOURCES, USE_A_DIRECTORY, embedded_folder
from xlcore.errors import InputError, choose
from xlcore.hub import cached_only, hub_available, no_hub
from xlcore.languages import Language, resolve

WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1")


@dataclass(frozen=True)
class Text:
    """Different paragraphs in one language (ISO 639-3), and where they came from."""

    name: str
    language: str
    paragraphs: tuple[str, ...]


def read(
    source: str | Path = "auto", language: str = "eng", hub: tuple[str, str] = WIKITEXT
) -> Text:
    """Return a source's text, each paragraph once, and print one line.

    source: "embedded" (the prose of Python's own manual, English only, and the train texts of the
    embedded corpora), "directory" (the folder in XLCORE_DATA), "hub" (the train split of `hub`, an
    id or a local folder in the Hub's layout, and a configuration), a folder in the layout of
    XLCORE_DATA, a text file of one paragraph a line, or "auto": directory if XLCORE_DATA is set,
    else embedded. Raises InputError for a source that is unknown, not readable or empty.
    """
    known, named = resolve(language), os.environ.get("XLCORE_DATA")
    kind = ("directory" if named else "embedded") if source == "auto" else str(source)
    if kind == "directory" and not named:
        raise InputError(f"source 'directory' needs a folder: {USE_A_DIRECTORY}")
    path = Path(named if kind == "directory" else kind)
    if not path.exists():
        choose("text file, folder or source", kind, SOURCES)
    if kind == "embedded":
        name, lines = _embedded(known)
    elif kind == "hub":
        name, lines = _hub(known, *hub)
    else:
        name, lines = _files(path, known)
    text = Text(name, known.iso639_3, tuple(dict.fromkeys(filter(None, map(str.strip, lines)))))
    if not text.paragraphs:
        raise InputError(f"text {name!r} in {known.name} is empty")
    print(f"text: {name} ({text.language}), {sum(map(len, text.paragraphs))} characters")
    return text


def _embedded(language: Language) -> tuple[str, list[str]]:
    """Return Python's manual, as installed, and the corpora's train texts: no text to test on."""
    files = sorted(embedded_folder().glob(f"*/{language.flores}/train.tsv"))
    names = [file.parents[1].name for file in files]
    rows = chain(*(file.read_text("utf-8").splitlines()[1:] for file in files))
    lines = [cell for row in rows for cell in row.split("\t")[2:]]  # behind index_id and label
    if language.iso639_3 != "eng":
        return " + ".join(names) or "embedded", lines
    from pydoc_data.topics import topics  # half a megabyte, and of use here only

    parts = [part for topic in topics.values() for part in re.split(r"\n\s*\n", topic)]
    plain = (" ".join(part.split()).removeprefix("* ") for part in parts)
    prose = [part for part in plain if part[:1].isupper() and part.endswith(".")]  # no code
    return " + ".join([f"pydoc_data of Python {python_version()}", *names]), prose + lines


def _files(path: Path, language: Language) -> tuple[str, list[str]]:
    """Return the lines of a text file, or of the language's files in a folder."""
    places = [f"wikipedia_paragraphs/{code}.txt" for code in language.codes]
    places = ["english_text/*.txt"] * (language.iso639_3 == "eng") + places
    found = [path] if path.is_file() else [f for p in places for f in sorted(path.glob(p))]
    files = [file for file in found if file.parent == found[0].parent]
    if not files:
        raise InputError(f"folder {str(path)!r} has no text in {language.name}: no {places}")
    try:
        lines = [line for f in files for line in f.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"text {str(path)!r} is not UTF-8: {error}") from error
    return f"{files[0].parent.name}/ {' '.join(file.name for file in files)}", lines


def _hub(language: Language, place: str, config: str) -> tuple[str, list[str]]:
    from datasets import exceptions, load_dataset  # slow to import, and of use here only

    if (place, config) == WIKITEXT and language.iso639_3 != "eng":
        raise InputError(f"{place} is English; for {language.name} name another text of the Hub")
    online = Path(place).is_dir() or hub_available()
    try:
        with contextlib.nullcontext() if online else cached_only():
            texts = load_dataset(place, config, split="train")["text"]
    except (OSError, KeyError, ValueError, exceptions.DatasetsError) as error:
        if not online:
            raise no_hub(f"text {place}, {config}, not cached,", "give a text file") from error
        raise InputError(f"text {place}, {config}, cannot be loaded: {error!r}") from error
    return f"{place} {config}", [line for text in texts for line in text.splitlines()]
