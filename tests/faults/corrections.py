"""A state machine of corrections: images that are excluded, offered again or forgotten, corrected batches, weeks undone.

Unlike ``histories.py`` it has no second model of a pool. It compares the bytes after a step with those before: which rows
may leave, which must stay, and what a run that is killed and then repeated makes beside one that nothing disturbs.
"""

import hashlib
import json
import os
import shutil
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import fake_dvc
import numpy as np
import pandas as pd
from fake_dvc import BASE, LINEAGE, MODEL, POOLS, SCRATCH, SEEN, Killed, Tree, content_hash, put, tree
from hypothesis import assume, note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from datapool.core.base import Base, read_base, write_base
from datapool.core.errors import DatapoolError
from datapool.core.lineage import Parameters, Provenance
from datapool.core.tables import EmbeddedTable, read_csv, write_table
from datapool.images.batch import batch_id, candidates, mark_excluded
from datapool.pool.erasure import erase_from_scratch, erase_names
from datapool.pool.merge import merge, with_paths
from datapool.pool.open import open_base

LIST = Path("exclude.txt")

BATCHES = {
    "A": {"cat/a1.jpg": 1, "dog/a2.jpg": 2, "dog/a3.jpg": 3},
    # A corrected: one image has another label, one is gone, one has another name, one is new.
    "A corrected": {"dog/a1.jpg": 1, "dog/a third.jpg": 3, "cat/a4.jpg": 10},
    "B": {"ant/b1.jpg": 4, "dog/b2.jpg": 5, "dog/b3.jpg": 6},
    "B corrected": {"ant/b0.jpg": 11, "ant/b1.jpg": 4, "emu/b3.jpg": 6},
    "C": {"ant/d1.jpg": 8, "cat/a1.jpg": 1, "cat/d2.jpg": 9},  # contains an image of A
}
"""Each batch: filename -> the first of the two numbers of its embedding, which also stands for its content."""

ORIGINAL = {"A corrected": "A", "B corrected": "B"}
NUMBERS = sorted({number for batch in BATCHES.values() for number in batch.values()})
NAMES = sorted({name for batch in BATCHES.values() for name in batch})

kills = st.none() | st.tuples(st.sampled_from(["open", "merge"]), st.integers(0, 70))


class Snapshot(NamedTuple):
    """What git and DVC keep of a workspace."""

    pools: Tree
    lineage: bytes
    excluded: str
    settings: tuple[Any, ...]


class Row(NamedTuple):
    """An image of a pool."""

    csv: str
    """Its line in datapool_latest.csv."""
    samples: str
    """Its line in samples.csv."""
    content: str
    version: int
    filename: str
    weak_label: str


