"""Fetch published weights from a hub into the workspace, once: those of a backbone, or of a model of text search.

No stage does that, and no other command. A small JSON file beside the weights records where they come from and their sha256.
git has it; the weights it does not.
"""

import hashlib
import importlib.util
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.json_files import json_text
from datapool.model.backbones import Published, find_published
from datapool.model.embedding_model import build_model
from datapool.model.open_clip_models import (
    CONFIG,
    INSTALL,
    TOKENIZER,
    find_published_text_model,
    require_usable,
    tokenizer_of,
)
from datapool.model.text_model import folder_of, load_text_model
from datapool.model.weights import one_line
from datapool.model.weights_record import (
    FOLDER,
    TextModelRecord,
    WeightsRecord,
    read_record,
    read_text_record,
    write_record,
)

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
    published = _find_published(name)
    record_path = folder / f"{published.name}.json"
    before = read_record(record_path) if record_path.exists() else None
    downloaded = _download(
        published.repository,
        published.filenames,
        revision=before.revision if before else None,
        instead="set lightly.model.weights to a local file",
    )
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
    _make_folder(folder)
    atomic.copy_file(downloaded, path)
    write_record(record_path, record)
    return Fetched(path, path.stat().st_size, record, model.n_features)


def _find_published(name: str) -> Published:
    try:
        return find_published(name)
    except DatapoolError as error:
        if importlib.util.find_spec("open_clip") is None:
            raise DatapoolError(f"{error}; a model of open_clip, for `datapool find`, needs {INSTALL}") from error
        raise


class FetchedTextModel(NamedTuple):
    """A model of text search that lies in the workspace."""

    path: Path
    """Its folder."""
    n_bytes: int
    record: TextModelRecord


def fetch_text_model(name: str, folder: Path = FOLDER) -> FetchedTextModel:
    """Fetch a model that compares pictures with words, with the files of its tokenizer, and record them.

    Args:
        name: As for ``find_published_text_model``.
        folder: Where they are kept, in a folder of their own; made if absent.

    Raises:
        DatapoolError: As ``fetch_weights``, or if open_clip is not installed or cannot build it.
    """
    published = find_published_text_model(name)
    target = folder / published.name.replace("/", "--")
    record_path = folder / f"{target.name}.json"
    before = read_text_record(record_path) if record_path.exists() else None
    instead, repository = "give a local one to `datapool find --weights`", published.repository
    weights = _download(repository, published.filenames, revision=before.revision if before else None, instead=instead)
    revision = weights.parent.name  # the cache keeps a folder per commit
    config = published.config or _read_json(_download(repository, [CONFIG], revision=revision, instead=instead))
    require_usable(config, source=repository)
    files, tokenizer = {weights.name: weights}, tokenizer_of(config)
    if tokenizer:
        at = revision if tokenizer == repository else before.tokenizer_revision if before else None
        files |= _download_tokenizer(tokenizer, revision=at, instead=instead)
    record = TextModelRecord(
        name=published.name,
        repository=repository,
        revision=revision,
        tokenizer=tokenizer,
        tokenizer_revision=files[TOKENIZER].parent.name if tokenizer else None,
        files={CONFIG: hashlib.sha256(json_text(config)).hexdigest()}
        | {file: atomic.sha256(path) for file, path in sorted(files.items())},
    )
    if before and before.files != record.files:
        raise DatapoolError(
            f"{record_path}: records other files than {constants.ENDPOINT} and open_clip have now; remove {record_path} to "
            "take those instead"
        )
    with folder_of(config, files) as built:
        load_text_model(built, name=repository)  # refuses what does not fit
    _make_folder(folder)
    for path in target.glob("*"):
        if path.name not in record.files:
            path.unlink()
    atomic.write_bytes(target / CONFIG, json_text(config))
    for file, path in files.items():
        atomic.copy_file(path, target / file)
    write_record(record_path, record)
    return FetchedTextModel(target, sum(path.stat().st_size for path in target.iterdir()), record)


def _download_tokenizer(repository: str, *, revision: str | None, instead: str) -> dict[str, Path]:
    """Return the files of a tokenizer in the cache of huggingface_hub, by their names."""
    found = {TOKENIZER: _download(repository, [TOKENIZER], revision=revision, instead=instead)}
    revision = found[TOKENIZER].parent.name
    for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json"):
        if name == "config.json" and "tokenizer_class" in _read_json(found.get("tokenizer_config.json")):
            break  # config.json only says of which kind the tokenizer is
        with _explaining(repository, revision, instead=instead):
            try:
                found[name] = _file(repository, name, revision)
            except EntryNotFoundError as error:
                if isinstance(error, LocalEntryNotFoundError):  # the hub was not asked
                    raise
    return found


def _read_json(path: Path | None) -> dict[str, Any]:
    """Return what a file of a repository has; nothing if it is no JSON object."""
    try:
        content = json.loads(path.read_bytes()) if path else None
    except (ValueError, RecursionError):
        content = None
    return content if isinstance(content, dict) else {}


def _make_folder(folder: Path) -> None:
    atomic.refuse_links(folder)
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(folder / ".gitignore", _GITIGNORE)


def _download(repository: str, filenames: Sequence[str], *, revision: str | None, instead: str) -> Path:
    """Return the file in the cache of huggingface_hub: the first kind that the repository has.

    Raises:
        DatapoolError: If it has none, or cannot be reached; with what to do instead.
    """
    with _explaining(repository, revision, instead=instead):
        for filename in filenames[:-1]:
            try:
                return _file(repository, filename, revision)
            except EntryNotFoundError as error:
                if isinstance(error, LocalEntryNotFoundError):  # the hub was not asked
                    raise
        return _file(repository, filenames[-1], revision)


@contextmanager
def _explaining(repository: str, revision: str | None, *, instead: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub into one line."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it would tell of each try
    try:
        yield
    except GatedRepoError as error:
        raise DatapoolError(
            f"{repository}: its licence must be accepted first: log in at {constants.ENDPOINT}/{repository}, accept it, "
            "and set HF_TOKEN to a token of your account"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise _unreachable(repository, error, instead) from error
        raise DatapoolError(
            f"{constants.ENDPOINT} has no {repository}{f' at {revision}' if revision else ''} with weights, or asks for "
            f"HF_TOKEN to show it; give another one, or {instead}"
        ) from error
    except HFValidationError as error:
        raise DatapoolError(f"{repository}: is no name of a repository; give OWNER/NAME") from error
    except (HfHubHTTPError, FileMetadataError, OSError) as error:
        raise _unreachable(repository, error, instead) from error


def _file(repository: str, filename: str, revision: str | None) -> Path:
    return Path(hf_hub_download(repository, filename, revision=revision))


def _unreachable(repository: str, error: Exception, instead: str) -> DatapoolError:
    reason = one_line(error.__cause__ or error)
    return DatapoolError(
        f"{repository}: cannot be fetched from {constants.ENDPOINT} ({reason}); check the network, HTTPS_PROXY and "
        f"HF_ENDPOINT, or fetch it elsewhere and {instead}"
    )
