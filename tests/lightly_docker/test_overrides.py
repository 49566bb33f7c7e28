"""Arguments of the form key=value become typed values of params.yaml, and every mistake a message of one line."""

import os
import shutil
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import Phase, given
from hypothesis import settings as trials
from hypothesis import strategies as st

from datapool.core.errors import DatapoolError
from datapool.core.key_value import NULLS
from datapool.core.params import check_setting, load_params, parse_yaml, settings
from datapool.lightly_docker import lightly_keys
from datapool.lightly_docker.overrides import Overrides, parse
from datapool.workspace.params_file import set_params

SHIPPED = Path(__file__).parents[2] / "params.yaml"


def flat(content: dict, prefix: str = "") -> dict[str, object]:
    found = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def typed(value: object) -> tuple[object, type]:
    """A value with its type: 1 == 1.0 == True, and the file must not mix them up."""
    return value, type(value)


def refusal(*arguments: str) -> str:
    """The message about arguments that cannot be used; "" if they can."""
    try:
        parse(arguments)
    except DatapoolError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


def test_the_command_line_of_lightlys_docker_works_unchanged():
    line = "token=MYAWESOMETOKEN append_weak_labels=False stopping_condition.min_distance=0.1 datapool.name=my_datapool"

    assert parse([*line.split(), "datapool.keep_history=False"]) == Overrides(
        params={
            "append_weak_labels": False,
            "stopping_condition.min_distance": 0.1,
            "datapool.name": "my_datapool",
            "datapool.keep_history": False,
        },
        sanity_check=False,
        run_directory=None,
        notes=["ignored: token"],
    )


# --- values ------------------------------------------------------------------------------------------------------------

VALUES = [
    ("append_weak_labels=True", True),
    ("append_weak_labels=true", True),
    ("append_weak_labels=FALSE", False),
    ("seed=7", 7),
    ("seed=007", 7),  # YAML 1.1 would read an octal number, and 1:30 as 90
    ("stopping_condition.min_distance=1", 1.0),
    ("stopping_condition.min_distance=.5", 0.5),
    ("stopping_condition.min_distance=-1.", -1.0),
    ("stopping_condition.n_samples=0.1", 0.1),
    ("stopping_condition.n_samples=1.0", 1.0),
    ("stopping_condition.n_samples=100", 100),
    ("lightly.optimizer.lr=1e-3", 0.001),
    ("lightly.optimizer.weight_decay=1E-5", 0.00001),
    ("datapool.base_version=null", None),
    ("datapool.base_version=None", None),
    ("datapool.base_version=2", 2),
    ("datapool.name=007", "007"),
    ("datapool.name='null'", "null"),
    ("datapool.name=1e3", "1e3"),
    ("datapool.name=True", "True"),
    ("filename_prefix=1_", "1_"),
    ("filename_prefix=", ""),
    ("filename_prefix=a=b", "a=b"),
    ("checkpoint=", None),
    ("checkpoint=''", None),
    ('checkpoint=""', None),
    ("checkpoint=None", None),
    ("checkpoint='null'", "null"),  # in quotes it is a text, as in YAML
    ("checkpoint='my model.ckpt'", "my model.ckpt"),
    ("checkpoint=it's.ckpt", "it's.ckpt"),
    ("'checkpoint=my model.ckpt'", "my model.ckpt"),
    ("+checkpoint=a.ckpt", "a.ckpt"),
    ("++checkpoint=a.ckpt", "a.ckpt"),
    ("stopping_condition.min_distance='0.2'", 0.2),
    ("rules.balance=100", 100),
    ("rules.balance={cat: 50, dog: 0}", {"cat": 50, "dog": 0}),
    ("rules.balance={cat:50,dog:0}", {"cat": 50, "dog": 0}),
    ("rules.balance={'7': 50}", {"7": 50}),
    ("rules.balance='{cat: 50}'", {"cat": 50}),
    ("rules.balance=null", None),
    ("lightly.trainer.devices=auto", "auto"),
    ("lightly.trainer.devices=2", 2),
    ("lightly.trainer.precision=32", 32),
    ("lightly.trainer.precision=16-mixed", "16-mixed"),
    ("lightly.model.name=resnet-18", "resnet-18"),
    ("lightly.pre_trained=False", False),
    ("lightly.checkpoint=''", None),
    ("lightly.seed=3", 3),
]  # fmt: skip


