"""The commands about the workspace: make, update and check one, go back, measure the machine."""

from pathlib import Path
from typing import Annotated

import typer

import datapool
from datapool.commands.repro import alone
from datapool.terminal import print_json, say

app = typer.Typer()


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

    It has its own copy of the code, so a pool stays tied to the code that made it. It begins with a budget of 100 images per
    batch, near-copies left out: stopping_condition in params.yaml.
    """
    from datapool.core.errors import DatapoolError
    from datapool.workspace.create import BUDGET, Scm, make_workspace
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
    make_workspace(folder, scm=scm, remote=remote, settings=BUDGET)
    say(
        f"{folder} is a workspace; in it, `datapool add FOLDER` with a folder of images runs the pipeline. The images may "
        f"stay where they are, or lie in a folder of their own such as {folder / 'data/week_1'}",
        "of each batch it picks 100 images and no near-copies: stopping_condition in params.yaml",
    )


@app.command(short_help="Run the pipeline on real images.")
def demo(folder: Annotated[Path, typer.Argument(help="Where to make the workspace.")] = Path("demo")) -> None:
    """Make a workspace with real images, run the pipeline on two weeks of them and show the results.

    The images are the handwritten digits of scikit-learn. This needs no network and no account.
    """
    from datapool.workspace.demo import run_demo

    run_demo(folder, say)


@app.command(short_help="Go back to the version before.")
@alone
def undo() -> None:
    """Undo the last version, after its commit; run it in the workspace.

    It reverts the commit with `git revert`, runs `dvc checkout`, and prints both. Run again, it goes back one version more.
    It refuses while anything is not committed, or if later commits changed what the commit of the version did.
    """
    from datapool.workspace.undo import undo as undo_steps

    for sentence in undo_steps(Path()):
        say(sentence)


@app.command(short_help="Check the machine, git, DVC and the remote.")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Check what surrounds the pools; run it in the workspace. It changes nothing.

    Which versions and devices are here, and what do DVC's cache and the disk hold? Is everything committed, do the pools
    agree with datapools.json, is there a remote, and does it hold every state of the pools that git has? Otherwise a clone
    could not get some versions. The exit code is 1 if something is wrong.
    """
    from itertools import chain

    from datapool.core.errors import DatapoolError
    from datapool.core.lineage import LINEAGE
    from datapool.core.params import load_params
    from datapool.maintenance.verify import check_files
    from datapool.workspace.doctor import Finding, Outcome, examine, examine_machine

    outcomes: dict[str, Outcome] = {"pass": "ok", "skip": "note", "fail": "wrong"}
    pools = (
        Finding(outcomes[check.outcome], check.sentence)
        for check in check_files(Path(load_params().shared_dir), LINEAGE)
    )
    findings = []
    for finding in chain(examine_machine(Path()), pools, examine(Path())):
        findings.append(finding)
        if not as_json:
            say(f"{finding.outcome:5}  {finding.sentence}")
    if as_json:
        print_json([finding._asdict() for finding in findings])
    if any(finding.outcome == "wrong" for finding in findings):
        raise DatapoolError("something is wrong; the lines above name what helps")


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


@app.command(short_help="Fetch published weights: of a backbone, or of a model of `datapool find`.")
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A backbone by timm's name, such as vit_small_patch14_dinov2.lvd142m; or a model by open_clip's, such as "
            "ViT-B-32-256 or ViT-B-16-SigLIP, or its repository OWNER/NAME.",
            show_default=False,
        ),
    ],
    use: Annotated[
        bool, typer.Option("--use", help="Set params.yaml so that new pools begin with this backbone.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Fetch weights from a hub into weights/; run it in the workspace. No stage and no other command fetches anything.

    weights/NAME.json records the source and sha256, for git; the weights themselves are fetched again where they are
    missing, and must be the same. A name without a tag means the weights that timm takes by default, or the only ones of
    open_clip. HF_ENDPOINT, HF_HOME, HF_TOKEN and HTTPS_PROXY work as for other programs that use the hub.
    """
    from datapool.model.open_clip_models import is_text_model

    if is_text_model(name):
        _fetch_text_model(name, use=use, as_json=as_json)
    else:
        _fetch_backbone(name, use=use, as_json=as_json)


def _fetch_text_model(name: str, *, use: bool, as_json: bool) -> None:
    from datapool.core.errors import DatapoolError
    from datapool.core.params import load_params
    from datapool.model.hub import fetch_text_model

    if use:
        raise DatapoolError(f"{name} is a model of `datapool find`, and no backbone of a pool; leave out --use")
    load_params()  # refuses to begin outside of a workspace
    fetched = fetch_text_model(name)
    record = fetched.record
    if as_json:
        print_json({**record.model_dump(), "path": str(fetched.path)})
        return
    say(
        f"{fetched.path}: {fetched.n_bytes / 1e6:.1f} MB of {record.repository} at {record.revision[:12]}, which names its "
        "licence; commit weights/: git gets the record alone",
        '`datapool find "forklift at night"` searches by it',
    )


def _fetch_backbone(name: str, *, use: bool, as_json: bool) -> None:
    from datapool.core.params import load_params
    from datapool.model.hub import fetch_weights
    from datapool.workspace.params_file import set_params

    dimension = load_params().lightly.model.num_ftrs
    fetched = fetch_weights(name)
    record = fetched.record
    values = {
        "lightly.model.name": record.name,
        "lightly.model.layers": "auto",
        "lightly.model.num_ftrs": min(dimension, fetched.n_features),
        "lightly.model.pretrained": True,
        "lightly.model.weights": str(fetched.path),
        "lightly.collate.input_size": record.input_size,
    }
    if use:
        set_params(Path(), values)
    if as_json:
        print_json({**record.model_dump(), "path": str(fetched.path), "params": values, "set": use})
        return
    say(
        f"{fetched.path}: {fetched.n_bytes / 1e6:.1f} MB of {record.repository} at {record.revision[:12]}, licence "
        f"{record.licence or 'unknown'}, sha256 {record.sha256[:12]}...",
        f"{fetched.n_features} features of images of {record.input_size} pixels; commit weights/: git gets the record alone",
    )
    settings = ", ".join(f"{key}: {'true' if value is True else value}" for key, value in values.items())
    done = "params.yaml has now" if use else f"for a new pool set (`datapool fetch {record.name} --use` does it)"
    migrate = f"datapool migrate --model {record.name} --weights {fetched.path} --input-size {record.input_size}"
    say(f"{done} {settings}", f"`{migrate}` takes a pool there")
