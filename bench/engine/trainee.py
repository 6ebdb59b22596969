"""The inner parts of a training: networks as methods see them, and the trainee, which is a student with its method."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bench.engine.folding import folded
from bench.models import Network
from bench.records.recipe import Recipe
from methods.base import Batch, Method, Networks, Output
from methods.parts import HALF, Wrapped


def _widened(output: Output) -> Output:
    """With logits and embedding in fp32 where they come in half precision."""
    logits, embedding = output.logits, output.embedding
    if logits.dtype in HALF or embedding.dtype in HALF:
        return output._replace(logits=logits.float(), embedding=embedding.float())
    return output


def _maybe_compiled(network: nn.Module, compiled: bool) -> Callable[[Tensor], Output]:
    """A network's forward pass: compiled anew for each shape of a batch, or as it is."""
    return cast(Callable[[Tensor], Output], torch.compile(network, dynamic=False)) if compiled else network


class NetworkView(Wrapped):
    """A network as methods see it: under bf16, logits and embedding come in fp32, in which the losses are computed.

    Args:
        compiled: whether its forward pass, and with it the backward pass, runs as torch.compile makes it. Parts of the network
            that a method calls by themselves do not.
    """

    network: Network  # the module itself

    def __init__(self, network: Network, compiled: bool = False) -> None:
        super().__init__(network)
        self._forward = _maybe_compiled(network, compiled)

    def __call__(self, image: Tensor) -> Output:
        return _widened(self._forward(image))


class Teacher(NetworkView):
    """Frozen, in eval mode, and asked once for each tensor of images, however many trainees want the answer.

    Args:
        network: on the device.
        image: (B, C, H, W) sample in fp32, to check the folded copy by, which is what answers; None: `network` itself answers.
        compiled: whether what answers runs as torch.compile makes it.

    Attributes:
        keeps_all: for trainees on streams of their own: an answer stays in memory until all of them have read it.
    """

    def __init__(self, network: Network, image: Tensor | None, precision: str, compiled: bool = False) -> None:
        super().__init__(network.eval().requires_grad_(False))
        own = network.classifier.weight.dtype  # fp32, but where a test compares in float64
        dtype = torch.bfloat16 if precision == "bf16" else own
        self.inference = network if image is None else folded(network, image, dtype)
        self._forward = _maybe_compiled(self.inference, compiled)
        self._dtype = own if image is None else dtype
        self.keeps_all = False  # until it forgets; else the last answer alone
        self._answers: list[_Answer] = []

    def forget(self) -> None:
        self._answers.clear()

    def __call__(self, image: Tensor) -> Output:
        for answer in self._answers:
            if answer.image is image:
                if answer.ready is not None:
                    torch.cuda.current_stream(image.device).wait_event(answer.ready)
                return answer.output
        with torch.no_grad():
            output = _widened(self._forward(image.to(self._dtype)))
        ready = None
        if self.keeps_all and image.device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record(torch.cuda.current_stream(image.device))
        if not self.keeps_all:
            self._answers.clear()
        self._answers.append(_Answer(image, output, ready))
        return output


class _Answer(NamedTuple):
    """What a teacher has computed in this step."""

    image: Tensor
    output: Output
    ready: torch.cuda.Event | None  # for other streams than the one that computes it


class Trainee(nn.Module):
    """A student with its method: the unit that is optimized, evaluated and checkpointed.

    Args:
        student: the network, on the device.
        method: after its `setup`, on the device.
        teacher: shared with other trainees, or None.
        others: further teachers.
    """

    def __init__(
        self, student: Network, method: Method, teacher: Teacher | None, recipe: Recipe, others: tuple[Teacher, ...] = ()
    ) -> None:
        super().__init__()
        self.core = nn.ModuleDict({"student": student, "method": method})
        self.recipe = recipe
        self.teachers: tuple[Teacher, ...] = () if teacher is None else (teacher, *others)
        self.networks = Networks(NetworkView(student, recipe.compile), teacher, others)
        self.average = AveragedModel(self.core).requires_grad_(False) if recipe.ema else None
        self._averaging = False  # whether the average has begun
        if self.average is not None:  # on the device, so that a recorded step counts, too
            self.average.n_averaged = self.average.n_averaged.to(next(student.parameters()).device)
        buffers = dict(self.core.named_buffers())
        self._statistics = [name for name in self.core.state_dict() if name in buffers]

    @property
    def teacher(self) -> Teacher | None:
        """The first one."""
        return self.teachers[0] if self.teachers else None

    @property
    def student(self) -> Network:
        return cast(Network, self.core["student"])

    @property
    def method(self) -> Method:
        return cast(Method, self.core["method"])

    def forward(self, batch: Batch, preparing: bool = False) -> dict[str, Tensor]:
        """The terms of one step."""
        return self.method.prepare(self.networks, batch) if preparing else self.method.step(self.networks, batch)

    @torch.no_grad()
    def move_average(self) -> None:
        """After a step, with `recipe.ema`: parameters are averaged; batch norm statistics, already averages, are copied.

        `AveragedModel.update_parameters` does the same, but waits for the device, and cannot copy buffers that change their
        shape, as those that a method keeps for its next step may. The first call copies: a step is recorded after it.
        """
        if self.average is None:
            return
        means, values = list(self.average.module.parameters()), list(self.core.parameters())
        get_ema_multi_avg_fn(self.recipe.ema if self._averaging else 0.0)(means, values, None)
        self._averaging = True
        copies, statistics = dict(self.average.module.named_buffers()), dict(self.core.named_buffers())
        torch._foreach_copy_([copies[name] for name in self._statistics], [statistics[name] for name in self._statistics])
        self.average.n_averaged += 1

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.load_state_dict(state)
        self._averaging = self.average is not None and bool(self.average.n_averaged > 0)

    def predictor(self) -> nn.Module:
        """The network that is evaluated and deployed."""
        core = cast(nn.ModuleDict, self.average.module) if self.average else self.core
        return cast(Method, core["method"]).predictor(core["student"])

    def trained_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.core.parameters() if p.requires_grad]

    def duplicate(self) -> Trainee:
        """A copy for counting and timing: its steps leave no trace in this one. Teachers are shared."""
        memo: dict[int, Any] = {id(teacher): teacher for teacher in self.teachers}
        memo[id(self.networks)] = self.networks  # a compiled forward pass is no copy: it would be the first student's
        copied = copy.deepcopy(self, memo)
        copied.networks = replace(self.networks, student=NetworkView(copied.student, self.recipe.compile))
        return copied

    def parameter_counts(self) -> tuple[int, int]:
        """(deployed, train-only)."""
        deployed = {id(p): p.numel() for p in self.method.predictor(self.student).parameters()}
        train_only = sum(p.numel() for p in self.trained_parameters() if id(p) not in deployed)
        return sum(deployed.values()), train_only
