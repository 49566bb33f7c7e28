"""The commands of ``datapool``, from ``init`` to ``prune``. ``dvc`` runs the pipeline."""

import json
from pathlib import Path
from typing import Annotated

import typer

import datapool
from datapool.terminal import progress, run_app, say

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Pick the images of a batch that differ most from those already chosen, and keep them in a growing pool. `datapool "
    "init` makes a workspace with git and DVC. In it, `dvc repro` runs the pipeline with the settings of params.yaml, "
    "`datapool verify` checks the pools against their records, `datapool repair` repairs them, and `datapool import` takes "
    "over a pool of Lightly's Docker.",
)


@app.command(short_help="Make a workspace, or update one.")
def init(
    folder: Annotated[Path, typer.Argument(help="The workspace.", show_default="the current folder")] = Path(),
    update: Annotated[
        bool, typer.Option("--update", help="Bring the code of this release into an existing workspace.")
    ] = False,
    subdir: Annotated[bool, typer.Option("--subdir", help="Use the git repository around the folder.")] = False,
    no_git: Annotated[bool, typer.Option("--no-git", help="Use no git; `dvc exp` does not work then.")] = False,
    remote: Annotated[
        str | None, typer.Option(help="Where `dvc push` shares the pools, such as a folder or s3://bucket/path.")
    ] = None,
) -> None:
    """Make a workspace: a folder with its own git and DVC in which `dvc repro` works.

    It has its own copy of the code, so a pool stays tied to the code that made it.
    """
    from datapool.core.errors import DatapoolError
    from datapool.workspace.create import Scm, make_workspace
    from datapool.workspace.update import update_workspace

    if update + subdir + no_git > 1:
        raise DatapoolError("--update, --subdir and --no-git exclude each other; use one of them")
    if update and remote:
        raise DatapoolError(
            "--remote is for a new workspace; in an existing one run `dvc remote add --default store URL`"
        )
    if update:
        added, notes = update_workspace(folder)
        say(
            f"{folder} has the code of datapool {datapool.__version__}; new in params.yaml: {', '.join(added) or 'nothing'}",
            *notes,
        )
        return
    scm = Scm.SURROUNDING if subdir else Scm.NONE if no_git else Scm.OWN
    make_workspace(folder, scm=scm, remote=remote)
    say(
        f"{folder} is a workspace. Put images into a folder of their own, such as {folder / 'data/week_1'}, and name it in "
        f"{folder / 'params.yaml'} (input_dir: data/week_1); then run `dvc repro` in {folder}"
    )


@app.command(short_help="Run the pipeline on real images.")
def demo(folder: Annotated[Path, typer.Argument(help="Where to make the workspace.")] = Path("demo")) -> None:
    """Make a workspace with real images, run the pipeline on two weeks of them and show the results.

    The images are the handwritten digits of scikit-learn. This needs no network and no account.
    """
    from datapool.workspace.demo import run_demo

    run_demo(folder, say)


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


@app.command("import", short_help="Take over a pool that Lightly's Docker made.")
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
    )
    for note in imported.notes:
        say(note)
    values = {"datapool.name": pool, **imported.params}
    set_params(Path(), values)
    say(f"params.yaml: {', '.join(f'{key}: {value}' for key, value in values.items())}")


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


@app.command(short_help="Go back to the version before.")
def undo() -> None:
    """Undo the last version, after its commit; run it in the workspace.

    It reverts the commit with `git revert`, runs `dvc checkout`, and prints both. Run again, it goes back one version more.
    It refuses while anything is not committed, or if later commits changed what the commit of the version did.
    """
    from datapool.workspace.undo import undo as undo_steps

    for sentence in undo_steps(Path()):
        say(sentence)


@app.command(short_help="Check git, DVC and the remote.")
def doctor() -> None:
    """Check what surrounds the pools; run it in the workspace. It changes nothing.

    Is everything committed, do the pools agree with datapools.json, is there a remote, and does it hold every state of the
    pools that git has? Otherwise a clone could not get some versions. The exit code is 1 if something is wrong.
    """
    from datapool.core.errors import DatapoolError
    from datapool.core.lineage import LINEAGE
    from datapool.core.params import load_params
    from datapool.maintenance.verify import check_files
    from datapool.workspace.doctor import examine

    outcomes = []
    for check in check_files(Path(load_params().shared_dir), LINEAGE):
        outcome = {"pass": "ok", "skip": "note", "fail": "wrong"}[check.outcome]
        say(f"{outcome:5}  {check.sentence}")
        outcomes.append(outcome)
    for finding in examine(Path()):
        say(f"{finding.outcome:5}  {finding.sentence}")
        outcomes.append(finding.outcome)
    if "wrong" in outcomes:
        raise DatapoolError("something is wrong; the lines above name what helps")


