"""A reference model of a pool: a fold over batches in Python's built-in types, and the bytes that its files must have.

A state of a pool is a tuple of versions; a version is a batch and the names of its picks. Shares no code with the library
except the id of a batch.
"""

import hashlib

from fake_dvc import BATCHES, MODEL, Params, Tree, content_hash, images

from datapool.images.batch import batch_id

Version = tuple[str, tuple[str, ...]]
State = tuple[Version, ...]
BATCH_IDS = {batch: batch_id(images(batch)) for batch in BATCHES}


def names(state: State) -> list[str]:
    return [name for _, picked in state for name in picked]


def choose(state: State, params: Params) -> State:
    """Return the base of a run."""
    if params.base_version is not None:
        return state[: params.base_version]
    return state[:-1] if state and state[-1][0] == params.batch else state


def fold(base: State, params: Params) -> State:
    """Return the pool after a run."""
    in_base = {number(base, name) for name in names(base)}
    new = [name for name in sorted(BATCHES[params.batch]) if BATCHES[params.batch][name] not in in_base][: params.n]
    return (*base, (params.batch, tuple(new))) if new else base


def number(state: State, name: str) -> int:
    """Return the number that stands for the content of an image."""
    return next(BATCHES[batch][name] for batch, picked in state if name in picked)


def csv(state: State) -> bytes:
    """Return the content of datapool_latest.csv."""
    labels = list(dict.fromkeys(name.split("/")[0] for name in names(state)))
    rows = [f"{row(state, name)}{labels.index(name.split('/')[0])}" for name in names(state)]
    return "\n".join(["filenames,embedding_0,embedding_1,labels", *rows, ""]).encode()


def row(state: State, name: str) -> str:
    """Return the row of an image in datapool_latest.csv, without its label."""
    return f'"{name}",{number(state, name)},0.1,'


def samples(state: State) -> bytes:
    """Return the content of samples.csv."""
    lines = ['"filename","content_hash","version","batch","rank","distance","nearest","weak_label","path"']
    for version, (batch, picked) in enumerate(state, start=1):
        for rank, name in enumerate(picked, start=1):
            distance, nearest = ('""', "") if (version, rank) == (1, 1) else (1 / (rank + 2), "near, by")
            lines.append(
                f'"{name}","{content_hash(BATCHES[batch][name])}",{version},"{BATCH_IDS[batch]}",{rank},{distance},'
                f'"{nearest}","{name.split("/")[0]}","{name}"'
            )
    return "\n".join([*lines, ""]).encode()


def expected_seen(state: State) -> dict[str, list[str]]:
    """Return the hashes that each file in ``seen/`` must hold: what the batch of its version offered and was not picked."""
    seen = {}
    for k, (batch, picked) in enumerate(state):
        in_pool = {number(state[:k], name) for name in names(state[:k])}
        left = [content for name, content in BATCHES[batch].items() if name not in picked and content not in in_pool]
        seen[f"seen/{k + 1:04d}.parquet"] = sorted(map(content_hash, left))
    return seen


def expected_thumbnails(state: State) -> dict[str, list[str]]:
    """Return the hashes that each file in ``thumbnails/`` must hold, in order: those of what its version added."""
    return {
        f"thumbnails/{k:04d}.parquet": [content_hash(BATCHES[batch][name]) for name in picked]
        for k, (batch, picked) in enumerate(state, start=1)
    }


def expected_files(state: State, pool: str, *, keep_history: bool | int) -> Tree:
    """Return the files that the folder of a pool must hold, without its record pool.json, ``seen/`` and ``thumbnails/``."""
    if not state:
        return {}
    files = {"datapool_latest.csv": csv(state), "samples.csv": samples(state)}
    if pool == "p":
        files["checkpoint_latest.ckpt"] = MODEL
    if keep_history:
        earlier = range(1, len(state)) if keep_history is True else range(1, len(state))[-keep_history:]
        files |= {f"history/datapool_{k:04d}.csv": csv(state[:k]) for k in earlier}
    return files


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
