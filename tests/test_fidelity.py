"""Published values as the sources have them, each written down here anew, and what cards say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.models import MODELS
from bench.plan import expand, grid_file
from bench.plan.recipes import recipe_for
from bench.records.cell import Cell
from bench.records.folders import ResultsFolder
from bench.records.recipe import Recipe
from methods import METHODS, Batch, Context

REFERENCE = Path(__file__).resolve().parent.parent / "results/reference"
PUBLISHED: dict[tuple[str, str | None], dict[str, Any]] = {
    ("tfd", None): {"weight": 0.005, "ramp_epochs": 0, "reduction": "mean"},
    ("tfd", "code"): {"weight": 0.005, "ramp_epochs": 20, "reduction": "mean"},
    ("ft", None): {"weight": 200.0, "form": "squares", "prepare_epochs": 30, "prepare_lr": 0.01, "prepare_loss": "squared"},
    ("ft", "authors"): {"weight": 500.0, "form": "whole", "prepare_epochs": 6, "prepare_lr": 0.1, "prepare_loss": "absolute"},
    ("nkd", None): {"gamma": 1.5, "temperature": 1.0},
    ("nkd", "cifar100"): {"gamma": 3.5, "temperature": 3.0},
    ("ofd", None): {"weight": 1e-3},
    ("ofd", "resnet50/mobilenetv1"): {"weight": 1e-4},
    ("dkd", "imagenet"): {"alpha": 1.0, "beta": 0.5, "temperature": 1.0, "ramp_epochs": 1},
    ("dkd", "resnet50/mobilenetv1"): {"alpha": 1.0, "beta": 2.0, "temperature": 1.0, "ramp_epochs": 1},
    ("tfkd_reg", None): {"weight": 10.0, "temperature": 20.0, "correct": 0.99, "ce_weight": 0.9},
    ("tfkd_reg", "mobilenetv2"): {"weight": 0.95, "temperature": 40.0, "ce_weight": 0.05},
    ("tfkd_reg", "shufflenetv2"): {"weight": 0.95, "temperature": 10.0, "ce_weight": 0.05},
    ("tfkd_self", None): {"weight": 47.5, "temperature": 6.0, "ce_weight": 0.05},
    ("tfkd_self", "mobilenetv2"): {"weight": 0.95, "temperature": 20.0, "ce_weight": 0.05},
    ("tfkd_self", "shufflenetv2"): {"weight": 0.95, "temperature": 20.0, "ce_weight": 0.05},
}


@pytest.mark.parametrize(("key", "preset"), PUBLISHED)
def test_published_values(key: str, preset: str | None) -> None:
    method = METHODS.build({"type": key, **({"preset": preset} if preset else {})})
    expected = PUBLISHED[key, preset]
    assert {name: getattr(method, name) for name in expected} == expected


def test_versions_rose_where_the_same_arguments_mean_something_else() -> None:
    versions = {key: builder.version for key, builder in METHODS.module_dict.items() if isinstance(builder.version, int)}
    assert {key for key, version in versions.items() if version > 1} == {"ft", "frskd", "eskd"}


@pytest.mark.parametrize(
    ("key", "false"),
    [
        ("ab", "evaluation mode"),
        ("fsp", "evaluation mode"),
        ("cskd", "count the partners into the batch size"),
        ("nkd", "the public code's mask leaves the label"),
        ("logit_std", "leaves the temperature at 4"),
        ("beta_ls", "not from other random weights"),
        ("tfkd_reg", "multiplier (ResNet-18: 100) alone"),
    ],
)
def test_cards_state_no_deviation_that_does_not_exist(key: str, false: str) -> None:
    assert false not in METHODS.get(key).card.deviations


def test_tfd_says_whose_code_it_is_and_what_it_leaves_out() -> None:
    card = METHODS.get("tfd").card
    assert "sister paper" in card.source
    for stated in (".0004", "mean over elements", "no ramp", "6e-4", "Self-Feature Regularization", "withdrawn"):
        assert stated in card.deviations


def test_tfds_gradient_is_a_thousandth_of_the_cross_entropys_at_the_start() -> None:
    """The card's 6e-4, on images of noise: resnet20, 100 classes."""
    torch.manual_seed(0)
    network, image = MODELS.build({"type": "resnet20", "classes": 100}), torch.randn(64, 3, 32, 32)
    output = network(image)
    method = METHODS.build({"type": "tfd"})
    method.setup(Context(output, None, 100, 50_000, 64, (3, 32, 32)))
    terms = method.loss(output, None, Batch(image, torch.arange(64), torch.arange(64)))
    parameters = list(network.parameters())

    def norm(term: Tensor) -> float:
        gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        return float(torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt())

    assert 2e-4 < norm(terms["tfd"]) / norm(terms["ce"]) < 2e-3


# The recipe of the public code


def test_the_public_codes_recipe_reflects() -> None:
    recipe = recipe_for({"name": "tfd_code"}, "resnet20", "here")
    assert (recipe.batch_size, recipe.lr, recipe.nesterov, recipe.padding) == (128, 0.1, True, "reflect")
    assert "padding" not in Recipe().identity
    assert recipe.identity["padding"] == "reflect"
    with pytest.raises(ValueError, match="needs crop: pad"):
        Recipe(padding="reflect", crop="none")


# Shipped records


def without_data(cell: Cell) -> str:
    """A cell's identity, apart from where its images lie and which machine chose the precision."""
    identity = cell.identity | {"data": None, "precision": None, "teacher": bool(cell.teacher)}
    return json.dumps(identity, sort_keys=True)


@pytest.mark.parametrize("name", ResultsFolder(REFERENCE).grids())
def test_shipped_grids_meet_their_shipped_records(name: str) -> None:
    """What a grid file asks for today is what its records were trained with, whatever defaults have changed since."""
    records, _ = ResultsFolder(REFERENCE).grid(name).records()
    file = REFERENCE / f"{name}.yaml"  # of a grid that does not ship
    title, asked = grid_file.read(str(file) if file.exists() else name, [])
    if file.exists():  # its data need no file here; of its methods the secondary ones are not trained yet
        asked |= {"data": "cifar100", "also": []}
    cells = expand.expand(title, asked, device="cpu").cells
    assert {without_data(cell) for cell in cells} == {without_data(record.cell) for record in records}
