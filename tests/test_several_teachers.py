"""Several teachers of a pair: who trains them, what a method learns from them, and what they cost."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_grid import expanded

from bench import run as story
from bench.engine.assemble import assemble
from bench.engine.flops import count_flops
from bench.engine.train import train
from bench.errors import UserError
from bench.jobs import slurm
from bench.jobs.scripts import submission
from bench.jobs.worker import Job, work
from bench.models import MODELS
from bench.plugins import import_plugin
from bench.records.cell import Cell, Teacher
from bench.records.folders import ResultsFolder
from bench.records.options import Options
from bench.records.teacher import accuracy_lines
from methods import METHODS
from methods.base import Batch, Context, Networks
from reports.frame import tidy, with_costs

EACH = {"each_teacher": {"method": {"type": "kd"}}}
B, K = 6, 5
IMAGES = torch.randn(3, B, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.arange(B) % K


def network(seed: int, model: str = "resnet8"):
    torch.manual_seed(seed)
    return MODELS.build({"type": model, "classes": K, "channels": 1}).double()


def set_up(spec: dict, student, teachers):
    method = METHODS.build(spec)
    with torch.no_grad():
        first, *others = (teacher(IMAGES[0]) for teacher in teachers)
        sample = network(0)(IMAGES[0])
    networks = Networks(student, teachers[0], tuple(teachers[1:]))
    torch.manual_seed(1)
    method.setup(Context(sample, first, K, B, B, (1, 8, 8), TARGETS, networks, others=tuple(others)))
    return method.double(), networks


def frozen(seed: int, model: str = "resnet14"):
    return network(seed, model).eval().requires_grad_(False)


# What is learned


@pytest.mark.parametrize("key", ["kd", "dkd", "fitnets", "rkd"])
def test_terms_and_gradients_are_the_mean_over_teachers(key):
    teachers = [frozen(1), frozen(2), frozen(3, "resnet8x4")]
    student = network(0)
    method, networks = set_up({"type": "each_teacher", "method": {"type": key}}, student, teachers)
    batch = Batch(IMAGES[1], TARGETS, torch.arange(B))
    terms = method.step(networks, batch)
    sum(terms.values()).backward()
    found = [p.grad.clone() for p in student.parameters()]
    alone = network(0)
    for copy, teacher in zip(method.copies, teachers, strict=True):
        (sum(copy.step(Networks(alone, teacher), batch).values()) / 3).backward()
    for mine, theirs in zip(found, alone.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.grad)
    assert set(terms) == {"ce", "each_teacher"}
    assert len({id(p) for p in method.parameters()}) == (0 if key in ("kd", "dkd", "rkd") else len(list(method.parameters())))


def test_two_teachers_by_kd_are_the_mean_of_their_softened_predictions():
    teachers, student, other = [frozen(1), frozen(2)], network(0), network(0)
    method, networks = set_up({"type": "each_teacher", "method": {"type": "kd", "temperature": 4.0}}, student, teachers)
    kd = METHODS.build({"type": "kd", "temperature": 4.0})
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.05, momentum=0.9) for each in (student, other)]
    for images in IMAGES:
        batch = Batch(images, TARGETS, torch.arange(B))
        mean = torch.stack([(teacher(images).logits / 4).softmax(1) for teacher in teachers]).mean(0)
        taught = teachers[0](images)._replace(logits=4 * mean.log())
        losses = method.step(networks, batch), kd.loss(other(images), taught, batch)
        for optimizer, terms in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            sum(terms.values()).backward()
            optimizer.step()
    for mine, theirs in zip(student.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_sum_and_a_single_teacher():
    teachers, student = [frozen(1), frozen(2)], network(0)
    parts = [{"type": "tfd"}, {"type": "each_teacher", "method": {"type": "kd"}}]
    method, networks = set_up({"type": "sum", "parts": parts}, student, teachers)
    assert method.several_teachers
    assert set(method.step(networks, Batch(IMAGES[0], TARGETS, torch.arange(B)))) == {"ce", "tfd", "each_teacher"}
    one, networks = set_up(parts[1], student, teachers[:1])
    batch = Batch(IMAGES[0], TARGETS, torch.arange(B))
    kd = METHODS.build({"type": "kd"}).step(networks, batch)
    assert one.step(networks, batch)["each_teacher"] == kd["kd"]
    assert one.step(networks, batch)["ce"] == kd["ce"]


def test_the_example_of_the_contract_reads_them_all(tmp_path):
    page = (Path(__file__).resolve().parents[1] / "docs/contract.md").read_text(encoding="utf-8")
    example = re.search(r"^```python mean_logits.py\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert example
    (tmp_path / "mean_logits.py").write_text(example[1], encoding="utf-8")
    import_plugin(str(tmp_path / "mean_logits.py"))
    try:
        teachers = [frozen(1), frozen(2)]
        method, networks = set_up({"type": "mean_logits"}, network(0), teachers)
        terms = method.step(networks, Batch(IMAGES[0], TARGETS, torch.arange(B)))
        mean = sum(teacher(IMAGES[0]).logits for teacher in teachers) / 2
        own = network(0)(IMAGES[0]).logits
        soft = [(logits / 4).log_softmax(1) for logits in (own, mean)]
        expected = 16 * torch.nn.functional.kl_div(*soft, reduction="batchmean", log_target=True)
        torch.testing.assert_close(terms["mean_logits"], expected)
        assert expanded(pairs=[TWO], methods=["mean_logits"]).skipped == []
    finally:
        METHODS.module_dict.pop("mean_logits", None)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ("tfd", "repeats a method for each teacher, and 'tfd' needs none"),
        ("ab", "cannot repeat 'ab': it has a preparation"),
        ("simkd", "cannot repeat 'simkd'"),
    ],
)
def test_what_cannot_be_repeated_is_refused(inner, message):
    with pytest.raises(ValueError, match=message):
        METHODS.build({"type": "each_teacher", "method": {"type": inner}})


# Who trains them


TWO = {"student": "resnet8", "teachers": ["resnet14", "resnet8"]}


def test_all_teachers_come_first_and_count_in_the_id():
    grid = expanded(pairs=[TWO], methods=["none", EACH, "tfd", "kd"], seeds=[3, 4], teacher_seeds="each")
    taught = [cell for cell in grid.cells if cell.teachers]
    by_id = grid.by_id
    for cell in taught:
        trained = [by_id[name] for name in cell.waits_for]
        assert [(each.student["type"], each.seed) for each in trained] == [
            ("resnet14", cell.seed),
            ("resnet8", cell.seed + 1000),
        ]
        assert all(grid.cells.index(each) < grid.cells.index(cell) for each in trained)
        assert Cell.model_validate_json(cell.model_dump_json()) == cell
    assert [skip.reason for skip in grid.skipped] == ["takes one teacher, and this pair has 2: put each_teacher around it"]
    other_way = expanded(pairs=[{**TWO, "teachers": TWO["teachers"][::-1]}], methods=[EACH], seeds=[3])
    single = expanded(pairs=[{"student": "resnet8", "teacher": "resnet14"}], methods=[EACH], seeds=[3])
    assert len({grid.cells[-1].id for grid in (other_way, single)} | {cell.id for cell in taught}) == 4
    assert len({taught[0].cost_key, single.cells[-1].cost_key}) == 2
    assert taught[0].cost_key == taught[1].cost_key


def test_teachers_of_one_spec_are_trained_from_seeds_of_their_own():
    grid = expanded(pairs=[{"student": "resnet8", "teachers": ["resnet14", "resnet14", "resnet8"]}], methods=[EACH])
    assert [grid.by_id[name].seed for name in grid.cells[-1].waits_for] == [0, 1000, 1000]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ({**TWO, "teacher": "resnet14"}, "`teacher` or `teachers`, not both"),
        ({**TWO, "teachers": ["resnet14"]}, "at least 2"),
        ({**TWO, "teachers": ["resnet14", "resnet9"]}, r"pairs\[0\]\.teachers\[1\].*'resnet9'"),
    ],
)
def test_mistakes_are_named(pair, message):
    with pytest.raises(UserError, match=message):
        expanded(pairs=[pair], methods=[EACH])


def test_jobs_wait_for_all_teachers():
    cells = expanded(pairs=[TWO, {"student": "resnet8", "teacher": "resnet14"}], methods=["none", EACH]).cells
    awaited = {cell.id: cell.waits_for for cell in cells}
    found = {cell.id: behind for array, behind in slurm.plan(cells, set(), 2, 100) for job in array for cell in job}
    assert found == awaited
    assert sorted(map(len, awaited.values())) == [0, 0, 0, 1, 2]
    arrays = list(slurm.plan(cells, set(), 2, 100))
    script = submission(arrays, [f"{number}.sh" for number, _ in enumerate(arrays)])
    assert "--dependency=afterok:${array_0}_0:${array_0}_1 " in script
    assert slurm.Slurm()._parameters(1, ["7_0", "8_1"])["dependency"] == "afterok:7_0:8_1"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A grid of two teachers, trained."""
    grid = expanded(pairs=[TWO, {"student": "resnet8", "teacher": "resnet14"}], methods=["none", EACH])
    folder = ResultsFolder(tmp_path_factory.mktemp("several")).grid(grid.name)
    options = Options(device="cpu", threads=1)
    folder.request(grid.manifest(), commit=story.commit())
    for cell in grid.cells:
        train([cell], folder, options)
    return grid, folder, options


