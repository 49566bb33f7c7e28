"""The shipped params.yaml loads, and every mistake in one is refused in one line: key, value, and what it should be."""

import copy
from datetime import date, datetime
from pathlib import Path

import pytest
import yaml
from conftest import GONE, change_settings

from datapool.core.errors import DatapoolError
from datapool.core.params import check_params, load_params, parse_yaml, require_files
from datapool.core.schema import Params

SHIPPED = Path(__file__).parents[2] / "params.yaml"
CONTENT = yaml.safe_load(SHIPPED.read_text())


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(**changes: object) -> Params:
    """Check the shipped params with some values changed; ``a__b`` is the key a.b."""
    content = copy.deepcopy(CONTENT)
    change_settings(content, changes)
    return check_params(content)


def message(**changes: object) -> str:
    with pytest.raises(DatapoolError) as caught:
        load(**changes)
    return str(caught.value)


def test_the_shipped_params_load_and_every_key_is_in_the_file():
    params = load_params(SHIPPED)

    assert params.stopping_condition.min_distance == 0.1
    assert params.lightly.model.num_ftrs == 128
    assert params.model_dump() == CONTENT


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"lightly__optimizer__learning_rate": 0.1}, "'lightly.optimizer.learning_rate'"),
        ({"methods": "coreset"}, "'methods'; did you mean 'method'"),
        ({"min_distance": 0.1}, "'min_distance'; did you mean 'stopping_condition.min_distance' or 'ranking.min_distance'"),
        ({"lr": 0.1}, "'lr'; did you mean 'lightly.optimizer.lr'"),
        ({"lightly__lr": 0.1}, "'lightly.lr'; did you mean 'lightly.optimizer.lr'"),
        ({"pool": {"name": "x"}}, "'pool'; did you mean 'datapool'"),
        ({"num_worker": 2}, "'num_worker'; did you mean 'lightly.loader.num_workers'"),
        ({"optimizer": {"lr": 1}}, "'optimizer'; did you mean 'lightly.optimizer'"),
        ({"stopping_condition__n_sample": 1},
         "'stopping_condition.n_sample'; did you mean 'stopping_condition.n_samples'"),
        ({"lightly__model__num_features": 1}, "'lightly.model.num_features'; did you mean 'lightly.model.num_ftrs'"),
        ({"rules__sequencegap": 1}, "'rules.sequencegap'; did you mean 'rules.sequence_gap'"),
        ({"remove_exact_duplicate": True}, "'remove_exact_duplicate'; did you mean 'remove_exact_duplicates'"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_refused_with_the_nearest_known_one(changes, key):
    told = message(**changes)

    assert told.startswith(f"params.yaml: unknown key {key}")
    assert told.endswith("?")


def test_a_misspelled_key_is_reported_rather_than_the_missing_one():
    assert message(seed=GONE, sead=1) == "params.yaml: unknown key 'sead'; did you mean 'seed'?"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1_000", "1000"),
        ("1e-3", "0.001"),
        ("1e-7", "0.0000001"),
        ("1e-12", "0.000000000001"),
        ("1e5", "100000"),
        ("1e6", "1000000"),
        ("12345678", "12345678"),
        ("0.5", "0.5"),
    ],
)
def test_a_number_that_is_a_string_is_suggested_as_a_number(text, number):
    # All but 1_000 are strings only in quotes.
    assert message(lightly__optimizer__weight_decay=text) == (
        f"params.yaml: lightly.optimizer.weight_decay is '{text}', a string; write {number}"
    )
    assert yaml.safe_load(number) == float(text)


PLAIN_VALUES = {
    # Numbers, also as DVC and Python write them.
    "1e-05": 1e-05, "1E5": 1e5, "1e5": 1e5, "1.5e+3": 1500.0, ".5": 0.5, "-.5e1": -5.0, "5.": 5.0, "+1": 1, "-0": 0,
    "012": 12, "0o17": 15, "0x1F": 31, "10": 10, "1.0": 1.0, ".inf": float("inf"), "-.INF": -float("inf"),
    "true": True, "FALSE": False, "null": None, "~": None, "": None, "NULL": None,
    # Strings, which YAML 1.1 reads as something else, or nearly numbers.
    **{text: text for text in (
        "yes", "no", "on", "off", "y", "N", "1_000", "0b11", "1:30", "190:20:30.5", "0o8", "-0x1F", "1e", "e5", ".", "+", "-.",
        "1.2.3", "tRUE", "nULL", "inf", "nan", "2026-11", "2026-11-30a", "=", "<",
    )},
    # Dates, which DVC refuses. No key is one, so that the message can say so.
    "2026-11-30": date(2026, 11, 30), "2001-1-2 3:04:05": datetime(2001, 1, 2, 3, 4, 5),
}  # fmt: skip


