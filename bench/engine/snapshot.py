"""All that a step reads and changes, kept at one moment and put back: how a recorded step is compared with an eager one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench.engine.step import Step

Frozen = Any  # of a Python value: something that equals another one's where the values are the same
_TORCHS_OWN = frozenset(vars(nn.Module()))  # attributes that every module has


class Snapshot:
    """The state of a step: weights, buffers, momenta, sums, learning rates, Python attributes of methods, generators."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self._tensors = state(step)
        self._values = {name: value.detach().clone() for name, value in self._tensors.items()}
        self._modules = {
            name: (module, dict(module._parameters), dict(module._buffers), _attributes(module))
            for name, module in _modules(step)
        }
        self._frozen = {name: _freeze_all(module) for name, (module, *_) in self._modules.items()}
        self._optimizers = [_Memory(member.optimizer.inner) for member in step.members.values()]
        self._sums = [(sums, dict(sums)) for member in step.members.values() for sums in member.sums.values()]
        self._generator = torch.get_rng_state()
        self._on_gpu = step.device.type == "cuda"
        self._gpu_generator = torch.cuda.get_rng_state(step.device) if self._on_gpu else None

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, in the memory where it was. Gradients go."""
        for sums, kept in self._sums:
            sums.clear()
            sums.update(kept)
        for module, parameters, buffers, attributes in self._modules.values():
            module._parameters.update(parameters)
            module._buffers.update(buffers)
            for name, value in attributes.items():
                if isinstance(value, _GeneratorState):
                    value.restore()
                else:
                    vars(module)[name] = _copy(value)
        for name, tensor in self._tensors.items():
            tensor.copy_(self._values[name])
        for optimizer in self._optimizers:
            optimizer.restore()
        torch.set_rng_state(self._generator)
        if self._gpu_generator is not None:
            torch.cuda.set_rng_state(self._gpu_generator, self.step.device)

    def unrepeatable(self) -> str | None:
        """What a step since then has changed other than in place, so that a replay could not change it; None: nothing."""
        for name, (module, *_) in self._modules.items():
            now, then = _freeze_all(module), self._frozen[name]
            for key in now.keys() | then.keys():
                if now.get(key) != then.get(key):
                    return f"{type(module).__name__}.{key} is Python's and changes in a step: keep it in a buffer"
        for optimizer in self._optimizers:
            if optimizer.changed():
                name = type(optimizer.optimizer).__name__
                return f"{name} keeps values of Python's that change in a step: keep them in 0-dim tensors on the device"
        now_tensors = state(self.step)
        if new := now_tensors.keys() ^ self._tensors.keys():
            return f"{min(new)} is not there in every step"
        for name, tensor in now_tensors.items():
            if tensor is not self._tensors[name]:
                return f"{name} is another tensor after a step: write into it in place"
        return None

    def now(self) -> dict[str, Tensor]:
        """Copies of the tensors as they are now."""
        return {name: tensor.detach().clone() for name, tensor in self._tensors.items()}

    def difference(self, some: dict[str, Tensor], others: dict[str, Tensor]) -> tuple[float, str]:
        """(largest difference of a tensor, relative to how far `some` has moved from this snapshot, and the tensor's name)."""
        worst, where = 0.0, ""
        for name, kept in self._values.items():
            a, b = some[name].double().nan_to_num(), others[name].double().nan_to_num()
            apart = float((a - b).norm())
            if apart:
                moved = float((a - kept.double().nan_to_num()).norm())
                share = apart / moved if moved else float("inf")
                if share > worst:
                    worst, where = share, name
        return worst, where


def state(step: Step) -> dict[str, Tensor]:
    """Every tensor that outlives a step, by name."""
    found: dict[str, Tensor] = {"epoch": step.epoch, "progress": step.progress}
    for cell_id, member in step.members.items():
        tensors = [*member.trainee.named_parameters(), *member.trainee.named_buffers()]
        tensors += [(f"momentum {i}", momentum) for i, momentum in enumerate(member.optimizer.momenta())]
        tensors += [(f"learning rate {i}", rate) for i, rate in enumerate(member.optimizer.rates)]
        tensors += [(f"sum of {name}", value) for sums in member.sums.values() for name, value in sums.items()]
        found |= {f"{cell_id} {name}": value for name, value in tensors}
    for name, module in _modules(step):
        for key, value in _attributes(module).items():
            found |= {f"{name}.{key}{place}": tensor for place, tensor in _tensors_in(value)}
    return found


def _modules(step: Step) -> Iterator[tuple[str, nn.Module]]:
    for cell_id, member in step.members.items():
        for name, module in member.trainee.named_modules():
            yield f"{cell_id} {name}", module


class _Memory:
    """What an optimizer keeps between steps beside the values of its tensors: which these are, and values of Python's."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.state = {parameter: _copy(dict(values)) for parameter, values in optimizer.state.items()}
        self.groups = [_copy(dict(group)) for group in optimizer.param_groups]
        self.numbers = self._numbers()

    def _numbers(self) -> Frozen:
        values = [*self.optimizer.state.values(), *self.optimizer.param_groups]
        return [[(name, _freeze(value)) for name, value in each.items() if not isinstance(value, Tensor)] for each in values]

    def changed(self) -> bool:
        """Whether values of Python's have changed since then."""
        return bool(self._numbers() != self.numbers)

    def restore(self) -> None:
        """Put them back. Gradients go."""
        for parameter in self.optimizer.state.keys() - self.state.keys():
            del self.optimizer.state[parameter]
        pairs = [(self.optimizer.state[parameter], values) for parameter, values in self.state.items()]
        for place, values in [*pairs, *zip(self.optimizer.param_groups, self.groups, strict=True)]:
            place.clear()
            place.update(_copy(values))
        self.optimizer.zero_grad()


class _GeneratorState:
    """A generator of a method's own, and its state."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.state = generator, generator.get_state()

    def restore(self) -> None:
        self.generator.set_state(self.state)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Copies of a module's own Python attributes. Tensors in them, and objects of other kinds, are the same ones."""
    return {name: _copy(value) for name, value in vars(module).items() if name not in _TORCHS_OWN}


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return _GeneratorState(value)
    if type(value) in (list, tuple, set):
        return type(value)(map(_copy, value))
    if type(value) is dict:
        return {key: _copy(each) for key, each in value.items()}
    return value


def _freeze_all(module: nn.Module) -> dict[str, Frozen]:
    return {name: _freeze(value) for name, value in vars(module).items() if name not in _TORCHS_OWN}


def _freeze(value: Any) -> Frozen:
    if isinstance(value, torch.Generator):
        return bytes(value.get_state().tolist())
    if isinstance(value, int | float | complex | str | bytes | None):
        return type(value), repr(value)  # NaN equals itself
    if isinstance(value, list | tuple):
        return type(value), [_freeze(each) for each in value]
    if isinstance(value, dict):
        return [(key, _freeze(each)) for key, each in value.items()]
    return id(value)


def _tensors_in(value: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _tensors_in(each, f"{place}[{number}]")
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _tensors_in(each, f"{place}[{key}]")
