"""Ranges of arguments: every number of every method has one, and what ships lies within."""

from __future__ import annotations

import pytest

from bench.plan.ranges import Range, range_of, ranges
from bench.plan.specs import arguments_of
from methods import METHODS

FREE = {"ctkd.theta", "sdd.finest"}  # any number, or one that the class itself checks


@pytest.mark.parametrize("key", sorted(METHODS.module_dict))
def test_numbers_of_methods_have_ranges_and_defaults_and_presets_lie_within(key):
    method = METHODS.get(key)
    parameters = arguments_of(method)
    given = [{name: each.default for name, each in parameters.items()}, *method.presets.values(), method.example]
    for name, parameter in parameters.items():
        allowed = range_of(method, name)
        if parameter.annotation in (int, float) and f"{key}.{name}" not in FREE:
            assert allowed is not None, name
        for values in given:
            assert allowed is None or name not in values or values[name] in allowed


class Stated:
    """A class.

    Args:
        a: in [0, 1); 0 is none,
            over lines.
        b: factor where d is above 2, 1 or more.
        c: above 1e-5 ("x").
        d: tau lies above start, as published.

    Raises:
        ValueError: in (3, 4).
    """


class Inherits(Stated):
    """Another, without arguments of its own."""


def test_ranges_are_read_from_docstrings():
    found = ranges(Inherits)
    assert found == {
        "a": Range("in [0, 1)", 0, 1, True, False),
        "b": Range("1 or more", 1),
        "c": Range("above 1e-5", 1e-5, with_low=False),
    }
    assert all(value in found["a"] for value in (0, 0.5, True, "x", None))
    assert not any(value in found["a"] for value in (-0.1, 1, float("nan"), 2))