def test_values_without_quotes_are_read_as_in_yaml_1_2():
    found = {text: parse_yaml(f"key: {text}\n")["key"] for text in PLAIN_VALUES}

    assert {text: (type(value), value) for text, value in found.items()} == {
        text: (type(value), value) for text, value in PLAIN_VALUES.items()
    }
    assert parse_yaml("{012: 1, yes: 2, '3': 3}") == {12: 1, "yes": 2, "3": 3}
    assert parse_yaml("a: &a {b: 1}\nc: {<<: *a}\n")["c"] == {"b": 1}


def test_a_small_number_as_dvc_writes_it_is_accepted():
    Path("params.yaml").write_text(SHIPPED.read_text().replace("lr: 0.00003", "lr: 1e-05"))

    assert load_params().lightly.optimizer.lr == 0.00001


def test_a_name_that_yaml_takes_for_something_else_needs_quotes():
    told = "{key} is {shown}; put it in quotes if it is a name"
    cases = {
        ("input_dir", "2026-11-30"): "2026-11-30, a date",
        ("datapool.name", "2024"): "2024, not a string",
        ("datapool.name", "1e3"): "1000.0, not a string",
        ("filename_prefix", "true"): "true, not a string",
        ("checkpoint", "7"): "7, not a string",
        ("rules.protected", "2026-11-30 10:00:00"): "2026-11-30 10:00:00, a date",
        ("lightly.model.name", "50"): "50, not a string",
    }
    failures = []
    for (key, text), shown in cases.items():
        with pytest.raises(DatapoolError) as caught:
            load(**{key.replace(".", "__"): parse_yaml(text)})
        failures += [str(caught.value)] * (str(caught.value) != f"params.yaml: {told.format(key=key, shown=shown)}")
        load(**{key.replace(".", "__"): parse_yaml(f"'{text}'")})

    assert not failures


def test_a_date_that_does_not_exist_is_refused_with_its_line_and_the_remedy():
    Path("params.yaml").write_text("seed: 1\ninput_dir: 2024-13-45\n")
    with pytest.raises(DatapoolError) as caught:
        load_params()

    assert str(caught.value) == (
        "params.yaml: is not YAML ('2024-13-45' is no date; put it in quotes if it is a name in \"<unicode string>\", line 2, "
        "column 12: input_dir: 2024-13-45 ^)"
    )


BALANCE = "a whole number of at least 1, a number for each label such as {cat: 50, dog: 100}, or null for no limit"
SHARE = "a whole number of at least 1, a fraction above 0 and up to 1 such as 0.1, or -1 for inactive"
FOLDER = "a folder below the workspace, of letters, digits, '_', '-', '.' and '/' only, not beginning with '-'"
STORED = "a folder, or the URL of one in a store: s3://bucket/folder, gs://bucket/folder, azure://bucket/folder"
PLAIN = "a plain name without '/' and not starting with '.' or '-'"
PREFIX = "a prefix of file names such as 'week2/' of at most 100 characters, not beginning with '/', without '..' and control characters"
BATCH = (
    "the id of a batch in datapools.json, or its first 12 or more digits, in quotes, such as '3f0a1b2c4d5e'; a list of ids; or "
    "null for none"
)


