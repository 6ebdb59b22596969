"""The examples of docs/contract.md do what they state: in a step by hand, in lock-step, and in a recorded step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from step_cases import Case, assembled
from test_capture import Twins

from bench.engine.assemble import Assembly
from bench.engine.snapshot import state
from bench.plugins import import_plugin
from methods import METHODS, Card, Context, Method

PLAIN = {"momentum": 0.0, "weight_decay": 0.0}
LR = 0.1
ALL = ("fast_adapter", "centralized", {"max_norm": {"limit": 0.5}}, "none")  # the first one draws the teacher


@pytest.fixture(autouse=True, scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    text = (Path(__file__).resolve().parents[1] / "docs/contract.md").read_text(encoding="utf-8")
    found = re.findall(r"^```python ([\w.]+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    folder = tmp_path_factory.mktemp("examples")
    for name, code in found:
        (folder / name).write_text(code, encoding="utf-8")
        import_plugin(str(folder / name))
    names = [name.removesuffix(".py") for name, _ in found]
    assert set(names) <= METHODS.module_dict.keys()
    return names


def one_step(methods: tuple, tiny, folder: Path) -> tuple[Assembly, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The assembly after a step of one method without momentum and decay; its parameters before; their gradients."""
    assembly, twin = (assembled(Case(methods, recipe=PLAIN), tiny, folder) for _ in range(2))
    [trainee], [reference] = assembly.trainees.values(), twin.trainees.values()
    before = {name: p.detach().clone() for name, p in trainee.core.named_parameters()}
    step, batch = assembly.step(), next(iter(assembly.stream(trainee).epoch(0)))
    step.train()
    reference.train()
    step.set_lr(LR)
    sum(reference(step.static(batch)).values()).backward()
    step(batch)
    return assembly, before, {name: p.grad for name, p in reference.core.named_parameters() if p.grad is not None}


def after(assembly: Assembly) -> dict[str, torch.Tensor]:
    [trainee] = assembly.trainees.values()
    return dict(trainee.core.named_parameters())


def test_gradients_are_changed_before_the_optimizer_sees_them(tiny, tmp_path: Path) -> None:
    assembly, before, gradients = one_step(("centralized",), tiny, tmp_path)
    for name, now in after(assembly).items():
        gradient = gradients[name]
        if gradient.ndim > 1:
            gradient = gradient - gradient.flatten(1).mean(1).view(-1, *[1] * (gradient.ndim - 1))
        torch.testing.assert_close(now, before[name] - LR * gradient, rtol=1e-4, atol=1e-6)


def test_weights_are_changed_after_the_step(tiny, tmp_path: Path) -> None:
    assembly, before, gradients = one_step(({"max_norm": {"limit": 0.5}},), tiny, tmp_path)
    name = "student.classifier.weight"
    stepped = before[name] - LR * gradients[name]
    norms = stepped.norm(dim=1, keepdim=True)
    assert bool((norms > 0.5).any())
    torch.testing.assert_close(after(assembly)[name], stepped * (0.5 / norms).clamp(max=1), rtol=1e-4, atol=1e-6)


def test_an_adapter_has_a_rate_of_its_own(tiny, tmp_path: Path) -> None:
    assembly, before, gradients = one_step(("fast_adapter",), tiny, tmp_path)
    for name, now in after(assembly).items():
        rate = 10 * LR if name.startswith("method.adapter") else LR
        torch.testing.assert_close(now, before[name] - rate * gradients[name], rtol=1e-4, atol=1e-6)


def test_in_lock_step_each_is_as_alone(tiny, tmp_path: Path) -> None:
    together = assembled(Case(ALL), tiny, tmp_path)
    step, stream = together.step(), together.stream(next(iter(together.trainees.values())))
    step.train()
    step.set_lr(LR)
    for batch in stream.epoch(0):
        step(batch)
    for method in ALL:
        alone = assembled(Case((method,)), tiny, tmp_path)
        [(cell_id, trainee)] = alone.trainees.items()
        single = alone.step()
        single.train()
        single.set_lr(LR)
        for batch in alone.stream(trainee).epoch(0):
            single(batch)
        grouped = {name: value for name, value in state(step).items() if name.startswith(cell_id)}
        for name, value in state(single).items():
            assert not name.startswith(cell_id) or torch.equal(value, grouped[name]), name


def test_a_recorded_step_repeats_them(tiny, tmp_path: Path) -> None:
    runner = Twins(Case(ALL), tiny, tmp_path).run()
    assert runner.path == "graph", runner.path_reason
    assert runner.path_reason == "checked at 2 moments: bit for bit"


def test_groups_that_leave_a_parameter_out_are_refused(tiny, tmp_path: Path) -> None:
    assembly = assembled(Case(("none",)), tiny, tmp_path)
    [trainee] = assembly.trainees.values()
    trainee.method.parameter_groups = lambda parameters: [{"params": parameters[1:]}]
    with pytest.raises(ValueError, match=r"parameter_groups leaves out 1 of \d+ parameters"):
        assembly.step()


def test_setup_also_runs_without_data(tiny) -> None:
    seen = []

    @METHODS.register_module("narrow_only")
    class NarrowOnly(Method):
        card = Card("Narrow only", "CE", "–")

        def setup(self, context: Context) -> None:
            seen.append(context.student.embedding.device.type)
            if context.student.embedding.shape[1] > 64:
                raise ValueError("works on narrow networks alone")

    grid = tiny(methods=["narrow_only"], pairs=[{"student": "resnet8"}, {"student": "resnet8x4"}])
    assert seen == ["meta", "meta"]
    assert [cell.student["type"] for cell in grid.cells] == ["resnet8"]
    assert [skip.reason for skip in grid.skipped] == ["works on narrow networks alone"]


def test_each_example_is_short(examples: list[str]) -> None:
    text = (Path(__file__).resolve().parents[1] / "docs/contract.md").read_text(encoding="utf-8")
    for code in re.findall(r"^```python [\w.]+\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        body = code.partition("class ")[2].splitlines()
        assert len([line for line in body if line.strip()]) <= 16
