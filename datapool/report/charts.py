"""Draw the selection curve, the coverage and the map of the embeddings with plotly.

Plain values in, HTML and JavaScript out; knows nothing of the page around them. Names and reasons stay text: in a chart
they become neither markup nor code. The same values give the same bytes.
"""

import html
import json
import textwrap
from collections.abc import Iterable, Mapping
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
_CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtons": [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
}


class Chart(NamedTuple):
    """A chart, or in its place a sentence that says why there is none."""

    figure: str
    """HTML: the place for it, with the id ``curve``, ``coverage`` or ``map``, and its caption."""
    call: str
    """JavaScript that draws it there; empty if there is no chart."""


class Projection(NamedTuple):
    """Vectors in two dimensions."""

    points: np.ndarray
    """Shape (n, 2)."""
    shares: np.ndarray
    """Shape (2,): the share of the variance along each direction."""


def scripts(charts: Iterable[Chart]) -> list[str]:
    """Give the JavaScript that draws the charts: plotly.js, then the calls; nothing for no chart."""
    calls = "".join(chart.call for chart in charts)
    if not calls:
        return []
    from plotly.offline import get_plotlyjs

    return [get_plotlyjs(), calls]


def curve(picked: pd.DataFrame, others: pd.DataFrame, *, cut: int, min_distance: float, caption: str) -> Chart:
    """Draw the distance at each step of a ranking, and where the selection ended.

    Args:
        picked: The steps taken: step (from 1) and distance.
        others: The steps after them, not taken. One of the two may be empty.
        cut: The last step taken; marked.
        min_distance: Marked, unless negative.
        caption: A sentence, as text.
    """
    traces = []
    for name, part, line in (
        ("picked", picked, {"color": _ACCENT, "width": 2}),
        ("not picked", others, {"color": _GRAY, "width": 2, "dash": "dot"}),
    ):
        if len(part):
            traces.append(_line(name, part.step, part.distance, line, hover="step %{x}: %{y:.4g}"))
    n_others = others.step.max() - cut if len(others) else 0
    lines: list[dict[str, Any]] = [{"x0": cut + 0.5, "x1": cut + 0.5, "y0": 0, "y1": 1, "yref": "paper"}]
    words: list[dict[str, Any]] = [{"x": cut + 0.5, "y": 1, "yref": "paper", "text": f"cut after {cut:,}"}]
    words[0] |= {"yanchor": "top", "xanchor": "left" if cut < n_others else "right"}  # where there is room
    if min_distance >= 0:
        lines.append({"x0": 0, "x1": 1, "xref": "paper", "y0": min_distance, "y1": min_distance})
        text = f"min_distance {min_distance:g}"
        words.append({"x": 1, "xref": "paper", "y": min_distance, "yanchor": "bottom", "text": text})
    layout = {
        "xaxis": {"title": {"text": "step"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "distance"}, "rangemode": "tozero"},
        "shapes": [line | {"line": {"color": _GRAY, "width": 1, "dash": "dash"}} for line in lines],
        "annotations": [word | {"showarrow": False} for word in words],
    }
    return _chart("curve", "Line chart: the distance at each step of the selection.", caption, traces, layout)


def coverage(curve: pd.DataFrame, *, caption: str) -> Chart:
    """Draw how near the candidates come to the pool, for the choice and for a random one.

    Args:
        curve: step (how many were taken so far), chosen and random (mean distances), chosen_p99 and random_p99 (within
            which 99 % lie); one row or more.
        caption: A sentence, as text.
    """
    chosen, random = {"color": _ACCENT, "width": 2}, {"color": _GRAY, "width": 2, "dash": "dot"}
    traces = [
        _line(name, curve.step.astype("int64"), curve[column], line, hover="after %{x}: %{y:.4g}")
        for name, column, line in (
            ("chosen, 99 % within", "chosen_p99", chosen),
            ("random, 99 % within", "random_p99", random),
            ("chosen, mean", "chosen", chosen),
            ("random, mean", "random", random),
        )
    ]
    layout = {
        "xaxis": {"title": {"text": "images added to the pool"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "distance to the pool"}, "rangemode": "tozero"},
    }
    alt = "Line chart: distances from the candidates to the pool, for the choice and for a random one."
    return _chart("coverage", alt, caption, traces, layout)


