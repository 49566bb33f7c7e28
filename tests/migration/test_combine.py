"""A pool gets the images of another: points on a circle, so that each choice can be seen; the pools are made by the stages."""

import importlib
import inspect
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import stages_run, write_circle, write_picture
from typer.testing import CliRunner

from datapool.cli import app
from datapool.core.embeddings_csv import read_csv
from datapool.core.errors import DatapoolError
from datapool.core.lineage import read_lineage
from datapool.core.outputs import Outputs
from datapool.core.params import load_params
from datapool.core.tables import read_csv as read_table_csv
from datapool.core.tables import read_table
from datapool.lightly_docker.import_pool import import_pool
from datapool.maintenance.verify import verify
from datapool.migration import combine as module
from datapool.migration.combine import CombinedPool, combine, describe_versions, protected_images
from datapool.migration.source import OtherPool, other_pool
from datapool.workspace.params_file import set_params

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
POOLS, LINEAGE = Path("pools"), Path("datapools.json")
SHARED = {"shared/a.png": 0.0, "shared/b.png": 1.0}
OURS = {"ours/c.png": 2.0}
THEIRS = {"theirs/near_c.png": 2.1, "theirs/d.png": 3.0}
LATER = {"later/near_d.png": 3.2, "later/e.png": 4.0}
"""Batches: filename -> where on the unit circle, in rad; points x apart have the distance 2 sin(x / 2). min_distance is 0.5."""

Batch = dict[str, float]


def chord(angle: float) -> float:
    return 2 * math.sin(angle / 2)


