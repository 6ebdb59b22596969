"""A network with weights sees the images that it was trained on, whatever the data's normalization and size are."""

from __future__ import annotations

import argparse
import copy
import csv
import io

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from field_networks import field_network

from bench import run
from bench.data import Stream, evaluation_batches, load
from bench.engine.assemble import build_network
from bench.engine.train import train
from bench.engine.trainee import Teacher
from bench.errors import UserError
from bench.models import MODELS
from bench.models.own_images import NAMED, Normalization, OwnImages, published
from bench.records.cell import seed_from
from bench.records.folders import ResultsFolder
from bench.records.options import Options

CPU = Options(device="cpu", threads=1)
OWN = Normalization((0.2, 0.5, 0.6), (0.1, 0.3, 0.5))
CLASSES, SIZE = 4, 16


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Colored images whose statistics are far from the teacher's."""
    rng = np.random.default_rng(0)
    parts = {}
    for name, count in (("train", 48), ("test", 20)):
        labels = np.arange(count) % CLASSES
        images = rng.integers(0, 90, (count, SIZE, SIZE, 3)).astype(np.uint8)
        images[np.arange(count), :, labels * 4, :] += 150
        parts |= {f"{name}_images": images, f"{name}_labels": labels}
    file = tmp_path_factory.mktemp("data") / "colored.npz"
    np.savez(file, **parts)
    return {"type": "npz", "path": str(file)}


@pytest.fixture
def teacher(tmp_path):
    """A field's file, and the network that it is of."""
    source = field_network("resnet8", classes=CLASSES)
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({"model": state, "epoch": 240, "opt": argparse.Namespace(lr=0.05)}, tmp_path / "ckpt_epoch_240.pth")
    normalize = {"mean": list(OWN.mean), "std": list(OWN.std)}
    return {"type": "resnet8", "weights": str(tmp_path / "ckpt_epoch_240.pth"), "normalize": normalize}, source


def pixels(image, dataset):
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (dataset.mean, dataset.std))
    return ((image * std + mean) * 255).round()


def normalized(image, mean, std):
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return (image / 255 - mean) / std


def test_kd_from_a_teacher_file_has_the_losses_of_a_plain_loop(data, teacher, tmp_path):
    spec, source = teacher
    recipe = {"epochs": 3, "batch_size": 16, "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "crop_padding": 2}
    settings = {"data": data, "recipe": recipe, "precision": "fp32", "results": tmp_path / "results", "options": CPU}
    record = run.fit(student="resnet8", method="kd", teacher=spec, **settings)
    curves = ResultsFolder(tmp_path / "results").grid("fit").cell(record.id).curves(record)
    found = [(float(row["loss_ce"]), float(row["loss_kd"])) for row in csv.DictReader(io.StringIO(curves))]

    dataset = load(record.cell.data)
    stream = Stream(dataset.train, dataset, record.cell.recipe, 0, torch.device("cpu"))
    torch.manual_seed(seed_from("student", record.cell.identity["student"], 0))
    student = MODELS.build({"type": "resnet8", "classes": CLASSES}).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    expected = []
    for epoch in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * 0.1 ** sum(epoch >= milestone for milestone in (2, 2, 3))  # 5/8, 3/4 and 7/8 of 3 epochs
        sums = torch.zeros(2)
        for batch in stream.epoch(epoch):
            image = pixels(batch.image, dataset)
            logits = student(normalized(image, dataset.mean, dataset.std)).logits
            with torch.no_grad():
                wanted = source(normalized(image, OWN.mean, OWN.std))
            ce = 0.1 * F.cross_entropy(logits, batch.target)
            kd = F.kl_div(F.log_softmax(logits / 4, 1), F.softmax(wanted / 4, 1), reduction="batchmean")
            kd = 0.9 * 16 * kd
            optimizer.zero_grad()
            (ce + kd).backward()
            optimizer.step()
            sums += torch.stack([ce, kd]).detach()
        expected.append(tuple((sums / len(stream)).tolist()))
    np.testing.assert_allclose(found, expected, rtol=2e-4)

    wrong = run.fit(student="resnet8", method="kd", teacher={**spec, "normalize": "data"}, **settings)
    assert wrong.id != record.id  # what a teacher sees is part of what it teaches
    curves = ResultsFolder(tmp_path / "results").grid("fit").cell(wrong.id).curves(wrong)
    first = next(csv.DictReader(io.StringIO(curves)))
    assert abs(float(first["loss_kd"]) / expected[0][1] - 1) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_in_front_gives_the_networks_own_images(dtype):
    given = NAMED["cifar100"]
    image = torch.randint(0, 256, (2, 3, 32, 32)).float()
    step = OwnImages(given, OWN, 0).to(dtype)
    assert step.scale.dtype == torch.float32  # weights in bf16 leave it exact
    found = step(normalized(image, *given).to(dtype))
    assert found.dtype == dtype
    limit = 1e-4 if dtype == torch.float32 else 0.06
    torch.testing.assert_close(found.float(), normalized(image, *OWN), rtol=0, atol=limit)
    sized = OwnImages(None, None, 48)(image)
    torch.testing.assert_close(sized, F.interpolate(image, (48, 48), mode="bilinear", antialias=True))
    assert OwnImages(None, None, 32)(image) is image


def test_a_network_with_own_images_has_the_same_weights_and_can_be_copied_and_folded():
    plain = MODELS.build({"type": "resnet8", "classes": CLASSES})
    arguments = {"normalize": "half", "image_size": 24, "images": NAMED["cifar10"]}
    network = MODELS.build({"type": "resnet8", "classes": CLASSES, **arguments}).eval()
    assert set(network.state_dict()) == set(plain.state_dict())
    network.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 32, 32)
    seen = OwnImages(NAMED["cifar10"], NAMED["half"], 24)(image)
    expected = plain.eval()(seen)
    for each in (network, copy.deepcopy(network), Teacher(network, image, "fp32")):
        torch.testing.assert_close(each(image).logits, expected.logits, rtol=1e-3, atol=1e-4)
    assert network(image).stages[0].shape[-1] == 24


