"""Tell in one HTML file what a run did: counts, selection curve, map, pictures, lists, versions, parameters.

Knows tables and how to show them; decides nothing. The page loads nothing: pictures and scripts are inside, and a
content security policy allows these scripts alone, by their hashes. The same inputs give the same bytes.
"""

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from datapool.core import atomic
from datapool.core.base import Base, Version
from datapool.core.errors import DatapoolError, escape_unprintable
from datapool.core.metrics import Metrics
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable
from datapool.images.decode import read_rgb
from datapool.report import charts
from datapool.report.charts import Chart
from datapool.selection import ranking as ordering
from datapool.selection.evaluation import picks_by_min_distance
from datapool.selection.summary import describe_comparison, suggest_method, summarize

MAX_POINTS = 4000
"""The map shows at most so many images of each kind, each line of the curve so many steps, evenly chosen."""
MAX_ROWS = 200
"""A list shows at most so many images."""

_PICTURE = 128  # pixels, the longer side


class Run(NamedTuple):
    """What the stages of one run left behind."""

    images: pd.DataFrame
    """The batch, as ``batch.scan`` gives it."""
    skipped: Mapping[str, int]
    """How many files are no part of the batch: hidden, not_images, not_relevant."""
    base: Base
    """The pool before the batch."""
    candidates: EmbeddedTable
    """Sorted by filename."""
    embedding_space: Mapping[str, Any]
    """backbone, dimension, origin and more, for show; what is None is not shown."""
    curve: pd.DataFrame
    """As ``ordering.curve`` gives it."""
    coverage: pd.DataFrame
    """As in ``evaluation.Comparison``."""
    picks: EmbeddedTable
    """As in ``sampling.Sampled``."""
    removed: pd.DataFrame
    """As in ``sampling.Sampled``."""
    metrics: Metrics
    versions: Sequence[Version]
    """Lineage of the pool after the run; empty if the pool has yet to begin."""


def write_report(path: Path, run: Run, params: Params, *, removed_file: str) -> None:
    """Write the page.

    Pictures are read from ``params.input_dir``. One that is gone, has changed or cannot be decoded becomes a gray box
    with the reason. Of the pool's pictures only those that lie in this batch are shown.

    Args:
        path: HTML file to write.
        run: What to tell.
        params: Shown in full; ``n_example_images`` pictures of each kind.
        removed_file: Where all of ``run.removed`` lies, for lists that are cut.

    Raises:
        DatapoolError: If the file cannot be written.
    """
    curve, coverage, points = _curve(run, params), _coverage(run), _map(run, params)
    sections = {
        "What became of the batch": _counts(run, params),
        "Distance of each pick": curve.figure + _what_if(run, params),
        "What the choice bought": coverage.figure,
        "Map of the embeddings": points.figure,
        "First picks": _first_picks(run, params),
        "Left out": _left_out(run, params),
        "Corrupt images": _list(run.removed, "corrupt", removed_file),
        "Exact copies": _list(run.removed, "duplicate", removed_file),
        "Already in the pool": _list(run.removed, "known", removed_file),
        "Versions of the pool": _versions(run),
        "Embedding space": _space(run.embedding_space),
        "Parameters": "<details><summary>params.yaml of this run</summary><pre>"
        f"{_lines(yaml.safe_dump(params.model_dump(), sort_keys=False, allow_unicode=True))}</pre></details>",
    }
    scripts = charts.scripts([curve, coverage, points])
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    version = f"version {run.versions[-1]['version']:,}" if run.versions else "no version yet"
    page = _PAGE.substitute(
        style=_STYLE,
        title=f"Pool {_text(run.base.pool)}, {version}",
        sentence=_text(summarize(run.metrics)),
        figures=_figures(run.metrics),
        sections="\n".join(
            f"<section><h2>{title}</h2>{content}</section>" for title, content in sections.items() if content
        ),
        allowed=" ".join(f"'sha256-{digest}'" for digest in digests) or "'none'",
        scripts="".join(f"<script>{script}</script>\n" for script in scripts),
    )
    atomic.write_bytes(path, page.encode())


# --- tables ---------------------------------------------------------------------------------------------------------


