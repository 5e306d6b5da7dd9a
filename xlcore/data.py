"""Parallel labelled texts: the embedded corpus, a directory, the Hub or one's own files.

Stands after tasks.py and before tokenizing (backbones.py, prompts.py, cloze.py).
SPT (arXiv 2402.03782), section on data: its few-shot draw, here seeded. LTP: fixed splits.
"""

import argparse
import csv
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from xlcore.errors import InputError, choose, nearest
from xlcore.hub import cached_only, hub_available, no_hub
from xlcore.languages import Language, resolve, resolve_all
from xlcore.tasks import TASKS, Corpus, Task

SOURCES = ("auto", "embedded", "directory", "hub")
SPLITS = ("train", "dev", "test")
FITTING = ("train", "dev")
HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
Wanted = list[tuple[Corpus, Language, str]]  # which split of which language of which corpus
COLUMNS = ["language", "split", "index_id", "label"]  # and then the texts
TSV = {"sep": "\t", "quoting": csv.QUOTE_NONE}
PACKAGE = Path(__file__).parent
USE_A_DIRECTORY = "set XLCORE_DATA to a directory that holds sib200/<flores code>/ or xnli/<code>/"


@dataclass(frozen=True, eq=False)
class TaskData:
    """Checked texts of one task in one or more languages; a broken one cannot be made.

    `frame` has the columns language (ISO 639-3), split, index_id, label, and text or the task's
    own. In `parallel` data an index_id is the same example in every language, but for negative
    ones, which only one language has. Raises InputError if a label is unknown, all texts of an
    example empty, an index_id twice in a split or in two splits, or a split not parallel.
    """

    task: Task
    name: str
    title: str
    source: str  # "embedded", "directory", "hub" or "files"
    location: str  # what the user named: a folder, a Hub id
    languages: tuple[Language, ...]  # those to test on
    frame: pd.DataFrame = field(repr=False)
    parallel: bool = True
    fit: Corpus | None = None  # where train and dev came from, which decides how to draw
    sampled: str = ""  # how many test examples a language there were before `fewer_tests`

    def __post_init__(self) -> None:
        columns = [*COLUMNS, *self.task.columns]
        ordered = self.frame[columns].sort_values(COLUMNS[:3], ignore_index=True)
        object.__setattr__(self, "frame", ordered)
        _check_rows(self.frame, self.task)
        if self.parallel:
            _check_parallel(self.frame[self.frame.index_id >= 0])

    @cached_property
    def sha256(self) -> str:
        """The hash of the loaded rows: equal rows give the same, wherever they came from."""
        rows = json.dumps(self.frame.values.tolist(), ensure_ascii=False)
        return hashlib.sha256(rows.encode()).hexdigest()

    def code(self, language: str | Language) -> str:
        """Return the ISO 639-3 code of one of the loaded languages, from any code or name."""
        if not isinstance(language, Language):
            key = language.strip().casefold()
            # One's own language stands in no table, so those at hand are asked first.
            own = [x for x in self.languages if key in map(str.casefold, (*x.codes, x.name))]
            language = own[0] if own else resolve(language)
        return choose("loaded language", language.iso639_3, sorted(set(self.frame.language)))

    def examples(self, language: str | Language, split: str) -> pd.DataFrame:
        """Return one language's rows of one split in index_id order; InputError if not loaded."""
        code = self.code(language)
        loaded = self.frame.loc[self.frame.language == code, "split"].unique()
        choose(f"loaded split of {code}", split, [s for s in SPLITS if s in loaded])
        chosen = (self.frame.language == code) & (self.frame.split == split)
        return self.frame[chosen].reset_index(drop=True)

    @property
    def undivided(self) -> bool:
        """Whether there is no train split, so that dev serves both to train and to select on."""
        return self.fit is not None and "train" not in self.fit.rows

    def pools(self, language: str | Language = "eng") -> dict[str, pd.DataFrame]:
        """Return the rows of one language to draw train and dev examples from."""
        splits = ("dev", "dev") if self.undivided else FITTING
        return {x: self.examples(language, y) for x, y in zip(FITTING, splits, strict=True)}

    def describe(self) -> str:
        """Return the data in one line for a caption: title, source, test texts per language."""
        number = self._tested() + f" of {self.sampled}" * bool(self.sampled)
        unit = "texts" if len(self.task.columns) == 1 else "pairs"
        return f"{self.title} ({self.source}), {number} test {unit} per language"

    def _tested(self) -> str:
        """Return the number of test examples per language, a range if it differs."""
        counts = self.frame.loc[self.frame.split == "test", "language"].value_counts()
        low, high = (counts.min(), counts.max()) if len(counts) else (0, 0)
        return f"{low}" if low == high else f"{low} to {high}"

    def __str__(self) -> str:
        counts = self.frame.split.value_counts()
        rows = ", ".join(f"{split} {counts[split]}" for split in SPLITS if split in counts)
        place = f"{self.source} {self.location}".strip()
        if lacking := int(_empty(self.frame, self.task).any(axis=1).sum()):
            rows += f" ({lacking} with an empty text)"
        return (
            f"data: {self.title} ({place}), {self.frame.language.nunique()} language(s), "
            f"rows: {rows}, sha256 {self.sha256[:12]}"
        )


