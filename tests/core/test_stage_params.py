"""A result that params.yaml no longer describes when its stage has ended is refused."""

from pathlib import Path

import pytest

from datapool.core.errors import DatapoolError
from datapool.core.stage_params import recorded_params, unchanged_params

PARAMS, LOCK = Path("params.yaml"), Path("dvc.lock")
TEXT = "input_dir: week_2\nmethod: coreset\nstop: {n: 5, distance: 1e-05}\nseed: 1\n"


@pytest.fixture(autouse=True)
def pipeline(tmp_path, monkeypatch):
    """A pipeline whose stages have run on week_2."""
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text(
        "stages:\n  scan: {params: [input_dir]}\n  sample: {params: [method, stop.distance]}\n"
        "  merge: {params: [input_dir, method, stop]}\n  report: {params: [params.yaml: ]}\n"
    )
    PARAMS.write_text(TEXT)
    LOCK.write_text(
        "stages:\n  scan: {params: {params.yaml: {input_dir: week_2}}}\n"
        "  sample: {params: {params.yaml: {method: coreset, stop.distance: 1e-05}}}\n"
    )


def change_in(stage: str, old: str, new: str) -> None:
    with unchanged_params(stage):
        PARAMS.write_text(TEXT.replace(old, new))


def test_only_the_keys_of_the_stage_may_not_change_while_it_runs():
    change_in("scan", "coreset", "random")
    change_in("scan", "seed", "# a comment\nseed")
    change_in("an unknown one", "week_2", "week_3")
    PARAMS.write_text(TEXT)
    with pytest.raises(
        DatapoolError,
        match=r"^params\.yaml: input_dir is 'week_3', and was 'week_2' when `scan` began: it was changed while the stage ran, "
        r"and DVC would record the wrong value\. Run `dvc repro` again$",
    ):
        change_in("scan", "week_2", "week_3")
    PARAMS.write_text(TEXT)
    with pytest.raises(DatapoolError, match=r"stop\.distance is not there, and was 1e-05 when `sample` began"):
        change_in("sample", ", distance: 1e-05", "")
    PARAMS.write_text(TEXT)
    with pytest.raises(DatapoolError, match=r"seed is 2, and was 1 when `report` began"):
        change_in("report", "seed: 1", "seed: 2")


def test_merge_is_refused_if_the_stages_before_it_had_other_values():
    with unchanged_params("merge"):
        pass
    for old, new, message in (
        (
            "week_2",
            "week_3",
            "input_dir is 'week_3', and `scan` ran with 'week_2': it was changed while the pipeline ran, so",
        ),
        ("coreset", "random", "method is 'random', and `sample` ran with 'coreset'"),
    ):
        PARAMS.write_text(TEXT.replace(old, new))
        with pytest.raises(DatapoolError, match=message), unchanged_params("merge"):
            pytest.fail("merge ran")
        with unchanged_params("sample"):  # DVC records what it used
            pass


def test_what_dvc_lock_does_not_have_is_no_change():
    LOCK.write_text("stages:\n  scan: {params: {params.yaml: {}}}\n")
    with unchanged_params("merge"):  # a key that is new in this release
        pass
    for text in ("<<<<<<< HEAD\n", "", "stages: {}\n"):
        LOCK.write_text(text)
        assert recorded_params("scan") == {}
        with unchanged_params("merge"):
            pass
    LOCK.unlink()
    assert recorded_params("scan") == {}