def test_they_are_trained_and_teach(finished):
    grid, folder, _ = finished
    records, problems = folder.records()
    assert not problems
    assert {record.id for record in records} == {cell.id for cell in grid.cells}
    saved = json.loads(folder.results.root.joinpath(folder.name, grid.cells[-1].id, "record.json").read_text())
    assert saved["cell"]["student"] == {"type": "resnet8"}


def test_a_student_whose_second_teacher_failed_says_so(tmp_path):
    grid = expanded(pairs=[TWO], methods=[EACH])
    folder = ResultsFolder(tmp_path).grid(grid.name)
    first, second, student = grid.cells
    assert student.waits_for == (first.id, second.id)
    train([first], folder, Options(device="cpu", threads=1))
    folder.cell(second.id).write_failure("no luck")
    work(Job.describe([student], folder, Options(device="cpu", threads=1)))
    assert f"its teacher {second.id} failed" in str(folder.cell(student.id).failure())


# What they cost


def test_all_teachers_are_on_the_bill(finished):
    grid, folder, options = finished
    records, _ = folder.records()
    frame = tidy(records).set_index("id")
    first, second = (frame.loc[name] for name in grid.cells[[len(c.teachers) for c in grid.cells].index(2)].waits_for)
    [both] = [frame.loc[cell.id] for cell in grid.cells if len(cell.teachers) == 2]
    [one] = [frame.loc[cell.id] for cell in grid.cells if len(cell.teachers) == 1]
    assert both["teacher_flops"] == first["flops"] + second["flops"]
    assert one["teacher_flops"] == first["flops"]
    assert (both["teacher"], one["teacher"]) == ("resnet14 + resnet8", "resnet14")
    assert (first["role"], second["role"]) == ("teacher", "student")  # a resnet8 is a student here, too
    timed = with_costs(tidy(records), []).set_index("id")
    assert timed.loc[both.name, "teacher_s"] != timed.loc[both.name, "teacher_s"]  # NaN: nothing was timed
    cells = [cell for cell in grid.cells if cell.teachers]
    by_count = {}
    for cell in cells:
        assembly = assemble([cell], folder, options)
        by_count[len(cell.teachers)] = count_flops(assembly, assembly.trainees[cell.id])
    forward = by_count[2].teacher_forward - by_count[1].teacher_forward
    assert forward > 0
    assert by_count[2].step - by_count[1].step == forward


