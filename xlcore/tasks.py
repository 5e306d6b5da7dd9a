"""The tasks: their labels, their label words, and the corpora that carry them, as one table.

Stands before data.py, which reads what is listed here. SPT (arXiv 2402.03782): SIB-200 topics.
LTP (arXiv 2404.01242): XNLI, AmericasNLI; splits and label words of Zhao & Schuetze 2021.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from xlcore.languages import Language


@dataclass(frozen=True)
class Corpus:
    """One parallel corpus in the layout <name>/<code>/<split>.tsv, and how its files are read.

    Without an `index_id` column a pair is known by its row, the same in every language; files in
    `ragged` lack rows, nobody says which, so theirs get numbers of their own. With `shots` a split
    is the fixed few-shot sets of those K, one file <split>-<K>.tsv each. `fit` names, per source,
    the corpus to train on in a language that this one cannot train in.
    """

    name: str
    title: str
    rows: Mapping[str, int]  # split -> rows, the same in every language
    hub_id: str | None = None
    codes: str = "flores"  # whose codes name its languages: a field of Language
    label: str = "category"  # the label's column
    index_id: str | None = "index_id"
    ragged: Mapping[str, int] = field(default_factory=dict)  # "<code>/<split>" -> rows
    shots: tuple[int, ...] = ()
    only: str | None = None  # its one language, whose files lie in no folder of their own
    fit: Mapping[str, str] = field(default_factory=dict)  # "directory" or "hub" -> corpus

    def code(self, language: Language) -> str | None:
        """Return what the corpus calls a language, None if its codes have no name for it."""
        code = getattr(language, self.codes)
        return code if self.only in (None, code) else None

    def files(self, code: str, split: str) -> list[str]:
        """Return the files of one split, relative to the corpus's folder, the smallest K first."""
        stem = split if self.only else f"{code}/{split}"
        return [f"{stem}-{k}.tsv" for k in self.shots] if self.shots else [f"{stem}.tsv"]

    @property
    def layout(self) -> str:
        """Return the layout for an error message, such as <flores code>/{train,dev,test}.tsv."""
        folder = "" if self.only else f"<{self.codes} code>/"
        return f"{folder}{{{','.join(self.rows)}}}{'-<K>' if self.shots else ''}.tsv"


@dataclass(frozen=True)
class Task:
    """Labels, the label word of each per model family, and the corpora that carry the task."""

    name: str
    labels: tuple[str, ...]
    words: Mapping[str, Mapping[str, str]]  # family (or "default") -> label -> label word
    embedded: Corpus | None = None
    benchmark: Corpus | None = None
    further: tuple[Corpus, ...] = ()  # more benchmarks, and corpora that only train
    columns: tuple[str, ...] = ("text",)  # an example's texts

    @property
    def benchmarks(self) -> dict[str, Corpus]:
        """Return the corpora of a directory or the Hub by name, the usual one first."""
        return {x.name: x for x in (self.benchmark, *self.further) if x}


def _topics() -> Task:
    labels = ("geography", "science/technology", "entertainment", "politics", "health", "travel",
              "sports")  # fmt: skip
    xglm = ("earth", "science", "entertainment", "politics", "health", "travel", "sports")
    bloom = ("earth", "science", "fun", "government", "health", "travel", "play")
    words = {"default": xglm, "xglm": xglm, "bloom": bloom}
    return Task(
        "topics",
        labels,
        {family: dict(zip(labels, row, strict=True)) for family, row in words.items()},
        Corpus("pocket_topics", "Pocket Topics", {"train": 112, "dev": 28, "test": 70}),
        Corpus("sib200", "SIB-200", {"train": 701, "dev": 99, "test": 204}, "Davlan/sib200"),
    )


def _nli() -> Task:
    words = {"entailment": "right", "neutral": "maybe", "contradiction": "wrong"}
    by_row = dict(label="label", index_id=None)
    xnli = Corpus("xnli", "XNLI", {"train": 392702, "dev": 2490, "test": 5010}, "facebook/xnli",
                  "xnli", fit={"directory": "xnli_fewshot", "hub": "xnli"}, **by_row)  # fmt: skip
    lacking = {"cni/dev": 658, "nah/dev": 585, "nah/test": 738, "oto/dev": 222, "oto/test": 748}
    americas = Corpus("americasnli", "AmericasNLI", {"dev": 743, "test": 750},
                      "nala-cub/americas_nli", "americasnli", ragged=lacking, fit=xnli.fit,
                      **by_row)  # fmt: skip
    few = Corpus("xnli_fewshot", "XNLI few-shot splits", {"train": 1533, "dev": 1533},
                 codes="xnli", shots=tuple(2**i for i in range(9)), **by_row)  # fmt: skip
    mnli = Corpus("mnli_english", "a sample of MultiNLI", {"train": 8999, "dev": 1000},
                  codes="xnli", only="en", **by_row)  # fmt: skip
    pocket = Corpus("pocket_nli", "Pocket NLI", {"train": 144, "dev": 48, "test": 66},
                    label="label")  # fmt: skip
    texts = ("premise", "hypothesis")
    return Task("nli", tuple(words), {"default": words}, pocket, xnli, (americas, few, mnli), texts)


TASKS = {"topics": _topics(), "nli": _nli()}
