"""The commands that take images out of pools, or replace a version by a corrected batch."""

from pathlib import Path
from typing import Annotated

import typer

from datapool.commands.repro import alone, repro
from datapool.terminal import say

app = typer.Typer()


@app.command(short_help="Take images out of every pool.")
@alone
def remove(
    images: Annotated[
        list[str], typer.Argument(help="Names in a pool, paths below input_dir, or content hashes.", show_default=False)
    ],
    reason: Annotated[str, typer.Option("--reason", help="Why, for exclude.txt and the lineage.")] = "",
) -> None:
    """Take images out of every version of every pool, and never pick them again; run it in the workspace.

    Adds the content hashes of the images to exclude.txt and runs `dvc repro`. No other images are picked in their place.
    Nothing is committed.
    """
    from datapool.core.params import load_params
    from datapool.pool.exclusion import shown
    from datapool.workspace import corrections

    params = load_params()
    path = corrections.list_of(params)
    found = corrections.find_images(params, images)
    for line in corrections.exclude(path, found, reason):
        say(f"{path}: {shown(line)}")
    repro()


@app.command(short_help="Take images out of every pool, and erase what is known of them.")
@alone
def forget(
    images: Annotated[
        list[str], typer.Argument(help="Names in a pool, paths below input_dir, or content hashes.", show_default=False)
    ],
) -> None:
    """Remove images as `datapool remove` does, and erase their names and embeddings; run it in the workspace.

    They are erased from the pools, the outputs and `.datapool`, backups included; exclude.txt keeps their content hashes.
    Prints the commands that erase them from DVC's cache, from remotes and from the history of git, which are yours. The exit
    code is 0 if nothing else in the workspace names them any more. It is 1 while the file of one is in input_dir, or an
    export or a file of yours names it, although the pools have lost it: delete that, and run this again.
    """
    import shlex

    from datapool.core.errors import DatapoolError, short_repr
    from datapool.core.params import load_params
    from datapool.workspace import corrections
    from datapool.workspace.commands import run_dvc

    params = load_params()
    path = corrections.list_of(params)
    found = corrections.find_images(params, images, must_exist=False)
    for name, image in zip(images, found, strict=True):
        if not image.is_known:
            say(f"no image of the pools or of the last batch is {short_repr(name)}; what names it is erased")
    hashes = [image.content for image in found if image.content]
    corrections.exclude(path, found, "forgotten")
    say(*(f"{path}: {content}" for content in hashes))
    open_again = ("repro", "--force", "--single-item", "open")  # takes the images out of the pools
    for arguments in (("repro", "scan"), open_again):
        say(f"dvc {' '.join(arguments)}")
        run_dvc(Path(), *arguments)
    corrections.forget_names(path, found)
    say(*corrections.erase(params, found))
    run_dvc(Path(), *open_again)
    repro()
    corrections.erase(params, found)
    say(
        "DVC's cache, remotes and the history of git may still hold them. These commands erase them there, with every "
        "earlier version of the outputs and pools:",
        '  git add --all && git commit --message "forget images"',
        "  dvc gc --workspace --force",
        "  dvc gc --workspace --cloud --force      # for each remote: --remote NAME",
        "  git log --oneline -S NAME               # lists commits that name it; `git filter-repo` rewrites them",
    )
    if left := corrections.still_named_in(params, found):
        raise DatapoolError(
            f"not all is erased yet, for these still name or hold the images: {', '.join(left[:10])}. Delete "
            f"their files from {params.input_dir}{_of_parts(left)}, exports that have them as a whole, and their names "
            f"from other files (those below {params.output_dir} follow), then run `datapool forget "
            f"{shlex.join(hashes or images)}` again"
        )


def _of_parts(files: list[str]) -> str:
    """Return what is to be known before one of these files is deleted, if one is a video or a shard."""
    from datapool.images.shards import SUFFIXES as SHARDS
    from datapool.images.videos import SUFFIXES as VIDEOS

    has_parts = any(Path(file).suffix.lower() in VIDEOS | SHARDS for file in files)
    return " (an image goes with its video or shard; the pool keeps the others that it has)" * has_parts


@app.command(short_help="Replace the version that an earlier state of this batch made.")
@alone
def redo() -> None:
    """Let the corrected batch replace the version that its earlier state made; run it in the workspace.

    Images that are still in the batch keep their places in the pool, under their new names and labels; those that are gone
    leave the pool; and the selection continues after them. If a parameter that decides the choice has changed as well,
    everything is chosen anew. Sets datapool.replaces in params.yaml and runs `dvc repro`. Nothing is committed.
    """
    from datapool.core.params import load_params
    from datapool.workspace import corrections
    from datapool.workspace.commands import run_dvc

    say("dvc repro scan")
    run_dvc(Path(), "repro", "scan")
    batch = corrections.set_replaces(load_params())
    say(f"params.yaml: datapool.replaces: '{batch}'")
    repro()
