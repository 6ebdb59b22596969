"""The user's own recipes, optimizers and augmentations: the examples of docs/recipes.md, run. Values of shipped recipes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from bench import sources
from bench.data import AUGMENTATIONS
from bench.engine.code import own_code
from bench.engine.optimizer import OPTIMIZERS
from bench.errors import UserError
from bench.plan import grid_file, recipes
from bench.plan.expand import expand
from bench.plugins import import_plugin
from bench.records.folders import ResultsFolder
from bench.records.recipe import Recipe
from bench.records.source import keys
from run_bench import main

PAGE = Path(__file__).resolve().parent.parent / "docs/recipes.md"


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A folder with the files of the page."""
    folder = tmp_path_factory.mktemp("mine")
    for name, text in re.findall(r"```\w+ (\S+)\n(.*?)```", PAGE.read_text(), re.S):
        (folder / name).write_text(text)
    yield folder
    for name in ("lion", "exposure"):
        sys.modules.pop(name, None)
        sources.forget(folder / f"{name}.py")


def test_the_examples_of_the_page_run(examples, monkeypatch, capsys):
    monkeypatch.chdir(examples)
    [command] = re.findall(r"^\./run_bench\.py (run .*)$", PAGE.read_text(), re.M)
    assert main([*command.split(), "--device", "cpu", "--no-cost", "--cluster", "debug", "--threads", "1"]) == 0
    assert "3 of 3 done" in capsys.readouterr().out
    records, problems = ResultsFolder("results").grid("mine").records()
    assert problems == []
    recipe = records[0].cell.recipe
    assert recipe.optimizer == {"type": "lion", "betas": [0.9, 0.98]}
    assert recipe.augment == ({"type": "exposure", "levels": 30.0}, "trivial_augment")
    assert all(record.source and "+" in record.source for record in records)  # the user's own code is part of it


def test_own_optimizers_and_augmentations_count_as_own_code(examples, monkeypatch):
    monkeypatch.chdir(examples)
    for name in ("lion.py", "exposure.py"):
        import_plugin(name)
    cell = expand(*grid_file.read("mine.yaml"), device="cpu").cells[-1]
    assert {"optimizer:lion", "augmentation:exposure", "augmentation:trivial_augment"} < set(keys(cell))
    assert own_code([cell]).keys() == {"optimizer:lion", "augmentation:exposure"}


def test_lion_is_its_papers(examples, monkeypatch):
    """One weight, two steps, by hand: lr .1, decay .5, betas .9 and .5."""
    monkeypatch.chdir(examples)
    import_plugin("lion.py")
    weight = nn.Parameter(torch.tensor([2.0]))
    groups = [{"params": [weight], "lr": torch.tensor(0.1, dtype=torch.float64)}]
    optimizer = OPTIMIZERS.build({"type": "lion", "betas": [0.9, 0.5]}, groups=groups, recipe=Recipe(weight_decay=0.5))
    for gradient in (1.0, -0.2):  # momenta 0, then .5: .9 * .5 - .1 * .2 > 0, so that both steps go down
        weight.grad = torch.tensor([gradient])
        optimizer.step()
    assert weight.item() == pytest.approx((2 * 0.95 - 0.1) * 0.95 - 0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", r"own\.yaml\.epoch: unknown key 'epoch'; did you mean 'epochs'"),
        ("epochs: 0", r"grid, recipe, own\.yaml\.epochs: a number of 1 or more, not 0"),
        ("lr_for: {mobilenet: 0}", r"own\.yaml\.lr_for\.mobilenet: a number above 0, not 0"),
        ("- 3", r"own\.yaml: a recipe is a mapping with keys about, lr_for, epochs"),
        ("epochs: [", r"own\.yaml:1:10: not YAML"),
    ],
)
def test_mistakes_in_recipe_files_are_named(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        recipes.recipe_for({"name": "own.yaml"}, "resnet8", "grid, recipe")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("crdd", r"grid, recipe: unknown recipe 'crdd'; did you mean 'crd'\?.* or the path of your own file, ending in \.yaml"),
        ("none.yaml", r"grid, recipe: there is no file none\.yaml"),
    ],
)
def test_a_recipe_that_is_not_there(name, message):
    with pytest.raises(UserError, match=message):
        recipes.recipe_for({"name": name}, "resnet8", "grid, recipe")


def test_a_recipe_files_learning_rate_by_network(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("lr: 0.2\nlr_for: {vgg: 0.1}")
    cases = [(network, more) for network in ("vgg8", "resnet8") for more in ({}, {"lr": 0.3})]
    found = [recipes.recipe_for({"name": str(path), **more}, network, "").lr for network, more in cases]
    assert found == [0.1, 0.3, 0.2, 0.3]


VALUES = {  # as read in the public files that the recipes name
    "deit_cifar": (300, 128, "adamw", 5e-4, 0.05, 5e-6, 20, 5e-7, 0.0, 0.0, 0.1, 0.0, 0.0, 0.25),
    "ofa_cnn": (300, 128, "sgd", 0.05, 2e-3, 1e-3, 3, 1e-4, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0),
    "ofa_vit": (300, 128, "adamw", 5e-4, 0.05, 1e-5, 20, 5e-7, 5.0, 0.1, 0.0, 0.8, 1.0, 0.25),
}
FIELDS = (
    *("epochs", "batch_size", "optimizer", "lr", "weight_decay", "min_lr", "warmup_epochs", "warmup_lr", "clip_grad_norm"),
    *("label_smoothing", "drop_path", "mixup", "cutmix", "random_erasing"),
)


@pytest.mark.parametrize("name", VALUES)
def test_recipes_of_today_have_their_sources_values(name):
    recipe = recipes.recipe_for({"name": name}, "resnet18", "")
    found = [recipe.optimizer["type"] if field == "optimizer" else getattr(recipe, field) for field in FIELDS]
    assert found == list(VALUES[name])
    assert (recipe.schedule, recipe.decay_all, recipe.crop, recipe.image_size) == ("timm_cosine", False, "resized", 224)
    assert recipe.augment == ("none" if name == "ofa_cnn" else "rand-m9-mstd0.5-inc1")
    assert recipe.nesterov == (name == "ofa_cnn")  # timm's "sgd"
    assert recipe.crop_pct == (1.0 if name == "deit_cifar" else 0.875)


@pytest.mark.parametrize("name", VALUES)
def test_recipes_of_today_train(name, tiny, tmp_path):
    from bench.engine.train import train
    from bench.records.options import Options

    pytest.importorskip("timm")
    arguments = {"img_size": 8, "patch_size": 4, "depth": 4, "embed_dim": 24}
    vit = {"type": "timm", "name": "vit_tiny_patch16_224", "arguments": arguments}
    short = {"name": name, "epochs": 3, "warmup_epochs": 1, "image_size": 8, "batch_size": 16}
    grid = tiny(recipe=short, pairs=[{"student": "resnet8" if name == "ofa_cnn" else vit}])
    [record] = train(grid.cells, ResultsFolder(tmp_path).grid("tiny"), Options(device="cpu", threads=1))
    assert record.epochs == 3


def test_every_shipped_recipe_has_a_source_and_a_use():
    for name, path in recipes.shipped().items():
        text = path.read_text()
        assert text.startswith("# "), name
        assert recipes.read(name, "").about, name
        assert yaml.safe_load(text).keys() - {"about", "lr_for"} <= Recipe.model_fields.keys()
        assert f"`{name}`" in PAGE.read_text()
    assert all(AUGMENTATIONS.get(key).__doc__ for key in AUGMENTATIONS.module_dict)