def test_a_value_has_the_type_that_its_key_takes():
    failures = [
        (argument, found, value)
        for argument, value in VALUES
        if typed(found := next(iter(parse([argument]).params.values()))) != typed(value)
    ]

    assert not failures


# Hydra reads None as a text and 007 as one, True as a text nowhere, and refuses "=", quotes and the like within a value.
UNLIKE_HYDRA = {
    "seed=007", "datapool.base_version=None", "checkpoint=None", "checkpoint=", "checkpoint=''", 'checkpoint=""',
    "filename_prefix=a=b", "checkpoint=it's.ckpt", "'checkpoint=my model.ckpt'", "rules.balance={'7': 50}",
    "lightly.checkpoint=''", "stopping_condition.min_distance='0.2'", "rules.balance='{cat: 50}'", "datapool.name=1e3",
    "datapool.name=True",
}  # fmt: skip


def test_values_are_otherwise_read_as_by_hydra_which_lightlys_docker_used():
    parser = OverridesParser.create()
    failures = [
        (argument, value, hydras)
        for argument, value in VALUES
        if (hydras := parser.parse_override(argument).value() if argument not in UNLIKE_HYDRA else value) != value
    ]

    assert not failures


def test_renamed_keys_of_lightly_are_translated():
    arguments = ["lightly.pre_trained=False", "lightly.checkpoint=a.ckpt", "lightly.seed=3"]

    assert parse(arguments).params == {"lightly.model.pretrained": False, "checkpoint": "a.ckpt", "seed": 3}


def test_a_number_of_gpus_becomes_accelerator_and_devices():
    expected = {"0": ("cpu", 1), "1": ("auto", 1), "4": ("auto", 4), "-1": ("auto", "auto")}
    found = {number: tuple(parse([f"lightly.trainer.gpus={number}"]).params.items()) for number in expected}

    assert found == {
        number: (("lightly.trainer.accelerator", accelerator), ("lightly.trainer.devices", devices))
        for number, (accelerator, devices) in expected.items()
    }


def test_minus_one_workers_are_as_many_as_there_are_cores():
    found = parse(["lightly.loader.num_workers=-1"])

    assert found.params == {"lightly.loader.num_workers": os.cpu_count()}
    assert found.notes == [f"lightly.loader.num_workers is {os.cpu_count()}, the number of CPU cores"]


def test_n_samples_alone_is_the_only_stopping_condition_as_in_lightly():
    found = parse(["method=random", "stopping_condition.n_samples=50"])

    assert found.params["stopping_condition.min_distance"] == -1
    assert found.notes == ["stopping_condition.min_distance is inactive, as only stopping_condition.n_samples is given"]


def test_min_distance_stays_if_it_is_given_or_n_samples_is_inactive():
    both = parse(["stopping_condition.n_samples=50", "stopping_condition.min_distance=0.1"])
    inactive = parse(["stopping_condition.n_samples=-1"])

    assert both == Overrides(
        {"stopping_condition.n_samples": 50, "stopping_condition.min_distance": 0.1}, False, None, []
    )
    assert inactive == Overrides({"stopping_condition.n_samples": -1}, False, None, [])


def test_scores_come_from_the_embeddings_csv_if_it_has_a_score_column_as_in_lightly():
    found = parse(["method=coral", "embeddings=al.csv", "active_learning_score_column_name=al", "scorer=''"])

    assert found.params["active_learning_scores"] == "al.csv"
    assert found.notes == [
        "ignored: scorer",
        "active_learning_scores is 'al.csv', the same file as embeddings",
    ]


