"""The workspace of ``fake_dvc.py`` with the real git and dvc; asserts that these do what the fake does.

Its pipeline has the stages open and merge of dvc.yaml, and small ones for scan and sample (``small_stages.py``).
"""

import atexit
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import yaml
from conftest import ENVIRONMENT
from fake_dvc import BASE, LINEAGE, POOLS, Killed, Lock, Params, Revision, Workspace, droppable, tree

from datapool.core.errors import DatapoolError
from datapool.workspace.create import Scm, make_workspace
from datapool.workspace.params_file import set_params

HERE = Path(__file__).parent
SMALL_STAGES = {
    "scan": {
        "cmd": f"{sys.executable} -m small_stages scan",
        "params": ["input_dir"],
        "outs": ["output/images.parquet"],
    },
    "sample": {
        "cmd": f"{sys.executable} -m small_stages sample",
        "deps": ["output/base"],
        "params": ["stopping_condition", "input_dir", "datapool.name"],
        "outs": [
            "output/data",
            "output/seen.parquet",
            "output/columns.parquet",
            "output/checkpoint.ckpt",
            "output/space.json",
            "output/numbers.json",
            "output/metrics.json",
        ],
    },
}
KILLER = """
import os, sys
stage, _, n = os.environ.get("FAULTS_KILL", "").partition(" ")
if stage and f"stages.{stage}" in sys.orig_argv:
    from fake_dvc import die_before_operation
    die_before_operation(int(n))
"""


@cache
def template() -> Path:
    """Make a workspace of which every other one is a copy."""
    folder = Path(tempfile.mkdtemp()) / "template"
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    make_workspace(folder, scm=Scm.OWN)
    pipeline = yaml.safe_load((folder / "dvc.yaml").read_text())
    stages = {"scan": SMALL_STAGES["scan"], "open": pipeline["stages"]["open"], "sample": SMALL_STAGES["sample"]}
    stages["merge"] = pipeline["stages"]["merge"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"vars": pipeline["vars"], "stages": stages}, sort_keys=False))
    (folder.parent / "killer").mkdir()
    (folder.parent / "killer" / "sitecustomize.py").write_text(KILLER)
    write_params(folder, Params())
    _run("git", "add", "--all", folder=folder)
    _run("git", "commit", "--quiet", "--message", "begin", folder=folder)
    return folder


class RealWorkspace(Workspace):
    """The current folder as a workspace in which git and dvc run."""

    has_pictures = False  # there are no image files to make them from

    def __init__(self) -> None:
        shutil.copytree(template(), ".", dirs_exist_ok=True, symlinks=True)
        self._params, self.lock, self.cache = Params(), Lock(), set()
        self.head = Revision(self.params, LINEAGE.read_bytes(), self.lock)
        self.commits = [self.head]
        self.revisions = [_run("git", "rev-parse", "HEAD").strip()]

    @property
    def params(self) -> Params:  # type: ignore[override]
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        if params != self._params:
            write_params(Path(), params)
        self._params = params

    def repro(self, *, kill: tuple[str, int] | None = None, force: bool = False) -> list[str]:
        params = self.params
        opened = (params.batch, params.pool, params.base_version)
        must_open = (self.lock.opened, self.lock.base) != (opened, tree(BASE))
        arguments = ["dvc", "repro", *["--force"] * force]
        done = _try(*arguments, FAULTS_KILL=f"{kill[0]} {kill[1]}" if kill else "")
        ran = [stage for stage in re.findall(r"Running stage '(\w+)'", done.stdout) if stage in ("open", "merge")]
        assert ("open" in ran) == (must_open or force), done.stdout
        if "open" in ran and (done.returncode == 0 or ran[-1] != "open"):
            self.lock = self.lock._replace(opened=opened, base=tree(BASE))
        if done.returncode:
            if messages := re.findall(r"^error: (.*)$", done.stdout, re.MULTILINE):
                raise DatapoolError(messages[0])
            assert kill, done.stdout
            raise Killed
        depends = (self.lock.base, params.n, params.keep_history, params.pool)
        is_changed = (self.lock.merged, self.lock.pools) != ((depends, LINEAGE.read_bytes()), tree(POOLS))
        assert "merge" in ran or not is_changed, done.stdout
        self.lock = self.lock._replace(merged=(depends, LINEAGE.read_bytes()), pools=tree(POOLS))
        self.cache |= set(self.lock.pools.values())
        return ran

    def repro_force(self) -> list[str]:
        return self.repro(force=True)

    def repro_open(self) -> None:
        super().repro_open()
        _try("dvc", "repro", "--force", "--single-item", "open")

    def commit(self) -> None:
        super().commit()
        _run("git", "add", "--all")
        _run("git", "commit", "--quiet", "--allow-empty", "--message", "run")
        self.revisions.append(_run("git", "rev-parse", "HEAD").strip())

    def git_checkout(self, revision: Revision) -> None:
        _run("git", "checkout", "--quiet", self.revisions[self.commits.index(revision)])
        self.head, self._params, self.lock = revision, revision.params, revision.lock
        assert LINEAGE.read_bytes() == revision.lineage

    def git_checkout_files(self, *, also_lock: bool) -> None:
        _try("git", "checkout", "HEAD", "--", "datapools.json", *["dvc.lock"] * also_lock)
        lineage = LINEAGE.read_bytes()
        super().git_checkout_files(also_lock=also_lock)
        assert lineage == LINEAGE.read_bytes()

    def dvc_checkout(self, *, force: bool = True) -> None:
        _try("dvc", "checkout", *["--force"] * force)
        checked_out = tree(BASE), tree(POOLS)
        super().dvc_checkout(force=force)
        assert checked_out == (tree(BASE), tree(POOLS))

    def clone(self) -> None:
        super().clone()  # the cache of DVC stays, so `dvc pull` would have nothing to fetch


def write_params(folder: Path, params: Params) -> None:
    """Write the parameters of a run into params.yaml."""
    settings = {
        "input_dir": params.batch,
        "stopping_condition.n_samples": params.n + 1,  # params.yaml may not hold 0
        "stopping_condition.min_distance": 0.0,
        "datapool.name": params.pool,
        "datapool.keep_history": params.keep_history,
        "datapool.thumbnails": 0,
        "datapool.base_version": params.base_version,
        "datapool.replaces": droppable(params),
    }
    set_params(folder, settings)


def _try(*command: str, folder: Path = Path(), **variables: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(map(str, [template().parent / "killer", HERE, os.curdir])) if variables else ""
    environment = {**ENVIRONMENT, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", **variables}
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def _run(*command: str, folder: Path = Path()) -> str:
    done = _try(*command, folder=folder)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}"
    return done.stdout
