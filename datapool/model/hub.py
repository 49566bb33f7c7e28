"""Fetch published weights of a backbone from timm's hub into the workspace, once: no stage does that.

A small JSON file beside the weights records where they come from and their sha256. git has it; the weights it does not.
"""

import logging
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.model.backbones import Published, find_published
from datapool.model.embedding_model import build_model
from datapool.model.weights import one_line
from datapool.model.weights_record import WeightsRecord, read_record, write_record

FOLDER = Path("weights")
"""Where fetched weights lie in a workspace."""

_GITIGNORE = (
    b"# git has the records only: `datapool fetch NAME` gets the recorded weights again.\n*\n!*.json\n!.gitignore\n"
)


class Fetched(NamedTuple):
    """Weights that lie in the workspace."""

    path: Path
    """The file: lightly.model.weights."""
    n_bytes: int
    record: WeightsRecord
    n_features: int
    """Of the backbone at ``record.input_size``, with its automatic layers: the most that lightly.model.num_ftrs can be."""


def fetch_weights(name: str, folder: Path = FOLDER) -> Fetched:
    """Fetch the published weights of a backbone of timm, and record them.

    They are taken from the cache of huggingface_hub if they are there. Its variables work: HF_ENDPOINT, HF_HOME, HF_TOKEN,
    HF_HUB_OFFLINE, HTTPS_PROXY. Weights that the folder records already are fetched at the recorded commit, and must be
    the same.

    Args:
        name: Of a backbone, with or without a tag ("vit_small_patch14_dinov2.lvd142m"); without it timm's default is meant.
        folder: Where they are kept; made if absent.

    Raises:
        DatapoolError: If there is no such backbone, it has no weights on the hub, the hub cannot be reached or refuses, or
            the file is not what was recorded or does not fit the backbone.
    """
    published = find_published(name)
    record_path = folder / f"{published.name}.json"
    before = read_record(record_path) if record_path.exists() else None
    downloaded = _download(published, revision=before.revision if before else None)
    path = folder / f"{published.name}{downloaded.suffix}"
    record = WeightsRecord(
        name=published.name,
        file=path.name,
        sha256=atomic.sha256(downloaded),
        repository=published.repository,
        revision=downloaded.parent.name,  # the cache keeps a folder per commit
        licence=published.licence,
        input_size=published.input_size,
    )
    if before and before.sha256 != record.sha256:
        raise DatapoolError(
            f"{record_path}: records sha256 {before.sha256[:12]}..., but what {constants.ENDPOINT} has now is "
            f"{record.sha256[:12]}...; remove {record_path} to take that instead"
        )
    model = build_model(  # refuses what does not fit
        published.name,
        dimension=1,
        input_size=published.input_size,
        pretrained=True,
        weights=downloaded,
        seed=0,
        layers="auto",
    )
    atomic.refuse_links(folder)
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(folder / ".gitignore", _GITIGNORE)
    atomic.copy_file(downloaded, path)
    write_record(record_path, record)
    return Fetched(path, path.stat().st_size, record, model.n_features)


def _download(published: Published, *, revision: str | None) -> Path:
    """Return the file in the cache of huggingface_hub: the first kind that the repository has."""
    repository = published.repository
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it would tell of each try
    try:
        for filename in published.filenames[:-1]:
            try:
                return _file(repository, filename, revision)
            except EntryNotFoundError as error:
                if isinstance(error, LocalEntryNotFoundError):  # the hub was not asked
                    raise
        return _file(repository, published.filenames[-1], revision)
    except GatedRepoError as error:
        raise DatapoolError(
            f"{repository}: its licence must be accepted first: log in at {constants.ENDPOINT}/{repository}, accept it, "
            "and set HF_TOKEN to a token of your account"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise _unreachable(repository, error) from error
        raise DatapoolError(
            f"{constants.ENDPOINT} has no {repository}{f' at {revision}' if revision else ''} with weights, or asks for "
            "HF_TOKEN to show it; give another backbone, or set lightly.model.weights to a local file"
        ) from error
    except (HfHubHTTPError, FileMetadataError, OSError) as error:
        raise _unreachable(repository, error) from error


def _file(repository: str, filename: str, revision: str | None) -> Path:
    return Path(hf_hub_download(repository, filename, revision=revision))


def _unreachable(repository: str, error: Exception) -> DatapoolError:
    reason = one_line(error.__cause__ or error)
    return DatapoolError(
        f"{repository}: cannot be fetched from {constants.ENDPOINT} ({reason}); check the network, HTTPS_PROXY and "
        "HF_ENDPOINT, or fetch it elsewhere and set lightly.model.weights to the file"
    )
