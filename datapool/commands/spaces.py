"""The commands that bring two pools together, or a pool into another embedding space."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from datapool.commands.repro import alone, is_merged, record_pools
from datapool.terminal import print_json, progress, say

if TYPE_CHECKING:
    from datapool.migration.migrate import Migration

app = typer.Typer()


@app.command(short_help="Add the images of another pool or branch.")
@alone
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
    from datapool.core.errors import counted
    from datapool.core.lineage import LINEAGE
    from datapool.core.outputs import Outputs
    from datapool.core.params import load_params
    from datapool.migration.combine import combine as combine_pools
    from datapool.migration.combine import describe_versions, protected_images
    from datapool.migration.source import other_pool

    params = load_params()
    pool, pools = name or params.datapool.name, Path(params.shared_dir)
    was_merged = is_merged()
    with (
        other_pool(source, name=pool, other=other, pools=pools, lineage_file=LINEAGE) as found,
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
    lines += [*combined.notes, f"pool {pool!r}: {counted(n_added, 'image')} added, {combined.n_images} in all"]
    ran, todo = _record(was_merged) if n_added else ([], "")
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


@app.command(short_help="Embed a pool by another model.")
@alone
def migrate(
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="The new model: a checkpoint of datapool.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The new backbone, with pretrained weights.", show_default="lightly.model.name"),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="A file with the backbone's weights.", show_default=False)
    ] = None,
    dimension: Annotated[
        int | None, typer.Option(help="Of the new embeddings.", min=1, show_default="lightly.model.num_ftrs")
    ] = None,
    input_size: Annotated[
        int | None,
        typer.Option(help="Side of the images for the model.", min=8, show_default="lightly.collate.input_size"),
    ] = None,
    pool: Annotated[str | None, typer.Option("--pool", help="The pool.", show_default="datapool.name")] = None,
    name: Annotated[str | None, typer.Option("--name", help="The new pool.", show_default="NAME_2, NAME_3, …")] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images", help="A folder with images of the pool, or a store's URL; may be repeated.", show_default=False
        ),
    ] = None,
    drop_missing: Annotated[bool, typer.Option("--drop-missing", help="Leave out images that are not found.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Print what it would do; change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
) -> None:
    """Embed the images of a pool by another model, as a new pool; run it in the workspace.

    The new pool has the same versions and images in the same order; the old one stays as it is. The images are read from the
    folders of their batches, or from --images. Prints how many nearest neighbors are the same in both spaces, which
    min_distance corresponds to the present one, and which images are redundant with it. Then params.yaml is set so that the
    next `dvc repro` continues with the new pool. Nothing is committed in git.
    """
    from datapool.core.errors import DatapoolError
    from datapool.core.lineage import LINEAGE, read_entries
    from datapool.core.params import load_params
    from datapool.images.objects import folder_of
    from datapool.migration.migrate import describe_migration, new_pool_name
    from datapool.migration.migrate import migrate as migrate_pool
    from datapool.migration.reembed import NewModel
    from datapool.workspace.params_file import set_params

    wanted = NewModel(checkpoint, model, weights, dimension, input_size)
    if wanted == NewModel():
        raise DatapoolError("name the new model: --checkpoint, --model, --weights, --dimension or --input-size")
    if checkpoint and wanted != NewModel(checkpoint):
        raise DatapoolError(
            "--checkpoint has the model whole; leave out --model, --weights, --dimension and --input-size"
        )
    params = load_params()
    old = pool or params.datapool.name
    new = name or new_pool_name(old, read_entries(LINEAGE))
    was_merged = check or is_merged()
    migration = migrate_pool(
        Path(params.shared_dir),
        LINEAGE,
        old,
        new,
        wanted,
        params,
        folders=[folder_of(each) for each in images or []],
        drop_missing=drop_missing,
        check_only=check,
        bar=progress,
    )
    ran, todo = [], ""
    if not check:
        if was_merged:
            ran.append(record_pools())
        set_params(Path(), migration.params)
        todo = (
            "commit params.yaml, datapools.json and dvc.lock, then `dvc push`; the next `dvc repro` uses the new pool"
        )
        if not was_merged:
            todo = "merge was not up to date before: run `dvc repro`, which uses the new pool, and commit"
    if as_json:
        print_json(
            _migration_facts(migration, old, params.stopping_condition.min_distance) | {"ran": ran, "todo": todo}
        )
        return
    would = "would be " if check else ""
    settings = ", ".join(f"{key}: {'null' if value is None else value}" for key, value in migration.params.items())
    say(*migration.notes, *describe_migration(migration, old, params, is_made=not check), *ran)
    say(f"params.yaml {would}set: {settings}", *([todo] if todo else ["nothing was changed (--check)"]))


def _migration_facts(migration: "Migration", old: str, min_distance: float | str) -> dict[str, object]:
    """Return the JSON document of a migration."""
    comparison = migration.comparison
    return {
        "from": old,
        "pool": migration.pool,
        "embedding_space": migration.space.model_dump(),
        "embedding_space_before": migration.before.model_dump(),
        "images": migration.images,
        "dropped": migration.dropped,
        "neighbor_agreement": comparison.neighbor_agreement if comparison else None,
        "neighbors": comparison.n_neighbors if comparison else None,
        "min_distance_before": min_distance,
        "min_distance": migration.min_distance,
        "calibrated_by": migration.calibrated_by,
        "redundant": [each._asdict() for each in migration.redundant],
        "params": migration.params,
        "notes": migration.notes,
    }


def _record(was_merged: bool) -> tuple[list[str], str]:
    """Let DVC record the changed pools, and write the report again; return the commands, and what is left to the user."""
    from datapool.workspace.commands import run_dvc

    if not was_merged:
        return [], (
            "merge was not up to date before, so DVC does not have this yet: run `dvc repro --force --single-item open`, "
            "then `dvc repro`, and commit"
        )
    ran, report = [record_pools()], ("repro", "--quiet", "--single-item", "report")
    run_dvc(Path(), *report)
    ran.append(f"dvc {' '.join(report)}")
    return ran, "commit datapools.json and dvc.lock in git, then `dvc push`"
