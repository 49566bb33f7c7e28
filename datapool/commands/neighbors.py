"""The commands about what is near: the nearest images of an image or of words, near-duplicates, other min_distances."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from datapool.commands.distances import NUMBER_OR_LEVEL, number_or_level
from datapool.terminal import print_json, print_table, progress, say

if TYPE_CHECKING:
    from datapool.query.neighbors import Neighbor

app = typer.Typer()

Json = Annotated[bool, typer.Option("--json", help="Print a JSON document.")]


@app.command(short_help="Find the nearest images of an image or a folder.")
def near(
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE|FOLDER",
            help="A file, a folder, or an image of the pool or the last batch by name or content hash.",
            show_default=False,
        ),
    ],
    k: Annotated[
        int | None,
        typer.Option("-k", min=1, help="How many of each.", show_default="10; of each image of a folder 1"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the nearest images in the pool and the last batch; run it in the workspace. It changes nothing.

    An image that the pool or the last batch has keeps its embedding. Any other image file is embedded by the pool's model.
    Distances are those of the selection, without weak labels.
    """
    from datapool.core.errors import counted
    from datapool.core.params import load_params
    from datapool.query.neighbors import near as find

    with progress("embedding") as report:
        found = find(load_params(), image, k=k, progress=report)
    if as_json:
        print_json(
            {
                "pool": found.pool,
                "images": [
                    {
                        "image": each.image,
                        "known_as": each.known_as and _as_json(each.known_as),
                        "nearest": [_as_json(neighbor) for neighbor in each.nearest],
                    }
                    for each in found.images
                ],
                "damaged": [{"image": name, "reason": reason} for name, reason in found.damaged],
            }
        )
        return
    if len(found.images) == 1:
        (only,) = found.images
        known = only.known_as
        name = "" if known is None or known.filename == only.image else f" as {known.filename}"
        say(f"{only.image}: {f'{known.where}{name}' if known else 'new, embedded now'}")
        print_table(
            ("distance", "nearest", "label", "where"),
            [(f"{each.distance:.4g}", each.filename, each.weak_label, each.where) for each in only.nearest],
        )
    else:
        print_table(
            ("image", "is", "distance", "nearest", "label", "where"),
            [
                (
                    each.image,
                    each.known_as.where if each.known_as else "new",
                    f"{neighbor.distance:.4g}",
                    neighbor.filename,
                    neighbor.weak_label,
                    neighbor.where,
                )
                for each in found.images
                for neighbor in each.nearest
            ],
        )
    if found.damaged:
        say(f"{counted(len(found.damaged), 'image')} cannot be read: {found.damaged[0][0]} {found.damaged[0][1]}")