def test_sanity_check_and_run_directory_are_no_params():
    nothing = Overrides({}, False, None, [])

    assert parse(["sanity_check=True"]) == parse(["+sanity_check=true"]) == nothing._replace(sanity_check=True)
    assert parse(["sanity_check=False"]) == nothing
    folders = {"week_1": "week_1", "2021/'a'": "2021/'a'", "'a b'": "a b", "": None, "null": None}
    found = {text: parse([f"run_directory={text}"]) for text in folders}
    assert found == {text: nothing._replace(run_directory=folder) for text, folder in folders.items()}


# --- keys that params.yaml does not have -------------------------------------------------------------------------------


def test_ignored_keys_are_listed_in_one_note_without_their_values():
    arguments = [
        "token=SECRET", "upload_dataset=True", "worker.worker_id=SECRET", "datasource.dataset_id=SECRET", "new_dataset_name=x",
        "datapool.dataset_id=SECRET", "shutdown_when_job_finished=True", "lightly.checkpoint_callback.save_top_k=1",
        "lightly.trainer.weights_summary=top", "hydra.run.dir=x", "memory_requirement_in_GB=2", "num_processes=4",
    ]  # fmt: skip

    assert parse(arguments) == Overrides(
        {}, False, None, [f"ignored: {', '.join(argument.partition('=')[0] for argument in arguments)}"]
    )


HARMLESS = [
    "pretagging=False", "pretagging=", "object_level.task_name=''", "object_level.padding=0.0", "active_learning.task_name=",
    "scorer=", "scorer=object-frequency", "selected_sequence_length=1", "output_image_size=-1", "lightly.model.width=1",
    "lightly.criterion.memory_bank_size=0", "lightly.loader.shuffle=True", "lightly.collate.sigmas=[0.2, 2]",
    "lightly.collate.rr_degrees=null", "existing_selection_column_name=''", "datasource.enable_datapool_update=True",
]  # fmt: skip


def test_an_unsupported_feature_that_is_switched_off_is_ignored():
    for argument in HARMLESS:
        assert parse([argument]) == Overrides({}, False, None, [f"ignored: {argument.partition('=')[0]}"]), argument


UNSUPPORTED = [
    ("pretagging=True", "pretagging is true", "method=coral"),
    ("object_level.task_name=cars", "object_level.task_name is 'cars'", "crop the objects"),
    ("scorer=entropy", "scorer is 'entropy'", "active_learning_scores=FILE"),
    ("active_learning.task_name=x", "active_learning.task_name is 'x'", "active_learning_scores=FILE"),
    ("selected_sequence_length=5", "selected_sequence_length is 5", "rules.sequence_gap=N"),
    ("selected_sequence_length=True", "selected_sequence_length is true", "rules.sequence_gap=N"),
    ("existing_selection_column_name=x", "existing_selection_column_name is 'x'", "datapool.name"),
    ("masked_out_column_name=x", "masked_out_column_name is 'x'", "relevant_filenames_file=FILE"),
    ("output_image_size=[64,64]", "output_image_size is [64, 64]", "as they are"),
    ("datasource.enable_datapool_update=False", "datasource.enable_datapool_update is false", "another datapool.name"),
    ("lightly.model.width=2", "lightly.model.width is 2", "lightly.model.name"),
    ("lightly.criterion.memory_bank_size=4096", "lightly.criterion.memory_bank_size is 4096", "from the mini-batch"),
    ("lightly.loader.shuffle=False", "lightly.loader.shuffle is false", "shuffles the images"),
    ("lightly.collate.sigmas=[1, 2]", "lightly.collate.sigmas is [1, 2]", "input_size"),
    ("lightly.collate.rr_degrees=30", "lightly.collate.rr_degrees is 30", "90 degrees"),
]