def test_stated_costs_of_supplied_teachers_add_up():
    from synthetic import cell, record

    def taught(*costs: float | None):
        first, *others = (
            Teacher(model={"type": "resnet14"}, weights_sha256="ab" * 32, train_s=c, train_flops=c) for c in costs
        )
        made = cell("kd", 0)
        made = made.model_copy(update={"needs": "teacher", "teacher": first.model_copy(update={"others": tuple(others)})})
        return record(made, 70, id=made.id)

    frames = [with_costs(tidy([taught(*costs)]), []) for costs in ((2.0,), (2.0, 3.0), (2.0, 3.0, 4.0), (2.0, None))]
    assert [frame["teacher_s"].iloc[0] for frame in frames[:3]] == [2, 5, 9]
    assert [frame["teacher_flops"].iloc[0] for frame in frames[:3]] == [2, 5, 9]
    assert frames[3][["teacher_s", "teacher_flops"]].isna().all(axis=None)


def test_each_supplied_teacher_is_measured_alone(tmp_path):
    files = []
    for seed, model in enumerate(("resnet14", "resnet8")):
        torch.manual_seed(seed)
        files.append({"type": model, "weights": str(tmp_path / f"{model}.pth")})
        torch.save(MODELS.build({"type": model, "classes": 10, "channels": 1}).state_dict(), files[-1]["weights"])
    grid = expanded(pairs=[{"student": "resnet8", "teachers": files}], methods=[EACH])
    assert len(grid.cells) == 1
    folder = ResultsFolder(tmp_path / "results").grid(grid.name)
    lines = partial(accuracy_lines, grid.cells, folder.results.teacher_accuracy)
    assert ["not measured" in line for line in lines()] == [True, True]
    train(grid.cells, folder, Options(device="cpu", threads=1))
    assert [line.split()[2] for line in lines()] == ["resnet14", "resnet8"]
    assert not any("not measured" in line for line in lines())
