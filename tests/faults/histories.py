"""A state machine of what users, kills and damaged files may do to a workspace, and of what must hold after each step."""

import json
import os
import re
import shutil
import tempfile
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_dvc import (
    BASE,
    BATCHES,
    LINEAGE,
    POOLS,
    SCRATCH,
    Killed,
    Params,
    Revision,
    Workspace,
    put,
    tree,
)
from hypothesis import assume, note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from reference_pool import (
    BATCH_IDS,
    State,
    choose,
    csv,
    expected_files,
    expected_seen,
    expected_thumbnails,
    fold,
    names,
    row,
    samples,
    sha256,
)

from datapool.core.errors import DatapoolError
from datapool.maintenance.repair import repair

FILES = [
    "datapool_latest.csv",
    "samples.csv",
    "checkpoint_latest.ckpt",
    "pool.json",
    "history/datapool_0001.csv",
    "seen/0001.parquet",
    "thumbnails/0001.parquet",
]
EXTRA = '"by hand",9,0.1,0\n'

params_of_a_run = st.builds(
    Params,
    batch=st.sampled_from(list(BATCHES)),
    n=st.sampled_from([2, 1, 3, 0]),
    pool=st.sampled_from(["p", "p", "p", "q"]),
    keep_history=st.sampled_from([True, True, 2, False]),  # not 1, which DVC does not tell from true
    base_version=st.sampled_from([None, None, None, None, 0, 1, 2]),
)


def hashes_in(data: bytes) -> list[str]:
    """Return the hashes that a file in ``seen/`` or ``thumbnails/`` holds."""
    return pq.read_table(BytesIO(data)).column("content_hash").to_pylist()


