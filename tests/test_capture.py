"""A step can be recorded once and replayed, for every method: what a CUDA graph needs, shown on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from capturing import Recording, Unchanged
from torch import Tensor

from bench.engine.assemble import assemble, untrained_teacher
from bench.engine.device import has_bf16
from bench.engine.step import Step
from bench.plan.specs import arguments_of
from bench.records.folders import ResultsFolder
from bench.records.options import Options
from methods import METHODS, Batch, Method
from methods.base import Output

EPOCHS = (0, 1, 4, 9)  # of ten; ramps end in between. Each has two full batches and one of half the size
WARM_UP = 3  # steps before the recording
FAST = {"crd": {"negatives": 16}}
TENSORS = ("image", "target", "index", "partner", "soft")
OTHER_FAMILY = [{"student": "wrn_16_1", "teacher": "resnet8x4"}]


@dataclass(frozen=True)
class Case:
    """What is recorded."""

    methods: tuple[Any, ...]
    preparing: bool = False
    recipe: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)  # of the grid


def spec(key: str) -> dict[str, Any]:
    method = METHODS.get(key)
    short = {"prepare_epochs": 1} if "prepare_epochs" in arguments_of(method) else {}
    return {key: {**method.example, **FAST.get(key, {}), **short}}


def prepares(key: str) -> bool:
    ((_, arguments),) = spec(key).items()
    return METHODS.build({"type": key, **arguments}).prepare_epochs > 0


CASES = {key: Case((spec(key),)) for key in sorted(METHODS.module_dict)}
CASES |= {f"{key}, preparation": Case((spec(key),), preparing=True) for key in CASES if prepares(key)}
CASES |= {
    "tfd+crd": Case(({"sum": {"parts": [{"type": "tfd"}, {"type": "crd", "negatives": 16}]}},)),
    "tfd+ls": Case(("tfd+ls",)),
    "logit_std around dkd": Case(({"logit_std": {"preset": "dkd"}},)),
    "kd, another family": Case(("kd",), changes={"pairs": OTHER_FAMILY}),
    "at, another family": Case(("at",), changes={"pairs": OTHER_FAMILY}),
    "dropout": Case(("none",), recipe={"dropout": 0.3}),
    "nesterov": Case(("none",), recipe={"nesterov": True}),
    "momentum 0": Case(("none",), recipe={"momentum": 0.0}),
    "mixup": Case(("tfd",), recipe={"mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1}),
    "ema, dropout, clipping": Case(("tfd",), recipe={"ema": 0.9, "dropout": 0.2, "clip_grad_norm": 1.0}),
    "kd in bf16": Case(("kd",), changes={"precision": "bf16"}),
    "tfd in bf16": Case(("tfd",), changes={"precision": "bf16"}),
    "one teacher for four": Case(("none", "kd", "at", "tfd")),
}


class Twins:
    """Two equal groups: one takes every step eagerly, the other replays its full batches from one recording."""

    def __init__(self, case: Case, tiny: Any, folder: Any) -> None:
        changes = {"pairs": [{"student": "resnet8", "teacher": "resnet14"}], "precision": "fp32", **case.changes}
        recipe = {"name": "digits", "epochs": 10, "batch_size": 16, **case.recipe}
        cells = [c for c in tiny(methods=[*case.methods], recipe=recipe, **changes).cells if not _is_teacher(c, changes)]
        self.case, self.recording = case, Recording()
        options = Options(device="cpu", threads=1)
        assemblies = []
        for _ in range(2):
            torch.manual_seed(0)  # of the untrained teacher
            assemblies.append(assemble(cells, ResultsFolder(folder).grid("tiny"), options, untrained_teacher))
        self.eager, self.replayed = (assembly.step() for assembly in assemblies)
        first = next(iter(assemblies[0].trainees.values()))
        self.stream = assemblies[0].stream(first)
        self.static: Batch | None = None  # what the recording reads
        for step in (self.eager, self.replayed):
            step.train()

    def run(self) -> None:
        """Take the steps, and compare after each.

        Raises:
            AssertionError: a tensor differs, or the recorded step waits for the device.
        """
        for number, batch in enumerate(self._batches()):
            for step in (self.eager, self.replayed):
                step.set_lr(0.05 / (1 + number // 4))
            with Unchanged():
                self._seeded(number, self.eager, batch)
            self._other(number, batch)
            different = _different(state(self.eager), state(self.replayed))
            assert not different, f"step {number}: {different[:5]}"

    def _batches(self) -> Iterator[Batch]:
        for epoch in EPOCHS:
            yield from self.stream.epoch(epoch)

    def _other(self, number: int, batch: Batch) -> None:
        """The other twin's step: eager at first and for small batches."""
        if self.static is None:
            self.static = in_tensors(batch)
        small = len(batch.target) < len(self.static.target)
        if not small:
            fill(self.static, batch)
        if small or number < WARM_UP:
            with Unchanged():
                self._seeded(number, self.replayed, in_tensors(batch) if small else self.static)
            return
        if not self.recording.calls:
            self._record(number)
        torch.manual_seed(number)
        self.recording.replay()

    def _record(self, number: int) -> None:
        """Record a step that leaves no trace, as a CUDA graph's does."""
        assert self.static is not None
        before = {name: value.detach().clone() for name, value in state(self.replayed).items()}
        with self.recording:
            self._seeded(number, self.replayed, self.static)
        assert not self.recording.syncs, f"waits for the device: {dict(self.recording.syncs)}"
        with torch.no_grad():
            for name, value in state(self.replayed).items():
                value.copy_(before[name])

    def _seeded(self, number: int, step: Step, batch: Batch) -> None:
        torch.manual_seed(number)
        step(batch, self.case.preparing)


