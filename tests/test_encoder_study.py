"""A study of methods refuses every impossible choice before weights load; its rows are checked.

References: the lists of what is allowed, written out; results of the parts called one by one.
"""

import contextlib
import dataclasses
from collections import Counter

import pytest
import torch

from xlcore import checkpoints, data, methods, tickets
from xlcore.backbones import weights_sha256
from xlcore.checkpoints import find
from xlcore.data import fewer_tests, load
from xlcore.encoder_study import IN_LANGUAGE, EncoderStudy
from xlcore.encoders import moving, start_head
from xlcore.errors import InputError
from xlcore.evaluation import accuracy
from xlcore.methods import METHODS
from xlcore.results import REQUIRED, finish
from xlcore.training import TrainingDiverged

TINY = ("tiny-xlm-roberta", "tiny-bert")
QUICK = dict(shots=2, seeds=(1, 2), epochs=1, batch_size=4)
OWN = ("study", "task", "data", "backbone", "mlm_head", "method", "language", "seed", "shots",
       "metric", "value", "length", "template", "position", "strategy", "active_ratio", "scope",
       "active", "trained", "epochs", "learning_rate", "prompt_rate", "selection",
       "train_language", "drawn", "test_pairs", "loss", "init", "reparameterization",
       "hidden")  # fmt: skip


def plan(backbone="tiny-bert", **given):
    usual = dict(languages=["eng", "swh"], source="embedded", device="cpu", test_pairs=9)
    return EncoderStudy.plan(backbone, **usual | QUICK | given)


def with_ticket(model, method):
    """Return what `train` must be told of a ticket, if the method takes one."""
    if METHODS[method].trains is not methods.ticket:
        return {}
    scores = tickets.score("random", start=tickets.parameters(model.model))
    return dict(ticket=tickets.select(scores, 300), strategy="random", scope="encoder")


def encoder(name="tiny-bert"):
    torch.set_num_threads(1)  # thread hand-over costs more than these models' arithmetic
    return find(name, "encoder").load("cpu", "float32")


