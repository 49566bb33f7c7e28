"""The command that brings two pools together."""

import json
from pathlib import Path
from typing import Annotated

import typer

from datapool.terminal import print_json, progress, say

app = typer.Typer()


@app.command(short_help="Add the images of another pool or branch.")
def combine(
    source: Annotated[
        str,
        typer.Argument(
            help="A pool of this workspace, a git revision such as a branch, or a folder: another workspace, or a pool.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="The pool that gets the images.", show_default="datapool.name")
    ] = None,
    other: Annotated[
        str | None,
        typer.Option("--from", help="The other pool's name.", show_default="the same name, or the only pool there"),
    ] = None,
    prefix: Annotated[
        str, typer.Option("--prefix", help="Put before the other pool's filenames, where they clash with ours.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
) -> None:
    """Offer the images of another pool to ours, and add those that ours does not cover; run it in the workspace.

    Each version of the other pool is offered as a batch, in its order, with stopping_condition.min_distance as params.yaml
    has it. What ours has already is no change, so it may be run again. Both must be of one embedding space. A git revision's
    pool is read from DVC's cache, without a checkout. After a git merge with a conflict in datapools.json this is the way
    out: keep our files, then combine the other branch. Nothing is committed in git.
    """
    from datapool.core.lineage import LINEAGE
    from datapool.core.outputs import Outputs
    from datapool.core.params import load_params
    from datapool.migration.combine import combine as combine_pools
    from datapool.migration.combine import describe_versions, protected_images
    from datapool.migration.source import other_pool

    params = load_params()
    pool, pools = name or params.datapool.name, Path(params.shared_dir)
    is_merged = _is_merged()
    with (
        other_pool(source, name=pool, other=other, workspace=Path(), pools=pools, lineage_file=LINEAGE) as found,
        progress("choosing") as report,
    ):
        combined = combine_pools(
            found,
            pools,
            LINEAGE,
            pool,
            params,
            protected=protected_images(params, Outputs(params.output_dir)),
            prefix=prefix,
            progress=report,
        )
    n_added = sum(each.added for each in combined.versions)
    lines = [f"{source}, pool {found.name!r}: {line}" for line in describe_versions(combined.versions)]
    lines += [*combined.notes, f"pool {pool!r}: {n_added} images added, {combined.n_images} in all"]
    ran, todo = _record(is_merged) if n_added else ([], "")
    if as_json:
        document = {
            "pool": pool,
            "source": source,
            "from": found.name,
            "commit": found.commit,
            "added": n_added,
            "images": combined.n_images,
            "versions": [each._asdict() for each in combined.versions],
            "notes": combined.notes,
            "ran": ran,
            "todo": todo,
        }
        print_json(document)
        return
    say(*lines, *ran, *([todo] if todo else []))


def _is_merged() -> bool:
    """Return whether DVC has the pools as its stage merge left them."""
    from datapool.workspace.commands import run_dvc

    return not json.loads(run_dvc(Path(), "status", "--json", "merge"))


def _record(is_merged: bool) -> tuple[list[str], str]:
    """Let DVC record the changed pools, and write the report again; return the commands, and what is left to the user."""
    from datapool.workspace.commands import run_dvc

    if not is_merged:
        return [], (
            "merge was not up to date before, so DVC does not have this yet: run `dvc repro --force --single-item open`, "
            "then `dvc repro`, and commit"
        )
    commands = (("commit", "--force", "--quiet", "merge"), ("repro", "--quiet", "--single-item", "report"))
    for arguments in commands:
        run_dvc(Path(), *arguments)
    ran = [f"dvc {' '.join(arguments)}" for arguments in commands]
    return ran, "commit datapools.json and dvc.lock in git, then `dvc push`"