def embedding_map(images: pd.DataFrame, vectors: np.ndarray, *, totals: Mapping[str, int], caption: str) -> Chart:
    """Draw images as points, on the two main directions of their vectors.

    Args:
        images: filename, kind ("left out", "in the pool before" or "picked") and reason (a sentence); one row or more.
        vectors: Shape (n, d): row i belongs to row i of ``images``.
        totals: How many images of each kind there are, drawn or not.
        caption: A sentence, as text.
    """
    points, shares = project(vectors)
    size = 6 if len(points) < 2000 else 4
    traces = []
    for kind, look in (
        ("left out", {"color": _GRAY, "symbol": "circle-open", "size": size}),
        ("in the pool before", {"color": _GRAY, "symbol": "circle", "size": size}),
        ("picked", {"color": _ACCENT, "symbol": "diamond", "size": 1.4 * size}),  # last, so on top
    ):
        of_kind = np.flatnonzero(images.kind == kind)
        if len(of_kind):
            trace = _trace(f"{kind} ({totals[kind]:,})", *points[of_kind].T.tolist())
            texts = [_hover(name, why) for name, why in images[["filename", "reason"]].iloc[of_kind].to_numpy()]
            look_and_text = {"marker": look, "text": texts, "hovertemplate": "%{text}<extra></extra>"}
            traces.append(trace | {"mode": "markers"} | look_and_text)
    layout = {
        "hovermode": "closest",
        "xaxis": {"title": {"text": f"first direction ({shares[0]:.0%} of the variance)"}},
        "yaxis": {"title": {"text": f"second direction ({shares[1]:.0%})"}, "scaleanchor": "x"},
    }
    alt = "Scatter chart: embeddings of the pool, the picks and the images left out."
    return _chart("map", alt, caption, traces, layout)


def project(vectors: np.ndarray) -> Projection:
    """Project vectors, shape (n, d), on their two main directions (PCA), each turned so that its largest entry is > 0."""
    centered = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, lengths, axes = np.linalg.svd(centered, full_matrices=False)
    points, shares = np.zeros((len(vectors), 2)), np.zeros(2)
    for i, axis in enumerate(axes[:2]):
        points[:, i] = centered @ axis * np.sign(axis[np.argmax(np.abs(axis))])
        shares[i] = lengths[i] ** 2 / max((lengths**2).sum(), np.finfo(np.float64).tiny)
    # Rounded far above what differs from processor to processor; + 0.0 makes -0.0 zero.
    return Projection(np.round(points, 4 - int(np.log10(max(np.abs(points).max(), 1e-30)))) + 0.0, shares)


def _hover(name: str, reason: str) -> str:
    """Two texts for plotly, which reads a little HTML."""
    lines = [
        line for text in (name, reason) for line in textwrap.wrap(escape_unprintable(text), 44, drop_whitespace=False)
    ]
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def _line(name: str, x: pd.Series, y: pd.Series, line: dict[str, Any], *, hover: str) -> dict[str, Any]:
    trace = _trace(name, x.tolist(), [float(f"{value:.6g}") for value in y])
    mode = "lines+markers" if len(x) < 60 else "lines"
    return trace | {"mode": mode, "line": line, "marker": {"size": 5}, "hovertemplate": hover}


def _trace(name: str, x: list[float], y: list[float]) -> dict[str, Any]:
    return {"type": "scatter", "name": name, "x": x, "y": y}


def _chart(name: str, alt: str, caption: str, traces: list[dict[str, Any]], layout: dict[str, Any]) -> Chart:
    place = f'<div id="{name}" role="img" aria-label="{alt}"></div>'
    arguments = ", ".join(_json(value) for value in (name, traces, _LAYOUT | layout, _CONFIG))
    return Chart(
        f'<figure class="chart">{place}<figcaption>{html.escape(caption)}</figcaption></figure>',
        f"Plotly.newPlot({arguments});\n",
    )


def _json(value: object) -> str:
    """JSON for a script element: no text in it can end the element or open a comment."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
