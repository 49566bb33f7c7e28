"""Build the charts of the report: the selection curve, the coverage and the map of the embeddings.

A chart is plain data that plotly.js draws. Filenames and reasons in it stay text: plotly reads a little HTML in hover
texts, so they are escaped here. Equal values make equal charts.
"""

import html
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from datapool.core.errors import escape_unprintable

_ACCENT, _GRAY = "#0d9488", "#7c8694"  # at least 3:1 on a light and on a dark background

_LAYOUT = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "margin": {"l": 56, "r": 12, "t": 40, "b": 48},
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    "hoverlabel": {"align": "left", "bgcolor": "#262c34", "bordercolor": _GRAY},
    "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": _GRAY, "activecolor": _ACCENT},
    "dragmode": False,  # a finger on the chart scrolls the page
}


class Chart(NamedTuple):
    """A chart and the words around it."""

    id: str
    """Of the element it is drawn in: ``curve``, ``coverage`` or ``map``."""
    description: str
    """For readers who cannot see the chart."""
    caption: str
    traces: list[dict[str, Any]]
    """For plotly.js."""
    layout: dict[str, Any]
    """For plotly.js."""


class Projection(NamedTuple):
    """Vectors in two dimensions."""

    points: np.ndarray
    """Shape (n, 2)."""
    shares: np.ndarray
    """Shape (2,): the share of the variance along each axis."""


def curve(picked: pd.DataFrame, others: pd.DataFrame, *, cut: int, min_distance: float, caption: str) -> Chart:
    """Build the chart of the distance at each step of a ranking.

    Args:
        picked: The steps taken: step (from 1) and distance.
        others: The steps after them, not taken. One of the two may be empty.
        cut: The last step taken; marked by a line.
        min_distance: Marked by a line, unless negative.
        caption: A sentence, as text.
    """
    traces = []
    for name, part, line in (
        ("picked", picked, {"color": _ACCENT, "width": 2}),
        ("not picked", others, {"color": _GRAY, "width": 2, "dash": "dot"}),
    ):
        if len(part):
            traces.append(_line(name, part.step, part.distance, line, hover="step %{x}: %{y:.4g}"))
    n_others = int(others.step.max()) - cut if len(others) else 0
    side = "left" if cut < n_others else "right"  # of the line with more room for the label
    lines: list[dict[str, Any]] = [{"x0": cut + 0.5, "x1": cut + 0.5, "y0": 0, "y1": 1, "yref": "paper"}]
    labels: list[dict[str, Any]] = [
        {
            "x": cut + 0.5,
            "xanchor": side,
            "y": 1,
            "yref": "paper",
            "yanchor": "top",
            "text": f"selection ends after {cut:,}",
        }
    ]
    if min_distance >= 0:
        lines.append({"x0": 0, "x1": 1, "xref": "paper", "y0": min_distance, "y1": min_distance})
        text = f"min_distance {min_distance:g}"
        labels.append({"x": 1, "xref": "paper", "y": min_distance, "yanchor": "bottom", "text": text})
    layout = {
        "xaxis": {"title": {"text": "step"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "distance"}, "rangemode": "tozero"},
        "shapes": [line | {"line": {"color": _GRAY, "width": 1, "dash": "dash"}} for line in lines],
        "annotations": [label | {"showarrow": False} for label in labels],
    }
    description = "Line chart: the distance at each step of the selection."
    return _chart("curve", description, caption, traces, layout)


def coverage(curve: pd.DataFrame, *, caption: str) -> Chart:
    """Build the chart of the distances from candidates to the pool, for the picks and for a random selection.

    Args:
        curve: step (images added so far), chosen and random (mean distances), chosen_p99 and random_p99 (99th
            percentiles); one row or more.
        caption: A sentence, as text.
    """
    chosen, random = {"color": _ACCENT, "width": 2}, {"color": _GRAY, "width": 2, "dash": "dot"}
    traces = [
        _line(name, curve.step.astype("int64"), curve[column], line, hover="after %{x}: %{y:.4g}")
        for name, column, line in (
            ("picks, 99th percentile", "chosen_p99", chosen),
            ("random, 99th percentile", "random_p99", random),
            ("picks, mean", "chosen", chosen),
            ("random, mean", "random", random),
        )
    ]
    layout = {
        "xaxis": {"title": {"text": "images added to the pool"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "distance to the pool"}, "rangemode": "tozero"},
    }
    description = "Line chart: distances from the candidates to the pool, for the picks and for a random selection."
    return _chart("coverage", description, caption, traces, layout)


