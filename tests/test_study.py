"""A study's plan refuses every impossible choice before any weights are read.

References: the lists of what is allowed, written out; results of the parts called one by one.
"""

import dataclasses

import pytest
import torch
from references import FAMILIES, tiny
from transformers import AutoConfig

from xlcore import data
from xlcore.errors import InputError
from xlcore.evaluation import accuracy, score
from xlcore.study import Study

LABELS = ("geography", "science/technology", "entertainment", "politics", "health", "travel",
          "sports")  # fmt: skip
XGLM = ("earth", "science", "entertainment", "politics", "health", "travel", "sports")
BLOOM = ("earth", "science", "fun", "government", "health", "travel", "play")


def plan(**given):
    usual = dict(
        backbone="tiny-llama", languages=["eng", "swh"], source="embedded", shots=4, device="cpu",
        dtype="float32",
    )  # fmt: skip
    return Study.plan(**usual | given)


REFUSED = {
    "language": (dict(languages=["Swahilli"]), r"language 'Swahilli'; did you mean Swahili \("),
    "no language": (dict(languages=[]), "languages is empty"),
    "task": (dict(task="topic"), "task 'topic'; did you mean topics"),
    "source": (dict(source="embeded"), "data folder 'embeded'.*did you mean 'embedded'"),
    "model": (dict(backbone="tiny-gema3"), "model 'tiny-gema3'; did you mean tiny-gemma3"),
    "init": (dict(init="unifrom"), "init 'unifrom'; did you mean uniform"),
    "position": (dict(position="sufix"), "prompt position 'sufix'; did you mean suffix"),
    "network": (dict(reparameterization="lstn"), "reparameterization 'lstn'; did you mean lstm"),
    "hidden": (dict(hidden=0), "hidden 0 must be greater than 0, a whole number"),
    "loss": (dict(loss="vocab"), "loss 'vocab'; did you mean vocabulary"),
    "device": (dict(device="cdua"), "device 'cdua'; did you mean cuda"),
    "dtype": (dict(dtype="float16"), "dtype 'float16'; did you mean .*float32"),
    "length 0": (dict(lengths=(5, 0)), "length 0 .*allowed: 1 to 126"),
    "length below 0": (dict(lengths=(-3,)), "length -3 .*allowed: 1 to 126"),
    "length True": (dict(lengths=(True,)), "length True"),
    "length too long": (dict(lengths=(127,)), "length 127 .*allowed: 1 to 126"),
    "shots too many": (dict(shots=17), "shots=17 .*largest K allowed here is 16"),
    "shots 0": (dict(shots=0), "shots is 0; allowed are whole numbers from 1"),
    "seed below 0": (dict(seeds=(1, -1)), "seed is -1; allowed are whole numbers from 0"),
    "seed 1.5": (dict(seeds=(1.5,)), "seed is 1.5"),
    "rate": (dict(learning_rate=0), "learning_rate 0 must be greater than 0"),
    "epochs": (dict(epochs=0), "epochs 0 must be greater than 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_impossible_choice_is_refused_before_any_weights(no_weights, case):
    given, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        plan(**given)


@pytest.mark.parametrize("case", [k for k in REFUSED if k != "model"])
def test_an_impossible_choice_is_refused_before_gemma_is_converted(no_weights, case):
    given, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        plan(**dict(backbone="gemma-3-270m") | given)


def test_three_languages_are_suggested(no_weights):
    with pytest.raises(InputError) as error:
        plan(languages=["Swahilli"])
    suggested = str(error.value).split("did you mean ")[1].split("?")[0]
    assert len(suggested.split("), ")) == 3


def test_a_device_that_is_not_here_is_refused_with_those_that_are(no_weights, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"device 'cuda' is not available here; available: .*cpu"):
        plan(device="cuda")


def test_a_prompt_longer_than_the_models_context_is_refused(no_weights):
    with pytest.raises(InputError, match=r"length 300 .*allowed: 1 to 254"):
        plan(lengths=(300,), max_length=256)


def test_a_label_word_of_several_tokens_is_refused(no_weights, monkeypatch):
    words = dict(zip(LABELS, XGLM, strict=True)) | {"politics": "antidisestablishment"}
    other = dataclasses.replace(data.TASKS["topics"], words={"default": words})
    monkeypatch.setitem(data.TASKS, "topics", other)
    with pytest.raises(InputError, match=r"'antidisestablishment' \(label 'politics'\) is \d+ tok"):
        plan()


@pytest.mark.parametrize("name", ("seeds", "lengths"))
@pytest.mark.parametrize("values", ((), (5, 2, 5)), ids=str)
def test_no_value_or_one_given_twice_is_refused(no_weights, name, values):
    with pytest.raises(InputError, match=f"{name} .* one or more different values"):
        plan(**{name: values})


BARE = {
    "one length": dict(lengths=5),
    "one seed": dict(seeds=3),
    "rate as text": dict(learning_rate="0.1"),
    "no model": dict(backbone=None),
    "odd device index": dict(device="cpu:abc"),
}


@pytest.mark.parametrize("case", BARE)
def test_wrong_kinds_are_refused_as_bad_input(no_weights, case):
    try:
        with pytest.raises(InputError):
            plan(**BARE[case])
    except (TypeError, RuntimeError) as error:
        raise AssertionError(error) from error


def test_a_misspelt_setting_names_the_nearest(no_weights):
    with pytest.raises(InputError, match="'learnig_rate'; did you mean learning_rate"):
        plan(learnig_rate=0.1)


def test_texts_longer_than_the_models_context_are_refused(no_weights):
    with pytest.raises(InputError, match="256"):
        plan(max_length=400)


# --- a plan that is possible ----------------------------------------------------------------------


@pytest.mark.parametrize("name, words", [("tiny-xglm", XGLM), ("tiny-bloom", BLOOM),
                                         ("tiny-gemma3", XGLM), ("tiny-llama", XGLM)])  # fmt: skip
def test_label_words_are_the_familys(no_weights, name, words):
    verbalizer = plan(backbone=name).verbalizer
    assert (verbalizer.labels, verbalizer.words) == (LABELS, words)


def test_label_words_are_single_tokens_of_the_models_tokenizer(no_weights):
    study = plan()
    found = [study.checkpoint.tokenizer.decode([i]) for i in study.verbalizer.ids]
    assert found == [" " + word for word in XGLM]


def test_draws_are_those_of_the_seeds(no_weights):
    study = plan(seeds=(4, 2))
    assert study.draws == tuple(data.draw(study.data, 4, seed) for seed in (4, 2))


def test_jobs_are_all_lengths_of_all_seeds():
    study = plan(seeds=(1, 2), lengths=(3, 1))
    jobs = study.jobs(tiny("tiny-llama"))
    assert [(job.seed, len(job.prompt)) for job in jobs] == [(1, 3), (1, 1), (2, 3), (2, 1)]
    assert jobs[0].train is jobs[1].train and jobs[0].train is not jobs[2].train


def test_each_length_may_have_its_own_rate(no_weights):
    study = plan(seeds=(1, 2), lengths=(3, 1), length_rates=(0.1, 0.2))
    rates = [(len(job.prompt), job.learning_rate) for job in study.jobs(tiny("tiny-llama"))]
    assert rates == [(3, 0.1), (1, 0.2)] * 2


@pytest.mark.parametrize("given", [(0.1,), (0.1, 0.2, 0.3)])
def test_rates_that_are_not_one_a_length_are_refused(no_weights, given):
    with pytest.raises(InputError, match=r"one rate for each of lengths \(3, 1\)"):
        plan(lengths=(3, 1), length_rates=given)


def test_a_lengths_impossible_rate_is_refused(no_weights):
    with pytest.raises(InputError, match=r"learning_rate -0\.1 must be greater than 0"):
        plan(lengths=(3, 1), length_rates=(0.1, -0.1))


def test_jobs_learn_from_the_draws_english_texts():
    study = plan(seeds=(5,))
    backbone = tiny("tiny-llama")
    (job,) = study.jobs(backbone)
    english = study.data.examples("eng", "train")
    rows = english[english.index_id.isin(study.draws[0].train_ids)]
    ids = [ids[mask].tolist() for ids, mask in
           zip(job.train.tokens.ids, job.train.tokens.mask, strict=True)]  # fmt: skip
    assert ids == [backbone.tokenizer(text)["input_ids"][:122] for text in rows.text]
    assert [LABELS[i] for i in job.train.labels] == rows.label.tolist()


def test_training_texts_leave_room_for_the_shortest_prompt():
    study = plan(lengths=(2, 7), max_length=20)
    job = study.jobs(tiny("tiny-llama"))[0]
    assert job.train.tokens.lengths.max() == 20 - 2 - 1


@pytest.fixture(scope="module")
def done():
    study = plan(seeds=(1, 2), lengths=(1, 3), epochs=2, learning_rate=0.05)
    backbone = tiny("tiny-llama")
    jobs, trained = study.train(backbone)
    return study, jobs, trained, study.evaluate(backbone, jobs, trained, "trial")


def test_rows_have_the_columns_of_every_result(done):
    named = {"study", "task", "data", "backbone", "method", "language", "seed", "shots", "metric"}
    assert named | {"value", "length", "selection"} <= set(done[3].columns)


def test_rows_are_one_number_each(done):
    keys = ["seed", "length", "selection", "language", "metric"]
    table = done[3]
    assert len(table) == 2 * 2 * 2 * 2 * 2 and not table.duplicated(keys).any()
    assert not table.isna().any().any()


@pytest.mark.parametrize("seed, length, number", [(1, 1, 0), (1, 3, 1), (2, 1, 2), (2, 3, 3)])
@pytest.mark.parametrize("selection, which", [("best_dev", "best"), ("last", "last")])
def test_a_row_holds_its_own_prompts_accuracy(done, seed, length, number, selection, which):
    study, _, trained, table = done
    test = study.data.examples("swh", "test")
    vectors = getattr(trained[number], which)
    scores = score(tiny("tiny-llama"), [vectors], test.text, study.verbalizer)[0]
    gold = study.verbalizer.index(test.label).numpy()
    row = table[(table.seed == seed) & (table.length == length) & (table.selection == selection)
                & (table.language == "swh") & (table.metric == "accuracy")]  # fmt: skip
    assert row.value.item() == pytest.approx(accuracy(gold, scores.argmax(-1).numpy()))


def test_a_study_run_again_gives_the_same_rows(done):
    again = plan(seeds=(1, 2), lengths=(1, 3), epochs=2, learning_rate=0.05)
    jobs, trained = again.train(tiny("tiny-llama"))
    assert done[3].equals(again.evaluate(tiny("tiny-llama"), jobs, trained, "trial"))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("init", ("vocabulary", "label_words"))
def test_every_family_runs_from_plan_to_rows(name, init):
    study = plan(backbone=name, shots=1, seeds=(1,), lengths=(2,), init=init, epochs=1)
    table = study.evaluate(tiny(name), *study.train(tiny(name)), "trial")
    assert table.value.between(0, 100).all() and set(table.init) == {init}


def test_facts_name_data_and_model(done):
    study, backbone = done[0], tiny("tiny-llama")
    facts = study.facts(backbone)
    assert facts["data"]["sha256"] == study.data.sha256
    assert facts["backbone"]["sha256"] == backbone.sha256
    assert (facts["backbone"]["device"], facts["backbone"]["dtype"]) == ("cpu", "float32")


def test_plan_reads_no_weights_until_load(no_weights):
    assert isinstance(plan().checkpoint.config, type(AutoConfig.for_model("llama")))


# --- other methods on the same draws --------------------------------------------------------------

QUICK = dict(epochs=2, learning_rate=0.01, seeds=(1, 2), lengths=(3,))


@pytest.mark.parametrize("method", ("joint_tuning", "lora"))
def test_tune_gives_the_rows_of_evaluate_for_every_seed_and_language(method):
    one = plan(**QUICK)
    model = tiny("tiny-llama")
    jobs, trained = one.train(model)
    frozen = one.evaluate(model, jobs, trained, "a", ["best_dev"])
    rows, losses = one.tune(model, method, "a", progress=False)
    keys = ["study", "task", "data", "backbone", "language", "seed", "shots", "length", "metric"]
    assert sorted(rows[keys].values.tolist()) == sorted(frozen[keys].values.tolist())
    assert set(rows.method) == {method} and list(rows.columns) == list(frozen.columns)
    assert losses.groupby("seed").epoch.apply(list).to_dict() == {1: [1, 2], 2: [1, 2]}


@pytest.mark.parametrize(
    ("method", "selections", "given", "told"),
    [
        ("joint", ["last"], {}, "unknown method 'joint'.*joint_tuning"),
        ("lora", ["best_dev", "last"], {}, "method lora is tested at one of best_dev, last"),
        ("joint_tuning", [], {}, r"selections \[\]"),
        ("fine_tuning", ["last"], dict(init="vocabulary"), "init 'vocabulary': method fine_tuning"),
        ("prefix_tuning", ["last"], dict(position="prefix"), "leave it at 'suffix'"),
        ("lora", ["last"], dict(reparameterization="mlp"), "leave it at 'none'"),
    ],
)
def test_a_choice_that_a_method_cannot_follow_is_refused(method, selections, given, told):
    with pytest.raises(InputError, match=told):
        plan(**QUICK | given).check_method(method, selections)


@pytest.mark.parametrize(
    ("method", "selections"), [("soft_prompt", ["best_dev", "last"]), ("joint_tuning", ["last"])]
)
def test_a_method_with_a_prompt_takes_its_switches(method, selections):
    one = plan(**QUICK, init="vocabulary", position="prefix", reparameterization="mlp")
    one.check_method(method, selections)


def test_every_condition_draws_the_same_sentences_and_never_a_test_one():
    drawn = []
    for given in (
        {},
        dict(reparameterization="mlp"),
        dict(position="prefix"),
        dict(init="label_words"),
        dict(loss="label_words"),
        dict(lengths=(7,)),
    ):
        one = plan(**QUICK | given)
        tested = set(one.data.frame.query("split == 'test'").index_id)
        used = [{*d.train_ids, *d.dev_ids} for d in one.draws]
        assert not any(tested & ids for ids in used)
        jobs = one.jobs(tiny("tiny-llama"))
        drawn.append([(d.train_ids, d.dev_ids) for d in one.draws])
        assert [job.train.labels.tolist() for job in jobs] == [
            one.verbalizer.index(d.texts(one.data)[0].label).tolist() for d in one.draws
        ]
    assert all(draw == drawn[0] for draw in drawn)


def test_paired_seeds_start_from_the_same_vectors_with_and_without_a_network():
    starts = [
        plan(**QUICK | dict(reparameterization=kind)).jobs(tiny("tiny-llama"))[0].prompt.weight
        for kind in ("none", "mlp", "lstm")
    ]
    assert torch.equal(starts[0], starts[1]) and torch.equal(starts[0], starts[2])


def test_rates_come_back_for_every_rate_seed_and_epoch_and_a_diverged_one_is_told(capsys):
    one = plan(**QUICK | dict(clip=1e30))
    found = one.rates(tiny("tiny-llama"), "fine_tuning", [1e-3, 1e30], progress=False)
    good, bad = found[found.learning_rate == 1e-3], found[found.learning_rate == 1e30]
    assert len(good) == 4 and good.dev_loss.notna().all()
    assert len(bad) == 2 and bad.dev_loss.isna().all()
    assert "rate 1e+30 is out: the loss of prompt" in capsys.readouterr().out


def test_rates_need_no_test_sentence():
    one = plan(**QUICK)
    without = one.data.frame[one.data.frame.split != "test"]
    one = dataclasses.replace(one, data=dataclasses.replace(one.data, frame=without))
    frozen = one.rates(tiny("tiny-llama"), "soft_prompt", [0.01])
    assert sorted(frozen.seed.unique()) == [1, 2]


def test_references_count_labels_and_tokens(no_weights):
    study = plan(languages=["swh", "eng"])
    rows = {(r["method"], r["language"]): r for r in study.references("any")}
    assert len(rows) == 4
    tokenizer = study.checkpoint.tokenizer
    texts = {x.iso639_3: study.data.examples(x, "test") for x in study.data.languages}
    tokens = {
        code: sum(len(tokenizer(t)["input_ids"]) for t in x.text) for code, x in texts.items()
    }
    fertility = rows["tokenizer", "swh"]
    assert (fertility["metric"], fertility["value"]) == ("fertility", tokens["swh"] / tokens["eng"])
    assert rows["tokenizer", "eng"]["value"] == 1
    most = max(texts["swh"].label.value_counts())
    assert rows["majority", "swh"]["value"] == pytest.approx(100 * most / len(texts["swh"]))
    assert {r["backbone"] for r in rows.values()} == {"none", study.checkpoint.name}


def test_without_english_there_is_no_fertility(no_weights):
    rows = plan(languages=["swh"]).references("any")
    assert [r["metric"] for r in rows] == ["accuracy"]