def test_an_unsupported_feature_is_refused_with_what_to_use_instead():
    failures = [
        (argument, message)
        for argument, problem, instead in UNSUPPORTED
        if not (message := refusal(argument)).startswith(f"{problem}, which datapool does not support: ")
        or instead not in message
    ]

    assert not failures


def test_the_table_of_lightlys_keys_names_no_key_of_params_as_gone_and_no_unknown_one_as_its_new_name():
    assert not (lightly_keys.UNSUPPORTED.keys() | lightly_keys.RENAMED.keys()) & settings().keys()
    assert set(lightly_keys.RENAMED.values()) <= settings().keys()


# --- mistakes ----------------------------------------------------------------------------------------------------------

MISTAKES = [
    (["datapool.name=null"], "datapool.name is null; it should be a string (in quotes if null is meant literally)"),
    (["filename_prefix=None"], "filename_prefix is None; it should be a string (in quotes if None is meant literally)"),
    (["lightly=3"], "lightly is a section and takes no value; set one of its keys, such as lightly.method=VALUE"),
    (["stopping_condition={n_samples: 1}"],
     "stopping_condition is a section and takes no value; set one of its keys, such as stopping_condition.n_samples=VALUE"),
    (["seed=1", "seed=1"], "seed is given twice; give it once"),
    (["seed=1", "+seed=2"], "seed is given twice; give it once"),
    (["seed=1", "lightly.seed=2"], "seed is given twice; give it once"),
    (["token=a", "token=b"], "token is given twice; give it once"),
    (["lightly.trainer.gpus=1", "lightly.trainer.devices=2"],
     "lightly.trainer.gpus sets lightly.trainer.devices and lightly.trainer.accelerator by itself; give either it or them"),
    (["lightly.trainer.gpus=[0,1]"],
     "lightly.trainer.gpus is [0, 1]; it should be a number of GPUs, 0 for the CPU or -1 for all GPUs"),
    (["seed"], "argument 'seed' has no '='; write key=value, in quotes where the value has spaces"),
    (["token"], "argument 'token' has no '='; write key=value, in quotes where the value has spaces"),
    (["seed=1", "a0f3"], "argument 2 has no '='; write key=value, in quotes where the value has spaces"),
    ([""], "argument 1 has no '='; write key=value, in quotes where the value has spaces"),
    (["=1"], "argument 1 has no key before its '='; write key=value, in quotes where the value has spaces"),
    (["+=1"], "argument 1 has no key before its '='; write key=value, in quotes where the value has spaces"),
    (["~seed=1"], "'~seed': a key cannot be removed; write seed=null where null is allowed"),
    (["--seed=1"], "'--seed' is not an option of this command; write key=value, without dashes"),
    (["min_distance=0.1"],
     "unknown key 'min_distance'; did you mean 'stopping_condition.min_distance' or 'ranking.min_distance'?"),
    (["stopping_condition.n_sample=5"],
     "unknown key 'stopping_condition.n_sample'; did you mean 'stopping_condition.n_samples'?"),
    (["appendweaklabels=True"], "unknown key 'appendweaklabels'; did you mean 'append_weak_labels'?"),
    (["pretaging=True"], "unknown key 'pretaging'; did you mean 'pretagging'?"),
    (["+nothing=5"], "unknown key 'nothing'; params.yaml, as `datapool init` writes it, has every key"),
    (["rules.balance.cat=5"], "unknown key 'rules.balance.cat'; did you mean 'rules.balance'?"),
    (["a\nb=1"], r"unknown key 'a\nb'; params.yaml, as `datapool init` writes it, has every key"),
    (["append_weak_labels=yes"], "append_weak_labels is 'yes'; it should be true or false"),
    (["append_weak_labels=1"], "append_weak_labels is 1; it should be true or false"),
    (["append_weak_labels="], "append_weak_labels is ''; it should be true or false"),
    (["sanity_check=1"], "sanity_check is 1; it should be true or false"),
    (["seed=1e3"], "seed is 1000.0; it should be a whole number"),
    (["seed=1:30"], "seed is '1:30'; it should be a whole number"),
    (["seed=None"], "seed is null; it should be a whole number"),
    (["seed=-1"], "seed is -1; it should be greater than or equal to 0"),
    (["stopping_condition.min_distance=close"], "stopping_condition.min_distance is 'close'; it should be a number"),
    (["stopping_condition.min_distance=nan"], "stopping_condition.min_distance is NaN; it should be a finite number"),
    (["stopping_condition.n_samples=True"], "stopping_condition.n_samples is true; it should be a whole number"),
    (["stopping_condition.n_samples=0"], "stopping_condition.n_samples is 0; it should be a whole number of at least 1, "),
    (
        ["method=Coreset"],
        "method is 'Coreset'; it should be 'auto', 'coreset', 'coverage', 'typical', 'coral', 'similar' or 'random'",
    ),
    (["datapool.name=a/b"], "datapool.name is 'a/b'; it should be a plain name without '/'"),
    (["datapool.name="], "datapool.name is ''; it should be a "),
    (["lightly.trainer.precision=8"], "lightly.trainer.precision is 8; it should be '32-true', "),
    (["rules.balance={cat:"], "rules.balance is '{cat:'; it should be a whole number of at least 1, "),
    (["rules.balance={7: 50}"], "rules.balance: the label 7 is not a string; put it in quotes"),
    (["rules.balance={cat: 1, cat: 2}"], "rules.balance is '{cat: 1, cat: 2}'; it should be "),
]  # fmt: skip


