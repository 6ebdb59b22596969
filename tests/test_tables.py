"""Tables and figures of synthetic records, against values worked out by hand."""

from __future__ import annotations

import importlib
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from scipy import stats as scipy_stats

from bench.records.record import Timing
from bench.stats import CostWord
from reports import overall, page, sweeps, verdicts
from reports.design import Design
from reports.figures.accuracy_cost import frontier
from reports.figures.sweeps import sweep
from reports.reading import Curve
from reports.summary import summary as summary_of
from reports.tables import tables_of_pair
from reports.tables.across_pairs import search
from reports.tables.cost import cost
from reports.tables.over_time import time_to
from reports.tables.steps import step_parts
from reports.tables.table import Column, Table
from reports.tables.trainings import trainings

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def records():
    return synthetic.draw(synthetic.TRUTH, 5, np.random.default_rng(1), missing=[("kd", 3)])


def test_a_sweep_is_one_argument_varied_and_all_else_equal():
    def variant(weight, reduction="mean", **more):
        cell = synthetic.cell("tfd", 0)
        arguments = {"type": "tfd", "weight": weight, "reduction": reduction, **more}
        cell = cell.model_copy(update={"method": arguments, "label": f"{weight} {reduction} {more}"})
        return synthetic.record(cell, 60 + weight, id=cell.id)

    varied = [variant(w) for w in (0.1, 0.01, 0.001)] + [variant(w, "sum") for w in (1, 0.1, 0.01)]
    alone = [variant(0.1, stages=[1, 2]), variant(0.2, "sum", ramp=2), variant(0.3, "sum", ramp=2)]  # too few of a kind
    [pair] = synthetic.report([*varied, *alone, synthetic.record(synthetic.cell("none", 0), 60)]).pairs
    [found] = sweeps.find(pair.runs)
    assert found.argument == "tfd.weight"
    assert [(line.label, [value for value, _ in line.points]) for line in found.lines] == [
        ("tfd.reduction mean", [0.001, 0.01, 0.1]),
        ("tfd.reduction sum", [0.01, 0.1, 1]),
    ]
    assert pair.labels[found.lines[0].points[0][1]] == "tfd(weight=0.001)"
    figure = sweep(found, pair)
    drawn = dict(figure.files())
    assert "tfd.reduction sum 1: 61.00 %" in figure.alt
    assert "accuracy along tfd.weight" in str(drawn["01-resnet20-tfd-weight.svg"])
    assert "accuracy along tfd.weight" not in figure.inline()  # the page has captions of its own


def test_summary_by_hand(records):
    summary = summary_of(synthetic.frame(records)).set_index("label")
    kd = [record.accuracies.last.top1 for record in records if record.cell.label == "kd"]
    assert summary.loc["kd", "n"] == 4
    assert summary.loc["kd", "top1"] == pytest.approx(np.mean(kd))
    assert summary.loc["kd", "half"] == pytest.approx(scipy_stats.t.ppf(0.975, 3) * np.std(kd, ddof=1) / 2)
    assert summary.loc["kd", ["ratio", "with_teacher_ratio"]].tolist() == pytest.approx([1.8, 6.8])
    assert summary.loc["kd", "flattery"] == pytest.approx(0.4)
    assert summary["top1"].is_monotonic_decreasing
    assert summary.loc["kd", "unpaired"] == 1


def test_costs_in_flops_where_nothing_was_timed(records):
    summary = summary_of(synthetic.frame(records, costs=[])).set_index("label")
    assert summary.loc["kd", "ratio"] == pytest.approx(2.5)
    assert summary.loc["kd", "with_teacher_ratio"] == pytest.approx(2.5 + 5)
    assert set(summary["cost_word"]) == {CostWord.UNKNOWN, CostWord.COUNTED}
    assert set(summary["cost_unit"]) == {"FLOPs"}


def timed(label, ms, records, **changes):
    cell = next(record.cell for record in records if record.cell.label == label and record.cell.student["type"] == "resnet20")
    return synthetic.cost(cell).model_copy(update={"step": Timing(turns_ms=tuple(ms))} | changes)


