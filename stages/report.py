"""Show the run in one HTML file, and write its facts as JSON."""

from pathlib import Path

from datapool.core.base import read_base
from datapool.core.json_files import read_json
from datapool.core.levels import resolve
from datapool.core.lineage import LINEAGE, THUMBNAILS_FOLDER, read_embedding_space, read_lineage
from datapool.core.metrics import read_metrics
from datapool.core.outputs import Outputs
from datapool.core.params import load_params
from datapool.core.tables import read_csv, read_rows, read_table
from datapool.images.batch import mark_excluded
from datapool.images.listing import Skipped
from datapool.images.thumbnails import ThumbnailStore, scanned_thumbnails
from datapool.report.facts import ReportInputs
from datapool.report.page import write_report
from datapool.terminal import progress, run, say


def report() -> None:
    """Write one HTML file that shows this run. It opens in any browser and needs no network."""
    params = load_params()
    outputs = Outputs(params.output_dir)
    space = read_embedding_space(outputs.space)
    params = resolve(params, space)
    base = read_base(outputs.base, needs_seen=False)
    inputs = ReportInputs(
        images=mark_excluded(read_table(outputs.images), base.excluded),
        quality=read_table(outputs.quality),
        skipped=Skipped(**read_json(outputs.skipped)),
        base=base,
        candidates=read_rows(outputs.embeddings),
        embedding_space=space,
        near_duplicates=read_table(outputs.near_duplicates),
        ranking=read_table(outputs.ranking),
        coverage=read_csv(outputs.coverage).astype("float64"),
        picks=read_rows(outputs.picks),
        removed=read_csv(outputs.removed_samples),
        metrics=read_metrics(outputs.numbers),
        versions=read_lineage(LINEAGE).get(base.pool, []),
    )
    with progress("pictures") as show_progress:
        write_report(
            outputs.report,
            outputs.report_facts,
            inputs,
            params,
            removed_file=str(outputs.removed_samples),
            in_pool=ThumbnailStore(Path(params.shared_dir) / base.pool / THUMBNAILS_FOLDER),
            scanned=scanned_thumbnails(),
            progress=show_progress,
        )
    say(f"the report is in {outputs.report}")


if __name__ == "__main__":
    run(report, handles_images=True)
