"""The language table against independent lists, and URIEL distances against plain computations.

References: the data sets' own code lists, URIEL's tables read anew, Glottolog coordinates.
"""

import dataclasses
import importlib.util
import json
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cosine

from xlcore import languages
from xlcore.errors import InputError
from xlcore.languages import DISTANCES, LANGUAGES, coverage, distances, resolve, resolve_all


def codes(text):
    return set(text.split())


SPT = codes(
    "aka arb asm bam ben bul cat deu ell eng est eus fin fon fra guj hat hin ibo ind ita jpn kan "
    "kik kin kor lin mal mar mya npi nso ory por quy rus sna spa swh tam tel tha tum tur twi urd "
    "vie wol xho yor zho zul"
)
XNLI = codes("ar bg de el en es fr hi ru sw th tr ur vi zh")
AMERICASNLI = codes("aym bzd cni gn hch nah oto quy shp tar")
GLOTTOLOG = {"eng": (53, -1), "fra": (48, 2), "jpn": (35, 135)}  # published latitude, longitude
WITH_URIEL = [language for language in LANGUAGES if language.uriel]


@cache
def english():
    return distances("eng")


@cache
def raw(table):
    """The row of each code and the arrays of a URIEL table, read without our reader."""
    folder = Path(importlib.util.find_spec("lang2vec").submodule_search_locations[0]) / "data"
    with np.load(folder / f"{table}.npz") as arrays:
        return {code: row for row, code in enumerate(arrays["langs"])}, dict(arrays)


def raw_vector(table, code, prefix=""):
    row, arrays = raw(table)
    columns = [i for i, name in enumerate(arrays["feats"]) if name.startswith(prefix)]
    return arrays["data"][row[code]][columns]


# --- the table ---------------------------------------------------------------------------------


def test_table_is_the_union_of_the_three_data_sets_each_language_once():
    others = {"ayr", "bzd", "cni", "grn", "hch", "nah", "oto", "shp", "tar"}
    assert sorted(language.iso639_3 for language in LANGUAGES) == sorted(SPT | others)


def test_xnli_codes_are_those_of_the_data_set():
    assert {language.xnli for language in LANGUAGES} - {None} == XNLI


def test_americasnli_codes_are_those_of_the_data_set():
    assert {language.americasnli for language in LANGUAGES} - {None} == AMERICASNLI


def test_every_spt_language_has_a_flores_code_made_of_its_code_and_script():
    spt = [language for language in LANGUAGES if language.iso639_3 in SPT]
    assert all(lang.flores == f"{lang.iso639_3}_{lang.script}" for lang in spt)


def test_shares_count_30_xglm_and_38_bloom_languages_with_16_shared():
    xglm = {language.iso639_3 for language in LANGUAGES if language.xglm_share}
    bloom = {language.iso639_3 for language in LANGUAGES if language.bloom_share}
    assert (len(xglm), len(bloom), len(xglm & bloom)) == (30, 38, 16)


def test_xglm_shares_add_up_to_its_whole_corpus():
    assert sum(lang.xglm_share or 0 for lang in LANGUAGES) == pytest.approx(1, abs=1e-6)


def test_bloom_shares_leave_room_for_languages_outside_the_study():
    assert 0.5 < sum(lang.bloom_share or 0 for lang in LANGUAGES) < 1


@pytest.mark.parametrize("language", WITH_URIEL, ids=lambda language: language.iso639_3)
def test_family_is_the_root_of_the_uriel_row(language):
    older = {"Aymaran": "Aymara", "Pano-Tacanan": "Panoan"}  # Glottolog's names in URIEL's years
    names = raw("family_features")[1]["feats"]
    nodes = names[raw_vector("family_features", language.uriel)[:, 0] == 1]
    if language.name in ("Basque", "Twi"):  # an isolate, and a row without family
        assert nodes.size == 0
    else:
        assert f"F_{older.get(language.family, language.family)}" in nodes


@pytest.mark.parametrize("language", WITH_URIEL, ids=lambda language: language.iso639_3)
def test_uriel_row_is_the_best_documented_one_with_a_family(language):
    rows = raw("features")[0]
    own = [code for code in language.codes if code in rows]
    with_family = [code for code in own if raw_vector("family_features", code).any()]
    seen = {c: (raw_vector("features", c) != -1).any(axis=1).sum() for c in with_family or own}
    best = [code for code in seen if seen[code] == max(seen.values())]
    assert language.uriel == (language.iso639_3 if language.iso639_3 in best else best[0])


# --- resolve -----------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.iso639_3)
def test_every_code_and_the_name_resolve_to_their_language(language):
    assert {resolve(key).iso639_3 for key in (*language.codes, language.name)} == {
        language.iso639_3
    }


def test_no_key_belongs_to_two_languages():
    keys = [{k.casefold() for k in (*lang.codes, lang.name)} for lang in LANGUAGES]
    assert max(Counter(key for own in keys for key in own).values()) == 1


