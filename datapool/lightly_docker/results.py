"""Write the results of a run as the folder tree that users of Lightly's Docker know.

config/          config.yaml (every setting), overrides.yaml (those of this run)
data/            embeddings.csv, normalized_embeddings.csv, sampled_embeddings.csv; sampled/ with dump_dataset
filenames/       one .txt file per reason
plots/           the data of the figures, as csv
numbers.json, metrics.json, removed_samples.csv, report.html, log.txt
"""

import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import yaml

from datapool.core.embeddings_csv import csv_header, csv_rows
from datapool.core.errors import DatapoolError
from datapool.core.lineage import read_entries
from datapool.core.outputs import Outputs
from datapool.core.params import FILE
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable, read_rows

_WITHOUT_GITIGNORE = shutil.ignore_patterns(".gitignore")


def results_folder(output_dir: Path, run_directory: str | None) -> Path:
    """Create the folder for the results of a run: ``<date>/<time>`` below the output folder, or the one that is given.

    Raises:
        DatapoolError: If the given folder lies outside of the output folder or has results, or it cannot be created.
    """
    if run_directory is None:
        now = datetime.now().astimezone().strftime("%Y-%m-%d/%H-%M-%S")
        folder = output_dir / now
    else:
        if Path(run_directory).is_absolute() or ".." in Path(run_directory).parts:
            raise DatapoolError(
                f"run_directory is {run_directory!r}; it should be a folder below the output folder, such as week_1"
            )
        folder = output_dir / run_directory
        if Outputs(folder).report.exists():
            raise DatapoolError(f"{folder}: has the results of an earlier run; give another run_directory, or none")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        while run_directory is None and folder.exists():  # another run began in the same second
            folder = folder.with_name(f"{folder.name}-again")
        folder.mkdir(exist_ok=run_directory is not None)
    except OSError as error:
        raise DatapoolError(
            f"{folder}: cannot be created ({error.strerror}); nothing was done. Free some space, or use another name"
        ) from error
    return folder


def write_config(folder: Path, arguments: Sequence[str]) -> None:
    """Write all settings of a run, and its arguments."""
    (folder / "config").mkdir(exist_ok=True)
    shutil.copyfile(FILE, folder / "config" / "config.yaml")
    (folder / "config" / "overrides.yaml").write_text(yaml.safe_dump(list(arguments), allow_unicode=True))


def write_results(output: Path, lineage: Path, params: Params, folder: Path) -> None:
    """Write the results of the last run; files of the same names are replaced.

    The csv files are embeddings csv files of Lightly, in the order of the filenames or, for sampled images, of the picks.
    Labels are numbered as in the pool; a label that the pool lacks gets the next number.

    Args:
        output: ``output_dir``, where the stages write.
        lineage: datapools.json.
        params: Of the run.
        folder: Gets the results.

    Raises:
        DatapoolError: If a file cannot be written.
    """
    stages = Outputs(output)
    try:
        data = folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        candidates, picks = read_rows(stages.embeddings), read_rows(stages.picks)
        entry = read_entries(lineage).get(params.datapool.name)
        in_pool = (entry and entry.labels) or []
        labels = {label: number for number, label in enumerate(dict.fromkeys([*in_pool, *candidates.table.weak_label]))}
        _write_csv(data / "embeddings.csv", candidates, labels)
        _write_csv(data / "sampled_embeddings.csv", picks, labels)
        if params.normalize_embeddings and len(candidates.table):
            lengths = np.linalg.norm(candidates.embeddings.astype(np.float64), axis=1, keepdims=True)
            unit = EmbeddedTable(candidates.table, (candidates.embeddings / lengths).astype(np.float32))
            _write_csv(data / "normalized_embeddings.csv", unit, labels)
        if params.dump_dataset:
            shutil.copytree(stages.sampled_images, data / "sampled", dirs_exist_ok=True)
        for source in (stages.filenames, stages.coverage.parent):
            shutil.copytree(source, folder / source.name, dirs_exist_ok=True, ignore=_WITHOUT_GITIGNORE)
        for source in (stages.numbers, stages.metrics, stages.removed_samples, stages.report):
            shutil.copyfile(source, folder / source.name)
    except OSError as error:
        raise DatapoolError(
            f"{folder}: the results cannot be written ({error.strerror or error}); the pool has its new version, and "
            f"{output} has all results but the csv files. Free some space, then run the same command again"
        ) from error


def _write_csv(path: Path, rows: EmbeddedTable, labels: dict[str, int]) -> None:
    with path.open("wb") as file:
        file.write(csv_header(rows.embeddings.shape[1]))
        file.writelines(
            csv_rows(rows.table.filename.tolist(), rows.embeddings, rows.table.weak_label.map(labels).tolist())
        )
