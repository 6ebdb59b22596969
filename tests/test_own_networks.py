"""Networks that know nothing of the bench: tapped by name, of libraries, started from weights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import run
from bench.engine.assemble import assemble
from bench.errors import UserError
from bench.jobs.debug import Debug
from bench.models import MODELS
from bench.models.base import check_output
from bench.plugins import import_plugin
from bench.records.folders import ResultsFolder
from bench.records.options import Options

CPU = Options(device="cpu", threads=1)


class Plain(nn.Module):
    """A CNN as anybody writes it; `tail` is called by nobody."""

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 4) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2), nn.ReLU())
        self.fc, self.tail = nn.Linear(2 * width, num_classes), nn.Linear(1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer2(self.layer1(image)).mean((2, 3)))


@pytest.fixture(autouse=True, scope="module")
def _plain() -> None:
    MODELS.register_module("plain", module=Plain)


TAPS = {"stages": ["layer1.1", "layer2"], "head": "fc", "stem": "layer1"}


def test_features_are_those_of_the_named_submodules() -> None:
    network = MODELS.build({"type": "plain", "classes": 5, "channels": 1, "width": 4, **TAPS})
    image = torch.randn(3, 1, 8, 8)
    output = network(image)
    check_output(output, 3, 5)
    body = network.body.eval()
    assert torch.equal(network.eval()(image).logits, body(image))
    assert [tuple(stage.shape) for stage in output.stages] == [(3, 4, 6, 6), (3, 8, 2, 2)]
    assert torch.equal(output.stem, output.stages[0].relu())
    assert torch.equal(network.classifier(output.embedding), output.logits)
    assert set(network.state_dict()) == {f"body.{name}" for name in body.state_dict()}
    network.dropout.p = 1.0  # as a recipe sets it
    assert torch.equal(network.train()(image).logits, network.classifier.bias.expand(3, 5))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in body.modules())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stages": ["layer3"]}, r"there is no submodule 'layer3'; did you mean 'layer2'\?"),
        ({"stages": []}, "stages: name at least one submodule"),
        ({"stages": ["tail"]}, "stages: 'tail' was not called"),
        ({"head": "layer2"}, "head: 'layer2' is a Sequential, not a Linear"),
        ({"stages": "layer1"}, r"student\.stages: a list"),
    ],
)
def test_mistakes_are_named(tiny, changes: dict, reason: str) -> None:
    def planned_and_called() -> None:
        grid = tiny(pairs=[{"student": {"type": "plain", **TAPS, **changes}}])
        MODELS.build({**grid.cells[0].student, "classes": 10, "channels": 1})(torch.zeros(2, 1, 8, 8))

    with pytest.raises((UserError, ValueError), match=reason):
        planned_and_called()


@pytest.mark.parametrize(
    ("student", "reason"),
    [
        ({"type": ["plain"]}, "unknown model"),
        ({"type": "torchvision", "name": "resnet18", "arguments": [1], "more": 2}, r"student\.arguments: "),
        ({"type": "resnet8", "weights": 3}, r"student\.weights: the path of a file, not 3"),
        ({"type": "resnet8", "part": "student"}, r"student\.part: belongs to a network with weights"),
        ({"type": "plain", **TAPS, "prefix_tokens": "one"}, r"student\.prefix_tokens: "),
    ],
)
def test_keys_of_other_kinds_are_named(tiny, student: dict, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        tiny(pairs=[{"student": student}])


def test_what_lacks_names_or_has_stages_of_its_own_is_named(tiny) -> None:
    with pytest.raises(UserError, match=r"plain is a plain module: name its features.*it has: layer1, layer2, fc, tail"):
        tiny(pairs=[{"student": "plain"}])
    with pytest.raises(UserError, match="resnet8 has features of its own: leave out stages, head"):
        tiny(pairs=[{"student": {"type": "resnet8", "stages": ["blocks.0"], "head": "classifier"}}])


def test_methods_that_copy_stages_are_skipped(tiny) -> None:
    grid = tiny(methods=["none", "one", "mixskd"], pairs=[{"student": {"type": "plain", **TAPS}}])
    assert {skip.what.split()[0]: skip.reason for skip in grid.skipped} == {
        key: f"{key} copies the student's stages, and this network has no modules that are its stages"
        for key in ("one", "mixskd")
    }


def blocks(repository: Path) -> dict[str, str]:
    text = (repository / "docs/networks.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^```\w+ ([\w.]+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))


def test_the_documents_transformer_trains(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in blocks(repository).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    options = Options.of(vars(CPU) | {"imports": ("small_vit.py",)})
    grid, folder = run.plan("small_vit.yaml", options=options)
    assert [skip.reason for skip in grid.skipped] == ["works on maps of convolutions, and the stages of small_vit are tokens"]
    outcome = run.run("small_vit.yaml", options=options, backend=Debug(threads=1), costs=False)
    assert outcome.complete
    assert len(outcome.done) == 5
    student = next(cell for cell in grid.cells if cell.label == "kd")
    output = assemble([student], folder, CPU).trainees[student.id].student(torch.randn(2, 1, 8, 8))
    assert [tuple(stage.shape) for stage in output.stages] == [(2, 32, 4, 4)] * 3
    assert [tuple(tokens.shape) for tokens in output.tokens or ()] == [(2, 1, 32)] * 3


def test_libraries_take_arguments_of_their_own(tiny) -> None:
    pytest.importorskip("timm")
    small = {"patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 2}
    short = {"type": "timm", "name": "deit_tiny_patch16_224", "img_size": 16, **small}
    recipe = {"name": "digits", "epochs": 1, "crop": "resized", "image_size": 16}
    long = {"type": "timm", "name": "deit_tiny_patch16_224", "arguments": {"img_size": 16, **small}}
    cells = [tiny(pairs=[{"student": each}], recipe=recipe).cells[0] for each in (short, long)]
    assert cells[0].id == cells[1].id
    with pytest.raises(UserError, match="does not take"):
        tiny(pairs=[{"student": {**short, "image_sizes": 16}}], recipe=recipe)
    of_torchvision = {
        "type": "torchvision",
        "name": "vit_b_16",
        "arguments": {"image_size": 32},
        "stages": ["encoder.layers.encoder_layer_3", "encoder.layers.encoder_layer_11"],
        **{"head": "heads.head", "prefix_tokens": 1},
    }
    with torch.device("meta"):
        output = MODELS.build({**of_torchvision, "classes": 7})(torch.randn(2, 3, 32, 32))
    check_output(output, 2, 7)
    assert output.stages[0].shape == (2, 768, 2, 2)


def test_a_student_starts_from_weights(tiny, tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = Plain(10, 1)
    torch.save({"model": source.state_dict()}, tmp_path / "former.pth")
    torch.save({"model": Plain(7, 1).state_dict()}, tmp_path / "seven.pth")

    def cell(file: str | None = None):
        start = {"weights": str(tmp_path / file)} if file else {}
        return tiny(pairs=[{"student": {"type": "plain", **TAPS, **start}}], methods=["none"], seeds=[0]).cells[0]

    def built(cell) -> dict[str, torch.Tensor]:
        return assemble([cell], ResultsFolder(tmp_path).grid("g"), CPU).trainees[cell.id].student.state_dict()

    former, seven, plain = cell("former.pth"), cell("seven.pth"), cell()
    assert len({each.id for each in (former, seven, plain)}) == 3
    assert str(tmp_path) not in str(former.identity)  # where the file lies is no part of an id
    assert all(torch.equal(value, built(former)[f"body.{name}"]) for name, value in source.state_dict().items())
    other = built(seven)
    assert not torch.equal(other["body.layer1.0.weight"], built(plain)["body.layer1.0.weight"])
    assert other["body.fc.weight"].shape == (10, 8)  # the file's is of other classes: this one starts anew
    (tmp_path / "former.pth").write_bytes((tmp_path / "seven.pth").read_bytes())
    with pytest.raises(UserError, match=r"is not the file that .* was planned with"):
        built(former)
    with pytest.raises(UserError, match=r"student\.weights: .*does not fit resnet8"):
        tiny(pairs=[{"student": {"type": "resnet8", "weights": str(tmp_path / "seven.pth")}}])


def test_a_dotted_name_may_be_of_a_plain_module(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, classes: int, channels: int = 3) -> None:\n"
        "        super().__init__()\n"
        "        self.first, self.fc = nn.Conv2d(channels, 4, 3), nn.Linear(4, classes)\n"
        "    def forward(self, image):\n"
        "        return self.fc(self.first(image).mean((2, 3)))\n"
    )
    import_plugin(str(tmp_path / "of_mine.py"))
    [cell] = tiny(pairs=[{"student": {"type": "of_mine.Net", "stages": ["first"], "head": "fc"}}], methods=["none"]).cells
    assert cell.id.startswith("digits-net-none-s0-")
