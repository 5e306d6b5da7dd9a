"""One few-shot study of soft prompts: everything is checked first, then loaded, trained, scored.

Stands over data, checkpoints, training and evaluation, so that a notebook needs few lines.
SPT section 4: train on K English examples a class, test in every language.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import pandas as pd
from torch import Tensor

from xlcore import checkpoints, evaluation, tuning
from xlcore.backbones import Backbone, token_ids
from xlcore.checkpoints import Checkpoint
from xlcore.data import Draw, TaskData, draw, load
from xlcore.devices import choose_device, choose_dtype
from xlcore.errors import InputError, choose
from xlcore.prompts import (
    POSITIONS,
    Reparameterization,
    SoftPrompt,
    Verbalizer,
    check_lengths,
    check_start,
    initialize,
)
from xlcore.training import SELECTIONS, Job, Labelled, Settings, Trained, TrainingDiverged, fit

PROMPTED = ("soft_prompt", "joint_tuning")  # methods that train a soft prompt


class Planned:
    """What every study knows: its checked data and its model, perhaps not yet its weights."""

    data: TaskData
    checkpoint: Checkpoint

    def references(self, study: str) -> list[dict]:
        """Return rows that no prompt made, per language: majority accuracy and fertility.

        majority: always answering the test texts' most frequent label, in percent. fertility: the
        tokenizer's tokens for the test texts, relative to the same texts in English (left out if
        English is not among the languages). Source: Rust et al. 2021, for fertility.
        """
        about = dict(study=study, task=self.data.task.name, data=self.data.name, seed=0, shots=0)
        tests = {x.iso639_3: self.data.examples(x, "test") for x in self.data.languages}
        majority = about | dict(backbone="none", method="majority", metric="accuracy")
        rows = [
            majority | dict(language=code, value=100 * t.label.value_counts(normalize=True).max())
            for code, t in tests.items()
        ]
        counts = {code: self._tokens(t) for code, t in tests.items()}
        about |= dict(backbone=self.checkpoint.name, method="tokenizer", metric="fertility")
        return rows + [
            about | dict(language=code, value=n / counts["eng"])
            for code, n in counts.items()
            if "eng" in counts
        ]

    def _tokens(self, rows: pd.DataFrame) -> int:
        """Count the tokens of all texts of some rows."""
        texts = pd.concat([rows[column] for column in self.data.task.columns])
        return sum(map(len, token_ids(self.checkpoint.tokenizer, texts, sys.maxsize)))

    def facts(self, backbone: Backbone) -> dict:
        """Return what a manifest must say of the data and the model."""
        return dict(
            data=dict(
                name=self.data.name, source=self.data.source, sha256=self.data.sha256,
                description=self.data.describe(),
            ),
            backbone=dict(
                name=self.checkpoint.name, sha256=backbone.sha256, device=str(backbone.device),
                dtype=str(backbone.dtype).removeprefix("torch."),
            ),
        )  # fmt: skip


def label_words(checkpoint: Checkpoint, data: TaskData) -> Verbalizer:
    """Return the label words of the model's family; InputError unless each is one token."""
    family, words = checkpoint.family, data.task.words
    given = words.get(family.name, words["default"])
    return Verbalizer.build(checkpoint.tokenizer, given, family.word_prefix)


