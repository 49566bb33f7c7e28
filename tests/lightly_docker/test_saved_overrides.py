"""What a run sets in params.yaml is reverted before the next run; edits by hand stay, and an error restores the file."""

import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

from datapool.core.errors import DatapoolError
from datapool.lightly_docker import saved_overrides
from datapool.workspace.params_file import check_with, set_params

SHIPPED = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the shipped params.yaml, as current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(SHIPPED, "params.yaml")


def params() -> dict:
    return yaml.safe_load(Path("params.yaml").read_text())


def test_a_value_is_reverted_unless_it_was_edited_since():
    saved_overrides.apply({"seed": 7, "n_example_images": 3})
    set_params(Path(), {"seed": 8})
    saved_overrides.revert()

    assert (params()["seed"], params()["n_example_images"]) == (8, 24)


def test_a_key_that_was_removed_since_is_not_brought_back():
    saved_overrides.apply({"seed": 7, "checkpoint": "a.ckpt", "rules.balance": 5})
    edited = re.sub(r"(?m)^rules:.*\n(  .*\n)+", "", Path("params.yaml").read_text())
    Path("params.yaml").write_text(re.sub(r"(?m)^checkpoint: .*\n", "", edited))
    saved_overrides.revert()

    assert params()["seed"] == yaml.safe_load(SHIPPED.read_text())["seed"] != 7
    assert "checkpoint" not in params() and "rules" not in params()


def test_any_error_or_interrupt_restores_the_settings():
    before = Path("params.yaml").read_bytes()
    with pytest.raises(KeyboardInterrupt), saved_overrides.restore_params_on_error():
        saved_overrides.apply({"seed": 7})
        raise KeyboardInterrupt

    assert Path("params.yaml").read_bytes() == before
    assert not saved_overrides.OVERRIDES.exists()


def test_a_damaged_record_is_refused_with_what_restores_it():
    message = (
        "overrides.json: is not a readable record of what the last run set; `git checkout HEAD -- overrides.json` restores "
        "its last version, or remove it: then what that run set in params.yaml stays"
    )
    before = Path("params.yaml").read_bytes()
    failures = []
    for text in ['{"seed": 1}', "[]", '{"seed": {"set": 1}}', '{"seed": {"before": 1}}', "<<<<", "", "a pipe"]:
        if text == "a pipe":
            os.mkfifo("overrides.json")
        else:
            Path("overrides.json").write_text(text)
        try:
            saved_overrides.revert()
            failures.append((text, "not refused"))
        except DatapoolError as error:
            if str(error) != message:
                failures.append((text, str(error)))
        if text != "a pipe" and Path("overrides.json").read_text() != text:
            failures.append((text, "changed"))
        Path("overrides.json").unlink()

    assert not failures
    assert Path("params.yaml").read_bytes() == before
    saved_overrides.revert()  # without a record there is nothing to revert


def test_a_key_that_params_yaml_lacks_is_named():
    Path("params.yaml").write_text(re.sub(r"(?m)^checkpoint: .*\n", "", SHIPPED.read_text()))
    with pytest.raises(DatapoolError, match=r"params.yaml: checkpoint is missing; `datapool init --update`"):
        saved_overrides.apply({"checkpoint": "a.ckpt"})

    assert not saved_overrides.OVERRIDES.exists()


@pytest.mark.parametrize("rules", ["null", "[]", "3"])
def test_an_override_in_a_section_that_is_no_section_gets_the_message_of_the_schema(rules):
    Path("params.yaml").write_text(re.sub(r"(?m)^rules:.*\n(  .*\n)+", f"rules: {rules}\n", SHIPPED.read_text()))
    with pytest.raises(DatapoolError, match=r"params.yaml: rules is .*; it should be a section"):
        check_with({"rules.balance": 5})
