"""Show what happened in one HTML file."""

from pathlib import Path
from typing import Annotated

from typer import Option

from datapool.core.base import read_base
from datapool.core.lineage import read_lineage
from datapool.core.params import load_params
from datapool.core.tables import read_csv, read_json, read_rows, read_table
from datapool.report.page import Run, write_report
from datapool.terminal import run, say


def report(
    images: Annotated[Path, Option(help="The batch, as the scan stage lists it.")],
    passed_over: Annotated[Path, Option(help="JSON file: how many files were passed over, and why.")],
    base: Annotated[Path, Option(help="The pool as it stood before this batch.")],
    embeddings: Annotated[Path, Option(help="The candidates with their embeddings.")],
    space: Annotated[Path, Option(help="JSON file: the embedding space.")],
    curve: Annotated[Path, Option(help="Csv file: the distance at each step of the ranking.")],
    coverage: Annotated[Path, Option(help="Csv file: distances after so many picks and random ones.")],
    picks: Annotated[Path, Option(help="The picks with their embeddings.")],
    removed: Annotated[Path, Option(help="Csv file: why each other image was not taken.")],
    metrics: Annotated[Path, Option(help="JSON file: what happened, in numbers.")],
    lineage: Annotated[Path, Option(help="datapools.json: the versions of every pool.")],
    report: Annotated[Path, Option(help="HTML file to write.")],
) -> None:
    """Write one HTML file that shows what this run did: it opens in any browser and needs no network."""
    params, opened = load_params(), read_base(base)
    write_report(
        report,
        Run(
            images=read_table(images),
            passed_over=read_json(passed_over),
            base=opened,
            candidates=read_rows(embeddings),
            embedding_space=read_json(space),
            curve=read_csv(curve),
            coverage=read_csv(coverage).astype("float64"),
            picks=read_rows(picks),
            removed=read_csv(removed),
            metrics=read_json(metrics),
            versions=read_lineage(lineage).get(opened.pool, []),
        ),
        params,
        removed_file=str(removed),
    )
    say(f"the report is in {report}")


if __name__ == "__main__":
    run(report)
