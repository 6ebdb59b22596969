"""The story of a run, from Python and from the command line; backends of one's own; records of other versions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from small import GRID, results, write_grid

from bench import run
from bench.errors import UserError
from bench.jobs.debug import Debug
from bench.records import files
from bench.records.folders import GridFolder, ResultsFolder
from bench.records.options import Options
from bench.records.record import Record, seal
from run_bench import main

CPU = Options(device="cpu", threads=1)
BACKEND = '''
from bench.jobs.base import Backend, Handed, register
from bench.jobs.worker import Job, work

@register
class Here(Backend):
    """Trains in this process, without submitit."""

    kind = "here"
    greeting: str = "hello"

    def train(self, cells, folder, options, wait, watch):
        watch.note(f"{self.greeting}: {len(cells)} cells")
        work(Job.describe(cells, folder, options))
        return Handed(len(cells), ended=True)
'''


def test_fit_trains_one_student_and_its_teacher_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec: dict[str, Any] = {"data": GRID["data"], "recipe": GRID["recipe"], "precision": "fp32", "student": "resnet8"}
    record = run.fit(**spec, method="kd", teacher="resnet8x4", results=tmp_path, options=CPU)
    assert (record.cell.method["type"], record.epochs) == ("kd", 3)
    assert run.fit(**spec, method="kd", teacher="resnet8x4", results=tmp_path, options=CPU) == record
    run.fit(**spec, results=tmp_path, options=CPU)
    assert sorted(one.cell.label for one in ResultsFolder(tmp_path).grid("fit").records()[0]) == ["kd", "none", "none"]
    assert main(["verify", "fit", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "0 problems\n"  # nothing else is printed


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"method": "kd"}, "teacher"), ({"method": {"tfd": {"weight": [1, 2]}}}, "2"), ({"student": "resnet9"}, "resnet8")],
)
def test_fit_names_what_it_cannot_train(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    spec: dict[str, Any] = {"data": GRID["data"], "recipe": GRID["recipe"], "student": "resnet8"}
    with pytest.raises(UserError, match=reason):
        run.fit(**(spec | changes), results=tmp_path, options=CPU)


def test_a_backend_of_ones_own_is_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin, cluster = tmp_path / "here.py", tmp_path / "cluster.yaml"
    plugin.write_text(BACKEND)
    cluster.write_text("{kind: here, greeting: good day}")
    grid, root = write_grid(tmp_path, methods=["none", "kd"]), str(tmp_path / "results")
    asked = ["--results", root, "--device", "cpu", "--import", str(plugin), "--cluster"]
    assert main(["plan", grid, *asked, "here"]) == 0
    assert main(["run", grid, *asked, str(cluster), "--no-cost", "--no-report"]) == 0
    printed = capsys.readouterr().out
    assert "good day: 3 cells" in printed
    assert "3 of 3 done" in printed
    assert len(results(Path(root))) == 3
    assert main(["status", "small", "--results", root]) == 0
    assert main(["run", grid, *asked, "here", "--minutes", "5"]) == 2
    assert "minutes: has no effect on a cluster of kind here" in capsys.readouterr().err


def test_run_from_python_returns_how_cells_ended(tmp_path: Path) -> None:
    grid = write_grid(tmp_path, methods=["none"])
    outcome = run.run(grid, tmp_path / "results", options=CPU, backend=Debug(threads=1), costs=False)
    assert (list(outcome.states.values()), outcome.complete) == (["done"], True)


# Records of other versions


@pytest.fixture
def folder(tmp_path: Path) -> GridFolder:
    """A finished grid of a teacher and its student."""
    run.run(write_grid(tmp_path, methods=["kd"]), tmp_path / "results", options=CPU, backend=Debug(threads=1), costs=False)
    return ResultsFolder(tmp_path / "results").grid("small")


def unreadable(folder: GridFolder, teacher: bool) -> tuple[Path, Record]:
    """Give one record a key that this version does not know, and a good seal."""
    record = next(one for one in folder.records()[0] if (one.cell.teacher is None) is teacher)
    path = folder.results.root / folder.name / record.id / "record.json"
    files.write_json(path, files.read_json(path) | {"from_the_future": 1})
    return path, record


def test_a_record_of_another_version_is_left_alone_and_named(
    folder: GridFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, record = unreadable(folder, teacher=False)
    before = {each: each.read_bytes() for each in path.parent.iterdir()}
    grid, root = write_grid(tmp_path, methods=["kd"]), ["--results", str(tmp_path / "results")]
    quiet = ["--device", "cpu", "--no-cost", "--no-report", "--cluster", "debug", "--threads", "1"]
    for arguments in (
        ["status", "small"],
        ["verify", "small"],
        ["plan", grid],
        ["run", grid, *quiet],
        ["run", grid, "--retry", *quiet],
    ):
        assert main([*arguments, *root]) == 1, arguments
        printed = capsys.readouterr().out
        assert record.id in printed, arguments
        assert "from_the_future" in printed, arguments
        assert {each: each.read_bytes() for each in path.parent.iterdir()} == before, arguments
    assert main(["clean", "small", *root]) == 0
    assert path.read_bytes() == before[path]
    assert main(["run", grid, "--force", *root, *quiet]) == 0
    assert path.with_name("record.json.damaged-1").read_bytes() == before[path]
    assert results(tmp_path / "results")[record.id]["weights_sha256"] == record.weights_sha256


def test_students_of_a_teacher_that_cannot_be_read_fail_with_that_reason(folder: GridFolder, tmp_path: Path) -> None:
    path, _ = unreadable(folder, teacher=True)
    student = next(one for one in folder.records()[0] if one.cell.teacher)
    (folder.results.root / "small" / student.id / "record.json").unlink()
    before = path.read_bytes()
    outcome = run.run(write_grid(tmp_path, methods=["kd"]), tmp_path / "results", options=CPU, backend=Debug(), costs=False)
    assert sorted(outcome.states.values()) == ["failed", "unreadable"]
    failure = folder.cell(student.id).failure()
    assert failure
    assert "is unusable: this version cannot read it" in failure["error"]
    assert path.read_bytes() == before


def test_a_damaged_record_is_set_aside_and_trained_again(folder: GridFolder, tmp_path: Path) -> None:
    path, record = unreadable(folder, teacher=False)
    path.write_text(path.read_text().replace("from_the_future", "by_hand"))
    outcome = run.run(write_grid(tmp_path, methods=["kd"]), tmp_path / "results", options=CPU, backend=Debug(), costs=False)
    assert outcome.complete
    assert path.with_name("record.json.damaged-1").exists()
    assert results(tmp_path / "results")[record.id]["weights_sha256"] == record.weights_sha256


def test_fields_that_came_later_are_left_out_of_files_while_they_are_none() -> None:
    record = synthetic.record(synthetic.cell("none", 0), 70.0)
    later = {"source", "path", "path_reason", "train_top1", "test_nll", "test_calibration_error"}
    assert not later & record.model_dump(mode="json").keys()
    fuller = record.model_copy(update={"source": "0" * 64, "test_nll": 1.5})
    body = seal(fuller.model_dump(mode="json"))
    assert files.parse(Record, {key: value for key, value in body.items() if key != "sha256"}) == fuller


def test_keys_of_a_manifest_that_are_not_known_here_are_kept(folder: GridFolder, tmp_path: Path) -> None:
    folder.write_manifest(folder.manifest() | {"remarks": [1]})
    run.run(write_grid(tmp_path, methods=["kd"]), tmp_path / "results", options=CPU, backend=Debug(), costs=False)
    assert folder.manifest()["remarks"] == [1]


def test_a_cost_of_another_version_is_left_alone(tmp_path: Path) -> None:
    folder = synthetic.filled(tmp_path, "demo", synthetic.draw({"none": 0.0}, 1, np.random.default_rng(0)))
    path = next((tmp_path / "demo/cost").iterdir())
    files.write_json(path, files.read_json(path) | {"from_the_future": 1})
    before = path.read_bytes()
    for session in ("first", "second"):
        folder.write_cost(synthetic.cost(folder.records()[0][0].cell, session=session))
    costs, problems = folder.costs()
    assert path.read_bytes() == before
    assert [problem.path for problem in problems] == [f"demo/cost/{path.name}"]
    assert sum(cost.session.startswith("second") for cost in costs) == 1


def test_five_lines_of_python_train_and_run(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"^```python train\.py\n(.*?)^```$", (repository / "docs/python.md").read_text(), re.DOTALL | re.MULTILINE)
    assert code
    assert len(code[1].split("\n")) - code[1].count("\n\n") - 1 == 5
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "Local", Debug)  # no process of its own
    exec(compile(code[1], "train.py", "exec"), {})
    accuracy, states = capsys.readouterr().out.splitlines()
    assert 0 <= float(accuracy) <= 100
    assert states.count("'done'") == 2
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"fit", "quick"}


@pytest.mark.slow
def test_the_notebook_runs(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = json.loads((repository / "docs/digits.ipynb").read_text(encoding="utf-8"))["cells"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "Local", Debug)  # no process of its own
    names: dict[str, Any] = {}
    for cell in cells:
        assert cell.get("outputs", []) == []
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "digits.ipynb", "exec"), names)
    assert set(names["outcome"].states.values()) == {"done"}
    assert set(names["means"].columns) == {"none", "tfd"}
    assert set(names["gains"]["label"]) == {"tfd"}


@pytest.mark.parametrize("slip", ["no Slurm", "no data", "another tool"])
def test_nothing_is_set_aside_before_all_options_are_checked(tmp_path, monkeypatch, capsys, slip):
    grid = write_grid(tmp_path, methods=["none"], recipe={"name": "digits", "epochs": 1})
    run.begin(*(planned := run.plan(grid, tmp_path, options=Options(device="cpu"))))
    cell = planned[1].cell(planned[0].cells[0].id)
    cell.write_record(synthetic.record(planned[0].cells[0], 50.0))
    monkeypatch.setenv("PATH", str(tmp_path))  # no scontrol
    options = {"no Slurm": ["--cluster", "slurm"], "no data": [], "another tool": ["--visualize", "tensorbord"]}[slip]
    if slip == "no data":
        monkeypatch.setattr("bench.engine.beforehand.load", lambda *_: (_ for _ in ()).throw(OSError("the data are gone")))
    assert main(["run", grid, "--results", str(tmp_path), "--set", "precision=fp32", "--force", *options]) == 2
    assert {"no Slurm": "no scontrol", "no data": "are gone", "another tool": "tensorbord"}[slip] in capsys.readouterr().err
    assert cell.done()


def test_a_chosen_cell_is_trained_whatever_the_others_need_and_leaves_them_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {"methods": ["none"], "also": [{"recipe": {"processes": 2}}]}
    grid = write_grid(tmp_path, recipe={"name": "digits", "epochs": 1}, seeds=[0, 1], **changes)
    planned, folder = run.plan(grid, tmp_path, options=CPU)
    alone, sibling = (cell for cell in planned.cells if cell.recipe.processes == 1)
    together = next(cell for cell in planned.cells if cell.recipe.processes == 2)
    run.begin(planned, folder)
    for cell in (sibling, together):
        folder.cell(cell.id).write_failure("an earlier one")
    asked = ["run", grid, "--results", str(tmp_path), "--device", "cpu", "--threads", "1", "--cluster", "debug", "--cell"]
    assert main([*asked, alone.id, "--force"]) == 0
    assert folder.cell(alone.id).done()
    assert all(folder.cell(cell.id).failure() for cell in (sibling, together))
    assert main([*asked, together.id, "--retry"]) == 2
    assert "recipe.processes is 2, but 1 were started" in capsys.readouterr().err
