"""Wide resnets answer with the features that the field's public code takes, and read weights of either layout."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.models import MODELS, stored
from bench.models.checkpoints import fit

KEYS = ["wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"]
CLASSES = 10


class PublicUnit(nn.Module):
    """The usual pre-activation unit: where the shape changes, the first batch norm and ReLU stand before both ways."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = None if width_in == width else nn.Conv2d(width_in, width, 1, stride, bias=False)

    def forward(self, x):
        rectified = F.relu(self.bn1(x))
        branch = self.conv2(F.relu(self.bn2(self.conv1(rectified))))
        return branch + (x if self.shortcut is None else self.shortcut(rectified))


class PublicWideResNet(nn.Module):
    """Written from the paper's figures. Parameters stand in the order in which the network uses them."""

    def __init__(self, depth: int, factor: int) -> None:
        super().__init__()
        widths = [16, 16 * factor, 32 * factor, 64 * factor]
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.stages = nn.ModuleList()
        for i, (width_in, width) in enumerate(itertools.pairwise(widths)):
            units = [PublicUnit(width_in, width, 1 if i == 0 else 2)]
            units += [PublicUnit(width, width, 1) for _ in range((depth - 4) // 6 - 1)]
            self.stages.append(nn.Sequential(*units))
        self.bn = nn.BatchNorm2d(widths[-1])
        self.classifier = nn.Linear(widths[-1], CLASSES)

    def forward(self, image):
        """Logits, embedding, the first convolution's answer and the sums at the stages' ends."""
        x = stem = self.conv(image)
        sums = []
        for stage in self.stages:
            x = stage(x)
            sums.append(x)
        embedding = F.relu(self.bn(x)).mean((2, 3))
        return self.classifier(embedding), embedding, stem, sums


def build(key, taps=None, seed=0):
    torch.manual_seed(seed)
    return MODELS.build({"type": key, "classes": CLASSES, **({"taps": taps} if taps else {})}).double()


def disturbed(network):
    """With batch norms as after some training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(std=0.3)
            norm.running_mean.normal_(std=0.3)
            norm.running_var.uniform_(0.5, 1.5)
    return network


def public_of(network, key):
    _, depth, factor = key.split("_")
    public = PublicWideResNet(int(depth), int(factor)).double()
    ours, theirs = network.state_dict(), public.state_dict()
    assert [tensor.shape for tensor in ours.values()] == [tensor.shape for tensor in theirs.values()]
    public.load_state_dict(dict(zip(theirs, ours.values(), strict=True)))  # both in the order of use
    return public


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("training", [True, False])
def test_features_are_those_of_public_code(key, training):
    """Sums as stages, the next batch norm of them as `preact`, its ReLU as `activated`; gradients and statistics likewise."""
    network = disturbed(build(key)).train(training)
    public = public_of(network, key).train(training)
    image = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    out, (logits, embedding, stem, sums) = network(image), public(image)
    close = torch.testing.assert_close
    close((out.logits, out.embedding, out.stem, list(out.stages)), (logits, embedding, stem, sums))
    norms = [public.stages[1][0].bn1, public.stages[2][0].bn1, public.bn]
    for norm, own, feature, preact, activated in zip(norms, network.norms, sums, out.preact, out.activated, strict=True):
        mean, var = (
            (feature.mean((0, 2, 3)), feature.var((0, 2, 3), unbiased=False))
            if training
            else (norm.running_mean, norm.running_var)
        )
        scale, shift, mean, var = (x.view(-1, 1, 1) for x in (norm.weight, norm.bias, mean, var))
        normalized = scale * (feature - mean) / (var + norm.eps).sqrt() + shift
        close(preact, normalized)
        close(activated, normalized.relu())
        close(own.weight, norm.weight, rtol=0, atol=0)
    assert all((feature < 0).double().mean() > 0.2 for feature in out.stages)  # bare sums
    weights = [torch.randn_like(feature) for feature in sums]
    for found in ((out.stages, out.logits), (sums, logits)):
        (sum((w * x).sum() for w, x in zip(weights, found[0], strict=True)) + found[1].square().sum()).backward()
    for own, theirs in zip(network.parameters(), public.parameters(), strict=True):
        close(own.grad, theirs.grad)
    for own, theirs in zip(network.state_dict().values(), public.state_dict().values(), strict=True):
        close(own, theirs)  # each batch norm ran once


@pytest.mark.parametrize("key", KEYS)
def test_taps_change_features_alone(key):
    sums, rectified = build(key, "sums"), build(key, "rectified")
    image = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    assert all(torch.equal(a, b) for a, b in zip(sums.parameters(), rectified.parameters(), strict=True))  # the same draws
    a, b = sums(image), rectified(image)
    torch.testing.assert_close((a.logits, a.embedding, a.stem, a.preact), (b.logits, b.embedding, b.stem, b.preact))
    torch.testing.assert_close((a.activated, a.activated), (b.stages, b.activated))
    assert not any(torch.equal(x, y) for x, y in zip(a.stages, b.stages, strict=True))
    assert [norm.num_features for norm in sums.norms] == [norm.num_features for norm in rectified.norms]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(("saved", "loaded"), [("sums", "rectified"), ("rectified", "sums"), ("sums", "sums")])
def test_weights_of_either_layout_load(key, saved, loaded):
    source, target = disturbed(build(key, saved)).eval(), build(key, loaded, seed=1).eval()
    assert saved == loaded or set(source.state_dict()) != set(target.state_dict())
    assert set(fit(source.state_dict(), target, {"type": key})) == set(target.state_dict())
    within = nn.ModuleDict({"core": target})  # as in a checkpoint
    state = {f"core.{name}": tensor for name, tensor in source.state_dict().items()}
    within.load_state_dict(state)
    assert set(state) == {f"core.{name}" for name in source.state_dict()}  # the caller's stay
    image = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert torch.equal(target(image).logits, source(image).logits)
    incomplete = {name: tensor for name, tensor in source.state_dict().items() if name != "stem.weight"}
    with pytest.raises(RuntimeError, match=r"stem\.weight"):
        target.load_state_dict(incomplete)


def test_rectified_taps_keep_the_names_and_order_of_weights_of_older_records():
    """The layout in which version 0.1.0 wrote weights, listed by hand for the smallest of them."""
    unit = [
        *(f"branch.0.{name}" for name in NORM),
        "branch.2.weight",
        *(f"branch.3.{name}" for name in NORM),
        "branch.5.weight",
    ]
    wide = ["branch.0.weight", *(f"branch.1.{name}" for name in NORM), "branch.3.weight", "shortcut.weight"]
    names = ["stem.weight"]
    for i, first in enumerate((unit, wide, wide)):
        for j, layers in enumerate((first, unit, NORM)):
            names += [f"blocks.{i}.body.{j}.{name}" for name in layers]
    assert list(build("wrn_16_1", "rectified").state_dict()) == [*names, "classifier.weight", "classifier.bias"]


NORM = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def test_stored_specs_without_taps_are_of_the_time_before_and_new_ones_tap_sums(tiny):
    assert stored({"type": "wrn_16_2"}) == {"type": "wrn_16_2", "taps": "rectified"}
    assert stored({"type": "wrn_16_2", "taps": "sums"})["taps"] == "sums"
    assert stored({"type": "resnet8"}) == {"type": "resnet8"}
    pairs = [{"student": "wrn_16_1"}, {"student": {"type": "wrn_16_1", "taps": "rectified"}}]
    cells = tiny(pairs=pairs, methods=["none"]).cells
    assert [cell.student["taps"] for cell in cells] == ["sums", "rectified"]
    old = cells[1].model_copy(update={"student": {"type": "wrn_16_1"}})
    assert len({cell.id for cell in (*cells, old)}) == 3  # three cells: nothing is confused with what was before


def build_method(key, student, teacher, image, **arguments):
    from methods import METHODS, Context, Networks

    torch.manual_seed(3)
    method = METHODS.build({"type": key, **arguments})
    networks = Networks(student, teacher)
    method.setup(Context(student(image), teacher(image), CLASSES, 8, len(image), (3, 16, 16), networks=networks))
    return method.double()


def test_methods_whose_sources_have_activated_features_take_those():
    """FRSKD's and SimKD's own wide resnets answer with ReLU(BN(sum)): these two must not tell one layout from the other."""
    from methods import Batch

    image = torch.randn(8, 3, 16, 16, dtype=torch.float64)
    batch = Batch(image, torch.arange(8) % CLASSES, torch.arange(8))
    losses: dict[str, list[dict]] = {"frskd": [], "simkd": []}
    for taps in ("sums", "rectified"):
        student, teacher = build("wrn_16_1", taps), build("wrn_16_2", taps, seed=1).eval().requires_grad_(False)
        for key, found in losses.items():
            method = build_method(key, student, teacher, image)
            found.append(method.loss(student(image), teacher(image), batch))
        # What SimKD reuses is the teacher's classifier on the mean of the feature that the student learns.
        feature = teacher(image).activated[-1]
        torch.testing.assert_close(teacher.classifier(feature.mean((2, 3))), teacher(image).logits)
        deployed = method.predictor(student.eval())
        answer = deployed(image)
        expected = teacher.classifier(method.projector(student(image).activated[-1]).mean((2, 3)))
        torch.testing.assert_close(answer.logits, expected)
    for one, other in losses.values():
        torch.testing.assert_close(one, other)


def test_a_part_of_an_answer_has_all_its_features():
    from methods.dlb import part

    network = build("wrn_16_1").eval()
    image = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(part(network(image), slice(2, 5)), network(image[2:5]))


def test_a_file_of_weights_teaches_something_else_with_other_taps():
    from bench.records.cell import Teacher
    from bench.records.naming import describe

    models: list[dict] = [{"type": "wrn_40_2", **taps} for taps in ({}, {"taps": "sums"}, {"taps": "rectified"})]
    teachers = [Teacher(model=model, weights_sha256="ab") for model in models]
    assert teachers[0].identity == "ab"  # as older records have it
    assert len({str(teacher.identity) for teacher in teachers}) == 3
    assert [describe(model) for model in models] == ["wrn_40_2", "wrn_40_2", "wrn_40_2(taps=rectified)"]
