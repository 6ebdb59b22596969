"""Tables: each a function in a file of this folder, on the list of tables of one pair or on that of the report."""

from __future__ import annotations

from reports.listing import Listing
from reports.pair import Pair
from reports.report import Report
from reports.tables.table import Table

tables_of_pair: Listing[Pair, Table | list[Table] | None] = Listing(__name__)
tables_of_report: Listing[Report, Table | list[Table] | None] = Listing(__name__)
