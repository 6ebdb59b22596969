"""What our pages show of cards and records: `python -m reports.readme` (`make readme`) writes it, a test compares it."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import pandas as pd
from PIL import Image, PngImagePlugin

from bench.records.folders import ResultsFolder
from reports import gpu, headline, page, published, speed, tfd
from reports.tables.table import markdown_text

ROOT = Path(__file__).resolve().parents[1]
PAGES = tuple(  # in a reader's order: a page may use files that former pages show
    ROOT / name
    for name in (
        *("README.md", "methods/README.md", "bench/grids/README.md", "docs/install.md", "docs/measured.md", "docs/commands.md"),
        *("docs/cluster.md", "docs/python.md", "docs/own.md", "docs/speed.md", "reports/README.md"),
        "results/reference/README.md",
    )
)
METHODS = ROOT / "docs" / "methods"  # a page for each
REFERENCE = ROOT / "results" / "reference"
PRECISIONS = ("precision_check", "precision_check_tfd")
# whose records lie there
GRIDS = ("cifar100_30", "cifar100_240", "cifar100_short", "tfd_sensitivity", "tfd_gradient", *PRECISIONS)
RUN_BY = {  # what trains those that do not ship
    "cifar100_30": "results/reference/cifar100_30.yaml",
    "cifar100_240": "results/reference/cifar100_240.yaml",
    "tfd_gradient": "results/reference/tfd_gradient.yaml --hook GradientShares",
    "precision_check_tfd": "results/reference/precision_check_tfd.yaml",
}
BLOCK = re.compile(r"(<!-- (\w+): .*? -->\n)(.*?)(<!-- /\2 -->)", re.DOTALL)
WRITTEN = re.compile(r"<span>written [^<]*</span>")  # when a page was made


def methods() -> str:
    """From the methods' cards, as `list methods` shows them; those without a teacher first."""
    from bench.plan import catalogue  # which imports torch: all else here works without

    columns = [[str(cell).replace("|", "\\|") for cell in column.cells] for column in catalogue.table("methods").columns]
    order = {"none": 0, "self": 1, "teacher": 2}
    rows = sorted(zip(*columns, strict=True), key=lambda row: (order.get(row[1], 3), row[0]))
    lines = ["| method | needs | what | paper |", "|---|---|---|---|"]
    for key, needs, what, paper in rows:
        lines.append(f"| [`{key}`](../docs/methods/{key}.md) | {needs.replace('none', '–')} | {what} | {_linked(paper)} |")
    return "\n".join(lines) + "\n"


def _linked(paper: str) -> str:
    text = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", paper)
    return re.sub(r"doi:(\S+\w)", r"[doi:\1](https://doi.org/\1)", text)


def _escaped(text: str) -> str:
    """With code in backticks left as it is."""
    words, code = text.split("`")[::2], text.split("`")[1::2]
    shown = [re.sub(r"\S.*\S|\S", lambda found: markdown_text(found[0]), part, flags=re.DOTALL) for part in words]
    return "`".join(part for both in zip_longest(shown, code) for part in both if part is not None)


def method_pages() -> dict[str, str]:
    """A page for each method, by its registry key, from its card, as `show` prints it."""
    from bench.plan import catalogue

    pages = {}
    for key, method in catalogue.methods().items():
        facts = catalogue.facts_of(method)
        lines = [
            f"# `{key}`: {method.card.title}",
            "",
            "<!-- `make readme` writes this page from the method's card -->",
            "",
            *("```text", facts.pop("loss"), "```", ""),
            *(f"- {name}: {_linked(_escaped(value))}" for name, value in facts.items()),
        ]
        arguments = catalogue.arguments_table(method)
        if arguments:
            lines += ["", "| argument | default | type |", "|---|---|---|"]
            lines += [f"| `{name}` | `{default}` | {markdown_text(kind)} |" for name, default, kind in arguments]
        for preset, values in method.presets.items():
            lines += ["", f"Preset `{preset}`: `{', '.join(f'{name}={value}' for name, value in values.items())}`"]
        lines += ["", "```text", inspect.getdoc(method) or "", "```", "", "[All methods](../../methods/README.md)", ""]
        pages[key] = "\n".join(lines)
    return pages


def speeds() -> str:
    """From the records of `run_bench.py speed --json`: with each piece switched off, and of methods that share a teacher."""
    pieces, together = (json.loads((REFERENCE / name).read_text()) for name in ("speed_cpu.json", "speed_together_cpu.json"))
    return speed.markdown(pieces) + speed.lock_step_markdown(together)


def on_gpu() -> str:
    """From the lines of `make gpu`, and the records of the grids that were trained there."""
    driven = json.loads((REFERENCE / "gpu_h200.json").read_text())
    grids = [ResultsFolder(REFERENCE).grid(name) for name in ("cifar100_30", "cifar100_240")]
    records = [record for grid in grids for record in grid.records()[0]]
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


def full_length() -> str:
    """From the records of `cifar100_240`, and from the numbers that the TFD paper printed."""
    printed = _printed()
    return tfd.full_length(ResultsFolder(REFERENCE).grid("cifar100_240"), printed[printed["student"].eq("resnet20")])


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


def gradient() -> str:
    """From the records of `tfd_gradient`."""
    return tfd.gradient(ResultsFolder(REFERENCE).grid("tfd_gradient"))


def precision() -> str:
    """From the records of the grids that train in both precisions: a table each, since each has a margin of its own."""
    return "\n".join(headline.precisions(ResultsFolder(REFERENCE).grid(name)) for name in PRECISIONS)


def repeating() -> str:
    """From the records of all reference grids."""
    return headline.repeating(ResultsFolder(REFERENCE), GRIDS, RUN_BY)


BLOCKS: dict[str, Callable[[], str]] = {
    "methods": methods,
    "speed": speeds,
    "gpu": on_gpu,
    "first": first,
    "claimed": claimed,
    "trained": trained,
    "full_length": full_length,
    "answer": main_answer,
    "results": results,
    "sensitivity": sensitivity,
    "gradient": gradient,
    "precision": precision,
    "repeating": repeating,
}


def blocks_of(text: str) -> dict[str, str]:
    """The generated blocks of a page, by name."""
    return {match[2]: match[3] for match in BLOCK.finditer(text)}


def updated(text: str) -> str:
    """A page with its generated blocks made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]]()}{match[4]}", text)


def photographed(report: Path, picture: Path) -> bool:
    """Write the first screen of a page as PNG, unless the picture is of this very page; False where there is no browser.

    A browser draws some letters differently each time. So the picture holds a digest of its page, the date left out.
    """
    source = hashlib.sha256(WRITTEN.sub("", report.read_text(encoding="utf-8")).encode()).hexdigest()
    if picture.is_file():
        with Image.open(picture) as former:
            if former.info.get("Source") == source:
                return True
    browser = shutil.which("chromium")
    if browser is None:
        return False
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1400,1060")
    command = [browser, *flags, f"--screenshot={picture}", report.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603  (our own page)
    about = PngImagePlugin.PngInfo()
    about.add_text("Source", source)
    with Image.open(picture) as taken:
        taken.copy().save(picture, pnginfo=about, optimize=True)
    return True


def main() -> None:
    for name in GRIDS:  # whose figures the pages show
        page.write(ResultsFolder(REFERENCE).grid(name))
    for key, text in method_pages().items():
        (METHODS / f"{key}.md").write_text(text, encoding="utf-8")
    if not photographed(REFERENCE / "cifar100_short/report/report.html", ROOT / "reports/example.png"):
        print("reports/example.png stays as it is: no chromium on PATH")
    for path in PAGES:
        path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
