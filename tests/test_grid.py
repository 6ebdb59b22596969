"""Grid files: what they may hold, which cells they give, and what the messages about mistakes name."""

from __future__ import annotations

import inspect
import re
import textwrap

import numpy as np
import pytest
import safetensors.torch
import torch
from pydantic import Field

from bench.data import DATASETS
from bench.errors import UserError
from bench.models import MODELS
from bench.plan import grid_file
from bench.plan.expand import expand
from bench.records.cell import Cell, Teacher
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
                "ramp_epochs": 20,
                "reduction": "mean",
                "direction": "top_down",
                "stages": None,
                "before_activation": False,
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
    methods = [cell.method for cell in grid.cells]
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


# Teachers


def test_teachers_come_first_and_once(tiny):
    grid = tiny(methods=["kd", "at", {"eskd": {"preset": "early_teacher"}}, "tfkd_self"], seeds=[0, 1], recipe={"epochs": 20})
    taught = [cell.teacher.cell for cell in grid.cells if cell.teacher]
    ids = [cell.id for cell in grid.cells]
    assert sorted(map(ids.index, set(taught))) == [0, 1]  # resnet8 as a teacher and as a self, one cell; the same stopped early
    assert grid.cells[1].recipe.epochs == 7  # .35 of 20


def test_each_seed_may_have_a_teacher_of_its_own(tiny):
    grid = tiny(methods=["kd"], seeds=[3, 4], teacher_seeds="each")
    by_id = grid.by_id
    assert [(cell.seed, by_id[cell.teacher.cell].seed) for cell in grid.cells if cell.teacher] == [(3, 3), (4, 4)]


@pytest.fixture
def weights(tmp_path):
    """The weights of a resnet8 for ten classes of gray digits."""
    return MODELS.build({"type": "resnet8", "classes": 10, "channels": 1}).state_dict()


def with_teacher_from(tiny, file, model="resnet8", **changes):
    return tiny(**({"pairs": [{"student": "resnet8", "teacher": {"type": model, "weights": str(file)}}]} | changes))


@pytest.mark.parametrize("form", ["safetensors", "plain", "model", "state_dict"])
def test_a_teacher_from_a_file_needs_no_training(tiny, tmp_path, weights, form):
    file = tmp_path / "teacher"
    if form == "safetensors":
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file)
    else:
        torch.save(weights if form == "plain" else {form: weights, "epoch": 3}, file)
    [cell] = with_teacher_from(tiny, file, methods=["kd"]).cells
    moved = tmp_path / "elsewhere"
    moved.write_bytes(file.read_bytes())
    [again] = with_teacher_from(tiny, moved, methods=["kd"]).cells
    assert cell.teacher.cell is None
    assert cell.id == again.id  # the contents are the identity, the path is not
    altered = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    torch.save(altered, moved)
    [other] = with_teacher_from(tiny, moved, methods=["kd"]).cells
    assert other.id != cell.id


def test_a_teacher_from_a_file_teaches(tiny, tmp_path, weights):
    from bench.engine.train import train
    from bench.records.options import Options
    from bench.records.store import Store

    torch.save({"model": weights}, tmp_path / "t.pt")
    [cell] = with_teacher_from(tiny, tmp_path / "t.pt", methods=["kd"]).cells
    [record] = train([cell], Store(tmp_path), "g", Options(device="cpu", threads=1))
    assert record.flops.teacher_forward > 0
    torch.save({"model": weights, "epoch": 1}, tmp_path / "t.pt")
    with pytest.raises(UserError, match="not the file that"):
        train([cell.model_copy(update={"seed": 1})], Store(tmp_path), "g", Options(device="cpu", threads=1))


def test_a_teacher_from_a_file_may_state_what_its_training_took(tiny, tmp_path, weights):
    torch.save(weights, tmp_path / "t.pt")
    teacher = {"type": "resnet8", "weights": str(tmp_path / "t.pt")}
    [unstated] = tiny(methods=["kd"], pairs=[{"student": "resnet8", "teacher": teacher}]).cells
    stated = {**teacher, "train_s": "3.6e3", "train_flops": 1e15}
    [cell] = tiny(methods=["kd"], pairs=[{"student": "resnet8", "teacher": stated}]).cells
    assert (cell.teacher.train_s, cell.teacher.train_flops) == (3600.0, 1e15)
    assert cell.id == unstated.id
    for wrong in ("long", True, -1, float("nan")):
        with pytest.raises(UserError, match=r"pairs\[0\].teacher.train_s: a number of 0 or more"):
            tiny(methods=["kd"], pairs=[{"student": "resnet8", "teacher": {**teacher, "train_s": wrong}}])
    with pytest.raises(UserError, match="are measured here"):
        tiny(methods=["kd"], pairs=[{"student": "resnet8", "teacher": {"type": "resnet8", "train_s": 1}}])