def test_a_table_with_a_shared_code_is_refused():
    clash = dataclasses.replace(resolve("fra"), iso639_3="xyz", aliases=("de",))
    with pytest.raises(ValueError, match="'de' stands for both German and French"):
        languages._index([resolve("deu"), clash])


def test_iso_639_1_and_bibliographic_codes_agree_with_lang2vec():
    folder = Path(importlib.util.find_spec("lang2vec").submodule_search_locations[0]) / "data"
    letters = json.loads((folder / "letter_codes.json").read_text())
    ours = {code for language in LANGUAGES for code in language.codes}
    pairs = {short: iso for short, iso in letters.items() if iso in ours}
    assert [s for s, iso in pairs.items() if resolve(s) is not resolve(iso)] == []


@pytest.mark.parametrize(
    ("queries", "iso639_3"),
    [
        ("swa swh sw swh_Latn Swahili", "swh"),
        ("zho cmn zh zho_Hans Chinese", "zho"),
        ("arb ara ar arb_Arab Arabic", "arb"),
        ("ori ory or ory_Orya Odia", "ory"),
        ("npi nep ne npi_Deva Nepali", "npi"),
        ("aka ak aka_Latn Akan", "aka"),
        ("twi tw twi_Latn", "twi"),
        ("est ekk et est_Latn Estonian", "est"),
        ("quy que qu quy_Latn Quechua", "quy"),
        ("ayr aym ay ayr_Latn Aymara", "ayr"),
        ("gn grn gug grn_Latn Guarani", "grn"),
        ("nah Nahuatl", "nah"),
        ("oto Otomi", "oto"),
    ],
)
def test_macrolanguage_codes_meet_in_one_language(queries, iso639_3):
    assert {resolve(query).iso639_3 for query in queries.split()} == {iso639_3}


@given(st.sampled_from([k for lang in LANGUAGES for k in (*lang.codes, lang.name)]), st.data())
def test_case_and_outer_spaces_do_not_matter(key, data):
    upper = data.draw(st.lists(st.booleans(), min_size=len(key), max_size=len(key)))
    mixed = "".join(c.upper() if up else c.lower() for c, up in zip(key, upper, strict=True))
    assert resolve(f" {mixed}\t") is resolve(key)


def test_unknown_language_names_the_value_and_three_languages_with_codes():
    with pytest.raises(InputError, match=r"'Swahilli'; did you mean Swahili \(swh\), .+, .+\?"):
        resolve("Swahilli")


@pytest.mark.parametrize("query", ["", "  ", "all", "xx", None, 7])
def test_what_is_no_language_is_refused(query):
    with pytest.raises(InputError, match="unknown language"):
        resolve(query)


def test_resolve_all_keeps_the_order_of_a_list():
    assert [lang.iso639_3 for lang in resolve_all(["sw", "en", "zh"])] == ["swh", "eng", "zho"]


def test_resolve_all_of_all_is_the_table():
    assert resolve_all("all") == LANGUAGES


def test_resolve_all_refuses_one_language_under_two_codes():
    with pytest.raises(InputError, match="Swahili twice: 'sw' and 'swh_Latn'"):
        resolve_all(["sw", "en", "swh_Latn"])


@pytest.mark.parametrize("queries", [[], "eng", "en,fr"])
def test_resolve_all_refuses_nothing_and_bare_strings(queries):
    with pytest.raises(InputError, match="allowed are"):
        resolve_all(queries)


# --- distances ---------------------------------------------------------------------------------


def test_frame_has_one_row_per_language_and_the_six_columns():
    assert tuple(english().columns) == DISTANCES
    assert list(english().index) == [language.iso639_3 for language in LANGUAGES]
    assert english().index.name == "iso639_3"


@pytest.mark.parametrize(
    ("column", "table", "prefix"),
    [
        ("syntactic", "feature_predictions", "S_"),
        ("phonological", "feature_predictions", "P_"),
        ("inventory", "feature_predictions", "INV_"),
        ("featural", "feature_predictions", ""),
        ("genetic", "family_features", ""),
    ],
)
@pytest.mark.parametrize("code", ["deu", "zho", "arb", "swh"])
def test_vector_distances_are_scipy_cosine_distances_of_the_tables(column, table, prefix, code):
    there = raw_vector(table, resolve(code).uriel, prefix)[:, 0].astype(float)
    here = raw_vector(table, "eng", prefix)[:, 0].astype(float)
    assert english().loc[code, column] == pytest.approx(cosine(here, there), abs=1e-12)


@pytest.mark.parametrize("code", ["fra", "jpn"])
def test_geographic_is_the_haversine_between_glottolog_coordinates(code):
    (lat1, lon1), (lat2, lon2) = np.radians(GLOTTOLOG["eng"]), np.radians(GLOTTOLOG[code])
    squared = (
        np.sin((lat2 - lat1) / 2) ** 2
        + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    )
    expected = 2 * np.arcsin(np.sqrt(squared)) / np.pi
    assert english().loc[code, "geographic"] == pytest.approx(expected, abs=1e-3)  # 20 km


