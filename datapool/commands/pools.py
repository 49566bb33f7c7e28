"""The commands about the pools on disk: check, repair, prune and show them."""

from pathlib import Path
from typing import Annotated

import typer

from datapool.commands.repro import alone, is_merged, record_pools
from datapool.terminal import print_facts, print_json, progress, say

app = typer.Typer()


@app.command(short_help="Check the pools against their records.")
def verify(
    name: Annotated[str | None, typer.Option("--name", help="The pool to check.", show_default="every pool")] = None,
    every: Annotated[bool, typer.Option("--all", help="Make again the checks that were made before, too.")] = False,
) -> None:
    """Check the pools of a workspace against datapools.json; run it in the workspace.

    Files must have the recorded hashes. Every pick must be as far from its nearest neighbor as recorded, with no earlier
    image nearer. The picks of a version must be at least its covering radius apart, which bounds what any choice could
    reach. If the output folder has the batch of the latest version, every candidate must be within that radius.

    All distances are computed again, without the code that made the choice. That takes a time that grows with the square of
    the number of images; so what was checked before is remembered in .datapool/verified, by the hashes of all that was read
    and of the code. Each check prints one line: pass, fail or skip. The exit code is 1 if a check failed.
    """
    from datapool.core.atomic import SCRATCH
    from datapool.core.errors import DatapoolError
    from datapool.core.lineage import LINEAGE
    from datapool.core.params import load_params
    from datapool.maintenance.memory import Memory
    from datapool.maintenance.verify import verify as checks_of
    from datapool.pool.agreement import known_pools

    params = load_params()
    pools, outcomes, n_before = Path(params.shared_dir), [], 0
    for pool in [name] if name else known_pools(pools, LINEAGE):
        with progress(f"pool {pool!r}") as report:
            memory = Memory(SCRATCH / "verified" / f"{pool}.json", recall=not every)
            for check in checks_of(pools, LINEAGE, pool, Path(params.output_dir), memory=memory, progress=report):
                before = "; checked before" * check.was_made_before
                say(f"{check.outcome}  pool {pool!r}, {check.name}: {check.sentence}{before}")
                outcomes.append(check.outcome)
                n_before += check.was_made_before
    if "fail" in outcomes:
        raise DatapoolError(
            f"{outcomes.count('fail')} of {len(outcomes)} checks failed; `datapool repair` repairs what needs no decision, "
            "backs up what a checkout would overwrite, and names the command that helps with the rest; `git log -p "
            "datapools.json` shows every change of the lineage"
        )
    before = f"; {n_before} of them were made before, from the same bytes: `datapool verify --all` makes them again"
    say(
        f"{len(outcomes)} checks, none failed{before * bool(n_before)}"
        if outcomes
        else "datapools.json has no pool yet"
    )


@app.command(short_help="Repair the pools after a crash or an accident.")
def repair(
    as_here: Annotated[
        bool,
        typer.Option("--as-here", help="Record the files as they are here, even if datapools.json has later versions."),
    ] = False,
    as_recorded: Annotated[
        bool,
        typer.Option(
            "--as-recorded", help="Make the version that datapools.json records from the files of a later one."
        ),
    ] = False,
) -> None:
    """Repair what needs no decision of yours in the pools of a workspace; run it in the workspace.

    A merge that was stopped is finished, or its pending files are removed; `dvc repro` does this too. Lost or damaged
    records and files of the history are written again. A pool whose files are gone is made again from a later version in
    DVC's cache. A pool or version that is missing in datapools.json is recorded
    there. For the rest, it names the command that helps, and the exit code is 1. Files that it replaces, or that a checkout
    would overwrite, are first copied to .datapool/backup.
    """
    from datapool.core.errors import DatapoolError
    from datapool.core.lineage import LINEAGE
    from datapool.core.params import load_params
    from datapool.maintenance.repair import repair as repairs_of
    from datapool.workspace.dvc_files import cache_folder

    unrepaired = total = 0
    if as_here and as_recorded:
        raise DatapoolError("--as-here and --as-recorded exclude each other; use one of them")
    try:
        cache = cache_folder(Path())
    except DatapoolError:  # no DVC repository
        cache = None
    pools = Path(load_params().shared_dir)
    for found in repairs_of(pools, LINEAGE, as_here=as_here, as_recorded=as_recorded, cache=cache):
        say(f"{'repaired' if found.is_repaired else 'not repaired'}  {found.sentence}")
        unrepaired, total = unrepaired + (not found.is_repaired), total + 1
    if unrepaired:
        raise DatapoolError(
            f"{unrepaired} of {total} things could not be repaired here; each line names the command that helps"
        )
    if not total:
        say("nothing to repair; `datapool verify` checks every row and distance")