def load(
    task: str | Task = "topics",
    languages: Iterable[str] | str = "all",
    source: str | Path = "auto",
    *,
    train_languages: Iterable[str] | str = ("eng",),
    hub_id: str | None = None,
    data: str | None = None,
    train_data: str | None = None,
) -> TaskData:
    """Load a task's test split in `languages`, train and dev in `train_languages`.

    "all" means every language of the source, and to train in, every one that is tested. `source`
    is "embedded", "directory" (the folder in XLCORE_DATA), "hub", a folder in the layout of
    XLCORE_DATA, or "auto": directory if XLCORE_DATA is set, else embedded. `hub_id` replaces the
    Hub id, also by a local folder in the Hub's layout. `data` and `train_data` name a corpus of the
    task other than its usual one. Prints one line.
    Raises InputError for anything missing, altered or malformed, and where a train or dev example
    known by its row only is a test example too.
    """
    chosen = task if isinstance(task, Task) else TASKS[choose("task", task, TASKS)]
    kind, folder = _locate(source, chosen)
    corpus = _test_corpus(chosen, kind, data)
    covered = _covered(corpus, kind, folder)
    tested = resolve_all(covered if languages == "all" else languages)
    trained = tested if train_languages == "all" else resolve_all(train_languages)
    fit = _fit_corpus(chosen, kind, corpus, trained, train_data)
    wanted = [(fit, x, split) for x in trained for split in FITTING if split in fit.rows]
    wanted += [(corpus, x, "test") for x in tested]
    # Where nothing but the row tells a pair, the test texts of the language trained in show whether
    # one was trained on; test rows are parallel, so they show it for every language tested.
    tests = [] if fit.index_id else [x for x in chosen.benchmarks.values() if "test" in x.rows]
    checked = [(x, language, "test") for language in trained for x in tests if x.code(language)]
    for each, language, _ in wanted + checked:
        code = each.code(language) or language.name
        choose(f"language of {each.title}", code, _covered(each, kind, folder))
    if kind == "hub":
        place = hub_id or corpus.hub_id or ""
        places = [place if x is corpus else x.hub_id or "" for x, *_ in wanted + checked]
        frames = _from_hub(chosen, places, wanted + checked)
    else:
        place = "" if kind == "embedded" else str(folder)
        frames = _from_folder(chosen, kind, folder, wanted + checked)
    frame = pd.concat(frames[: len(wanted)], ignore_index=True)
    if checked:
        _check_unseen(frame, pd.concat(frames[len(wanted) :]), chosen)
    title = corpus.title + (f", trained on {fit.title}" if fit is not corpus else "")
    loaded = TaskData(chosen, corpus.name, title, kind, place, tested, frame, fit=fit)
    print(loaded)
    return loaded


