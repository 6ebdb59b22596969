"""What a method's class states about itself: flags of a wrong kind would be met late, or never."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

from bench.errors import UserError, defined_at
from bench.plan.specs import arguments_of
from bench.texts import brief
from methods.base import Card, Method, Needs, Partner

MOST_EPOCHS = 10**6  # of a preparation
TRUTHS = ("draws_random", "memory_by_sample", "needs_hard_labels", "needs_maps", "several_teachers", "changes_cross_entropy")


def check_method(method: object, key: str, where: str) -> Method:
    """The method that a registered class or function has built.

    Raises:
        UserError: it is none, or one of its flags is of a wrong kind; names flag, value, what is allowed, and the class.
    """
    if not isinstance(method, Method):
        raise UserError(f"{where}: '{key}' builds a {type(method).__name__}, no methods.Method")
    for name, (fits, allowed) in _flags(type(method)).items():
        value = getattr(method, name, None)
        if not fits(value):
            place = defined_at(type(method))
            raise UserError(f"{where}: {key}: {name} is {allowed}, not {brief(value)}" + (f" ({place})" if place else ""))
    return method


def _flags(kind: type[Method]) -> dict[str, tuple[Callable[[Any], bool], str]]:
    """By name: whether a value can be it, and what can."""

    def argument_names(value: object) -> bool:
        return isinstance(value, tuple) and (not value or set(value) <= arguments_of(kind).keys())

    whole = {
        "version": (1, math.inf, "a whole number of 1 or more"),
        "prepare_epochs": (0, MOST_EPOCHS, f"0 or more, at most {MOST_EPOCHS:,}, and whole"),
    }
    return {
        "card": (lambda value: isinstance(value, Card), "a methods.Card"),
        "presets": (_of_mappings, "a mapping of names to mappings of arguments"),
        "example": (lambda value: isinstance(value, Mapping), "a mapping of arguments"),
        "added_later": (argument_names, "a tuple of names of its arguments"),
        "needs": (_one_of(Needs), _listed(Needs)),
        "partner": (lambda value: value is None or _one_of(Partner)(value), f"None, {_listed(Partner)}"),
        "prepare_lr": (lambda value: value is None or _within(value, 0, math.inf), "None or a number above 0"),
        "teacher_epochs_fraction": (lambda value: _within(value, 0, 1), "above 0, at most 1"),
        **{name: (_whole(low, high), allowed) for name, (low, high, allowed) in whole.items()},
        **{name: (lambda value: isinstance(value, bool), "True or False") for name in TRUTHS},
    }


def _of_mappings(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, Mapping) for k, v in value.items())


def _one_of(literal: object) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in typing.get_args(literal)


def _listed(literal: object) -> str:
    return " or ".join(map(repr, typing.get_args(literal)))


def _within(value: object, low: float, high: float) -> bool:
    """Whether it is a finite number above `low` and at most `high`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and low < value <= high  # type: ignore[arg-type, operator]


def _whole(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
