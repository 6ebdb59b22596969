"""How many students must share a teacher before it pays."""

from __future__ import annotations

from reports.break_even import frame_of
from reports.frame import SHARED_BY
from reports.pair import Pair
from reports.tables import tables_of_pair
from reports.tables.table import Column, Table, seconds, students

NOTE = (
    "Smallest number of students sharing one teacher at which a point gained costs fewer training seconds, beyond the plain "
    "student's, than the rival's point; 95 % interval over seeds and turns. The price of an extra point is that of a point "
    f"gained beyond the rival, the teacher shared by {SHARED_BY}; it has an interval where that gain is shown."
)


@tables_of_pair(60)
def break_even(pair: Pair) -> Table:
    """Each method with a teacher against each without; a copy of itself is on a method's own bill."""
    columns = (
        Column("label", "With a teacher"),
        Column("rival", "Without"),
        Column("students", "Students that must share", students, "estimate, 95 % interval", low_high=("low", "high")),
        Column("basis", "Basis"),
        Column("extra_price", "Price of an extra point", seconds, "over the rival", low_high=("extra_low", "extra_high")),
    )
    title = f"{pair.full_title}: how many students must share a teacher before it pays"
    return Table(f"{pair.name}-break-even", title, columns, frame_of(pair), NOTE)
