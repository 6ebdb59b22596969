"""Checkpoints as the field saves them: every form loads and answers alike, and none of them executes anything."""

from __future__ import annotations

import argparse
import builtins
import collections
import itertools
import os
import pathlib
import pickle
import re
import subprocess

import numpy as np
import pytest
import safetensors.torch
import torch
from field_networks import FIELD, disturbed, field_network
from torch import nn

from bench import run
from bench.errors import UserError
from bench.models import MODELS, weights
from bench.models.checkpoints import fit
from bench.models.field_names import published
from bench.records.folders import ResultsFolder
from bench.records.options import Options
from bench.records.teacher import key_of
from run_bench import main


def build(key: str, classes: int = 10, **arguments):
    return MODELS.build({"type": key, "classes": classes, **arguments})


def loaded(file, key: str, part: str | None = None, **arguments):
    network = build(key, **arguments)
    found, _ = weights.read(str(file))
    network.load_state_dict(fit(found, network, {"type": key, **arguments}, part))
    return network.eval()


def assert_same_logits(network, source):
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        answer, expected = network.double()(image).logits, source.double()(image)
    torch.testing.assert_close(answer, expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 1e-3


# The field's networks


@pytest.mark.parametrize("key", FIELD)
def test_a_checkpoint_of_the_field_loads_whatever_the_order_of_its_names(key, tmp_path):
    source = field_network(key)
    state = dict(sorted(source.state_dict().items()))
    torch.save({"epoch": 240, "model": state, "best_acc": torch.tensor(72.3), "optimizer": {}}, tmp_path / "ckpt_epoch_240.pth")
    assert_same_logits(loaded(tmp_path / "ckpt_epoch_240.pth", key), source)


@pytest.mark.parametrize("key", FIELD)
def test_our_weights_in_the_names_of_repdistiller_load_there(key):
    network, source = disturbed(build(key)), field_network(key, seed=1)
    names = published({"type": key}, network)
    source.load_state_dict({names[ours]: tensor for ours, tensor in network.state_dict().items()})
    assert_same_logits(network, source)


@pytest.mark.parametrize("key", ["wrn_16_1", "wrn_16_2", "wrn_40_2"])
def test_a_wide_resnet_loads_into_both_layouts(key, tmp_path):
    sums, rectified = build(key).eval(), build(key, taps="rectified").eval()
    names = published({"type": key}, sums)
    assert set(published({"type": key}, rectified).values()) == set(names.values())
    torch.save({names[ours]: tensor for ours, tensor in sums.state_dict().items()}, tmp_path / "t.pth")
    image = torch.randn(2, 3, 16, 16)
    expected = sums(image).logits
    torch.testing.assert_close(loaded(tmp_path / "t.pth", key, taps="rectified")(image).logits, expected)


@pytest.mark.parametrize(("classifier", "shortcut"), [("linear", "shortcut"), ("classifier", "downsample"), ("fc", "shortcut")])
def test_forks_may_call_classifier_and_shortcut_otherwise(classifier, shortcut, tmp_path):
    source = field_network("resnet8")
    state = {
        name.replace("fc.", f"{classifier}.").replace("downsample", shortcut): tensor
        for name, tensor in source.state_dict().items()
    }
    torch.save(state, tmp_path / "t.pth")
    assert_same_logits(loaded(tmp_path / "t.pth", "resnet8"), source)


# Forms of files


def prefixed(prefix: str, state):
    return {prefix + name: tensor for name, tensor in state.items()}


class Config(collections.OrderedDict):
    """Pickled under the name of yacs's class, a subclass of dict."""


Config.__module__, Config.__qualname__, Config.__name__ = "yacs.config", "CfgNode", "CfgNode"

OPTIMIZER = {"state": {0: {"momentum_buffer": torch.zeros(16, 3, 3, 3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
FORMS = {
    "plain": lambda w: w,
    "module.": lambda w: prefixed("module.", w),
    "_orig_mod.": lambda w: prefixed("_orig_mod.", w),
    "module._orig_mod.": lambda w: prefixed("module._orig_mod.", w),
    **{
        key: (lambda w, key=key: {key: w, "epoch": 240, "optimizer": OPTIMIZER})
        for key in ("model", "state_dict", "net", "student", "teacher", "model_state_dict", "state_dict_ema", "model_state")
    },
    "state_dict of a parallel model": lambda w: {"state_dict": prefixed("module.", w), "lr": 0.05},
    "nested twice": lambda w: {"checkpoint": {"model": prefixed("module.", w)}},
    "lightning": lambda w: {
        "state_dict": {**prefixed("model.", w), "criterion.weight": torch.ones(10)},
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {"EarlyStopping": {"best_score": torch.tensor(0.7)}},
    },
    "averaged": lambda w: {"n_averaged": torch.tensor(3), **prefixed("module.", w)},
    "parameters": lambda w: {name: nn.Parameter(t) if t.is_floating_point() else t for name, t in w.items()},
    "namespace": lambda w: {"model": w, "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/data"))},
    "numpy scalars": lambda w: {"model": w, "best_acc": np.float64(72.3), "epoch": np.int64(240), "log": np.arange(3.0)},
    "other containers": lambda w: {
        "model": collections.OrderedDict(w),
        "config": Config(lr=0.1, steps=[1, 2]),
        "history": collections.defaultdict(list, {"loss": [1.0]}),
        "last": collections.deque([1, 2]),
    },
    "without counters": lambda w: {name: tensor for name, tensor in w.items() if "num_batches" not in name},
    "counted by thop": lambda w: {**w, "total_ops": torch.zeros(1), "layer1.0.conv1.total_params": torch.zeros(1)},
    "half precision": lambda w: {name: t.half().float() if t.is_floating_point() else t for name, t in w.items()},
}


@pytest.fixture(scope="module")
def source():
    network = field_network("resnet8")
    network.load_state_dict(
        {name: t.half().float() if t.is_floating_point() else t for name, t in network.state_dict().items()}
    )
    return network


@pytest.fixture
def yacs(monkeypatch):
    """Lets torch.save find the class under yacs's name; a reader of the file has no such module."""
    import sys
    import types

    module = types.ModuleType("yacs.config")
    module.CfgNode = Config
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_loads(form, zipped, source, tmp_path, yacs):
    content = FORMS[form](source.float().state_dict())
    torch.save(content, tmp_path / "t.pth", _use_new_zipfile_serialization=zipped)
    assert_same_logits(loaded(tmp_path / "t.pth", "resnet8"), source)


def test_safetensors_load_in_the_names_of_the_field(source, tmp_path):
    state = {f"module.{name}": tensor.contiguous() for name, tensor in source.float().state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "t.safetensors")
    assert_same_logits(loaded(tmp_path / "t.safetensors", "resnet8"), source)


@pytest.mark.parametrize(
    ("library", "name"), [("torchvision", "resnet18"), ("torchvision", "densenet121"), ("timm", "resnet10t")]
)
def test_files_of_libraries_load(library, name, tmp_path):
    if library == "timm":
        timm = pytest.importorskip("timm")
        source = timm.create_model(name, num_classes=10).eval()
    else:
        from torchvision import models

        source = models.get_model(name, num_classes=10).eval()
    torch.save({"state_dict": prefixed("module.", source.state_dict())}, tmp_path / "t.pth")
    network = loaded(tmp_path / "t.pth", library, name=name)
    assert set(published({"type": library}, network).values()) == set(source.state_dict())
    assert_same_logits(network, source)


def test_a_densenet_as_torchvision_published_it_loads(tmp_path):
    from torchvision import models

    source = models.densenet121(num_classes=10).eval()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", name): tensor
        for name, tensor in source.state_dict().items()
        if "num_batches" not in name
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "t.pth")
    assert_same_logits(loaded(tmp_path / "t.pth", "torchvision", name="densenet121"), source)


def test_of_several_networks_that_fit_one_must_be_chosen(tmp_path):
    teacher, student = field_network("resnet8"), field_network("resnet8", seed=1)
    state = prefixed("module.student.", student.state_dict()) | prefixed("module.teacher.", teacher.state_dict())
    state["module.conv_reg.weight"] = torch.zeros(3)
    torch.save({"model": state, "epoch": 240}, tmp_path / "latest")
    with pytest.raises(ValueError, match=r"2 such networks, below 'model\.module\.student', 'model\.module\.teacher'.*`part`"):
        loaded(tmp_path / "latest", "resnet8")
    assert_same_logits(loaded(tmp_path / "latest", "resnet8", part="teacher"), teacher)
    assert_same_logits(loaded(tmp_path / "latest", "resnet8", part="student"), student)
    with pytest.raises(ValueError, match=r"no network below 'pupil'; prefixes in it: 'model'"):
        loaded(tmp_path / "latest", "resnet8", part="pupil")


def test_of_two_networks_the_one_that_fits_is_taken(tmp_path):
    teacher, student = field_network("vgg8"), field_network("resnet8")
    state = prefixed("module.student.", student.state_dict()) | prefixed("module.teacher.", teacher.state_dict())
    torch.save({"model": state}, tmp_path / "latest")
    assert_same_logits(loaded(tmp_path / "latest", "vgg8"), teacher)


# Misfits


@pytest.mark.parametrize(
    ("key", "change", "expected"),
    [
        ("resnet20", {}, r"its shapes are those of resnet8\)"),
        ("wrn_16_2", {}, r"its shapes are those of resnet8\)"),
        ("resnet8", {"fc.weight": "fcs.weight"}, r"it lacks fc\.weight \(nearest: fcs\.weight\)"),
        ("resnet8", {"layer1.0.conv1.weight": "layer1.0.conv.weight"}, r"below 'model' it lacks layer1\.0\.conv1\.weight"),
        ("resnet8", {"fc.bias": None}, r"it lacks fc\.bias"),
    ],
)
def test_a_misfit_names_what_is_nearest(key, change, expected, tmp_path, source):
    state = {change.get(name, name): tensor for name, tensor in source.state_dict().items()}
    state.pop(None, None)
    torch.save({"model": state, "optimizer": OPTIMIZER}, tmp_path / "t.pth")
    with pytest.raises(ValueError, match=expected):
        loaded(tmp_path / "t.pth", key)


def test_a_misfit_is_named_before_training(tiny, tmp_path, source):
    torch.save({"model": source.state_dict()}, tmp_path / "t.pth")
    teacher = {"type": "resnet14", "weights": str(tmp_path / "t.pth")}
    with pytest.raises(UserError, match=r"pairs\[0\]\.teacher\.weights: .* does not fit resnet14.*those of resnet8\)"):
        tiny(methods=["kd"], data="cifar10", pairs=[{"student": "resnet8", "teacher": teacher}])


def test_a_file_must_be_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place, reason in [(tmp_path / "pipe", "is not a file"), ("/dev/zero", "is not a file"), (tmp_path, "is not a file")]:
        with pytest.raises(ValueError, match=reason):
            weights.read(str(place))
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(17 * 2**30)  # a hole: no bytes on disk
    with pytest.raises(ValueError, match="larger than 16 GiB"):
        weights.read(str(tmp_path / "huge"))


# Hostile pickles


class Hostile:
    """What it calls leaves a file behind."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


class HostileState(argparse.Namespace):
    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return argparse.Namespace, (), {"lr": self.state}


def payloads(mark: pathlib.Path):
    return {
        "os.system": lambda: Hostile(os.system, f"touch {mark}"),
        "exec": lambda: Hostile(exec, f"open({str(mark)!r}, 'w')"),
        "eval": lambda: Hostile(eval, f"open({str(mark)!r}, 'w')"),
        "open": lambda: Hostile(open, str(mark), "w"),
        "Popen": lambda: Hostile(subprocess.check_call, ["touch", str(mark)]),
        "Path.touch": lambda: Hostile(pathlib.Path.touch, mark),
        "torch.save": lambda: Hostile(torch.save, {}, str(mark)),
        "numpy.save": lambda: Hostile(np.save, str(mark), 0),
    }


def saved(content, file, form: str) -> None:
    if form.startswith("pickle"):
        file.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")


PLACES = {
    "alone": lambda hostile, w: hostile,
    "beside weights": lambda hostile, w: {"model": w, "args": hostile},
    "as a weight": lambda hostile, w: {"model": {**w, "fc.weight": hostile}},
    "in a namespace": lambda hostile, w: {"model": w, "args": HostileState(hostile)},
    "in a list of the optimizer": lambda hostile, w: {"model": w, "optimizer": {"param_groups": [hostile]}},
}


@pytest.mark.parametrize(
    ("form", "place"), [*itertools.product(["zip", "legacy"], PLACES), *((f"pickle {i}", "alone") for i in (0, 2, 4))]
)
def test_a_hostile_pickle_is_refused_and_executes_nothing(form, place, tmp_path, source):
    mark = tmp_path / "executed.npy"
    for name, payload in payloads(mark).items():
        content = PLACES[place](payload(), {} if form.startswith("pickle") else source.state_dict())
        saved(content, tmp_path / "t.pth", form)
        with pytest.raises(ValueError, match=r"neither safetensors nor a torch file"):
            weights.read(str(tmp_path / "t.pth"))
        assert not mark.exists(), name


def test_the_payloads_are_hostile(tmp_path):
    mark = tmp_path / "executed.npy"
    for name, payload in payloads(mark).items():
        raw = pickle.dumps(payload())
        assert not mark.exists()
        pickle.loads(raw)
        assert mark.exists(), name
        mark.unlink()


def test_a_refusal_names_what_was_not_allowed(tmp_path):
    torch.save({"model": Hostile(builtins.eval, "1")}, tmp_path / "t.pth")
    with pytest.raises(ValueError, match=r"it names eval, and only a state_dict is read"):
        weights.read(str(tmp_path / "t.pth"))
    torch.save(build("resnet8"), tmp_path / "t.pth")  # a pickled module
    with pytest.raises(ValueError, match=r"it names bench\.models\.base\.Network"):
        weights.read(str(tmp_path / "t.pth"))


def test_allowed_names_stay_allowed_only_while_a_file_is_read(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save({"w": torch.zeros(1), "args": argparse.Namespace(lr=1)}, tmp_path / "t.pth")
    weights.read(str(tmp_path / "t.pth"))
    assert set(torch.serialization.get_safe_globals()) == before


# Export


@pytest.mark.parametrize("student", ["resnet8", {"type": "wrn_16_1", "taps": "rectified"}])
def test_a_trained_network_goes_to_repdistiller_and_back(student, tmp_path, monkeypatch, capsys):
    options = Options(device="cpu", threads=1)
    data = {"type": "digits", "train_images": 40, "test_images": 40}
    recipe = {"name": "digits", "epochs": 1, "batch_size": 16}
    record = run.fit(data, student, recipe=recipe, precision="fp32", results=tmp_path / "r", options=options)
    monkeypatch.chdir(tmp_path)
    assert main(["export", record.id, "--as", "repdistiller", "--results", str(tmp_path / "r")]) == 0
    file = f"{record.id}.pth"
    assert capsys.readouterr().out.strip() == file
    content = torch.load(file, weights_only=True)
    assert {"conv1.weight", "fc.bias"} <= set(content["model"])
    teacher = {"type": record.cell.student["type"], "weights": file}
    learned = run.fit(data, "resnet8", "kd", teacher, recipe, 0, "fp32", tmp_path / "r", options=options)
    found = ResultsFolder(tmp_path / "r").teacher_accuracy(key_of(learned.cell))
    assert found.top1 == record.accuracies.last.top1


def test_what_has_no_counterpart_is_not_exported(tmp_path, capsys):
    options = Options(device="cpu", threads=1)
    data = {"type": "digits", "train_images": 40, "test_images": 40}
    recipe = {"name": "digits", "epochs": 1, "batch_size": 16}
    record = run.fit(data, "resnet8", "simkd", "resnet8", recipe, 0, "fp32", tmp_path, options=options)
    assert main(["export", record.id, "--as", "repdistiller", "--results", str(tmp_path), "--to", str(tmp_path / "t.pth")]) == 2
    assert "what its method deploys is not the plain network" in capsys.readouterr().err
    assert not (tmp_path / "t.pth").exists()
