"""The commands about what is known of images beside a pool: their splits, and the labels that come back from labeling."""

from pathlib import Path
from typing import Annotated

import typer

from datapool.commands.distances import NUMBER_OR_LEVEL, number_or_level
from datapool.export.options import Source
from datapool.terminal import print_json, print_table, progress, say

app = typer.Typer()


@app.command(short_help="Assign the images of a pool to train, val and test, once and for ever.")
def split(
    val: Annotated[float | None, typer.Option("--val", help="Share for validation.", show_default="split.val")] = None,
    test: Annotated[float | None, typer.Option("--test", help="Share for test.", show_default="split.test")] = None,
    distance: Annotated[
        str | None,
        typer.Option(
            "--distance",
            metavar=NUMBER_OR_LEVEL,
            help="Images closer than this stay together: a number, strict, near_copies or similar.",
            show_default="split.distance",
        ),
    ] = None,
    sequence_gap: Annotated[
        int | None,
        typer.Option(
            "--sequence-gap",
            help="Frames of a sequence stay together if their numbers are less than this apart.",
            show_default="split.sequence_gap",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The pool.", show_default="datapool.name")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write labels/POOL/splits.csv: which images are for training, validation and test; run it in the workspace.

    An image that has a split keeps it; run this again after each new version. Near-duplicates and frames of one sequence
    are in one split, so that a model is not tested on what it was trained on. Values that are given are kept in
    params.yaml. Every export has the splits. Commit the folder labels/ with git.
    """
    from datapool.core.errors import counted
    from datapool.core.label_files import require_labels_folder
    from datapool.core.lineage import LINEAGE
    from datapool.core.params import check_setting, load_params
    from datapool.export.splits import facts_of, sentences_about, split_pool
    from datapool.pool.show import find_version
    from datapool.workspace.params_file import set_params

    params = load_params()
    require_labels_folder(params)
    pool = name or params.datapool.name
    options = {"val": val, "test": test, "distance": number_or_level(distance), "sequence_gap": sequence_gap}
    given = {key: check_setting(f"split.{key}", value) for key, value in options.items() if value is not None}
    used = params.split.model_dump()
    settings = params.split.model_copy(update=given)
    version = find_version(LINEAGE, pool, None)
    with progress("comparing images") as report:
        path, assigned, links = split_pool(pool, version, settings, params, progress=report)
    changed = {f"split.{key}": options[key] for key, value in given.items() if used[key] != value}
    if changed:
        set_params(Path(), changed)
    facts = facts_of(assigned)
    if as_json:
        print_json({"pool": pool, "version": version.version, "file": str(path), "distance": links.distance, **facts})
        return
    n_images = counted(len(assigned.table), "image")
    say(
        *(
            f"params.yaml: {key}: {value if isinstance(value, str) else format(value, 'g')}"
            for key, value in changed.items()
        )
    )
    say(f"{path}: {n_images} of version {version.version} of pool {pool!r}, {assigned.n_new} new")
    print_table(
        ("split", "images", "share", "new", "groups"),
        [
            (each, str(part["images"]), f"{part['share']:.1%}", str(part["new"]), str(part["groups"]))
            for each, part in facts["splits"].items()
        ],
    )
    say(*sentences_about(assigned, links))


@app.command(short_help="Take back labels and refusals from labeling.")
def labels(
    file: Annotated[
        Path,
        typer.Argument(
            help="What Label Studio (JSON), CVAT (XML or COCO, zipped or not) or a spreadsheet (csv) wrote."
        ),
    ],
    format_: Annotated[
        Source | None, typer.Option("--format", help="What wrote the file.", show_default="found by its content")
    ] = None,
    refused_label: Annotated[
        list[str] | None,
        typer.Option(
            "--refused-label", help="A class that means: not this image. May be repeated.", show_default=False
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The pool.", show_default="datapool.name")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write the classes that people gave to images into labels/POOL/labels.csv; run it in the workspace.

    Images that were skipped in Label Studio, or have a --refused-label, are added to exclude.txt with their reason; the
    next `dvc repro` takes them out of the pools. Images are found by the content hash that an export has, else by their
    path, else by their name alone if one image has it. Commit the folder labels/ and exclude.txt with git.
    """
    from datapool.core.errors import counted
    from datapool.core.label_files import labels_file, read_labels, require_labels_folder, write_label_file
    from datapool.core.lineage import LINEAGE
    from datapool.core.params import load_params
    from datapool.export.labels import facts_of, sentences_about, take_back
    from datapool.export.returned import read_returned
    from datapool.pool.files import read_samples
    from datapool.pool.show import find_version
    from datapool.workspace import corrections

    params = load_params()
    require_labels_folder(params)
    pool = name or params.datapool.name
    version = find_version(LINEAGE, pool, None)
    path = labels_file(pool)
    taken = take_back(
        read_returned(file, format_),
        read_samples(Path(params.shared_dir) / pool, version),
        read_labels(path),
        source=file.name,
        refused_labels=refused_label or [],
    )
    if taken.refused:
        listed = corrections.list_of(params)
        found = corrections.find_images(params, [image.content_hash or image.filename for image in taken.refused])
        reasons = [image.reason for image in taken.refused]
        for reason in dict.fromkeys(reasons):
            images = [image for image, why in zip(found, reasons, strict=True) if why == reason]
            corrections.exclude(listed, images, reason)
    if len(taken.table) or path.exists():
        write_label_file(path, taken.table)
    if as_json:
        print_json({"pool": pool, "version": version.version, "file": str(path), **facts_of(taken)})
        return
    say(f"{path}: labels of {counted(taken.n_labeled, 'image')} of pool {pool!r} from {file}")
    say(*(f"  {label}: {n}" for label, n in facts_of(taken)["classes"].items()))
    say(*sentences_about(taken))
    if taken.refused:
        say(f"they are in {params.rules.exclude}, and `dvc repro` takes them out of the pools")
