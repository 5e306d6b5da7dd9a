"""One few-shot study of soft prompts: everything is checked first, then loaded, trained, scored.

Stands over data, checkpoints, training and evaluation, so that a notebook needs few lines.
SPT section 4: train on K English examples a class, test in every language.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import pandas as pd

from xlcore import checkpoints, evaluation
from xlcore.backbones import Backbone
from xlcore.checkpoints import Checkpoint, choose_device, choose_dtype
from xlcore.data import Draw, TaskData, draw, load
from xlcore.errors import InputError, choose
from xlcore.prompts import (
    INITS,
    POSITIONS,
    SoftPrompt,
    Verbalizer,
    check_lengths,
    initialize,
)
from xlcore.training import Job, Labelled, Settings, Trained, fit

SELECTIONS = {"best_dev": "best", "last": "last"}  # which epoch's vectors, and `Trained`'s name


@dataclass(frozen=True)
class Study:
    """A checked plan: the data, the model (not yet its weights), the draws and the settings."""

    data: TaskData
    checkpoint: Checkpoint
    verbalizer: Verbalizer
    draws: tuple[Draw, ...]
    lengths: tuple[int, ...]
    settings: Settings
    init: str = "uniform"
    position: str = "suffix"
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
        init: str = "uniform",
        position: str = "suffix",
        device: str = "auto",
        dtype: str = "auto",
        **settings: object,
    ) -> "Study":
        """Check every choice against the data and the tokenizer, before any weights are loaded.

        `settings` are those of `training.Settings`. Raises InputError for the first choice that is
        not possible: language, data file, shots, model, length, init, position, device, label word.
        """
        for name in settings:
            choose("setting", name, [f.name for f in fields(Settings)])
        chosen = Settings(**settings)
        _check_different("seeds", seeds)
        _check_different("lengths", lengths)
        choose("init", init, INITS)
        choose("prompt position", position, POSITIONS)
        choose_dtype(dtype, choose_device(device))
        check_lengths(lengths, chosen.max_length)
        data = load(task, languages, source)
        draws = tuple(draw(data, shots, seed) for seed in seeds)
        checkpoint = checkpoints.find(backbone)
        if checkpoint.context and chosen.max_length > checkpoint.context:
            raise InputError(
                f"max_length {chosen.max_length} is longer than the context of {backbone}; "
                f"allowed: up to {checkpoint.context}"
            )
        family = checkpoint.family
        words = data.task.words.get(family.name, data.task.words["default"])
        verbalizer = Verbalizer.build(checkpoint.tokenizer, words, family.word_prefix)
        lengths = tuple(lengths)
        return cls(
            data, checkpoint, verbalizer, draws, lengths, chosen, init, position, device, dtype
        )

    def load(self) -> Backbone:
        """Load the weights; prints the device and dtype chosen."""
        return self.checkpoint.load(self.device, self.dtype)

    def labelled(self, backbone: Backbone, rows: pd.DataFrame) -> Labelled:
        """Tokenize rows of the data with their label numbers."""
        room = self.settings.max_length - 1 - min(self.lengths)
        tokens = backbone.tokenize(rows.text, room)
        return Labelled(tokens, self.verbalizer.index(rows.label))

    def jobs(self, backbone: Backbone) -> list[Job]:
        """Make one prompt per seed and length; all lengths of a seed share its draw."""
        out = []
        for drawn in self.draws:
            train, dev = (self.labelled(backbone, rows) for rows in drawn.texts(self.data))
            for n in self.lengths:
                start = initialize(backbone, n, drawn.seed, self.init, self.verbalizer.ids)
                prompt = SoftPrompt(start, self.position, f"n={n} seed={drawn.seed}")
                out.append(Job(prompt, train, dev, drawn.seed))
        return out

    def train(self, backbone: Backbone) -> tuple[list[Job], list[Trained]]:
        """Train all lengths and seeds together."""
        jobs = self.jobs(backbone)
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
        about = [self._about(job, study) | dict(selection=s) for job in jobs for s in chosen]
        facts = pd.DataFrame(about).loc[scored.prompt].reset_index(drop=True)
        return pd.concat([facts, scored.drop(columns="prompt")], axis=1)

    def majority(self, study: str) -> list[dict]:
        """Return rows for always answering the test texts' most frequent label."""
        about = dict(
            study=study, task=self.data.task.name, data=self.data.name, backbone="none",
            method="majority", seed=0, shots=0, metric="accuracy",
        )  # fmt: skip
        share = {
            x.iso639_3: 100 * self.data.examples(x, "test").label.value_counts(normalize=True).max()
            for x in self.data.languages
        }
        return [about | dict(language=code, value=value) for code, value in share.items()]

    def _about(self, job: Job, study: str) -> dict:
        return dict(
            study=study, task=self.data.task.name, data=self.data.name,
            backbone=self.checkpoint.name, method="soft_prompt", seed=job.seed,
            shots=self.draws[0].shots, length=len(job.prompt), init=self.init,
            position=self.position, learning_rate=job.rate(self.settings),
        )  # fmt: skip

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


def _check_different(thing: str, values: object) -> None:
    """Refuse anything but one or more different whole numbers in a list."""
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    if not listed or not values or len(set(values)) < len(values):
        raise InputError(f"{thing} {values!r} must be a list of one or more different numbers")
