"""Tables as LaTeX, measured in Computer Modern: the narrow one fits a column, others are shrunk to the text."""

from __future__ import annotations

import re
from functools import cache

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import synthetic
from matplotlib.font_manager import get_font

from reports.tables import latex, tables_of_pair, tables_of_report
from reports.tables.paper import paper
from reports.tables.table import Column, Table

COLUMN = 234.0  # points: of the narrowest of common classes with two columns
SIZE, GAP = 8.0, 3.0  # points: \footnotesize, \tabcolsep


@cache
def font():
    found = get_font(mpl.get_data_path() + "/fonts/ttf/cmr10.ttf")
    found.set_size(100, 72)
    return found


def width(text: str) -> float:
    """Points; signs that the text font lacks are as wide as a plus."""
    font().set_text("".join(char if ord(char) < 128 else "+" for char in text), 0)
    return font().get_width_height()[0] / 64 / 100 * SIZE


def least(table: Table) -> float:
    """The least width that the table needs, its first column broken wherever it can be."""
    needed = []
    for index, column in enumerate(table.columns):
        cells = [row[index] for row in table.rows()]
        texts = cells if index else [piece for cell in cells for piece in latex.pieces(cell)]
        needed.append(max(map(width, [*texts, *latex.stacked(column.title)])))
    return sum(needed) + 2 * GAP * (len(needed) - 1)


@pytest.fixture(scope="module")
def report():
    truth = {"none": 0.0, "ls": 0.0, "tfd": 0.0, "tffd": 0.0, "kd": 15.5, "fitnets": -20.0}
    records = synthetic.draw(truth, 5, np.random.default_rng(1))
    changed = [
        synthetic.record(cell, record.accuracies.last.top1, id=cell.id)
        for record in records
        if record.cell.label == "tfd"
        for cell in [record.cell.model_copy(update={"method": {"type": "tfd", "ramp_epochs": 1, "reduction": "sum"}})]
    ]
    return synthetic.report([*records, *changed])


def test_the_paper_table_fits_a_column(report):
    [pair] = report.pairs
    table = paper(pair)
    assert [column.title for column in table.columns] == ["Method", "Top-1 %", "Gain", "Cost", "with teacher"]
    assert "tfd(ramp_epochs=1, reduction=sum)" in [row[0] for row in table.rows()]
    assert least(table) <= COLUMN
    text = table.latex()
    assert r"\begin{tabularx}{\linewidth}" in text
    assert r"tfd(\allowbreak{}ramp\_\allowbreak{}epochs=1, reduction=sum)" in text.replace(r",\allowbreak{} ", ", ")
    row = pair.methods.set_index("label").loc["kd"]
    assert f"+{row['gain']:.2f} $\\pm$ {row['high'] - row['gain']:.2f}*" in text
    assert r"\usepackage{booktabs,tabularx}" in text


def test_no_other_table_is_wider_than_the_text(report):
    made = [
        table for pair in report.pairs for entry in tables_of_pair for table in [entry.make(pair)] if isinstance(table, Table)
    ]
    made += [table for entry in tables_of_report for table in [entry.make(report)] if isinstance(table, Table)]
    assert len(made) > 8
    for table in filter(None, made):
        text = table.latex()
        shrunk = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%" in text
        assert shrunk != table.narrow, table.name
        assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
        for column in table.columns:
            assert table.narrow or latex.escaped(column.help).rstrip(".") in text  # what a column means is in the caption


def test_headings_stand_on_two_lines_and_names_break_where_they_may():
    assert latex.stacked("Top-1 %, last epoch") == ["Top-1 %,", "last epoch"]
    assert latex.stacked("Method") == ["Method"]
    assert latex.pieces("tfd(ramp_epochs=1, a=b)+kd") == ["tfd(", "ramp_", "epochs=1,", "a=b)+", "kd"]


def test_a_column_more_is_a_column_more():
    frame = pd.DataFrame({"label": ["a & b"], "x": [1.0]})
    text = Table("t", "T", (Column("label", "Method"), Column("x", "X")), frame).latex()
    assert len(re.findall(r"(?<!\\)&", text)) == 2
    assert r"a \& b & 1.0 \\" in text
