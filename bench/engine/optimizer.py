"""The optimizer that a recipe names, laid out so that a step can be recorded once and replayed.

One is registered in `OPTIMIZERS`: a function that takes parameter groups, the recipe and arguments of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from mmengine.registry import Registry
from torch import Tensor, nn

from bench.engine.trainee import Trainee
from bench.models import Network
from bench.records.recipe import Recipe
from bench.texts import brief

Groups = list[dict[str, Any]]
"""torch's parameter groups. "lr" of each is a 0-dim tensor that the engine fills before a step."""


def build_optimizer(cfg: Mapping[str, Any], registry: Registry, groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """Build from `{"type": key, **arguments}`."""
    arguments = dict(cfg)
    key = arguments.pop("type")
    builder = registry.get(key)
    if builder is None:
        raise KeyError(f"unknown optimizer '{key}'; known: {', '.join(sorted(registry.module_dict))}")
    optimizer: torch.optim.Optimizer = builder(groups, recipe, **arguments)
    return optimizer


OPTIMIZERS = Registry("optimizer", build_func=build_optimizer, locations=["bench.engine.optimizer"])


@OPTIMIZERS.register_module()
def sgd(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """Stochastic gradient descent with the recipe's momentum, nesterov and weight decay.

    Momenta exist from the start, as zeros: the first step computes 0.9 * 0 + g, which is g, bit for bit.
    """
    optimizer = torch.optim.SGD(
        groups,
        lr=0.0,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,  # the only kind that takes a learning rate from the device without waiting for it
    )
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


@OPTIMIZERS.register_module()
def adamw(
    groups: Groups, recipe: Recipe, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay, the recipe's: Loshchilov, Hutter. ICLR 2019. arXiv:1711.05101. As in torch."""
    first, second = betas
    on_gpu = groups[0]["lr"].is_cuda
    optimizer = torch.optim.AdamW(
        groups,
        lr=0.0,
        betas=(float(first), float(second)),
        eps=eps,
        weight_decay=recipe.weight_decay,
        fused=True,  # with learning rate and count of steps on the device
        capturable=on_gpu,
    )
    vars(optimizer)["_warned_capturable_if_run_uncaptured"] = True  # the first steps are eager, on purpose
    return optimizer


class Optimizer:
    """The optimizer of one trainee.

    Learning rates are 0-dim tensors, one for each parameter group: its factor times the schedule's value.

    Args:
        trainee: already on the device.
        device: on a CPU learning rates are float64, as Python's numbers are; on CUDA float32, since torch's fused kernels take
            no other.

    Attributes:
        inner: torch's optimizer. Do not assign to a group's "lr": `set_lr` fills it.
        rates: the learning rates, one for each group.
    """

    def __init__(self, trainee: Trainee, device: torch.device) -> None:
        self._recipe = trainee.recipe
        self._groups = _groups(trainee)
        self._factors = [group.pop("lr_factor", 1.0) for group in self._groups]
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        self.rates = [torch.zeros((), dtype=dtype, device=device) for _ in self._groups]
        self._lr = 0.0
        self.inner = self._new()

    def _new(self) -> torch.optim.Optimizer:
        groups = [group | {"lr": rate} for group, rate in zip(self._groups, self.rates, strict=True)]
        inner: torch.optim.Optimizer = OPTIMIZERS.build(self._recipe.optimizer, groups=groups, recipe=self._recipe)
        return inner

    def set_lr(self, lr: float) -> None:
        """Fill the learning rates where the schedule's value has changed."""
        if lr != self._lr:
            self._lr = lr
            for rate, factor in zip(self.rates, self._factors, strict=True):
                rate.fill_(factor * lr)

    def start_anew(self) -> None:
        """Forget all but the learning rates. Before a step of the phase that begins is recorded, never after."""
        del self.inner  # its memory first
        self.inner = self._new()

    def clip(self) -> None:
        """Clip the norm of all gradients together, where the recipe asks for it. Does not wait for the device."""
        if self._recipe.clip_grad_norm:
            parameters = [p for group in self.inner.param_groups for p in group["params"] if p.grad is not None]
            nn.utils.clip_grad_norm_(parameters, self._recipe.clip_grad_norm)

    def step(self) -> None:
        """Change the parameters, and drop the gradients."""
        self.inner.step()
        self.inner.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """torch's, with learning rates as numbers."""
        state = self.inner.state_dict()
        return state | {"param_groups": [group | {"lr": float(group["lr"])} for group in state["param_groups"]]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over momenta. Learning rates follow from the schedule. Before a step is recorded, never after."""
        fresh = {parameter: dict(values) for parameter, values in self.inner.state.items()}
        self.inner.load_state_dict(state)
        for group, rate in zip(self.inner.param_groups, self.rates, strict=True):
            group["lr"] = rate
        for parameter, values in fresh.items():  # what an older checkpoint lacks
            known = self.inner.state[parameter]
            known |= {name: value for name, value in values.items() if known.get(name) is None}

    def momenta(self) -> list[Tensor]:
        """All tensors that it keeps between steps: momenta, second moments, counts of steps."""
        return [value for state in self.inner.state.values() for value in state.values() if isinstance(value, Tensor)]


def _groups(trainee: Trainee) -> Groups:
    """The method's groups; where the recipe spares some parameters from weight decay, these have groups of their own."""
    trained = trainee.trained_parameters()
    groups = trainee.method.parameter_groups(trained)
    if not isinstance(groups, list) or not all(isinstance(group, dict) and "params" in group for group in groups):
        raise ValueError(f'parameter_groups returns a list of {{"params": [...]}}, not {brief(groups)}')
    left_out = {id(p) for p in trained} - {id(p) for group in groups for p in group["params"]}
    if left_out:
        raise ValueError(f"parameter_groups leaves out {len(left_out)} of {len(trained)} parameters")
    if trainee.recipe.decay_all:
        return groups
    spared = {id(parameter) for parameter in spared_from_decay(trainee)}
    found: Groups = []
    for group in groups:
        if "weight_decay" in group:
            found.append(group)
            continue
        decayed = [parameter for parameter in group["params"] if id(parameter) not in spared]
        others = [parameter for parameter in group["params"] if id(parameter) in spared]
        found += [group | {"params": decayed}] * bool(decayed)
        found += [group | {"params": others, "weight_decay": 0.0}] * bool(others)
    return found


def spared_from_decay(trainee: Trainee) -> list[nn.Parameter]:
    """As in timm: biases and other vectors, as those of norms, and what a network names itself."""
    found = [p for name, p in trainee.core.named_parameters() if p.ndim <= 1 or name.endswith(".bias")]
    for network in [module for module in trainee.core.modules() if isinstance(module, Network)]:
        named = network.named_parameters()
        found += [p for name, p in named if any(fnmatchcase(name, pattern) for pattern in network.undecayed)]
    return found
