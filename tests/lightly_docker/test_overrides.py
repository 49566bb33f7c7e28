"""key=value arguments: what comes out is typed as params.yaml would be, and every mistake gives one line."""

import os
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from datapool.core.errors import DatapoolError
from datapool.core.params import check_setting, load_params, settings
from datapool.lightly_docker import overrides
from datapool.lightly_docker.overrides import Overrides, parse
from datapool.workspace.params_file import set_params

SHIPPED = Path(__file__).parents[2] / "params.yaml"


def flat(content: dict, prefix: str = "") -> dict[str, object]:
    found = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def only(argument: str) -> object:
    """The value of the one setting that comes out."""
    (value,) = parse([argument]).params.values()
    return value


def refusal(*arguments: str) -> str:
    with pytest.raises(DatapoolError) as caught:
        parse(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_line_that_people_know_is_understood_as_it_is():
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
        notes=["not needed here: token"],
    )


@pytest.mark.parametrize(
    ("argument", "value"),
    [
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
    ],
)  # fmt: skip
def test_a_value_has_the_type_that_its_key_wants(argument, value):
    found = next(iter(parse([argument]).params.values()))

    assert (found, type(found)) == (value, type(value))


def test_a_key_of_lightly_goes_by_the_name_that_it_has_here():
    arguments = ["lightly.pre_trained=False", "lightly.checkpoint=a.ckpt", "lightly.seed=3"]

    assert parse(arguments).params == {"lightly.model.pretrained": False, "checkpoint": "a.ckpt", "seed": 3}


@pytest.mark.parametrize(
    ("number", "accelerator", "devices"), [("0", "cpu", 1), ("1", "auto", 1), ("4", "auto", 4), ("-1", "auto", "auto")]
)
def test_a_number_of_gpus_becomes_devices(number, accelerator, devices):
    assert parse([f"lightly.trainer.gpus={number}"]).params == {
        "lightly.trainer.accelerator": accelerator,
        "lightly.trainer.devices": devices,
    }


def test_workers_as_many_as_cores_are_counted_here():
    found = parse(["lightly.loader.num_workers=-1"])

    assert found.params == {"lightly.loader.num_workers": os.cpu_count()}
    assert found.notes == [f"lightly.loader.num_workers is {os.cpu_count()}, the cores of this machine"]


def test_a_number_of_samples_alone_is_the_only_condition_as_it_was_in_lightly():
    found = parse(["method=random", "stopping_condition.n_samples=50"])

    assert found.params["stopping_condition.min_distance"] == -1
    assert found.notes == [
        "stopping_condition.min_distance is inactive, as stopping_condition.n_samples alone is given"
    ]


@pytest.mark.parametrize("other", ["stopping_condition.min_distance=0.1", "stopping_condition.n_samples=-1"])
def test_a_distance_that_is_given_or_all_there_is_stays(other):
    arguments = ["stopping_condition.n_samples=50", other] if "min_distance" in other else [other]
    found = parse(arguments)

    assert found.notes == []
    assert found.params.get("stopping_condition.min_distance", 0.1) == 0.1


def test_scores_within_the_embeddings_are_found_there_as_in_lightly():
    found = parse(["method=coral", "embeddings=al.csv", "active_learning_score_column_name=al", "scorer=''"])

    assert found.params["active_learning_scores"] == "al.csv"
    assert found.notes == [
        "not needed here: scorer",
        "active_learning_scores is 'al.csv', the embeddings that are given",
    ]


@pytest.mark.parametrize(
    ("argument", "is_asked"),
    [("sanity_check=True", True), ("sanity_check=False", False), ("+sanity_check=true", True), ("seed=1", False)],
)
def test_a_sanity_check_is_no_setting_but_a_wish(argument, is_asked):
    found = parse([argument])

    assert found.sanity_check is is_asked
    assert "sanity_check" not in found.params


@pytest.mark.parametrize(
    ("text", "folder"), [("week_1", "week_1"), ("2021/'a'", "2021/'a'"), ("'a b'", "a b"), ("", None), ("null", None)]
)
def test_a_run_directory_is_no_setting_but_a_place(text, folder):
    assert parse([f"run_directory={text}"]) == Overrides({}, False, folder, [])


def test_what_is_not_needed_is_listed_in_one_note_without_its_values():
    arguments = [
        "token=SECRET", "upload_dataset=True", "worker.worker_id=SECRET", "datasource.dataset_id=SECRET", "new_dataset_name=x",
        "datapool.dataset_id=SECRET", "shutdown_when_job_finished=True", "lightly.checkpoint_callback.save_top_k=1",
        "lightly.trainer.weights_summary=top", "hydra.run.dir=x", "memory_requirement_in_GB=2", "num_processes=4",
    ]  # fmt: skip

    assert parse(arguments) == Overrides(
        {}, False, None, [f"not needed here: {', '.join(argument.partition('=')[0] for argument in arguments)}"]
    )


