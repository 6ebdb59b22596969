"""A step can be recorded once and replayed, for every method: what a CUDA graph needs, shown on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
import small
import torch
from capturing import FakeGraphs, Unchanged
from step_cases import CASES, Case, assembled
from torch import Tensor

import run_bench
from bench.engine.capture import CaptureError, StepRunner
from bench.engine.device import has_bf16
from bench.engine.optimizer import OPTIMIZERS
from bench.engine.snapshot import state
from bench.engine.train import train
from bench.jobs.worker import Job, work
from bench.records.folders import ResultsFolder
from bench.records.options import Options
from methods import Batch, Method
from methods.base import Output

EPOCHS = (0, 4, 9)  # of ten; ramps end in between. Each has two full batches and one of half the size, which stays eager


class TorchsOwn:
    """In the place of `bench.engine.layers.Layers`: each layer counts and casts by itself."""

    def at_once(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class Twins:
    """Two equal groups: one takes every step eagerly, as torch's layers do by themselves, the other records a step of each
    kind, and replays it from then on.
    """

    def __init__(self, case: Case, tiny: Any, folder: Any) -> None:
        self.case = case
        assemblies = [assembled(case, tiny, folder) for _ in range(2)]
        self.eager, self.replayed = (assembly.step() for assembly in assemblies)
        for member in self.eager.members.values():
            member.layers = TorchsOwn()
        self.runner = StepRunner(self.replayed, FakeGraphs())
        first = next(iter(assemblies[0].trainees.values()))
        self.stream = assemblies[0].stream(first)
        for step in (self.eager, self.replayed):
            step.train()

    def run(self, epochs: tuple[int, ...] = EPOCHS) -> StepRunner:
        """Take the steps of these epochs, and compare after each.

        Raises:
            AssertionError: a tensor differs.
        """
        for number, batch in enumerate(self.batches(epochs)):
            for step in (self.eager, self.replayed):
                step.set_lr(0.05 / (1 + number // 4))
            torch.manual_seed(number)
            with Unchanged():
                self.eager(batch, preparing=self.case.preparing)
            torch.manual_seed(number)
            self.runner(batch, preparing=self.case.preparing)
            different = _different(state(self.eager), state(self.replayed))
            assert not different, f"step {number}: {different[:5]}"
        return self.runner

    def batches(self, epochs: tuple[int, ...] = EPOCHS) -> Iterator[Batch]:
        for epoch in epochs:
            yield from self.stream.epoch(epoch)


def _different(some: dict[str, Tensor], others: dict[str, Tensor]) -> list[str]:
    assert some.keys() == others.keys()
    return [name for name in some if not torch.equal(some[name].nan_to_num(), others[name].nan_to_num())]


@pytest.mark.parametrize("name", CASES)
def test_a_replayed_step_equals_an_eager_one(name, tiny, tmp_path):
    case = CASES[name]
    if case.changes.get("precision") == "bf16" and not has_bf16(torch.device("cpu")):
        pytest.skip("this CPU has no bf16")
    runner = Twins(case, tiny, tmp_path).run()
    assert runner.path == "graph", runner.path_reason
    assert runner.path_reason == "checked at 2 moments: bit for bit"


def test_each_size_of_a_batch_has_its_own_recording(tiny, tmp_path):
    runner = Twins(CASES["dlb"], tiny, tmp_path).run(epochs=(0, 1, 2, 5, 9))
    assert {key: kind.replay is not None for key, kind in runner.kinds.items()} == {(False, 16): True, (False, 8): True}


class Planted(Method):
    """A method whose own term is planted."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(()))
        self.count = 0


class ReadsBack(Planted):
    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        return {"planted": student.logits.mean() * student.logits.detach().max().item()}


class Branches(Planted):
    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        return {"planted": student.logits.mean() * (1.0 if batch.epoch > 3 else 0.0)}


class Counts(Planted):
    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        self.count += 1
        return {"planted": student.logits.mean() * (self.count / 10)}


class Reassigns(Planted):
    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        term = student.logits.mean() * self.last  # in a replay still the first tensor
        self.last = student.logits.detach().mean()
        return {"planted": term}


class Masks(Planted):
    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        return {"planted": student.logits[student.logits > 0].sum()}


class Lists(Planted):
    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        return {"planted": student.logits.mean() * sum(batch.target.tolist())}


class Sound(Planted):
    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        term = student.logits.mean() * self.last.clone() * (batch.epoch > 3)
        self.last.copy_(student.logits.detach().mean())
        return {"planted": term}


class Hides(Planted):
    """What it changes is in nobody's sight."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count()

    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        return {"planted": student.logits.mean() * (next(self.numbers) / 10)}


class Bakes(Planted):
    """Reads the epoch without anybody's notice, as an extension in C might."""

    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        return {"planted": student.logits.mean() * ctypes.c_int64.from_address(batch.epoch.data_ptr()).value}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (ReadsBack, r"waits for the device: .*item at tests/test_capture"),
        (Branches, r"waits for the device: .*__bool__ at tests/test_capture"),
        (Masks, r"waits for the device: .*index at tests/test_capture"),
        (Lists, r"waits for the device: .*tolist at tests/test_capture"),
        (Counts, r"Counts\.count is Python's and changes in a step: keep it in a buffer"),
        (Reassigns, r".*method\.last is another tensor after a step: write into it in place"),
        (Bakes, r"a replay differs from an eager step, in .* of the update"),
    ],
)
def test_a_planted_fault_is_refused_and_training_goes_on_undisturbed(kind, reason, tiny, tmp_path):
    runner = planted(kind, tiny, tmp_path).run()
    assert runner.path == "eager"
    assert re.match(reason, runner.path_reason), runner.path_reason