class Opaque:
    pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "resnet14"}, r"does not fit resnet14.*it lacks blocks\.0\..*and \d+ more"),
        ({"data": "cifar10"}, r"its stem\.\S+ has shape \(16, 1, 3, 3\), not \(16, 3, 3, 3\)"),
        ({"data": "cifar100"}, "its classifier has 10 classes, the data have 100"),
        ({"file": "missing.pt"}, "No such file"),
        ({"contents": b"no weights"}, "neither safetensors nor a torch file"),
        ({"object": {"model": Opaque()}}, "neither safetensors nor a torch file"),
        ({"object": [1, 2]}, "holds no tensors by name"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_training(tiny, tmp_path, weights, change, message):
    torch.save(change.pop("object", weights), tmp_path / "t.pt")
    file = tmp_path / change.pop("file", "t.pt")
    if "contents" in change:
        file.write_bytes(change.pop("contents"))
    with pytest.raises(UserError, match=message) as error:
        with_teacher_from(tiny, file, methods=["kd"], **change)
    assert "tiny, pairs[0].teacher.weights" in str(error.value)


def test_published_weights_teach_where_their_classes_fit(tiny, tmp_path):
    for part in ("train", "val"):
        for label in range(1000):
            (tmp_path / part / f"{label:04}").mkdir(parents=True)
            (tmp_path / part / f"{label:04}" / "a.jpeg").touch()
    pair = {
        "student": {"type": "torchvision", "name": "resnet18"},
        "teacher": {"type": "torchvision", "name": "resnet34", "pretrained": True},
    }
    changes = {"recipe": "imagenet100", "methods": ["kd", {"eskd": {"preset": "early_teacher"}}]}
    grid = tiny(pairs=[pair], data={"type": "imagefolder", "path": str(tmp_path)}, **changes)
    [cell] = grid.cells
    assert cell.teacher.cell is None
    assert cell.id.startswith("imagefolder-resnet18-kd-s0-")
    assert "stopped early" in grid.skipped[0].reason
    assert tiny(pairs=[pair], data="cifar100", methods=["kd"]).cells[0].student["name"] == "resnet34"  # fine-tuned first


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
    grid = tiny(pairs=[pair, {"student": "resnet8", "teacher": "resnet8"}], methods=["ls", method])
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


# Identity


def test_the_identity_knows_neither_order_nor_defaults(tiny):
    plain = tiny(methods=[{"kd": {"temperature": 3}}], recipe={"name": "digits", "epochs": 2})
    wordy = tiny(
        methods=[{"weight": 0.9, "temperature": 3.0, "type": "kd", "ce_weight": 0.1}],
        recipe={"epochs": 2, "crop": "pad", "name": "digits", "momentum": 0.9},
        pairs=[{"teacher": {"type": "resnet8"}, "student": {"type": "resnet8"}}],
        data={"test_images": 40, "train_images": 40, "type": "digits"},
    )
    assert [cell.id for cell in plain.cells] == [cell.id for cell in wordy.cells]
    shuffled = [Cell.model_validate(dict(reversed(cell.model_dump(mode="json").items()))) for cell in plain.cells]
    assert [cell.id for cell in shuffled] == [cell.id for cell in plain.cells]


def test_a_new_field_of_a_cell_changes_no_id(tiny):
    class Newer(Cell):
        mood: str = "calm"

    for cell in tiny(methods=["none", "kd", "tfd+kd"]).cells:
        newer = Newer.model_validate({**cell.model_dump(mode="json"), "mood": "cheerful"})
        assert (newer.mood, newer.id, newer.cost_key) == ("cheerful", cell.id, cell.cost_key)


def test_an_argument_added_later_leaves_ids_alone_within_parts_too(tiny, monkeypatch):
    entries = ["kd", "tfd+kd", {"logit_std": {"method": {"type": "kd"}}}, {"tfd+kd": {"kd": {"ce_weight": 0.2}}}]
    before = {cell.label: cell for cell in tiny(methods=entries).cells}
    monkeypatch.setattr(METHODS.get("kd"), "added_later", ("ce_weight",))
    newer = {cell.label: cell for cell in tiny(methods=entries).cells}
    assert "ce_weight" not in newer["kd"].identity["method"]
    assert newer["tfd+kd"].identity["method"]["parts"][1] == {"type": "kd", "temperature": 4.0, "weight": 0.9}
    assert "ce_weight" not in newer["logit_std(method=kd)"].identity["method"]["method"]
    changed = "tfd+kd(ce_weight=0.2)"
    assert newer[changed].id == before[changed].id  # not at its default: it counts


def test_an_argument_of_a_model_or_of_data_that_is_added_later_leaves_ids_alone(tiny, monkeypatch):
    entries = {"methods": ["none", "kd"], "pairs": [{"student": "resnet8", "teacher": "resnet14"}]}
    before = tiny(**entries).cells

    def with_argument(registry, key, name, default):
        old = registry.get(key)

        def newer(**arguments):
            arguments.pop(name, None)
            return old(**arguments)

        parameters = inspect.signature(old).parameters
        newer.__signature__ = inspect.Signature(
            [*parameters.values(), inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=str)]
        )
        newer.added_later = (name,)
        monkeypatch.setitem(registry.module_dict, key, newer)

    with_argument(MODELS, "resnet8", "taps", "sums")
    with_argument(MODELS, "resnet14", "taps", "sums")
    with_argument(DATASETS, "digits", "ink", "gray")
    newer = tiny(**entries).cells
    assert newer[-1].student == {"type": "resnet8", "taps": "sums"}
    assert newer[-1].data["ink"] == "gray"
    assert newer[-1].teacher.model["taps"] == "sums"
    assert [(cell.id, cell.cost_key) for cell in newer] == [(cell.id, cell.cost_key) for cell in before]
    assert [cell.identity for cell in newer] == [cell.identity for cell in before]
    [changed] = tiny(methods=["none"], pairs=[{"student": {"type": "resnet8", "taps": "rectified"}}]).cells
    [same] = tiny(methods=["none"], pairs=[{"student": "resnet8"}]).cells
    assert changed.id != same.id


