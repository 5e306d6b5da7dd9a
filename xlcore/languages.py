"""The languages of SIB-200, XNLI and AmericasNLI: one entry each, whatever a data set calls it.

First step of the flow: every module takes its languages from `resolve`, figures theirs from
`distances`. SPT (arXiv 2402.03782): the 52 languages, their pre-training shares, claims C2, C3.
"""

import csv
import hashlib
import importlib.util
import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd

from xlcore.errors import InputError, nearest

INSTALL_URIEL = "pip install --no-deps lang2vec==1.1.2"
URIEL_SHA256 = {
    "features": "1a83a5fc6ea31dfb2d27e634c0d601b47b784b398c4305e410db9d7be72ddbba",
    "feature_predictions": "0e8af1bdb29e1bd71343d495d4fd4e1cd523e934e6d5fa42b72262ca8d8151b8",
    "family_features": "e814e0588c0263297c76ddfc9c2744937a52233a4ed525ba5bc86ffc54958fb3",
    "geocoord_features": "d7364bd05ecd2f7075755b8361aff6a6cda82519c11c98d7e88bda817bd353ab",
}
TYPOLOGY = {"syntactic": "S_", "phonological": "P_", "inventory": "INV_", "featural": ""}
DISTANCES = ("syntactic", "phonological", "inventory", "genetic", "geographic", "featural")
ISOLATES = ("Basque",)  # families of one language, which URIEL's family table leaves empty


@dataclass(frozen=True)
class Language:
    """One language with the code of each data set, None where that data set lacks it.

    `iso639_3` is the study's own key; Nahuatl and Otomi keep the collective codes of AmericasNLI,
    which names no variety. `uriel` is the best documented URIEL row among the language's codes.
    Shares are fractions of the model's pre-training data, None where its list lacks the language.
    """

    iso639_3: str
    name: str
    script: str  # ISO 15924
    family: str  # top level, as named by Glottolog
    flores: str | None
    xnli: str | None
    americasnli: str | None
    uriel: str | None
    xglm_share: float | None
    bloom_share: float | None
    aliases: tuple[str, ...]  # ISO 639-1, 639-2/B, and the macrolanguage's or member's 639-3

    @property
    def codes(self) -> tuple[str, ...]:
        """Every code that stands for this language, each once, its own first."""
        own = (self.iso639_3, self.flores, self.xnli, self.americasnli, self.uriel, *self.aliases)
        return tuple(dict.fromkeys(filter(None, own)))


def _parse(row: dict[str, str]) -> Language:
    fields: dict = {key: value or None for key, value in row.items()}
    for share in ("xglm_share", "bloom_share"):
        fields[share] = float(row[share]) if row[share] else None
    return Language(**{**fields, "aliases": tuple(row["aliases"].split())})


def _load() -> tuple[Language, ...]:
    text = files("xlcore").joinpath("languages.tsv").read_text(encoding="utf-8")
    return tuple(map(_parse, csv.DictReader(text.splitlines(), delimiter="\t")))


def _index(languages: Iterable[Language]) -> dict[str, Language]:
    """Map every folded code and name to its one language; ValueError where two would share it."""
    index: dict[str, Language] = {}
    for language in languages:
        for key in (*language.codes, language.name):
            owner = index.setdefault(key.casefold(), language)
            if owner is not language:
                raise ValueError(f"{key!r} stands for both {owner.name} and {language.name}")
    return index


LANGUAGES: tuple[Language, ...] = _load()
_BY_KEY = _index(LANGUAGES)