REFUSED = {
    "language": (dict(languages=["Swahilli"]), r"language 'Swahilli'; did you mean Swahili \("),
    "source": (dict(source="embeded"), "data folder 'embeded'.*did you mean 'embedded'"),
    "data": (dict(data="xnly"), "'xnly'; did you mean pocket_nli"),
    "model": (dict(backbone="tiny-brt"), "model 'tiny-brt'; did you mean tiny-bert"),
    "decoder": (dict(backbone="tiny-llama"), "tiny-llama.* not a masked language model"),
    "method": (dict(methods=["ltp", "bitfitt"]), "method 'bitfitt'; did you mean bitfit"),
    "methods twice": (dict(methods=["ltp", "ltp"]), "methods .* must be a list of one or more"),
    "method as text": (dict(methods="ltp"), "methods 'ltp' must be a list"),
    "rate of no method": (dict(methods=["ltp"], rates=dict(sp=1)), "method with a rate 'sp'"),
    "rate": (dict(rates=dict(sp=0)), "learning_rate 0 must be greater than 0"),
    "rates of some methods": (dict(rates=[1e-3]), "rates .* must be one rate for each of methods"),
    "train data": (dict(train_data="mnli"), "train_data 'mnli'; did you mean pocket_nli"),
    "shared rate": (dict(learning_rate="1"), "learning_rate '1' must be greater than 0"),
    "prompt rate": (dict(prompt_rate=-1), "prompt_rate -1 must be greater than 0"),
    "setting": (dict(epoch=3), "setting 'epoch'; did you mean epochs"),
    "train language": (dict(train_language="inlanguage"), "language 'inlanguage'"),
    "train language unknown": (dict(train_language="Basque"), "language of Pocket NLI"),
    "no texts to learn from": (
        dict(languages=["deu"], train_language=IN_LANGUAGE),
        "language with a train split in Pocket NLI 'deu_Latn'",
    ),
    "shots": (dict(shots=49), "shots=49 .*largest K allowed here is 48"),
    "seeds": (dict(seeds=(1, 1)), "seeds .* different"),
    "length 0": (dict(length=0), "length 0 .*allowed: 1 to 126"),
    "length too long": (dict(length=127), "length 127 .*allowed: 1 to 126"),
    "no room": (dict(max_length=12, length=4), r"8 tokens leave no room for the template"),
    "context": (dict(max_length=300), "max_length 300 is longer than the context of tiny-bert"),
    "init": (dict(init="unifrom"), "init 'unifrom'; did you mean uniform"),
    "network": (dict(reparameterization="lstn"), "'lstn'; did you mean lstm"),
    "hidden": (dict(hidden=0), "hidden 0 must be greater than 0, a whole number"),
    "selection": (dict(selection="best"), "selection 'best'; did you mean best_dev"),
    "test pairs": (dict(test_pairs=0), "number of test examples is 0"),
    "loss": (dict(loss="vocab"), "loss 'vocab'; did you mean vocabulary"),
    "device": (dict(device="cdua"), "device 'cdua'; did you mean cuda"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_impossible_choice_is_refused_before_any_weights(no_weights, case):
    given, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        plan(**given)


def test_a_label_word_of_several_tokens_is_refused(no_weights, monkeypatch):
    words = dict(entailment="antidisestablishment", neutral="maybe", contradiction="wrong")
    other = dataclasses.replace(data.TASKS["nli"], words={"default": words})
    monkeypatch.setitem(data.TASKS, "nli", other)
    with pytest.raises(InputError, match=r"'antidisestablishment' \(label 'entailment'\) is \d+"):
        plan()


def test_deep_prompts_are_refused_for_a_model_that_cannot_take_them(no_weights, monkeypatch):
    monkeypatch.setitem(checkpoints.TINY["tiny-bert"], "model_type", "distilbert")
    plan(methods=["ltp"])
    with pytest.raises(InputError, match="model type with deep prompts 'distilbert'"):
        plan(methods=["ltp", "prefix_tuning"])


def test_a_method_that_was_not_planned_is_refused():
    with pytest.raises(InputError, match="planned method 'lora'"):
        plan(methods=["bitfit"]).train(encoder(), "lora")


@pytest.mark.parametrize("given", [{}, dict(ticket="one")], ids=str)
def test_a_ticket_that_is_missing_is_refused_at_once(given):
    with pytest.raises(InputError, match="'ltp' needs a ticket, with its strategy and scope"):
        plan().train(encoder(), "ltp", **given)


def test_seeds_that_are_not_planned_are_refused():
    with pytest.raises(InputError, match=r"seeds \[7\] are none of the plan's"):
        plan().train(encoder(), "bitfit", seeds=[7])


# --- data -----------------------------------------------------------------------------------------


def test_zero_shot_learns_from_english_alone_and_in_language_from_each():
    assert list(plan(languages=["swh", "deu"]).draws) == ["eng"]
    assert list(plan(languages=["swh", "spa"], train_language="sw").draws) == ["swh"]
    found = plan(languages=["swh", "spa"], train_language=IN_LANGUAGE).draws
    assert list(found) == ["swh", "spa"] and found["swh"] == found["spa"]


@pytest.mark.parametrize("train_language", ("eng", IN_LANGUAGE))
def test_no_draw_holds_a_test_pair(train_language):
    languages = ["eng", "spa", "swh", "tur"]
    study = plan(languages=languages, train_language=train_language, seeds=(1, 2, 3), shots=12)
    tested = set(study.data.frame.query("split == 'test'").index_id)
    assert len(study.draws) == (4 if train_language == IN_LANGUAGE else 1)
    for draws in study.draws.values():
        assert not any(tested & {*d.train_ids, *d.dev_ids} for d in draws)


@pytest.mark.parametrize("number", (1, 9, 20, 66, 5000))
def test_fewer_test_pairs_are_balanced_and_the_same_in_all_languages(number):
    whole = load("nli", "all", "embedded")
    few = fewer_tests(whole, number)
    tests = [few.examples(x, "test") for x in few.languages]
    assert {tuple(rows.index_id) for rows in tests} == {tuple(tests[0].index_id)}
    counts = Counter({x: 0 for x in few.task.labels} | Counter(tests[0].label))
    assert sum(counts.values()) == min(number, 66)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len(few.examples("eng", "train")) == len(whole.examples("eng", "train"))


def test_a_smaller_test_set_is_part_of_a_larger_one():
    whole = load("nli", ["sw"], "embedded")
    few, more = (set(fewer_tests(whole, n).examples("sw", "test").index_id) for n in (12, 30))
    assert few < more


@pytest.mark.parametrize("method", ("ltp", "mp"))
def test_texts_stand_in_the_methods_template_without_closing_punctuation(method):
    study, model = plan(), encoder()
    rows = study.data.examples("eng", "test").head(3)
    recipe = methods.Recipe(method, **with_ticket(model, method))
    tokens = study.labelled(model, rows, recipe).tokens
    for r, row in enumerate(rows.itertuples()):
        parts = row.premise.rstrip(".?!"), row.hypothesis.rstrip(".?!")
        form = dict(ltp="{} . {} ? <mask> .", mp="{} . Question: {} ? Answer: <mask> .")[method]
        wanted = model.tokenizer(form.format(*parts))["input_ids"]
        assert tokens.ids[r][tokens.mask[r]].tolist() == wanted


# --- rows -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=TINY)
def done(request):
    """Return a study of every method with its encoder and rows."""
    study, model = plan(request.param), encoder(request.param)
    rows = {}
    for method in study.methods:
        trained = study.train(model, method, progress=False, **with_ticket(model, method))
        rows[method] = study.evaluate(model, trained, "trial", progress=False)
    return study, model, rows


def test_every_method_gives_the_same_rows(done):
    keys = ["study", "task", "data", "backbone", "language", "seed", "shots", "metric"]
    wanted = done[2]["fine_tuning"][keys].values.tolist()
    assert len(wanted) == 2 * 2 * 2
    assert all(rows[keys].values.tolist() == wanted for rows in done[2].values())
    assert all(set(rows.method) == {method} for method, rows in done[2].items())


def test_rows_have_their_columns_and_can_be_written(done):
    for rows in done[2].values():
        assert set(rows.columns) == set(OWN) >= set(REQUIRED)
        assert not rows.isna().any().any() and set(rows.test_pairs) == {9}
        assert len(finish(rows, "")) == len(rows)


def test_rows_say_which_weights_are_active(done):
    _, model, rows = done
    whole = sum(p.numel() for p in model.model.parameters())
    bias = sum(p.numel() for n, p in model.model.named_parameters() if n.endswith(".bias"))
    total = sum(p.numel() for p in tickets.parameters(model.model).values())
    names = ["active", "active_ratio", "scope", "strategy", "length"]
    found = {m: tuple(rows[m][names].iloc[0]) for m in ("ltp", "dp", "bitfit", "lora", "sp")}
    assert found == dict(
        ltp=(300, 300 / total, "encoder", "random", 4), dp=(whole, 1.0, "all", "none", 0),
        bitfit=(bias, 1.0, "biases", "none", 0), lora=(0, 0.0, "none", "none", 0),
        sp=(whole, 1.0, "all", "none", 4),
    )  # fmt: skip


def test_a_method_of_ones_own_needs_one_function_and_one_entry(monkeypatch):
    @contextlib.contextmanager
    def gains(encoder, recipe):
        """Train the gain of every LayerNorm."""
        chosen = {n: p for n, p in tickets.named(encoder.model).items()
                  if n.endswith("LayerNorm.weight")}  # fmt: skip
        with moving(encoder.model, list(chosen.values())):
            yield methods.Moved(chosen)

    monkeypatch.setitem(METHODS, "gains", methods.Method(gains, rate=0.1, scope="gains"))
    study, model = plan(methods=["gains"]), encoder()
    rows = study.evaluate(model, study.train(model, "gains", progress=False), "s", progress=False)
    count = sum(p.numel() for n, p in model.model.named_parameters() if "LayerNorm.weight" in n)
    own = ["method", "active", "trained", "scope", "learning_rate"]
    assert {*rows[own].itertuples(index=False, name=None)} == {
        ("gains", count, count, "gains", 0.1)
    }


def test_a_study_run_again_on_the_same_encoder_gives_the_same_rows(done):
    study, model, rows = done
    before = weights_sha256(model.model)
    again = study.evaluate(model, study.train(model, "sp", progress=False), "trial", progress=False)
    assert again.equals(rows["sp"]) and weights_sha256(model.model) == before


def test_a_row_holds_the_accuracy_of_its_own_seed_and_language(done):
    study, model, rows = done
    (trained,) = study.train(model, "dp", seeds=[2], progress=False)
    test = study.data.examples("swh", "test")
    with methods.applied(model, trained) as read:
        tokens = study.labelled(model, test, trained.recipe).tokens
        hidden = torch.stack([read(tokens.rows([r]))[0] for r in range(len(test))])
    predicted = model.logits(hidden)[:, list(study.verbalizer.ids)].argmax(1).numpy()
    wanted = accuracy(study.verbalizer.index(test.label).numpy(), predicted)
    chosen = rows["dp"].query("seed == 2 and language == 'swh' and metric == 'accuracy'")
    assert chosen.value.item() == pytest.approx(wanted)


def test_in_language_rows_are_of_the_language_trained_on():
    study, model = plan(train_language=IN_LANGUAGE), encoder()
    trained = list(study.train(model, "bitfit", progress=False))
    rows = study.evaluate(model, trained, "trial", progress=False)
    assert (rows.train_language == rows.language).all() and len(rows) == 2 * 2 * 2
    assert {t.recipe.language for t in trained} == {"eng", "swh"}


def test_in_language_learns_from_the_languages_own_texts(monkeypatch):
    study, seen = plan(train_language=IN_LANGUAGE, seeds=(1,)), []
    monkeypatch.setattr(methods, "train", lambda e, recipe, *sides: seen.append((recipe, sides)))
    model = encoder()
    list(study.train(model, "dp"))
    for recipe, (learn, *_) in seen:
        texts = study.draws[recipe.language][0].texts(study.data, recipe.language)[0]
        wanted = study.labelled(model, texts, recipe)
        assert torch.equal(learn.tokens.ids, wanted.tokens.ids)
    assert [recipe.language for recipe, _ in seen] == ["eng", "swh"]


def test_rates_are_the_methods_own_then_the_shared_one_then_the_tables():
    given = dict(methods=["ltp", "lora"], rates=dict(lora=0.5))
    assert plan(**given).rates == dict(ltp=METHODS["ltp"].rate, lora=0.5)
    assert plan(**given, learning_rate=0.25).rates == dict(ltp=0.25, lora=0.5)


def test_rates_in_a_list_are_those_of_the_methods_in_order():
    found = plan(methods=["lora", "ltp"], rates=[0.5, 0.25]).rates
    assert found == dict(lora=0.5, ltp=0.25)


# --- grids of rates -------------------------------------------------------------------------------


def test_the_rate_of_a_prompt_alone_is_the_prompts():
    given = dict(methods=["prompt_only", "lora"], prompt_rate=0.25)
    assert plan(**given, learning_rate=0.5).rates == dict(prompt_only=0.25, lora=0.5)
    own = plan(**given, rates=[0.125, 0.5], epochs=2)
    model = encoder()
    (one,) = own.train(model, "prompt_only", seeds=[1], progress=False)
    row = own.evaluate(model, [one], "s", progress=False).iloc[0]
    assert row.learning_rate == row.prompt_rate == 0.125
    same = plan(methods=["prompt_only"], prompt_rate=0.125, epochs=2)
    (other,) = same.train(model, "prompt_only", seeds=[1], progress=False)
    assert torch.equal(one.prompt, other.prompt)


@pytest.mark.parametrize("which", ("learning_rate", "prompt_rate"))
@pytest.mark.parametrize("method", ("sp", "prompt_only"))
def test_a_grid_is_training_at_each_rate(method, which):
    study, model = plan(methods=[method], epochs=2), encoder()
    found = study.grid(model, method, [1e-3, 1e-2], which, progress=False)
    for rate in (1e-3, 1e-2):
        both = dict(prompt_rate=rate) if method == "prompt_only" else {which: rate}
        own = plan(methods=[method], epochs=2, **both)
        for one in own.train(model, method, progress=False):
            part = found[(found.rate == rate) & (found.seed == one.recipe.seed)]
            wanted = [row["dev_loss"] for row in one.history]
            assert part.sort_values("epoch").dev_loss.tolist() == wanted


def test_a_grid_looks_at_no_test_pair(monkeypatch):
    study = plan(methods=["bitfit"])
    monkeypatch.setattr(EncoderStudy, "evaluate", lambda *_: pytest.fail("test pairs were read"))
    study.grid(encoder(), "bitfit", [1e-3], progress=False)


def test_a_rate_that_diverges_is_said_and_empty(monkeypatch, capsys):
    whole = methods.train

    def train(encoder, recipe, *given):
        if given[3].learning_rate == 1.0:
            raise TrainingDiverged("not finite")
        return whole(encoder, recipe, *given)

    monkeypatch.setattr(methods, "train", train)
    found = plan(methods=["bitfit"]).grid(encoder(), "bitfit", [1e-3, 1.0], progress=False)
    empty = found[found.dev_loss.isna()]
    assert set(empty.rate) == {1.0} and sorted(empty.seed) == [1, 2]
    assert "learning_rate 1 is out: not finite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(which="rate"), "rate to try 'rate'; did you mean"),
        (dict(which="prompt_rate"), "'bitfit' has no soft prompt, so no prompt_rate to try"),
        (dict(rates=[1e-3, 0.0]), "learning_rate 0.0 must be greater than 0"),
    ],
)
def test_a_grid_is_checked_before_anything_is_trained(monkeypatch, given, message):
    monkeypatch.setattr(methods, "train", lambda *_: pytest.fail("trained"))
    with pytest.raises(InputError, match=message):
        plan(methods=["bitfit"]).grid(encoder(), "bitfit", **dict(rates=[1e-3]) | given)