def _test_corpus(task: Task, kind: str, named: str | None) -> Corpus:
    """Return the corpus to test on, by default the first."""
    pocket = {task.embedded.name: task.embedded} if task.embedded else {}
    known = pocket if kind == "embedded" else task.benchmarks
    allowed = [name for name, x in known.items() if "test" in x.rows]
    if not allowed:
        raise InputError(f"task {task.name!r} has no data for source {kind!r}")
    return known[choose(f"data of {task.name!r}, {kind}:", named or allowed[0], allowed)]


def _fit_corpus(
    task: Task, kind: str, corpus: Corpus, trained: Sequence[Language], named: str | None
) -> Corpus:
    """Return the corpus to train on: `corpus` itself in the languages that no other has."""
    if named:
        only = {} if kind != "directory" else task.benchmarks
        known = {x.name: x for x in only.values() if "test" not in x.rows} or {corpus.name: corpus}
        return known[choose("train_data", named, known)]
    usual = task.benchmarks.get(corpus.fit.get(kind, ""), corpus)
    return usual if all(usual.code(x) for x in trained) else corpus


def embedded_folder(name: str = "pocket_topics") -> Path:
    """Return the folder of the embedded data: beside the package in a checkout, else inside it."""
    for folder in (PACKAGE.parent / "data", PACKAGE / "_data"):
        if (folder / name / "SHA256SUMS").is_file():
            return folder
    raise InputError(
        f"no {name}/SHA256SUMS in {PACKAGE.parent / 'data'} or {PACKAGE / '_data'}; "
        f"write it with `python -m xlcore.data checksums data/{name}`"
    )


def _locate(source: str | Path, task: Task) -> tuple[str, Path]:
    """Return the kind of source and, unless it is the Hub, its folder."""
    named = os.environ.get("XLCORE_DATA")
    if source == "auto":
        source = "directory" if named else "embedded"
    if source == "embedded":
        return "embedded", embedded_folder(*[task.embedded.name] if task.embedded else [])
    if source == "hub":
        return "hub", Path()
    if source == "directory":
        if not named:
            raise InputError(f"source 'directory' needs a folder: {USE_A_DIRECTORY}")
        source = named
    if not Path(source).is_dir():
        raise InputError(
            f"data folder {str(source)!r} does not exist; a source is a folder or one of "
            f"{', '.join(SOURCES)}; did you mean {nearest(source, SOURCES, 1)[0]!r}?"
        )
    return "directory", Path(source)


def _sums(corpus: Corpus, embedded: Path | None) -> dict[str, str]:
    """Return {"<code>/<split>.tsv": sha256}, from the embedded data or pinned in xlcore."""
    pinned = PACKAGE / "checksums" / f"{corpus.name}.sha256"
    path = embedded / corpus.name / "SHA256SUMS" if embedded else pinned
    pairs = (line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines())
    return {file: sha256 for sha256, file in pairs}


def _covered(corpus: Corpus, kind: str, folder: Path) -> list[str]:
    """Return the codes of a corpus's languages."""
    sums = _sums(corpus, folder if kind == "embedded" else None)
    return [corpus.only] if corpus.only else sorted({file.split("/")[0] for file in sums})


def write_checksums(folder: Path, out: Path | None = None) -> Path:
    """Write the sha256 of every .tsv file in `folder` and below, as `sha256sum` does."""
    out = out or folder / "SHA256SUMS"
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.tsv")}
    lines = [f"{_sha256(paths[name])}  {name}\n" for name in sorted(paths)]
    out.write_text("".join(lines), encoding="utf-8", newline="\n")
    return out


def _from_folder(task: Task, kind: str, folder: Path, wanted: Wanted) -> list[pd.DataFrame]:
    paths = []
    for corpus, language, split in wanted:
        sums = _sums(corpus, folder if kind == "embedded" else None)
        files = corpus.files(code := str(corpus.code(language)), split)
        if files[0] not in sums:
            have = sorted(x.split("/")[0] for x in sums if x.endswith(f"/{split}.tsv"))
            choose(f"language with a {split} split in {corpus.title}", code, have)
        paths.append([_verified(corpus, folder, file, sums[file]) for file in files])
    # Everything is verified before anything is parsed.
    frames = []
    for parts, key in zip(paths, wanted, strict=True):
        tables = [_read_table(path, **TSV, lineterminator="\n") for path in parts]
        frames.append(_tidy(task, pd.concat(tables, ignore_index=True), *key))
    return frames