KEPT = "true, false, or how many earlier versions are kept, a whole number of at least 1"
BAD_VALUES = [
    ({"stopping_condition__n_samples": 0}, f"stopping_condition.n_samples is 0; it should be {SHARE}"),
    ({"stopping_condition__n_samples": 0.0}, f"stopping_condition.n_samples is 0.0; it should be {SHARE}"),
    ({"stopping_condition__n_samples": -2}, f"stopping_condition.n_samples is -2; it should be {SHARE}"),
    ({"stopping_condition__n_samples": 1.5}, f"stopping_condition.n_samples is 1.5; it should be {SHARE}"),
    ({"stopping_condition__n_samples": True}, "stopping_condition.n_samples is true; it should be a whole number"),
    ({"stopping_condition__n_samples": None}, "stopping_condition.n_samples is null; it should be a whole number"),
    ({"stopping_condition__n_samples": "10"}, "stopping_condition.n_samples is '10', a string; write 10"),
    ({"ranking__n_samples": 0.5}, "ranking.n_samples is 0.5; it should be a whole number"),
    ({"stopping_condition": None}, "stopping_condition is null; it should be a section with keys of its own"),
    ({"seed": "1e-99999"}, "seed is '1e-99999'; it should be a whole number"),
    ({"seed": 1.0}, "seed is 1.0; it should be a whole number"),
    ({"datapool__keep_history": "yes"}, f"datapool.keep_history is 'yes'; it should be {KEPT}"),
    ({"datapool__keep_history": 0}, f"datapool.keep_history is 0; it should be {KEPT}"),
    ({"datapool__keep_history": 2.0}, f"datapool.keep_history is 2.0; it should be {KEPT}"),
    ({"datapool__keep_history": None}, f"datapool.keep_history is null; it should be {KEPT}"),
    ({"datapool__thumbnails": 64}, "datapool.thumbnails is 64; it should be 96 or 0"),
    ({"input_dir": None}, "input_dir is null; it should be a string"),
    ({"input_dir": "http://a/b"}, f"input_dir is 'http://a/b'; it should be {STORED}"),
    ({"input_dir": "s3://"}, f"input_dir is 's3://'; it should be {STORED}"),
    (
        {"method": "coresett"},
        "method is 'coresett'; it should be 'auto', 'coreset', 'coverage', 'typical', 'coral', 'similar' or 'random'",
    ),
    ({"datapool__name": "../x"}, f"datapool.name is '../x'; it should be {PLAIN}"),
    ({"datapool__name": ".hidden"}, f"datapool.name is '.hidden'; it should be {PLAIN}"),
    ({"datapool__name": "a/b"}, f"datapool.name is 'a/b'; it should be {PLAIN}"),
    ({"datapool__name": ".."}, f"datapool.name is '..'; it should be {PLAIN}"),
    ({"datapool__replaces": 123456789012}, f"datapool.replaces is 123456789012; it should be {BATCH}"),
    ({"datapool__replaces": ["3f0a1b2c4d5e", "3f0a"]}, f"datapool.replaces is ['3f0a1b2c4d5e', '3f0a']; it should be {BATCH}"),
    ({"datapool__remember_rejected": 1}, "datapool.remember_rejected is 1; it should be true or false"),
    ({"datapool__base_version": -1}, "datapool.base_version is -1; it should be greater than or equal to 0"),
    ({"output_dir": "/out"}, f"output_dir is '/out'; it should be {FOLDER}"),
    ({"output_dir": "../out"}, f"output_dir is '../out'; it should be {FOLDER}"),
    ({"output_dir": "out/../.."}, f"output_dir is 'out/../..'; it should be {FOLDER}"),
    ({"output_dir": "."}, f"output_dir is '.'; it should be {FOLDER}"),
    ({"output_dir": ""}, f"output_dir is ''; it should be {FOLDER}"),
    ({"output_dir": "my out"}, f"output_dir is 'my out'; it should be {FOLDER}"),
    ({"shared_dir": "${x}"}, f"shared_dir is '${{x}}'; it should be {FOLDER}"),
    ({"filename_prefix": "../x"}, f"filename_prefix is '../x'; it should be {PREFIX}"),
    ({"filename_prefix": "a/../../x"}, f"filename_prefix is 'a/../../x'; it should be {PREFIX}"),
    ({"filename_prefix": "/x"}, f"filename_prefix is '/x'; it should be {PREFIX}"),
    ({"ranking__approximate": 1}, "ranking.approximate is 1; it should be true or false"),
    ({"engine": "dask"}, "engine is 'dask'; it should be 'local' or 'ray'"),
    ({"ranking__n_clusters": 0}, "ranking.n_clusters is 0; it should be auto, or a whole number of at least 1"),
    ({"rules__balance": 0}, f"rules.balance is 0; it should be {BALANCE}"),
    ({"rules__balance": 0.5}, f"rules.balance is 0.5; it should be {BALANCE}"),
    ({"rules__balance": True}, f"rules.balance is true; it should be {BALANCE}"),
    ({"rules__balance": "cat"}, f"rules.balance is 'cat'; it should be {BALANCE}"),
    ({"rules__balance": [50]}, f"rules.balance is [50]; it should be {BALANCE}"),
    ({"rules__balance": {"cat": 0.5}}, "rules.balance: the limit of 'cat' is 0.5; it should be a whole number of at least 0"),
    ({"rules__balance": {"cat": -1}}, "rules.balance: the limit of 'cat' is -1; it should be a whole number of at least 0"),
    ({"rules__balance": {"cat": None}}, "rules.balance: the limit of 'cat' is null; it should be a whole number of at least 0"),
    ({"rules__balance": {7: 50}}, "rules.balance: the label 7 is not a string; put it in quotes, as in {'7': 50}"),
    ({"rules__sequence_gap": 0}, "rules.sequence_gap is 0; it should be greater than or equal to 1"),
    ({"rules__sequence_gap": 1.5}, "rules.sequence_gap is 1.5; it should be a whole number"),
    ({"rules__protected": ""}, "rules.protected is ''; it should be a path, or null where a file may be left out"),
    ({"rules__protected": ["a", "b"]}, "rules.protected is ['a', 'b']; it should be a string"),
    ({"rules__protected_distance": 0}, "rules.protected_distance is 0; it should be greater than 0"),
    ({"rules__protected_distance": None}, "rules.protected_distance is null; it should be a number"),
    ({"rules": None}, "rules is null; it should be a section with keys of its own"),
    ({"active_learning_score_column_name": ""},
     "active_learning_score_column_name is ''; it should be a name of printable characters"),
    ({"lightly__optimizer__lr": 0}, "lightly.optimizer.lr is 0; it should be greater than 0"),
    ({"lightly__optimizer__lr": float("nan")}, "lightly.optimizer.lr is NaN; it should be a finite number"),
    ({"stopping_condition__min_distance": float("inf")},
     "stopping_condition.min_distance is Infinity; it should be a finite number"),
    ({"lightly__collate__cj_prob": 1.5}, "lightly.collate.cj_prob is 1.5; it should be less than or equal to 1"),
    ({"enable_training": "once"}, "enable_training is 'once'; it should be never (or false), first (or true), or always"),
    ({"enable_training": 1}, "enable_training is 1; it should be never (or false), first (or true), or always"),
    ({"enable_training": None}, "enable_training is null; it should be never (or false), first (or true), or always"),
    ({"lightly__method": "moco"}, "lightly.method is 'moco'; it should be 'simclr', 'byol' or 'dino'"),
    ({"lightly__trainer__strategy": "ddp_spawn"}, "lightly.trainer.strategy is 'ddp_spawn'; it should be 'auto', 'ddp' or 'ddp_find_unused_parameters_true'"),
    ({"lightly__trainer__devices": 0}, "lightly.trainer.devices is 0; it should be greater than or equal to 1"),
    ({"lightly__trainer__precision": "32"}, "lightly.trainer.precision is '32'; it should be '32-true', '16-mixed', 'bf16-mixed', '16-true', 'bf16-true', '64-true', 16, 32 or 64"),
]  # fmt: skip


