"""Show what differs between two states of the pools as one small HTML page with pictures."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from datapool.core.errors import escape_unprintable
from datapool.core.lineage import THUMBNAILS_FOLDER
from datapool.images.thumbnails import ThumbnailStore
from datapool.query.diff import Diff, PoolDiff, Sample, about, describe, rename, value_text

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }
body { max-width: 75rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.2rem; } h2 { font-size: 1.1rem; } h3 { font-size: 1rem; }
ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); gap: .75rem; padding: 0; }
li { list-style: none; font-size: .8rem; overflow-wrap: anywhere; }
img, .none { display: block; width: 96px; height: 96px; object-fit: contain; background: #8884; }
.none { font-size: .75rem; padding: .25rem; box-sizing: border-box; }
table { border-collapse: collapse; } td, th { padding: .1rem .75rem .1rem 0; text-align: left; vertical-align: top; }
"""


def page(diff: Diff, pools: Path) -> str:
    """Return the page: one file without requests. An image has its picture if ``thumbnails/`` of its pool has one.

    Args:
        diff: What differs.
        pools: The folder of all pools.
    """
    rows = "".join(
        f"<tr><th scope=row>{_text(key)}<td>{_text(value_text(before))}<td>{_text(value_text(after))}"
        for key, (before, after) in diff.parameters.items()
    )
    parameters = f"<h2>Parameters</h2><table><tr><th>key<th>before<th>after{rows}</table>" if rows else ""
    parts = "".join(_pool(each, pools) for each in diff.pools) or "<p>No pool differs."
    return (
        '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>What differs</title><style>{_STYLE}</style>"
        f"<h1>{_text(diff.before)} → {_text(diff.after)}</h1>{parameters}{parts}</html>\n"
    )


def _pool(diff: PoolDiff, pools: Path) -> str:
    hashes = [each.content_hash for each in diff.gained + diff.lost] + [each.content_hash for each in diff.renamed]
    pictures = ThumbnailStore(pools / diff.pool / THUMBNAILS_FOLDER).read(filter(None, hashes))
    renamed = [f"<li>{_picture(each.content_hash, pictures)}{_text(rename(each))}" for each in diff.renamed]
    return (
        f"<h2>{_text(describe(diff))}</h2>"
        + _list("Gained", [_item(sample, pictures) for sample in diff.gained])
        + _list("Lost", [_item(sample, pictures) for sample in diff.lost])
        + _list("Renamed", renamed)
    )


def _list(title: str, items: Sequence[str]) -> str:
    return f"<h3>{title}: {len(items):,}</h3><ul>{''.join(items)}</ul>" if items else ""


def _item(sample: Sample, pictures: Mapping[str, bytes]) -> str:
    return f"<li>{_picture(sample.content_hash, pictures)}{_text(sample.filename)}<br>{_text(about(sample))}"


def _picture(content: str, pictures: Mapping[str, bytes]) -> str:
    if content not in pictures:
        return '<span class="none">no picture</span>'
    data = base64.b64encode(pictures[content]).decode()
    return f'<img alt="" loading=lazy src="data:image/webp;base64,{data}">'


def _text(value: object) -> str:
    return escape(escape_unprintable(str(value)))