def test_a_mistake_gets_one_line_with_the_key_its_value_and_what_it_should_be():
    failures = [
        (arguments, message)
        for arguments, expected in MISTAKES
        if not (message := refusal(*arguments)).startswith(expected)
    ]

    assert not failures


def test_a_mapping_that_the_shell_split_gets_a_hint_about_quotes():
    message = refusal("rules.balance={cat:", "50,", "dog:", "100}")

    assert message.endswith("in a shell, put quotes around the whole argument")


def test_folders_are_mounted_not_set():
    expected = {
        "input_dir": ("-v DIR:/home/input_dir:ro ", "datapool run --input-dir DIR"),
        "shared_dir": ("-v DIR:/home/shared_dir ", "datapool run --shared-dir DIR"),
        "output_dir": ("-v DIR:/home/output_dir ", "datapool run --output-dir DIR"),
        "lightly.input_dir": ("-v DIR:/home/input_dir:ro ", "datapool run --input-dir DIR"),
    }
    for key, (mount, option) in expected.items():
        message = refusal(f"{key}=/folder")

        assert message.startswith(f"{key} cannot be set here; mount the folder with `docker run {mount}")
        assert option in message


def test_a_secret_is_never_repeated():
    secrets = [
    ["token=SECRET", "token=SECRET"], ["token=", "SECRET"], ["token", "SECRET"], ["token:SECRET"], ["tokn=SECRET"],
    ["=SECRET"], ["~token=SECRET"], ["--token=SECRET"], ["token=SECRET", "seed=x"], ["worker.worker_id=SECRET", "x=1"],
    ]  # fmt: skip
    messages = [refusal(*arguments) for arguments in secrets]

    assert all(messages)
    assert "SECRET" not in str(messages)
    assert "SECRET" not in str(parse(["token=SECRET", "datasource.dataset_id=SECRET", "lightly.token=SECRET"]))


# --- from an argument to params.yaml -----------------------------------------------------------------------------------

PLAIN = {key: value for key, value in flat(yaml.safe_load(SHIPPED.read_text())).items() if not key.endswith("_dir")}


def test_the_shipped_params_have_every_key():
    assert list(flat(yaml.safe_load(SHIPPED.read_text()))) == list(settings())


