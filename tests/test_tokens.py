"""Networks of tokens, through timm: their features, which methods can use them, and TFD's ablation on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bench.engine.folding import folded
from bench.engine.train import train
from bench.models import MODELS
from bench.records.folders import ResultsFolder
from bench.records.options import Options
from methods import METHODS
from methods.base import Batch, Context, Output
from methods.tfd import normalized

library = pytest.importorskip("timm")

SMALL_VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 2}
VIT = {"type": "timm", "name": "deit_tiny_patch16_224", "arguments": SMALL_VIT}
GRIDS = {  # channels and side of the stages, channels of the stem, special tokens a stage; None: maps of convolutions
    "deit_tiny_patch16_224": ([(192, 14)] * 4, 192, 1),
    "swin_tiny_patch4_window7_224": ([(96, 56), (192, 28), (384, 14), (768, 7)], 96, 0),
    "mixer_b16_224": ([(768, 14)] * 4, 768, 0),
    "convnext_tiny": ([(96, 56), (192, 28), (384, 14), (768, 7)], 96, None),
    "pit_ti_224": ([(64, 27), (128, 14), (256, 7)], 64, 0),
}


@pytest.mark.parametrize("name", GRIDS)
def test_networks_of_timm_answer_as_there(name):
    stages, stem, special = GRIDS[name]
    torch.manual_seed(0)
    original = library.create_model(name, num_classes=10).eval()
    torch.manual_seed(0)
    network = MODELS.build({"type": "timm", "name": name, "classes": 10}).eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        out = network(image)
        assert torch.equal(out.logits, original(image))
        assert torch.equal(out.logits, network.classifier(out.embedding))
    assert [tuple(stage.shape[1:]) for stage in out.stages] == [(channels, side, side) for channels, side in stages]
    assert out.stem.shape[1] == stem
    found = None if special is None else [(1, special, channels) for channels, _ in stages]
    assert (out.tokens and [tuple(token.shape) for token in out.tokens]) == found


def test_grids_and_special_tokens_are_those_of_the_blocks():
    torch.manual_seed(0)
    network = MODELS.build({**VIT, "classes": 10, "channels": 1}).eval()
    seen: list[torch.Tensor] = []
    for block in network.body.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        out = network(torch.randn(2, 1, 16, 16))
    assert out.tokens is not None
    for tokens, grid, special in zip(seen, out.stages, out.tokens, strict=True):
        assert torch.equal(torch.cat([special, grid.flatten(2).transpose(1, 2)], 1), tokens)


def test_arguments_that_a_network_does_not_have_are_named():
    with pytest.raises(ValueError, match=r"timm's 'resnet18' does not take \{'img_size': 32\}"):
        MODELS.build({"type": "timm", "name": "resnet18", "classes": 10, "arguments": {"img_size": 32}})


def test_a_frozen_transformer_answers_alike():
    torch.manual_seed(0)
    network = MODELS.build({**VIT, "classes": 10}).eval()
    image = torch.randn(2, 3, 16, 16)
    out, again = network(image), folded(network, image, torch.float32)(image)
    torch.testing.assert_close(again.logits, out.logits)
    assert again.tokens is not None
    torch.testing.assert_close(again.tokens[-1], out.tokens[-1])


# Which methods can use them

CNN_ONLY = "ab at byot cd frskd fsp ft mixskd nst ofd one reviewkd sdd simkd tfd tffd vid zipf_ls"


def skipped(tiny, methods: list, student, teacher="resnet8") -> dict[str, str]:
    grid = tiny(
        data="digits",
        recipe={"name": "digits", "epochs": 1, "crop": "resized", "image_size": 16},
        methods=methods,
        pairs=[{"student": student, "teacher": teacher}],
    )
    return {skip.what.partition(" on ")[0]: skip.reason for skip in grid.skipped}


def test_methods_that_need_maps_are_skipped_on_tokens_with_the_reason(tiny):
    reason = "works on maps of convolutions, and the stages of deit_tiny_patch16_224 are tokens"
    found = skipped(tiny, ["none", "at", "tfd", "tfd+kd", "kd", "rkd", "sp", "fitnets", "srd"], VIT)
    assert found == {"at": reason, "tfd": reason, "tfd+kd": reason}
    found = skipped(tiny, ["none", "at", "tfd", "kd"], "resnet8", VIT)
    assert found == {"at": reason}  # tfd has no teacher
    assert skipped(tiny, [{"tfd": {"normalize": "layer"}}, "none"], VIT) == {}


def test_every_method_states_whether_it_needs_maps():
    """Those that read stages and are refused on tokens; the rest works on tokens or reads no stage."""
    needing = {key for key, method in METHODS.module_dict.items() if METHODS.build({"type": key, **method.example}).needs_maps}
    assert needing == {*CNN_ONLY.split(), "sum"}  # the example of `sum` has a tfd
    torch.manual_seed(0)
    student, teacher = (MODELS.build({**VIT, "classes": 4}) for _ in range(2))
    image = torch.randn(4, 3, 16, 16)
    for key in ("fitnets", "sp", "ofa", "uskd", "kd", "rkd", "pkt"):
        method = METHODS.build({"type": key, **METHODS.get(key).example})
        networks = None
        method.setup(Context(student(image), teacher(image), 4, 4, 4, (3, 16, 16), torch.arange(4), networks))
        terms = method.loss(student(image), teacher(image), Batch(image, torch.arange(4), torch.arange(4)))
        assert all(term.isfinite() for term in terms.values()), key


# TFD on tokens


def by_hand(stages: list[np.ndarray], how: str) -> float:
    """1 / m times the sum over pairs of the mean of squared differences of normalized positions; grids of one size."""

    def normalized(grid: np.ndarray) -> np.ndarray:
        positions = np.moveaxis(grid, 1, -1)
        if how == "unit":
            return positions / np.linalg.norm(positions, axis=-1, keepdims=True)
        centered = positions - positions.mean(-1, keepdims=True)
        return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)

    pairs = [(a, b) for i, a in enumerate(stages) for b in stages[i + 1 :]]
    return float(np.mean([((normalized(a) - normalized(b)) ** 2).mean() for a, b in pairs]))


@pytest.mark.parametrize("how", ["layer", "unit"])
def test_tfd_normalizes_each_position(how):
    draws = torch.Generator().manual_seed(0)
    stages = tuple(torch.randn(2, 6, 3, 3, generator=draws, dtype=torch.float64) * 10**i for i in range(3))
    output = Output(torch.zeros(2, 4), torch.zeros(2, 6), stages, stages, stages[0])
    batch = Batch(torch.zeros(2, 3, 6, 6), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    term = METHODS.build({"type": "tfd", "weight": 2.0, "normalize": how}).terms(output, batch)["tfd"]
    assert float(term) == pytest.approx(2 * by_hand([stage.numpy() for stage in stages], how), rel=1e-9)
    scaled = normalized(stages[0], how)
    torch.testing.assert_close(normalized(1000 * stages[0], how), scaled, rtol=1e-3, atol=1e-5)
    if how == "layer":
        torch.testing.assert_close(scaled, nn.functional.layer_norm(stages[0].movedim(1, -1), (6,), eps=1e-6).movedim(-1, 1))


def test_a_small_transformer_trains(tiny, tmp_path):
    grid = tiny(
        data={"type": "digits", "train_images": 32, "test_images": 20},
        recipe={"name": "digits", "epochs": 1, "batch_size": 16, "crop": "resized", "image_size": 16},
        methods=["none", {"tfd": {"normalize": "layer", "weight": 1.0}}, "ofa"],
        pairs=[{"student": VIT, "teacher": "resnet8"}],
    )
    assert grid.skipped == []
    folder = ResultsFolder(tmp_path).grid(grid.name)
    records = [train([cell], folder, Options(device="cpu", threads=1))[0] for cell in grid.cells]
    assert len({record.weights_sha256 for record in records}) == 4  # a teacher and three students
