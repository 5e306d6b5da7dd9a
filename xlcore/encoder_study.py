"""One few-shot study of methods on an encoder: all checked first, then loaded, trained, scored.

Stands beside `study`, which does the same for prompts on decoders; a notebook needs few lines.
LTP sections 3 and 4: K examples a class, in English (zero-shot) or in each language (in-language).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

import pandas as pd
from torch import Tensor

from xlcore import checkpoints, evaluation, methods
from xlcore.checkpoints import Checkpoint
from xlcore.cloze import TEMPLATES, cloze, strip
from xlcore.data import Draw, TaskData, draw, fewer_tests, load
from xlcore.devices import choose_device
from xlcore.encoders import KEYED, Encoder
from xlcore.errors import InputError, choose
from xlcore.methods import METHODS, SELECTIONS, Recipe, Settings, Trained
from xlcore.prompts import Verbalizer, check_lengths, check_start
from xlcore.study import Planned, check_different, label_words, make_settings
from xlcore.tickets import Ticket
from xlcore.training import Labelled, TrainingDiverged

IN_LANGUAGE = "in-language"


@dataclass(frozen=True)
class EncoderStudy(Planned):
    """A checked plan: the data, the encoder (not yet its weights), the draws and the methods."""

    data: TaskData
    checkpoint: Checkpoint
    verbalizer: Verbalizer
    draws: dict[str, tuple[Draw, ...]]  # language to train on -> a draw a seed
    methods: tuple[str, ...]
    settings: Settings
    rates: dict[str, float]  # method -> learning rate of all but its prompt; alone, the prompt's
    prompt: dict  # length, init, reparameterization, hidden: as `Recipe` has them
    in_language: bool = False
    selection: str = "best_dev_accuracy"
    device: str = "auto"
    _tokens_of: dict = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def plan(
        cls,
        backbone: str,
        languages: Iterable[str] | str = "all",
        source: str = "auto",
        data: str | None = None,
        methods: Sequence[str] = tuple(METHODS),
        shots: int = 16,
        seeds: Sequence[int] = (1, 2, 3),
        train_language: str = "eng",
        test_pairs: int | None = None,
        length: int = 4,
        init: str = "vocabulary",
        reparameterization: str = "none",
        hidden: int = 200,
        rates: Mapping[str, float] | Sequence[float] = (),
        selection: str = "best_dev_accuracy",
        device: str = "auto",
        task: str = "nli",
        train_data: str | None = None,
        **settings: object,
    ) -> "EncoderStudy":
        """Check every choice against the data and the tokenizer, before any weights are loaded.

        train_language: of the training texts in zero-shot transfer, or "in-language", where each
        language is trained and tested on itself. test_pairs: None for all, or how many a language,
        the same in all parallel ones. rates: learning rates by method, where they differ from the
        table's, or one for each method in order; of a method that trains a prompt alone, the
        prompt's, else `prompt_rate`. train_data: a corpus to train on other than the
        usual one; `settings` are those of `methods.Settings`. Raises InputError for the first
        choice that is not possible.
        """
        chosen = make_settings(Settings, settings)
        check_different("seeds", seeds)
        rates = _rates(methods, rates, chosen, "learning_rate" in settings)
        choose("selection", selection, SELECTIONS)
        check_start(init, reparameterization, hidden)
        check_lengths([length], chosen.max_length)
        choose_device(device)
        own = train_language == IN_LANGUAGE
        trained = "all" if own else [train_language]
        loaded = load(
            task, languages, source, train_languages=trained, data=data, train_data=train_data
        )
        loaded = loaded if test_pairs is None else fewer_tests(loaded, test_pairs)
        codes = [x.iso639_3 for x in loaded.languages] if own else [loaded.code(train_language)]
        draws = {x: tuple(draw(loaded, shots, seed, x) for seed in seeds) for x in codes}
        checkpoint = checkpoints.find(backbone, "encoder")
        _check_model(checkpoint, methods, loaded, chosen.max_length, length)
        prompt = dict(
            length=length, init=init, reparameterization=reparameterization, hidden=hidden
        )
        return cls(
            loaded, checkpoint, label_words(checkpoint, loaded), draws, tuple(methods), chosen,
            rates, prompt, own, selection, device,
        )  # fmt: skip

    @property
    def drawn(self) -> str:
        """How the examples were chosen: "seeded", or "published", the same ones for every seed."""
        return "published" if self.data.fit and self.data.fit.shots else "seeded"

    def load(self) -> Encoder:
        """Load the weights, in fp32; prints the device chosen."""
        return self.checkpoint.load(self.device, "float32")

    def train(
        self,
        encoder: Encoder,
        method: str,
        ticket: Ticket | None = None,
        strategy: str | None = None,
        scope: str | None = None,
        seeds: Sequence[int] | None = None,
        progress: bool = True,
    ) -> Iterator[Trained]:
        """Train a method for every training language and seed, one when it is asked for.

        Only who keeps them holds more than one, so that full tuning stays small. A ticket comes
        with the strategy and scope it was selected by; full tuning's scope is "all" or "body".
        seeds: some of the plan's. Raises InputError and TrainingDiverged as `methods.train`.
        """
        choose("planned method", method, self.methods)
        told = dict(ticket=ticket, strategy=strategy, scope=scope) | self.prompt
        recipes = [
            (drawn, Recipe(method, drawn.seed, language=code, **told))
            for code, draws in self.draws.items()
            for drawn in draws
            if seeds is None or drawn.seed in seeds
        ]
        if not recipes:
            raise InputError(f"seeds {seeds!r} are none of the plan's")
        return (self._train(encoder, drawn, recipe, progress) for drawn, recipe in recipes)

    def grid(
        self, encoder: Encoder, method: str, rates: Sequence[float], which: str = "learning_rate",
        progress: bool = True, **told: object,
    ) -> pd.DataFrame:  # fmt: skip
        """Return losses and accuracies of every rate and draw, without looking at any test text.

        which: the rate tried, "learning_rate" or "prompt_rate"; told: as for `train`. Columns are
        those of `losses`, and rate. A rate at which a loss is not finite is printed, and its draw
        has one row with empty ones. Raises InputError as `train`.
        """
        choose("rate to try", which, ("learning_rate", "prompt_rate"))
        if which == "prompt_rate" and not METHODS[choose("method", method, METHODS)].position:
            raise InputError(f"method {method!r} has no soft prompt, so no prompt_rate to try")
        tried = [self._at(method, which, rate) for rate in rates]
        seeds, found = [drawn.seed for drawn in next(iter(self.draws.values()))], []
        for (rate, plan), seed in product(zip(rates, tried, strict=True), seeds):
            try:
                done = plan.train(encoder, method, seeds=[seed], progress=progress, **told)
                histories = [plan.losses(one) for one in done]
            except TrainingDiverged as error:
                print(f"{which} {rate:g} is out: {error}")
                empty = dict(epoch=0, dev_loss=float("nan"), dev_accuracy=float("nan"))
                histories = [pd.DataFrame([empty | dict(seed=seed)])]
            found += [history.assign(rate=rate) for history in histories]
        return pd.concat(found, ignore_index=True)

    def _at(self, method: str, which: str, rate: float) -> "EncoderStudy":
        """Return the study with another rate of a method; InputError for one that cannot be."""
        settings = replace(self.settings, **{which: rate})
        own = {method: rate} if which == "learning_rate" or _alone(method) else {}
        return replace(self, settings=settings, rates=self.rates | own)

    def _rates_of(self, method: str) -> dict[str, float]:
        """Return a method's learning rate and that of its prompt, the same if there is no more."""
        rate = self.rates[method]
        own = rate if _alone(method) else self.settings.prompt_rate
        return dict(learning_rate=rate, prompt_rate=own)

    def _train(self, encoder: Encoder, drawn: Draw, recipe: Recipe, progress: bool) -> Trained:
        sides = [self.labelled(encoder, x, recipe) for x in drawn.texts(self.data, recipe.language)]
        settings = replace(self.settings, **self._rates_of(recipe.method))
        return methods.train(
            encoder, recipe, *sides, self.verbalizer, settings, self.selection, progress
        )

    def labelled(self, encoder: Encoder, rows: pd.DataFrame, recipe: Recipe) -> Labelled:
        """Put rows in the method's template; all methods read as much of a text."""
        room = self.settings.max_length - self.prompt["length"]
        texts = rows[list(self.data.task.columns)].map(strip).to_dict("records")
        tokens = encoder.tokenize(TEMPLATES[recipe.kind.template], texts, room)
        return Labelled(tokens, self.verbalizer.index(rows.label))

    def evaluate(
        self, encoder: Encoder, trained: Iterable[Trained], study: str, progress: bool = True
    ) -> pd.DataFrame:
        """Score what was trained on every language, or on its own; return tidy rows.

        One number a row, with the columns that every result of xlcore has. active: weights of the
        encoder that may move, active_ratio: their share of those in scope; trained: all numbers
        that were trained; test_pairs: the test pairs of the language.
        """
        counts = self.data.frame.query("split == 'test'").language.value_counts()
        rows = []
        for one in trained:
            about = self._about(encoder, one, study)
            tested = [one.recipe.language] if self.in_language else None
            with methods.applied(encoder, one) as read:
                given = partial(self._scores, encoder, read, one.recipe)
                found = evaluation.measure(given, self.data, self.verbalizer, tested, progress)
            for row in found.drop(columns="prompt").to_dict("records"):
                rows.append(about | row | dict(test_pairs=int(counts[row["language"]])))
        return pd.DataFrame(rows)

    def _scores(self, encoder: Encoder, read, recipe: Recipe, rows: pd.DataFrame) -> Tensor:
        """Return the scores (1, N, K) of a language's test rows, tokenized once a template."""
        key = rows.language.iloc[0], recipe.kind.template
        if key not in self._tokens_of:
            self._tokens_of[key] = self.labelled(encoder, rows, recipe).tokens
        tokens = self._tokens_of[key]
        return methods.score(encoder, read, tokens, self.verbalizer, self.settings.mixed)[None]

    def losses(self, trained: Trained) -> pd.DataFrame:
        """Return `history`, a row an epoch, with method, language, seed and rate."""
        recipe = trained.recipe
        return pd.DataFrame(trained.history).assign(
            method=recipe.method, train_language=recipe.language, seed=recipe.seed,
            learning_rate=self.rates[recipe.method],
        )  # fmt: skip

    def _about(self, encoder: Encoder, trained: Trained, study: str) -> dict:
        recipe, settings = trained.recipe, self.settings
        prompted = bool(recipe.kind.position)
        taken = prompted or recipe.kind.trains is methods.deep_prefix
        network = recipe.reparameterization if prompted else "none"
        return dict(
            study=study, task=self.data.task.name, data=self.data.name,
            backbone=self.checkpoint.name, mlm_head=encoder.mlm_head, method=recipe.method,
            seed=recipe.seed, shots=self.draws[recipe.language][0].shots,
            train_language=recipe.language, drawn=self.drawn,
            length=recipe.length if taken else 0,
            template=recipe.kind.template,
            position=recipe.kind.position or "none", init=recipe.init if prompted else "none",
            reparameterization=network, hidden=recipe.hidden if network != "none" else 0,
            trained=trained.count, loss=settings.loss, epochs=settings.epochs,
            selection=self.selection, **self._rates_of(recipe.method), **_active(trained),
        )  # fmt: skip

    def facts(self, backbone: Encoder) -> dict:
        """Return what a manifest must say of the data and the encoder, its head included."""
        facts = super().facts(backbone)
        dtype = facts["backbone"]["dtype"] + ", multiplied in bfloat16" * self.settings.mixed
        own = dict(mlm_head=backbone.mlm_head, dtype=dtype)
        return facts | dict(backbone=facts["backbone"] | own)

    def describe(self, encoder: Encoder) -> str:
        """Return data and encoder in one line for a caption, with a head that had to be fitted."""
        one = self.facts(encoder)["backbone"]
        fitted = "; MLM head fitted" * (one["mlm_head"] == "fitted")
        return f"{self.data.describe()}; {one['name']} ({one['dtype']}{fitted})"