def _verified(corpus: Corpus, folder: Path, file: str, expected: str) -> Path:
    path = folder / corpus.name / file
    if not path.is_file():
        raise InputError(
            f"{corpus.title} file {file} is missing: looked for {path} (expected sha256 "
            f"{expected}); expected layout: <folder>/{corpus.name}/{corpus.layout}"
        )
    if (found := _sha256(path)) != expected:
        raise InputError(
            f"{corpus.title} file {path} was altered: expected sha256 {expected}, found {found}"
        )
    return path


def _sha256(path: Path) -> str:
    """Hash a file once per process, and again only if its size or time changed."""
    state = path.stat()
    return _hash_file(path.resolve(), state.st_size, state.st_mtime_ns)


@cache
def _hash_file(path: Path, size: int, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_table(path: Path, **how: str | int) -> pd.DataFrame:
    # No value means "missing": "NA" and "null" are text like any other.
    return pd.read_csv(path, na_filter=False, dtype=str, encoding="utf-8-sig", **how)


def _from_hub(task: Task, places: Sequence[str], wanted: Wanted) -> list[pd.DataFrame]:
    """Load each part from its place: a Hub id or a local folder."""
    parts = list(zip(places, wanted, strict=True))
    if all(Path(place).is_dir() for place in places) or hub_available():
        tables = [_load_dataset(place, *key) for place, key in parts]
    else:
        try:
            with cached_only():
                tables = [_load_dataset(place, *key) for place, key in parts]
        except InputError as error:
            what = ", ".join(dict.fromkeys(f"{key[0].title} ({place})" for place, key in parts))
            raise no_hub(f"{what}, not in the local cache either,", USE_A_DIRECTORY) from error
    return [_tidy(task, table, *key) for table, key in zip(tables, wanted, strict=True)]


def _load_dataset(hub_id: str, corpus: Corpus, language: Language, split: str) -> pd.DataFrame:
    from datasets import ClassLabel, exceptions, load_dataset  # slow to import, used here only

    code = corpus.code(language)
    try:
        loaded = load_dataset(hub_id, code, split=HUB_SPLITS[split])
        rows, label = loaded.to_pandas(), loaded.features.get(corpus.label)
        if isinstance(label, ClassLabel):
            rows[corpus.label] = label.int2str(rows[corpus.label])
    except (OSError, ValueError, exceptions.DatasetsError) as error:
        raise InputError(
            f"{corpus.title} in {language.name}, config {code!r} of {hub_id}, "
            f"split {HUB_SPLITS[split]!r}, could not be loaded: {error}"
        ) from error
    return rows


def _tidy(
    task: Task, rows: pd.DataFrame, corpus: Corpus, language: Language, split: str
) -> pd.DataFrame:
    """Return rows of one split in our columns, their number checked."""
    where = f"{corpus.title} {language.name} {split}"
    named = [corpus.index_id] if corpus.index_id else []
    _need_columns(rows, (*named, corpus.label, *task.columns), where)
    place = f"{corpus.code(language)}/{split}"
    if len(rows) != (expected := corpus.ragged.get(place, corpus.rows[split])):
        raise InputError(f"{where} has {len(rows)} rows, expected {expected}")
    ids = _ids(rows[corpus.index_id], where) if corpus.index_id else _row_ids(corpus, place, rows)
    columns = rows.rename(columns={corpus.label: "label"})[["label", *task.columns]]
    return columns.assign(language=language.iso639_3, split=split, index_id=ids)


def _row_ids(corpus: Corpus, place: str, rows: pd.DataFrame) -> range:
    """Number rows so that no two splits share a number; see `Corpus` for the ragged."""
    start = 10**6 * SPLITS.index(place.split("/")[1])
    if place in corpus.ragged:
        start -= 10**7 * (1 + list(corpus.ragged).index(place))
    return range(start, start + len(rows))


def _ids(column: pd.Series, where: str) -> pd.Series:
    odd = [x for x in column if not str(x).isdecimal()]
    if odd:
        raise InputError(f"index_id {odd[0]!r} in {where} is not a whole number")
    return column.astype(int)


def _need_columns(rows: pd.DataFrame, needed: Iterable[str], where: str) -> None:
    for column in needed:
        if column not in rows.columns:
            close = ", ".join(nearest(column, rows.columns))
            raise InputError(f"{where} has no column {column!r}; nearest: {close}")


def _check_rows(frame: pd.DataFrame, task: Task) -> None:
    if frame.empty:
        raise InputError("the data has no rows")
    for row in frame[~frame.label.isin(task.labels)].head(1).itertuples():
        where = f"{row.language} {row.split}, index_id {row.index_id}"
        choose(f"label in {where}:", row.label, task.labels)
    # Two benchmarks hold pairs that lack one of their texts: those are kept, and counted.
    _refuse(frame[_empty(frame, task).all(axis=1)], "empty text")
    _refuse(frame[frame.duplicated(["language", "split", "index_id"])], "repeated index_id")
    splits = frame.groupby("index_id").split.transform("nunique")
    _refuse(frame[splits > 1], "an index_id that another split has too")


def _empty(frame: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Return which texts (rows, columns) say nothing."""
    return frame[list(task.columns)].apply(lambda texts: texts.fillna("").str.strip() == "")


def _check_unseen(frame: pd.DataFrame, tests: pd.DataFrame, task: Task) -> None:
    """Refuse train and dev rows whose texts, spaces aside, are those of a test row."""

    def texts(rows: pd.DataFrame) -> pd.Series:
        joined = rows.language.str.cat([rows[x] for x in task.columns])
        return joined.str.replace(r"\s", "", regex=True)

    fitted = frame[frame.split != "test"]
    _refuse(fitted[texts(fitted).isin(texts(tests))], "in train or dev, but a test example")


def _refuse(bad: pd.DataFrame, problem: str) -> None:
    if len(bad):
        row = bad.iloc[0]
        raise InputError(
            f"{problem}: {row.language} {row.split}, index_id {row.index_id} ({len(bad)} such rows)"
        )


def _check_parallel(frame: pd.DataFrame) -> None:
    for split, rows in frame.groupby("split"):
        table = rows.pivot(index="index_id", columns="language", values="label").fillna("missing")
        bad = table[table.nunique(axis=1) > 1]
        if len(bad):
            row = bad.iloc[0]
            other = row.index[row != row.iloc[0]][0]
            raise InputError(
                f"split {split!r} is not parallel: index_id {row.name} is {row.iloc[0]!r} in "
                f"{row.index[0]} and {row[other]!r} in {other} ({len(bad)} such rows)"
            )


def fewer_tests(data: TaskData, number: int) -> TaskData:
    """Return the data with at most `number` test examples a language, their labels in balance.

    Ids and labels decide, so parallel languages keep the same examples. Raises InputError for a
    number that is not whole or below 1.
    """
    number = _whole("number of test examples", number, least=1)
    kept = [data.frame[data.frame.split != "test"]]
    for language in data.languages:
        rows = data.examples(language, "test")
        shuffled = rows.iloc[np.random.Generator(np.random.PCG64(0)).permutation(len(rows))]
        rank = shuffled.groupby("label").cumcount()  # the first of each label, then the second, ...
        kept.append(rows.loc[rank.sort_values(kind="stable").index[:number]])
    fewer = replace(data, frame=pd.concat(kept))
    return data if len(fewer.frame) == len(data.frame) else replace(fewer, sampled=data._tested())


@dataclass(frozen=True)
class Draw:
    """Which examples a few-shot run sees, by index_id, so the same in every parallel language."""

    seed: int
    shots: int | str
    train_ids: tuple[int, ...]
    dev_ids: tuple[int, ...]

    def texts(
        self, data: TaskData, language: str | Language = "eng"
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the drawn train and dev rows of one language, in index_id order.

        Raises InputError if the language or its splits are not loaded, or lack a drawn index_id.
        """
        picked, pools = [], data.pools(language)
        for split, ids in (("train", self.train_ids), ("dev", self.dev_ids)):
            rows = pools[split]
            absent = sorted(set(ids) - set(rows.index_id))
            if absent:
                raise InputError(
                    f"{data.title} {split} in {data.code(language)} lacks {len(absent)} drawn "
                    f"index_ids, {absent[0]} the first: this draw was made on other data"
                )
            picked.append(rows[rows.index_id.isin(ids)].reset_index(drop=True))
        return picked[0], picked[1]


def draw(data: TaskData, shots: int | str, seed: int, language: str | Language = "eng") -> Draw:
    """Draw `shots` train and ceil(shots / 4) dev examples per class; "all" takes both splits whole.

    The draw sees ids and labels only, so parallel languages and all conditions of a study share
    it. It is nested: with one seed, a smaller draw is part of every larger one. Raises InputError
    with the largest possible K if a class has too few. SPT's ratio of dev to train [code].
    Two kinds of data differ: published splits are taken as they are, whatever the seed, K of each
    class for dev too; without a train split, K per class come from dev and all others select.
    """
    seed = _whole("seed", seed, least=0)
    pools = data.pools(language)
    if data.fit and data.fit.shots:
        return _published(data.fit, pools, _whole("shots", shots, least=1), seed)
    if data.undivided:
        return _divided(data, pools["dev"], _whole("shots", shots, least=1), seed)
    if shots == "all":
        return Draw(seed, "all", *(tuple(pools[x].index_id.tolist()) for x in FITTING))
    shots = _whole("shots", shots, least=1, other=' or "all"')
    sizes = _sizes(data.task, pools, shots)
    return Draw(seed, shots, *(_pick(data.task, pools[x], x, sizes[x], seed) for x in FITTING))


def _published(fit: Corpus, pools: dict[str, pd.DataFrame], shots: int, seed: int) -> Draw:
    """Return the published split of K, whose rows lie behind those of all smaller K."""
    choose(f"K of {fit.title}", str(shots), map(str, fit.shots))
    classes = fit.rows["train"] // sum(fit.shots)
    start = classes * sum(k for k in fit.shots if k < shots)
    rows = slice(start, start + classes * shots)
    return Draw(seed, shots, *(tuple(pools[x].index_id[rows].tolist()) for x in FITTING))


def _divided(data: TaskData, pool: pd.DataFrame, shots: int, seed: int) -> Draw:
    """Return K per class of one split to train on, all its other rows to select on."""
    counts = pool.label.value_counts().reindex(data.task.labels, fill_value=0)
    if shots >= counts.min():
        raise InputError(
            f"shots={shots} needs {shots} train and at least 1 dev examples per class, but "
            f"{counts.idxmin()!r} has {counts.min()} for both; the largest K allowed here is "
            f"{counts.min() - 1}"
        )
    picked = _pick(data.task, pool, "train", shots, seed)
    return Draw(seed, shots, picked, tuple(sorted(set(pool.index_id.tolist()) - set(picked))))


def _pick(task: Task, pool: pd.DataFrame, split: str, size: int, seed: int) -> tuple[int, ...]:
    """Return the first `size` ids of one seeded permutation per class, sorted."""
    picked: list[int] = []
    for number, label in enumerate(task.labels):
        ids = pool.index_id[pool.label == label].to_numpy()  # in index_id order, by `examples`
        # A stream of its own per split and class: a change in one class moves no other.
        stream = np.random.SeedSequence([seed, SPLITS.index(split), number])
        order = np.random.Generator(np.random.PCG64(stream)).permutation(ids)
        picked += order[:size].tolist()
    return tuple(sorted(picked))


def _sizes(task: Task, pools: dict[str, pd.DataFrame], shots: int) -> dict[str, int]:
    """Return how many to draw per class and split, having checked that each class has as many."""
    counts = {split: pools[split].label.value_counts() for split in FITTING}
    have = {x: tuple(int(counts[split].get(x, 0)) for split in FITTING) for x in task.labels}
    largest = {x: min(train, 4 * dev) for x, (train, dev) in have.items()}
    scarce = min(largest, key=largest.__getitem__)
    sizes = {"train": shots, "dev": math.ceil(shots / 4)}
    if shots > largest[scarce]:
        raise InputError(
            f"shots={shots} needs {sizes['train']} train and {sizes['dev']} dev examples per "
            f"class, but {scarce!r} has {have[scarce][0]} and {have[scarce][1]}; the largest K "
            f"allowed here is {largest[scarce]}"
        )
    return sizes


def _whole(thing: str, value: object, least: int, other: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{thing} is {value!r}; allowed are whole numbers from {least}{other}")
    return int(value)


def from_files(
    files: str | Path | Mapping[str | Language, str | Path],
    *,
    text: str = "text",
    label: str = "label",
    split: str = "split",
    language: str = "language",
    index_id: str | None = None,
    labels: Sequence[str] | None = None,
    words: Mapping[str, Mapping[str, str]] | None = None,
    name: str = "own",
) -> TaskData:
    """Load a task of one's own from CSV, TSV (no quoting) or JSONL files: one per language, or one.

    The arguments name columns; only a single file needs the language column. With `index_id` the
    languages must be parallel; without it rows are numbered through and need not be. `labels`
    default to those of the train split, `words` to the labels themselves. Prints one line. Raises
    InputError for a missing column, an unknown label or split, an empty or a repeated text.
    """
    columns = {text: "text", label: "label", split: "split"}
    columns |= {index_id: "index_id"} if index_id else {}
    if isinstance(files, Mapping):
        frames = [_read_own(path, columns).assign(language=key) for key, path in files.items()]
        frame = pd.concat(frames, ignore_index=True)
    else:
        frame = _read_own(files, columns | {language: "language"})
    known = {x: x if isinstance(x, Language) else resolve(x) for x in frame.language.unique()}
    frame["language"] = [known[x].iso639_3 for x in frame.language]
    frame["split"] = frame.split.replace("validation", "dev")
    for value in frame.split.unique():
        choose("split", value, SPLITS)
    frame["index_id"] = _ids(frame.index_id, name) if index_id else range(len(frame))
    _refuse(frame[frame.duplicated(["language", "text"])], "repeated text")
    seen = frame.label[frame.split == "train"] if "train" in set(frame.split) else frame.label
    kept = tuple(labels or sorted(set(seen)))
    own = Task(name, kept, words or {"default": {x: x for x in kept}})
    place = ", ".join(map(str, files.values())) if isinstance(files, Mapping) else str(files)
    languages = tuple(dict.fromkeys(known.values()))
    data = TaskData(own, name, name, "files", place, languages, frame, bool(index_id))
    print(data)
    return data


def _read_own(path: str | Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """Return the named columns of one file under our names, everything as text."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"file {path} does not exist")
    kind = choose("kind of file", path.suffix.lower(), (".csv", ".tsv", ".jsonl"))
    try:
        if kind == ".jsonl":
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            rows = pd.DataFrame([json.loads(line) for line in lines if line.strip()], dtype=object)
        else:
            rows = _read_table(path, **(TSV if kind == ".tsv" else {}))
        if not isinstance(rows.index, pd.RangeIndex):  # pandas took the first column as row names
            raise ValueError("its rows have more fields than its header")
    except ValueError as error:
        raise InputError(f"file {path} could not be read as {kind[1:]}: {error}") from error
    _need_columns(rows, columns, f"file {path}")
    # A JSON null becomes an empty text, which the checks refuse.
    cells = rows[list(columns)].map(lambda x: "" if pd.isna(x) else str(x))
    return cells.rename(columns=dict(columns))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `python -m xlcore.data checksums <folder> [<file>]`."""
    parser = argparse.ArgumentParser(prog="python -m xlcore.data", description=main.__doc__)
    commands = parser.add_subparsers(required=True)
    checksums = commands.add_parser("checksums", help="write sha256 of the .tsv files of <folder>")
    checksums.add_argument("folder", type=Path)
    checksums.add_argument("out", type=Path, nargs="?", help="default: <folder>/SHA256SUMS")
    given = parser.parse_args(arguments)
    print(f"wrote {write_checksums(given.folder, given.out)}")


if __name__ == "__main__":
    main()