def test_a_bad_value_is_refused_in_one_line_with_key_value_and_what_it_should_be():
    failures = []
    for changes, told in BAD_VALUES:
        try:
            found = f"accepted: {load(**changes)}"
        except DatapoolError as error:
            found = str(error)
        if found != f"params.yaml: {told}":
            failures.append((changes, found))

    assert not failures


@pytest.mark.parametrize(
    ("value", "meaning"),
    [(True, "first"), (False, "never"), ("first", "first"), ("never", "never"), ("always", "always")],
)
def test_true_and_false_are_older_words_for_first_and_never(value, meaning):
    assert load(enable_training=value).training == meaning


def test_an_empty_pool_name_is_refused_with_what_a_name_is():
    assert message(datapool__name="").startswith("params.yaml: datapool.name is ''; it should be a ")


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_a_string_that_python_reads_as_a_non_finite_number_is_refused_in_one_line(text):
    told = message(stopping_condition__min_distance=text)

    assert told.startswith(f"params.yaml: stopping_condition.min_distance is '{text}'")
    assert "\n" not in told


def test_a_key_that_is_not_a_string_is_refused_in_one_line():
    Path("params.yaml").write_text(yaml.safe_dump({**CONTENT, 1: 2}, sort_keys=False))

    with pytest.raises(DatapoolError, match=r"^params\.yaml: \S[^\n]*\b1\b[^\n]*$"):
        load_params()


