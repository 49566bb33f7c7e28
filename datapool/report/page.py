"""Write the report: one HTML file that shows what a run did, and one JSON file with the same facts.

page.html, page.css and page.js determine how the page looks and what it does. It loads nothing: styles, script and
pictures are inside, and a content security policy allows this script alone, by its hash. Equal inputs make equal bytes.
"""

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from datapool.core import atomic
from datapool.core.errors import escape_unprintable
from datapool.core.json_files import write_json
from datapool.core.progress import Progress
from datapool.core.schema import Params
from datapool.images.objects import folder_of
from datapool.images.thumbnails import ThumbnailStore
from datapool.report.album import GROUP, make_album
from datapool.report.facts import Facts, ReportInputs, collect_facts
from datapool.report.pictures import PictureSource

_FOLDER = Path(__file__).parent


def write_report(
    page: Path,
    facts_file: Path,
    inputs: ReportInputs,
    params: Params,
    *,
    removed_file: str,
    in_pool: ThumbnailStore,
    scanned: ThumbnailStore,
    progress: Progress | None = None,
) -> None:
    """Write the page and the facts.

    Pictures of the batch that no store has are read from ``params.input_dir``. One that is gone, has changed or cannot be
    decoded becomes a gray box with the reason.

    Args:
        page: HTML file to write.
        facts_file: JSON file to write; ``Facts.as_json`` lists its keys.
        inputs: What to show.
        params: Shown in full; ``n_example_images`` pictures of each kind beside those of the candidates.
        removed_file: Path of the file with all of ``inputs.removed``, named where a list is cut.
        in_pool: The pictures that the pool keeps.
        scanned: What scan has kept. The page is the same with and without it, as long as the images are there.
        progress: Called while pictures are read.

    Raises:
        DatapoolError: If a file cannot be written.
    """
    facts = collect_facts(inputs, params, removed_file=removed_file)
    source = PictureSource.of_batch(
        inputs.images,
        folder_of(params.input_dir),
        max_pixels=params.images.max_pixels,
        ranges=inputs.embedding_space.ranges or {},
        pool=in_pool,
        scanned=scanned,
    )
    write_json(facts_file, facts.as_json())
    atomic.write_bytes(
        page, render(facts, inputs, params, source, removed_file=removed_file, progress=progress).encode()
    )


def render(
    facts: Facts,
    inputs: ReportInputs,
    params: Params,
    source: PictureSource,
    *,
    removed_file: str,
    progress: Progress | None = None,
) -> str:
    """Return the page; arguments as for ``write_report``."""
    album = make_album(inputs, params, facts, source, progress=progress)
    script = _read("page.js")
    return _template().render(
        facts=facts,
        metrics=facts.metrics,
        album=album,
        data=_json_in_html({**album.data, "coverage": _coverage(facts)}),
        parameters=yaml.safe_dump(params.model_dump(), sort_keys=False, allow_unicode=True).rstrip("\n").split("\n"),
        n_examples=params.n_example_images,
        group_size=GROUP,
        n_samples_is_active=params.stopping_condition.n_samples != -1,
        removed_file=removed_file,
        style=_read("page.css"),
        script=script,
        script_source=_source(script),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        finalize=_escape_unprintable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "thousands": "{:,}".format,
        "digits": "{:.4g}".format,
        "percent": "{:.1%}".format,
        "whole_percent": "{:.0%}".format,
    }
    return environment.get_template("page.html")


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _json_in_html(data: dict[str, Any]) -> str:
    r"""Return JSON that ends no script element.

    >>> _json_in_html({"name": "</script>"})
    '{"name":"\\u003c/script>"}'
    """
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")


def _coverage(facts: Facts) -> dict[str, list[float]]:
    """Return the lines of the chart that compares the picks with random ones; empty if there was no choice."""
    return facts.coverage.to_dict("list") if facts.comparison else {}


def _escape_unprintable(value: object) -> object:
    """Escape the control characters of every text that the template shows, unless it is HTML already."""
    return escape_unprintable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _source(script: str) -> str:
    """Return how a content security policy names a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
