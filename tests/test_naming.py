"""Names from specs: as today's grids show them, whatever a record stored, and without torch."""

from __future__ import annotations

import json

import pytest

from bench.plan import expand, grid_file
from bench.plan.specs import arguments_of
from bench.records import naming
from methods import METHODS

PLUGIN = naming.Signature(("weight", "stages"), {"weight": 0.1}, {"strong": {"weight": 0.5}})


SHIPPED = sorted(key for key, method in METHODS.module_dict.items() if method.__module__.startswith("methods."))  # not by tests


@pytest.mark.parametrize("key", SHIPPED)
def test_a_shipped_signature_is_that_of_its_class(key):
    parameters = arguments_of(METHODS.get(key)).values()
    found = naming.shipped_signature(key)
    assert found is not None
    assert found.arguments == tuple(parameter.name for parameter in parameters)
    expected = {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}
    assert found.defaults == json.loads(json.dumps(expected))
    assert found.presets == json.loads(json.dumps(METHODS.get(key).presets))


def test_labels_say_what_differs():
    kd = {"type": "kd", "temperature": 4.0, "weight": 0.9, "ce_weight": 0.1}
    imagenet = kd | {"temperature": 1.0, "weight": 0.5, "ce_weight": 0.5}
    tfd = {"type": "tfd", "weight": 0.01, "ramp_epochs": 0}
    dkd = {"type": "dkd", "alpha": 1.0, "beta": 2.0, "temperature": 4.0, "weight": 1.0, "ramp_epochs": 20}
    std = {"type": "logit_std", "method": kd | {"temperature": 2.0}, "weight": 1.0}
    assert naming.method_label(kd) == "kd"
    assert naming.method_label(imagenet) == "kd[imagenet]"
    assert naming.method_label(kd | {"temperature": 2.0}) == "kd(temperature=2.0)"
    assert naming.method_label({"type": "sum", "parts": [tfd, kd]}) == "tfd(weight=0.01)+kd"
    assert (
        naming.method_label(tfd | {"weight": 0.005, "stages": [1, 2], "ramp_epochs": 1}) == "tfd(ramp_epochs=1, stages=[1, 2])"
    )
    assert naming.method_label(dkd, "resnet56/resnet20") == "dkd[pair]"
    assert naming.method_label(dkd, "vgg13/vgg8") == naming.method_label(dkd) == "dkd(beta=2.0)"
    assert naming.method_label(std) == "logit_std(method=kd(temperature=2.0))"
    assert naming.method_label(METHODS.get("logit_std").presets["kd"] | {"type": "logit_std"}) == "logit_std[kd]"


def test_an_argument_that_a_record_is_too_old_for_changes_nothing():
    old, new = {"type": "tfd", "weight": 0.005}, {"type": "tfd", "weight": 0.005, "before_activation": False}
    assert naming.short_form(old) == naming.short_form(new) == {"type": "tfd"}
    assert naming.short_form(new | {"before_activation": True}) == {"type": "tfd", "before_activation": True}


def test_a_family_is_registry_keys_alone():
    parts = [{"type": "tfd", "weight": 1.0}, {"type": "own.losses.mine"}]
    assert naming.method_family({"type": "sum", "parts": parts}) == "tfd+mine"


def test_what_is_at_its_default_and_what_was_published():
    shorts = {
        "kd": {"type": "kd"},
        "kd[imagenet]": {"type": "kd", "preset": "imagenet"},
        "other": {"type": "kd", "weight": 1.0},
    }
    sums = {name: {"type": "sum", "parts": [{"type": "tfd"}, short]} for name, short in shorts.items()}
    for some in (shorts, sums):
        assert {name: (naming.is_default(short), naming.is_published(short)) for name, short in some.items()} == {
            "kd": (True, True),
            "kd[imagenet]": (False, True),
            "other": (False, False),
        }


def test_a_plugin_is_named_by_its_signature_or_else_as_stored():
    spec = {"type": "mine", "weight": 0.1, "stages": 3}
    manifest = {"plugins": {"mine": PLUGIN._asdict()}}
    plugins = naming.plugins_of(json.loads(json.dumps(manifest)))
    assert naming.method_label(spec, plugins=plugins, stored="?") == "mine(stages=3)"
    assert naming.method_label({"type": "sum", "parts": [{"type": "kd"}, spec]}, stored="as stored") == "as stored"
    assert naming.method_label(spec) == "mine"
    assert naming.short_form(spec) == spec


def test_distinct_names_tell_apart_what_differs_and_nothing_else():
    specs = [{"type": "tfd", "weight": 1.0, "ramp": 2}, {"type": "tfd", "weight": 2.0, "ramp": 2}]
    names = naming.distinct([*specs, specs[0]], lambda spec: spec["type"])
    assert names == ["tfd (weight=1.0)", "tfd (weight=2.0)", "tfd (weight=1.0)"]
    assert naming.distinct(specs, lambda spec: spec["type"], within=["a", "b"]) == ["tfd", "tfd"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("paper_table3", {"none", "kd[imagenet]"}),
        ("crd_same_family", {"dkd[pair]", "dkd", "reviewkd[pair]", "reviewkd", "tfd+kd"}),
        ("paper_table4", {"tfd(direction=bottom_up)", "tfd(direction=both)"}),
    ],
)
def test_shipped_grids_name_their_methods_as_they_write_them(name, expected):
    _, raw = grid_file.read(name)
    raw["data"] = "digits"  # needs no download; methods are named alike on all data
    if name == "paper_table3":
        raw |= {"pairs": [{"student": "resnet8", "teacher": "resnet14"}], "recipe": {"name": "digits", "epochs": 4}}
        raw |= {"methods": raw["methods"][:2], "primary": []}
    assert expected <= {cell.label for cell in expand.expand(name, raw).cells}


def test_our_own_networks_of_a_librarys_name_are_another_pair():
    library = [{"type": "torchvision", "name": name} for name in ("resnet34", "resnet18")]
    assert naming.pair_name(*library) == "resnet34/resnet18"
    assert naming.pair_name(*({"type": spec["name"]} for spec in library)) == "resnet34 (small)/resnet18 (small)"
    assert naming.pair_name({"type": "resnet56"}, {"type": "resnet20"}) == "resnet56/resnet20"