def _figures(counts: Metrics) -> str:
    figures = {
        "images in the batch": f"{counts.images:,}",
        "picked": f"{counts.picked:,}",
        "in the pool now": f"{counts.pool_after:,}",
        "covering radius": f"{counts.covering_radius:.4g}" if counts.candidates and counts.pool_after else "–",
    }
    return "".join(f"<div><dt>{what}</dt><dd>{number}</dd></div>" for what, number in figures.items())


def _counts(run: Run, params: Params) -> str:
    counts, stop, passed = run.metrics, params.stopping_condition, run.skipped
    fates = [
        ("picked", "picked", "added to the pool"),
        ("covered", "covered", f"closer than min_distance {stop.min_distance:g} to an image of the pool or a pick"),
        ("over balance", "over_balance", "rules.balance allows no more picks of their weak label"),
        (
            "in a sequence gap",
            "in_sequence_gap",
            f"less than {params.rules.sequence_gap} frames from the pool or a pick",
        ),
        (
            "protected",
            "near_protected",
            f"closer than {params.rules.protected_distance:g} to a protected image, or a copy",
        ),
        ("beyond n_samples", "beyond_limit", f"n_samples {stop.n_samples:g} was reached before them"),
        ("already in the pool", "known", "same bytes as an image of the pool"),
        ("exact copies", "duplicates", "same bytes as another image of the batch"),
        ("corrupt", "corrupt", "cannot be read as an image"),
    ]
    rows = []
    for fate, key, why in fates:
        if count := getattr(counts, key):
            share = count / counts.images
            rows.append((fate, f"{count:,}", f'<span class="bar {key}" style="width:{share:.1%}"></span>', why))
    rows.append(("<b>images in the batch</b>", f"<b>{counts.images:,}</b>", "", ""))
    notes = (
        f"Passed over: {passed['hidden']:,} hidden, {passed['not_images']:,} of other types, "
        f"{passed['not_relevant']:,} not in relevant_filenames_file. The pool held {counts.pool_before:,} images "
        f"before and holds {counts.pool_after:,} now."
    )
    if counts.candidates and counts.pool_after:
        notes += f" Covering radius {counts.covering_radius:.4g}: no candidate is farther than this from the pool."
        if counts.radius_lower_bound and counts.witness:
            notes += (
                f" No choice of {counts.picked:,} new images could get it below {counts.radius_lower_bound:.4g}, half "
                f"of that: the picks and {_code(counts.witness)}, the next candidate, lie at least this radius from each "
                "other and from the pool before."
            )
        if counts.near_protected:
            notes += " Candidates that protected images keep out do not count for it."
    if counts.smallest_pick_distance is not None:
        notes += f" The closest pick lay {counts.smallest_pick_distance:.4g} from all before it."
    told = suggest_method(counts, method=params.method, min_distance=stop.min_distance)
    hint = f"<p>Hint: {_text(told)}.</p>" if told else ""
    return _table(("fate", "images", "share", "why"), rows, numbers=(1,)) + f"<p>{notes}</p>{hint}"


def _list(removed: pd.DataFrame, kind: str, removed_file: str) -> str:
    every = removed[removed.kind == kind]
    rows = [(_code(name), _text(why)) for name, why in every[["filename", "reason"]].head(MAX_ROWS).to_numpy()]
    if not rows:
        return ""
    more = f"<p>{len(every) - len(rows):,} more are in {_code(removed_file)}.</p>" if len(every) > len(rows) else ""
    listed = _table(("filename", "why"), rows) + more
    return f"<details{' open' * (len(every) <= 10)}><summary>{len(every):,} in all</summary>{listed}</details>"


def _versions(run: Run) -> str:
    rows = []
    for version in run.versions:
        parameters, radius = version.get("parameters") or {}, version.get("covering_radius")
        stop = parameters.get("stopping_condition") or {}
        active = [f"{key} {stop[key]:g}" for key in ("n_samples", "min_distance") if stop.get(key, -1) >= 0]
        numbers = [f"{version[key]:,}" for key in ("version", "rows", "new")]
        how = ", ".join([parameters.get("method", ""), *active])
        rows.append((*numbers, "" if radius is None else f"{radius:.4g}", _code(version["batch"][:12]), _text(how)))
    if not rows:
        return f"<p>Pool {_text(run.base.pool)} has no version yet: nothing was ever picked for it.</p>"
    return _table(("version", "images", "new", "covering radius", "batch", "selection"), rows, numbers=range(4))