@pytest.mark.parametrize("mixed", (False, True))
def test_captions_and_manifests_say_precision_and_a_fitted_head(mixed):
    study, model = plan(mixed=mixed), encoder()
    dtype = "float32, multiplied in bfloat16" if mixed else "float32"
    assert study.facts(model)["backbone"]["dtype"] == dtype
    assert study.describe(model).endswith(f"; tiny-bert ({dtype})")
    model.model.config.mlm_head = "fitted"
    assert study.describe(model).endswith(f"; tiny-bert ({dtype}; MLM head fitted)")


def test_fewer_test_pairs_are_said_with_how_many_there_were():
    assert ", 9 of 66 test pairs per language" in plan().data.describe()
    assert ", 66 test pairs per language" in plan(test_pairs=66).data.describe()


def test_losses_come_with_method_seed_and_rate():
    study = plan(epochs=3)
    (trained,) = study.train(encoder(), "bitfit", seeds=[2], progress=False)
    found = study.losses(trained)
    assert found.epoch.tolist() == [1, 2, 3] and found.dev_loss.notna().all()
    assert (found.method[0], found.seed[0]) == ("bitfit", 2)
    assert found.learning_rate[0] == METHODS["bitfit"].rate


def test_only_one_result_is_made_at_a_time(monkeypatch):
    study, made = plan(), []
    monkeypatch.setattr(methods, "train", lambda *_: made.append(1))
    trained = study.train(encoder(), "dp")
    assert made == []
    next(iter(trained))
    assert made == [1]