def new_workspace(folder: Path) -> None:
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "datapools.json").write_text("{}\n")
    (folder / "exclude.txt").touch()
    set_params(folder, {"stopping_condition.min_distance": 0.5, "embeddings": "circle.csv"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace, as current folder."""
    (tmp_path / "workspace").mkdir()
    new_workspace(tmp_path / "workspace")
    monkeypatch.chdir(tmp_path / "workspace")
    return tmp_path / "workspace"


def week(pool: str, batch: Batch, **settings: Any) -> None:
    """Run all stages but the report on a batch, in this process."""
    folder = Path("data") / "_".join(sorted(batch)).replace("/", "_")[:80]
    for name, angle in batch.items():
        write_picture(folder / name, hash_of(name, angle), side=8)
    write_circle(Path("circle.csv"), batch)
    run_stages(pool, folder, **settings)


def run_stages(pool: str, folder: Path, **settings: Any) -> None:
    set_params(Path(), {"datapool.name": pool, "input_dir": str(folder), **settings})
    for name in ("scan", "open", "train", "embed", "plan", "rank", "sample", "merge"):
        stage = importlib.import_module(f"stages.{name}")
        next(f for f in vars(stage).values() if inspect.isfunction(f) and f.__module__ == stage.__name__)()


def hash_of(name: str, angle: float) -> int:
    return int.from_bytes(f"{name}{angle}".encode()[-6:])


def run(source: str, name: str = "ours", *, prefix: str = "", other: str | None = None) -> CombinedPool:
    params = load_params()
    with other_pool(source, name=name, other=other, pools=POOLS, lineage_file=LINEAGE) as found:
        return combine(
            found,
            POOLS,
            LINEAGE,
            name,
            params,
            protected=protected_images(params, Outputs(params.output_dir)),
            prefix=prefix,
            progress=lambda *_: None,
        )


def names(pool: str = "ours") -> list[str]:
    return read_csv(POOLS / pool / "datapool_latest.csv").filenames


def files_of(pool: str) -> dict[str, bytes]:
    """The files of a pool but its record, by their paths."""
    paths = [path for path in (POOLS / pool).rglob("*") if path.is_file() and path.name != "pool.json"]
    return {str(path.relative_to(POOLS / pool)): path.read_bytes() for path in paths}


def failures(pool: str = "ours") -> list[str]:
    checks = verify(POOLS, LINEAGE, pool, Path("output"), progress=lambda *_: None)
    return [f"{check.name}: {check.sentence}" for check in checks if check.outcome == "fail"]


@pytest.fixture(scope="module")
def made_pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("made")
    new_workspace(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        for pool, batch in (
            ("ours", SHARED),
            ("theirs", SHARED),
            ("theirs", THEIRS),
            ("theirs", LATER),
            ("ours", OURS),
        ):
            week(pool, batch)
    return made


@pytest.fixture
def two_pools(made_pools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pools that share version 1. Ours has c besides, theirs d and a neighbor of c, and e in a third version."""
    shutil.copytree(made_pools, tmp_path / "workspace")
    monkeypatch.chdir(tmp_path / "workspace")


def test_what_ours_covers_is_not_taken_and_the_rest_comes_in_the_order_of_their_versions(two_pools):
    assert names("theirs") == ["shared/a.png", "shared/b.png", "theirs/d.png", "theirs/near_c.png", "later/e.png"]

    combined = run("theirs")

    assert names() == ["shared/a.png", "shared/b.png", "ours/c.png", "theirs/d.png", "later/e.png"]
    assert describe_versions(combined.versions) == [
        "version 1: all images are in the pool already",
        "version 2: 2 images, 1 added as version 3, 1 not taken",
        "version 3: 1 image, 1 added as version 4",
    ]
    assert combined.n_images == 5
    assert failures() == []
    samples = read_table_csv(POOLS / "ours/samples.csv")
    assert samples.nearest.tolist()[3:] == ["ours/c.png", "theirs/d.png"]
    assert samples.distance.tolist()[3:] == pytest.approx([chord(1), chord(1)])


def test_the_lineage_records_where_a_version_comes_from_and_keeps_the_id_of_the_batch(two_pools):
    run("theirs")

    theirs, ours = (read_lineage(LINEAGE)[name] for name in ("theirs", "ours"))
    third = ours[2]
    assert third.batch == theirs[1].batch
    assert third.combined.model_dump() == {
        "source": "theirs",
        "pool": "theirs",
        "version": 2,
        "datapool_sha256": theirs[1].datapool_sha256,
    }
    assert third.offered == theirs[1].offered
    assert third.covering_radius == pytest.approx(chord(0.1))
    assert third.radius_lower_bound == third.covering_radius / 2
    assert third.witness == "theirs/near_c.png"
    assert third.parameters.method == "coreset"
    assert third.parameters.stopping_condition["min_distance"] == 0.5
    assert ours[1].combined is None


def test_what_theirs_did_not_take_is_remembered_with_a_bound_for_its_distance_to_ours(two_pools):
    run("theirs")

    third, fourth = (read_table(POOLS / f"ours/seen/{number:04d}.parquet") for number in (3, 4))
    assert third.fate.tolist() == ["covered"]
    assert third.distance.tolist() == pytest.approx([chord(0.1)])
    # near_d lies chord(0.2) from their d, which is ours too. Ours lacks near_c, which lies chord(0.1) from our c.
    assert fourth.distance.tolist() == pytest.approx([chord(0.2) + chord(0.1)])


def test_an_image_that_ours_may_not_cover_is_not_remembered(two_pools):
    set_params(Path(), {"stopping_condition.min_distance": 0.25})
    run("theirs")

    # 0.1997 + 0.0999 is not below 0.25, so near_d may be picked when it comes again.
    assert len(read_table(POOLS / "ours/seen/0004.parquet")) == 0


def test_the_same_pool_again_changes_nothing(two_pools):
    run("theirs")
    before = {path: path.read_bytes() for path in [*POOLS.rglob("*"), LINEAGE] if path.is_file()}

    again = run("theirs")

    assert sum(each.added for each in again.versions) == 0
    assert {path: path.read_bytes() for path in [*POOLS.rglob("*"), LINEAGE] if path.is_file()} == before


@pytest.mark.slow
def test_a_pool_that_is_a_beginning_of_theirs_becomes_theirs_wherever_it_ends(two_pools):
    for name, batch in (("has_1", SHARED), ("has_2", SHARED), ("has_2", THEIRS)):
        week(name, batch)
    batches = [version.batch for version in read_lineage(LINEAGE)["theirs"]]

    for name, n_before in (("has_0", 0), ("has_1", 1), ("has_2", 2)):
        assert len(read_lineage(LINEAGE).get(name, [])) == n_before
        run("theirs", name)

        assert files_of(name) == files_of("theirs"), name
        assert [version.batch for version in read_lineage(LINEAGE)[name]] == batches
        assert failures(name) == []


def test_a_version_of_the_batch_of_the_last_run_is_not_compared_with_its_candidates(two_pools):
    # Theirs and ours were offered the same two images. Theirs took one of them, ours none.
    batch = {"last/f.png": 3.0, "last/near_f.png": 3.2}
    week("has_1", SHARED)
    week("has_2", SHARED)
    week("has_2", batch)
    week("has_1", batch, **{"stopping_condition.min_distance": 2.0})
    set_params(Path(), {"stopping_condition.min_distance": 0.5})
    assert len(names("has_1")) == 2

    run("has_2", "has_1")

    assert names("has_1")[2:] == ["last/near_f.png"]
    assert failures("has_1") == []


def test_what_was_stopped_between_two_versions_goes_on(two_pools, monkeypatch):
    shutil.copytree(POOLS, "before_pools")
    shutil.copy(LINEAGE, "before.json")
    run("theirs")
    whole = files_of("ours")
    shutil.rmtree(POOLS)
    Path("before_pools").rename(POOLS)
    shutil.copy("before.json", LINEAGE)
    merge, calls = module.merge, []

    def stop_at_the_second(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 2:
            raise DatapoolError("the disk is full")
        return merge(*arguments, **keywords)

    monkeypatch.setattr(module, "merge", stop_at_the_second)
    with pytest.raises(DatapoolError, match="the disk is full"):
        run("theirs")
    assert len(read_lineage(LINEAGE)["ours"]) == 3
    assert failures() == []

    run("theirs")

    assert files_of("ours") == whole


def test_without_a_min_distance_all_of_their_images_are_taken(two_pools):
    set_params(Path(), {"stopping_condition.min_distance": -1.0, "stopping_condition.n_samples": 1})
    run("theirs")

    assert sorted(names()) == sorted([*SHARED, *OURS, *THEIRS, "later/e.png"])


def test_excluded_images_are_not_taken_by_content_or_by_name(two_pools):
    content = read_table_csv(POOLS / "theirs/samples.csv").set_index("filename").content_hash["theirs/d.png"]
    Path("exclude.txt").write_text(f"{content}\tblurred\nlater/e.png\n")

    combined = run("theirs")

    assert names() == ["shared/a.png", "shared/b.png", "ours/c.png"]
    assert [each.excluded for each in combined.versions] == [0, 1, 1]


def test_imported_images_of_unknown_content_are_known_and_excluded_by_their_names(two_pools):
    Path("lightly").mkdir()
    write_circle(Path("lightly/datapool_latest.csv"), {"cat/x.jpg": 4.5, "cat/y.jpg": 5.5})
    import_pool(Path("lightly"), POOLS, LINEAGE, "imported", images=None, max_pixels=10**8)
    Path("exclude.txt").write_text("cat/y.jpg\tblurred\n")

    first, again = run("imported"), run("imported")

    assert names()[-1] == "cat/x.jpg"
    assert [(each.added, each.excluded, each.known) for each in first.versions] == [(1, 1, 0)]
    assert [(each.added, each.excluded, each.known) for each in again.versions] == [(0, 1, 1)]
    assert read_table_csv(POOLS / "ours/samples.csv").content_hash.tolist()[-1] == ""
    assert failures() == []


def test_an_image_that_left_theirs_and_that_ours_has_is_named(two_pools, monkeypatch, tmp_path):
    shutil.copytree(Path(), tmp_path / "elsewhere")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "elsewhere")
        Path("exclude.txt").write_text("shared/b.png\n")
        week("theirs", LATER)
        assert "shared/b.png" not in names("theirs")

    combined = run("../elsewhere", other="theirs")

    assert names()[:2] == ["shared/a.png", "shared/b.png"]
    assert combined.notes == [
        "1 image of pool 'ours' has left the other pool by its exclude.txt, and stays here until ours lists it"
    ]


def test_their_names_get_a_prefix_where_they_clash(two_pools):
    week("ours", {"theirs/d.png": 2.9})
    with pytest.raises(DatapoolError) as refused:
        run("theirs")
    assert str(refused.value).startswith("'theirs/d.png' of pool 'theirs' of theirs (content ")
    assert "has the name of another image in pool 'ours'" in str(refused.value)
    assert str(refused.value).endswith(
        "nothing was changed. Give --prefix with a text that is put before the other pool's names, such as 'theirs/'"
    )
    assert "theirs/near_c.png" not in names()

    run("theirs", prefix="b/")

    assert names()[-1] == "b/later/e.png"
    assert read_table_csv(POOLS / "ours/samples.csv").path.tolist()[-1] == "later/e.png"
    assert failures() == []


def test_another_embedding_space_is_refused_by_both_names(two_pools):
    content = json.loads(LINEAGE.read_text())
    for version in content["theirs"]["versions"]:
        version["embedding_space"] |= {"id": "f" * 64, "backbone": "resnet18"}
    Path("elsewhere").mkdir()
    Path("elsewhere/datapools.json").write_text(json.dumps(content))
    shutil.copytree("pools", "elsewhere/pools")

    with pytest.raises(DatapoolError) as refused:
        run("elsewhere", other="theirs")
    assert str(refused.value) == (
        "pool 'ours' has embeddings of 2 dimensions from a csv, and pool 'theirs' of elsewhere has embeddings of 2 "
        "dimensions by resnet18 (model ffffffffffff): those of two models cannot be compared; nothing was changed. "
        "`datapool migrate` brings a pool into another embedding space"
    )


def test_embeddings_from_files_of_two_models_are_found_by_a_common_image(folder):
    week("ours", SHARED)
    write_circle(Path("circle.csv"), {"shared/a.png": 3.0, "shared/b.png": 1.0})  # the same images, another vector
    run_stages("theirs", Path("data/shared_a.png_shared_b.png"))

    with pytest.raises(DatapoolError) as refused:
        run("theirs")
    assert str(refused.value) == (
        "'shared/a.png' has one embedding in pool 'ours' and another in pool 'theirs' of theirs, so their embeddings are of "
        "two models and cannot be compared; nothing was changed"
    )


def test_a_source_that_is_nothing_or_two_things_is_refused(two_pools):
    with pytest.raises(
        DatapoolError, match=r"^'nothing' is no other pool of this workspace, no folder with a pool and no git revision"
    ):
        run("nothing")
    with pytest.raises(DatapoolError, match=r"^'x{20}.* is no other pool of this workspace"):
        run("x" * 300)  # too long a name for a file
    Path("theirs").mkdir()
    Path("theirs/datapools.json").write_text("{}")
    with pytest.raises(
        DatapoolError, match=r"^'theirs' is a pool and a folder; name one of them: \./theirs is a folder"
    ):
        run("theirs")
    with pytest.raises(DatapoolError, match=r"^\./theirs has no pool 'ours'; it has none$"):
        run("./theirs")


def test_ranges_that_differ_are_refused(two_pools):
    content = json.loads(LINEAGE.read_text())
    for pool, high in (("ours", 900.0), ("theirs", 1000.0)):
        for version in content[pool]["versions"]:
            version["embedding_space"]["ranges"] = {"uint16 gray": [0.0, high]}
    Path("elsewhere").mkdir()
    Path("elsewhere/datapools.json").write_text(json.dumps(content))
    shutil.copytree("pools", "elsewhere/pools")
    LINEAGE.write_text(json.dumps(content))

    with (
        other_pool("elsewhere", name="ours", other="theirs", pools=POOLS, lineage_file=LINEAGE) as found,
        pytest.raises(
            DatapoolError, match=r"^pool 'ours' reads uint16 gray images with the range .*900.*, pool 'theirs' "
        ),
    ):
        ours = module._latest(module.Store(POOLS, "ours", LINEAGE), module.read_entries(LINEAGE)["ours"])
        module._common_space(ours, found, module._read(found))


def test_a_git_revision_that_lacks_something_is_refused(two_pools):
    def commit(*paths):
        for arguments in (
            ("add", *paths),
            ("-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "x"),
        ):
            subprocess.run(["git", *arguments], check=True, capture_output=True)

    subprocess.run(["git", "init", "--quiet"], check=True)
    commit("params.yaml")
    with pytest.raises(DatapoolError, match=r"^HEAD has no datapools\.json; name a commit of this workspace$"):
        run("HEAD")
    commit("datapools.json")
    with pytest.raises(
        DatapoolError,
        match=r"^HEAD: its dvc\.lock does not record the pools, .*; run `dvc commit --force merge` there, ",
    ):
        run("HEAD", other="theirs")
    LINEAGE.write_text('{"theirs": {"versions": 5}}')
    commit("datapools.json")
    with pytest.raises(
        DatapoolError,
        match=r"^datapools\.json of commit [0-9a-f]{10} is not what a merge writes \(.*\); take another commit$",
    ):
        other_pool("HEAD", name="ours", other="theirs", pools=POOLS, lineage_file=Path("x.json")).__enter__()


def test_a_model_that_is_gone_and_protected_images_without_embeddings_are_refused(two_pools):
    entry = module.read_entries(LINEAGE)["theirs"]
    last = entry.versions[-1].model_copy(update={"checkpoint_sha256": "0" * 64})
    theirs = OtherPool("x", "theirs", entry.model_copy(update={"versions": [last]}), POOLS / "theirs", None)
    for content in (None, "another model"):
        if content:
            (POOLS / "theirs/checkpoint_latest.ckpt").write_text(content)
        with pytest.raises(
            DatapoolError, match=r"^x: checkpoint_latest\.ckpt of pool 'theirs' is missing, or not the "
        ):
            module._checkpoint_of(theirs)

    set_params(Path(), {"rules.protected": "protected"})
    with pytest.raises(
        DatapoolError, match=r"protected.*: is not here, and holds the embeddings of the images of rules\."
    ):
        protected_images(load_params(), Outputs("nowhere"))


def test_a_pools_own_folder_and_another_workspace_are_sources(two_pools, tmp_path):
    other = tmp_path / "other"
    (other / "kept").mkdir(parents=True)
    shutil.copytree(POOLS / "theirs", other / "kept/theirs")
    run(str(other / "kept/theirs"))
    expected = names()
    assert expected[-2:] == ["theirs/d.png", "later/e.png"]

    shutil.copy(LINEAGE, other / "datapools.json")
    (other / "params.yaml").write_text("shared_dir: kept\n")
    run(str(other), other="theirs", name="third")
    assert names("third") == names("theirs")
    with pytest.raises(
        DatapoolError, match=r"has no pool 'fourth'; it has 'ours', 'theirs'. Give one of them as --from$"
    ):
        run(str(other), name="fifth", other="fourth")


def test_damaged_files_of_the_other_pool_are_refused(two_pools):
    with (POOLS / "theirs/samples.csv").open("a") as file:
        file.write("x")
    with pytest.raises(
        DatapoolError,
        match=r"^theirs: the files of pool 'theirs' in pools/theirs are not those that its lineage records",
    ):
        run("theirs")


def test_the_command_prints_what_it_did_as_text_or_as_json(two_pools, monkeypatch):
    ran = []
    monkeypatch.setattr("datapool.workspace.commands.run_dvc", lambda folder, *arguments: ran.append(arguments) or "{}")
    done = CliRunner().invoke(app, ["combine", "theirs", "--name", "ours", "--json"])

    document = json.loads(done.stdout)
    assert (document["added"], document["images"]) == (2, 5)
    assert document["versions"][1] == {
        "source_version": 2, "version": 3, "images": 2, "known": 0, "excluded": 0, "added": 1, "not_taken": 1,
    }  # fmt: skip
    assert document["ran"] == ["dvc commit --force --quiet merge", "dvc repro --quiet --single-item report"]
    assert ran[1:] == [("commit", "--force", "--quiet", "merge"), ("repro", "--quiet", "--single-item", "report")]
    again = CliRunner().invoke(app, ["combine", "theirs", "--name", "ours"])
    assert again.stdout.splitlines() == [
        "theirs, pool 'theirs': versions 1, 3: all images are in the pool already",
        "theirs, pool 'theirs': version 2: 2 images, 0 added, 1 known, 1 not taken",
        "pool 'ours': 0 images added, 5 in all",
    ]


def test_where_merge_was_not_up_to_date_the_command_leaves_dvc_alone_and_says_what_to_run(two_pools, monkeypatch):
    ran = []
    monkeypatch.setattr(
        "datapool.workspace.commands.run_dvc", lambda folder, *arguments: ran.append(arguments) or '{"merge": []}'
    )
    done = CliRunner().invoke(app, ["combine", "theirs", "--name", "ours"])

    assert ran == [("status", "--json", "merge")]
    assert done.stdout.splitlines()[-1] == (
        "merge was not up to date before, so DVC does not have this yet: run `dvc repro --force --single-item open`, then "
        "`dvc repro`, and commit"
    )


@pytest.mark.full
@pytest.mark.slow
def test_a_git_conflict_of_two_branches_is_solved_by_combining_them(first_week, weeks, after):
    made = after(first_week)
    main = made.run("git", "branch", "--show-current").strip()
    made.run("git", "switch", "--quiet", "--create", "robots")
    made.set({"input_dir": str(weeks / "week_3")})
    made.repro("--quiet")
    made.commit("robots: week 3")
    theirs = made.names()
    made.run("git", "switch", "--quiet", main)
    made.run("dvc", "checkout", "--quiet")
    made.set({"input_dir": str(weeks / "week_2")})
    made.repro("--quiet")
    made.commit("ours: week 2")
    ours = made.names()
    assert ours[: len(made.versions())] != theirs

    refused = made.run("git", "merge", "robots", fails=True)
    assert "CONFLICT (content): Merge conflict in datapools.json" in refused
    conflicts = made.run("git", "diff", "--name-only", "--diff-filter=U").split()
    assert set(conflicts) >= {"datapools.json", "dvc.lock", "params.yaml"}
    made.run("git", "checkout", "--ours", *conflicts)
    printed = made.run("datapool", "combine", "robots")

    assert "robots, pool 'my_datapool': version 1: all images are in the pool already" in printed
    assert printed.splitlines()[-3:] == [
        "dvc commit --force --quiet merge",
        "dvc repro --quiet --single-item report",
        "commit datapools.json and dvc.lock in git, then `dvc push`",
    ]
    assert made.names()[: len(ours)] == ours
    assert set(made.names()) == {*ours, *theirs}  # week 3 lies farther than min_distance from week 2
    assert made.versions()[2]["combined"]["source"] == "robots"
    assert made.versions()[2]["combined"]["commit"] == made.run("git", "rev-parse", "robots").strip()
    made.commit("combine the branch robots")
    assert "none failed" in made.run("datapool", "verify")
    assert stages_run(made.repro()) == []
    assert made.run("git", "status", "--porcelain") == ""
    assert "0 images added" in made.run("datapool", "combine", "robots")

    cached = made.folder / ".dvc/cache/files/md5"
    shutil.rmtree(cached)
    refused = made.run("datapool", "combine", "robots", fails=True)
    assert refused.startswith("error: DVC's cache lacks files of pool 'my_datapool' at robots; nothing was changed.")
