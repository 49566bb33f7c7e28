"""params.yaml is edited in place, written completely, and never through a link."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from datapool.core.errors import DatapoolError
from datapool.core.params import load_params
from datapool.workspace.params_file import add_missing_params, set_params

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the params.yaml of every workspace, as current folder."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    monkeypatch.chdir(folder)
    return folder


def test_values_are_set_and_every_other_line_stays(here):
    before = Path("params.yaml").read_text().splitlines()
    set_params(Path(), {"seed": 3, "stopping_condition.min_distance": 0.25})
    after = Path("params.yaml").read_text().splitlines()

    changed = [line.strip().split("#")[0].strip() for line, old in zip(after, before, strict=True) if line != old]
    assert sorted(changed) == ["min_distance: 0.25", "seed: 3"]


def test_a_key_that_dvc_sets_changes_one_line_as_does_one_that_we_set(here):
    before = Path("params.yaml").read_text().splitlines()
    for number, values in enumerate(
        ({"seed": 3}, {"lightly.optimizer.lr": 1e-05}, {"filename_prefix": "yes"}), start=1
    ):
        ((key, value),) = values.items()
        apply_overrides("params.yaml", [f"{key}={value}"])
        by_dvc = Path("params.yaml").read_text()
        set_params(Path(), values)
        lines = Path("params.yaml").read_text().splitlines()

        assert sum(line != old for line, old in zip(lines, before, strict=True)) == number
        assert Path("params.yaml").read_text() == by_dvc
    params = load_params()
    assert (params.seed, params.lightly.optimizer.lr, params.filename_prefix) == (3, 1e-05, "yes")


def test_missing_keys_are_added_with_their_defaults_and_named(here):
    Path("mine.yaml").write_text("# mine\nseed: 5\nrules:\n  balance: 2  # kept\n")
    Path("defaults.yaml").write_text("seed: 1\nrules:\n  balance: null\n  sequence_gap: null\nname: pool\n")

    assert add_missing_params(Path("mine.yaml"), Path("defaults.yaml")) == ["rules.sequence_gap", "name"]
    assert Path("mine.yaml").read_text() == (
        "# mine\nseed: 5\nrules:\n  balance: 2  # kept\n  sequence_gap:\nname: pool\n"
    )
    assert add_missing_params(Path("mine.yaml"), Path("defaults.yaml")) == []


@pytest.mark.full
@pytest.mark.slow
def test_any_key_that_is_missing_comes_back_to_its_place_with_its_comment_and_the_lines_around_it(here):
    shipped = Path("params.yaml").read_text()
    lines, failures = shipped.splitlines(keepends=True), []
    for number, line in enumerate(lines):
        if not (key := re.match(r"( *)(\w+):", line)):
            continue
        end = number + 1
        while end < len(lines) and lines[end].startswith(key[1] + " "):
            end += 1
        Path("mine.yaml").write_text("".join(lines[:number] + lines[end:]))
        added = add_missing_params(Path("mine.yaml"), Path("params.yaml"))
        has_no_key = lines[number - 1].endswith(":\n") and (end == len(lines) or not lines[end].startswith(key[1]))
        is_section_empty = bool(key[1]) and has_no_key  # so it is no section
        if (Path("mine.yaml").read_text(), len(added)) != (shipped, 1) and not is_section_empty:
            failures.append((key[2], added))

    assert not failures


def test_a_comment_of_the_user_stays_with_its_key_when_keys_are_added(here):
    Path("mine.yaml").write_text("a: 1  # mine\n\n# about d\nd: {e: 1}\nf:\n  # about g\n  g: 1\n")
    Path("defaults.yaml").write_text("a: 0\n\nb: 2  # two\nc:\n  x: 3\n\nd:\n  e: 0\n  h: 4\nf:\n  i: 5\n  g: 0\n")

    assert add_missing_params(Path("mine.yaml"), Path("defaults.yaml")) == ["b", "c", "d.h", "f.i"]
    assert Path("mine.yaml").read_text() == (
        "a: 1  # mine\n\nb: 2  # two\nc:\n  x: 3\n\n# about d\nd: {e: 1, h: 4}\nf:\n  # about g\n  i: 5\n  g: 1\n"
    )


def test_a_link_in_our_own_folder_does_not_lead_the_write_elsewhere(here, tmp_path):
    victim = tmp_path / "bashrc"
    victim.write_text("mine\n")
    Path(".datapool").mkdir()
    Path(".datapool/params.yaml").symlink_to(victim)
    set_params(Path(), {"seed": 3})

    assert victim.read_text() == "mine\n"
    assert not Path("params.yaml").is_symlink()
    assert yaml.safe_load(Path("params.yaml").read_text())["seed"] == 3


def test_the_file_of_another_folder_is_written_by_way_of_that_folder(here, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    set_params(Path("../workspace"), {"seed": 3})

    assert Path.cwd() == tmp_path / "elsewhere" and list(Path().iterdir()) == []
    assert yaml.safe_load((here / "params.yaml").read_text())["seed"] == 3


@pytest.mark.parametrize("link", [".datapool", ".datapool/tmp"])
def test_nothing_is_written_where_our_own_folder_is_a_link(here, tmp_path, link):
    before = Path("params.yaml").read_bytes()
    target = tmp_path / "outside"
    target.mkdir()
    Path(link).parent.mkdir(exist_ok=True)
    Path(link).symlink_to(target)
    with pytest.raises(DatapoolError, match=rf"^{link}: is a link to {target}, but must be a folder; remove the"):
        set_params(Path(), {"seed": 3})

    assert list(target.iterdir()) == []
    assert Path("params.yaml").read_bytes() == before
