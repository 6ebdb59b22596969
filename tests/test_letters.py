"""Names in any script: figures warn of nothing, and hold letters or plain stand-ins."""

from __future__ import annotations

import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.text import Text

from reports.figures import letters, style
from reports.maps import draw

CHINESE = "名前"


@pytest.fixture
def drawing():
    figure, axes = style.canvas(2.0, f"resnet8, {CHINESE}, −1 → ± é")
    axes.barh([0, 1], [1.0, 2.0])
    axes.set_yticks([0, 1], labels=["kd", f"{CHINESE}x"])
    axes.set_xlabel(f"top-1 % on {CHINESE}")
    axes.annotate(CHINESE, (1.0, 0.0))
    return figure


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(Text))


def test_letters_without_a_font_are_replaced_in_png_and_pdf_and_stay_in_svg(drawing, monkeypatch):
    monkeypatch.setattr(letters, "_font_with", lambda wanted: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = style.finished(drawing, "f", "t", "a")
        assert all(content for _, content in figure.files())
    assert CHINESE in figure.svg
    assert "−1 → ± é" in figure.svg
    found = texts(figure.canvas)
    assert CHINESE not in found
    assert {"??x", "top-1 % on ??"} <= {text.get_text() for text in figure.canvas.findobj(Text)}
    assert "−1 → ± é" in found.replace("\n", " ")
    assert [label.get_text() for label in figure.canvas.axes[0].get_yticklabels()] == ["kd", "??x"]


def test_a_font_that_has_the_letters_is_used(drawing, tmp_path, monkeypatch):
    """No machine of ours has a Chinese font: one that is said to have the letters stands for it."""
    other = next(font for font in font_manager.fontManager.ttflist if "Display" in font.name or font.name == "STIXGeneral")
    monkeypatch.setattr(letters, "_font_with", lambda wanted: other.name)
    figure = style.finished(drawing, "f", "t", "a")
    chinese = [text for text in figure.canvas.findobj(Text) if CHINESE in text.get_text()]
    assert len(chinese) >= 4
    assert all(text.get_family()[-1] == other.name for text in chinese)
    assert all(other.name not in text.get_family() for text in figure.canvas.findobj(Text) if text.get_text() == "kd")


def test_installed_fonts_are_searched_for_letters():
    assert letters._font_with(frozenset("\u25a1\u03b1")) is not None
    assert letters._font_with(frozenset("\U0010fffd")) is None


def test_plain_figures_stay_byte_for_byte(drawing):
    for text in drawing.findobj(Text):
        text.set_text(text.get_text().replace(CHINESE, "digits"))
    drawing.axes[0].set_yticks([0, 1], labels=["kd", "x"])
    figure = style.finished(drawing, "f", "t", "a")
    assert letters.lacking(figure.canvas) == set()


def test_maps_of_classes_with_such_names_warn_of_nothing():
    images = np.zeros((1, 8, 8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw(images, [CHINESE], [(f"kd, {CHINESE}", [CHINESE], np.zeros((1, 8, 8)))])


def test_what_is_no_letter_is_spelled_out_in_every_figure():
    """A PDF with a zero in a text cannot be drawn; an SVG with a control character cannot be read."""
    hostile = "a\0b\x1b[1m\x0b\u202ec\u200b"
    figure, axes = style.canvas(1.5, hostile)
    axes.set_yticks([0, 1], labels=[hostile, "kd"])
    axes.set_xlabel(hostile, parse_math=False)
    made = style.finished(figure, "f", "t", "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(content for _, content in made.files())
    ElementTree.fromstring(made.svg)
    assert r"a\x00b\x1b[1m\x0b\u202ec\u200b" in made.svg