class Counting(torch.optim.Optimizer):
    """Its steps shrink with a count of Python's."""

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            group["count"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * p.grad / group["count"])


class Renewing(torch.optim.Optimizer):
    """Its momenta are new tensors in each step."""

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["momentum"] = p.grad + 0.9 * self.state[p].get("momentum", torch.zeros_like(p))
                    p.sub_(group["lr"] * self.state[p]["momentum"])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Counting, r"Counting keeps values of Python's that change in a step: keep them in 0-dim tensors on the device"),
        (Renewing, r".*momentum 0 is another tensor after a step: write into it in place"),
    ],
)
def test_an_own_optimizer_that_cannot_be_replayed_is_refused_and_training_goes_on(kind, reason, tiny, tmp_path):
    OPTIMIZERS.register_module(kind.__name__, force=True, module=lambda groups, recipe: kind(groups, {"count": 0}))
    runner = Twins(Case(("none",), recipe={"optimizer": kind.__name__}), tiny, tmp_path).run()
    assert runner.path == "eager"
    assert re.match(reason, runner.path_reason), runner.path_reason


def test_what_cannot_be_put_back_is_refused(tiny, tmp_path):
    twins = planted(Hides, tiny, tmp_path)
    for batch in twins.batches():
        twins.runner(batch)
    assert twins.runner.path == "eager"
    assert re.match(r"two eager steps from the same state differ, in .* of the update", twins.runner.path_reason)


def test_a_memory_that_is_written_in_place_is_sound(tiny, tmp_path):
    assert planted(Sound, tiny, tmp_path).run().path == "graph"


def planted(kind: type[Planted], tiny: Any, folder: Any) -> Twins:
    twins = Twins(Case(("none",)), tiny, folder)
    for step in (twins.eager, twins.replayed):
        for member in step.members.values():
            member.trainee.core["method"] = kind()
    return twins


def test_a_recording_that_fails_half_way_ends_the_process_s_work(tiny, tmp_path, monkeypatch):
    twins = Twins(Case(("none",)), tiny, tmp_path)

    def record(self: FakeGraphs, work: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(FakeGraphs, "record", record)
    with pytest.raises(CaptureError, match="could not be recorded: operation not permitted"):
        twins.run()


def test_want_of_memory_in_a_recording_is_named_as_such(tiny, tmp_path, monkeypatch):
    """So that fewer cells are tried at a time, as where memory is short in an eager step."""
    twins = Twins(Case(("none",)), tiny, tmp_path)

    def record(self: FakeGraphs, work: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(FakeGraphs, "record", record)
    with pytest.raises(torch.OutOfMemoryError):
        twins.run()


def test_a_teacher_that_does_not_forget_is_found(tiny, tmp_path, monkeypatch):
    """A static batch is always the same tensor: a kept answer would be that to the former images."""
    twins = Twins(Case(("kd",)), tiny, tmp_path)
    monkeypatch.setattr("bench.engine.trainee.Teacher.forget", lambda self: None)
    with pytest.raises(AssertionError, match="step"):
        twins.run()


@pytest.fixture
def fake_graphs(monkeypatch):
    """Trainings on a CPU record their steps, as on a GPU."""

    def fake(step: Any, dataset: Any, team: Any, eager: str | None) -> StepRunner:
        return StepRunner(step, None if eager else FakeGraphs(), eager)

    monkeypatch.setattr("bench.engine.train.runner", fake)


def test_a_record_names_the_path_of_its_steps(fake_graphs, tiny, tmp_path):
    grid = tiny(methods=["kd"])
    for name in ("eager", "graph"):
        folder = ResultsFolder(tmp_path / name).grid("tiny")
        options = Options(device="cpu", threads=1, eager=name == "eager")
        records = [record for cell in grid.cells for record in train([cell], folder, options)]
        assert {record.path for record in records} == {name}
        assert {record.path_reason for record in records} == {
            "--eager" if name == "eager" else "checked at 2 moments: bit for bit"
        }


def test_a_training_on_a_cpu_names_no_path(tiny, tmp_path):
    folder = ResultsFolder(tmp_path).grid("tiny")
    [record] = train(tiny().cells, folder, Options(device="cpu", threads=1))
    assert (record.path, record.path_reason) == (None, None)
    assert '"path"' not in record.model_dump_json()


def test_after_a_failed_recording_a_new_process_goes_on_eagerly(fake_graphs, tiny, tmp_path, monkeypatch):
    def record(self: FakeGraphs, work: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(FakeGraphs, "record", record)
    folder, [cell] = ResultsFolder(tmp_path).grid("tiny"), tiny().cells
    job = Job.describe([cell], folder, Options(device="cpu", threads=1))
    with pytest.raises(CaptureError):  # this worker ends
        work(job)
    assert not folder.cell(cell.id).settled()
    work(job)
    record = folder.cell(cell.id).record()
    assert record.path == "eager"
    assert "could not be recorded: operation not permitted" in record.path_reason


def test_where_no_new_process_can_be_started_one_line_tells_what_to_do(fake_graphs, tmp_path, monkeypatch, capsys):
    def record(self: FakeGraphs, work: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    with monkeypatch.context() as patch:
        patch.setattr(FakeGraphs, "record", record)
        recipe = {"name": "digits", "epochs": 2, "batch_size": 16}
        grid = small.write_grid(tmp_path, methods=["none"], pairs=[{"student": "resnet8"}], recipe=recipe, seeds=[0])
        command = ["run", grid, "--device", "cpu", "--no-cost", "--no-report", "--no-check", "--cluster", "debug"]
        command += ["--results", str(tmp_path / "results")]
        assert run_bench.main(command) == 2
        assert "`run` again: then steps are taken one by one" in capsys.readouterr().err
        assert run_bench.main(command) == 0