def _is_teacher(cell: Any, changes: dict[str, Any]) -> bool:
    ((pair),) = changes["pairs"]
    return cell.student["type"] != pair["student"]


def state(step: Step) -> dict[str, Tensor]:
    """Every tensor that outlives a step."""
    found: dict[str, Tensor] = {}
    for cell_id, member in step.members.items():
        tensors = [*member.trainee.named_parameters(), *member.trainee.named_buffers()]
        tensors += [(f"momentum {i}", momentum) for i, momentum in enumerate(member.optimizer.momenta())]
        tensors += [(f"sum of {name}", value) for sums in member.sums.values() for name, value in sums.items()]
        found |= {f"{cell_id} {name}": value for name, value in tensors}
    return found


def _different(some: dict[str, Tensor], others: dict[str, Tensor]) -> list[str]:
    assert some.keys() == others.keys()
    return [name for name in some if not torch.equal(some[name].nan_to_num(), others[name].nan_to_num())]


def in_tensors(batch: Batch) -> Batch:
    """A copy in memory of its own, with tensors for what changes from step to step."""
    copies = {name: value.clone() for name in TENSORS if (value := getattr(batch, name)) is not None}
    return batch._replace(**copies, epoch=torch.tensor(batch.epoch), progress=torch.tensor(batch.progress, dtype=torch.float64))


def fill(static: Batch, batch: Batch) -> None:
    """Write a batch into static memory."""
    for name in (*TENSORS, "epoch", "progress"):
        if isinstance(target := getattr(static, name), Tensor):
            target.copy_(torch.as_tensor(getattr(batch, name)))


@pytest.mark.parametrize("name", CASES)
def test_a_replayed_step_equals_an_eager_one(name, tiny, tmp_path):
    case = CASES[name]
    if case.changes.get("precision") == "bf16" and not has_bf16(torch.device("cpu")):
        pytest.skip("this CPU has no bf16")
    Twins(case, tiny, tmp_path).run()


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


@pytest.mark.parametrize(
    ("kind", "finding"),
    [
        (ReadsBack, r"waits for the device: .*item at tests/test_capture"),
        (Branches, r"waits for the device: .*__bool__ at tests/test_capture"),
        (Masks, r"waits for the device: .*index at tests/test_capture"),
        (Lists, r"waits for the device: .*tolist at tests/test_capture"),
        (Counts, r"step \d+: .*stem"),
        (Reassigns, r"step \d+: .*stem"),
    ],
)
def test_a_planted_fault_is_found(kind, finding, tiny, tmp_path):
    with pytest.raises(AssertionError, match=finding):
        _planted(kind, tiny, tmp_path)


def test_a_memory_that_is_written_in_place_is_sound(tiny, tmp_path):
    _planted(Sound, tiny, tmp_path)


def _planted(kind, tiny, folder):
    twins = Twins(Case(("none",)), tiny, folder)
    for step in (twins.eager, twins.replayed):
        for member in step.members.values():
            member.trainee.core["method"] = kind()
    twins.run()


def test_a_teacher_that_does_not_forget_is_found(tiny, tmp_path, monkeypatch):
    """A static batch is always the same tensor: a kept answer would be that to the former images."""
    twins = Twins(Case(("kd",)), tiny, tmp_path)
    monkeypatch.setattr("bench.engine.trainee.Teacher.forget", lambda self: None)
    with pytest.raises(AssertionError, match="step"):
        twins.run()