def embedding_map(images: pd.DataFrame, vectors: np.ndarray, *, totals: Mapping[str, int], caption: str) -> Chart:
    """Build the map of images as points, projected onto two dimensions.

    Args:
        images: filename, kind ("left out", "in the pool before" or "picked") and reason (a sentence); one row or more.
        vectors: Shape (n, d): row i belongs to row i of ``images``.
        totals: Number of images of each kind, on the map or not.
        caption: A sentence, as text.
    """
    points, shares = project(vectors)
    size = 6 if len(points) < 2000 else 4
    traces = []
    for kind, marker in (
        ("left out", {"color": _GRAY, "symbol": "circle-open", "size": size}),
        ("in the pool before", {"color": _GRAY, "symbol": "circle", "size": size}),
        ("picked", {"color": _ACCENT, "symbol": "diamond", "size": 1.4 * size}),  # last, so on top
    ):
        of_kind = np.flatnonzero(images.kind == kind)
        if not len(of_kind):
            continue
        x, y = points[of_kind].T.tolist()
        rows = images.iloc[of_kind]
        traces.append(
            {
                "type": "scatter",
                "name": f"{kind} ({totals[kind]:,})",
                "x": x,
                "y": y,
                "mode": "markers",
                "marker": marker,
                "text": [_hover(*row) for row in zip(rows.filename, rows.reason, strict=True)],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    layout = {
        "hovermode": "closest",
        "showlegend": True,  # of a single kind too: plotly would leave it out
        "xaxis": {"title": {"text": f"first principal component ({shares[0]:.0%} of the variance)"}},
        "yaxis": {"title": {"text": f"second principal component ({shares[1]:.0%})"}, "scaleanchor": "x"},
    }
    description = "Scatter plot: embeddings of the pool, the picks and the images left out."
    return _chart("map", description, caption, traces, layout)


def project(vectors: np.ndarray) -> Projection:
    """Project vectors, shape (n, d), onto their first two principal components (PCA).

    The sign of a component is such that its entry of largest magnitude is positive. Coordinates are rounded to about
    five digits of the largest one.
    """
    # Not by the scatter matrix, as the embedding head is fitted: here there are few images in many dimensions.
    centered = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, lengths, axes = np.linalg.svd(centered, full_matrices=False)
    points, shares = np.zeros((len(vectors), 2)), np.zeros(2)
    for i, axis in enumerate(axes[:2]):
        points[:, i] = centered @ axis * np.sign(axis[np.argmax(np.abs(axis))])
        shares[i] = lengths[i] ** 2 / max((lengths**2).sum(), np.finfo(np.float64).tiny)
    # Processors differ in the last digits only: rounding far above them yields the same page everywhere.
    decimals = 4 - int(np.log10(max(np.abs(points).max(), 1e-30)))
    return Projection(np.round(points, decimals) + 0.0, shares)  # + 0.0 makes -0.0 zero


def _hover(filename: str, reason: str) -> str:
    """Return a hover text of short lines, as the HTML that plotly reads."""
    lines = [
        line
        for text in (filename, reason)
        for line in textwrap.wrap(escape_unprintable(text), 44, drop_whitespace=False)
    ]
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def _line(name: str, x: pd.Series, y: pd.Series, line: dict[str, Any], *, hover: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": name,
        "x": x.tolist(),
        "y": [float(f"{value:.6g}") for value in y],  # six digits: shorter than all, finer than any screen
        "mode": "lines+markers" if len(x) < 60 else "lines",
        "line": line,
        "marker": {"size": 5},
        "hovertemplate": hover,
    }


def _chart(id: str, description: str, caption: str, traces: list[dict[str, Any]], layout: dict[str, Any]) -> Chart:
    # Not objects of plotly: importing them takes a tenth of the CPU time of this stage, and a Figure would add plotly's
    # default template, 7 kB per chart that set colors we do not want. A test lets plotly check the attributes.
    return Chart(id, description, caption, [_sorted(trace) for trace in traces], _sorted(_LAYOUT | layout))


def _sorted(value: Any) -> Any:  # noqa: ANN401  JSON
    """Return JSON with the keys of every object in the order of the alphabet, "type" last, as plotly writes them."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=lambda key: (key == "type", key))}
    return [_sorted(each) for each in value] if isinstance(value, list) else value