def test_a_head_that_was_never_fitted_is_refused():
    study, model = plan(), encoder()
    start_head(model.model, ["head.bias"])
    with pytest.raises(InputError, match="head of tiny-bert is missing"):
        next(study.train(model, "dp"))


def test_references_count_pairs_and_tokens(no_weights):
    study = plan(languages=["swh", "eng"])
    rows = {(r["method"], r["language"]): r for r in study.references("any")}
    tokenizer, tests = study.checkpoint.tokenizer, {}
    for code in ("eng", "swh"):
        pairs = study.data.examples(code, "test")
        texts = [*pairs.premise, *pairs.hypothesis]
        tests[code] = sum(len(tokenizer(x)["input_ids"]) for x in texts)
    assert rows["tokenizer", "swh"]["value"] == tests["swh"] / tests["eng"]
    assert rows["majority", "eng"]["value"] == pytest.approx(100 / 3)


def test_facts_name_data_and_encoder_with_its_head():
    study, model = plan(), encoder()
    facts = study.facts(model)
    assert facts["data"]["sha256"] == study.data.sha256
    assert (facts["backbone"]["sha256"], facts["backbone"]["mlm_head"]) == (
        model.sha256, "pretrained",
    )  # fmt: skip


# --- real data ------------------------------------------------------------------------------------