@app.command("find", short_help="Find the images that words describe.")
def find_by_words(
    text: Annotated[
        list[str],
        typer.Argument(
            help='What to look for, such as "forklift at night". Several texts count alike.', show_default=False
        ),
    ],
    unwanted: Annotated[
        list[str] | None, typer.Option("--not", help="What not to look for; may be repeated.", show_default=False)
    ] = None,
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="How many images.")] = 10,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="One of several fetched models; or of which model --weights is.", show_default=False
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FOLDER|FILE",
            help="A model that was not fetched: a folder of open_clip, or a file of weights of --model.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the images of the pool and the last batch that words describe, by a CLIP model; run it in the workspace.

    `datapool fetch ViT-B-32-256` gets such a model once; this command downloads nothing. Images are embedded when they are
    first searched, which takes a while, and kept in .datapool for the next search. Similarity is the cosine of text and
    picture: it orders the images of one search, and says little by itself.
    """
    from datapool.core.errors import counted
    from datapool.core.params import load_params
    from datapool.query.find import find

    with progress("embedding", before="loading the model") as report:
        found = find(load_params(), text, unwanted=unwanted or [], n=n, model=model, weights=weights, progress=report)
    if as_json:
        print_json(
            {
                "pool": found.pool,
                "model": found.model,
                "searched": found.searched,
                "small_pictures": found.small,
                "not_searched": found.not_searched,
                "images": [
                    {
                        "filename": hit.filename,
                        "version": hit.version or None,
                        "weak_label": hit.weak_label,
                        "similarity": hit.similarity,
                        "small_picture": hit.is_small,
                    }
                    for hit in found.hits
                ],
            }
        )
        return
    print_table(
        ("rank", "similarity", "image", "label", "where"),
        [
            (str(rank), f"{hit.similarity:.4g}", hit.filename, hit.weak_label, hit.where)
            for rank, hit in enumerate(found.hits, start=1)
        ],
    )
    say(f"{counted(found.searched, 'image')} searched by {found.model}")
    if found.small:
        say(f"{found.small} of them by their small pictures in the pool, because their files are gone")
    if found.not_searched:
        say(
            f"{counted(len(found.not_searched), 'image')} not searched, without file or picture: {found.not_searched[0]}"
        )


@app.command(short_help="List groups of near-duplicates.")
def duplicates(
    pool: Annotated[bool, typer.Option("--pool", help="Only among the images of the pool.")] = False,
    batch: Annotated[bool, typer.Option("--batch", help="Only among the candidates of the last batch.")] = False,
    distance: Annotated[
        str | None,
        typer.Option(
            "--distance",
            metavar=NUMBER_OR_LEVEL,
            help="Two images closer than this are near-duplicates, whatever their perceptual hashes; a number, strict, "
            "near_copies or similar.",
            show_default="a fifteenth of the median distance of two images, or four times that where hashes agree",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List groups of near-duplicates in the pool and the last batch, the largest first; run it in the workspace.

    Images of a group are connected by pairs closer than the distance, or four times the usual one if their perceptual
    hashes differ in at most 6 of 64 bits; so two of them may be farther apart. Exact copies are no candidates and so in no
    group. Nothing is changed: `datapool remove` takes an image out.
    """
    from datapool.core.errors import counted
    from datapool.core.params import load_params
    from datapool.query.neighbors import duplicates as find

    with progress("comparing images") as report:
        found = find(
            load_params(),
            of_pool=pool or not batch,
            of_batch=batch or not pool,
            distance=number_or_level(distance),
            progress=report,
        )
    if as_json:
        print_json(
            {
                "pool": found.pool,
                "distance": found.distance,
                "level": found.level,
                "compared": found.compared,
                "groups": [[_as_json(each) for each in group.images] for group in found.groups],
            }
        )
        return
    n = sum(len(group.images) for group in found.groups)
    groups = f"{counted(len(found.groups), 'group')} of near-duplicates"
    level = f"{found.level} = " if found.level else ""
    say(f"{groups}, {n:,} of {counted(found.compared, 'image')}, closer than {level}{found.distance:.4g}")
    if found.groups:
        print_table(
            ("group", "to the first", "image", "label", "where"),
            [
                (str(number), f"{each.distance:.4g}", each.filename, each.weak_label, each.where)
                for number, group in enumerate(found.groups, start=1)
                for each in group.images
            ],
        )


@app.command("what-if", short_help="Compute what other values of min_distance would pick.")
def what_if(
    min_distances: Annotated[
        list[str],
        typer.Argument(
            metavar=NUMBER_OR_LEVEL,
            help="Values of stopping_condition.min_distance: numbers, strict, near_copies or similar.",
            show_default=False,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Compute how many images of the last batch other values of min_distance would pick; run it in the workspace.

    Computed from the ranking, without running a stage or changing anything. "covered before" is the share of the candidates
    closer than that to the pool before the batch; "radius" is the covering radius after the picks. Beside "picked" stands
    what ends the choice before min_distance does, such as n_samples. To take one: `dvc exp run
    -S stopping_condition.min_distance=…`, which picks as many.
    """
    from datapool.query.what_if import what_if as choices_of

    with progress("choosing") as report:
        choices = choices_of([number_or_level(each) for each in min_distances], progress=report)
    if as_json:
        print_json({"choices": [choice._asdict() for choice in choices]})
        return
    print_table(
        ("min_distance", "picked", "of candidates", "covered before", "radius"),
        [
            (
                f"{choice.level} = {choice.min_distance:g}" if choice.level else f"{choice.min_distance:g}",
                f"{choice.picked:,}{f' ({choice.limited_by})' * bool(choice.limited_by)}",
                f"{choice.candidates:,}",
                "–" if choice.share_covered is None else f"{choice.share_covered:.0%}",
                "–" if choice.covering_radius is None else f"{choice.covering_radius:.4g}",
            )
            for choice in choices
        ],
    )


def _as_json(neighbor: "Neighbor") -> dict[str, object]:
    return {
        "filename": neighbor.filename,
        "version": neighbor.version or None,
        "weak_label": neighbor.weak_label,
        "distance": neighbor.distance,
    }
