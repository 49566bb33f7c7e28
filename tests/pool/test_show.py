"""`datapool show`: a version of a pool as datapools.json records it, and its csv without a copy in history/."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from test_merge import CSV, FOLDER, LINEAGE, A, B, C, add, versions, workspace

import datapool
from datapool import cli
from datapool.core.errors import DatapoolError
from datapool.pool.show import find_version
from datapool.terminal import run_app

__all__ = ["workspace"]  # a fixture that every test here uses


@pytest.fixture
def three(workspace):
    """The csv of each of three versions, of which history/ has none; params.yaml is the original."""
    template = (Path(datapool.__file__).parents[1] / "params.yaml").read_text()
    Path("params.yaml").write_text(template.replace("name: my_datapool", "name: p").replace("data/week_1", "."))
    found = []
    for batch in (A, B, C):
        add(batch, keep_history=False)
        found.append(CSV.read_bytes())
    assert not (FOLDER / "history").exists()
    return found


@pytest.fixture
def show(monkeypatch, capfdbinary):
    """Run `datapool show` and return what it prints, and the exit code."""

    def run(*arguments: str) -> tuple[bytes, str, int]:
        monkeypatch.setattr(sys, "argv", ["datapool", "show", *arguments])
        with pytest.raises(SystemExit) as ended:
            run_app(cli.app)
        printed = capfdbinary.readouterr()
        return printed.out, printed.err.decode(), ended.value.code

    return run


def test_the_csv_of_every_version_is_printed_and_written(three, show):
    for number, csv in enumerate(three, start=1):
        assert show(str(number), "--csv") == (csv, "", 0)
        printed, _, code = show(str(number), "--csv", "--output", "then.csv")
        n = 2 * number - (number == 3)  # C has one image
        assert (printed.decode(), code) == (f"then.csv: version {number} of pool 'p', {n} images\n", 0)
        assert Path("then.csv").read_bytes() == csv
    assert show("--csv") == (three[-1], "", 0)
    assert sorted(path.name for path in Path().glob("then*")) == ["then.csv"]


def test_the_record_is_printed_as_json(three, show):
    printed, _, code = show("2", "--json")

    assert (json.loads(printed), code) == (versions()[1].model_dump(), 0)
    assert show("2", "--json", "--csv")[1:] == ("error: --json and --csv exclude each other; use one of them\n", 1)


def test_without_an_option_a_person_can_read_it(three, show):
    lines = show("2")[0].decode().splitlines()

    assert lines[:2] == ["version  2 of 3 of pool p", "picked   2 images; the pool then had 4"]
    assert lines[-1].startswith("more     `datapool show 2 --json` has the hashes of its files")
    named = show("2", "--name", "p")[0].decode().splitlines()
    assert named[-1].startswith("more     `datapool show 2 --name p --json` has the hashes of its files")


def test_what_is_not_there_is_named(three, show):
    assert show("4", "--csv")[1:] == ("error: pool 'p' has the versions 1 to 3, and no version 4\n", 1)
    assert show("0")[1:] == ("error: pool 'p' has the versions 1 to 3, and no version 0\n", 1)
    assert show("--name", "q")[1:] == ("error: datapools.json lists no pool 'q'; it lists 'p'\n", 1)
    assert show("1", "--output", "x")[1:] == ("error: --output is for the csv of a version; add --csv\n", 1)
    assert find_version(LINEAGE, "p", None).version == 3
    with pytest.raises(
        DatapoolError,
        match=r"^nothing\.json lists no pool 'p'; it lists none yet: `datapool add FOLDER` adds the first batch$",
    ):
        find_version(Path("nothing.json"), "p", 1)


def test_a_csv_that_does_not_begin_with_the_version_is_refused_and_nothing_is_written(three, show):
    CSV.write_bytes(CSV.read_bytes().replace(b"cat/a1.jpg", b"cat/a9.jpg"))
    printed, error, code = show("1", "--csv", "--output", "then.csv")

    assert (printed, code) == (b"", 1)
    assert error.startswith(f"error: {CSV}: does not begin with the recorded bytes of version 1; nothing was changed.")
    assert not list(Path().glob("then*"))
    shutil.rmtree("pools")
    assert (
        f"error: {CSV}: is not here, the file of version 1; nothing was changed. `dvc checkout`"
        in show("1", "--csv")[1]
    )