def test_defaults_are_the_librarys_for_its_weights_and_the_datas_otherwise(tiny, data, tmp_path):
    def teachers(teacher, **changes):
        changes = {"data": "cifar100", "methods": ["kd"], "pairs": [{"student": "resnet8", "teacher": teacher}]} | changes
        return [cell.teacher for cell in tiny(**changes).cells if cell.teacher]

    from torchvision import models

    torch.save(models.resnet18(num_classes=100).state_dict(), tmp_path / "t.pth")
    library = {"type": "torchvision", "name": "resnet18", "weights": str(tmp_path / "t.pth")}
    [found] = teachers(library)
    assert (found.model["normalize"], found.model["image_size"]) == ("imagenet", 224)
    [asked] = teachers({**library, "normalize": "data", "image_size": 64})
    assert "normalize" not in asked.model
    assert asked.model["image_size"] == 64
    [plain] = teachers({**library, "normalize": "cifar100", "image_size": 0})
    assert plain.identity == plain.weights_sha256  # as the data are: no part of the identity
    values = dict(zip(("mean", "std"), map(list, NAMED["cifar100"]), strict=True))
    [same] = teachers({**library, "normalize": values, "image_size": 32})
    assert same.identity == plain.identity
    assert len({str(each.identity) for each in (found, asked, plain)}) == 3
    assert published({"type": "torchvision", "name": "resnet18"}) == (NAMED["imagenet"], 224)
    [untrained] = teachers({"type": "torchvision", "name": "resnet18"})
    assert untrained.cell
    assert "normalize" not in untrained.model


def test_students_with_published_weights_see_the_librarys_images_too(tiny):
    def student(**keys):
        spec = {"type": "torchvision", "name": "resnet18", "pretrained": True, **keys}
        return tiny(data="cifar100", pairs=[{"student": spec}]).cells[0].student

    assert (student()["normalize"], student()["image_size"]) == ("imagenet", 224)
    assert set(student()) - set(student(normalize="data", image_size=0)) == {"normalize", "image_size"}
    with pytest.raises(UserError, match=r"student\.image_size: belongs to a network with weights"):
        tiny(pairs=[{"student": {"type": "resnet8", "image_size": 12}}])


def test_a_student_with_own_images_is_trained_evaluated_and_loaded_with_them(data, tmp_path, tiny):
    recipe = {"epochs": 2, "batch_size": 16, "lr": 0.05, "crop_padding": 2, "ema": 0.5}
    [cell] = tiny(data=data, recipe=recipe, precision="fp32").cells
    plain = cell.student
    cell = cell.model_copy(update={"student": {**plain, "normalize": "half", "image_size": 12}})
    folder = ResultsFolder(tmp_path).grid("g")
    [record] = train([cell], folder, CPU)
    weights = safetensors.torch.load(folder.cell(cell.id).weights(record))
    assert not any("images" in name for name in weights)
    dataset = load(cell.data)
    network = build_network(cell.student, dataset).eval()
    network.load_state_dict(weights)
    bare = build_network(plain, dataset).eval()
    bare.load_state_dict(weights)
    [(image, target)] = evaluation_batches(dataset.test, dataset, torch.device("cpu"))
    logits = network(image).logits
    expected = F.interpolate(normalized(pixels(image, dataset), *NAMED["half"]), (12, 12), mode="bilinear", antialias=True)
    torch.testing.assert_close(logits, bare(expected).logits, rtol=1e-3, atol=1e-4)
    assert record.accuracies.last.top1 == pytest.approx(100 * (logits.argmax(1) == target).float().mean().item())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "resnet8", "normalize": "imagenet"}, r"teacher\.normalize: belongs to a network with weights"),
        ({"normalize": "imagenette"}, r"teacher\.normalize: data, imagenet, .*not 'imagenette'"),
        ({"normalize": {"mean": [0.5], "std": [0.5]}}, r"of 1 channels, and the images have 3"),
        ({"normalize": {"mean": [0.5] * 3, "std": [0.0] * 3}}, r"teacher\.normalize: data, "),
        ({"image_size": -1}, r"teacher\.image_size: pixels from 1"),
        ({"type": "resnet8", "part": "student"}, r"teacher\.part: belongs to a teacher with weights"),
        ({"part": "pupil"}, r"holds no network below 'pupil'"),
    ],
)
def test_what_is_not_possible_is_refused(change, reason, tiny, data, teacher):
    spec = change if "type" in change else {**teacher[0], **change}
    with pytest.raises(UserError, match=reason):
        tiny(data=data, methods=["kd"], pairs=[{"student": "resnet8", "teacher": spec}])