class Corrections(RuleBasedStateMachine):
    """A workspace in which a user corrects what has run, and processes are killed."""

    runs = killed = removals = replaced = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        os.chdir(self.folder)
        LINEAGE.write_text("{}\n")
        LIST.touch()
        Path("model.ckpt").write_bytes(MODEL)
        self.batch, self.n, self.pool = "A", 2, "p"
        self.replaces: list[str] = []
        self.deleted: set[int] = set()  # images whose files are no longer in any batch
        self.last: dict[
            str, tuple[str, int, set[str]]
        ] = {}  # what made each pool's latest version: batch, n, excluded contents
        self.left: dict[str, set[str]] = {"p": set(), "q": set()}  # contents that have left a pool since then
        self.commits: list[Snapshot] = []

    def teardown(self) -> None:
        os.chdir("/")
        shutil.rmtree(self.folder)

    # --- the steps

    @initialize(n=st.integers(1, 3))
    def first_run(self, n: int) -> None:
        self.n = n
        self.reproduce()

    @rule(batch=st.sampled_from(list(BATCHES)), n=st.integers(1, 3), pool=st.sampled_from("ppq"), kill=kills)
    def run(self, batch: str, n: int, pool: str, kill: tuple[str, int] | None) -> None:
        self.batch, self.n, self.pool = batch, n, pool
        self.reproduce(kill)

    @rule()
    def run_again(self) -> None:
        self.reproduce()
        before = tree(POOLS), LINEAGE.read_bytes(), tree(BASE)
        self.reproduce()
        assert (tree(POOLS), LINEAGE.read_bytes(), tree(BASE)) == before, "a run again changes something"

    @rule(number=st.sampled_from(NUMBERS), is_deleted=st.booleans(), kill=kills)
    def exclude_a_content(self, number: int, is_deleted: bool, kill: tuple[str, int] | None) -> None:
        self.add_line(f"{content_hash(number)}\tblurred")
        self.deleted |= {number} if is_deleted and self.may_delete(number) else set()
        self.reproduce(kill)

    @rule(name=st.sampled_from(NAMES), kill=kills)
    def exclude_a_name(self, name: str, kill: tuple[str, int] | None) -> None:
        self.add_line(f"{name}\ta face")
        self.reproduce(kill)

    @rule(k=st.integers(0, 5), kill=kills)
    def take_a_line_out(self, k: int, kill: tuple[str, int] | None) -> None:
        lines = LIST.read_text().splitlines(keepends=True)
        assume(k < len(lines))
        LIST.write_text("".join(lines[:k] + lines[k + 1 :]))
        self.reproduce(kill)

    @rule(batch=st.sampled_from(list(ORIGINAL)), is_first_run=st.booleans(), n=st.integers(1, 3), kill=kills)
    def correct_a_batch(self, batch: str, is_first_run: bool, n: int, kill: tuple[str, int] | None) -> None:
        """Let a corrected batch replace the version of its earlier state, which may have run just before."""
        self.batch, self.n, self.replaces = ORIGINAL[batch], n, []
        if is_first_run:
            self.reproduce()
        self.replaces = [batch_id(self.images())[:12]]
        self.batch = batch
        self.reproduce(kill)

    @rule(number=st.sampled_from(NUMBERS))
    def forget(self, number: int) -> None:
        names = [name for batch in BATCHES.values() for name, each in batch.items() if each == number]
        lines = [line for line in LIST.read_text().splitlines(keepends=True) if line.split("\t")[0] not in names]
        assume(self.may_delete(number))
        LIST.write_text("".join(lines))
        self.add_line(f"{content_hash(number)}\ta face")
        self.deleted.add(number)
        self.reproduce()
        before = {pool: self.rows(pool) for pool in self.left}
        erase_names(POOLS, LINEAGE, names)
        erase_from_scratch([content_hash(number)], names)

        shutil.rmtree(BASE)  # an output of a run, which makes it again
        left = [path for path, data in tree(Path()).items() if any(name.encode() in data for name in names)]
        assert not left, f"{names} stand in {left}"
        for pool, rows in before.items():
            assert [row.csv for row in rows] == [row.csv for row in self.rows(pool)]
            assert [_without(names, row.samples) for row in rows] == [row.samples for row in self.rows(pool)]
            self.check_files(pool)
        self.reproduce()

    @rule()
    def commit(self) -> None:
        settings = (self.batch, self.n, self.pool, self.replaces)
        self.commits.append(Snapshot(tree(POOLS), LINEAGE.read_bytes(), LIST.read_text(), settings))

    @rule()
    def undo(self) -> None:
        """Go back to the pools, the list and the settings of a commit, as ``git revert`` and ``dvc checkout`` do."""
        assume(self.commits)
        snapshot = self.commits.pop()
        put(snapshot.pools, POOLS)
        LINEAGE.write_bytes(snapshot.lineage)
        LIST.write_text(snapshot.excluded)
        self.batch, self.n, self.pool, self.replaces = snapshot.settings
        self.last, self.left = {}, {pool: set() for pool in self.left}
        shutil.rmtree(BASE, ignore_errors=True)
        self.reproduce()

    @rule()
    def delete_the_scratch_folder(self) -> None:
        shutil.rmtree(SCRATCH, ignore_errors=True)

    # --- a run

    def reproduce(self, kill: tuple[str, int] | None = None) -> None:
        """Run the pipeline and check what it made. If it is killed, run it again."""
        type(self).runs += 1
        note(f"{self.batch!r}, n={self.n}, pool {self.pool}, replaces={self.replaces}, excluded: {LIST.read_text()!r}")
        before = {pool: self.rows(pool) for pool in self.left}
        excluded = self.excluded(before)
        if kill and (POOLS / self.pool).exists():
            kill = None if self.is_undisturbed(kill) else kill
        elif kill:
            kill = None
        try:
            base = self.run_stages()
        except DatapoolError as error:
            note(str(error))
            is_empty = "nothing of this batch was picked" in str(error)
            assert is_empty or "is no corrected state of that batch" in str(error), str(error)
            base = None
        for pool, rows in before.items():
            gone = {row.content for row in rows} & excluded
            self.left[pool] |= gone
            type(self).removals += len(gone)
            stays = [row for row in rows if row.content not in excluded]
            if pool != self.pool or base is None:
                assert self.rows(pool) == stays, f"other rows of pool {pool} than the excluded ones have changed"
            else:
                self.check_pool(stays, base, excluded)
            self.check_files(pool)
            assert not excluded.intersection(row.content for row in self.rows(pool))
        if base is None:
            self.replaces, self.n = [], 3
            return
        versions = json.loads(LINEAGE.read_text())[self.pool]["versions"]
        if versions[-1]["batch"] == base.batch:
            self.last[self.pool], self.left[self.pool] = (self.batch, self.n, excluded), set()
        elif len(versions) == len(base.versions) and self.last.get(self.pool, (self.batch,))[0] == self.batch:
            self.last.pop(self.pool, None)  # the batch adds nothing any more, so an earlier one made the latest version

    def is_undisturbed(self, kill: tuple[str, int]) -> bool:
        """Kill a run and run again. Return False if so many operations were not done.

        Fails unless the result is, byte for byte, that of a run without a kill, which is made in a copy of the workspace.
        """
        copy = tempfile.mkdtemp()
        shutil.copytree(".", copy, dirs_exist_ok=True)
        os.chdir(copy)
        try:
            self.run_stages()
        except DatapoolError:
            return True
        finally:
            undisturbed = tree(POOLS), LINEAGE.read_bytes()  # the base also describes the version that is replaced
            os.chdir(self.folder)
            shutil.rmtree(copy)
        try:
            self.run_stages(kill)
        except Killed:
            type(self).killed += 1
            self.run_stages()
        assert (tree(POOLS), LINEAGE.read_bytes()) == undisturbed, "a kill changes the result"
        return False

    def run_stages(self, kill: tuple[str, int] | None = None) -> Base:
        """Run open, sample and merge. Return the base."""
        fake_dvc._run("open", self.open, kill)
        base = read_base(BASE)
        fake_dvc._run("merge", lambda: self.merge(base), kill)
        return base

    def open(self) -> None:
        base, notes = open_base(
            POOLS,
            LINEAGE,
            self.pool,
            self.images(),
            base_version=None,
            replaces=self.replaces,
            exclude=LIST,
        )
        for sentence in notes:
            note(sentence)
        write_base(BASE, base)

    def merge(self, base: Base) -> None:
        images = mark_excluded(self.images(), base.excluded)
        parameters = Parameters(method="coreset", stopping_condition={"n_samples": self.n})
        standing = base.standing if base.standing and base.standing.applies(parameters) else None
        picks = self.picks(images, base, EmbeddedTable(*standing.rows) if standing else None)
        if standing and standing.is_final:
            picks = standing.rows
        offered = candidates(images, base.rows.table)
        not_taken = offered[~offered.content_hash.isin(picks.table.content_hash)][["content_hash"]]
        write_table(SEEN, not_taken.assign(fate="covered", distance=0.25).sort_values("content_hash"))
        merge(
            POOLS,
            LINEAGE,
            base,
            with_paths(picks, images),
            # Pool q has embeddings from a csv and no model.
            Path("model.ckpt") if self.pool == "p" else None,
            keep_history=True,
            provenance=Provenance(covering_radius=0.25, witness="a witness", parameters=parameters),
            n_kept=len(standing.rows.table) if standing and not standing.is_final else 0,
            seen=SEEN,
            pictures=fake_dvc.pictures,
        )

    def picks(self, images: pd.DataFrame, base: Base, standing: EmbeddedTable | None) -> EmbeddedTable:
        """Return what stands, and after that the first candidates by name until there are n."""
        columns = ["filename", "content_hash", "weak_label", "distance", "nearest"]
        first = standing.table[columns] if standing else pd.DataFrame(columns=columns)
        others = candidates(images, base.rows.table)
        others = others[~others.content_hash.isin(first.content_hash)][: max(self.n - len(first), 0)]
        # The neighbor of each is the image before it.
        names = [*base.rows.table.filename[-1:], *first.filename, *others.filename]
        before = names[len(names) - len(others) - 1 : -1] if len(names) > len(others) else ["", *names[:-1]]
        others = others[columns[:3]].assign(
            distance=[1 / (len(first) + i + 3) if each else np.nan for i, each in enumerate(before[: len(others)])],
            nearest=before[: len(others)],
        )
        table = pd.concat([first, others], ignore_index=True) if len(first) else others.reset_index(drop=True)
        number_of = {content_hash(number): number for number in NUMBERS}
        vectors = [[number_of[content], 0.1] for content in table.content_hash]
        return EmbeddedTable(table, np.array(vectors, dtype=np.float32).reshape(-1, 2))

    # --- what must hold

    def check_pool(self, before: list[Row], base: Base, excluded: set[str]) -> None:
        """Check the pool of a run against its rows before, of which the excluded ones are gone."""
        after, k = self.rows(self.pool), len(base.versions)
        kept = [row for row in before if row.version <= k]
        assert after[: len(kept)] == kept, "rows of the versions before have changed"
        assert all(row.version == k + 1 for row in after[len(kept) :])
        replaced = [row for row in before if row.version > k]
        last = self.last.get(self.pool)
        offered_again = (self.left[self.pool] - excluded).intersection(self.images().content_hash)
        is_same_run = last is not None and last[:2] == (self.batch, self.n) and last[2] <= excluded
        is_same_batch = all(
            base.batch in row.samples for row in replaced
        )  # not if an image was deleted that was not picked
        if replaced and is_same_run and is_same_batch and not offered_again:
            assert after == before, "removing an image changed the other rows"  # no other one is picked either
        if replaced and last and last[0] == ORIGINAL.get(self.batch) and last[1] == self.n and self.replaces:
            type(self).replaced += 1
            place = self.images().set_index("content_hash")
            still_here = [row for row in replaced if row.content in place.index]
            now = after[len(kept) : len(kept) + len(still_here)]
            expected = [(row.content, place.filename[row.content], place.weak_label[row.content]) for row in still_here]
            assert [(row.content, row.filename, row.weak_label) for row in now] == expected, "an image lost its place"

    def check_files(self, pool: str) -> None:
        """Check that the files of a pool are those that its records describe, and that versions are prefixes."""
        entry = json.loads(LINEAGE.read_text()).get(pool)
        files = tree(POOLS / pool)
        if entry is None:
            assert not files
            return
        record = json.loads(files.pop("pool.json"))
        assert record["entry"] == entry
        assert record["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        csv, samples = (files[name].splitlines(keepends=True) for name in ("datapool_latest.csv", "samples.csv"))
        rows = self.rows(pool)
        assert [row.version for row in rows] == sorted(row.version for row in rows)
        for version in entry["versions"]:
            number, n = version["version"], version["rows"]
            beginning = b"".join(csv[: n + 1])
            assert version["datapool_sha256"] == hashlib.sha256(beginning).hexdigest()
            assert version["datapool_bytes"] == len(beginning)
            assert version["samples_sha256"] == hashlib.sha256(b"".join(samples[: n + 1])).hexdigest()
            assert [row.version for row in rows[:n]].count(number) == version["new"]
            pictures = pd.read_parquet(BytesIO(files[f"thumbnails/{number:04d}.parquet"]))
            assert pictures.content_hash.tolist() == [row.content for row in rows if row.version == number]
            assert files.get(f"history/datapool_{number:04d}.csv", beginning) == beginning
            assert (f"history/datapool_{number:04d}.csv" in files) == (number < len(entry["versions"]))
        assert len(rows) == entry["versions"][-1]["rows"]
        labels = entry["labels"] or []
        assert [row.csv.rsplit(",", 1)[1] for row in rows] == [str(labels.index(row.weak_label)) for row in rows]

    # --- helpers

    def images(self) -> pd.DataFrame:
        """Return the table that ``batch.scan`` makes of the batch."""
        names = sorted(name for name, number in BATCHES[self.batch].items() if number not in self.deleted)
        contents = [content_hash(BATCHES[self.batch][name]) for name in names]
        labels = [name.split("/")[0] for name in names]
        columns = {"filename": names, "path": names, "content_hash": contents, "weak_label": labels}
        return pd.DataFrame({**columns, "status": "ok", "reason": ""}).astype("str")

    def may_delete(self, number: int) -> bool:
        """Return whether each batch has another image."""
        gone = {*self.deleted, number}
        return all(gone < {*gone, *batch.values()} for batch in BATCHES.values())

    def add_line(self, line: str) -> None:
        lines = LIST.read_text().splitlines()
        assume(line not in lines)
        LIST.write_text("".join(f"{each}\n" for each in [*lines, line]))

    def excluded(self, pools: dict[str, list[Row]]) -> set[str]:
        """Return the contents that exclude.txt excludes."""
        listed = {line.split("\t")[0] for line in LIST.read_text().splitlines()}
        contents = {each for each in listed if len(each) == 64}
        images = self.images()
        contents |= set(images.content_hash[images.filename.isin(listed)])
        contents |= {row.content for rows in pools.values() for row in rows if row.filename in listed}
        lines = {hashlib.sha256(each.encode()).hexdigest() for each in listed}
        for entry in json.loads(LINEAGE.read_text()).values():
            contents |= {each["content_hash"] for each in entry.get("removed", []) if each.get("line") in lines}
        return contents

    def rows(self, pool: str) -> list[Row]:
        """Read the rows of a pool."""
        if not (POOLS / pool / "samples.csv").exists():
            return []
        texts = [(POOLS / pool / name).read_text().splitlines()[1:] for name in ("datapool_latest.csv", "samples.csv")]
        table = read_csv(POOLS / pool / "samples.csv")
        columns = [table[name] for name in ("content_hash", "version", "filename", "weak_label")]
        return [Row(*each) for each in zip(*texts, *columns, strict=True)]


def _without(names: list[str], line: str) -> str:
    """Return a line of samples.csv in which these names are empty cells."""
    for name in names:
        line = line.replace(f'"{name}"', '""')
    return line