@app.command(short_help="Delete files that a pool can do without.")
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
    from datapool.core.lineage import LINEAGE, read_lineage
    from datapool.core.params import load_params
    from datapool.maintenance.prune import prune_history
    from datapool.workspace.commands import run_dvc
    from datapool.workspace.params_file import set_params

    if not history:
        raise DatapoolError("say what to delete; `datapool prune --history` deletes the files of earlier versions")
    params = load_params()
    names = list(read_lineage(LINEAGE))
    if name and name not in names:
        raise DatapoolError(f"{LINEAGE} lists no pool {name!r}; it lists {', '.join(map(repr, names)) or 'none'}")
    is_merged = not json.loads(run_dvc(Path(), "status", "--json", "merge"))
    for sentence in prune_history(Path(params.shared_dir), LINEAGE, [name] if name else names):
        say(sentence)
    if params.datapool.keep_history:
        set_params(Path(), {"datapool.keep_history": False})
        say("params.yaml: datapool.keep_history: false")
    if not is_merged:
        say("merge was not up to date before: run `dvc repro`")
        return
    run_dvc(Path(), "commit", "--force", "--quiet", "merge")
    say("ran `dvc commit --force merge`; commit params.yaml and dvc.lock. DVC's cache keeps the files until `dvc gc`")


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
) -> None:
    """Show what datapools.json records of a version, or write its csv; run it in the workspace.

    datapool_latest.csv begins with the csv of every version, so each can be written without a copy in history/. Its
    sha256 must be the recorded one.
    """
    import shutil
    import sys

    from datapool.core.errors import DatapoolError
    from datapool.core.lineage import LINEAGE
    from datapool.core.params import load_params
    from datapool.core.tables import json_text
    from datapool.pool.show import find_version, open_csv

    params = load_params()
    pool = name or params.datapool.name
    if output and not csv:
        raise DatapoolError("--output is for the csv of a version; add --csv")
    found = find_version(LINEAGE, pool, version)
    if not csv:
        say(*json_text(found.model_dump()).decode().splitlines())
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


@app.command(short_help="Take images out of every pool.")
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
    from datapool.workspace import corrections

    params = load_params()
    path = corrections.list_of(params)
    found = corrections.find_images(params, images)
    for line in corrections.exclude(path, found, reason):
        say(f"{path}: {line.strip()}")
    _repro()


@app.command(short_help="Take images out of every pool, and erase what is known of them.")
def forget(
    images: Annotated[
        list[str], typer.Argument(help="Names in a pool, paths below input_dir, or content hashes.", show_default=False)
    ],
) -> None:
    """Remove images as `datapool remove` does, and erase their names and embeddings; run it in the workspace.

    They are erased from the pools, the outputs and `.datapool`, backups included; exclude.txt keeps their content hashes.
    Prints the commands that erase them from DVC's cache, from remotes and from the history of git, which are yours. If the
    file of an image is still in input_dir, or a file of yours names it, the exit code is 1: delete it, and run this again.
    """
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
    _repro()
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
            f"their files from {params.input_dir}, and their names from files of yours (those below {params.output_dir} "
            f"follow), then run `datapool forget {' '.join(hashes or images)}` again"
        )


@app.command(short_help="Replace the version that an earlier state of this batch made.")
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
    _repro()


def _repro(*arguments: str) -> None:
    """Run `dvc repro` and print its lines.

    Raises:
        DatapoolError: If it fails.
    """
    from datapool.core.errors import DatapoolError
    from datapool.workspace.repro import run_repro

    command = " ".join(["dvc repro", *arguments])
    say(command)
    if run_repro(say, *arguments):
        raise DatapoolError(f"`{command}` failed; correct what its lines above name, then run `dvc repro`")


@app.command(short_help="Measure what images cost on this machine.")
def bench(
    images: Annotated[
        Path | None, typer.Option("--images", help="A folder of your images to measure as well.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Measure how fast this machine scans, embeds and ranks images, and say what to change.

    The stages run as they do in `dvc repro`, in a temporary folder, on photos of 2 megapixels made up for it and on up to
    198 images of --images. In a workspace, the model, the reading of images and the loader of its params.yaml are used. No
    pool is read or changed. It takes less than a minute on an idle machine with two cores.
    """
    from datapool.workspace.bench import bench as measure

    found = measure(images, Path(), report=lambda step: None if as_json else say(f"measuring: {step}"))
    if as_json:
        typer.echo(found.as_json())
    else:
        say(*found.as_text())


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


def version(is_requested: bool) -> None:
    """Print the version and exit."""
    if is_requested:
        say(f"datapool {datapool.__version__}")
        raise typer.Exit


@app.callback()
def common(
    _: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options of every command."""


def main() -> None:
    """Entry point of the ``datapool`` program."""
    run_app(app)