def test_params_without_a_stopping_condition_are_refused():
    assert message(stopping_condition__min_distance=-1) == (
        "params.yaml: stopping_condition: n_samples and min_distance are both inactive, so nothing would end the "
        "selection; set one, for instance min_distance: 0.1"
    )


def test_core_sets_are_refused_where_they_prove_nothing():
    assert message(ranking__approximate=True, stopping_condition__n_samples=10) == (
        "params.yaml: ranking.approximate is true, which only method coreset can be, and the method in use is coverage; set "
        "method: coreset, or ranking.approximate: false"
    )
    assert message(ranking__approximate=True, method="coreset", rules__balance=3) == (
        "params.yaml: ranking.approximate is true, but rules.balance is set, which may exclude what the core-sets hold; set "
        "ranking.approximate: false, or rules.balance to null"
    )


@pytest.mark.parametrize("level", ["strict", "near_copies", "similar"])
def test_a_min_distance_may_be_a_level(level):
    assert load(stopping_condition__min_distance=level).stopping_condition.level == level


def test_a_text_that_is_no_level_is_refused_with_the_levels():
    assert message(stopping_condition__min_distance="near-copies") == (
        "params.yaml: stopping_condition.min_distance is 'near-copies'; it should be a number such as 0.1, or a level: "
        "strict, near_copies, similar"
    )
    assert message(stopping_condition__min_distance="0.2") == (
        "params.yaml: stopping_condition.min_distance is '0.2', a string; write 0.2"
    )


@pytest.mark.parametrize("min_distance", [0, 0.0, 2, 2.0])
def test_every_distance_from_zero_to_the_diameter_is_accepted(min_distance):
    assert load(stopping_condition__min_distance=min_distance).stopping_condition.min_distance == min_distance


def test_a_distance_beyond_the_diameter_of_the_unit_sphere_is_refused():
    assert message(stopping_condition__min_distance=2.5) == (
        "params.yaml: stopping_condition.min_distance is 2.5, but no two normalized embeddings are more than 2 apart; "
        "give a smaller value, or set normalize_embeddings: false"
    )


def test_raw_embeddings_and_weak_labels_allow_larger_distances():
    # Labels add 1 to the squared distance of at most 4: the farthest is the root of 5, 2.236.
    assert load(stopping_condition__min_distance=2.5, normalize_embeddings=False)
    assert load(stopping_condition__min_distance=2.2, append_weak_labels=True)
    assert "no two normalized embeddings are more than 2.236 apart" in message(
        stopping_condition__min_distance=2.3, append_weak_labels=True
    )


BY_NUMBER = {"stopping_condition__min_distance": -1, "stopping_condition__n_samples": 5}
SCORES = {"active_learning_scores": "scores.csv", "active_learning_score_column_name": "entropy"}


@pytest.mark.parametrize(("method", "needs"), [("random", {}), ("typical", {}), ("coral", SCORES)])
def test_every_method_takes_a_min_distance_and_a_number(method, needs):
    assert load(method=method, **needs).stopping_condition.threshold == 0.1
    assert load(method=method, **needs, **BY_NUMBER).method_in_use == method


def test_auto_is_coverage_where_a_number_is_given_and_coreset_otherwise():
    assert load(method="auto").method_in_use == "coreset"
    assert load(method="auto", stopping_condition__n_samples=0.1).method_in_use == "coverage"
    assert load(method="auto", **BY_NUMBER).method_in_use == "coverage"
    assert load(method="coreset", **BY_NUMBER).method_in_use == "coreset"


