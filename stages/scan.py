"""List the batch: which images are there, which are damaged, which are exact copies."""

from pathlib import Path
from typing import Annotated

from typer import Option

from datapool.core.params import load_params
from datapool.core.tables import read_names, write_json, write_table
from datapool.images import batch
from datapool.terminal import progress, run, say


def scan(
    images: Annotated[Path, Option(help="Parquet file to write: one row an image.")],
    passed_over: Annotated[Path, Option(help="JSON file to write: how many files were passed over, and why.")],
) -> None:
    """Find the images below input_dir, hash them, try to decode each, and mark damage and exact copies."""
    params = load_params()
    listed = params.relevant_filenames_file
    with progress("looking at images") as report:
        found = batch.scan(
            Path(params.input_dir),
            filename_prefix=params.filename_prefix,
            relevant=read_names(Path(listed)) if listed else None,
            check_images=params.enable_corruptness_check,
            remove_duplicates=params.remove_exact_duplicates,
            progress=report,
        )
    write_table(images, found.images)
    counts = {"hidden": found.n_hidden, "not_images": found.n_other, "not_relevant": found.n_not_relevant}
    write_json(passed_over, counts)
    status = found.images.status.value_counts()
    say(
        f"{params.input_dir}: {len(found.images)} images, {status.get('corrupt', 0)} of them corrupt and "
        f"{status.get('duplicate', 0)} exact copies; passed over: {found.n_hidden} hidden, {found.n_other} of other "
        f"types, {found.n_not_relevant} not in relevant_filenames_file"
    )
    if links := found.images.filename[found.images.reason == batch.LINK_OUT].tolist():
        say(f"WARNING: {len(links)} links lead out of {params.input_dir} and are not followed, such as {links[0]!r}")
    if case_collisions := batch.case_collisions(found.images.filename):
        one, other = next(iter(case_collisions.items()))
        say(
            f"WARNING: {len(case_collisions)} names differ from another one only in case or accents, such as {one!r} and "
            f"{other!r}; all are kept, but some file systems cannot tell them apart"
        )


if __name__ == "__main__":
    run(scan)