class Histories(RuleBasedStateMachine):
    """A workspace in which a user runs the pipeline, processes are killed, and files are damaged."""

    kind: type[Workspace] = Workspace
    runs = kills = refusals = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        os.chdir(self.folder)
        self.workspace = self.kind()
        self.possible: dict[str, set[State]] = {"p": {()}, "q": {()}}  # states of each pool: two after a kill
        self.known: dict[str, State] = {}  # by the sha256 of samples.csv, which differs between versions; a csv may not
        self.rows: dict[str, set[str]] = {"p": set(), "q": set()}  # rows that a run recorded and no user removed
        self.troubled: set[str] = set()  # pools with changed files: a run on them may be refused
        self.touched = ""  # the pool of which single files were damaged
        self.elsewhere = b""  # what the user moved out of the workspace
        self.is_lock_restored = False  # whether the user restored datapools.json and dvc.lock of HEAD

    def teardown(self) -> None:
        os.chdir("/")
        shutil.rmtree(self.folder)

    # --- the steps

    @initialize(params=params_of_a_run)
    def first_run(self, params: Params) -> None:
        self.run(params)

    @rule(params=params_of_a_run)
    def run(self, params: Params) -> None:
        self.workspace.params = params
        self.reproduce()

    @rule(n=st.integers(0, 3), keep_history=st.sampled_from([True, 2, False]))
    def run_with_other_params(self, n: int, keep_history: bool | int) -> None:
        self.workspace.params = self.workspace.params._replace(n=n, keep_history=keep_history)
        self.reproduce()

    @rule()
    def run_again(self) -> None:
        self.reproduce()
        before = tree(POOLS), LINEAGE.read_bytes()
        assert self.workspace.repro() == []
        assert self.workspace.repro_force() == ["open", "merge"]
        assert (tree(POOLS), LINEAGE.read_bytes()) == before

    @rule(params=params_of_a_run, stage=st.sampled_from(["merge", "open"]), operation=st.integers(0, 60))
    def kill(self, params: Params, stage: str, operation: int) -> None:
        self.workspace.params = params
        self.reset_invalid_params()
        before = {pool: set(states) for pool, states in self.possible.items()}
        try:
            self.reproduce(kill=(stage, operation))
        except Killed:
            type(self).kills += 1
            params = self.workspace.params
            for state in before[params.pool]:
                for base in {choose(state, params), self.base() or choose(state, params)}:
                    self.possible[params.pool].add(self.know(fold(base, params)))
                    self.expect_replacement(state, base)

    @rule()
    def commit(self) -> None:
        assume(not self.troubled and all(len(states) == 1 for states in self.possible.values()))
        self.workspace.commit()

    @rule(back=st.integers(0, 5), also_dvc=st.booleans())
    def checkout(self, back: int, also_dvc: bool) -> None:
        """Run ``git checkout`` of a revision and ``dvc checkout``, which a user may forget."""
        self.commit()
        revision = self.revision(back)
        self.workspace.git_checkout(revision)
        if also_dvc:
            self.workspace.dvc_checkout()
        self.possible = {pool: {self.state_in(revision.lineage, pool)} for pool in self.possible}
        self.compare_with_lock()

    @rule(back=st.integers(0, 5))
    def restore_a_backup(self, back: int) -> None:
        """Restore the pools of an earlier revision without git and DVC."""
        self.commit()
        put(self.revision(back).lock.pools, POOLS)
        self.compare_with_lock()

    @rule()
    def clone_without_pull(self) -> None:
        self.commit()
        self.move_away(SCRATCH / "backup")
        self.workspace.clone()
        self.possible = {pool: {self.state_in(LINEAGE.read_bytes(), pool)} for pool in self.possible}
        self.compare_with_lock()

    @rule(file=st.sampled_from(FILES), damage=st.sampled_from(["another row", "a byte", "cut off", "removed"]))
    def damage_a_file(self, file: str, damage: str) -> None:
        path = POOLS / self.workspace.params.pool / file
        assume(path.exists() and (self.touched not in self.troubled or self.touched == self.workspace.params.pool))
        self.touched = self.workspace.params.pool
        data = path.read_bytes()
        middle = len(data) // 2
        if damage == "removed":
            path.unlink()
            if not set(FILES) & set(tree(POOLS / self.workspace.params.pool)):
                self.rows[self.workspace.params.pool].clear()  # a user may remove a pool
        elif damage == "another row":
            path.write_bytes(data + EXTRA.encode())
            if file == "datapool_latest.csv":
                self.rows[self.workspace.params.pool].add(EXTRA)
        elif damage == "cut off":
            path.write_bytes(data[:middle])
        else:
            path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        self.rows = {pool: rows - self.lost() for pool, rows in self.rows.items()}  # the damage itself may remove rows
        self.troubled.add(self.workspace.params.pool)

    @rule(damage=st.sampled_from(["a byte", "conflict", "HEAD", "HEAD with dvc.lock"]))
    def damage_the_lineage(self, damage: str) -> None:
        text, pool = LINEAGE.read_text(), self.workspace.params.pool
        if damage == "a byte":
            assume(text.startswith("{") and pool in json.loads(text))
            entries = json.loads(text)
            entries[pool]["versions"][-1]["datapool_sha256"] = "0" * 64
            LINEAGE.write_text(json.dumps(entries))
            self.troubled.add(pool)
            return
        if damage == "conflict":
            LINEAGE.write_text(f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> theirs\n")
            self.troubled |= self.possible.keys()
        else:
            self.git_checkout_of_head(also_lock="lock" in damage)

    @rule()
    def delete_the_scratch_folder(self) -> None:
        self.move_away(SCRATCH / "backup")
        shutil.rmtree(SCRATCH, ignore_errors=True)
        # A killed merge needs these files to be finished.
        self.troubled |= {pool for pool, states in self.possible.items() if len(states) > 1}

    @rule()
    def run_an_experiment(self) -> None:
        for rows in self.rows.values():
            rows.discard(EXTRA)  # `dvc exp run` begins with `dvc checkout --force`
        self.compare_with_lock()
        self.dvc_checkout()
        if self.is_lock_restored:  # then the step equals `git checkout HEAD -- … && dvc checkout --force`
            self.rows = {pool: rows - self.lost() for pool, rows in self.rows.items()}
        self.reproduce()

    # --- what must hold

    @invariant()
    def no_row_is_lost(self) -> None:
        assert not self.lost()

    def lost(self) -> set[str]:
        """Return the recorded rows that are neither in a pool, nor in git or dvc.lock, nor in a backup."""
        everything = [self.elsewhere, *tree(SCRATCH / "backup").values(), *tree(POOLS).values()]
        for lock in (self.workspace.lock, *(revision.lock for revision in self.workspace.commits)):
            everything += lock.pools.values()
        text = b"\n".join(everything).decode(errors="replace")
        return {row for rows in self.rows.values() for row in rows if row not in text}

    def reproduce(self, *, kill: tuple[str, int] | None = None) -> None:
        """Run the pipeline. If it refuses, do what the message says and run again."""
        type(self).runs += 1
        self.reset_invalid_params()
        earlier: list[str] = []
        for _ in range(8):
            # A run finishes a killed merge of any pool, even one that changes only the history.
            certain = [pool for pool, states in self.possible.items() if len(states) == 1]
            finished = [pool for pool in certain if not tree(SCRATCH / "commit" / pool)]
            others = {pool: tree(POOLS / pool) for pool in finished if pool != self.workspace.params.pool}
            before = tree(POOLS), LINEAGE.read_bytes()
            try:
                ran = self.workspace.repro(kill=kill)
            except DatapoolError as error:
                message = str(error)
                note(message)
                type(self).refusals += 1
                assert self.troubled, message
                assert "\n" not in message
                if "nothing was changed" in message and "merge that was stopped" not in message:
                    assert (tree(POOLS), LINEAGE.read_bytes()) == before
                self.follow(message, times=earlier.count(message))
                earlier.append(message)
            else:
                assert all(tree(POOLS / pool) == files for pool, files in others.items())
                self.check(ran)
                return
        pytest.fail(f"the remedy in the message does not help: {message}")

    def reset_invalid_params(self) -> None:
        """Reset parameters that any run refuses: a missing version, or a run that leaves the pool empty."""
        params = self.workspace.params
        if self.troubled:  # a run on another pool would take the damage into DVC's cache
            params = params._replace(pool=self.touched if self.touched in self.troubled else min(self.troubled))
        for state in self.possible[params.pool]:
            if params.base_version is not None and params.base_version > len(state):
                params = params._replace(base_version=None)
            for base in (choose(state, params), self.base()):
                if base is not None and not fold(base, params):
                    params = params._replace(n=2)
        self.workspace.params = params

    def follow(self, message: str, *, times: int) -> None:
        """Apply the remedy that a message names; for a message seen before, the next remedy that it names."""
        if message.startswith("params.yaml: datapool.base_version") or "nothing of this batch was picked" in message:
            self.workspace.params = self.workspace.params._replace(base_version=None, n=2)
            return
        commands = ["".join(found) for found in re.findall(r"`([^`]+)`|(move \S+) away", message)]
        assert len(commands) > times, f"the remedy in the message does not help: {message}"
        for command in commands[times].split(" && "):
            note(f"{command}, because: {message}")
            if command.startswith("dvc checkout"):
                self.dvc_checkout(force="--force" in command)
            elif command == "dvc pull":
                self.dvc_checkout()
            elif command in ("git checkout HEAD -- datapools.json", "git checkout HEAD -- datapools.json dvc.lock"):
                self.git_checkout_of_head(also_lock=command.endswith("dvc.lock"))
            elif command in ("datapool repair", "datapool repair --as-here", "datapool repair --as-recorded"):
                self.repair(as_here="--as-here" in command, as_recorded="--as-recorded" in command)
            elif command == "dvc repro --force --single-item open":
                self.workspace.repro_open()
            elif command.startswith("move"):
                self.move_away(Path(command.split()[1]))
            else:
                pytest.fail(f"unknown remedy {command}: {message}")

    def repair(self, *, as_here: bool, as_recorded: bool = False) -> None:
        """Run ``datapool repair``. If it refuses, do what the message says."""
        try:
            for repaired in repair(POOLS, LINEAGE, as_here=as_here, as_recorded=as_recorded):
                note(str(repaired))
        except DatapoolError as error:
            self.follow(str(error), times=0)
        else:
            self.allow(LINEAGE.read_bytes())

    def dvc_checkout(self, *, force: bool = True) -> None:
        self.workspace.dvc_checkout(force=force)
        self.allow(self.workspace.lock.merged[1] if self.workspace.lock.merged else b"{}")

    def git_checkout_of_head(self, *, also_lock: bool = False) -> None:
        self.workspace.git_checkout_files(also_lock=also_lock)
        self.is_lock_restored |= also_lock
        self.allow(self.workspace.head.lineage)
        self.troubled |= self.possible.keys()  # for every pool, as the file records all of them

    def allow(self, lineage: bytes) -> None:
        """Allow that the next run builds on what this lineage records."""
        for pool, states in self.possible.items():
            states.add(self.state_in(lineage, pool))

    def check(self, ran: list[str]) -> None:
        """Check after a successful run that the pool is the fold over its batches, byte for byte."""
        params = self.workspace.params
        base = self.base()
        assert base is not None
        if "open" in ran:
            assert base in {choose(state, params) for state in self.possible[params.pool]}
        result = self.know(fold(base, params))
        expected = expected_files(result, params.pool, keep_history=params.keep_history or True)
        found = tree(POOLS / params.pool)
        record = found.pop("pool.json", None)
        if not params.keep_history:  # what was there stays
            expected = {name: data for name, data in expected.items() if name in found or "history" not in name}
        seen = {name: hashes_in(data) for name, data in found.items() if name.startswith("seen/")}
        assert seen == expected_seen(result)
        thumbnails = {name: hashes_in(data) for name, data in found.items() if name.startswith("thumbnails/")}
        assert thumbnails == (expected_thumbnails(result) if self.kind.has_pictures else {})
        assert {name: data for name, data in found.items() if name not in {*seen, *thumbnails}} == expected
        entry = json.loads(LINEAGE.read_text()).get(params.pool, {"versions": []})
        recorded = [(version["batch"], version["datapool_sha256"]) for version in entry["versions"]]
        assert recorded == [(BATCH_IDS[result[k - 1][0]], sha256(csv(result[:k]))) for k in range(1, len(result) + 1)]
        if record is not None:
            content = json.loads(record)
            assert content["entry"] == entry
            assert content["files"] == {name: sha256(data) for name, data in found.items()}
        for state in self.possible[params.pool]:
            self.expect_replacement(state, base)
        self.rows[params.pool] |= {row(result, name) for name in names(result)}
        self.possible[params.pool] = {result}
        self.troubled.discard(params.pool)
        self.is_lock_restored = False

    # --- helpers

    def know(self, state: State) -> State:
        """Remember a state and its earlier versions by the sha256 of samples.csv."""
        for k in range(len(state) + 1):
            self.known[sha256(samples(state[:k]))] = state[:k]
        return state

    def base(self) -> State | None:
        """Return the state that output/base holds; None if there is no base for this run."""
        params = self.workspace.params
        if self.workspace.lock.opened != (params.batch, params.pool, params.base_version) or not tree(BASE):
            return None
        versions = json.loads((BASE / "base.json").read_text())["versions"]
        return self.known[versions[-1]["samples_sha256"]] if versions else ()

    def compare_with_lock(self) -> None:
        """Find the pools whose files differ from dvc.lock."""
        for pool in self.possible:
            recorded = {name: data for name, data in self.workspace.lock.pools.items() if name.startswith(f"{pool}/")}
            if recorded != {f"{pool}/{name}": data for name, data in tree(POOLS / pool).items()}:
                self.troubled.add(pool)

    def revision(self, back: int) -> Revision:
        return self.workspace.commits[max(-1 - back, -len(self.workspace.commits))]

    def state_in(self, lineage: bytes, pool: str) -> State:
        versions = json.loads(lineage).get(pool, {"versions": []})["versions"]
        return self.known[versions[-1]["samples_sha256"]] if versions else ()

    def only_state(self, pool: str) -> State:
        (state,) = self.possible[pool]
        return state

    def expect_replacement(self, state: State, base: State) -> None:
        """Stop expecting the rows of a batch that runs again, because a new run replaces its version."""
        params, k = self.workspace.params, len(base)
        if len(state) == k + 1 and state[k][0] == params.batch:
            self.rows[params.pool] -= {row(state, name) for name in state[k][1]}

    def move_away(self, folder: Path) -> None:
        """Move a folder out of the workspace."""
        self.elsewhere += b"".join(tree(folder).values())
        shutil.rmtree(folder, ignore_errors=True)
