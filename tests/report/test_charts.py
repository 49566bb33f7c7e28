"""The charts: projection, labels and the checks of plotly."""

import json

import numpy as np
import pandas as pd
import pytest
from plotly import graph_objects

from datapool.report import charts
from datapool.report.charts import project


def test_principal_components_point_to_where_their_largest_entry_is_positive():
    vectors = np.array([[0, 0], [-4, 1], [4, 1], [0, 2]], dtype=np.float32)

    points, shares = project(vectors)

    # Along x lie -4, 0, 0, 4 (squares 32), along y -1, 0, 0, 1 (squares 2).
    assert points.tolist() == [[0, -1], [-4, 0], [4, 0], [0, 1]]
    assert not np.signbit(points[points == 0]).any()  # -0.0 would be other bytes
    assert shares.tolist() == pytest.approx([32 / 34, 2 / 34])


def test_points_are_rounded_to_five_digits_of_the_largest_coordinate():
    points, _ = project(np.array([[-123.456789], [123.456789]]))

    assert points.tolist() == [[-123.46, 0.0], [123.46, 0.0]]


def test_equal_vectors_lie_on_one_point():
    points, shares = project(np.ones((3, 4), dtype=np.float32))

    assert points.tolist() == [[0.0, 0.0]] * 3
    assert shares.tolist() == [0.0, 0.0]


def test_the_label_at_the_end_of_the_selection_lies_on_the_side_with_more_steps():
    sides = {}
    for n_picked, n_others in ((1, 3), (3, 1), (3, 0)):
        steps = pd.DataFrame({"step": range(1, n_picked + n_others + 1), "distance": 1.0})
        chart = charts.curve(steps[:n_picked], steps[n_picked:], cut=n_picked, min_distance=-1, caption="")
        sides[n_picked, n_others] = chart.layout["annotations"][0]["xanchor"]

    assert sides == {(1, 3): "left", (3, 1): "right", (3, 0): "right"}


def test_a_chart_has_no_template_of_plotly():
    steps = pd.DataFrame({"step": [1], "distance": [1.0]})

    chart = charts.curve(steps, steps[:0], cut=1, min_distance=-1, caption="")

    assert "template" not in chart.layout
    assert chart.traces == [
        {
            "type": "scatter",
            "name": "picked",
            "x": [1],
            "y": [1.0],
            "mode": "lines+markers",
            "line": {"color": "#0d9488", "width": 2},
            "marker": {"size": 5},
            "hovertemplate": "step %{x}: %{y:.4g}",
        }
    ]


def test_plotly_accepts_every_chart_and_would_write_the_same():
    taken, after = pd.DataFrame({"step": [1], "distance": [0.9]}), pd.DataFrame({"step": [2], "distance": [0.3]})
    means = {"step": [0, 1], "chosen": [0.4, 0.2], "random": 0.4, "chosen_p99": 0.9, "random_p99": 0.9}
    kinds = ["left out", "in the pool before", "picked"]
    images = pd.DataFrame({"filename": ["a", "b", "c"], "kind": kinds, "reason": "why"})
    made = [
        charts.curve(taken, after, cut=1, min_distance=0.5, caption=""),
        charts.coverage(pd.DataFrame(means), caption=""),
        charts.embedding_map(images, np.eye(3, dtype=np.float32), totals=dict.fromkeys(kinds, 1), caption=""),
    ]

    # plotly refuses an attribute that plotly.js does not know, and has its own order of keys.
    for chart in made:
        checked = [graph_objects.Scatter(trace).to_plotly_json() for trace in chart.traces]
        assert json.dumps(chart.traces) == json.dumps(checked)
        assert json.dumps(chart.layout) == json.dumps(graph_objects.Layout(chart.layout).to_plotly_json())
    assert [len(chart.traces) for chart in made] == [2, 4, 3]
