"""Earlier states of a workspace are read from git and DVC's cache, without a checkout."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from datapool.core.errors import DatapoolError
from datapool.core.lineage import Version, week_of
from datapool.query.batches import deciding, runs_of
from datapool.workspace.states import AbsentError, Cache, State, first_with, history, state_at, state_here

LIST = "d" * 32 + ".dir"


def git(*arguments):
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments], check=True, capture_output=True)


def lock(images, removed, pool="p"):
    """Return a dvc.lock after a run whose sample read and wrote files of these md5."""
    outs = [{"path": "out/removed_samples.csv", "md5": removed}, {"path": "out/data", "md5": "d"}]
    sample = {"deps": [{"path": "out/images.parquet", "md5": images}], "outs": outs}
    opened = {"params": {"params.yaml": {"datapool.name": pool}}}
    scan = {
        "params": {"params.yaml": {"input_dir": "data/w1"}},
        "outs": [{"path": "out/images.parquet", "md5": "newer"}],
    }
    return yaml.safe_dump({"stages": {"scan": scan, "open": opened, "sample": sample}}).encode()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A workspace in a folder of a git repository, with three commits; the second one changed another file only."""
    folder = tmp_path / "some where" / "workspace"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    git("init", "--quiet", str(tmp_path))
    for number, file in enumerate(("params.yaml", "notes.txt", "dvc.lock"), start=1):
        (folder / file).write_text(f"seed: {number}\n")
        git("add", "--all")
        git("commit", "--quiet", "--message", f"commit {number}")
    return folder


def test_a_revision_has_the_files_of_that_commit(repository):
    first, here = state_at("HEAD~2"), state_here()

    assert (first.subject, first.texts) == ("commit 1", (None, b"seed: 1\n", None))
    assert first.parameters == {"seed": 1}
    assert state_at("HEAD").texts[0] == b"seed: 3\n"
    assert (here.commit, here.name, here.texts) == ("", "the files here", (b"seed: 3\n", b"seed: 1\n", None))
    assert first.name == f"commit {first.commit[:10]}"


def test_history_has_the_commits_that_changed_a_file_the_latest_first_and_those_of_merged_branches(repository):
    git("checkout", "--quiet", "-b", "side", "HEAD~1")
    (repository / "dvc.lock").write_text("seed: 9\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "side")
    git("checkout", "--quiet", "-")
    git("merge", "--quiet", "--strategy", "ours", "--no-edit", "side")

    assert [state.subject for state in history("params.yaml")] == ["commit 1"]
    assert sorted(state.subject for state in history("dvc.lock")) == ["Merge branch 'side'", "commit 3", "side"]


def test_what_git_does_not_know_is_refused(repository, tmp_path, monkeypatch):
    for revision in ("nothing", "--all", "HEAD:params.yaml"):
        with pytest.raises(
            DatapoolError, match=r"^git knows no revision '.*'; give a commit, a tag or a branch, such as HEAD~1$"
        ):
            state_at(revision)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatapoolError, match=r"^commit \w{10} \('HEAD'\) has no params\.yaml in this folder$"):
        state_at("HEAD")


def test_outside_of_git_there_is_no_history_and_no_revision(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)

    assert history("dvc.lock") == []
    with pytest.raises(DatapoolError, match="in no git repository; nothing was compared"):
        state_at("HEAD")


def test_a_lock_with_a_conflict_records_nothing_and_a_lineage_with_one_is_refused():
    conflict = b"<<<<<<< HEAD\na\n=======\nb\n>>>>>>> x\n"
    state = State("a" * 40, "", "", (conflict, conflict, conflict))

    assert state.stages == {}
    assert state.parameters_of("scan") == {}
    assert runs_of([state]) == []
    with pytest.raises(
        DatapoolError, match=r"^datapools\.json of commit a{10} is not what a merge writes \(.*\); take"
    ):
        _ = state.pools
    with pytest.raises(
        DatapoolError, match=r"^params\.yaml of commit a{10} is '<<<<<<< HEAD a .*' and no settings; take"
    ):
        _ = state.parameters
    with pytest.raises(DatapoolError, match=r"^params\.yaml of commit a{10} is not YAML \("):
        _ = State("a" * 40, "", "", (None, b"a: [", None)).parameters


def test_a_choice_is_that_of_the_first_commit_that_has_it_and_of_what_sample_read():
    states = [
        State(name, "", "", (text, None, None))
        for name, text in [
            ("", lock("i2", "r3")),
            ("c4", lock("i2", "r2")),
            ("c3", lock("i2", "r2")),
            ("c1", lock("i1", "r1")),
        ]
    ]
    runs = runs_of(states)

    assert [(run.state.commit, run.images, run.removed) for run in runs] == [
        ("", "i2", "r3"),
        ("c3", "i2", "r2"),
        ("c1", "i1", "r1"),
    ]
    assert (runs[1].pool, runs[1].name) == ("p", "w1 (commit c3)")


def test_a_version_is_of_the_first_commit_in_which_its_pool_has_its_batch():
    version = Version(
        version=1, batch="b1", rows=1, new=1, datapool_sha256="0" * 64, samples_sha256="0" * 64, checkpoint_sha256=None
    )
    record = {"versions": [version.model_dump()]}
    both, ours, theirs = (dict.fromkeys(names, record) for names in ("pq", "p", "q"))
    conflict = b'<<<<<<< "b1"'
    texts = [("", both), ("c5", both), ("c4", ours), ("c3", conflict), ("c2", theirs), ("c1", None)]
    states = [
        State(commit, "", "", (None, None, json.dumps(text).encode() if isinstance(text, dict) else text))
        for commit, text in texts
    ]

    found = [first_with(states, pool, version) for pool in ("p", "q", "r")]
    assert [state and state.commit for state in found] == ["c4", "c2", None]
    assert first_with(states[:1], "p", version) is None  # not committed


def test_the_cache_finds_files_and_names_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr("datapool.workspace.states.cache_folder", lambda folder: tmp_path)
    cache = Cache()
    (tmp_path / "dd").mkdir()
    (tmp_path / "dd" / LIST[2:]).write_text(
        json.dumps([{"relpath": "p/a.csv", "md5": "abc"}, {"relpath": "b", "md5": "f"}])
    )
    (tmp_path / "aa").mkdir()
    (tmp_path / "aa" / ("a" * 30 + ".dir")).write_text("[5]")
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "c").write_text("content")

    assert cache.file("abc", "x") == cache.file_in(LIST, "p/a.csv", "x") == Path(tmp_path / "ab" / "c")
    for md5, file, message in (
        (LIST, "b", r"^DVC's cache lacks x; `dvc fetch --all-commits` gets it from the remote$"),
        (LIST, "none", r"^dvc\.lock does not record x$"),
        ("a" * 32 + ".dir", "b", r"^DVC's cache has a damaged list of files for x; `dvc fetch` gets it$"),
        ("e" * 32, "b", r"^DVC's cache lacks the list of files for x; "),
    ):
        with pytest.raises(AbsentError, match=message):
            cache.file_in(md5, file, "x")


def test_parameters_that_are_switched_off_decide_nothing():
    assert deciding(
        {
            "method": "coreset",
            "stopping_condition.n_samples": -1,
            "stopping_condition.min_distance": 0,
            "rules.balance": None,
        }
    ) == {"method": "coreset", "stopping_condition.min_distance": 0}


def test_a_week_is_the_last_part_of_its_folder():
    assert [week_of(folder) for folder in ("/mnt/robots/2026-W48/", "data", ".", "../..")] == [
        "2026-W48",
        "data",
        ".",
        "../..",
    ]
