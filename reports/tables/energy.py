"""What electricity training takes, where it was metered."""

from __future__ import annotations

from reports.report import Report
from reports.tables import tables_of_report
from reports.tables.table import Column, Table, number

KJ_PER_KWH = 3600.0


@tables_of_report(12, section="across")
def energy(report: Report) -> Table | None:
    """Energy of a training with its spread, and the CO2 that goes with it where the user states how much a kWh stands for."""
    if not report.pairs or report.summary["energy_kj"].isna().all():
        return None
    frame = report.style.shown(report.summary)
    frame = frame[frame["energy_kj"].notna()].copy()
    for suffix in ("", "_low", "_high"):
        frame[f"wh{suffix}"] = 1000 * frame[f"energy_kj{suffix}"] / KJ_PER_KWH
    columns = [
        Column("pair", "Pair"),
        Column("label", "Method"),
        Column("wh", "Wh", number(2), "lowest and highest window of the meter in brackets", low_high=("wh_low", "wh_high")),
    ]
    if report.grams_per_kwh:
        frame["co2_g"] = frame["wh"] / 1000 * report.grams_per_kwh
        columns.append(Column("co2_g", "CO2, g", number(2), f"at {report.grams_per_kwh:g} g a kWh, as stated"))
    note = "Of one training, the teacher's own not counted: the GPU and the CPU packages, no cooling and no power supply."
    return Table("energy", "Energy of a training", tuple(columns), frame, note)
