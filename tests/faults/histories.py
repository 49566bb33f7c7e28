"""The state machine: what a person, a kill and a damaged disk may do to a workspace, and what must hold after each step."""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from plain_pool import BATCH_IDS, State, choose, csv, expected_files, fold, names, row, samples, sha256
from stand_in import (
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

from datapool.core.errors import DatapoolError
from datapool.maintenance.repair import repair

FILES = ["datapool_latest.csv", "samples.csv", "checkpoint_latest.ckpt", "pool.json", "history/datapool_0001.csv"]
EXTRA = '"by hand",9,0.1,0\n'

params_of_a_run = st.builds(
    Params,
    batch=st.sampled_from(list(BATCHES)),
    n=st.sampled_from([2, 1, 3, 0]),
    pool=st.sampled_from(["p", "p", "p", "q"]),
    keep_history=st.sampled_from([True, True, False]),
    base_version=st.sampled_from([None, None, None, None, 0, 1, 2]),
)


class Histories(RuleBasedStateMachine):
    """A person at work on a workspace, whose processes are killed and who damages files."""

    kind: type[Workspace] = Workspace
    runs = kills = refusals = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        os.chdir(self.folder)
        self.workspace = self.kind()
        self.possible: dict[str, set[State]] = {"p": {()}, "q": {()}}  # after a kill, two
        self.known: dict[str, State] = {}  # by the sha256 of samples.csv: csv files of other versions may be alike
        self.rows: dict[str, set[str]] = {"p": set(), "q": set()}  # recorded by a run and not reverted
        self.troubled: set[str] = set()  # pools with files changed by hand: then a run may refuse
        self.touched = ""  # the pool of them whose files were touched one by one
        self.elsewhere = b""  # what a person took away from here
        self.is_set_back = False  # whether a person took back what git does not hold, dvc.lock included

    def teardown(self) -> None:
        os.chdir("/")
        shutil.rmtree(self.folder)

    # --- what is done

    @initialize(params=params_of_a_run)
    def first_run(self, params: Params) -> None:
        self.run(params)

    @rule(params=params_of_a_run)
    def run(self, params: Params) -> None:
        self.workspace.params = params
        self.reproduce()

    @rule(n=st.integers(0, 3), keep_history=st.booleans())
    def run_with_other_params(self, n: int, keep_history: bool) -> None:
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
        self.leave_out_what_cannot_run()
        before = {pool: set(states) for pool, states in self.possible.items()}
        try:
            self.reproduce(kill=(stage, operation))
        except Killed:
            type(self).kills += 1
            params = self.workspace.params
            for state in before[params.pool]:
                for base in {choose(state, params), self.base() or choose(state, params)}:
                    self.possible[params.pool].add(self.know(fold(base, params)))
                    self.take_back(state, base)

    @rule()
    def commit(self) -> None:
        assume(not self.troubled and all(len(states) == 1 for states in self.possible.values()))
        self.workspace.commit()

    @rule(back=st.integers(0, 5), also_dvc=st.booleans())
    def checkout(self, back: int, also_dvc: bool) -> None:
        """``git checkout`` of a revision, and ``dvc checkout``, which one may forget."""
        self.commit()
        revision = self.revision(back)
        self.workspace.git_checkout(revision)
        if also_dvc:
            self.workspace.dvc_checkout()
        self.possible = {pool: {self.state_in(revision.lineage, pool)} for pool in self.possible}
        self.compare_with_lock()

    @rule(back=st.integers(0, 5))
    def restore_a_backup(self, back: int) -> None:
        """Put the pools of an earlier revision into place, with neither git nor DVC."""
        self.commit()
        put(self.revision(back).lock.pools, POOLS)
        self.compare_with_lock()

    @rule()
    def clone_without_pull(self) -> None:
        self.commit()
        self.put_away(SCRATCH / "backup")
        self.workspace.clone()
        self.possible = {pool: {self.state_in(LINEAGE.read_bytes(), pool)} for pool in self.possible}
        self.compare_with_lock()

    @rule(file=st.sampled_from(FILES), how=st.sampled_from(["a row more", "a byte", "cut", "gone"]))
    def damage(self, file: str, how: str) -> None:
        path = POOLS / self.workspace.params.pool / file
        assume(path.exists() and (self.touched not in self.troubled or self.touched == self.workspace.params.pool))
        self.touched = self.workspace.params.pool
        data = path.read_bytes()
        middle = len(data) // 2
        if how == "gone":
            path.unlink()
            if not set(FILES) & set(tree(POOLS / self.workspace.params.pool)):
                self.rows[self.workspace.params.pool].clear()  # a person may remove a pool
        elif how == "a row more":
            path.write_bytes(data + EXTRA.encode())
            if file == "datapool_latest.csv":
                self.rows[self.workspace.params.pool].add(EXTRA)
        elif how == "cut":
            path.write_bytes(data[:middle])
        else:
            path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        self.rows = {pool: rows - self.lost() for pool, rows in self.rows.items()}  # by this very hand
        self.troubled.add(self.workspace.params.pool)

    @rule(how=st.sampled_from(["a byte", "conflict", "HEAD", "HEAD with dvc.lock"]))
    def damage_the_lineage(self, how: str) -> None:
        text, pool = LINEAGE.read_text(), self.workspace.params.pool
        if how == "a byte":
            assume(text.startswith("{") and pool in json.loads(text))
            entries = json.loads(text)
            entries[pool]["versions"][-1]["datapool_sha256"] = "0" * 64
            LINEAGE.write_text(json.dumps(entries))
            self.troubled.add(pool)
            return
        if how == "conflict":
            LINEAGE.write_text(f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> theirs\n")
            self.troubled |= self.possible.keys()
        else:
            self.git_checkout_of_head(also_lock="lock" in how)

    @rule()
    def delete_the_scratch_folder(self) -> None:
        self.put_away(SCRATCH / "backup")
        shutil.rmtree(SCRATCH, ignore_errors=True)
        # A merge that was killed was to be finished with what lay there.
        self.troubled |= {pool for pool, states in self.possible.items() if len(states) > 1}

    @rule()
    def run_an_experiment(self) -> None:
        for rows in self.rows.values():
            rows.discard(EXTRA)  # dvc exp run begins with dvc checkout --force
        self.compare_with_lock()
        self.dvc_checkout()
        if self.is_set_back:  # then this is `git checkout HEAD -- … && dvc checkout --force`
            self.rows = {pool: rows - self.lost() for pool, rows in self.rows.items()}
        self.reproduce()

    # --- what must hold

    @invariant()
    def no_row_is_lost(self) -> None:
        assert not self.lost()

    def lost(self) -> set[str]:
        """Rows that are neither in a pool, nor in a version of git and dvc.lock, nor backed up."""
        everything = [self.elsewhere, *tree(SCRATCH / "backup").values(), *tree(POOLS).values()]
        for lock in (self.workspace.lock, *(revision.lock for revision in self.workspace.commits)):
            everything += lock.pools.values()
        text = b"\n".join(everything).decode(errors="replace")
        return {row for rows in self.rows.values() for row in rows if row not in text}

    def reproduce(self, *, kill: tuple[str, int] | None = None) -> None:
        """Run; where that is refused, do what the message says, and run again."""
        type(self).runs += 1
        self.leave_out_what_cannot_run()
        heard: list[str] = []
        for _ in range(8):
            # A merge that was killed is finished, whatever pool it was of, also one that changes the history only.
            sure = [pool for pool, states in self.possible.items() if len(states) == 1]
            whole = [pool for pool in sure if not tree(SCRATCH / "commit" / pool)]
            others = {pool: tree(POOLS / pool) for pool in whole if pool != self.workspace.params.pool}
            before = tree(POOLS), LINEAGE.read_bytes()
            try:
                ran = self.workspace.repro(kill=kill)
            except DatapoolError as error:
                said = str(error)
                note(said)
                type(self).refusals += 1
                assert self.troubled, said
                assert "\n" not in said
                if "nothing was changed" in said and "merge that was stopped" not in said:
                    assert (tree(POOLS), LINEAGE.read_bytes()) == before
                self.follow(said, times=heard.count(said))
                heard.append(said)
            else:
                assert all(tree(POOLS / pool) == files for pool, files in others.items())
                self.check(ran)
                return
        pytest.fail(f"what the message says does not help: {said}")

    def leave_out_what_cannot_run(self) -> None:
        """Set parameters back that are refused for themselves: no such version, or nothing left of the pool."""
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

    def follow(self, said: str, *, times: int) -> None:
        """Do what a message says; where it was said before, the next thing that it names."""
        if said.startswith("params.yaml: datapool.base_version") or "nothing of this batch was picked" in said:
            self.workspace.params = self.workspace.params._replace(base_version=None, n=2)
            return
        commands = ["".join(found) for found in re.findall(r"`([^`]+)`|(move \S+) away", said)]
        assert len(commands) > times, f"what the message says does not help: {said}"
        for command in commands[times].split(" && "):
            note(f"{command}, because: {said}")
            if command.startswith("dvc checkout"):
                self.dvc_checkout(force="--force" in command)
            elif command == "dvc pull":
                self.dvc_checkout()
            elif command in ("git checkout HEAD -- datapools.json", "git checkout HEAD -- datapools.json dvc.lock"):
                self.git_checkout_of_head(also_lock=command.endswith("dvc.lock"))
            elif command in ("datapool repair", "datapool repair --as-here"):
                self.repair(as_here="--as-here" in command)
            elif command == "dvc repro --force --single-item open":
                self.workspace.repro_open()
            elif command.startswith("move"):
                self.put_away(Path(command.split()[1]))
            else:
                pytest.fail(f"{said}: what is {command}?")

    def repair(self, *, as_here: bool) -> None:
        """``datapool repair``; where that is refused, do what the message says."""
        try:
            for repaired in repair(POOLS, LINEAGE, as_here=as_here):
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
        self.is_set_back |= also_lock
        self.allow(self.workspace.head.lineage)
        self.troubled |= self.possible.keys()  # whatever pool it was done for

    def allow(self, lineage: bytes) -> None:
        """A run may from now on build on what this lineage records."""
        for pool, states in self.possible.items():
            states.add(self.state_in(lineage, pool))

    def check(self, ran: list[str]) -> None:
        """After a run that went well, the pool is the fold over its batches, byte for byte."""
        params = self.workspace.params
        base = self.base()
        assert base is not None
        if "open" in ran:
            assert base in {choose(state, params) for state in self.possible[params.pool]}
        result = self.know(fold(base, params))
        expected = expected_files(result, params.pool, keep_history=params.keep_history)
        found = tree(POOLS / params.pool)
        record = found.pop("pool.json", None)
        assert found == expected
        entry = json.loads(LINEAGE.read_text()).get(params.pool, {"versions": []})
        recorded = [(version["batch"], version["datapool_sha256"]) for version in entry["versions"]]
        assert recorded == [(BATCH_IDS[result[k - 1][0]], sha256(csv(result[:k]))) for k in range(1, len(result) + 1)]
        if record is not None:
            content = json.loads(record)
            assert content["entry"] == entry
            assert content["files"] == {name: sha256(data) for name, data in found.items()}
        for state in self.possible[params.pool]:
            self.take_back(state, base)
        self.rows[params.pool] |= {row(result, name) for name in names(result)}
        self.possible[params.pool] = {result}
        self.troubled.discard(params.pool)
        self.is_set_back = False

    # --- small things

    def know(self, state: State) -> State:
        for k in range(len(state) + 1):
            self.known[sha256(samples(state[:k]))] = state[:k]
        return state

    def base(self) -> State | None:
        """What the base in the workspace is; None if there is none for this run."""
        params = self.workspace.params
        if self.workspace.lock.opened != (params.batch, params.pool, params.base_version) or not tree(BASE):
            return None
        versions = json.loads((BASE / "base.json").read_text())["versions"]
        return self.known[versions[-1]["samples_sha256"]] if versions else ()

    def compare_with_lock(self) -> None:
        """Find the pools whose files were changed by hand."""
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

    def take_back(self, state: State, base: State) -> None:
        """A batch that runs again with other parameters replaces its own version: these rows may go."""
        params, k = self.workspace.params, len(base)
        if len(state) == k + 1 and state[k][0] == params.batch:
            self.rows[params.pool] -= {row(state, name) for name in state[k][1]}

    def put_away(self, folder: Path) -> None:
        self.elsewhere += b"".join(tree(folder).values())
        shutil.rmtree(folder, ignore_errors=True)
