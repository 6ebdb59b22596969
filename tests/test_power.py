"""What `plan` states of a design: the seeds that a gain takes, where its spread is from, and where it sees nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import synthetic
import yaml

from bench import run
from bench.plan import power
from bench.records.options import Options
from bench.stats.planning import seeds_needed, spread_interval
from run_bench import main

METHODS = ["none", "kd", "ls", "tfd", "tffd"]
GRID = {
    "data": "cifar100",
    "seeds": [0, 1, 2],
    "pairs": [{"student": "resnet20", "teacher": "resnet110"}],
    "methods": METHODS,
}


def planned(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str, **changes: object) -> str:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(GRID | changes))
    assert main(["plan", str(file), "--results", str(tmp_path / "results"), "--device", "cpu", *arguments]) == 0
    return capsys.readouterr().out


def test_detect_states_the_seeds_of_every_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = planned(tmp_path, capsys, "--detect", "0.3", primary=["tfd"], margin=0.5)
    assert "a true gain of 0.3 points with probability 0.8, at a spread of 0.42 points (a guess; --spread" in printed
    assert f"2 primary comparisons: {seeds_needed(0.3, 0.42, 2)} seeds; this grid has 3, with probability 0.06" in printed
    assert f"5 exploratory comparisons: {seeds_needed(0.3, 0.42, 5)} seeds" in printed
    assert "exceeds 0.5 points" in printed
    assert "warning" not in printed
    stated = planned(tmp_path, capsys, "--detect", "0.3", "--spread", "0.2")
    assert f"all 7 comparisons: {seeds_needed(0.3, 0.2, 7)} seeds" in stated
    assert f"declared `primary`: {seeds_needed(0.3, 0.2)} seeds" in stated


def test_the_spread_comes_from_earlier_records_of_the_same_data_and_student(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs with a spread of .4 beyond what their seed shares: differences have .4 sqrt(2) = .57."""
    truth = {"none": 0.0, "ls": 0.0, "tfd": 0.2, "tffd": 0.3}
    records = synthetic.draw(truth, 30, np.random.default_rng(5), spread=0.4)
    synthetic.filled(tmp_path / "results", "earlier", records, costs=False)
    synthetic.filled(tmp_path / "results", "another", synthetic.draw(truth, 5, np.random.default_rng(5), data="digits"))
    printed = planned(tmp_path, capsys, "--detect", "0.3")
    assert "(from records of earlier, 95 % interval" in printed
    file = tmp_path / "mine.yaml"
    grid, folder = run.plan(str(file), tmp_path / "results", options=Options(device="cpu"))
    found = power.spread_of(grid, folder)
    assert found.value == pytest.approx(0.4 * 2**0.5, rel=0.1)
    assert found.df == pytest.approx(3 * 29 / 1.5)
    low, high = spread_interval(found.value, found.df)
    assert low < 0.4 * 2**0.5 < high
    assert power.spread_of(grid, folder, elsewhere=False).source.startswith("a guess")


def test_plan_warns_of_what_cannot_be_seen_and_of_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = [*METHODS, *("fitnets", "at", "sp", "pkt", "rkd", "cc", "vid", "nst", "dkd", "crd", "reviewkd")]
    assert len(many) == 16
    printed = planned(tmp_path, capsys, methods=many)
    assert "warning: gains of 0.3 points, which the field reports, are out of sight of all 29 comparisons" in printed
    assert "this grid has 3, with probability below 0.01" in printed
    wide = planned(tmp_path, capsys, seeds=list(range(20)), primary=["tfd"], methods=["none", "tfd", "ls"])
    assert "warning" not in wide
    assert "warning" not in planned(tmp_path, capsys, methods=["none"])
    sequential = planned(tmp_path, capsys, seeds={"most": 20}, primary=["tfd"], teacher_seeds="each")
    assert "warning" not in sequential
    weak = planned(tmp_path, capsys, seeds={"most": 6}, primary=["tfd"])
    assert "this grid spends 3 to 6, with probability" in weak


@pytest.mark.parametrize("value", ["0", "-1", "much"])
def test_a_gain_is_a_number_above_zero(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "quick", f"--detect={value}"])
    assert ended.value.code == 2
    assert f"--detect: a number above 0, not '{value}'" in capsys.readouterr().err
