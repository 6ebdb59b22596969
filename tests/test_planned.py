"""Whatever `plan` accepts, the other verbs accept: grids are drawn over the registries, the fields of recipes, names and data.

PLANNED=500 draws so many grids whose records are made up, and as many trainings; the suite draws few.
"""

from __future__ import annotations

import math
import os
import typing
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import pytest
import synthetic
import yaml
from PIL import Image
from pydantic.fields import FieldInfo

from bench import run
from bench.data.augmentations import AUGMENTATIONS
from bench.engine.optimizer import OPTIMIZERS
from bench.errors import UserError
from bench.plan.ranges import range_of
from bench.plan.specs import arguments_of
from bench.records.options import Options
from bench.records.recipe import Recipe
from methods import METHODS
from run_bench import main

COUNT = int(os.environ.get("PLANNED", "0"))
FIRST = int(os.environ.get("PLANNED_FIRST", "0"))
MOST_CELLS = 12  # so many have records made up, or are trained
LETTERS = "aZ0 _-.+~'\"[]{}()=,:;&%$#@!éßЖ中\u202e\x1b\U0001f600"
NETWORKS = ["resnet8", "resnet8", "resnet14", "wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "resnet8x4"]
FAMILIES = [key for key, method in sorted(METHODS.module_dict.items()) if not method.example]  # the others need arguments


class Draw:
    """Parts of a grid file, drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def rarely(self) -> bool:
        return self.random.random() < 0.12

    def one(self, choices: typing.Sequence[Any]) -> Any:
        return self.random.choice(choices)

    def word(self, most: int) -> str:
        return "a" + "".join(self.random.choices(LETTERS, k=self.one([0, 3, 10, most - 1])))

    def number(self, kind: type, low: float, high: float) -> Any:
        """Mostly within the bounds, at them and far from them."""
        usual = [low, min(low + 1, high), 1e-12, 0.1, 0.5, 1, 2, 3, 4, min(high, 40)]
        found = [value for value in [*usual, *usual, high, 1e3] if low <= value <= high and (kind is float or value % 1 == 0)]
        return kind(self.one(found or [low]))

    def value(self, annotation: Any, default: Any, low: float = 0, high: float = 1000) -> Any:
        """What an annotation allows."""
        if annotation is bool:
            return self.one([True, False])
        if annotation in (int, float):
            return self.number(annotation, low, high)
        return self.one(typing.get_args(annotation)) if typing.get_origin(annotation) is Literal else default

    def arguments(self, builder: Any, elsewhere: tuple[str, ...] = ()) -> dict[str, Any]:
        """A few of a builder's arguments, or a preset."""
        presets = [*getattr(builder, "presets", {})]
        if presets and self.rarely():
            return {"preset": self.one([*presets, "pair"])}
        found = {}
        for name, each in arguments_of(builder, elsewhere).items():
            if each.default is not each.empty and self.rarely():
                stated = range_of(builder, name)
                bounds = (stated.low, min(stated.high, 1000)) if stated else (0, 1000)
                found[name] = self.value(each.annotation, each.default, *bounds)
        return found

    def method(self) -> Any:
        key = self.one(["none", "kd", "tfd", *FAMILIES])
        if self.rarely() and key != "none":
            return f"{key}+{self.one(FAMILIES)}"
        return {key: self.arguments(METHODS.get(key))} | ({"label": self.label()} if self.rarely() else {})

    def label(self) -> str:
        return "".join(letter for letter in self.word(40) if letter.isprintable() and letter not in "{}")

    def recipe(self, resized: bool) -> dict[str, Any]:
        found: dict[str, Any] = {"name": "crd", "batch_size": 16} | ({"crop": "resized", "image_size": 32} if resized else {})
        for name in self.random.sample([*Recipe.model_fields], self.one([0, 1, 2, 3])):
            field = Recipe.model_fields[name]
            found[name] = self.value(field.annotation, field.default, *bounds_of(field))
        if self.rarely():
            key = self.one(sorted(OPTIMIZERS.module_dict))
            found["optimizer"] = {"type": key, **self.arguments(OPTIMIZERS.get(key), ("groups", "recipe"))}
        if self.rarely():
            found["augment"] = self.random.sample(sorted(AUGMENTATIONS.module_dict), self.one([1, 2]))
        return found | {"epochs": self.one([1, 2, 3]), "processes": 1, "compile": False}  # compiling takes minutes

    def data(self) -> dict[str, Any]:
        kind = self.one(["digits", "digits", "gray", "colors", "folder", "small folder"])
        if kind == "digits":
            return {"type": "digits", "train_images": self.one([1, 2, 3, 20, 40]), "test_images": self.one([1, 20])}
        named = {"name": self.label()} if self.rarely() else {}
        if "folder" in kind:
            return {"type": "imagefolder", "path": "folder", "size": 16 if kind == "small folder" else 0} | named
        return {"type": "npz", "path": f"{kind}.npz"} | named

    def pair(self) -> dict[str, Any]:
        teachers = {"teachers": [self.one(NETWORKS), self.one(NETWORKS)]} if self.rarely() else {"teacher": self.one(NETWORKS)}
        return {"student": self.one(NETWORKS)} | ({} if self.rarely() else teachers)

    def seeds(self) -> list[int]:
        return self.random.sample([0, 1, 2, 3, 1000, 10**6, 2**32 - 1], self.one([1, 1, 2, 3]))

    def grid(self) -> dict[str, Any]:
        methods = [self.method() for _ in range(self.one([1, 2, 3]))]
        data = self.data()
        resized = data["type"] == "imagefolder" and not self.rarely()
        found = {
            "about": self.word(300),
            "data": data,
            "recipe": self.recipe(resized),
            "seeds": self.seeds(),
            "pairs": [self.pair() for _ in range(self.one([1, 1, 2]))],
            "methods": methods,
            "precision": "fp32",
        }
        more: dict[str, Any] = {
            "seeds": {"first": 2, "most": self.one([2, 3])},
            "teacher_seeds": self.one(["first", "each", 1, 2, 7]),
            "primary": methods[:1],
            "search": methods[-1:],
            "margin": self.one([1e-12, 0.3, 1e6]),
            "choose": {"share": self.one([0.2, 1e-9, 0.99]), "seeds": [7]},
            "equal_cost": [{"methods": methods[:1], "epochs": 4}],
            "teacher_recipe": self.recipe(resized),
            "also": [{"recipe": {"lr": 0.02}}],
        }
        return found | {key: value for key, value in more.items() if self.rarely()}


def bounds_of(field: FieldInfo) -> tuple[float, float]:
    found = {type(each).__name__: each for each in field.metadata}
    low = found["Ge"].ge if "Ge" in found else found["Gt"].gt + 1e-9 if "Gt" in found else 0
    high = found["Le"].le if "Le" in found else found["Lt"].lt - 1e-9 if "Lt" in found else math.inf
    return low, min(high, 10**6)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arrays and image files of three classes with long and strange names."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, shape in (("gray", (9, 8)), ("colors", (8, 8, 3))):
        parts = {}
        for part, count in (("train", 24), ("test", 12)):
            parts[f"{part}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
            parts[f"{part}_labels"] = np.arange(count) % 3
        np.savez(root / f"{name}.npz", **parts, class_names=np.array(["[b]", "中" * 90, "=1+1"]))
    for part in ("train", "val"):
        for label in ("[b]", "x" * 90, "=1+1, \u202e"):
            (root / "folder" / part / label).mkdir(parents=True)
            for number in range(4):
                pixels = rng.integers(0, 256, (20, 18, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "folder" / part / label / f"{number}.png")
    return root


def written(folder: Path, seed: int, data_root: Path) -> list[str]:
    """The arguments of verbs that plan a grid, drawn from a seed and written to a file with a strange name."""
    draw = Draw(seed)
    path = folder / f"{draw.word(60).replace('/', '')}.yaml"
    path.write_text(yaml.safe_dump(draw.grid()), encoding="utf-8")
    return [str(path), "--results", str(folder / "ours"), "--device", "cpu", "--data-root", str(data_root)]


def test_results_of_what_is_planned_are_read(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    accepted, tried = 0, COUNT or 30
    for seed in range(FIRST, FIRST + tried):
        folder = tmp_path_factory.mktemp("planned")
        arguments = written(folder, seed, data_root)
        print(f"seed {seed}: {arguments[0]}")
        code = main(["plan", *arguments])
        assert code in (0, 2)
        if code == 0:
            accepted += 1
            results = made_up(arguments, folder, data_root, seed)
            read(arguments, results.name, folder, report=bool(COUNT) or accepted == 1)
    print(f"{accepted} of {tried} accepted")
    assert accepted > tried / 4


def made_up(arguments: list[str], folder: Path, data_root: Path, seed: int) -> run.GridFolder:
    """The folder of a planned grid whose first cells have records."""
    options = Options(data_root=str(data_root), device="cpu")
    planned, results = run.plan(arguments[0], folder / "ours", options=options)
    run.begin(planned, results)
    draws = Random(seed)
    for cell in planned.cells[:MOST_CELLS]:
        top1, place = draws.uniform(0, 100), results.cell(cell.id)
        curves = synthetic.curves(cell.recipe.epochs, top1)
        place.write_curves(curves)
        place.write_record(synthetic.record(cell, top1, curves))
    return results


def read(arguments: list[str], name: str, folder: Path, report: bool) -> None:
    ours, theirs = str(folder / "ours"), str(folder / "theirs")
    assert main(["status", arguments[0], "--results", ours]) == 0
    assert main(["plan", *arguments]) == 0
    assert main(["merge", ours, "--results", theirs]) == 0
    assert main(["verify", name, "--results", theirs]) == 0
    if report:
        assert main(["report", name, "--results", theirs]) == 0


def test_what_is_planned_is_trained(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    trained = 0
    for seed in range(FIRST, FIRST + (COUNT or 10)):
        folder = tmp_path_factory.mktemp("trained")
        arguments = written(folder, seed, data_root)
        print(f"seed {seed}: {arguments[0]}")
        try:
            planned, results = run.plan(arguments[0], folder / "ours", options=Options(data_root=str(data_root), device="cpu"))
        except UserError:
            continue
        if len(planned.cells) <= (MOST_CELLS if COUNT else 3):
            trained += 1
            code = main(["run", *arguments, "--cluster", "debug", "--threads", "1", "--no-cost", "--no-report"])
            failures = [(results.cell(cell.id).failure() or {}).get("error", "") for cell in planned.cells]
            failed = [error for error in failures if error]
            assert code == (1 if failed else 0), failures
            assert all("not finite" in error or "diverged" in error for error in failed), failures
    assert trained
