"""The record of a pool is written as it was read, whatever an earlier or later release put into it."""

import json

import pytest

from datapool.core.errors import DatapoolError
from datapool.core.json_files import json_text
from datapool.core.lineage import EmbeddingSpace, Parameters, Version, parse_entry, read_embedding_space

VERSION = {
    "version": 1,
    "batch": "b",
    "rows": 2,
    "new": 2,
    "datapool_sha256": "1" * 64,
    "samples_sha256": "2" * 64,
    "checkpoint_sha256": None,
}
ENTRY = {"labels": ["cat"], "versions": [VERSION]}


def in_entry(**keys: object) -> dict[str, object]:
    return {**ENTRY, "versions": [{**VERSION, **keys}]}


def test_the_record_of_a_pool_is_written_with_the_bytes_that_it_was_read_from():
    space = {"dimension": 2, "id": "x", "input_size": 32, "backbone": None}
    cases = {
        "nothing but what must be there": ENTRY,
        "an int in the place of a float": in_entry(covering_radius=1, radius_lower_bound=0),
        "a float": in_entry(covering_radius=1.0, radius_lower_bound=0.5),
        "null, which is not the same as absent": in_entry(covering_radius=None, witness=None),
        "a key that we do not know, between others": {
            "new_key": 1,
            "versions": [{"copy": [1, 1.0, True], **VERSION}],
            "labels": [],
        },
        "keys in another order": {"versions": [dict(reversed(VERSION.items()))], "labels": ["cat"]},
        "an embedding space with keys in another order": in_entry(embedding_space={**space, "pixel_range": [0, 1.5]}),
        "parameters": in_entry(
            parameters={
                "seed": 1,
                "method": "coreset",
                "stopping_condition": {"min_distance": 1, "n_samples": 0.5, "n_samples_includes_datapool": False},
                "balance": {"dog": 2, "cat": 1},
                "protected_distance": 1,
            }
        ),
    }

    failures = [name for name, entry in cases.items() if json_text(parse_entry(entry).model_dump()) != json_text(entry)]

    assert not failures


def test_a_version_that_is_made_is_written_with_its_keys_in_the_order_given():
    space = EmbeddingSpace(id="x", backbone=None, dimension=2, input_size=None)
    version = Version(
        version=1,
        batch="b",
        rows=2,
        new=2,
        embedding_space=space,
        datapool_sha256="1" * 64,
        samples_sha256="2" * 64,
        checkpoint_sha256=None,
    )

    assert list(version.model_dump()) == [*list(VERSION)[:4], "embedding_space", *list(VERSION)[4:]]
    assert json.dumps(version.model_dump()["embedding_space"]) == (
        '{"id": "x", "backbone": null, "dimension": 2, "input_size": null}'
    )


def test_records_are_equal_if_their_json_is():
    version = Version.model_validate(VERSION)

    assert version == Version.model_validate(dict(reversed(VERSION.items())))
    assert version != Version.model_validate({**VERSION, "witness": None})
    assert version != Version.model_validate({**VERSION, "unknown": 1})


def test_an_embedding_space_of_a_version_has_an_id():
    space = {"id": None, "backbone": None, "dimension": 2, "input_size": None}

    with pytest.raises(ValueError, match=r"has an invalid version 1: its embedding_space is "):
        parse_entry(in_entry(embedding_space=space))
    assert EmbeddingSpace.model_validate(space).id is None  # of a run without images


def test_parameters_have_rules_if_one_limited_the_picks():
    assert not Parameters(method="coreset", balance=None, sequence_gap=None).has_rules()
    for rule in ({"balance": 2}, {"balance": {"cat": 1}}, {"sequence_gap": 1}, {"protected_distance": 0.5}):
        assert Parameters.model_validate({"method": "coreset", **rule}).has_rules()


def test_what_a_batch_offered_is_counted_in_whole_numbers():
    counts = {"images": 3, "corrupt": 0, "duplicates": 1, "known": 0, "candidates": 2}
    offered = {"input_dir": "data/week_1", "filename_prefix": "", **counts}

    assert parse_entry(in_entry(offered=offered)).versions[0].offered.candidates == 2
    with pytest.raises(ValueError, match=r"has an invalid version 1: its offered.corrupt is -1"):
        parse_entry(in_entry(offered={**offered, "corrupt": -1}))


def test_a_file_that_is_no_embedding_space_is_refused(tmp_path):
    path = tmp_path / "space.json"
    path.write_text('{"id": "x", "backbone": null, "dimension": 0, "input_size": null}')

    with pytest.raises(DatapoolError, match=r"space.json: dimension is not that of an embedding space; `dvc repro`"):
        read_embedding_space(path)