def test_each_shipped_value_survives_as_text_of_python_and_of_yaml():
    def in_yaml(value: object) -> str:
        return yaml.safe_dump(value).removesuffix("...\n").strip()

    failures = [
        (key, value, spell(value))
        for key, value in PLAIN.items()
        for spell in (str, in_yaml)
        # A whole number may stand for a float, a truth value for nothing else.
        if (found := parse([f"{key}={spell(value)}"]).params[key]) != value
        or isinstance(found, bool) != isinstance(value, bool)
    ]

    assert not failures


number = st.floats(0, 2, allow_subnormal=False)
ANY = {
    "append_weak_labels": st.booleans(),
    "seed": st.integers(0, 2**31 - 1),
    "stopping_condition.min_distance": number,
    "stopping_condition.n_samples": st.integers(1, 10**12) | st.floats(1e-12, 1),
    "lightly.optimizer.lr": st.floats(1e-30, 1e30),
    "datapool.base_version": st.none() | st.integers(0, 10**6),
    "datapool.name": st.from_regex(r"[a-z0-9_]{1,20}", fullmatch=True)
    | st.sampled_from(["yes", "no", "on", "1_0", "0x1f"]),
    "checkpoint": st.none()
    | st.text(st.characters(codec="utf-8", exclude_characters="\0'\""), min_size=1, max_size=40),
    "rules.balance": st.none()
    | st.integers(1, 99)
    | st.dictionaries(st.text(max_size=9), st.integers(0, 9), min_size=1),
    "lightly.trainer.devices": st.just("auto") | st.integers(1, 99),
}


def as_text(value: object) -> str:
    is_mapping = isinstance(value, dict)
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip() if is_mapping else str(value)


def is_valid(key: str, value: object) -> bool:
    try:
        check_setting(key, value)
    except DatapoolError:
        return False
    return True


@pytest.mark.slow
@trials(deadline=None, max_examples=100, phases=[Phase.explicit, Phase.generate])
@given(values=st.fixed_dictionaries(ANY))
def test_any_value_survives_as_text_and_any_invalid_one_is_refused(values):
    for key, value in values.items():
        argument = f"{key}={as_text(value)}"
        if not is_valid(key, value):  # a pool called con, a path of blanks
            assert refusal(argument), argument
            continue
        found = parse([argument]).params[key]
        if isinstance(value, str) and value in NULLS:  # no file
            value = None
        assert found == value, argument
        assert isinstance(found, bool) == isinstance(value, bool), argument


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("workspace")


# Without shrinking, which would take minutes here.
@trials(deadline=None, max_examples=10, phases=[Phase.explicit, Phase.generate])
@given(values=st.fixed_dictionaries(ANY))
def test_any_valid_value_lands_in_the_file(folder, values):
    shutil.copy(SHIPPED, folder)
    valid = {key: value for key, value in values.items() if is_valid(key, value)}
    set_params(folder, valid)

    content = parse_yaml((folder / "params.yaml").read_text())
    in_file = flat(content) | {"rules.balance": content["rules"]["balance"]}
    assert {key: in_file[key] for key in valid} == valid


def test_texts_and_small_numbers_are_written_so_that_yaml_reads_them_back(folder):
    # Some reader of YAML takes these texts for truth values, numbers, dates, nothing or two lines, and 1e-05 for a text.
    small = 1e-05
    for text in ["yes", "on", "1:30", "007", "1_", "null", "~", "=", "2024-01-01", ".5e3", "0o7", "a\x85b", "a\u2028b"]:
        prefix = text if text.isprintable() else ""  # as the schema demands
        shutil.copy(SHIPPED, folder)
        set_params(folder, {"filename_prefix": prefix, "rules.balance": {text: 3}, "lightly.optimizer.lr": small})
        params = load_params(folder / "params.yaml")

        found = (params.filename_prefix, params.rules.balance, params.lightly.optimizer.lr)
        assert found == (prefix, {text: 3}, small)
