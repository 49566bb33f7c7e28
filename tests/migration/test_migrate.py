"""A pool in another embedding space: points on a circle with a model made up, and then the real one with the real dvc."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from conftest import stages_run
from test_combine import LINEAGE, POOLS, chord, failures, folder, names, new_workspace, run_stages, week
from typer.testing import CliRunner

from datapool.cli import app
from datapool.core.errors import DatapoolError
from datapool.core.lineage import EmbeddingSpace, read_entries, read_lineage
from datapool.core.params import load_params
from datapool.core.tables import read_csv
from datapool.images.thumbnails import ThumbnailStore
from datapool.migration import calibration
from datapool.migration import migrate as module
from datapool.migration.migrate import Migration, describe_migration, migrate, new_pool_name
from datapool.migration.reembed import NewModel, settings_for
from datapool.pool.open import open_base
from datapool.query.why import why
from datapool.workspace.params_file import set_params

pytestmark = pytest.mark.slow

__all__ = ["folder"]  # a fixture

ONE = {"one/a.png": 0.0, "one/b.png": 1.0}
TWO = {"two/c.png": 2.0, "two/d.png": 3.0}
NEW = {"one/a.png": 0.0, "one/b.png": 2.0, "two/c.png": 4.0, "two/d.png": 4.3}
"""Where the new model sees the images: all neighbors twice as far apart, but for d, which lies 0.3 from c."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("made")
    new_workspace(workspace)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        week("old", ONE)
        week("old", TWO)
    return workspace


