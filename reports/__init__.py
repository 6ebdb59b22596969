"""Records to tables, figures and one page. `reports.load(folder)` gives a notebook the tidy frame."""

from reports.frame import COLUMNS
from reports.loading import (
    CURVE_COLUMNS,
    GAIN_COLUMNS,
    TURN_COLUMNS,
    load,
    load_by_image,
    load_curves,
    load_gains,
    load_turns,
)

__all__ = [
    "COLUMNS",
    "CURVE_COLUMNS",
    "GAIN_COLUMNS",
    "TURN_COLUMNS",
    "load",
    "load_by_image",
    "load_curves",
    "load_gains",
    "load_turns",
]
