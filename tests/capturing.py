"""A CUDA graph on a CPU: records every operation of a step once, and replays them without the step's Python.

What it shares with a CUDA graph:

* memory is static: each tensor of the recorded step keeps its storage, a replay writes into it, views stay views;
* Python runs once: numbers, branches, shapes and lists stay as they were in the recording;
* an operation that asks the device for a value is a host sync, and is named with its line: item, bool, tolist, boolean masks.

It cannot show errors of CUDA libraries, streams, kernels without a fixed order of sums, or reuse of memory within a pool.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

SYNCS = {  # operations that wait for the device, by their names without "aten."
    *("_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "_unique2", "unique_dim", "unique_consecutive"),
    *("equal", "is_nonzero", "bincount", "allclose", "histc"),
}
SYNC_FUNCTIONS = {  # of Python; on a CPU some of them call no operation
    *("tolist", "item", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__", "cpu", "pin_memory"),
    "__contains__",
}
CPU_ONLY = "one_hot"  # looks at its labels on a CPU alone (ATen/native/Onehot.cpp)
WRITES_UNDECLARED = {"native_batch_norm"}  # into running statistics, which its schema does not show


@dataclass
class Call:
    """One recorded operation."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Any]
    created: list[int]  # places among the outputs of tensors with memory of their own

    @property
    def has_effect(self) -> bool:
        """Whether a replay must run it: a view of static memory needs nothing."""
        writes = any(a.alias_info is not None and a.alias_info.is_write for a in self.operation._schema.arguments)
        return bool(self.created) or writes or _name(self.operation) in WRITES_UNDECLARED


class Recording(TorchDispatchMode):
    """Records while it is entered.

    Attributes:
        syncs: questions to the host, with their lines, and how many times each was asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.syncs: Counter[str] = Counter()
        self._functions = _Functions(self)
        self._on_host: dict[int, Tensor] = {}  # tensors made of Python's numbers; kept, so that ids stay theirs

    def __enter__(self) -> Recording:
        self._functions.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._functions.__exit__(*error)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = {_storage(t): t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = operation(*args, **kwargs)
        outputs = tree_leaves(result)
        if _name(operation) == "lift_fresh" or (inputs and inputs.keys() <= self._on_host.keys()):
            self._on_host |= {_storage(t): t for t in outputs if isinstance(t, Tensor)}
            return result  # Python's own arithmetic, done once
        if _waits(operation, args, kwargs) and CPU_ONLY not in self._functions.running:
            self.syncs[f"{_name(operation)} at {innermost_line()}"] += 1
        created = [place for place, t in enumerate(outputs) if isinstance(t, Tensor) and _storage(t) not in inputs]
        if inputs.keys() & self._on_host.keys():  # a kernel gets such a number by value
            args, kwargs = tree_map_only(Tensor, self._by_value, (args, kwargs))
        self.calls.append(Call(operation, args, kwargs, outputs, created))
        return result

    def _by_value(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone() if _storage(tensor) in self._on_host else tensor

    @torch.no_grad()
    def replay(self) -> None:
        """Do the same operations again, in the same memory."""
        with torch._C._AutoDispatchBelowAutograd():
            for call in self.calls:
                if call.has_effect:
                    again = tree_leaves(call.operation(*call.args, **call.kwargs))
                    for place in call.created:
                        call.outputs[place].copy_(again[place])


class _Functions(TorchFunctionMode):
    """Sees torch's Python interface: on a CPU, some questions to the host are no operations."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording
        self.running: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in SYNC_FUNCTIONS and CPU_ONLY not in self.running:
            self.recording.syncs[f"Tensor.{name} at {innermost_line()}"] += 1
        self.running.append(name)
        try:
            return function(*args, **(kwargs or {}))
        finally:
            self.running.pop()


class Unchanged(TorchDispatchMode):
    """Changes nothing, as a mode does.

    Under any mode autograd sums gradients out of place, which may choose another layout and another kernel (reviewkd: 1e-7).
    Eager steps run under this one, so that the replay is the only difference.
    """

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operation(*args, **(kwargs or {}))


class FakeGraphs:
    """In the place of `bench.engine.capture.CudaGraphs`, on a CPU."""

    def beside(self) -> Unchanged:
        return Unchanged()

    @contextlib.contextmanager
    def refusing_syncs(self) -> Iterator[None]:
        with Recording() as recording:
            yield
        if recording.syncs:
            raise RuntimeError(f"waits for the device: {dict(recording.syncs)}")

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        with Recording() as recording:
            work()
        return recording.replay


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _name(operation: Any) -> str:
    """'add_' for aten.add_.Tensor."""
    return str(operation).split(".")[1]


def _waits(operation: Any, args: Any, kwargs: Any) -> bool:
    """Whether the operation waits for the device, or has outputs whose size depends on values."""
    name = _name(operation)
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in ("index", "index_put", "index_put_"):
        return any(isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8) for t in tree_leaves(args[1:2]))
    return name in SYNCS


def innermost_line() -> str:
    """The innermost line of this project that runs."""
    for frame, line in traceback.walk_stack(sys._getframe(1)):
        path = Path(frame.f_code.co_filename)
        if path.parent.name in ("methods", "engine", "models") or path.name in ("test_capture.py", "test_fake_cuda.py"):
            return f"{path.parent.name}/{path.name}:{line}"
    return "?"
