"""Records to tables, figures and one page. `reports.load(folder)` gives a notebook the tidy frame."""

from reports.frame import COLUMNS, load

__all__ = ["COLUMNS", "load"]
