"""The report of a grid's folder: the page and the files beside it, whatever the folder holds."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from scipy import stats as scipy_stats

from bench.errors import UserError
from bench.records.folders import ResultsFolder
from bench.screen import Screen
from reports import page, terminal

GRID = "demo"


@pytest.fixture(scope="module")
def records():
    return synthetic.draw(synthetic.TRUTH, 5, np.random.default_rng(1), missing=[("kd", 3)])


def test_report_of_a_grid_with_everything_wrong(tmp_path, records):
    hostile = '<img src=x onerror=alert(1)> "quoted" $\\frac{1}$ </svg><script>alert(2)</script>'
    bad = synthetic.cell("tfd", 9).model_copy(update={"method": {"type": "own.tfd"}, "label": hostile})
    records = [*records, synthetic.record(bad, 71.0)]
    folder = synthetic.filled(tmp_path, GRID, records, about=hostile)
    manifest = folder.manifest()
    manifest["cells"].append({"id": "cifar100-resnet20-kd-s3-0123456789ab", "label": "kd"})
    manifest["skipped"].append({"what": hostile, "reason": "kd needs a teacher"})
    folder.write_manifest(manifest)
    folder.cell("cifar100-resnet20-kd-s3-0123456789ab").write_failure(f"loss is NaN {hostile}")
    none, newer, edited, not_a_number = [record for record in records if record.cell.label in ("none", "ls")][1:5]
    synthetic.edit(folder, newer, {"schema_version": 99}, seal=True)
    synthetic.edit(folder, edited, {"steps": 1})
    path = synthetic.record_path(folder, not_a_number)
    path.write_text(path.read_text().replace(str(not_a_number.accuracies.last.top1), "NaN"))
    synthetic.record_path(folder, none).with_name("curves.csv").write_text("epoch\n1\n")

    html = page.write(folder, tmp_path / "out").page.read_text()
    for words in ("schema is version 99", "edited by hand", "curves.csv is not the one", "loss is NaN", "kd needs a teacher"):
        assert words in html
    for record in (newer, edited, not_a_number):
        assert f"{GRID}/{record.id}/record.json" in html
        assert record.id not in (tmp_path / "out" / "records.csv").read_text()
    assert not re.search(r"<img|<script>alert|onerror=alert\(1\)>", html)
    assert re.findall('href="#(missing|problems)"', html) == ["missing", "problems"]
    assert "holds for that one teacher" in html
    assert "paired by the seeds that both have" in html
    assert not re.search(r'(?:src|href)="(?!#|data:|tables/|figures/|records\.csv)', html)
    assert html.count('role="img"') == html.count("<svg ") == 5
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    links = set(re.findall('href="#([^"]+)"', html))
    assert set(re.findall('<section id="([^"]+)"', html)) <= links <= set(ids)
    for kind in ("png", "svg", "pdf"):
        assert len(list((tmp_path / "out" / "figures").glob(f"*.{kind}"))) == 5
    assert "\\toprule" in (tmp_path / "out" / "tables" / "summary.tex").read_text()


def test_the_terminal_shows_the_summary(tmp_path, records):
    markup = synthetic.cell("tfd", 9).model_copy(update={"method": {"type": "own.tfd"}, "label": "[red]x[/red]"})
    console = Screen(file=io.StringIO(), width=80)
    terminal.report(synthetic.filled(tmp_path, "empty", []), console)
    terminal.report(synthetic.filled(tmp_path, GRID, [*records, synthetic.record(markup, 71.0)]), console)
    printed = console.file.getvalue()
    assert printed.startswith("No student has been trained yet")
    for words in ("resnet110 → resnet20, cifar100, 50,000 images, 240 epochs", "[red]x[/red]", "1.80×", "2.7 min"):
        assert words in printed


def test_compare_two_folders(tmp_path, records):
    first = synthetic.filled(tmp_path / "a", GRID, records)
    shifted = [
        synthetic.record(r.cell, r.accuracies.last.top1 + (0.5 + r.cell.seed / 50 if r.cell.label == "ls" else 0))
        for r in records
    ]
    synthetic.filled(tmp_path / "b", GRID, shifted)
    html = page.write(first, tmp_path / "out", compare=tmp_path / "b").page.read_text()
    table = pd.read_csv(tmp_path / "out" / "tables" / "compared.csv").set_index("label")
    assert table["claim"].to_dict() == {name: "gain shown" if name == "ls" else "open" for name in synthetic.TRUTH}
    assert table.loc["ls", "gain"] == pytest.approx(0.5 + 2 / 50)
    assert "Beside another results folder" in html


def test_trainings_in_both_precisions_are_set_beside_each_other(tmp_path):
    shifts = [0.1, -0.2, 0.3, 0.0, -0.1, 0.1]
    cells = [synthetic.cell("none", seed) for seed in range(len(shifts))]
    fp32 = [synthetic.record(cell, 60 + cell.seed) for cell in cells]
    bf16 = [
        synthetic.record(cell.model_copy(update={"precision": "bf16"}), 60 + cell.seed + shift)
        for cell, shift in zip(cells, shifts, strict=True)
    ]
    html = page.write(synthetic.filled(tmp_path, GRID, fp32 + bf16), tmp_path / "out").page.read_text()
    [row] = pd.read_csv(tmp_path / "out/tables/precisions.csv").to_dict("records")
    assert (row["n"], row["claim"]) == (6, "equivalent")
    assert row["gain"] == pytest.approx(0.2 / 6)
    assert row["p_equivalent"] == pytest.approx(scipy_stats.ttest_1samp(shifts, 0.3, alternative="less").pvalue)
    assert "none on resnet20, bf16 against fp32: equivalent" in html
    assert "The same trainings in both precisions" in html
    longer = [synthetic.record(synthetic.cell("none", seed, epochs=300), 70 + seed) for seed in range(3)]
    page.write(synthetic.filled(tmp_path, "more", fp32 + bf16 + longer), tmp_path / "out")  # in one of them alone
    [again] = pd.read_csv(tmp_path / "out/tables/precisions.csv").to_dict("records")
    assert (again["n"], again["gain"]) == (6, row["gain"])
    page.write(synthetic.filled(tmp_path, "one", fp32), tmp_path / "single")
    assert not (tmp_path / "single/tables/precisions.csv").exists()


def test_costs_are_shown_before_anything_is_trained(tmp_path, records):
    folder = synthetic.filled(tmp_path, GRID, records)
    for record in records:
        synthetic.record_path(folder, record).unlink()
    html = page.write(folder, tmp_path / "out").page.read_text()
    assert "No student has been trained yet" in html
    table = pd.read_csv(tmp_path / "out" / "tables" / "steps-2-resnet20.csv").set_index("label")
    assert table["ratio"].dropna().to_dict() == pytest.approx({"ls": 1.0, "tfd": 1.03, "tffd": 1.05, "kd": 1.8, "fitnets": 1.8})


def test_a_grid_that_is_not_there_leaves_nothing_behind(tmp_path, records):
    synthetic.filled(tmp_path, GRID, records[:1])
    with pytest.raises(UserError, match=r"unknown results 'dem'; did you mean 'demo'\?"):
        page.write(ResultsFolder(tmp_path).grid("dem"))
    assert [path.name for path in tmp_path.iterdir()] == [GRID]


def test_an_empty_grid_still_has_a_page(tmp_path):
    folder = synthetic.filled(tmp_path, GRID, [])
    html = page.write(folder, tmp_path / "out").page.read_text()
    assert "No student has been trained yet" in html
    assert not re.search('href="#(missing|problems)"', html)  # the contents name no empty section


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory as Linux shows it")
def test_ten_thousand_records_within_fifteen_seconds_and_one_gibibyte(tmp_path):
    pairs = [(student, f"teacher{index}") for student in ("resnet8", "resnet14", "resnet20", "resnet32") for index in range(10)]
    truth = synthetic.TRUTH | dict.fromkeys(("at", "sp", "vid", "rkd", "pkt", "cc", "crd", "ofd", "dkd", "nst"), 0.5)
    records = synthetic.draw(truth, 20, np.random.default_rng(8), pairs=pairs, epochs=60)
    assert len(records) > 9_000
    synthetic.filled(tmp_path, GRID, records)
    code = (
        "import re, time; start = time.perf_counter()\n"
        "from pathlib import Path; from bench.records.folders import ResultsFolder; from reports import page\n"
        f"page.write(ResultsFolder({str(tmp_path)!r}).grid({GRID!r}), Path({str(tmp_path / 'out')!r}));"
        "\npeak_kib = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text()).group(1)"  # ru_maxrss is inherited
        "\nprint(time.perf_counter() - start, time.process_time(), int(peak_kib) / 1024)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, on_cpu, mebibytes = map(float, out.split())
    print(f"{len(records)} records: {seconds:.1f} s, of which {on_cpu:.1f} s computing, {mebibytes:.0f} MiB")
    assert on_cpu < 45  # measured: 9 to 10; a slow machine does not fail, a cost that grows with the square would
    assert mebibytes < 1024
