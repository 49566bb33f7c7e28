"""Scan real pictures with planted faults, if that collection is beside the repository.

884 files in three weekly batches; planted.json lists the copies and the damaged files. The repository has none of them.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import MAX_PIXELS, Workspace

from datapool.core.embeddings_csv import csv_header, csv_rows
from datapool.core.tables import read_names
from datapool.images.batch import Batch, candidates, label_conflicts, scan
from datapool.images.decode import ImageFile, read_rgb
from datapool.images.perceptual_hash import SAME_BITS, as_numbers, differing_bits
from datapool.workspace.create import Scm, make_workspace

IMAGES = Path(__file__).parents[3] / "shared" / "images"

pytestmark = pytest.mark.skipif(not (IMAGES / "planted.json").exists(), reason=f"{IMAGES} is not here")

HIDDEN = "batch_3/pants/._IMG_0007.jpg"
"""Planted as damaged; its name begins with a dot, so it is skipped."""

BATCHES = ("batch_1", "batch_2", "batch_3")

Groups = set[frozenset[str]]


@pytest.fixture(scope="module")
def planted() -> dict:
    return json.loads((IMAGES / "planted.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def batches() -> dict[str, Batch]:
    return {
        name: scan(
            IMAGES / name,
            filename_prefix=f"{name}/",
            relevant=None,
            check="strict",
            max_pixels=MAX_PIXELS,
            remove_duplicates=True,
            gif=False,
            progress=lambda done, of: None,
            keep_thumbnail=lambda content_hash, picture: None,
        )
        for name in BATCHES
    }


def copies(images: pd.DataFrame) -> Groups:
    """The groups of equal images, taken from the reasons in the table."""
    found = images[images.status == "duplicate"]
    groups: dict[str, set[str]] = {}
    for filename, reason in zip(found.filename, found.reason, strict=True):
        first = reason.removeprefix("duplicate of ")
        groups.setdefault(first, {first}).add(filename)
    return {frozenset(group) for group in groups.values()}


@pytest.mark.slow
def test_every_file_is_an_image_or_counted_as_skipped(batches, planted):
    n_files = {name: sum(path.is_file() for path in (IMAGES / name).rglob("*")) for name in BATCHES}

    assert sum(n_files.values()) == planted["counts"]["files"]
    for name, batch in batches.items():
        assert len(batch.images) + batch.skipped.hidden + sum(batch.skipped.not_images.values()) == n_files[name]


def test_the_skipped_files_are_those_of_other_types_and_formats(batches, planted):
    seen = {name for batch in batches.values() for name in batch.images.filename}
    everything = {
        str(path.relative_to(IMAGES)) for name in BATCHES for path in (IMAGES / name).rglob("*") if path.is_file()
    }
    other = {entry["file"] for entry in planted["non_image"]}

    assert everything - seen == other | {
        HIDDEN,
        "batch_2/shoes/no_extension",
        "batch_3/formats/animated.gif",
    }


def test_the_planted_damage_is_found_and_no_other(batches, planted):
    found = {name for batch in batches.values() for name in batch.images.filename[batch.images.status == "corrupt"]}

    assert found == {entry["file"] for entry in planted["corrupt"]} - {HIDDEN}


def test_odd_names_formats_and_misnamed_files_are_healthy(batches, planted):
    status = pd.concat([batch.images for batch in batches.values()]).set_index("filename").status
    named = {entry["file"] for key in ("odd_names", "odd_formats", "misnamed") for entry in planted[key]}

    assert status[sorted(named & set(status.index))].isin(["ok", "duplicate"]).all()


@pytest.mark.parametrize("name", BATCHES)
def test_the_planted_copies_within_a_batch_are_found_and_no_other(batches, planted, name):
    within = [frozenset(f for f in group if f.startswith(name)) for group in planted["all_equal_bytes"]]

    assert copies(batches[name].images) == {group for group in within if len(group) > 1}


def test_of_each_group_of_copies_the_first_by_filename_stays(batches):
    for batch in batches.values():
        status = batch.images.set_index("filename").status
        for group in copies(batch.images):
            assert status[sorted(group)].tolist() == ["ok", *["duplicate"] * (len(group) - 1)]


def test_batch_after_batch_the_planted_copies_are_known_and_no_other(batches, planted):
    pool = candidates(batches["batch_1"].images, pd.DataFrame({"filename": [], "content_hash": [], "version": []}))
    for name in ("batch_2", "batch_3"):
        images = batches[name].images
        healthy = set(images.filename[images.status == "ok"])
        new = candidates(images, pool.assign(version=1))
        # A copy within the batch is a duplicate; what is known is the first of its group here.
        earlier = [
            min(f for f in group if f.startswith(name))
            for group in planted["all_equal_bytes"]
            if any(f < name for f in group) and any(f.startswith(name) for f in group)
        ]

        assert healthy - set(new.filename) == set(earlier)
        assert len(earlier) == {"batch_2": 9, "batch_3": 5}[name]
        pool = pd.concat([pool, new], ignore_index=True)


def test_the_same_photo_under_two_labels_counts_as_a_copy(batches, planted):
    for entry in planted["label_conflicts"]:
        name = entry["files"][0].split("/")[0]

        assert frozenset(entry["files"]) in copies(batches[name].images)


@pytest.mark.parametrize("name", BATCHES)
def test_the_planted_label_conflicts_are_found_and_no_other(batches, planted, name):
    no_pool = pd.DataFrame({"filename": [], "content_hash": [], "weak_label": []}, dtype="str")
    pairs = [entry["files"] for entry in planted["label_conflicts"]]

    assert label_conflicts(batches[name].images, no_pool).filename.tolist() == sorted(
        max(pair) for pair in pairs if pair[0].startswith(name)
    )


def test_a_photo_stored_in_nine_orientations_is_read_upright(batches, planted):
    images = pd.concat([batch.images for batch in batches.values()]).set_index("filename")
    first, *others = (
        np.asarray(
            read_rgb(ImageFile(IMAGES / name, images.content_hash[name], MAX_PIXELS)).resize((12, 8)), dtype=float
        )
        for name in planted["orientation_variants"][0]["files"]
    )

    assert len(others) == 8
    for other in others:
        assert np.abs(other - first).mean() < 4  # mirrored or turned: more than 20
    assert np.abs(first[::-1] - first).mean() > 20


@pytest.mark.full
@pytest.mark.slow
def test_three_weeks_through_the_pipeline_find_what_was_planted(tmp_path, planted):
    make_workspace(tmp_path / "workspace", scm=Scm.OWN)
    made = Workspace(tmp_path / "workspace")
    names = [str(path.relative_to(IMAGES)) for path in sorted(IMAGES.glob("batch_?/**/*")) if path.is_file()]
    angles = np.linspace(0, 6, len(names), dtype=np.float32)
    embeddings = np.column_stack([np.cos(angles), np.sin(angles)])
    text = [csv_header(2), *csv_rows(names, embeddings, [0] * len(names))]
    (tmp_path / "circle.csv").write_bytes(b"".join(text))
    # Nothing is too near, so the pool takes every healthy image: what it knows already are copies across batches.
    made.set(
        {
            "stopping_condition.min_distance": 0.0,
            "quality.drop": False,  # two healthy pictures are nearly blank
            "embeddings": str(tmp_path / "circle.csv"),
            "n_example_images": 4,
        }
    )
    found: dict[str, set[str]] = {"corrupt": set(), "duplicate": set(), "known": set()}
    for name in BATCHES:
        made.set({"input_dir": str(IMAGES / name), "filename_prefix": f"{name}/"})
        made.repro()
        made.commit(name)
        for kind, names in found.items():
            names |= set(read_names(made.folder / f"output/filenames/{kind}_filenames.txt"))

    assert found["corrupt"] == {entry["file"] for entry in planted["corrupt"]} - {HIDDEN}
    groups = [sorted(group) for group in planted["all_equal_bytes"]]
    in_a_batch = {name for group in groups for i, name in enumerate(group) if name[:7] in {n[:7] for n in group[:i]}}
    across = {name for group in groups for name in group[1:]} - in_a_batch
    assert found["duplicate"] == in_a_batch
    assert found["known"] == across
    assert len(made.versions()) == 3
    assert len(made.names()) == made.metrics()["pool_after"] == 299 + 282 + 270 - len(across)


@pytest.mark.slow
def test_perceptual_hashes_find_edited_copies_and_hardly_anything_else(batches, planted):
    images = pd.concat([batch.images for batch in batches.values()]).set_index("filename")
    numbers = dict(zip(images.index, as_numbers(images.perceptual_hash), strict=True))

    def are_alike(pair: dict) -> bool:
        one, other = numbers[pair["original"]], numbers[pair["copy"]]
        return bool(one and other and differing_bits(one, other) <= SAME_BITS)

    assert sum(map(are_alike, planted["near_duplicates"])) == 28  # of 34: not those mirrored, turned, or much cropped
    assert all(map(are_alike, planted["reexported_frames"]))
    assert all(map(are_alike, planted["pixel_identical"]))
    photos = images[images.weak_label.isin(["dress", "hat", "pants", "shoes", "t-shirt", "longsleeve", "shorts"])]
    photos = photos[
        (photos.status == "ok") & ~photos.index.isin([name for group in planted["duplicate_groups"] for name in group])
    ]
    hashes = as_numbers(photos.perceptual_hash)
    bits = differing_bits(hashes[:, np.newaxis], hashes)[np.triu_indices(len(hashes), 1)]
    assert len(photos) > 80
    assert not (bits <= SAME_BITS).any()
