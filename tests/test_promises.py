"""What a method states about itself is checked when a grid is planned, and what it does on one batch before it is trained."""

from __future__ import annotations

import pytest
import torch
from small import write_grid
from torch import nn

from bench import run
from bench.engine.trial import TrialError, Trials
from bench.errors import UserError
from bench.records.options import Options
from methods import METHODS
from methods.base import Card, Method

CPU = Options(device="cpu", threads=1)


class Plain(Method):
    card = Card("Plain", "0", "none")

    def terms(self, student, batch):
        return {"plain": student.logits.mean()}


def of(**parts):
    """A class with these flags and functions."""
    return type("Own", (Plain,), parts)


def raising(self):
    raise KeyError("no luck")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (of(needs="techer"), r"own: needs is 'none' or 'teacher' or 'self', not 'techer'"),
        (of(partner="mix"), r"own: partner is None, 'same_class' or .*, not 'mix'"),
        (of(prepare_epochs="3"), r"own: prepare_epochs is 0 or more, .* and whole, not '3'"),
        (of(prepare_epochs=float("nan")), "own: prepare_epochs is 0 or more, .* not nan"),
        (of(prepare_lr=-1.0), r"own: prepare_lr is None or a number above 0, not -1\.0"),
        (of(teacher_epochs_fraction=0), "own: teacher_epochs_fraction is above 0, at most 1, not 0"),
        (of(version="x"), "own: version is a whole number of 1 or more, not 'x'"),
        (of(card=None), r"own: card is a methods\.Card, not None"),
        (of(draws_random="no"), "own: draws_random is True or False, not 'no'"),
        (of(presets={"a": 5}), "own: presets is a mapping of names to mappings of arguments, not {'a': 5}"),
        (of(added_later=("nope",)), r"own: added_later is a tuple of names of its arguments, not \('nope',\)"),
        (of(__init__=raising), r"methods\[0\]: KeyError: 'no luck' \(.*test_promises\.py:\d+\)"),
        (nn.Identity, r"methods\[0\]: 'own' builds a Identity, no methods\.Method"),
    ],
)
def test_a_flag_of_a_wrong_kind_is_named_when_planned(method, message, tiny, monkeypatch):
    monkeypatch.setitem(METHODS.module_dict, "own", method)
    with pytest.raises(UserError, match=message):
        tiny(methods=["own"])


@pytest.mark.parametrize("name", ["a/b", "a b", "a.b", "../x", "", "a\nb"])
def test_a_registered_name_that_no_file_can_hold_is_refused(name, tiny, monkeypatch):
    monkeypatch.setitem(METHODS.module_dict, name, Plain)
    with pytest.raises(UserError, match="cannot be registered: a name has letters, digits, _ and - alone"):
        tiny(methods=[{name: {}}])


def terms(value):
    return of(terms=lambda self, student, batch: value(student.logits.mean(), batch))


def changed(batch):
    batch.image.zero_()


CASES = {
    "none": (terms(lambda x, batch: None), r"Own\.terms returns a dict of its terms by name, not a NoneType"),
    "key": (terms(lambda x, batch: {"a,b": x}), r"a name has at most 100 of letters, .*, unlike 'a,b'"),
    "number": (terms(lambda x, batch: {1: x}), "a name has at most 100 of letters, .*, unlike 1"),
    "device": (terms(lambda x, batch: {"a": torch.zeros((), device="meta")}), "'a' is on the device meta, and the networks"),
    "sparse": (terms(lambda x, batch: {"a": x.to_sparse()}), r"shape \(\) and layout torch\.sparse_coo"),
    "batch": (terms(lambda x, batch: (changed(batch), {"a": x})[1]), r"it changes batch\.image in place, .* clone it before"),
    "draws": (terms(lambda x, batch: {"a": x * torch.rand(())}), "it draws random numbers; set draws_random = True"),
    "predictor": (of(predictor=lambda self, student: None), "predictor: predictor returns a NoneType, not the network"),
    "logits": (of(predictor=lambda self, student: nn.Flatten()), "the network of predictor returns no logits, not an Output"),
    "groups": (of(parameter_groups=lambda self, parameters: None), r"parameter_groups returns a list of .*, not None"),
}


def test_a_method_that_does_other_than_it_states_is_refused_before_it_is_trained(tmp_path, monkeypatch):
    fine = {"fine": of(), "drawing": type("Drawing", (CASES["draws"][0],), {"draws_random": True})}
    for name, method in {**{name: method for name, (method, _) in CASES.items()}, **fine}.items():
        monkeypatch.setitem(METHODS.module_dict, f"own-{name}", method)
    named = [f"own-{name}" for name in (*CASES, *fine)]
    grid, folder = run.plan(write_grid(tmp_path, methods=named), tmp_path, options=CPU)
    trials = Trials(folder, CPU)
    for cell in grid.cells:
        name = cell.label.removeprefix("own-")
        if name in fine:
            trials.try_out(cell)
            continue
        with pytest.raises(TrialError, match=CASES[name][1]):
            trials.try_out(cell)
