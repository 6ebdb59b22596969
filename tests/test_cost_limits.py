"""How long costs are measured, what interrupts it, what energy is known of, and what a plan makes of all that."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import small
import synthetic
from tiny_grid import expanded

from bench.measure import costs, pace, probe
from bench.measure.pace import FEWEST, Pace, tight
from bench.plan import estimate as planning
from bench.records.folders import ResultsFolder
from bench.records.options import Options
from bench.screen import Screen
from reports.report import Report
from reports.tables.energy import energy
from run_bench import main

CPU = Options(device="cpu", threads=1)


class Now:
    """A clock that goes on when it is asked to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.s = 0.0
        monkeypatch.setattr(pace.time, "monotonic", lambda: self.s)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SPAN_S", 0.001)
    monkeypatch.setattr(probe, "joules", lambda action, device: None)


def test_ratios_are_tight_when_they_are_known_to_a_percent() -> None:
    drift = [10.0 * (1 + turn / 10) for turn in range(12)]  # of the machine: it meets both alike
    assert tight([drift, [1.3 * value for value in drift]])
    assert not tight([drift])  # alone it is no ratio
    assert not tight([drift, [value * (1.3 if turn % 2 else 1.4) for turn, value in enumerate(drift)]])
    assert tight([[10.0 + turn / 1000 for turn in range(12)]])


def test_groups_share_the_time_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lines = Now(monkeypatch), []
    limit = Pace(100.0, lines.append)
    limit.begin([1, 3, 1])
    assert limit.enter_group(50)
    now.s = 21.0
    assert limit.over()  # a fifth of 100
    assert not limit.over(2)
    now.s = 20.0
    assert limit.enter_group(50)
    now.s = 30.0
    limit.count(10)
    assert lines[-1] == "group 2 of 3, round 10 of 50 at most; 57 s left at most"  # 40 here, a third of 50 for the last
    limit.count(15, most=25)
    assert lines[-1].startswith("group 2 of 3, round 25 of 25 at most")
    now.s = 101.0
    assert not limit.enter_group(50)
    unlimited = Pace()
    unlimited.begin([1])
    now.s = 1e6
    assert unlimited.enter_group(50)
    assert not unlimited.over()


