"""The results of a run as files for people: the tree that users of Lightly's Docker know.

    config/          config.yaml (every setting), overrides.yaml (those of this run)
    data/            embeddings.csv, normalized_embeddings.csv, sampled_embeddings.csv; sampled/ with dump_dataset
    filenames/       one .txt file a reason
    plots/           the numbers of the figures, as csv
    metrics.json, removed_samples.csv, report.html, log.txt

Reads what the stages wrote; decides nothing.
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
from datapool.core.params import FILE
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable, read_rows

_GIT = shutil.ignore_patterns(".gitignore")


def results_folder(output_dir: Path, wanted: str | None) -> Path:
    """Make the folder for the results of a run: ``<date>/<time>``, or the one that is wanted.

    Raises:
        DatapoolError: If the one that is wanted lies elsewhere or has results already, or the disk refuses.
    """
    if wanted is not None and (Path(wanted).is_absolute() or ".." in Path(wanted).parts):
        raise DatapoolError(
            f"run_directory is {wanted!r}; it should be a folder below the output folder, such as week_1"
        )
    now = datetime.now().astimezone().strftime("%Y-%m-%d/%H-%M-%S")
    folder = output_dir / (now if wanted is None else wanted)
    if (folder / "report.html").exists() and wanted is not None:
        raise DatapoolError(f"{folder}: holds the results of an earlier run; give another run_directory, or none")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        while wanted is None and folder.exists():  # by a run of the same second
            folder = folder.with_name(f"{folder.name}-again")
        folder.mkdir(exist_ok=wanted is not None)
    except OSError as error:
        raise DatapoolError(
            f"{folder}: cannot be made ({error.strerror}); nothing was done. Make room for it there"
        ) from error
    return folder


def write_config(folder: Path, words: Sequence[str]) -> None:
    """Write every setting, and those that the line has given."""
    (folder / "config").mkdir(exist_ok=True)
    shutil.copyfile(FILE, folder / "config" / "config.yaml")
    (folder / "config" / "overrides.yaml").write_text(yaml.safe_dump(list(words), allow_unicode=True))


def write_results(output: Path, lineage: Path, params: Params, folder: Path) -> None:
    """Write the results of the last run.

    The csv files are embeddings csv files of Lightly, in the order of the filenames or, for what was sampled, of picking.
    Labels are those of the pool; a label that the pool has not, gets the next numbers.

    Args:
        output: What the stages wrote, ``output_dir``.
        lineage: datapools.json.
        params: ``datapool.name``, ``normalize_embeddings`` and ``dump_dataset`` count.
        folder: Where to; what is there by the same name is replaced.

    Raises:
        DatapoolError: If the disk refuses.
    """
    try:
        data = folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        candidates, picks = read_rows(output / "embeddings.parquet"), read_rows(output / "data" / "picks.parquet")
        entry = read_entries(lineage).get(params.datapool.name)
        known = (entry and entry.labels) or []
        labels = {label: number for number, label in enumerate(dict.fromkeys([*known, *candidates.table.weak_label]))}
        _write_csv(data / "embeddings.csv", candidates, labels)
        _write_csv(data / "sampled_embeddings.csv", picks, labels)
        if params.normalize_embeddings and len(candidates.table):
            lengths = np.linalg.norm(candidates.embeddings.astype(np.float64), axis=1, keepdims=True)
            unit = EmbeddedTable(candidates.table, (candidates.embeddings / lengths).astype(np.float32))
            _write_csv(data / "normalized_embeddings.csv", unit, labels)
        if params.dump_dataset:
            shutil.copytree(output / "data" / "sampled", data / "sampled", dirs_exist_ok=True)
        for name in ("filenames", "plots"):
            shutil.copytree(output / name, folder / name, dirs_exist_ok=True, ignore=_GIT)
        for name in ("metrics.json", "removed_samples.csv", "report.html"):
            shutil.copyfile(output / name, folder / name)
    except OSError as error:
        raise DatapoolError(
            f"{folder}: the results cannot be written there ({error.strerror or error}); the pool has its new version, and "
            f"{output} has all results but the csv files: make room, then run the same line again"
        ) from error


def _write_csv(path: Path, rows: EmbeddedTable, labels: dict[str, int]) -> None:
    with path.open("wb") as file:
        file.write(csv_header(rows.embeddings.shape[1]))
        file.writelines(
            csv_rows(rows.table.filename.tolist(), rows.embeddings, rows.table.weak_label.map(labels).tolist())
        )