def _space(facts: Mapping[str, Any]) -> str:
    known = [(_text(what.replace("_", " ")), _code(str(value))) for what, value in facts.items() if value is not None]
    return _table(("what", "value"), known)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """An HTML table; its cells are HTML already, the columns ``numbers`` are set right."""
    marks = [' class="n"' if i in numbers else "" for i in range(len(columns))]
    head = "".join(f'<th scope="col"{mark}>{column}</th>' for mark, column in zip(marks, columns, strict=True))
    body = "\n".join(
        f"<tr>{''.join(f'<td{mark}>{cell}</td>' for mark, cell in zip(marks, row, strict=True))}</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


# --- pictures -------------------------------------------------------------------------------------------------------


def _first_picks(run: Run, params: Params) -> str:
    first = run.picks.table.head(params.n_example_images)
    caption = f"The first {len(first):,} of {len(run.picks.table):,} in order, each beside its nearest neighbor then."
    return _cards(run, params, first.assign(kind=[f"#{i + 1}" for i in first.index]), caption)


def _left_out(run: Run, params: Params) -> str:
    every = run.removed[run.removed.kind.isin(["covered", "balance", "sequence_gap", "beyond n_samples"])].sort_values(
        ["distance", "filename"]
    )
    some = every.iloc[_evenly(len(every), params.n_example_images)]
    caption = (
        f"{len(some):,} of {len(every):,}, from the nearest to the farthest, each beside its nearest of pool and picks."
    )
    return _cards(run, params, some, caption)


def _cards(run: Run, params: Params, rows: pd.DataFrame, caption: str) -> str:
    """The pictures of ``rows`` (filename, kind, distance, nearest) and their nearest neighbors."""
    if not len(rows):
        return ""
    shown = run.images[(run.images.status == "ok") & run.images.filename.isin({*rows.filename, *rows.nearest})]
    files = {name: (path, digest) for name, path, digest in shown[["filename", "path", "content_hash"]].to_numpy()}
    cards = []
    for name, kind, distance, nearest in rows[["filename", "kind", "distance", "nearest"]].to_numpy():
        figures = [
            f"<figure>{_picture(files, Path(params.input_dir), of)}<figcaption>{word}{_code(of)}</figcaption></figure>"
            for of, word in ((name, ""), (nearest, "covered by " if kind == "covered" else "nearest "))
            if of
        ]
        far = f"distance {distance:.4g}" if nearest else "begins the pool"
        cards.append(f"<li><p><b>{kind}</b><span>{far}</span></p>{''.join(figures)}</li>\n")
    return f'<p>{caption}</p><ul class="cards">{"".join(cards)}</ul>'


def _picture(files: Mapping[str, tuple[str, str]], folder: Path, name: str) -> str:
    """An image as an element of its own, or a gray box that says why there is none."""
    if name not in files:
        return '<span class="box">in the pool, not in this batch</span>'
    path, content_hash = files[name]
    try:
        picture = read_rgb(folder / path, content_hash=content_hash)
    except DatapoolError as error:
        why = str(error).removeprefix(f"{folder / path}: ").partition(";")[0]
        return f'<span class="box">{_text(why)}</span>'
    picture.thumbnail((_PICTURE, _PICTURE))
    picture.info.clear()  # Pillow would write a comment of the file into ours
    jpeg = BytesIO()
    picture.save(jpeg, format="JPEG", quality=85)
    data = base64.b64encode(jpeg.getvalue()).decode()
    return f'<img alt="{_text(name)}" src="data:image/jpeg;base64,{data}">'


# --- charts ---------------------------------------------------------------------------------------------------------


def _curve(run: Run, params: Params) -> Chart:
    n_picked = len(run.picks.table)
    taken = pd.DataFrame({"step": np.arange(1, n_picked + 1), "distance": run.picks.table.distance}).dropna()
    after = run.curve[run.curve.step > n_picked]
    if not len(taken) + len(after):
        return Chart("<p>No distance was measured: there was nothing to compare.</p>", call="")
    end = (
        "n_samples ended the selection"
        if run.metrics.beyond_limit
        else "the next would have been closer than min_distance"
        if run.metrics.covered
        else "every candidate that the rules allow was picked"
        if ordering.has_rules(params.rules)
        else "every candidate was picked"
    )
    return charts.curve(
        taken.iloc[_evenly(len(taken), MAX_POINTS)],
        after.iloc[_evenly(len(after), MAX_POINTS)],
        cut=n_picked,
        min_distance=params.stopping_condition.min_distance,
        caption=f"How far each pick lay from all picked or pooled before it ({params.method}). "
        f"{n_picked:,} picked: {end}.",
    )


def _what_if(run: Run, params: Params) -> str:
    """A table: how many images another min_distance would pick."""
    if params.method != "coreset" or not len(run.curve):
        return ""
    own, rows = params.stopping_condition.min_distance, []
    for value, picks in picks_by_min_distance(run.curve, min_distance=own).to_numpy():
        cells = (f"{value:g}", f"{picks:,.0f}", f"{picks / len(run.candidates.table):.1%}")
        rows.append([f"<b>{cell}</b>" for cell in cells] if value == own else cells)
    caption = "How many images each min_distance would pick; the one in use is bold."
    if params.stopping_condition.n_samples != -1:
        caption += " n_samples may end the selection before."
    table = _table(("min_distance", "picks", "of the candidates"), rows, numbers=range(3))
    return f'<p>{caption}</p><div class="narrow">{table}</div>'


def _coverage(run: Run) -> Chart:
    told = describe_comparison(run.metrics)
    if not told or not len(run.coverage):
        return Chart("", call="")
    return charts.coverage(run.coverage, caption=told)


def _map(run: Run, params: Params) -> Chart:
    new, old, picks = run.candidates.table, run.base.rows.table, run.picks.table
    why = dict(zip(run.removed.filename, run.removed.reason, strict=True))
    for pick in picks.itertuples():
        far = f", at distance {pick.distance:.4g} from {pick.nearest}" if pick.nearest else ""
        why[pick.filename] = f"pick {pick.Index + 1:,}{far}"
    is_pick = new.filename.isin(picks.filename)
    new = new.assign(kind=np.where(is_pick, "picked", "left out"), reason=[why[name] for name in new.filename])
    old = old.assign(kind="in the pool before", reason="in the pool since version " + old.version.astype("str"))
    every = {"left out": new[~is_pick], "in the pool before": old, "picked": new[is_pick]}
    shown = {kind: rows.iloc[_evenly(len(rows), MAX_POINTS)] for kind, rows in every.items()}
    left_out, pooled, picked = shown.values()
    images = pd.concat([left_out, picked, pooled])
    if len(images) < 2:
        return Chart("<p>Fewer than two images have an embedding: there is nothing to draw.</p>", call="")
    vectors = ordering.space(
        _take(run.candidates, [*left_out.index, *picked.index]),
        _take(run.base.rows, pooled.index),
        normalize=params.normalize_embeddings,
        append_weak_labels=params.append_weak_labels,
    )
    caption = "The vectors between which distances are taken, projected on their two main directions (PCA)."
    for kind, rows in every.items():
        if len(rows) > len(shown[kind]):
            caption += f" Of {len(rows):,} {kind}, {len(shown[kind]):,} are drawn, evenly chosen."
    totals = {kind: len(rows) for kind, rows in every.items()}
    return charts.embedding_map(images, np.concatenate(vectors), totals=totals, caption=caption)


def _take(rows: EmbeddedTable, which: Sequence[int] | pd.Index) -> EmbeddedTable:
    which = np.asarray(which, dtype=np.int64)
    return EmbeddedTable(rows.table.iloc[which], rows.embeddings[which])


def _evenly(n: int, limit: int) -> np.ndarray:
    """At most ``limit`` of the numbers 0 … n-1, evenly spread."""
    return np.arange(n) if n <= limit else np.linspace(0, n - 1, limit).round().astype(np.int64)


# --- text: what comes from file names passes through one of these ---------------------------------------------------


def _text(text: str) -> str:
    return html.escape(escape_unprintable(text))


def _lines(text: str) -> str:
    return "\n".join(map(_text, text.split("\n")))


def _code(text: str) -> str:
    return f"<code>{_text(text)}</code>"


_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c2127; --soft: #5b6470; --line: #dfe3e8; --fill: #f3f5f7;
  --accent: #0f766e; --rest: #9aa3af; }
@media (prefers-color-scheme: dark) { :root { --page: #14181d; --ink: #e6e9ed; --soft: #a2abb7; --line: #303740;
  --fill: #1d232a; --accent: #2dd4bf; --rest: #6b7683; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0 0 .5rem; font-size: 1.9rem; line-height: 1.2; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { margin: 0 0 .75rem; font-size: 1.2rem; }
section { margin-top: 2.75rem; }
p { margin: .6rem 0; max-width: 46rem; }
section p, figcaption, summary { color: var(--soft); font-size: .92rem; }
.lead { font-size: 1.1rem; }
.lead::first-letter { text-transform: uppercase; }
.kicker { margin: 0; color: var(--accent); font-weight: 600; font-size: .85rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1px; margin: 1.5rem 0 0;
  background: var(--line); border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }
dl div { display: flex; flex-direction: column-reverse; justify-content: flex-end; padding: .75rem 1rem;
  background: var(--page); }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-size: 1.6rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
.narrow table { width: auto; }
table { width: 100%; border-collapse: collapse; font-size: .92rem; }
th, td { padding: .4rem .9rem .4rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; font-size: .85rem; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
td:has(.bar) { width: 24%; }
b { white-space: nowrap; }
@media (max-width: 36rem) {
  section:first-of-type :is(th, td):nth-child(3) { display: none; } }
.bar { display: block; min-width: 2px; height: .8rem; margin-top: .35rem; border-radius: 2px; background: var(--rest);
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.bar.picked { background: var(--accent); }
code, pre { font: .85em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
code { overflow-wrap: anywhere; white-space: pre-wrap; }
pre { padding: 1rem; overflow-x: auto; background: var(--fill); border-radius: .5rem; }
summary { cursor: pointer; padding: .25rem 0; }
figure { margin: 0; }
.chart > div { height: 26rem; }
.chart > #map { height: 34rem; }
.main-svg text { fill: var(--ink) !important; }
.main-svg .hovertext text { fill: #fff !important; }
.main-svg :is(.gridlayer, .zerolinelayer) path { stroke: var(--line) !important; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(17.5rem, 1fr)); gap: .75rem; margin: 1rem 0 0;
  padding: 0; list-style: none; }
.cards li { display: grid; grid-template-columns: 1fr 1fr; grid-template-rows: auto 1fr; gap: .5rem .75rem;
  padding: .75rem; border: 1px solid var(--line); border-radius: .5rem; break-inside: avoid; }
.cards p { display: flex; justify-content: space-between; grid-column: 1 / -1; margin: 0; font-size: .9rem; }
.cards b { color: var(--ink); }
.cards figcaption { margin-top: .3rem; font-size: .8rem; line-height: 1.35; }
.cards img, .box { display: block; width: 100%; height: 8rem; object-fit: contain; background: var(--fill);
  border-radius: .25rem; }
.box { display: grid; place-content: center; padding: .5rem; overflow: hidden; text-align: center; font-size: .8rem;
  line-height: 1.3; color: var(--soft); }
@media print {
  :root { color-scheme: light; --page: #fff; --ink: #000; --soft: #444; --line: #ccc; --fill: #f3f5f7;
    --accent: #0f766e; --rest: #9aa3af; }
  .chart { break-inside: avoid; } h2, h2 + p { break-after: avoid; } .modebar { display: none; }
  .cards { grid-template-columns: repeat(3, 1fr); } }
""".strip()

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src $allowed; \
style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<main>
<header>
<p class="kicker">datapool report</p>
<h1>$title</h1>
<p class="lead">$sentence.</p>
<dl>$figures</dl>
</header>
$sections
</main>
<noscript><p>The charts need JavaScript; all else is shown without.</p></noscript>
$scripts</body>
</html>
""")