@pytest.mark.real_data
@pytest.mark.parametrize("train_language", ("eng", IN_LANGUAGE))
@pytest.mark.parametrize("corpus", ("xnli", "americasnli"))
def test_benchmarks_run_from_the_same_parameters(data_dir, corpus, train_language):
    languages = dict(xnli=["sw", "tr"], americasnli=["quy", "oto"])[corpus]
    study = plan(languages=languages, source=str(data_dir), data=corpus, seeds=(1,),
                 train_language=train_language, methods=["bitfit"], test_pairs=6)  # fmt: skip
    model = encoder()
    rows = study.evaluate(model, study.train(model, "bitfit", progress=False), "a", progress=False)
    assert set(rows.data) == {corpus} and len(rows) == 4 and set(rows.test_pairs) == {6}
    seeded = (corpus, train_language) == ("americasnli", IN_LANGUAGE)  # from its own dev pairs
    assert set(rows.drawn) == {"seeded" if seeded else "published"}


@pytest.mark.real_data
def test_rates_can_be_chosen_on_seeded_draws_of_another_corpus(data_dir):
    study = plan(languages=["eng"], source=str(data_dir), data="xnli", seeds=(101, 102),
                 train_data="mnli_english")  # fmt: skip
    one, two = study.draws["eng"]
    assert study.drawn == "seeded" and one.train_ids != two.train_ids
