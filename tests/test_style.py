"""A style file: every table and figure obeys, and no number changes."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import synthetic
import yaml

from bench.errors import UserError
from reports import page
from reports.report import Report
from reports.style import DEFAULT, Style, read
from reports.tables.table import Column, Table

PAIRS = [(f"resnet{depth}", "resnet110") for depth in (8, 14, 20)]
STYLE = {
    "names": {"tfd": "Ours", "kd": "Hinton"},
    "methods": ["tfd", "kd"],
    "order": ["tfd", "kd"],
    "colors": {"tfd": "#123456"},
    "width": 3.4,
    "font": "serif",
    "font_size": 7,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    truth = {"none": 0.0, "kd": 1.5, "tfd": 0.5, "at": 1.0, "fitnets": 0.0}
    records = synthetic.draw(truth, 3, np.random.default_rng(1), pairs=PAIRS)
    return synthetic.filled(tmp_path_factory.mktemp("results"), "demo", records)


@pytest.fixture(scope="module")
def styled(folder, tmp_path_factory):
    """The folder of a report in that style."""
    file = tmp_path_factory.mktemp("style") / "paper.yaml"
    file.write_text(yaml.safe_dump(STYLE))
    to = tmp_path_factory.mktemp("report")
    return page.write(folder, to=to, style=file)


def test_the_shipped_style_is_the_default():
    assert read(DEFAULT) == Style()


def test_every_table_and_figure_obeys(styled):
    to = styled.page.parent
    texts = {path: path.read_text(encoding="utf-8") for path in (*to.glob("tables/*"), *to.glob("figures/*.svg"))}
    assert len(texts) > 60
    for path, text in texts.items():
        words = set(re.findall(r"[\w+]+", re.sub(r"<style.*?</style>|<metadata.*?</metadata>", "", text, flags=re.DOTALL)))
        assert "fitnets" not in words, path
        if path.suffix != ".csv" and path.stem != "published-costs":  # families, and what a cost was published beside
            assert not words & {"kd", "tfd"}, path
    assert any("Ours" in text for path, text in texts.items() if path.suffix == ".svg")
    assert any("#123456" in text for path, text in texts.items() if path.suffix == ".svg")
    assert "Not shown, as the style asks: at, fitnets. They count in all corrections." in styled.page.read_text()
    assert list(dict.fromkeys(styled.summary["label"])) == ["Ours", "Hinton", "none"]
    figure = (to / "figures/01-resnet110-resnet14-gains.svg").read_text()
    assert f'width="{3.4 * 72:g}' in figure


def test_numbers_stay(folder, styled):
    plain = Report.of_grid(folder, style=Style()).summary
    names = {"tfd": "Ours", "kd": "Hinton"}
    plain["label"] = plain["label"].map(lambda label: names.get(label, label))
    key = ["pair", "label"]
    both = styled.summary.merge(plain, on=key, suffixes=("", "_plain"))
    assert len(both) == 9
    for column in ("gain", "low", "high", "p_adjusted", "comparisons", "gain_kd", "p_adjusted_kd", "ratio"):
        pd.testing.assert_series_equal(both[column], both[f"{column}_plain"], check_names=False)


def test_rows_keep_their_blocks():
    frame = pd.DataFrame({"pair": ["a", "a", "b", "b"], "label": ["kd", "at", "kd", "at"], "x": range(4)})
    table = Table("t", "T", (Column("label", "Method"),), frame).styled(Style(order=["at"]))
    assert list(table.frame["x"]) == [1, 0, 3, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nmes: {a: b}", "unknown key 'nmes'; did you mean 'names'"),
        ("width: wide", "width: a number"),
        ("colors: {kd: red}", "colors.kd: a color such as #1f77b4, not 'red'"),
        ("names: {kd: ' '}", "names.kd: a line of at most 80 characters, not ' '"),
        ('names: {kd: "a\\u202eb"}', "names.kd: a line of at most 80 characters, not 'a\\u202eb'"),
        ("- kd", "a style file is a mapping with keys names, methods, order"),
        ("a: [", "not YAML"),
    ],
)
def test_what_cannot_be_is_named(text, message, tmp_path):
    file = tmp_path / "style.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read(file)
    assert str(file) in str(caught.value)


def test_names_in_vain_and_twice_and_a_font_that_is_not_there(folder, tmp_path):
    style = Style(names={"kdd": "Ours"})
    assert "style, names: unknown method 'kdd'; did you mean 'kd'" in style.in_vain(["kd", "tfd"])[0]
    assert Style().in_vain(["kd"]) == Style().hidden(["kd"]) == []
    with pytest.raises(UserError, match="at and kd would both be called 'Ours'"):
        Report.of_grid(folder, style=Style(names={"kd": "Ours", "at": "Ours"}))
    file = tmp_path / "style.yaml"
    file.write_text("font: DejaVu Snas")
    with pytest.raises(UserError, match="unknown font 'DejaVu Snas'; did you mean 'DejaVu Sans'"):
        page.write(folder, to=tmp_path / "report", style=file)