def test_little_time_leaves_few_turns_and_then_groups_out(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = expanded(methods=["none", "ls", "tfd"], pairs=[{"student": "resnet8"}])
    folder = ResultsFolder(tmp_path).grid(grid.name)
    monkeypatch.setattr(probe, "tight", lambda turns: False)
    assert costs.measure(grid.cells, folder, CPU, console=Screen(), minutes=1e-9) == 3
    assert folder.costs() == ([], [])
    assert "3 of 3 costs are not measured; `cost` measures them" in capsys.readouterr().out
    monkeypatch.setattr(Pace, "over", lambda self, part=1.0: True)
    costs.measure(grid.cells, folder, CPU, minutes=0)
    found, _ = folder.costs()
    assert {len(timing.turns_ms) for cost in found for timing in (cost.step, *cost.parts.values())} == {FEWEST}
    assert len(found) == 3


def test_what_is_tight_ends_early(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = expanded()
    folder = ResultsFolder(tmp_path).grid(grid.name)
    seen = []
    monkeypatch.setattr(probe, "tight", lambda turns: seen.append(len(turns[0])) or len(turns[0]) == 12)
    [cost] = probe.measure(grid.cells, folder, CPU)
    assert seen == [10, 11, 12]
    assert len(cost.step.turns_ms) == 12


def test_an_interrupted_probe_goes_on_to_the_report(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "TURNS", 2)
    measure = probe.measure

    def interrupted(*given: Any) -> Any:
        yield from itertools.islice(measure(*given), 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(probe, "measure", interrupted)
    grid = small.write_grid(tmp_path, methods=["none", "kd"], recipe={"name": "digits", "epochs": 1})
    at = ["--results", str(tmp_path / "results"), "--device", "cpu", "--cluster", "debug", "--threads", "1"]
    assert main(["run", grid, *at]) == 0
    printed = capsys.readouterr().out
    assert "measuring was interrupted" in printed
    assert "2 of 3 costs are not measured" in printed
    assert "report: " in printed
    assert len(ResultsFolder(tmp_path / "results").grid("small").costs()[0]) == 1


# Energy


def test_energy_has_windows_of_5_s_in_random_order(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = expanded(methods=["none", "tfd", "ls", "kd"])
    folder = ResultsFolder(tmp_path).grid(grid.name)
    monkeypatch.setattr(probe, "TURNS", 2)
    monkeypatch.setattr(probe.Probe, "take_steps", lambda self, count, preparing=False: taken.append((self.cell.label, count)))
    taken: list[tuple[str, int]] = []
    windows: list[tuple[str, int]] = []
    energies = itertools.cycle([10.0, 30.0, 11.0, 13.0])

    def joules(action: Any, device: object) -> float:
        taken.clear()
        action()
        windows.extend(taken)
        return next(energies)

    monkeypatch.setattr(probe, "joules", joules)
    monkeypatch.setattr(probe.Probe, "_timed", lambda self, action: 2000.0)  # ms
    found = list(probe.measure([cell for cell in grid.cells if cell.teacher or cell.label != "none"], folder, CPU))
    assert {count for _, count in windows} == {3}  # the least that lasts 5 s
    labels = [label for label, _ in windows]
    assert len(labels) == 3 * len(found)
    rounds = [labels[start : start + len(found)] for start in range(0, len(labels), len(found))]
    assert all(sorted(each) == sorted(rounds[0]) for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1
    for cost in found:
        assert cost.energy_windows_j_per_step is not None
        assert len(cost.energy_windows_j_per_step) == 3
        assert min(cost.energy_windows_j_per_step) <= (cost.energy_j_per_step or 0) <= max(cost.energy_windows_j_per_step)


def test_the_report_states_the_spread_of_energy_and_co2(tmp_path: Path) -> None:
    records = synthetic.draw({"none": 0.0, "tfd": 0.0}, 3, synthetic.np.random.default_rng(0))
    folder = synthetic.filled(tmp_path, "small", records, costs=False)
    for one in synthetic.costs_of(records):
        metered = {"energy_j_per_step": 3.0, "energy_windows_j_per_step": (2.9, 3.0, 3.6)}
        folder.write_cost(one.model_copy(update=metered if one.label == "tfd" else {"energy_j_per_step": 3.0}))
    table = energy(Report.of_grid(folder, grams_per_kwh=400.0))
    assert table
    rows = {row[1]: row[2:] for row in table.rows()}
    assert rows == {"tfd": ["2.00 [1.93, 2.40]", "0.80"], "none": ["2.00", "0.80"]}  # 2400 steps of 3 J
    plain = energy(Report.of_grid(folder))
    assert plain
    assert [column.title for column in plain.columns] == ["Pair", "Method", "Wh"]


# Plans


def test_a_plan_is_in_hours_on_named_hardware_and_in_kwh() -> None:
    grid = expanded(methods=["none", "kd"], pairs=[{"student": "resnet8", "teacher": "resnet14"}])
    teacher, plain, kd = grid.cells
    assert "`cost` measures the steps, and then the time is known" in planning.estimate(grid.cells, grid.shapes, [])
    probed = [synthetic.cost(cell, step_ms=3_600_000.0).model_copy(update={"energy_j_per_step": 3.6e6}) for cell in (plain, kd)]
    both = planning.estimate([plain, kd], grid.shapes, probed, grams_per_kwh=400)
    # 40 images in batches of 16 are 3 steps an epoch, and 2 epochs: 6 steps of 1 h and 1 kWh each
    assert both.endswith("about 12.0 hours one after the other on Example 3000 x2; about 12 kWh, 4.8 kg of CO2")
    every = planning.estimate(grid.cells, grid.shapes, probed)
    assert "(2 of 3 cells by their probed step, the others by their FLOPs)" in every
    found = planning.work([teacher, plain], grid.shapes, probed)
    flops = [planning.work([cell], grid.shapes, []).flops for cell in (teacher, plain)]
    assert found.seconds == pytest.approx(6 * 3600 * (1 + flops[0] / flops[1]))
    assert found.joules == pytest.approx(1000 * found.seconds)  # at the power that was metered
    gpu = [cost.model_copy(update={"machine": cost.machine.model_copy(update={"device": "NVIDIA H100"})}) for cost in probed]
    recorded = [cost.model_copy(update={"path": "graph", "step": synthetic.timing(1_800_000.0)}) for cost in gpu]
    eager = [cost.model_copy(update={"path": "eager"}) for cost in gpu]
    assert "about 6 GPU-hours on NVIDIA H100 / Example 3000 x2" in planning.estimate(
        [plain, kd], grid.shapes, [*recorded, *eager]
    )


@pytest.mark.parametrize(("seconds", "text"), [(50, "50 seconds"), (2160, "36 minutes"), (34560, "9.6 hours")])
def test_times_are_in_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert planning._time(seconds) == text
