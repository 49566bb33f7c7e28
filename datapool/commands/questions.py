"""The commands that answer questions: how the pools stand and grew, what differs, why an image is in or not."""

from pathlib import Path
from typing import Annotated

import typer

from datapool.terminal import print_facts, print_json, print_table, say

app = typer.Typer()

Json = Annotated[bool, typer.Option("--json", help="Print a JSON document.")]
Name = Annotated[str | None, typer.Option("--name", help="The pool.", show_default="datapool.name")]


@app.command(short_help="Show how the workspace stands, and what to do next.")
def status(as_json: Json = False) -> None:
    """Show how the workspace stands, and what to do next; run it in the workspace.

    Names the version of the pool, what became of the batch, what `dvc repro` would run again and because of which change,
    and what is not committed. It runs nothing and changes nothing.
    """
    from datapool.core.params import load_params
    from datapool.query.status import read_status

    found = read_status(load_params())
    if as_json:
        print_json(found.as_json())
    else:
        print_facts(found.as_facts())


@app.command(short_help="List the versions of a pool.")
def log(
    name: Name = None,
    n: Annotated[
        int | None, typer.Option("-n", min=1, help="Only so many of the last versions.", show_default="all")
    ] = None,
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw what was picked, and the share covered, week by week.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the versions of a pool, a row each; run it in the workspace.

    Of each: the week (the last part of its input_dir), the images of its batch, the candidates among them, how many were
    picked, the share of the candidates that the pool covered before, the covering radius, and the images of the pool. A dash
    stands for what an early release did not record.
    """
    from datapool.core.lineage import LINEAGE
    from datapool.core.params import load_params
    from datapool.pool.show import find_versions
    from datapool.query.log import rows_of, sparkline

    pool = name or load_params().datapool.name
    rows = rows_of(find_versions(LINEAGE, pool))[-(n or 0) :]
    if as_json:
        print_json({"pool": pool, "versions": [row._asdict() for row in rows]})
        return
    print_table(
        ("version", "week", "images", "candidates", "picked", "covered before", "radius", "pool"),
        [
            (
                str(row.version),
                row.week or "–",
                _whole(row.images),
                _whole(row.candidates),
                _whole(row.picked),
                _percent(row.share_covered),
                "–" if row.radius is None else f"{row.radius:.4g}",
                _whole(row.pool),
            )
            for row in rows
        ],
    )
    if plot:
        say(f"picked          {sparkline([row.picked for row in rows])}")
        say(f"covered before  {sparkline([row.share_covered for row in rows])}")


def _whole(count: int | None) -> str:
    return "–" if count is None else f"{count:,}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


@app.command(short_help="Explain why an image is in a pool, or not.")
def why(
    image: Annotated[
        str,
        typer.Argument(help="Its name in a pool, its path below input_dir, or its content hash.", show_default=False),
    ],
    name: Annotated[str | None, typer.Option("--name", help="The pool.", show_default="every pool")] = None,
    as_json: Json = False,
) -> None:
    """Explain why an image is in a pool, or why not; run it in the workspace.

    The image may be of this week or of an earlier one. The answer says whether it was picked (as which one, beside which
    nearest image), covered (by which image), a copy or damaged, under which parameters, and which commit has that. The pools
    have part of it; the rest is in the outputs of earlier batches, which are read from git and DVC's cache without a
    checkout. Lines that begin with "not read" name what the cache lacks. The exit code is 1 if no batch has offered such an
    image.
    """
    from datapool.core.params import load_params
    from datapool.query.why import why as answer

    found = answer(load_params(), image, pool=name)
    if as_json:
        print_json(found.as_json())
    else:
        say(*found.as_text())


@app.command(short_help="Compare the pools and parameters of two git revisions.")
def diff(
    revision: Annotated[str, typer.Argument(help="The earlier commit, tag or branch.", show_default=False)],
    other: Annotated[
        str | None, typer.Argument(help="The later one.", show_default="the files here", metavar="[OTHER]")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The pool.", show_default="every pool")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with pictures to this file.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the pools and parameters of two git revisions without a checkout; run it in the workspace.

    Lists the images that a pool has gained ("+"), lost ("-") or has under another name or label ("="), compared by content,
    and the parameters that differ. Rows of earlier states come from the pool here, or else from DVC's cache.
    """
    from datapool.core import atomic
    from datapool.query.diff import diff as compare
    from datapool.query.diff_page import page
    from datapool.workspace.states import state_at, state_here

    here = state_here()
    found = compare(state_at(revision), state_at(other) if other else here, pool=name)
    if html:
        atomic.write_bytes(html, page(found, here.shared_dir).encode())
    if as_json:
        print_json(found.as_json())
    else:
        say(*found.as_text(), *([f"{html}: written"] if html else []))