def test_only_coverage_has_gains_and_they_alone_may_end_it():
    assert message(stopping_condition__min_gain=0.01).endswith(
        "min_gain is 0.01, but only method coverage has gains, and the method in use is coreset; set method: coverage, or "
        "min_gain: -1"
    )
    by_gain = {"min_distance": -1, "n_samples": -1, "min_gain": 0.01}
    assert load(method="coverage", **{f"stopping_condition__{key}": value for key, value in by_gain.items()})
    assert "min_gain is 1; it should be" in message(method="coverage", stopping_condition__min_gain=1)


@pytest.mark.parametrize("power", [0.5, 33, "four", float("nan"), True])
def test_a_power_that_is_out_of_range_is_refused(power):
    assert message(coverage__power=power).endswith("it should be a number from 1 to 32, or .inf")
    assert load(coverage__power=float("inf")).coverage.power == float("inf")


def test_similar_needs_examples_and_negative_ones_need_positive_ones():
    assert message(method="similar", **BY_NUMBER) == (
        "params.yaml: method is similar, but similar_to.positive is null; give images to find more like"
    )
    assert message(similar_to__negative="data") == (
        "params.yaml: similar_to: negative is given, but positive is null; give images to find more like, or negative: null"
    )
    assert load(method="similar", **BY_NUMBER, similar_to__positive="data").method == "similar"


def test_coral_needs_a_column_of_scores_or_weights_of_several():
    assert message(method="coral", **BY_NUMBER) == (
        "params.yaml: method is coral, but active_learning_score_column_name is null; give the column of "
        "active_learning_scores, or of metadata or the scan, or weights of several as scores"
    )
    assert load(method="coral", **BY_NUMBER, active_learning_score_column_name="sharpness").method == "coral"
    given = {"method": "coral", **BY_NUMBER, "scores": {"entropy": 1, "sharpness": -0.5}}
    assert load(**given, **SCORES).scores == {"entropy": 1.0, "sharpness": -0.5}
    assert message(**given, **{**SCORES, "active_learning_score_column_name": None}) == (
        "params.yaml: active_learning_scores is given, but active_learning_score_column_name is null; name its column"
    )
    assert message(**given, active_learning_score_column_name="margin") == (
        "params.yaml: active_learning_score_column_name is 'margin', which scores does not weigh; give its weight there, "
        "or set the name to null"
    )
    assert message(scores={"entropy": 1}) == (
        "params.yaml: scores are given, but method is auto, which uses none; set method: coral, or scores to null"
    )
    for wrong in ({}, {"a": 0}, {"a": "1"}, {"a": float("inf")}, {"a": True}, 3, {1: 2}):
        assert "a weight for each column" in message(method="coral", **BY_NUMBER, scores=wrong)


@pytest.mark.parametrize("given", SCORES)
def test_scores_without_coral_are_refused(given):
    assert message(**{given: SCORES[given]}) == (
        f"params.yaml: {given} is given, but method is auto, which uses no scores; set method: coral, or both "
        "active_learning_scores and active_learning_score_column_name to null"
    )


@pytest.mark.parametrize("balance", [None, 1, 100, {}, {"cat": 0, "dog": 100}, {".": 3, "7": 5, "a b/é": 1}])
def test_a_limit_for_all_labels_for_some_or_for_none_is_accepted(balance):
    assert load(rules__balance=balance).rules.balance == balance


def test_a_protected_distance_that_leaves_nothing_to_pick_is_refused():
    assert message(rules__protected="test", rules__protected_distance=2.5) == (
        "params.yaml: rules.protected_distance is 2.5, but no two normalized embeddings are more than 2 apart, so nothing "
        "could be picked; give a smaller value, or set normalize_embeddings: false"
    )
    assert load(rules__protected="test", rules__protected_distance=2.0)
    assert load(rules__protected="test", rules__protected_distance=2.5, normalize_embeddings=False)
    assert load(rules__protected_distance=2.5)  # nothing is protected