def test_recovered_places_reproduce_the_angles_within_the_rounding_of_the_grid():
    values, names = languages._rows("geocoord_features")
    known = ~np.isnan(values[:, 0, 0])
    places = languages._positions(values, names)[known]
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    lat, lon = np.radians([[float(part) for part in name.split("_")[1:]] for name in names]).T
    here = np.arcsin(places[:, 2:]), np.arctan2(places[:, 1:2], places[:, :1])
    cosines = np.sin(here[0]) * np.sin(lat) + np.cos(here[0]) * np.cos(lat) * np.cos(lon - here[1])
    worst = np.abs(np.arccos(cosines) / np.pi - values[known, :, 0]).max()
    assert worst < 0.75 / 180  # half the diagonal of a one-degree cell is 0.71 degrees


@pytest.mark.parametrize("language", WITH_URIEL, ids=lambda language: language.iso639_3)
def test_a_language_is_at_zero_from_itself(language):
    own = distances(language.iso639_3).loc[language.iso639_3].dropna()
    assert len(own) >= 5 and (own == 0).all()


def test_distances_are_symmetric_and_at_most_one():
    keys = [language.iso639_3 for language in WITH_URIEL]
    cube = np.stack([distances(key).loc[keys].to_numpy() for key in keys])
    np.testing.assert_allclose(cube, cube.transpose(1, 0, 2), rtol=0, atol=1e-15)
    assert np.nanmin(cube) >= 0 and np.nanmax(cube) <= 1 + 1e-12


@pytest.mark.parametrize("column", ["syntactic", "genetic", "geographic", "featural"])
def test_german_is_nearer_to_english_than_chinese(column):
    assert english().loc["deu", column] < english().loc["zho", column]


@pytest.mark.parametrize(
    ("source", "near", "far"),
    [
        ("eng", "deu", "fra"),  # West Germanic before Indo-European
        ("eng", "fra", "fin"),  # Indo-European before unrelated
        ("spa", "por", "ita"),  # West Ibero-Romance before Romance
        ("zul", "xho", "swh"),  # Nguni before Bantu
        ("hin", "urd", "ben"),  # Hindustani before Indo-Aryan
    ],
)
def test_genetic_distance_follows_the_family_tree(source, near, far):
    genetic = distances(source)["genetic"]
    assert genetic[near] < genetic[far]


def test_languages_without_a_common_ancestor_are_at_genetic_distance_one():
    unrelated = [lang.iso639_3 for lang in WITH_URIEL if lang.family != "Indo-European"]
    genetic = english()["genetic"][unrelated].drop("twi")
    assert genetic.to_numpy() == pytest.approx(1)


def test_an_isolate_is_at_genetic_distance_one_from_everyone():
    assert distances("eus")["genetic"].drop("eus").dropna().to_numpy() == pytest.approx(1)


def test_missing_values_are_nan_and_nothing_else_is():
    missing = english().isna().stack()
    expected = {(code, column) for code in ("nah", "oto") for column in DISTANCES}
    assert set(missing.index[missing]) == expected | {("twi", "genetic")}


def test_the_report_names_what_is_missing(capsys):
    languages._distances.cache_clear()
    distances("eng")
    assert "genetic nah oto twi; geographic nah oto;" in capsys.readouterr().out


def test_the_report_is_printed_once(capsys):
    distances("tur")
    capsys.readouterr()
    distances("tur")
    assert capsys.readouterr().out == ""


def test_changing_a_returned_table_changes_no_later_one():
    mine = distances("eng")
    mine["genetic"] = 0.5
    assert distances("eng").loc["eng", "genetic"] == 0


def test_coverage_is_the_share_of_features_with_any_source():
    observed = (raw_vector("features", "ita", "S_") != -1).any(axis=1)
    assert coverage().loc["ita", "syntactic"] == pytest.approx(observed.mean())


def test_a_caller_cannot_change_the_stored_coverage():
    mine = coverage()
    mine.loc["eng", "syntactic"] = -1
    assert coverage().loc["eng", "syntactic"] >= 0


def test_a_source_without_uriel_row_is_refused():
    with pytest.raises(InputError, match="'nah': URIEL has no row for Nahuatl"):
        distances("nah")


def test_lang2vec_is_read_but_never_imported():
    languages._uriel_folder()
    assert not [name for name in sys.modules if name.split(".")[0] == "lang2vec"]


def test_absent_package_is_named_with_its_install_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps lang2vec==1\.1\.2"):
        languages._uriel_folder()


def test_a_changed_table_is_refused(monkeypatch, tmp_path):
    (tmp_path / "features.npz").write_bytes(b"other")
    monkeypatch.setattr(languages, "_uriel_folder", lambda: tmp_path)
    with pytest.raises(RuntimeError, match="sha256"):
        languages._read("features")


def test_a_missing_table_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(languages, "_uriel_folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"features\.npz is missing"):
        languages._read("features")