def test_what_changes_the_answer_of_a_teacher_from_a_file_is_part_of_its_identity():
    class Newer(Teacher):
        taps: str = Field("sums", json_schema_extra={"changes_answer": True})

    old, same, other = (
        kind(model={"type": "resnet8"}, weights_sha256="0" * 64, weights=path, **taps)
        for kind, path, taps in ((Teacher, "a", {}), (Newer, "b", {}), (Newer, "a", {"taps": "rectified"}))
    )
    assert same.identity == old.identity == "0" * 64
    assert same.cost_identity == old.cost_identity == {"type": "resnet8"}
    assert other.identity == {"source": "0" * 64, "taps": "rectified"}
    assert other.cost_identity == {"source": {"type": "resnet8"}, "taps": "rectified"}


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["kdd"]}, r"tiny, methods\[0\]: unknown method 'kdd'; did you mean 'kd'\? Known: .*tfd"),
        ({"methods": ["none", "tfd+kdd"]}, r"tiny, methods\[1\]: unknown method 'kdd'"),
        ({"methods": [{"kd": {"temprature": 4}}]}, r"methods\[0\]\.temprature: unknown key.*did you mean 'temperature'"),
        (
            {"methods": [{"every": {"temprature": 4}}]},
            r"methods\[0\]\.temprature: unknown argument of any method .*did you mean 'temperature'",
        ),
        ({"methods": [{"kd": {"temperature": "hot"}}]}, r"methods\[0\]\.temperature: .*valid number.*'hot'"),
        ({"methods": [{"kd": {"weight": False}}]}, r"methods\[0\]\.weight: a number, not False \(YAML"),
        ({"methods": [{"kd": {"weight": float("nan")}}]}, r"methods\[0\]\.weight: .*finite"),
        ({"methods": [{"kd": {"weight": []}}]}, r"methods\[0\]\.weight: the list is empty"),
        ({"methods": [{"tfd": {"direction": "sideways"}}]}, r"methods\[0\]\.direction: .*'top_down'.*'sideways'"),
        ({"methods": [{"tfd+kd": {"at": {}}}]}, r"methods\[0\]\.at: unknown part 'at'"),
        ({"methods": [{"tffd": {"preset": "redame"}}]}, r"methods\[0\]\.preset: .*'redame'; did you mean 'readme'"),
        ({"methods": [{"dkd": {"preset": "pair"}}]}, r"dkd has none for resnet8/resnet8; it has: .*resnet56/resnet20"),
        ({"methods": [{"dkd": {"preset": "vgg13/vgg8"}}]}, r"dkd has none for resnet8/resnet8; it has: .*vgg13/vgg8"),
        ({"methods": [{"ab": {"prepare_epochs": -1}}]}, r"methods\[0\]: ab\(prepare_epochs=-1\): prepare_epochs is 0 or more"),
        (
            {"methods": [{"eskd": {"teacher_epochs_fraction": 0}}]},
            r"methods\[0\]: .*teacher_epochs_fraction is above 0, at most 1",
        ),
        ({"methods": ["kd+ls"]}, "only one part of a sum may change the cross-entropy, but kd and ls do"),
        ({"methods": [{"kd": 4}]}, r"methods\[0\]: write \{name: \{argument: value\}\}"),
        ({"methods": ["kd", {"kd": {"temperature": 4}}]}, r"methods\[1\]: kd stands twice"),
        ({"methods": []}, "methods: .*at least 1"),
        ({"methods": ["kd"], "pairs": [{"student": "resnet8"}]}, "expands to nothing. kd on resnet8: needs a teacher"),
        ({"pairs": [{"student": "resnet9"}]}, r"pairs\[0\]\.student: unknown model 'resnet9'; did you mean 'resnet"),
        ({"pairs": [{"studnet": "resnet8"}]}, r"pairs\.0\.studnet: unknown key.*did you mean 'student'"),
        (
            {"pairs": [{"student": {"type": "torchvision", "name": "resnet19"}}]},
            r"pairs\[0\]\.student: .*'resnet19'; nearest: .*resnet18",
        ),
        ({"pairs": [{"student": {"type": "torchvision"}}]}, r"pairs\[0\]\.student: 'torchvision' needs name"),
        (
            {"pairs": [{"student": "resnet8", "teacher": {"type": "resnet8", "weights": 3}}]},
            "teacher.weights: the path of a file",
        ),
        ({"data": "cifar"}, "data: unknown data set 'cifar'; did you mean 'cifar1"),
        ({"data": {"type": "digits", "train_images": -1}}, r"data\.train_images: a number of images"),
        ({"data": {"type": "npz", "path": "nowhere.npz"}}, "data: nowhere.npz is not a file.*--data-root"),
        ({"recipe": "crdd"}, "recipe: unknown recipe 'crdd'; did you mean 'crd'"),
        ({"recipe": {"name": "crd", "epoch": 3}}, r"recipe\.epoch: unknown key 'epoch'; did you mean 'epochs'"),
        ({"recipe": {"name": "crd", "epochs": 0}}, r"recipe\.epochs: .*greater than or equal to 1, not 0"),
        ({"recipe": {"name": "crd", "epochs": True}}, r"recipe\.epochs: a number, not True \(YAML"),
        ({"recipe": {"name": "crd", "dropout": True}}, r"recipe\.dropout: a number, not True \(YAML"),
        ({"recipe": {"schedule": "one_cycle", "warmup_epochs": 2}}, "warmup_epochs has no effect beside schedule one_cycle"),
        ({"seeds": [0, 0]}, "seeds: 0 stands twice"),
        ({"seeds": [-1]}, r"seeds\.0: .*greater than or equal to 0, not -1"),
        ({"seeds": [2**32]}, r"seeds\.0: .*less than 4294967296"),
        ({"seeds": [False]}, r"seeds\.0: .*valid integer, not False"),
        ({"seeds": []}, "seeds: .*at least 1"),
        ({"precision": "fp8"}, "precision: .*'fp32'.*'fp8'"),
        ({"sedes": [0]}, "sedes: unknown key 'sedes'; did you mean 'seeds'"),
        ({"also": [{"recipe": {"cutuot": 8}}]}, r"tiny, also\[0\], recipe\.cutuot: .*did you mean 'cutout'"),
        ({"also": [{"also": []}]}, r"tiny, also\[0\]\.also: unknown key"),
    ],
)
def test_messages_about_mistakes_name_place_value_and_nearest_match(tiny, changes, message):
    with pytest.raises(UserError, match=message) as error:
        tiny(**changes)
    assert str(error.value).startswith("tiny, ") or "tiny: the grid expands" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: digits\npairs: [\nseeds: 0\n", r"g\.yaml:\d+:\d+: not YAML: "),
        ("data: 'digits\n", r"g\.yaml:2:1: not YAML: "),
        ("- data\n- seeds\n", "a grid is a mapping with keys about, data"),
        ("data: !!python/object:os.system {}\n", "not YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_grid_is_refused(tmp_path, text, message):
    file = tmp_path / "g.yaml"
    file.write_text(textwrap.dedent(text))
    with pytest.raises(UserError, match=message):
        grid_file.read(str(file))


def test_an_unknown_grid_names_the_nearest():
    with pytest.raises(UserError, match="unknown grid 'paper_tabel1'; did you mean 'paper_table1'"):
        grid_file.read("paper_tabel1")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.epochs", "write key=value"),
        ("recipe.epochs=[1", "is not a YAML value"),
        ("seeds.first=1", "'seeds' is a list; set all of it"),
    ],
)
def test_an_override_that_cannot_be_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        grid_file.read("quick", [override])


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
