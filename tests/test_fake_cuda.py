"""Forward pass and loss of every method on CUDA tensors, without a GPU: torch's fake tensors have devices, types and no values.

Backward needs a real device. Networks and methods are made on the CPU, `setup` included, and moved.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from capturing import innermost_line
from step_cases import CASES, Case, assembled
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.engine.assemble import Assembly
from bench.engine.layers import Layers
from bench.engine.trainee import Trainee
from methods import Batch, Method
from methods.base import Output


class Copies(TorchDispatchMode):
    """Notes copies from the host to the device: a recorded step would read the host's memory again at each replay."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        name = str(operation).split(".")[1]
        if name in ("_to_copy", "copy_") and "cpu" in _devices(args) and "cuda" in _devices((args[:1], result)):
            self.found.append(f"{name} at {innermost_line()}")
        return result


def _devices(tree: Any) -> set[str]:
    return {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}


def on_cuda(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")


def move(module: nn.Module) -> None:
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                each._parameters[name] = nn.Parameter(on_cuda(parameter), requires_grad=parameter.requires_grad)
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = on_cuda(buffer)


def terms_on_cuda(trainee: Trainee, batch: Batch, preparing: bool, precision: str) -> dict[str, Tensor]:
    """The terms of a step, as fake CUDA tensors.

    Raises:
        AssertionError: the step copies from the host to the device.
    """
    try:
        with FakeTensorMode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.set_autocast_enabled("cuda", precision == "bf16")  # `torch.autocast` refuses without a device
            torch.set_autocast_dtype("cuda", torch.bfloat16)
            move(trainee.core)
            if teacher := trainee.networks.teacher:
                teacher.forget()
                move(teacher.inference)
                move(teacher.network)
            tensors = {name: on_cuda(value) for name, value in batch._asdict().items() if isinstance(value, Tensor)}
            tensors["epoch"] = torch.empty((), dtype=torch.int64, device="cuda")
            tensors["progress"] = torch.empty((), dtype=torch.float64, device="cuda")
            layers = Layers(trainee.core.modules(), precision == "bf16")
            with Copies() as copies, layers.at_once():
                terms = trainee(batch._replace(**tensors), preparing)
            assert not copies.found, f"copies from the host: {copies.found}"
            return terms
    finally:
        torch.set_autocast_enabled("cuda", False)


def run(case: Case, assembly: Assembly, precision: str) -> None:
    for trainee in assembly.trainees.values():
        batch = next(iter(assembly.stream(trainee).epoch(0)))
        terms = terms_on_cuda(trainee, batch, case.preparing, precision)
        for name, term in terms.items():
            assert (term.device.type, term.dtype, term.shape) == ("cuda", torch.float32, ()), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.changes.get("precision") != "bf16"])
def test_forward_and_loss_stay_on_the_device(name, precision, tiny, tmp_path):
    case = CASES[name]
    assembly = assembled(case, tiny, tmp_path)
    for trainee in assembly.trainees.values():
        if teacher := trainee.networks.teacher:  # shared ones are moved with the first
            teacher._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            teacher.inference.to(teacher._dtype)
    run(case, assembly, precision)


class Planted(Method):
    pass


class StaysBehind(Planted):
    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.ones(16)  # no buffer: it does not move with the method

    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        return {"planted": (student.logits.mean(1) * self.weights).mean()}


class Copying(Planted):
    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        return {"planted": student.logits.mean() * torch.tensor([0.5, 2.0], device=student.logits.device).sum()}


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (StaysBehind, AssertionError, "convert all Tensors to FakeTensors"),
        (Copying, AssertionError, "copies from the host.*test_fake_cuda"),
    ],
)
def test_a_planted_fault_is_found(kind, error, message, tiny, tmp_path):
    assembly = assembled(Case(("none",)), tiny, tmp_path)
    [trainee] = assembly.trainees.values()
    trainee.core["method"] = kind()
    with pytest.raises(error, match=message):
        run(Case(("none",)), assembly, "fp32")
