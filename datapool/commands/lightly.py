"""The commands for users of Lightly's Docker: take over a pool, run a batch with its arguments."""

from pathlib import Path
from typing import Annotated

import typer

from datapool.commands.repro import alone
from datapool.terminal import say

app = typer.Typer()


@app.command("import", short_help="Take over a pool that Lightly's Docker made.")
@alone
def import_pool(
    folder: Annotated[
        Path, typer.Argument(help="The pool of Lightly's Docker: a folder with datapool_latest.csv. It is not changed.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the new pool.", show_default="that of the folder")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="The folder of the images: the file names in the csv are paths below it."),
    ] = None,
    input_size: Annotated[
        int | None,
        typer.Option(
            help="Value of lightly.collate.input_size in its runs.", min=8, max=2048, show_default="detected, or 64"
        ),
    ] = None,
) -> None:
    """Take over a pool that Lightly's Docker made; run it in the workspace.

    Its images become version 1 of a new pool, with the same embeddings in the same order, and params.yaml is set so that
    the next `dvc repro` continues with it. With --images, the images that still exist are recognized by their content
    from now on, and the checkpoint is checked: some images are embedded and must get the embeddings of the csv.
    """
    from datapool.core.lineage import LINEAGE
    from datapool.core.params import load_params
    from datapool.lightly_docker import import_pool as lightly_pool
    from datapool.workspace.params_file import set_params

    pool, params = name or folder.resolve().name, load_params()
    imported = lightly_pool.import_pool(
        folder,
        Path(params.shared_dir),
        LINEAGE,
        pool,
        images=images,
        input_size=input_size,
        max_pixels=params.images.max_pixels,
        thumbnails=bool(params.datapool.thumbnails),
    )
    for note in imported.notes:
        say(note)
    values = {"datapool.name": pool, **imported.params}
    set_params(Path(), values)
    say(f"params.yaml: {', '.join(f'{key}: {value}' for key, value in values.items())}")


@app.command(short_help="Run a batch with key=value overrides, as Lightly's Docker did.")
def run(
    input_dir: Annotated[Path | None, typer.Option(help="The batch: a folder of images.", show_default=False)] = None,
    shared_dir: Annotated[
        Path | None, typer.Option(help="The workspace; it is made if the folder is not one yet.", show_default=False)
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for the results, in DATE/TIME/.", show_default="results stay in the workspace"),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(help="Overrides of params.yaml, such as stopping_condition.min_distance=0.1.")
    ] = None,
) -> None:
    """Pick from a folder of images, add the picks to the pool of a workspace, and write the results to another folder.

    These are the arguments of Lightly's Docker, without Docker: each key=value overrides a key of params.yaml for this run.
    The run ends with a git commit in the workspace, so `git log` and `dvc exp show` list all runs. sanity_check=True only
    checks versions, devices and folders; run_directory=NAME names the folder of the results.
    """
    import os

    from datapool.core.errors import DatapoolError
    from datapool.lightly_docker import overrides, sanity
    from datapool.lightly_docker import run as docker_run

    given = overrides.parse(settings or [])
    if given.sanity_check:
        found = list(sanity.check({"input": input_dir, "shared": shared_dir, "output": output_dir}))
        for is_ok, sentence in found:
            say(f"{'ok   ' if is_ok else 'wrong'}  {sentence}")
        if not all(is_ok for is_ok, _ in found):
            raise DatapoolError("a run would fail; correct what is marked as wrong above")
        return
    if input_dir is None or shared_dir is None:
        what, option, mount = ("input", "--input-dir", ":ro") if input_dir is None else ("shared", "--shared-dir", "")
        raise DatapoolError(
            f"the {what} folder is missing; add {option} FOLDER to `datapool run`, or -v FOLDER:/home/{what}_dir{mount} to "
            "a container"
        )
    input_dir, output_dir = input_dir.absolute(), output_dir.absolute() if output_dir else None
    docker_run.require_folders(input_dir, shared_dir, output_dir)
    os.chdir(shared_dir)
    raise typer.Exit(docker_run.run(given, input_dir, output_dir, say))