@pytest.mark.parametrize("folder", ["data", "./data", "data/"])
def test_the_batch_itself_cannot_be_protected(folder):
    assert message(rules__protected=folder) == (
        f"params.yaml: rules.protected is '{folder}', the input_dir itself, so nothing could be picked; give the images "
        "near which nothing may be picked, such as a test set"
    )
    assert load(rules__protected="data/test")


def test_the_name_of_a_model_needs_embeddings_of_it():
    assert message(embeddings_model="clip") == (
        "params.yaml: embeddings_model is 'clip', but embeddings is null, so datapool computes them itself; set embeddings "
        "to a file, or embeddings_model: null"
    )
    assert load(embeddings="e.csv", embeddings_model="clip").embeddings_model == "clip"


def test_embeddings_and_a_checkpoint_exclude_each_other():
    assert message(embeddings="e.csv", checkpoint="c.ckpt") == (
        "params.yaml: embeddings and checkpoint are both given; with embeddings no model is used: drop one"
    )


@pytest.mark.parametrize("n_samples", [1, 10**9, 0.001, 1.0, -1])
def test_a_number_a_fraction_and_minus_one_are_kept_unchanged(n_samples):
    kept = load(stopping_condition__n_samples=n_samples).stopping_condition.n_samples

    assert (kept, type(kept)) == (n_samples, type(n_samples))  # 1 is one image, 1.0 all of them


@pytest.mark.parametrize("folder", ["pools", "a/b", "a.b/c_d-2", ".pools"])
def test_a_folder_below_the_workspace_is_accepted(folder):
    assert load(shared_dir=folder).shared_dir == folder


@pytest.mark.parametrize("prefix", ["", "week2/", "week 2, été_", "..a"])
def test_a_plain_prefix_is_accepted(prefix):
    assert load(filename_prefix=prefix).filename_prefix == prefix


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", r"params\.yaml: has no keys; `datapool init DIR` writes a complete one"),
        (b"# nothing\n", r"params\.yaml: has no keys; .*"),
        (b"- a\n", r"params\.yaml: has no keys; .*"),
        (b"text\n", r"params\.yaml: has no keys; .*"),
        (b"a: [\n", r"params\.yaml: is not YAML \(while parsing .* line 2, column 1.*\)"),
        (b"a: b: c\n", r"params\.yaml: is not YAML \(.* line 1, column 5.*\)"),
        (b"a: \xff\n", r"params\.yaml: cannot be read \(.*utf-8.*\)"),
    ],
    ids=ascii,
)  # fmt: skip
def test_a_file_without_params_is_refused_in_one_line(data, told):
    Path("params.yaml").write_bytes(data)

    with pytest.raises(DatapoolError, match=f"^{told}$"):
        load_params()


def test_every_file_that_may_be_given_must_be_there(tmp_path):
    keys = ("relevant_filenames_file", "checkpoint", "embeddings", "active_learning_scores", "rules.protected")
    Path("exclude.txt").touch()
    failures = []
    for key in (*keys, "rules.exclude", "lightly.model.weights"):
        scores = {"method": "coral", **BY_NUMBER, **SCORES} if key == "active_learning_scores" else {}
        for name in ("gone.csv", "gone folder/été.csv", str(tmp_path / "gone")):
            params = load(**{**scores, key.replace(".", "__"): name})
            with pytest.raises(DatapoolError) as caught:
                require_files(params)
            failures += [str(caught.value)] * (
                f"params.yaml: {key} is '{name}', which is not there; " not in str(caught.value)
            )
        (tmp_path / "here").touch()
        require_files(load(**{**scores, key.replace(".", "__"): "here"}))
    require_files(load())

    assert not failures


def test_a_missing_file_is_refused_with_how_to_get_one():
    with pytest.raises(
        DatapoolError, match=r"^params\.yaml is not here; run in a workspace, or make one with `datapool"
    ):
        load_params()


def test_a_python_tag_is_never_executed():
    Path("params.yaml").write_text('seed: !!python/object/apply:os.system ["touch executed"]\n')

    with pytest.raises(DatapoolError, match=r"^params\.yaml: is not YAML \(could not determine a constructor"):
        load_params()
    assert not Path("executed").exists()


def test_params_cannot_be_changed_once_loaded():
    with pytest.raises(ValueError, match="frozen"):
        load_params(SHIPPED).seed = 2