NOTHING = [
    "pretagging=False", "pretagging=", "object_level.task_name=''", "object_level.padding=0.0", "active_learning.task_name=",
    "scorer=", "scorer=object-frequency", "selected_sequence_length=1", "output_image_size=-1", "lightly.model.width=1",
    "lightly.criterion.memory_bank_size=0", "lightly.loader.shuffle=True", "lightly.collate.sigmas=[0.2, 2]",
    "lightly.collate.rr_degrees=null", "existing_selection_column_name=''", "datasource.enable_datapool_update=True",
]  # fmt: skip


@pytest.mark.parametrize("argument", NOTHING)
def test_what_asks_for_nothing_is_accepted(argument):
    assert parse([argument]) == Overrides({}, False, None, [f"not needed here: {argument.partition('=')[0]}"])


LACKING = [
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
    ("lightly.criterion.memory_bank_size=4096", "lightly.criterion.memory_bank_size is 4096", "from the batch"),
    ("lightly.loader.shuffle=False", "lightly.loader.shuffle is false", "new order"),
    ("lightly.collate.sigmas=[1, 2]", "lightly.collate.sigmas is [1, 2]", "input_size"),
    ("lightly.collate.rr_degrees=30", "lightly.collate.rr_degrees is 30", "90 degrees"),
]


@pytest.mark.parametrize(("argument", "what", "instead"), LACKING, ids=str)
def test_what_datapool_does_not_do_is_refused_with_what_there_is_instead(argument, what, instead):
    told = refusal(argument)

    assert told.startswith(f"{what}, which asks for what datapool does not do: ")
    assert instead in told


@pytest.mark.parametrize("name", sorted(overrides._REFUSED | overrides._RENAMED))
def test_no_key_of_params_is_taken_for_one_that_is_gone(name):
    assert name not in settings()


@pytest.mark.parametrize("name", sorted(set(overrides._RENAMED.values()) - set(overrides._MOUNTS)))
def test_what_a_key_is_called_here_exists(name):
    assert name in settings()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["datapool.name=null"], "datapool.name is null; it should be a text, in quotes if that is the text"),
        (["filename_prefix=None"], "filename_prefix is None; it should be a text, in quotes if that is the text"),
        (["lightly=3"], "lightly is a section, which takes no value; give its keys, such as lightly.model.name=VALUE"),
        (["stopping_condition={n_samples: 1}"],
         "stopping_condition is a section, which takes no value; give its keys, such as stopping_condition.n_samples=VALUE"),
        (["seed=1", "seed=1"], "seed is given twice; give it once"),
        (["seed=1", "+seed=2"], "seed is given twice; give it once"),
        (["seed=1", "lightly.seed=2"], "seed is given twice; give it once"),
        (["token=a", "token=b"], "token is given twice; give it once"),
        (["lightly.trainer.gpus=1", "lightly.trainer.devices=2"],
         "lightly.trainer.gpus is given beside lightly.trainer.devices or accelerator, which say the same; drop one"),
        (["lightly.trainer.gpus=[0,1]"],
         "lightly.trainer.gpus is [0, 1]; it should be a number of GPUs, 0 for the CPU or -1 for all"),
        (["seed"], "argument 'seed' has no '='; arguments are key=value, in quotes where the value has spaces"),
        (["token"], "argument 'token' has no '='; arguments are key=value, in quotes where the value has spaces"),
        (["seed=1", "a0f3"], "argument 2 has no '='; arguments are key=value, in quotes where the value has spaces"),
        ([""], "argument 1 has no '='; arguments are key=value, in quotes where the value has spaces"),
        (["=1"], "argument 1 has no key before its '='; arguments are key=value"),
        (["+=1"], "argument 1 has no key before its '='; arguments are key=value"),
        (["~seed=1"], "'~seed': a key cannot be taken away; write seed=null where null is allowed"),
        (["--seed=1"], "'--seed': is no option of this command; settings are key=value, without dashes"),
        (["min_distance=0.1"],
         "unknown key 'min_distance'; did you mean 'stopping_condition.min_distance' or 'ranking.min_distance'?"),
        (["stopping_condition.n_sample=5"],
         "unknown key 'stopping_condition.n_sample'; did you mean 'stopping_condition.n_samples'?"),
        (["appendweaklabels=True"], "unknown key 'appendweaklabels'; did you mean 'append_weak_labels'?"),
        (["pretaging=True"], "unknown key 'pretaging'; did you mean 'pretagging'?"),
        (["+nothing=5"], "unknown key 'nothing'; did you mean "),
        (["rules.balance.cat=5"], "unknown key 'rules.balance.cat'; did you mean 'rules.balance'?"),
        (["a\nb=1"], r"unknown key 'a\nb'; did you mean "),
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
        (["stopping_condition.n_samples=0"], "stopping_condition.n_samples is 0; it should be a whole number from 1 on, a share "),
        (["method=Coreset"], "method is 'Coreset'; it should be 'coreset', 'random', 'typical' or 'coral'"),
        (["datapool.name=a/b"], "datapool.name is 'a/b'; it should be a plain name without '/'"),
        (["datapool.name="], "datapool.name is ''; it should be a "),
        (["lightly.trainer.precision=8"], "lightly.trainer.precision is 8; it should be '32-true', "),
        (["rules.balance={cat:"], "rules.balance is '{cat:'; it should be a whole number from 1 on, "),
        (["rules.balance={7: 50}"], "rules.balance: the label 7 is no text; put it in quotes"),
        (["rules.balance={cat: 1, cat: 2}"], "rules.balance is '{cat: 1, cat: 2}'; it should be "),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_gets_one_line_with_what_is_there_and_what_should_be(arguments, told):
    assert refusal(*arguments).startswith(told)