@app.command(short_help="Delete files that a pool can do without.")
@alone
def prune(
    history: Annotated[
        bool, typer.Option("--history", help="Delete the files of earlier versions in history/ of each pool.")
    ] = False,
    name: Annotated[str | None, typer.Option("--name", help="The pool.", show_default="every pool")] = None,
) -> None:
    """Delete the history of pools; run it in the workspace.

    No version is lost: each is the beginning of datapool_latest.csv, and DVC keeps the deleted files in its cache and its
    remotes until `dvc gc`. params.yaml gets keep_history: false, so that the files do not come back.
    """
    from datapool.core.errors import DatapoolError
    from datapool.core.lineage import LINEAGE, read_lineage, unknown_pool
    from datapool.core.params import load_params
    from datapool.maintenance.prune import prune_history
    from datapool.workspace.params_file import set_params

    if not history:
        raise DatapoolError("say what to delete; `datapool prune --history` deletes the files of earlier versions")
    params = load_params()
    names = list(read_lineage(LINEAGE))
    if name and name not in names:
        raise unknown_pool(LINEAGE, name, names)
    was_merged = is_merged()
    for sentence in prune_history(Path(params.shared_dir), LINEAGE, [name] if name else names):
        say(sentence)
    if params.datapool.keep_history:
        set_params(Path(), {"datapool.keep_history": False})
        say("params.yaml: datapool.keep_history: false")
    if not was_merged:
        say("merge was not up to date before: run `dvc repro`")
        return
    record_pools()
    say("ran `dvc commit --force merge`; commit params.yaml and dvc.lock. DVC's cache keeps the files until `dvc gc`")


@app.command(short_help="Add the pictures that a pool lacks.")
@alone
def thumbnails(
    images: Annotated[
        str | None,
        typer.Option(
            "--images", help="A folder of images, perhaps in a store.", show_default="the input_dir of each version"
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The pool.", show_default="every pool")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was added as JSON.")] = False,
) -> None:
    """Add small pictures of images that a pool has none of; run it in the workspace.

    Each run keeps a picture of each image that it adds. This command makes those of versions that were made before there
    were any, or with datapool.thumbnails: 0. It reads the images where they were when their batch ran, or below --images,
    where they may have other names: they are recognized by their content. Then it runs `dvc commit --force merge`.
    """
    from datapool.core.errors import DatapoolError
    from datapool.core.lineage import LINEAGE, read_lineage, unknown_pool
    from datapool.core.params import load_params
    from datapool.images.objects import folder_of
    from datapool.maintenance.pictures import add_pictures

    params = load_params()
    if not params.datapool.thumbnails:
        raise DatapoolError(
            "params.yaml: datapool.thumbnails is 0, so pools keep no pictures; set it to 96, then run again"
        )
    names = list(read_lineage(LINEAGE))
    if name and name not in names:
        raise unknown_pool(LINEAGE, name, names)
    was_merged = is_merged()
    pools, wanted, ran = Path(params.shared_dir), [name] if name else names, []
    folder = folder_of(images) if images else None
    with progress("making pictures") as report:
        done = list(add_pictures(pools, LINEAGE, wanted, folder, max_pixels=params.images.max_pixels, progress=report))
    if was_merged and any(added.n for added in done):
        ran = [record_pools()]
    if as_json:
        facts = [{"pool": added.pool, "added": added.n, "not_found": added.n_left} for added in done]
        print_json({"pools": facts, "ran": ran})
        return
    say(*(sentence for added in done for sentence in added.sentences))
    if ran:
        say(f"ran `{ran[0]}`; `dvc repro` writes the report again; commit {LINEAGE} and dvc.lock")
    elif any(added.n for added in done):
        say("merge was not up to date before: run `dvc repro`")


@app.command(short_help="Show a version of a pool, or its csv.")
def show(
    version: Annotated[
        int | None, typer.Argument(help="Number of the version.", show_default="the latest one", metavar="[VERSION]")
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Its datapool_latest.csv, as it was then.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the csv to this file.", show_default="the terminal")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The pool.", show_default="datapool.name")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Its whole record in datapools.json, as it is there.")
    ] = False,
) -> None:
    """Show what is recorded of a version, or write its csv; run it in the workspace.

    datapool_latest.csv begins with the csv of every version, so each can be written without a copy in history/. Its
    sha256 must be the recorded one.
    """
    import shutil
    import sys

    from datapool.core.errors import DatapoolError
    from datapool.core.lineage import LINEAGE, read_entries
    from datapool.core.params import load_params
    from datapool.pool.show import find_version, open_csv
    from datapool.query.log import describe
    from datapool.workspace.states import first_with, history

    params = load_params()
    pool = name or params.datapool.name
    if output and not csv:
        raise DatapoolError("--output is for the csv of a version; add --csv")
    found = find_version(LINEAGE, pool, version)
    if as_json and csv:
        raise DatapoolError("--json and --csv exclude each other; use one of them")
    if as_json:
        print_json(found.model_dump())
        return
    if not csv:
        commit = first_with(history(str(LINEAGE)), pool, found)
        options = f"--name {pool}" if name else ""
        print_facts(describe(pool, read_entries(LINEAGE)[pool], found, commit, options=options))
        return
    with open_csv(Path(params.shared_dir), pool, found) as file:
        if output is None:
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            return
        part = output.with_name(f"{output.name}.part")  # beside it: output may be on another disk
        with part.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        part.replace(output)
    say(f"{output}: version {found.version} of pool {pool!r}, {found.rows} images")
