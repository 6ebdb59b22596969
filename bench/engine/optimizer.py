"""SGD with the recipe's values, laid out so that a step can be recorded once and replayed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.engine.trainee import Trainee


class Optimizer:
    """The optimizer of one trainee.

    Learning rates are 0-dim tensors, one for each parameter group: its factor times the schedule's value. Momenta exist from
    the start, as zeros: the first step computes 0.9 * 0 + g, which is g, bit for bit.

    Args:
        trainee: already on the device.
        device: on a CPU learning rates are float64, as Python's numbers are; on CUDA float32, since its fused kernel takes no
            other.

    Attributes:
        sgd: torch's optimizer. Do not assign to a group's "lr": `set_lr` fills it.
        rates: the learning rates, one for each group.
    """

    def __init__(self, trainee: Trainee, device: torch.device) -> None:
        recipe = trainee.recipe
        groups = trainee.method.parameter_groups(trainee.trained_parameters())
        self._factors = [group.pop("lr_factor", 1.0) for group in groups]
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        self.rates = [torch.zeros((), dtype=dtype, device=device) for _ in groups]
        self._lr = 0.0
        self._clip_grad_norm = recipe.clip_grad_norm
        self.sgd = torch.optim.SGD(
            groups,
            lr=0.0,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            fused=True,  # the only kind that takes a learning rate from the device without waiting for it
        )
        self._lay_out()

    def _lay_out(self) -> None:
        """Put the learning rates in place, and zeros where a parameter has no momentum yet."""
        for group, rate in zip(self.sgd.param_groups, self.rates, strict=True):
            group["lr"] = rate
            for parameter in group["params"]:
                if group["momentum"] and self.sgd.state[parameter].get("momentum_buffer") is None:
                    self.sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def set_lr(self, lr: float) -> None:
        """Fill the learning rates where the schedule's value has changed."""
        if lr != self._lr:
            self._lr = lr
            for rate, factor in zip(self.rates, self._factors, strict=True):
                rate.fill_(factor * lr)

    def zero_momenta(self) -> None:
        """As a new optimizer, in the same memory."""
        for state in self.sgd.state.values():
            if "momentum_buffer" in state:
                state["momentum_buffer"].zero_()

    def clip(self) -> None:
        """Clip the norm of all gradients together, where the recipe asks for it. Does not wait for the device."""
        if self._clip_grad_norm:
            parameters = [p for group in self.sgd.param_groups for p in group["params"] if p.grad is not None]
            nn.utils.clip_grad_norm_(parameters, self._clip_grad_norm)

    def step(self) -> None:
        """Change the parameters, and drop the gradients."""
        self.sgd.step()
        self.sgd.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """torch's, with learning rates as numbers."""
        state = self.sgd.state_dict()
        return state | {"param_groups": [group | {"lr": float(group["lr"])} for group in state["param_groups"]]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over momenta. Learning rates follow from the schedule. Before a step is recorded, never after."""
        self.sgd.load_state_dict(state)
        self._lay_out()

    def momenta(self) -> list[Tensor]:
        """One for each trained parameter, unless momentum is 0."""
        return [state["momentum_buffer"] for state in self.sgd.state.values() if "momentum_buffer" in state]
