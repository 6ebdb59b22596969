"""Figures: nothing is cut off at an edge, names stay different, and what could show nothing is not drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import synthetic
from matplotlib.image import imread

from reports.figures import style
from reports.figures.accuracy_cost import accuracy_cost
from reports.figures.learning_curves import learning_curves
from reports.reading import Curve

SHIPPED = sorted((Path(__file__).resolve().parents[1] / "results" / "reference").glob("*/report/figures/*.png"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parts[-4]}-{path.stem}")
def test_no_shipped_figure_is_cut_off_at_an_edge(path):
    drawn = imread(path)[..., :3]
    for edge in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
        assert np.abs(edge - drawn[0, 0]).max() < 0.02


@pytest.mark.parametrize(
    "title", ["short", "w" * 10 + " wide words" * 30, "resnet8, 10,000 images (lr=0.1, nesterov=True): what it costs"]
)
def test_a_title_takes_as_many_lines_as_it_needs(title):
    figure, _ = style.canvas(2.0, title)
    [text] = figure.texts
    assert text.get_text().split() == title.split()
    assert text.get_window_extent().x1 <= figure.bbox.width


def test_names_beside_a_drawing_show_what_differs():
    labels = [f"tfd(weight={weight}, reduction=sum)" for weight in (0.0005, 5e-05)]
    assert style.names_beside(["kd", *labels]) == ["kd", *(label.replace(", ", ",\n") for label in labels)]
    long = [f"tfd(ramp_epochs=0, {'x' * 40}, weight={weight}, {'y' * 40})" for weight in (0.1, 0.2)]
    assert len(set(style.names_beside(long))) == 2


def test_curves_say_how_many_methods_they_leave_out():
    records = synthetic.draw({"none": 0} | {f"m{index}": index for index in range(9)}, 2, np.random.default_rng(0))
    curve = Curve(np.linspace(10, 60, 9), np.full(9, np.nan))
    [pair] = synthetic.report(records, curves={record.id: curve for record in records}).pairs
    figure = learning_curves(pair)
    assert "8 of 10 methods: the most accurate, and the plain student" in figure.svg
    assert figure.alt.endswith("Not drawn: m1, m0.")


def test_accuracy_against_cost_is_not_drawn_where_all_cost_the_same():
    pairs = synthetic.report(synthetic.draw({"none": 0}, 3, np.random.default_rng(0))).pairs
    assert [accuracy_cost(pair) for pair in pairs] == [None, None]
