"""Gradients in reports: shares of terms against values worked out here, and nothing where none were measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
import synthetic

from bench.records.folders import GridFolder
from reports import page, tfd
from reports.figures.gradient_shares import gradient_shares as drawn
from reports.reading import Curve
from reports.report import Report
from reports.tables.gradient_shares import gradient_shares, percent
from reports.tables.table import count, number

HOSTILE = "x<script>alert(1)</script>|_&$\\frac"


def with_gradients(top1: float, first: str, last: str, term: str = "tfd") -> str:
    """A curve of three epochs. `first`, `last`: values of the columns below; in the middle the cosine is not known."""
    head, *rows = synthetic.curves(3, top1).splitlines()
    head += f",gradient,gradient_ce,gradient_{term},cosine_{term}"
    return "\n".join([head, *(f"{row},{more}" for row, more in zip(rows, (first, "1,1,0,", last), strict=True))]) + "\n"


def folder(tmp_path, term: str = "tfd") -> GridFolder:
    """Two seeds of tfd with gradients, and a plain student without."""
    made = []
    for seed, (first, last) in enumerate([("4,2,0.2,0.5", "5,2,0.01,-1"), ("4,1,0.3,0.1", "5,4,0.04,0")]):
        made.append((synthetic.cell("tfd", seed, epochs=3), with_gradients(60, first, last, term)))
        made.append((synthetic.cell("none", seed, epochs=3), synthetic.curves(3, 60)))
    records = [synthetic.record(cell, 60, curves) for cell, curves in made]
    place = synthetic.filled(tmp_path, "demo", records)
    for record, (_, curves) in zip(records, made, strict=True):
        place.cell(record.id).write_curves(curves)
    return place


def test_shares_are_means_over_seeds_of_ratios(tmp_path):
    [pair] = Report.of_grid(folder(tmp_path)).pairs
    [row] = gradient_shares(pair).frame.to_dict("records")
    assert row.pop("label") == row.pop("term") == "tfd"
    assert row == pytest.approx(
        {
            **{"n": 2, "cosine_first": 0.3, "cosine_last": -0.5},
            **{"of_ce_first": (0.1 + 0.3) / 2, "of_ce_last": (0.005 + 0.01) / 2},
            **{"of_loss_first": (0.05 + 0.075) / 2, "of_loss_last": (0.002 + 0.008) / 2},
        }
    )
    assert gradient_shares(pair).rows() == [["tfd", "tfd", "2", "20 %", "0.75 %", "6.2 %", "0.50 %", "0.30", "−0.50"]]
    figure = drawn(pair)
    assert figure is not None
    assert figure.alt.endswith("along the training: tfd from 6.2 % to 0.50 %.")  # a share of 0 has no logarithm


def test_the_page_states_the_start_the_peak_and_the_end(tmp_path):
    made = tfd.gradient(folder(tmp_path))
    assert "](demo/report/figures/01-resnet20-gradients.png)" in made
    assert "20 % of the norm of the cross-entropy's at the start, 20 % at most (when epoch 1 begins), and 0.75 % when" in made
    assert "lies between −0.50 and 0.30" in made


def test_without_gradients_there_is_neither_table_nor_figure(tmp_path):
    records = synthetic.draw({"none": 0, "tfd": 1}, 2, np.random.default_rng(0), epochs=3)
    for pair in Report.of_grid(synthetic.filled(tmp_path, "demo", records)).pairs:
        assert not gradient_shares(pair)
        assert drawn(pair) is None


def test_a_strangers_term_does_nothing_but_show(tmp_path):
    place = folder(tmp_path, HOSTILE)
    page.write(place)
    written = place.results.root / "demo/report"
    texts = [path.read_text(encoding="utf-8") for path in [*written.glob("*.*"), *written.glob("*/*-gradients.*[mdvx]")]]
    assert sum("alert(1)" in text for text in texts) >= 4
    assert not any("<script>alert" in text for text in texts if not text.startswith("label,"))


def test_what_is_no_number_is_not_known():
    curve = Curve.parse("epoch,test_top1,gradient,gradient_ce\n1,50,,nan\n2,51,inf,1\n")
    assert math.isnan(curve.gradients["gradient"][0])
    assert math.isnan(curve.gradients["gradient_ce"][0])
    with pytest.raises(ValueError, match="could not convert"):
        Curve.parse("epoch,test_top1,gradient\n1,50,much\n")


@pytest.mark.parametrize(("share", "shown"), [(0.00358, "0.36 %"), (1.2, "120 %"), (0.0, "0 %"), (math.nan, "–")])
def test_shares_have_two_digits_that_count(share, shown):
    assert percent(share) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(999_999, "999,999"), (999_600_000_000, "1 T"), (998_000_000_000, "998 G"), (1e6, "1 M")]
)
def test_a_count_never_has_a_thousand_of_a_unit(value, shown):
    assert count(value) == shown


def test_what_rounds_to_nothing_has_no_sign():
    assert [number(2)(value) for value in (-0.001, 0.0, -0.006, -1234.5)] == ["0.00", "0.00", "−0.01", "−1,234.50"]
