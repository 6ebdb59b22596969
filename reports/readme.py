"""What our pages show of cards and records: `python -m reports.readme` (`make readme`) writes it, a test compares it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from bench.records.folders import ResultsFolder
from reports import gpu, headline, page, published, speed, tfd

ROOT = Path(__file__).resolve().parents[1]
PAGES = tuple(  # in a reader's order: a page may use files that former pages show
    ROOT / name
    for name in (
        *("README.md", "methods/README.md", "bench/grids/README.md", "docs/install.md", "docs/measured.md", "docs/commands.md"),
        *("docs/cluster.md", "docs/python.md", "docs/own.md", "docs/speed.md", "reports/README.md"),
        "results/reference/README.md",
    )
)
REFERENCE = ROOT / "results" / "reference"
GRIDS = ("cifar100_30", "cifar100_short", "tfd_sensitivity", "precision_check")  # whose records lie there
BLOCK = re.compile(r"(<!-- (\w+): .*? -->\n)(.*?)(<!-- /\2 -->)", re.DOTALL)


def methods() -> str:
    """From the methods' cards, as `list methods` shows them; those without a teacher first."""
    from bench.plan import catalogue  # which imports torch: all else here works without

    columns = [[str(cell).replace("|", "\\|") for cell in column.cells] for column in catalogue.table("methods").columns]
    order = {"none": 0, "self": 1, "teacher": 2}
    rows = sorted(zip(*columns, strict=True), key=lambda row: (order.get(row[1], 3), row[0]))
    lines = ["| method | needs | what | paper |", "|---|---|---|---|"]
    for key, needs, what, paper in rows:
        linked = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", paper)
        linked = re.sub(r"doi:(\S+\w)", r"[doi:\1](https://doi.org/\1)", linked)
        lines.append(f"| `{key}` | {needs.replace('none', '–')} | {what} | {linked} |")
    return "\n".join(lines) + "\n"


def speeds() -> str:
    """From the records of `run_bench.py speed --json`: with each piece switched off, and of methods that share a teacher."""
    pieces, together = (json.loads((REFERENCE / name).read_text()) for name in ("speed_cpu.json", "speed_together_cpu.json"))
    return speed.markdown(pieces) + speed.lock_step_markdown(together)


def on_gpu() -> str:
    """From the lines of `make gpu`, and the records of `cifar100_30`, which were trained there."""
    driven = json.loads((REFERENCE / "gpu_h200.json").read_text())
    records, _ = ResultsFolder(REFERENCE).grid("cifar100_30").records()
    return gpu.markdown(driven, [record for record in records if record.machine.device == driven["machine"]["device"]])


def first() -> str:
    """From the records of `cifar100_30`."""
    return headline.first(ResultsFolder(REFERENCE).grid("cifar100_30"))


def claimed() -> str:
    """From the numbers that the TFD paper printed."""
    printed = _printed()
    return tfd.claimed(printed[printed["method"].isin(["none", "tfd"])])


def trained() -> str:
    """From the records of `cifar100_30`."""
    return tfd.trained(ResultsFolder(REFERENCE).grid("cifar100_30"))


def main_answer() -> str:
    """From the records of `cifar100_30`."""
    return _answer("cifar100_30")


def results() -> str:
    """From the records of `cifar100_short`."""
    return _answer("cifar100_short")


def _answer(grid: str) -> str:
    printed = _printed()
    return headline.answer(ResultsFolder(REFERENCE).grid(grid), printed[printed["student"].eq("resnet20")])


def _printed() -> pd.DataFrame:
    """Tables 1 and 2 of the TFD paper, a row for each student and method."""
    known = published.read()
    tables = known[known["source"].eq("Li et al. 2022 (TFD)") & known["table"].isin(["1", "2"])]
    return tables[tables["student"].isin(tables.loc[tables["method"].eq("tfd"), "student"])].drop_duplicates(
        ["student", "method"]
    )


def sensitivity() -> str:
    """From the records of `tfd_sensitivity`."""
    return headline.along(ResultsFolder(REFERENCE).grid("tfd_sensitivity"))


def precision() -> str:
    """From the records of `precision_check`."""
    return headline.precisions(ResultsFolder(REFERENCE).grid("precision_check"))


def repeating() -> str:
    """From the records of all reference grids."""
    return headline.repeating(ResultsFolder(REFERENCE), GRIDS)


BLOCKS: dict[str, Callable[[], str]] = {
    "methods": methods,
    "speed": speeds,
    "gpu": on_gpu,
    "first": first,
    "claimed": claimed,
    "trained": trained,
    "answer": main_answer,
    "results": results,
    "sensitivity": sensitivity,
    "precision": precision,
    "repeating": repeating,
}


def blocks_of(text: str) -> dict[str, str]:
    """The generated blocks of a page, by name."""
    return {match[2]: match[3] for match in BLOCK.finditer(text)}


def updated(text: str) -> str:
    """A page with its generated blocks made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]]()}{match[4]}", text)


def main() -> None:
    for name in GRIDS:  # whose figures the pages show
        page.write(ResultsFolder(REFERENCE).grid(name))
    for path in PAGES:
        path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