@dataclass(frozen=True)
class Study(Planned):
    """A checked plan: the data, the model (not yet its weights), the draws and the settings."""

    data: TaskData
    checkpoint: Checkpoint
    verbalizer: Verbalizer
    draws: tuple[Draw, ...]
    lengths: tuple[int, ...]
    settings: Settings
    length_rates: tuple[float, ...] = ()  # learning rate of each length; empty: the settings' one
    init: str = "uniform"
    position: str = "suffix"
    reparameterization: str = "none"
    hidden: int = 200
    train_norm: bool = False
    device: str = "auto"
    dtype: str = "auto"

    @classmethod
    def plan(
        cls,
        backbone: str,
        languages: Iterable[str] | str = "all",
        source: str = "auto",
        task: str = "topics",
        shots: int = 8,
        seeds: Sequence[int] = (1, 2, 3),
        lengths: Sequence[int] = (5,),
        length_rates: Sequence[float] = (),
        init: str = "uniform",
        position: str = "suffix",
        reparameterization: str = "none",
        hidden: int = 200,
        train_norm: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        **settings: object,
    ) -> "Study":
        """Check every choice against the data and the tokenizer, before any weights are loaded.

        `length_rates` are the lengths' learning rates, where each has its own; `hidden` is the
        width inside the reparameterization, `train_norm` whether its LayerNorm learns; `settings`
        are those of `training.Settings`. Raises InputError for the first choice
        that is not possible: language, data file, shots, model, length, init, label word, ...
        """
        chosen = make_settings(Settings, settings)
        check_different("seeds", seeds)
        check_different("lengths", lengths)
        length_rates = tuple(replace(chosen, learning_rate=r).learning_rate for r in length_rates)
        if length_rates and len(length_rates) != len(lengths):
            raise InputError(
                f"length_rates {length_rates!r} must be one rate for each of lengths {lengths!r}"
            )
        check_start(init, reparameterization, hidden)
        choose("prompt position", position, POSITIONS)
        choose_dtype(dtype, choose_device(device))
        check_lengths(lengths, chosen.max_length)
        data = load(task, languages, source)
        draws = tuple(draw(data, shots, seed) for seed in seeds)
        checkpoint = checkpoints.find(backbone)
        checkpoint.check_length(chosen.max_length)
        verbalizer = label_words(checkpoint, data)
        lengths = tuple(lengths)
        return cls(
            data, checkpoint, verbalizer, draws, lengths, chosen, length_rates, init, position,
            reparameterization, hidden, train_norm, device, dtype,
        )  # fmt: skip

    def load(self) -> Backbone:
        """Load the weights; prints the device and dtype chosen."""
        return self.checkpoint.load(self.device, self.dtype)

    def check_method(self, method: str, selections: Sequence[str]) -> None:
        """Refuse an unknown method, and a choice that would change nothing yet stand in its rows.

        A tuned model is tested at one epoch, for each would be a copy of its own; a method without
        a soft prompt has no init, position or reparameterization. Raises InputError.
        """
        choose("method", method, ["soft_prompt", *tuning.TUNERS])
        if method != "soft_prompt" and len(selections) != 1:
            told = f"method {method} is tested at one of {', '.join(SELECTIONS)}"
            raise InputError(f"selections {list(selections)!r}: {told}")
        own = [] if method in PROMPTED else ["init", "position", "reparameterization"]
        for name in own:
            given, default = getattr(self, name), getattr(Study, name)
            if given != default:
                told = f"method {method} has no soft prompt; leave it at {default!r}"
                raise InputError(f"{name} {given!r}: {told}")

    @property
    def room(self) -> int:
        """Text tokens that the shortest prompt and the end token leave room for."""
        return self.settings.max_length - 1 - min(self.lengths)

    def labelled(self, backbone: Backbone, rows: pd.DataFrame) -> Labelled:
        """Tokenize rows of the data with their label numbers."""
        tokens = backbone.tokenize(rows.text, self.room)
        return Labelled(tokens, self.verbalizer.index(rows.label))

    def jobs(self, backbone: Backbone) -> list[Job]:
        """Make one prompt per seed and length; all lengths of a seed share its draw."""
        out = []
        for drawn in self.draws:
            train, dev = (self.labelled(backbone, rows) for rows in drawn.texts(self.data))
            rates = self.length_rates or [self.settings.learning_rate] * len(self.lengths)
            for n, rate in zip(self.lengths, rates, strict=True):
                start = initialize(backbone, n, drawn.seed, self.init, self.verbalizer.ids)
                network = self._network(backbone.width, drawn.seed)
                prompt = SoftPrompt(start, self.position, f"n={n} seed={drawn.seed}", network)
                out.append(Job(prompt, train, dev, drawn.seed, rate))
        return out

    def _network(self, width: int, seed: int) -> Reparameterization | None:
        kind = self.reparameterization
        if kind == "none":
            return None
        return Reparameterization(kind, width, self.hidden, seed, self.train_norm)

    def train(
        self, backbone: Backbone, jobs: Sequence[Job] | None = None
    ) -> tuple[list[Job], list[Trained]]:
        """Train all lengths and seeds together, or these jobs, which `fit` must be able to join."""
        jobs = self.jobs(backbone) if jobs is None else list(jobs)
        return jobs, fit(backbone, jobs, self.verbalizer, self.settings)

    def evaluate(
        self,
        backbone: Backbone,
        jobs: Sequence[Job],
        trained: Sequence[Trained],
        study: str,
        selections: Sequence[str] = tuple(SELECTIONS),
    ) -> pd.DataFrame:
        """Score every prompt in every language, at its best dev epoch, its last, or both.

        Returns tidy rows, one number a row, with the columns that every result of xlcore has, and
        `length` and `selection` ("best_dev" or "last").
        """
        chosen = [choose("selection", s, SELECTIONS) for s in selections]
        vectors = [getattr(t, SELECTIONS[s]) for t in trained for s in chosen]
        scored = evaluation.evaluate(
            backbone, vectors, self.data, self.verbalizer,
            position=self.position, max_length=self.settings.max_length,
        )  # fmt: skip
        about = [
            dict(study=study) | self.about(job) | dict(selection=s) for job in jobs for s in chosen
        ]
        return joined(about, scored)

    def tune(
        self,
        backbone: Backbone,
        method: str,
        study: str,
        scope: str = "all",
        selections: Sequence[str] = ("best_dev",),
        progress: bool = True,
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Train and score a method of `tuning.TUNERS` on the same draws, one job after the other.

        Returns rows like those of `evaluate`, and every epoch's losses (seed, epoch, train_loss,
        dev_loss, dev_accuracy, kept). `scope`: the weights that full tuning moves, "all" or "body".
        The backbone given is not touched, and only one tuned copy is held at a time. Raises
        InputError as `check_method`.
        """
        self.check_method(method, selections)
        choose("method", method, tuning.TUNERS)
        (selection,), scored, losses = selections, [], []
        for job in self.jobs(backbone):
            tuned = tuning.tune(
                self.checkpoint.fresh, backbone, job, method, self.verbalizer, self.settings,
                scope, selection, progress,
            )  # fmt: skip
            read = partial(self._read, tuned)
            found = evaluation.measure(read, self.data, self.verbalizer, progress=progress)
            about = dict(study=study) | self.about(job)
            about |= dict(method=method, trained=tuned.trained)
            if issubclass(tuning.TUNERS[method], tuning.FineTuning):
                about["scope"] = scope
            scored.append(joined([about | dict(selection=selection)], found))
            losses.append(pd.DataFrame(tuned.history).assign(seed=job.seed))
            del tuned, read
        return pd.concat(scored, ignore_index=True), pd.concat(losses, ignore_index=True)

    def _read(self, tuned: tuning.Tuned, rows: pd.DataFrame) -> Tensor:
        return tuned.score(rows.text, self.verbalizer, self.room)

    def rates(
        self, backbone: Backbone, method: str, rates: Sequence[float], scope: str = "all",
        progress: bool = True,
    ) -> pd.DataFrame:  # fmt: skip
        """Return the losses of every rate, seed and epoch, without looking at any test text.

        Columns: learning_rate, seed, epoch, train_loss, dev_loss, dev_accuracy. A rate at which a
        loss is not finite is printed and has one row a seed with empty losses.
        """
        self.check_method(method, ["best_dev"])
        found = []
        for rate in rates:
            jobs = [replace(job, learning_rate=rate) for job in self.jobs(backbone)]
            try:
                histories = self._histories(backbone, jobs, method, scope, progress)
            except TrainingDiverged as error:
                print(f"rate {rate:g} is out: {error}")
                histories = [[dict(epoch=0, dev_loss=float("nan"))] for _ in jobs]
            for job, history in zip(jobs, histories, strict=True):
                found.append(pd.DataFrame(history).assign(seed=job.seed, learning_rate=rate))
        return pd.concat(found, ignore_index=True)

    def _histories(self, backbone, jobs, method, scope, progress) -> list[list[dict]]:
        """Train jobs by a method and keep what was measured on the way."""
        if method == "soft_prompt":
            return [t.history for t in fit(backbone, jobs, self.verbalizer, self.settings)]
        given = (self.verbalizer, self.settings, scope, "last", progress)
        fresh = self.checkpoint.fresh
        return [tuning.tune(fresh, backbone, job, method, *given).history for job in jobs]

    def about(self, job: Job) -> dict:
        """Return what the rows say of a job's prompt, and what tells it from all others."""
        network = job.prompt.network
        return dict(
            task=self.data.task.name, data=self.data.name, backbone=self.checkpoint.name,
            method="soft_prompt", scope="none", seed=job.seed, shots=self.draws[0].shots,
            length=len(job.prompt), init=self.init, position=self.position,
            loss=self.settings.loss,
            reparameterization=network.kind if network else "none",
            hidden=network.hidden if network else 0,
            trained=sum(p.numel() for p in job.prompt.parameters() if p.requires_grad),
            epochs=self.settings.epochs, learning_rate=job.rate(self.settings),
        )  # fmt: skip


def make_settings(kind: type[Settings], given: dict) -> Settings:
    """Return settings of a kind; InputError with the nearest names for one there is not."""
    for name in given:
        choose("setting", name, [f.name for f in fields(kind)])
    return kind(**given)


def joined(about: Sequence[dict], scored: pd.DataFrame) -> pd.DataFrame:
    """Put what is known of each prompt before its scores."""
    facts = pd.DataFrame(about).loc[scored.prompt].reset_index(drop=True)
    return pd.concat([facts, scored.drop(columns="prompt")], axis=1)


def check_different(thing: str, values: object) -> None:
    """Refuse anything but one or more different values in a list."""
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    if not listed or not values or len(set(values)) < len(values):
        raise InputError(f"{thing} {values!r} must be a list of one or more different values")
