"""The commands that hand the images of a pool over to labeling and training."""

from pathlib import Path
from typing import Annotated

import typer

from datapool.export.options import Format, Placement
from datapool.terminal import print_json, progress, say

app = typer.Typer()


@app.command(short_help="Write images of a pool for labeling and training tools.")
def export(
    to: Annotated[Format, typer.Option("--to", help="The format, by the program that reads it.", show_default=False)],
    new: Annotated[bool, typer.Option("--new", help="The images that the latest version added.")] = False,
    version: Annotated[
        int | None, typer.Option("--version", help="The images that this version added.", show_default=False)
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All images of the pool; with --version, all that it had then.")
    ] = False,
    left_out: Annotated[
        bool,
        typer.Option("--left-out", help="Add the images of the latest batch that were not picked, with their fate."),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="The folder or file to write.", show_default="below exports/")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    files: Annotated[
        Placement | None,
        typer.Option("--files", help="How image files get there; none: name where they are.", show_default="copy"),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images", help="Look for images here first, or in a store; may be repeated.", show_default="input_dir"
        ),
    ] = None,
    url_prefix: Annotated[
        str, typer.Option("--url-prefix", help="label-studio: what stands before the names of images in its tasks.")
    ] = "",
    name: Annotated[str | None, typer.Option("--name", help="The pool.", show_default="datapool.name")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write images of a pool in the form that another program reads; run it in the workspace.

    The image files are looked for where their batch was, and must have the recorded content. If one is missing or has
    changed, nothing is written. Each folder has datapool.csv, which says of every image why it was picked; its names and
    content hashes find the images again when the labels come back.
    """
    from datapool.core.errors import DatapoolError, counted
    from datapool.core.lineage import LINEAGE
    from datapool.core.outputs import Outputs
    from datapool.core.params import load_params
    from datapool.export.choice import choose
    from datapool.export.export import write_export
    from datapool.export.left_out import with_left_out
    from datapool.images.objects import folder_of
    from datapool.workspace.week import waiting

    if sum((new, version is not None, everything)) == 0:
        raise DatapoolError("say which images: --new, --version NUMBER or --all")
    if new and (version is not None or everything):
        raise DatapoolError("--new excludes --version and --all; use one of them")
    params = load_params()
    pool = name or params.datapool.name
    chosen = choose(Path(params.shared_dir), LINEAGE, pool, version, is_whole=everything)
    if left_out:
        chosen = with_left_out(chosen, Outputs(params.output_dir))
    with progress("exporting") as report:
        exported = write_export(
            chosen,
            to=to,
            output=output,
            overwrite=overwrite,
            files=files,
            folders=[folder_of(each) for each in images or []],
            url_prefix=url_prefix,
            max_pixels=params.images.max_pixels,
            progress=report,
        )
    notes = list(exported.notes)
    if (waits := waiting().get(pool)) and waits.version == chosen.version.version:
        notes.append(
            f"version {waits.version} is not committed yet: `datapool keep` commits it, and may take images out"
        )
    if as_json:
        facts = {
            "output": str(exported.output),
            "format": to.value,
            "pool": chosen.pool,
            "version": chosen.version.version,
            "all": chosen.is_whole,
            "images": exported.n_images,
            "left_out": chosen.n_left_out,
            "notes": notes,
        }
        print_json(facts)
        return
    say(f"{exported.output}: {counted(exported.n_images, 'image')}, {chosen}", *notes)