def test_costs_are_compared_turn_by_turn(records):
    drift = np.linspace(10, 30, 25)  # the machine slows down threefold: quartiles of any two methods overlap
    noise = np.where(np.arange(25) % 2, 0.99, 1.01)
    costs = [
        timed("none", drift, records),
        timed("tfd", 1.04 * drift, records),
        timed("ls", drift * noise, records),
        timed("kd", 1.5 * drift * noise, records),
        timed("fitnets", 0.5 * drift, records, session="another"),
    ]
    summary = summary_of(synthetic.frame(records, costs), costs).set_index("label")
    assert summary["cost_word"].to_dict() == {
        "none": CostWord.UNKNOWN,
        "tfd": CostWord.MORE,
        "ls": CostWord.OPEN,
        "kd": CostWord.MORE,
        "fitnets": CostWord.APART,
        "tffd": CostWord.UNKNOWN,
    }
    assert summary.loc["tfd", ["ratio", "ratio_low", "ratio_high"]].tolist() == pytest.approx([1.04] * 3)
    assert summary.loc["ls", ["ratio_low", "ratio_high"]].tolist() == pytest.approx([0.99, 1.01])
    assert summary.loc["tfd", "ratio_kd"] == pytest.approx(1.04 / 1.5 / 1.01)
    assert summary.loc["fitnets", "ratio"] == pytest.approx(0.5)
    assert summary.loc["fitnets", ["ratio_low", "ratio_kd_low"]].isna().all()
    [pair] = synthetic.report(records, costs).pairs
    shown = {row[0]: row for row in cost(pair).rows()}
    assert "1.04× [1.04×, 1.04×]" in shown["tfd"]
    stated = {row["label"]: verdicts._cost(row) for row in summary.reset_index().to_dict("records")}
    assert stated["tfd"].replace("\N{NO-BREAK SPACE}", " ") == ", at 1.04 times its training time (1.04× to 1.04×)"
    assert stated["ls"].replace("\N{NO-BREAK SPACE}", " ") == ", at 1.01 times its training time (0.99× to 1.01×, open)"
    assert "not timed in turn" in stated["fitnets"]
    assert stated["tffd"] == ""
    assert any("timed in turn" in line for line in overall.caveats(summary.reset_index(), Design(), 0, ["here"]))


def test_costs_that_are_close_ask_for_a_second_session(records):
    near = synthetic.report(records)  # tfd takes 10.3 ms, tffd 10.5, none 10
    [text] = [text for text in overall.caveats(near.summary, near.design, 0, ("box",)) if "One session" in text]
    assert text.startswith(("Costs of tfd and tffd lie within a tenth", "Costs of tffd and tfd lie within a tenth"))


def test_a_busy_machine_is_a_caveat(records):
    summary = summary_of(synthetic.frame(records))
    warned = [
        any("Other work used" in line for line in overall.caveats(summary, Design(), 0, [], busy)) for busy in (9.0, 42.0)
    ]
    assert warned == [False, True]


def test_costs_of_trainings_on_several_processes_are_marked(tmp_path):
    cells = [synthetic.cell("none", seed) for seed in range(2)]
    shared = [cell.model_copy(update={"recipe": cell.recipe.model_copy(update={"processes": 4})}) for cell in cells]
    for grid, some in (("alone", cells), ("shared", shared)):
        folder = synthetic.filled(tmp_path, grid, [synthetic.record(cell, 70) for cell in some])
        html = page.write(folder).page.read_text(encoding="utf-8")
        assert ("Up to 4 processes shared out a batch" in html) == (grid == "shared")


def test_a_preparation_phase_is_in_the_ratio():
    none, ft = synthetic.cell("none", 0), synthetic.cell("ft", 0)
    costs = [synthetic.cost(none), synthetic.cost(ft, step_ms=20.0).model_copy(update={"prepare_step": synthetic.timing(5.0)})]
    records = [synthetic.record(none, 60, steps=1000), synthetic.record(ft, 60, steps=1000, prepare_steps=400)]
    summary = summary_of(synthetic.frame(records, costs), costs).set_index("label")
    assert summary.loc["ft", ["ratio", "ratio_low"]].tolist() == pytest.approx([(1000 * 20 + 400 * 5) / 10_000] * 2)


def test_time_to_accuracy_without_the_teacher_and_with_it():
    cells = [synthetic.teacher_cell(), synthetic.cell("none", 0)]
    kd = synthetic.cell("kd", 0, teacher="resnet110")
    records = [synthetic.record(cell, 70) for cell in [*cells, kd]]
    straight = Curve(np.linspace(70 / 240, 70, 240), np.full(240, np.nan))
    [pair] = synthetic.report(records, curves={record.id: straight for record in records}).pairs
    reached = time_to(pair, [35.0, 71.0]).frame.set_index("label")
    assert reached.loc["none", "35.0"] == pytest.approx(12.0)  # half of 24 s
    assert reached.loc["kd", "35.0"] == pytest.approx(21.6)
    assert reached["71.0"].isna().all()
    assert reached.loc["none", "35.0_with_teacher"] == pytest.approx(12.0)
    assert reached.loc["kd", "35.0_with_teacher"] == pytest.approx(21.6 + 120)


