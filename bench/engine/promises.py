"""What a method promises the engine, tried on one batch: without a check some of it would be broken in silence.

Terms have names that columns can have, and gradients; the batch stays as it is, since others see it, too; and a method that
draws random numbers states so, since it is not trained in lock-step with others. See `methods.base`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from bench.engine.device import autocast
from bench.engine.step import Step
from bench.engine.trainee import Trainee
from methods.base import Batch

ALLOWED = "a method returns a dict of its terms by name, each a real tensor of shape ()"
NAME = r"[\w.+ -]{1,100}"  # of a term, which names a column


class TrialError(Exception):
    """A cell cannot be trained; the message says what fails, why, and at which line."""


def check_promises(step: Step, trainee: Trainee, batch: Batch, preparing: bool) -> None:
    """Refuse a method that would do other than it states; see above.

    Raises:
        TrialError: names what, and how to mend it.
    """

    def terms(moment: Batch) -> dict[str, Tensor]:
        with autocast(step.device, step.precision):
            return trainee(step.static(moment), preparing)  # type: ignore[no-any-return]

    before = _versions(batch)
    found: dict[str, Tensor] = {}
    drawn = _draws(lambda: found.update(terms(batch)), step.device)
    _check_kept(batch, before)
    for name in found:
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise TrialError(f"{ALLOWED}; a name has at most 100 of letters, digits, spaces and _ . + -, unlike {name!r:.60}")
    if drawn and not preparing and not trainee.method.draws_random and not _network_draws(step, trainee, batch):
        raise TrialError("it draws random numbers; set draws_random = True, so that it is not trained in lock-step with others")
    if not (idle := _without_gradient(found)):
        return
    if idle := idle & _without_gradient(terms(batch._replace(epoch=trainee.recipe.epochs - 1, progress=1.0))):
        advice = "compute it from the student's output, without detach() and no_grad(), or leave it out"
        raise TrialError(f"nothing is trained by '{min(idle)}', a term without a gradient: {advice}")


def check_terms(step: Step, trainee: Trainee, batch: Batch, preparing: bool) -> None:
    """Raise an error where what a method returns is the cause of another error.

    Raises:
        TrialError: see above.
    """
    before = _versions(batch)
    with autocast(step.device, step.precision):
        terms: object = trainee(step.static(batch), preparing)
    _check_kept(batch, before)
    if not isinstance(terms, dict) or not terms:
        raise TrialError(f"{ALLOWED}, not {'an empty dict' if terms == {} else f'a {type(terms).__name__}'}")
    for name, term in terms.items():
        if not isinstance(term, Tensor):
            raise TrialError(f"{ALLOWED}, but '{name}' is a {type(term).__name__}")
        if term.shape or term.is_complex() or term.layout != torch.strided:
            layout = "" if term.layout == torch.strided else f" and layout {term.layout}"
            raise TrialError(f"{ALLOWED}, but '{name}' is a tensor of {term.dtype}, shape {tuple(term.shape)}{layout}")
        if term.device.type != step.device.type:
            raise TrialError(f"{ALLOWED}, but '{name}' is on the device {term.device}, and the networks are on {step.device}")


def check_predictor(predictor: object, image: Tensor, classes: int) -> None:
    """Refuse what cannot be evaluated and deployed.

    Raises:
        TrialError: it is no network, or returns no logits.
    """
    if not isinstance(predictor, nn.Module):
        raise TrialError(f"predictor returns a {type(predictor).__name__}, not the network that is deployed")
    logits = getattr(predictor(image), "logits", None)
    if not isinstance(logits, Tensor) or logits.shape != (len(image), classes):
        shown = f"logits of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else "no logits"
        raise TrialError(f"the network of predictor returns {shown}, not an Output with logits of shape {len(image), classes}")


def _versions(batch: Batch) -> dict[str, int]:
    """How often each tensor of a batch was changed in place."""
    return {name: value._version for name, value in batch._asdict().items() if isinstance(value, Tensor)}


def _check_kept(batch: Batch, before: dict[str, int]) -> None:
    """
    Raises:
        TrialError: a tensor was changed since.
    """
    for name, version in _versions(batch).items():
        if version != before[name]:
            raise TrialError(f"it changes batch.{name} in place, which others see, too; clone it before")


def _without_gradient(terms: dict[str, Tensor]) -> set[str]:
    return {name for name, term in terms.items() if not term.requires_grad}


def _network_draws(step: Step, trainee: Trainee, batch: Batch) -> bool:
    """Whether the student's forward pass draws by itself, as dropout does."""

    def forward() -> None:
        with torch.no_grad(), autocast(step.device, step.precision):
            trainee.networks.student(batch.image)

    return _draws(forward, step.device)


def _draws(action: Callable[[], None], device: torch.device) -> bool:
    """Whether a global generator of random numbers moves in it."""

    def states() -> list[bytes]:
        on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
        own = [repr(random.getstate()).encode(), repr(np.random.get_state(legacy=False)["state"]).encode()]
        return [state.numpy().tobytes() for state in (torch.get_rng_state(), *on_device)] + own

    before = states()
    action()
    return states() != before
