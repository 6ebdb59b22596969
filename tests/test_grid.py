"""Grid files: what they may hold, and which cells they give."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bench.errors import UserError
from bench.plan import grid_file
from bench.plan.expand import expand
from bench.plan.recipes import recipe_for
from methods import METHODS
from methods.base import Card, Method


def methods_of(grid):
    """Full specs of the students, by label."""
    taught = {cell.teacher.cell for cell in grid.cells if cell.teacher}
    return {cell.label: cell.method for cell in grid.cells if cell.id not in taught or cell.label != "none"}


# Short forms, axes, presets


@pytest.mark.parametrize(
    ("entry", "labels"),
    [
        ("kd", ["kd"]),
        ({"kd": None}, ["kd"]),
        ({"type": "kd", "temperature": 4}, ["kd"]),
        ({"kd": {"temperature": [2, 4]}}, ["kd(temperature=2.0)", "kd"]),
        ({"kd": {"temperature": [2, 3], "weight": [0.5, 0.9]}}, None),
        ({"tffd": {"preset": "readme"}}, ["tffd[readme]"]),
        ({"tffd": {"preset": ["readme", "cli"]}}, ["tffd[readme]", "tffd"]),  # the defaults are those of cli
        ({"tffd": {"preset": "readme", "intra": 0}}, ["tffd(inter=0.0005, intra=0.0)"]),
        ("tfd+kd", ["tfd+kd"]),
        ({"tfd+kd": {"tfd": {"weight": [0.01, 1]}}}, ["tfd(weight=0.01)+kd", "tfd(weight=1.0)+kd"]),
        ({"tfd": {"stages": [1, 2]}}, ["tfd(stages=[1, 2])"]),
        ({"tfd": {"stages": [[1, 2], [2, 3]]}}, ["tfd(stages=[1, 2])", "tfd(stages=[2, 3])"]),
        ({"logit_std": {"method": {"type": "kd"}}}, ["logit_std(method=kd)"]),
    ],
)
def test_short_forms_and_axes(tiny, entry, labels):
    found = methods_of(tiny(methods=[entry]))
    assert list(found) == (labels if labels else [f"kd(temperature={t}.0{w})" for t in (2, 3) for w in (", weight=0.5", "")])


def test_a_full_spec_holds_every_argument(tiny):
    assert methods_of(tiny(methods=["tfd+kd"]))["tfd+kd"] == {
        "type": "sum",
        "parts": [
            {
                "type": "tfd",
                "weight": 0.005,
                "ramp_epochs": 0,
                "reduction": "mean",
                "direction": "top_down",
                "stages": None,
                "before_activation": False,
                "normalize": "none",
            },
            {"type": "kd", "temperature": 4.0, "weight": 0.9, "ce_weight": 0.1},
        ],
    }


def test_a_number_that_yaml_reads_as_text_is_a_number(tiny, tmp_path):
    file = tmp_path / "g.yaml"
    file.write_text(
        "data: {type: digits, train_images: 40}\nrecipe: {name: digits, epochs: 1, weight_decay: 8e-4}\nseeds: [0]\n"
        "pairs: [{student: resnet8}]\nmethods: [tfd: {weight: 8e-4}]\n"
    )
    [cell] = expand(*grid_file.read(str(file)), device="cpu").cells
    assert (cell.method["weight"], cell.recipe.weight_decay) == (8e-4, 8e-4)


def test_every_stands_for_every_registered_method(tiny):
    grid = tiny(methods=[{"every": {"prepare_epochs": 1, "weight": [0.5, 1.0]}}])
    methods = [cell.method for cell in grid.cells if cell.seed == 0]  # without the teacher, a network of the student's spec
    assert {method["type"] for method in methods} == set(METHODS.module_dict)
    assert {method["prepare_epochs"] for method in methods if "prepare_epochs" in method} == {1}
    assert [method["weight"] for method in methods if method["type"] == "kd"] == [0.5, 1.0]
    assert sum(method["type"] == "none" for method in methods) == 1  # it has no weight
    assert grid.skipped == []


def test_preset_pair_is_the_one_published_for_the_pair(tiny):
    pairs = [{"student": "resnet20", "teacher": "resnet56"}, {"student": "wrn_16_2", "teacher": "wrn_40_2"}]
    logit_std = {"logit_std": {"method": {"type": "dkd", "preset": "pair"}}}
    grid = tiny(
        data="cifar100", pairs=pairs, methods=[{"dkd": {"preset": "pair"}}, {"reviewkd": {"preset": "pair"}}, logit_std]
    )
    values = {}
    for cell in grid.cells:
        if cell.teacher:
            method = cell.method.get("method", cell.method)
            values[cell.student["type"], cell.label] = method.get("beta", method["weight"])
    assert values == {
        ("resnet20", "dkd[pair]"): 2.0,
        ("resnet20", "reviewkd[pair]"): 0.6,
        ("resnet20", "logit_std(method=dkd[pair])"): 2.0,
        ("wrn_16_2", "dkd[pair]"): 6.0,
        ("wrn_16_2", "reviewkd[pair]"): 5.0,
        ("wrn_16_2", "logit_std(method=dkd[pair])"): 6.0,
    }


# Variations of a grid


def test_also_adds_what_differs_in_the_keys_it_names(tiny):
    grid = tiny(methods=["none", "tfd"], also=[{"recipe": {"dropout": 0.1}, "methods": ["none"]}, {"seeds": [1]}])
    found = [(cell.label, cell.seed, cell.recipe.dropout, cell.recipe.epochs) for cell in grid.cells]
    assert found == [("none", 0, 0, 2), ("tfd", 0, 0, 2), ("none", 0, 0.1, 2), ("none", 1, 0, 2), ("tfd", 1, 0, 2)]


def test_what_stands_in_two_variations_is_one_cell(tiny):
    assert len(tiny(methods=["none"], also=[{"methods": ["none", "ls"]}]).cells) == 2


def test_an_override_reaches_the_variations(tmp_path):
    name, raw = grid_file.read("paper_table5", ["recipe.epochs=7"])
    assert {cell.recipe.epochs for cell in expand(name, raw, device="cpu").cells} == {7}


# What cannot work together


@pytest.mark.parametrize(
    ("pair", "method", "reason"),
    [
        ({"student": "resnet8"}, "kd", "needs a teacher, and this pair has none"),
        (
            {"student": "wrn_16_1", "teacher": "wrn_16_2"},
            "fsp",
            r"fsp needs equal channels.*\[16, 16, 32, 64\].*\[16, 32, 64, 128\]",
        ),
        ({"student": "resnet8"}, {"tfd": {"stages": [2, 5]}}, "no stage 5; it has 1 to 3"),
        ({"student": "resnet8", "teacher": "resnet8"}, {"fitnets": {"stage": 7}}, "no stage 7"),
        ({"student": {"type": "torchvision", "name": "vgg11"}}, "none", "vgg11 cannot take 1x8x8 images"),
        ({"student": "resnet8", "teacher": "shufflenetv2"}, "ofd", "has none before its end"),
    ],
)
def test_what_cannot_work_is_skipped_with_the_reason_before_training(tiny, pair, method, reason):
    grid = tiny(pairs=[pair, {"student": "resnet8", "teacher": "resnet14"}], methods=["ls", method])
    assert any(re.search(reason, skip.reason) for skip in grid.skipped), grid.skipped
    assert grid.cells


def test_hard_labels_are_skipped_under_mixing(tiny):
    grid = tiny(recipe={"name": "digits", "epochs": 2, "mixup": 0.2}, methods=["none", "dkd"])
    assert [skip.reason for skip in grid.skipped] == ["needs hard labels, and this recipe mixes or smooths them"]


def test_what_only_fails_without_values_is_not_skipped(tiny):
    @METHODS.register_module("needs_values", force=True)
    class NeedsValues(Method):
        card = Card("", "", "")

        def setup(self, context):
            context.student.logits.max().item()

    try:
        assert "needs_values" in methods_of(tiny(methods=["needs_values", "crd"]))
        assert tiny(methods=["crd"]).skipped == []
    finally:
        METHODS.module_dict.pop("needs_values")


# Names and the manifest


def test_data_of_ones_own_may_bear_the_name_of_what_they_are(tiny, tmp_path):
    images, labels = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
    file = tmp_path / "mine.npz"
    np.savez(file, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    data = {"type": "npz", "path": str(file)}
    [plain], [known] = (tiny(data=spec).cells for spec in (data, {**data, "name": "cifar100"}))
    assert known.id.startswith("cifar100-resnet8-none-s0-")
    assert plain.id.startswith("npz-resnet8-none-s0-")
    assert known.identity == plain.identity
    with pytest.raises(UserError, match=r"data.name: only data of your own"):
        tiny(data={"type": "digits", "name": "cifar100"})


def test_the_manifest_holds_the_cards_of_all_methods_and_their_parts(tiny):
    manifest = tiny(methods=["tfd+kd", {"logit_std": {"method": {"type": "dkd"}}}]).manifest()
    assert set(manifest["methods"]) == {"sum", "tfd", "kd", "logit_std", "dkd", "none"}  # none: the teacher
    assert manifest["methods"]["kd"]["title"] == METHODS.get("kd").card.title


@pytest.mark.parametrize(("name", "epochs"), [("mlkd_240", 240), ("mlkd_480", 480)])
def test_mlkd_is_trained_for_240_or_480_epochs_with_one_schedule(name, epochs):
    recipe = recipe_for({"name": name}, "resnet8x4", "here")
    assert recipe.epochs == epochs
    assert [epochs * milestone for milestone in recipe.milestones] == [150, 180, 210]
    assert (recipe.lr, recipe_for({"name": name}, "shufflenetv2", "here").lr) == (0.025, 0.01)