def test_the_step_is_split_with_quartiles():
    cells = {"none": synthetic.cell("none", 0), "kd": synthetic.cell("kd", 0, teacher="resnet110")}
    costs = {name: synthetic.cost(cell) for name, cell in cells.items()}
    table = step_parts(costs, costs["none"], "s", "S")
    assert table.rows()[1][:3] == ["kd", "18.00 [17.82, 18.18]", "1.80× [1.80×, 1.80×]"]
    assert table.frame.set_index("label")["teacher_ms"].to_dict() == {"none": 0.0, "kd": 8.0}
    assert table.rows()[1][-3:-1] == ["8.00", "1.00× [1.00×, 1.00×]"]  # the teacher alone, and its share against that
    assert table.rows()[0][-3:-1] == ["–", "–"]


def test_search_takes_what_validation_prefers_and_counts_the_cost_of_all():
    records = []
    for weight, top1 in ((0.005, 60.0), (0.01, 62.0)):
        for seed in (0, 1):
            cell = synthetic.cell("tfd", seed).model_copy(update={"method": {"type": "tfd", "weight": weight}})
            records.append(synthetic.record(cell, top1, id=cell.id))
    validation = {0.005: 65.0, 0.01: 64.0}  # disagrees with the test set
    curves = {r.id: Curve(np.array([50.0]), np.array([validation[r.cell.method["weight"]]])) for r in records}
    row = search(synthetic.report(records, curves=curves)).frame.iloc[0]
    assert (row["chosen"], row["variants"], row["top1"]) == ("tfd", 2, 60.0)
    assert row["search_s"] == pytest.approx(4 * 2400 * 0.0103)


def test_markdown_latex_and_csv_survive_hostile_text():
    hostile = "a|b <script>alert(1)</script> 50% _x_ \\ $y$ & {z} #1\nnew"
    table = Table("t", hostile, (Column("label", "Method"),), pd.DataFrame({"label": [hostile]}))
    markdown = table.markdown()
    assert "<script" not in markdown
    assert len(markdown.strip().splitlines()) == 5
    latex = table.latex()
    assert r"50\% \_x\_ \textbackslash{} \$y\$ \& \{z\} \#1 new" in latex
    assert pd.read_csv(io.StringIO(table.csv()))["label"].item() == hostile


def test_quantiles_failures_and_fit_by_hand():
    values = [60.0, 61.0, 20.0]
    records = [
        synthetic.record(synthetic.cell("none", seed), value, train_top1=90.0 + seed, test_nll=1.5)
        for seed, value in enumerate(values)
    ]
    [pair] = synthetic.report(records).pairs
    [row] = trainings(pair).rows()
    assert row == ["none", "3", "0", "20.00", "60.00", "61.00", "91.00", "1.500"]  # no calibration error is known


def test_pareto_frontier():
    cost, accuracy = np.array([1.0, 2.0, 3.0, 3.0, 4.0]), np.array([5.0, 4.0, 6.0, 7.0, 7.0])
    assert list(frontier(cost, accuracy)) == [0, 3]


def test_a_file_with_a_decorated_function_is_on_the_list(tmp_path, monkeypatch):
    """As a new table or figure: nothing else has to name it."""
    package = tmp_path / "demo_tables"
    package.mkdir()
    (package / "__init__.py").write_text("from reports.listing import Listing\nlisted = Listing(__name__)\n")
    for name, place in (("first", 30), ("second", 10)):
        code = f"from demo_tables import listed\n\n\n@listed({place})\ndef make(pair):\n    return {name!r}\n"
        (package / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    listed = importlib.import_module("demo_tables").listed
    assert [entry.make(None) for entry in listed] == ["second", "first"]


def test_the_table_in_contributing_is_one(records):
    [code] = re.findall(r"```python\n(from reports.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    space: dict = {}
    exec(code, space)
    try:
        [pair] = synthetic.report(records).pairs
        table = space["spread"](pair)
        assert [row[0] for row in table.rows()] == sorted(synthetic.TRUTH)
        assert any(entry.make is space["spread"] for entry in tables_of_pair)
    finally:
        tables_of_pair._entries[:] = [entry for entry in tables_of_pair._entries if entry.make is not space["spread"]]
