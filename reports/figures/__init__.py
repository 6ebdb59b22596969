"""Figures: each a function in a file of this folder, on the list of figures of one pair or on that of the report."""

from __future__ import annotations

from reports.figures.style import Figure
from reports.listing import Listing
from reports.pair import Pair
from reports.report import Report

figures_of_pair: Listing[Pair, Figure | list[Figure] | None] = Listing(__name__)
figures_of_report: Listing[Report, Figure | list[Figure] | None] = Listing(__name__)