def _active(trained: Trained) -> dict:
    """Return how many of the encoder's weights may move, and which those are."""
    recipe = trained.recipe
    if kept := recipe.ticket:
        shares = dict(active=kept.k, active_ratio=kept.k / max(kept.total, 1))
        return shares | dict(scope=recipe.scope, strategy=recipe.strategy)
    scope = recipe.scope or recipe.kind.scope
    moved = sum(w.numel() for w in trained.weights.values()) if scope != "none" else 0
    return dict(active=moved, active_ratio=float(moved > 0), scope=scope, strategy="none")


def _rates(
    chosen: Sequence[str], given: Mapping[str, float] | Sequence[float], settings: Settings,
    shared: bool,
) -> dict[str, float]:  # fmt: skip
    """Return each method's learning rate: its own, else the settings' one, else the table's."""
    check_different("methods", chosen)
    if given and not isinstance(given, Mapping):
        if len(given) != len(chosen):
            raise InputError(f"rates {given!r} must be one rate for each of methods {chosen!r}")
        given = dict(zip(chosen, given, strict=True))
    for name in chosen:
        choose("method", name, METHODS)
    for name, rate in dict(given).items():
        choose("method with a rate", name, chosen)
        replace(settings, learning_rate=rate)  # checked like the settings' own
    usual = {x: settings.learning_rate if shared else METHODS[x].rate for x in chosen}
    usual |= {x: settings.prompt_rate for x in chosen if _alone(x)}
    return usual | dict(given)


def _alone(method: str) -> bool:
    """Whether a method trains its prompt and nothing else."""
    return METHODS[method].trains is methods.nothing


def _check_model(
    checkpoint: Checkpoint, chosen: Sequence[str], data: TaskData, max_length: int, length: int
) -> None:
    """Refuse texts beyond the context, templates without room, and methods the model lacks."""
    checkpoint.check_length(max_length)
    empty = [dict.fromkeys(data.task.columns, "")]
    for method in chosen:
        cloze(checkpoint.tokenizer, TEMPLATES[METHODS[method].template], empty, max_length - length)
        if METHODS[method].trains is methods.deep_prefix:
            choose("model type with deep prompts", checkpoint.config.model_type, KEYED)