def test_a_mapping_that_the_shell_took_apart_is_told_about_quotes():
    assert refusal("rules.balance={cat:", "50,", "dog:", "100}").endswith(
        "in a shell, put quotes around the whole argument"
    )


@pytest.mark.parametrize(
    ("argument", "mount", "option"),
    [
        ("input_dir=/images", "-v DIR:/home/input_dir:ro ", "datapool run --input-dir DIR"),
        ("shared_dir=/pools", "-v DIR:/home/shared_dir ", "datapool run --shared-dir DIR"),
        ("output_dir=/out", "-v DIR:/home/output_dir ", "datapool run --output-dir DIR"),
        ("lightly.input_dir=/images", "-v DIR:/home/input_dir:ro ", "datapool run --input-dir DIR"),
    ],
)
def test_folders_are_mounted_not_set(argument, mount, option):
    told = refusal(argument)

    assert told.startswith(f"{argument.partition('=')[0]} is no setting here, it is what is mounted: ")
    assert mount in told
    assert option in told


@pytest.mark.parametrize(
    "arguments",
    [
        ["token=SECRET", "token=SECRET"], ["token=", "SECRET"], ["token", "SECRET"], ["token:SECRET"], ["tokn=SECRET"],
        ["=SECRET"], ["~token=SECRET"], ["--token=SECRET"], ["token=SECRET", "seed=x"], ["worker.worker_id=SECRET", "x=1"],
    ],
)  # fmt: skip
def test_a_secret_is_never_repeated(arguments):
    assert "SECRET" not in refusal(*arguments)
    assert "SECRET" not in str(parse(["token=SECRET", "datasource.dataset_id=SECRET", "lightly.token=SECRET"]))


PLAIN = {key: value for key, value in flat(yaml.safe_load(SHIPPED.read_text())).items() if not key.endswith("_dir")}


def test_the_shipped_file_has_every_key():
    assert list(flat(yaml.safe_load(SHIPPED.read_text()))) == list(settings())


@pytest.mark.parametrize(
    "spell", [str, lambda value: yaml.safe_dump(value).removesuffix("...\n").strip()], ids=["py", "yaml"]
)
@pytest.mark.parametrize("key", PLAIN)
def test_each_shipped_value_comes_back_from_its_text(key, spell):
    value = PLAIN[key]
    found = only(f"{key}={spell(value)}") if key != "lightly.loader.num_workers" else value

    assert found == value
    assert isinstance(found, bool) == isinstance(value, bool)


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("workspace")


@trials(deadline=None, max_examples=50)
@given(data=st.data())
def test_any_value_written_as_text_comes_back_and_lands_in_the_file(folder, data):
    shutil.copy(SHIPPED, folder)
    key = data.draw(st.sampled_from(sorted(ANY)))
    value = data.draw(ANY[key])
    text = (
        yaml.safe_dump(value, default_flow_style=True, width=10**6).strip() if isinstance(value, dict) else str(value)
    )
    try:
        check_setting(key, value)
    except DatapoolError:
        with pytest.raises(DatapoolError):  # a pool by the name of con, a path of blanks
            parse([f"{key}={text}"])
        return
    parsed = parse([f"{key}={text}"]).params
    found = parsed[key]
    if isinstance(value, str) and value in overrides._NULLS:  # as a text, None is no file
        value = None

    assert found == value
    assert isinstance(found, bool) == isinstance(value, bool)

    set_params(folder, {**parsed, "stopping_condition.n_samples": parsed.get("stopping_condition.n_samples", 5)})
    in_file = load_params(folder / "params.yaml")
    for part in key.split("."):
        in_file = getattr(in_file, part)
    assert in_file == value


@pytest.mark.parametrize("text", ["yes", "on", "1:30", "007", "1_", "null", "~", "=", "2024-01-01"])
def test_a_text_that_yaml_would_take_for_something_else_stays_a_text_in_the_file(folder, text):
    shutil.copy(SHIPPED, folder)
    set_params(folder, {"filename_prefix": text, "rules.balance": {text: 3}})

    params = load_params(folder / "params.yaml")
    assert params.filename_prefix == text
    assert params.rules.balance == {text: 3}


@pytest.mark.parametrize("value", [1e-05, 3e-7, 1e22, 1.5e-7])
def test_a_small_number_stays_a_number_in_the_file(folder, value):
    shutil.copy(SHIPPED, folder)
    set_params(folder, {"lightly.optimizer.lr": value})

    assert load_params(folder / "params.yaml").lightly.optimizer.lr == value
