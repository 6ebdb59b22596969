"""Sequential seeds: further seeds for open comparisons alone, the same after any interruption, and verdicts that may look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import synthetic
from small import GRID, results, write_grid

from bench import run
from bench.errors import UserError
from bench.jobs.base import Backend, Handed, Watch
from bench.jobs.debug import Debug
from bench.plan import grid_file, seeds
from bench.plan.expand import expand
from bench.records.cell import Cell
from bench.records.folders import GridFolder
from bench.records.options import Options
from bench.stats import SeedRule, Word, follow
from reports import overall, verdicts
from reports.report import Report
from run_bench import main

CPU = Options(device="cpu", threads=1)
RULE = {"first": 3, "most": 6, "until": 0.3}
METHODS = ["none", "kd", "tfd", "ls"]
GAINS = {"none": 0.0, "kd": 0.0, "tfd": 3.0, "ls": 0.0, "tffd": 0.0}  # tfd is shown early, kd and ls stay open


def top1(cell: Cell, gains: Mapping[str, float]) -> float:
    """An accuracy in %: the same for a cell whenever it is asked for."""
    family = cell.method["type"]
    rng = np.random.default_rng([cell.seed, list(GAINS).index(family), "4" in cell.student["type"]])
    return float(60 + gains[family] + rng.normal(0, 0.3))


class Pretending(Backend):
    """Writes records of trainings that never happened, teachers first."""

    gains: dict[str, float] = GAINS
    fails: tuple[str, int] | None = None  # a method and the seed at which it fails
    dies_after: int | None = None  # cells
    leaves: bool = False  # before the jobs have ended, as on a cluster
    rounds: ClassVar[list[int]] = []  # cells of each call, of all of them

    def train(self, cells: Sequence[Cell], folder: GridFolder, options: Options, wait: bool, watch: Watch) -> Handed:
        self.rounds.append(len(cells))
        for number, cell in enumerate(cells):
            if self.dies_after is not None and number == self.dies_after:
                raise KeyboardInterrupt
            place = folder.cell(cell.id)
            if self.fails == (cell.method["type"], cell.seed):
                place.write_failure("ValueError: the loss is not finite")
                continue
            if place.settled() or (cell.teacher and cell.teacher.cell and not folder.cell(cell.teacher.cell).done()):
                continue
            value = top1(cell, self.gains)
            curve = synthetic.curves(cell.recipe.epochs, value)
            place.write_curves(curve)
            place.write_record(synthetic.record(cell, value, curve))
        return Handed(len(cells), ended=wait or not self.leaves)


@pytest.fixture
def ask(tmp_path: Path) -> Any:
    """Runs a grid with sequential seeds; keys of the grid can be changed, and how its backend behaves."""

    def run_it(root: str = "results", wait: bool = False, **changes: Any) -> run.Outcome:
        behavior = {name: changes.pop(name) for name in ("gains", "fails", "dies_after", "leaves") if name in changes}
        Pretending.rounds.clear()
        grid = write_grid(tmp_path, **({"methods": METHODS, "seeds": RULE} | changes))
        return run.run(grid, tmp_path / root, options=CPU, backend=Pretending(**behavior), costs=False, wait=wait)

    return run_it


def trained(folder: GridFolder) -> dict[str, int]:
    """How many seeds of each method have a record; teachers left out."""
    cells = [record.cell for record in folder.records()[0] if record.cell.student["type"] == "resnet8"]
    return {label: sum(cell.label == label for cell in cells) for label in METHODS}


def expanded(**changes: Any) -> Any:
    return expand("small", GRID | {"methods": METHODS, "seeds": RULE} | changes, device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": {"first": 1, "most": 5}}, "small, seeds.first: a number of 2 or more, not 1"),
        ({"seeds": {"first": 6, "most": 5}}, "small, seeds: most must be at least first, 6, not 5"),
        ({"seeds": {"first": 3}}, "small, seeds.most: the key is missing"),
        ({"seeds": {"first": 3, "most": 500}}, "small, seeds.most: .* 100, not 500"),
        ({"seeds": {"most": 5, "untill": 0.5}}, "unknown key 'untill'; did you mean 'until'. Known: first, most, until"),
        ({"seeds": {"most": 5, "until": 0}}, "small, seeds.until: a number above 0"),
        ({"seeds": RULE, "margin": 0.5}, "small, seeds.until: 0.3 contradicts margin, 0.5; leave one of them out"),
        ({"seeds": RULE, "teacher_seeds": 3}, "small, teacher_seeds: first or each with sequential seeds"),
        ({"seeds": RULE, "also": [{"seeds": [0]}]}, r"also\[0\], seeds: sequential seeds are one rule"),
        ({"seeds": RULE, "methods": ["none"]}, "small, seeds: nothing is compared"),
        ({"seeds": []}, "small, seeds: at least 1 item, not"),
        ({"seeds": [0, -1]}, "small, seeds.1: a number of 0 or more, not -1"),
        ({"seeds": "all"}, "small, seeds: a list, not"),
    ],
)
def test_bad_rules_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        expand("small", GRID | {"methods": METHODS} | changes, device="cpu").manifest()


def test_a_grid_begins_with_its_first_seeds_and_holds_back_the_others() -> None:
    grid, plain = expanded(), expanded(seeds=list(range(6)))
    assert [cell.id for cell in grid.every] == [cell.id for cell in plain.cells]  # the same trainings
    assert {cell.seed for cell in grid.cells} == {0, 1, 2}
    assert grid.rule == SeedRule(3, 6, 5, 0.3)
    assert expanded(primary=["tfd"]).rule.comparisons == 2
    assert expanded(seeds={"most": 6}, margin=0.5).rule.margin == 0.5
    assert plain.rule is None
    own = expanded(teacher_seeds="each")
    teachers = {cell.id: cell for cell in own.cells if cell.student["type"] == "resnet8x4"}
    assert sorted(cell.seed for cell in teachers.values()) == [0, 1, 2]
    order = [cell.id for cell in own.every]
    assert all(order.index(cell.id) > order.index(cell.teacher.cell) for cell in own.every if cell.teacher)
    _, raw = grid_file.read("quick", ["seeds={first: 2, most: 4}"])
    assert expand("quick", raw, device="cpu").rule.most == 4
    _, raw = grid_file.read("tfd_question", ["data=digits"])
    assert expand("tfd_question", raw, device="cpu").rule == SeedRule(3, 20, 2, 0.3)


def test_seeds_go_to_what_is_open_and_the_run_stops_by_itself(ask: Any, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = ask(primary=["tfd", "ls"])
    assert outcome.complete
    found = {(each.comparison.against, label(each)): each for each in seeds.look_at(outcome.folder)[1]}
    tfd, ls = found["none", "tfd"], found["none", "ls"]
    assert (tfd.word, tfd.decided) == (Word.SHOWN, True)
    assert tfd.seeds < 6
    assert (ls.word, ls.seeds, ls.decided) == (Word.OPEN, 6, True)
    counts = trained(outcome.folder)
    assert counts["tfd"] == max(tfd.seeds, found["kd", "tfd"].seeds) < 6
    assert (counts["none"], counts["ls"], counts["kd"]) == (6, 6, 6)
    assert (Pretending.rounds[0], len(Pretending.rounds)) == (13, 4)
    looks = outcome.folder.manifest()["looks"]
    assert [max(each["seeds"] for each in one["comparisons"]) for one in looks] == [3, 4, 5, 6]
    assert looks[0]["rule"] == {"first": 3, "most": 6, "comparisons": 4, "margin": 0.3}
    assert all(each["cells"] for one in looks for each in one["comparisons"])
    before = (outcome.folder.results.root / "small/manifest.json").read_bytes()
    again = ask(primary=["tfd", "ls"])
    assert (again.complete, Pretending.rounds) == (True, [])
    assert (outcome.folder.results.root / "small/manifest.json").read_bytes() == before
    capsys.readouterr()
    assert main(["status", "small", "--results", str(outcome.folder.results.root)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"tfd against none on resnet8: shown after {tfd.seeds} seeds, +" in printed
    assert "4 of 4 comparisons have ended" in printed
    assert "warning: there were" not in printed


def label(each: seeds.Standing) -> str:
    return next(iter(each.comparison.method.values())).label


def test_exploratory_methods_have_the_first_seeds_alone(ask: Any) -> None:
    counts = trained(ask(primary=["tfd"], gains=GAINS | {"tfd": 0.0}).folder)
    assert (counts["ls"], counts["tfd"], counts["none"], counts["kd"]) == (3, 6, 6, 6)


@pytest.mark.parametrize("dies_after", [0, 2])
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(ask: Any, dies_after: int) -> None:
    whole = ask("undisturbed", teacher_seeds="each").folder
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            ask("stopped", teacher_seeds="each", dies_after=dies_after)
        if dies_after == 0:
            break
    stopped = ask("stopped", teacher_seeds="each").folder
    assert results(stopped.results.root) == results(whole.results.root)
    last = [folder.manifest()["looks"][-1]["comparisons"] for folder in (whole, stopped)]
    assert last[0] == last[1]
    assert {cell["id"] for cell in stopped.manifest()["cells"]} == {cell["id"] for cell in whole.manifest()["cells"]}


def test_a_failed_training_ends_its_comparisons_alone(ask: Any, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = ask(fails=("ls", 4), gains=dict.fromkeys(GAINS, 0.0))
    ended = {label(each): each for each in seeds.look_at(outcome.folder)[1] if each.comparison.against == "none"}
    assert trained(outcome.folder) == {"none": 6, "kd": 6, "tfd": 6, "ls": 4}
    assert not outcome.complete
    assert list(outcome.states.values()).count("failed") == 1
    assert ended["tfd"].decided
    main(["plan", str(outcome.folder.results.root.parent / "small.yaml"), "--results", str(outcome.folder.results.root)])
    assert "no further seed: a training failed" in " ".join(capsys.readouterr().out.split())
    report = Report.of_grid(outcome.folder)
    words = dict(zip(report.summary["label"], report.summary["word"], strict=True))
    assert words["ls"] in (Word.OPEN, Word.SUGGESTED)


def test_on_a_cluster_the_next_run_spends_further_seeds(ask: Any) -> None:
    first = ask(leaves=True)
    assert not first.ended
    assert trained(first.folder) == dict.fromkeys(METHODS, 3)
    assert "looks" not in first.folder.manifest()  # nobody has looked
    assert seeds.go_on(first.folder)  # so `status --watch` does
    for seen in (4, 5):
        ask(leaves=True)
        assert trained(first.folder)["none"] == seen
    assert ask(leaves=True, wait=True).complete
    assert trained(first.folder)["none"] == 6
    assert not seeds.go_on(first.folder)


def test_plan_names_the_rule_its_first_and_its_worst_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path, methods=METHODS, seeds={"first": 3, "most": 20}, primary=["tfd"])
    assert main(["plan", grid, "--results", str(tmp_path / "results"), "--device", "cpu"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "13 cells: 0 done" in printed
    assert "3 first, then one at a time up to 20" in printed
    assert "within 0.3 points; 2 comparisons share an error of 5 %" in printed
    assert "in the worst case 64 cells are left" in printed  # 13, and 17 more of none, kd and tfd
    assert "0 of 2 comparisons have ended; the others have 0 of at most 20 seeds" in printed
    assert list(tmp_path.iterdir()) == [tmp_path / "small.yaml"]  # planning leaves nothing


# The report


def test_the_report_tests_each_comparison_at_its_decision_and_says_so(ask: Any) -> None:
    folder = ask(primary=["tfd"]).folder
    report = Report.of_grid(folder)
    rows = report.summary.set_index("label")
    runs = {
        name: [top1(cell, GAINS) for cell in sorted(cells, key=lambda cell: cell.seed)]
        for name in METHODS
        if (
            cells := [
                record.cell
                for record in report.records
                if record.cell.label == name and record.cell.student["type"] == "resnet8"
            ]
        )
    }
    n = min(len(runs["tfd"]), len(runs["none"]))
    expected = follow(np.subtract(runs["tfd"][:n], runs["none"][:n]), SeedRule(3, 6, 2, 0.3))
    assert (rows.loc["tfd", "word"], rows.loc["tfd", "n_paired"]) == (str(expected.word), int(expected.n))
    assert rows.loc["tfd", ["gain", "low", "high"]].tolist() == pytest.approx(
        [float(expected.mean), float(expected.low), float(expected.high)]
    )
    assert np.isnan(rows.loc["tfd", "p_adjusted"])
    assert rows.loc["ls", "n_paired"] == 3  # exploratory: the first seeds, by an ordinary t-test
    assert rows.loc["ls", "p"] > 0
    assert np.isnan(rows.loc["ls", "most"])
    assert rows.loc["kd", "n_paired"] == rows.loc["kd", "n"]  # both sides go on, so it is followed as well
    [pair] = report.pairs
    [shown] = [each.text for each in verdicts.of_pair(pair) if each.text.startswith("tfd gains")]
    assert "of at most 6, by a look after every seed" in shown
    caveats = " ".join(overall.caveats(report.summary, report.design, 0, []))
    assert "Seeds are sequential: 3 first, then one at a time up to 6" in caveats
    assert "Seeds were added after" not in caveats


@pytest.mark.parametrize("later", [{"seeds": RULE | {"most": 8}}, {"methods": [*METHODS, "tffd"]}, {"seeds": RULE}])
def test_a_rule_that_comes_after_results_makes_looks_unplanned(
    ask: Any, later: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {"seeds": [0, 1, 2]} if later == {"seeds": RULE} else {}
    gains = GAINS | {"tfd": 0.5}
    ask(**before, gains=gains)
    file = write_grid(tmp_path, **({"methods": METHODS, "seeds": RULE} | later))
    late = "warning: there were results before this rule"
    for _ in range(2):  # before it is asked for, and ever after
        capsys.readouterr()
        assert main(["plan", file, "--results", str(tmp_path / "results"), "--device", "cpu"]) == 0
        assert late in capsys.readouterr().out
        folder = ask(**later, gains=gains).folder
    report = Report.of_grid(folder)
    rows = report.summary.set_index("label")
    assert rows.loc["tfd", "looks"] > 1
    assert np.isnan(rows.loc["tfd", "most"])
    caveats = " ".join(overall.caveats(report.summary, report.design, 0, []))
    assert "Seeds were added after others were complete" in caveats
    assert ("was not there before results" in caveats) == ("methods" not in later)  # the new method's own looks are planned


def test_seeds_in_a_list_leave_no_rule_behind(ask: Any) -> None:
    ask(gains=dict.fromkeys(GAINS, 0.0))
    folder = ask(seeds=[0, 1]).folder
    assert not folder.manifest()["rule"]
    assert "rule" not in folder.manifest()["requests"][-1]
    assert Report.of_grid(folder).design.rule is None


def test_rounds_train_in_lock_step_too(tmp_path: Path) -> None:
    """Real trainings: a round is the seed of all methods that go on, which may train in lock-step."""
    tiny = {"recipe": {"name": "digits", "epochs": 1}, "seeds": {"first": 2, "most": 3}, "methods": ["none", "ls", "tfd"]}
    grid = write_grid(tmp_path, pairs=[{"student": "resnet8"}], **tiny)
    together = Options(device="cpu", threads=1, together=True)
    outcome = run.run(grid, tmp_path / "results", options=together, backend=Debug(threads=1), costs=False)
    assert outcome.complete
    assert len(outcome.states) in (6, 8, 9)
    assert len(outcome.folder.manifest()["looks"]) == 2