def resolve(query: str) -> Language:
    """Return the language that a code of any data set, an ISO 639 code or an English name means.

    Case and outer spaces do not matter. Raises InputError with the three nearest languages.
    """
    key = str(query).strip().casefold()
    if key in _BY_KEY:
        return _BY_KEY[key]
    ranked = dict.fromkeys(_BY_KEY[near] for near in nearest(key, _BY_KEY, n=len(_BY_KEY)))
    close = ", ".join(f"{language.name} ({language.iso639_3})" for language in list(ranked)[:3])
    raise InputError(
        f"unknown language {query!r}; did you mean {close}? allowed: the English name or an ISO"
        f" 639, FLORES, XNLI, AmericasNLI or URIEL code of the {len(LANGUAGES)} languages in"
        " xlcore/languages.tsv"
    )


def resolve_all(queries: Iterable[str] | str) -> tuple[Language, ...]:
    """Return the languages of a list of queries in its order, or all of them for "all".

    Raises InputError for an empty list, another bare string, or a language named twice.
    """
    if isinstance(queries, str):
        if queries.strip().casefold() == "all":
            return LANGUAGES
        raise InputError(f'languages {queries!r}: allowed are a list such as ["en", "sw"] or "all"')
    asked: dict[Language, str] = {}
    for query in queries:
        language = resolve(query)
        if language in asked:
            raise InputError(
                f"languages name {language.name} twice: {asked[language]!r} and {query!r};"
                " allowed is each language once"
            )
        asked[language] = query
    if not asked:
        raise InputError('languages is empty: allowed are at least one language, or "all"')
    return tuple(asked)


def distances(source: str = "eng") -> pd.DataFrame:
    """Return how far each language lies from `source`: 0 for itself, at most 1, NaN if unknown.

    Rows are `LANGUAGES` by iso639_3, columns `DISTANCES`, from the URIEL tables in lang2vec:
    - syntactic, phonological, inventory, featural (all three joined): 1 - cosine of the
      kNN-completed feature vectors;
    - genetic: 1 - cosine of the membership vectors over the nodes of Glottolog's family tree;
    - geographic: great circle over half the circumference, between the two points recovered from
      their angles to URIEL's 299 reference points.
    lang2vec 1.1.2 holds the vectors, not URIEL's precomputed distances: these are our definitions.
    The first call for a source prints what is NaN and what rests on completed values alone.
    Raises InputError for an unknown source or one without a URIEL row, ModuleNotFoundError without
    lang2vec. Source of the vectors: Littell et al. 2017.
    """
    start = resolve(source)
    if start.uriel is None:
        raise InputError(
            f"source {source!r}: URIEL has no row for {start.name}; allowed are the languages of"
            " xlcore/languages.tsv with a uriel code"
        )
    return _distances(start).copy()


@cache  # also so that its line is printed once
def _distances(start: Language) -> pd.DataFrame:
    vectors, shares = _vectors(), coverage()
    row = LANGUAGES.index(start)
    frame = pd.DataFrame({c: _distance(c, vectors[c], row) for c in DISTANCES}, index=shares.index)
    print(_report(frame, shares, start))
    return frame


def coverage() -> pd.DataFrame:
    """Return the share of URIEL's features that some source observed, per language and set.

    Rows as in `distances`, columns syntactic, phonological, inventory, featural, values in [0, 1],
    NaN without a URIEL row. URIEL completes the rest from the nearest languages (kNN).
    """
    return _coverage().copy()


@cache
def _coverage() -> pd.DataFrame:
    values, names = _rows("features")  # (languages, features, sources), -1 where not observed
    seen = np.where(np.isnan(values[:, :, 0]), np.nan, (values != -1).any(axis=2))
    index = pd.Index([language.iso639_3 for language in LANGUAGES], name="iso639_3")
    shares = {c: seen[:, np.char.startswith(names, p)].mean(axis=1) for c, p in TYPOLOGY.items()}
    return pd.DataFrame(shares, index=index)