@pytest.fixture
def pool(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a pool of two versions, and a model that sees its images as NEW says."""
    shutil.copytree(made, tmp_path / "workspace")
    monkeypatch.chdir(tmp_path / "workspace")
    monkeypatch.setattr(module, "embed_again", embed_made_up)
    return tmp_path / "workspace"


def embed_made_up(found, others, before, settings, folder, bar):
    (folder / "checkpoint_latest.ckpt").write_text("the new model")
    angles = np.array([NEW[name] for name in (*found.table.filename, *others.filename)])
    assert all(Path(file).is_file() for file in (*found.table.file, *others.file))
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return vectors, EmbeddingSpace(id="f" * 64, backbone="resnet18", dimension=2, input_size=64)


def run(*, old: str = "old", new: str = "new", **keywords) -> Migration:
    settings = {"folders": [], "drop_missing": False, "check_only": False} | keywords
    return migrate(
        POOLS,
        LINEAGE,
        old,
        new,
        NewModel(name="resnet18"),
        load_params(),
        bar=lambda _: nullcontext(lambda *_: None),
        **settings,
    )


def test_the_new_pool_has_the_same_images_and_versions_with_the_distances_of_the_new_space(pool):
    before = {path: path.read_bytes() for path in (POOLS / "old").rglob("*") if path.is_file()}

    run()

    assert names("new") == names("old")
    old, new = read_csv(POOLS / "old/samples.csv"), read_csv(POOLS / "new/samples.csv")
    same = ["filename", "content_hash", "version", "rank", "weak_label", "path"]
    assert new[same].equals(old[same])
    assert new.filename.tolist() == ["one/a.png", "one/b.png", "two/d.png", "two/c.png"]
    assert new.nearest.tolist() == ["", "one/a.png", "one/a.png", "two/d.png"]
    assert new.distance.tolist()[1:] == pytest.approx([chord(2), 2 * np.sin((2 * np.pi - 4.3) / 2), chord(0.3)])
    assert {path: path.read_bytes() for path in (POOLS / "old").rglob("*") if path.is_file()} == before
    assert failures("new") == []
    assert (POOLS / "new/checkpoint_latest.ckpt").read_text() == "the new model"
    pictures = ThumbnailStore(POOLS / "new/thumbnails").read(new.content_hash)
    assert set(pictures) == set(new.content_hash)


def test_each_version_records_the_old_one_its_space_and_its_folder(pool):
    migration = run()

    old, new = (read_lineage(LINEAGE)[name] for name in ("old", "new"))
    assert [version.migrated.version for version in new] == [1, 2]
    migrated = new[1].migrated
    assert (migrated.pool, migrated.datapool_sha256) == ("old", old[1].datapool_sha256)
    assert migrated.embedding_space == old[1].embedding_space
    assert migrated.neighbor_agreement == migration.comparison.neighbor_agreement
    assert new[1].batch == f"migrated:{old[1].batch}"
    assert new[1].offered == old[1].offered
    assert new[1].embedding_space.backbone == "resnet18"
    assert (new[1].parameters.method, new[1].covering_radius, new[1].seen_sha256) == ("migrated", None, None)


def test_the_batch_that_made_the_latest_version_replaces_nothing(pool):
    run()
    week("old", TWO)  # writes output/images.parquet of that batch
    from datapool.core.tables import read_table

    base, _ = open_base(POOLS, LINEAGE, "new", read_table(Path("output/images.parquet")), base_version=None)

    assert len(base.versions) == 2
    assert base.standing is None


def test_what_corresponds_and_what_became_redundant_is_found(pool):
    migration = run()

    # The nearest neighbors lay chord(1) from each other, now chord(2), chord(1.98) and twice chord(0.3). None lies below 0.5
    # in the old space, so the medians correspond.
    nearest = sorted([chord(2), 2 * np.sin((2 * np.pi - 4.3) / 2), chord(0.3), chord(0.3)])
    assert migration.comparison.after.tolist() == pytest.approx([chord(0.3), chord(0.3), *nearest[2:]], rel=0.05)
    expected = 0.5 * float(np.median(migration.comparison.after)) / chord(1)
    assert migration.min_distance == float(f"{expected:.3g}")
    assert [(each.filename, each.nearest) for each in migration.redundant] == [("two/c.png", "two/d.png")]
    assert migration.redundant[0].distance == pytest.approx(chord(0.3))
    assert migration.params["stopping_condition.min_distance"] == migration.min_distance
    lines = list(describe_migration(migration, "old", load_params()))
    assert lines[0] == (
        "pool 'old' has embeddings of 2 dimensions from a csv; pool 'new' has the same 4 images with embeddings of 2 "
        "dimensions by resnet18 (model ffffffffffff)"
    )
    assert lines[-1] == (
        "1 image is redundant here: nearer than that to an image before, such as 'two/c.png', 0.299 from 'two/d.png'. All "
        "stay in the pool"
    )


def test_a_threshold_corresponds_to_what_covers_as_much_of_the_last_batch(pool, monkeypatch):
    # Four candidates lay 0.2, 0.4, 0.6 and 0.8 rad from the nearest image of the pool; now it is 0.1, 0.2, 0.9 and 1.0.
    monkeypatch.setattr(calibration, "_FEWEST", 4)
    batch = {f"three/{k}.png": 3 + 0.2 * k for k in range(1, 5)}
    set_params(Path(), {"stopping_condition.min_distance": 2.0})  # nothing is picked
    week("old", batch)
    set_params(Path(), {"stopping_condition.min_distance": 0.5})
    for k, angle in enumerate((0.1, 0.2, 0.9, 1.0), start=1):
        monkeypatch.setitem(NEW, f"three/{k}.png", 4.3 + angle)

    migration = run()

    # Half of them lay below 0.5; the medians of chord(0.4), chord(0.6) and of chord(0.2), chord(0.9).
    before, after = (chord(0.4) + chord(0.6)) / 2, (chord(0.2) + chord(0.9)) / 2
    assert migration.calibrated_by == "4 candidates of the last batch"
    assert migration.min_distance == float(f"{0.5 * after / before:.3g}")
    assert len(names("new")) == 4


def test_candidates_that_were_offered_before_calibrate_nothing(pool, monkeypatch):
    monkeypatch.setattr(calibration, "_FEWEST", 1)
    week("old", {"three/far.png": 5.0, "three/near.png": 5.1})
    week("old", {"four/x.png": 4.0})
    batch = {"three/far.png": 5.0, "three/near.png": 5.1}
    week("old", batch)  # only the one that was covered is a candidate
    for name in (*batch, "four/x.png"):
        monkeypatch.setitem(NEW, name, 1.5)

    assert run(check_only=True).calibrated_by == "the images of the pool"


def test_another_run_than_one_on_the_pool_calibrates_nothing(pool):
    week("another", {"x/a.png": 0.0})
    assert run(check_only=True).calibrated_by == "the images of the pool"
    shutil.rmtree("output")
    assert run(check_only=True).calibrated_by == "the images of the pool"


def test_what_lay_within_the_old_threshold_has_not_become_redundant(pool):
    set_params(Path(), {"stopping_condition.min_distance": 1.9})

    assert run(check_only=True).redundant == []


def test_a_check_changes_nothing(pool):
    before = {path: path.read_bytes() for path in [*POOLS.rglob("*"), LINEAGE] if path.is_file()}
    migration = run(check_only=True)

    assert migration.images == 4
    assert {path: path.read_bytes() for path in [*POOLS.rglob("*"), LINEAGE] if path.is_file()} == before


def test_missing_images_are_named_found_elsewhere_or_dropped(pool):
    shutil.move("data/one_a.png_one_b.png/one/b.png", "moved.png")
    with pytest.raises(DatapoolError) as refused:
        run()
    assert str(refused.value).startswith(
        "1 image of 4 cannot be found: 'one/b.png' (no file data/one_a.png_one_b.png/one/b.png); "
    )
    assert str(refused.value).endswith("or leave them out of the new pool with --drop-missing")
    assert not (POOLS / "new").exists()

    Path("elsewhere/deep").mkdir(parents=True)
    shutil.copy("moved.png", "elsewhere/deep/renamed.png")
    assert run(folders=[Path("elsewhere")], check_only=True).dropped == []

    migration = run(drop_missing=True)
    assert migration.dropped == ["one/b.png"]
    assert names("new") == ["one/a.png", "two/d.png", "two/c.png"]
    assert failures("new") == []


def test_a_version_without_an_image_that_is_left_is_left_out(pool):
    shutil.rmtree("data/one_a.png_one_b.png")
    run(drop_missing=True)

    assert [version.migrated.version for version in read_lineage(LINEAGE)["new"]] == [2]
    shutil.rmtree("data")
    with pytest.raises(DatapoolError, match=r"^none of the pool's images was found; nothing was changed"):
        run(drop_missing=True)


def test_what_was_stopped_between_two_versions_goes_on(pool, monkeypatch):
    merge = module.merge
    monkeypatch.setattr(module, "merge", lambda *a, **k: merge(*a, **k) if not (POOLS / "new").exists() else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run()
    assert len(read_lineage(LINEAGE)["new"]) == 1
    assert new_pool_name("old", read_entries(LINEAGE)) == "new"
    monkeypatch.setattr(module, "merge", merge)

    run()

    assert names("new") == names("old")
    assert failures("new") == []
    assert new_pool_name("old", read_entries(LINEAGE)) == "old_2"
    run()  # and once more changes nothing
    assert len(read_lineage(LINEAGE)["new"]) == 2


def test_the_beginning_of_another_migration_is_not_continued(pool, monkeypatch):
    run()

    def another(*arguments):
        return embed_made_up(*arguments)[0], EmbeddingSpace(
            id="e" * 64, backbone="resnet50", dimension=2, input_size=64
        )

    monkeypatch.setattr(module, "embed_again", another)
    with pytest.raises(DatapoolError, match=r"^pool 'new' was begun by a migration with another model or other images"):
        run()


def test_other_pools_and_their_names_are_refused(pool):
    week("new", {"three/x.png": 5.0})
    with pytest.raises(
        DatapoolError, match=r"^there is a pool 'new' already; nothing was changed. Give another name with --name$"
    ):
        run()
    for old, new, message in (
        ("none", "x", r"lists no pool 'none'; it lists 'new', 'old'$"),
        ("old", "a/b", r"^'a/b' cannot be the name of a pool; give "),
    ):
        with pytest.raises(DatapoolError, match=message):
            run(old=old, new=new, check_only=True)


def test_files_in_the_place_of_the_new_pool_are_refused(pool):
    (POOLS / "new").mkdir()
    (POOLS / "new/mine.csv").write_text("x")
    with pytest.raises(
        DatapoolError, match=r"^pools/new has files already; move it out of pools, or give another --name$"
    ):
        run()
    assert (POOLS / "new/mine.csv").read_text() == "x"


def test_embeddings_of_protected_images_are_said_to_be_of_the_old_model(pool):
    Path("protected.csv").write_text("x")
    set_params(Path(), {"rules.protected": "protected.csv"})

    assert run(check_only=True).notes == [
        "rules.protected names protected.csv, whose embeddings are of the old model: let it name the folder of the images, "
        "or a file of the new model's embeddings"
    ]


def test_the_model_of_the_pool_itself_is_refused(pool, monkeypatch):
    own = read_lineage(LINEAGE)["old"][-1].embedding_space
    monkeypatch.setattr(module, "embed_again", lambda *arguments: (embed_made_up(*arguments)[0], own))
    with pytest.raises(
        DatapoolError, match=r"^pool 'old' has embeddings of 2 dimensions from a csv already, so there is nothing"
    ):
        run()


def test_settings_of_the_old_model_are_set_aside(pool):
    set_params(Path(), {"datapool.base_version": 1})
    params = load_params()
    settings, changes = settings_for(NewModel(name="resnet18", dimension=16, input_size=96), params)

    assert (settings.embeddings, settings.training) == (None, "never")
    assert (settings.lightly.model.name, settings.lightly.model.num_ftrs) == ("resnet18", 16)
    assert settings.lightly.collate.input_size == 96
    assert changes == {"embeddings": None, "datapool.base_version": None}


def test_why_an_image_is_in_the_new_pool(pool):
    run()
    shutil.rmtree("output")

    answer = [line.strip() for line in why(load_params(), "two/c.png", pool="new").as_text()]

    assert answer[-1] == (
        "came from a pool of another embedding space, as image 2 of 2, at distance 0.2989 from two/d.png of the same week here"
    )


def test_redo_refuses_a_migrated_version(pool, monkeypatch):
    from datapool.workspace import corrections

    run()
    Path("data/two_c.png_two_d.png/two/c.png").unlink()
    (Path("data/two_c.png_two_d.png/two")).mkdir(exist_ok=True)
    run_stages("old", Path("data/two_c.png_two_d.png"))
    set_params(Path(), {"datapool.name": "new"})
    with pytest.raises(
        DatapoolError, match=r"^version 2 of pool 'new' has images that were picked in another embedding space"
    ):
        corrections.set_replaces(load_params())


def test_names_of_new_pools_count_on():
    assert new_pool_name("cats", {}) == "cats_2"
    assert new_pool_name("cats_2", dict.fromkeys(["CATS_3"])) == "cats_4"
    assert new_pool_name("7", dict.fromkeys(["7_2"])) == "7_3"
    assert new_pool_name("cats_9", dict.fromkeys(["cats_10"])) == "cats_11"


def test_a_year_or_a_number_of_the_user_is_no_count():
    for name in ("cats_2024", "run_007", "robots_0", "cam_1", "_2"):
        assert new_pool_name(name, {}) == f"{name}_2"


def test_the_command_needs_a_model_and_only_one():
    none = CliRunner().invoke(app, ["migrate"])
    assert str(none.exception) == "name the new model: --checkpoint, --model, --weights, --dimension or --input-size"
    two = CliRunner().invoke(app, ["migrate", "--checkpoint", "x.ckpt", "--model", "resnet18"])
    assert str(two.exception).startswith("--checkpoint has the model whole; leave out --model")


@pytest.mark.full
def test_the_next_week_runs_with_the_new_model(model_second_week, weeks, after):
    made = after(model_second_week)
    checked = made.run("datapool", "migrate", "--input-size", "48", "--dimension", "6", "--check")
    assert "pool 'my_datapool_2' would have the same" in checked
    assert checked.splitlines()[-1] == "nothing was changed (--check)"
    assert made.run("git", "status", "--porcelain") == ""

    document = json.loads(made.run("datapool", "migrate", "--input-size", "48", "--dimension", "6", "--json"))

    assert (document["pool"], document["images"], document["dropped"]) == ("my_datapool_2", len(made.names()), [])
    assert 0 < document["neighbor_agreement"] <= 1
    assert document["ran"] == ["dvc commit --force --quiet merge"]
    assert made.names("my_datapool_2") == made.names()
    made.commit("migrate")
    made.set({"input_dir": str(weeks / "week_3")})
    output = made.repro()
    assert stages_run(output)[0] == "scan"
    assert "pool 'my_datapool_2' has its model already: it is used as it is" in output
    versions = made.versions("my_datapool_2")
    assert len(versions) == len(made.versions()) + 1
    assert versions[-1]["embedding_space"]["id"] == versions[0]["embedding_space"]["id"]
    assert "none failed" in made.run("datapool", "verify")

    # A checkpoint is a model too: that of the new pool, for the old one. All its embeddings are those of the new pool.
    made.commit("week 3")
    given = made.run(
        "datapool",
        "migrate",
        "--pool",
        "my_datapool",
        "--name",
        "again",
        "--checkpoint",
        "pools/my_datapool_2/checkpoint_latest.ckpt",
        "--json",
    )
    assert json.loads(given)["embedding_space"]["id"] == versions[0]["embedding_space"]["id"]