@cache
def _vectors() -> dict[str, np.ndarray]:
    """Unit vectors (languages, features) behind each distance; NaN rows where URIEL has none."""
    values, names = _rows("feature_predictions")
    vectors = {c: values[:, np.char.startswith(names, p), 0] for c, p in TYPOLOGY.items()}
    families = _rows("family_features")[0][:, :, 0]
    # an isolate shares no ancestor with anyone, but is no stranger to itself
    isolates = [[language.family == name for name in ISOLATES] for language in LANGUAGES]
    vectors["genetic"] = np.hstack([families, isolates])
    vectors["geographic"] = _positions(*_rows("geocoord_features"))
    norms = {c: np.linalg.norm(v, axis=1, keepdims=True) for c, v in vectors.items()}
    return {c: v / np.where(norms[c] > 0, norms[c], np.nan) for c, v in vectors.items()}


def _positions(values: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Places (languages, xyz) whose angles to the reference points fit the table.

    The features are angles / pi to points named "GC_<latitude>_<longitude>", so the cosines are
    linear in the place: least squares over 299 points averages their rounding to whole degrees.
    """
    degrees = np.array([name.split("_")[1:] for name in names], dtype=float)  # (points, 2)
    latitude, longitude = np.radians(degrees).T
    points = np.stack(
        [
            np.cos(latitude) * np.cos(longitude),
            np.cos(latitude) * np.sin(longitude),
            np.sin(latitude),
        ]
    )
    return np.cos(np.pi * values[:, :, 0]) @ np.linalg.pinv(points)


def _distance(column: str, units: np.ndarray, row: int) -> np.ndarray:
    # from the chord, because 1 - cosine and arccos lose the exact 0 between equal vectors
    chord = np.linalg.norm(units - units[row], axis=1)
    if column == "geographic":
        return 2 / np.pi * np.arcsin(np.minimum(chord / 2, 1))
    return chord**2 / 2


def _report(frame: pd.DataFrame, shares: pd.DataFrame, start: Language) -> str:
    """Say which distances are missing and how many rest on no observed feature at all."""
    missing = {c: " ".join(frame.index[frame[c].isna()]) for c in frame}
    completed = {c: int((shares[c].eq(0) & frame[c].notna()).sum()) for c in TYPOLOGY}
    return (
        f"URIEL distances from {start.name} (lang2vec 1.1.2), {len(frame)} languages; NaN: "
        + "; ".join(f"{c} {codes}" for c, codes in missing.items() if codes)
        + "; kNN-completed with nothing observed: "
        + ", ".join(f"{c} {n}" for c, n in completed.items())
    )


def _rows(table: str) -> tuple[np.ndarray, np.ndarray]:
    """One URIEL table's values (languages, features, sources) for `LANGUAGES`, and its features."""
    stored = _read(table)
    place = {code: row for row, code in enumerate(stored["langs"])}  # differs between the tables
    known = [row for row, language in enumerate(LANGUAGES) if language.uriel]
    values = np.full((len(LANGUAGES), *stored["data"].shape[1:]), np.nan)
    values[known] = stored["data"][[place[LANGUAGES[row].uriel] for row in known]]
    return values, stored["feats"]


def _read(table: str) -> dict[str, np.ndarray]:
    path = _uriel_folder() / f"{table}.npz"
    if not path.is_file():
        raise FileNotFoundError(f"URIEL table {path} is missing; reinstall it: {INSTALL_URIEL}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != URIEL_SHA256[table]:
        raise RuntimeError(
            f"URIEL table {path} has sha256 {found}, allowed is {URIEL_SHA256[table]}"
            f" of lang2vec 1.1.2; reinstall it: {INSTALL_URIEL}"
        )
    with np.load(io.BytesIO(content)) as arrays:
        return dict(arrays)


def _uriel_folder() -> Path:
    # found, never imported: importing lang2vec needs pkg_resources of an old setuptools
    package = importlib.util.find_spec("lang2vec")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the URIEL tables come with the package lang2vec 1.1.2, which is not installed;"
            f" install it with: {INSTALL_URIEL}",
            name="lang2vec",
        )
    return Path(package.submodule_search_locations[0]) / "data"
