"""Where trained networks look: Grad-CAM++ maps of test images. Needs the optional package grad-cam."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from bench.data import Dataset, Split, evaluation_batches, load
from bench.errors import UserError
from bench.models import MODELS, Network, stored
from bench.records.cell import Cell
from bench.records.naming import describe
from bench.records.store import Store


class Look(NamedTuple):
    """Where one network looks."""

    title: str
    said: list[str]  # the class that it names for each image
    maps: np.ndarray  # (N, H, W) in [0, 1]: what speaks for the image's own class


class Looks(NamedTuple):
    images: np.ndarray  # (N, H, W, 3) in [0, 1]
    classes: list[str]  # their labels
    networks: list[Look]


class Logits(nn.Module):
    """A network as other libraries expect one."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image).logits


def look(cells: list[tuple[str, str]], positions: list[int], store: Store, data_root: str | None = None) -> Looks:
    """Grad-CAM++ (Chattopadhyay et al., WACV 2018) at the last stage, for the images' true classes, on the CPU.

    Args:
        cells: (grid, id) of finished ones, trained on the same data.
        positions: of the images in the test set.

    Raises:
        UserError: grad-cam is not installed, a cell is not finished, its network is not the plain student or has no stages, the
            data differ or are not there, or the test set has no image at a position.
    """
    try:
        from pytorch_grad_cam import GradCAMPlusPlus
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError:
        raise UserError("maps need the package grad-cam: pip install 'distillation-bench[gradcam]'") from None
    records = [store.record(*place) for place in cells]
    for (_, cell_id), record in zip(cells, records, strict=True):
        if record is None:
            raise UserError(f"{cell_id} is not finished")
    first, *others = [record.cell for record in records if record]
    for other in others:
        if other.identity["data"] != first.identity["data"]:
            raise UserError(f"{cells[0][1]} and {other.id} were trained on different data")
    dataset, images, targets = _images(first, positions, data_root)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (dataset.mean, dataset.std))
    networks = []
    for (grid, _), record in zip(cells, records, strict=True):
        assert record is not None
        network = _network(record.cell, dataset, store.weights(grid, record))
        wanted = [ClassifierOutputTarget(int(target)) for target in targets]
        last = network.last_activation  # a network calls its stages' parts, hence a hook on a whole stage never fires
        with GradCAMPlusPlus(model=Logits(network), target_layers=[last]) as cam:
            maps = cam(input_tensor=images, targets=wanted)
        with torch.no_grad():
            said = [dataset.class_names[int(k)] for k in network(images).logits.argmax(1)]
        title = f"{record.cell.label}, {describe(record.cell.student)}, seed {record.cell.seed}"
        networks.append(Look(title, said, maps))
    seen = (images * std + mean).clamp(0, 1).expand(-1, 3, -1, -1)
    return Looks(seen.permute(0, 2, 3, 1).numpy(), [dataset.class_names[int(t)] for t in targets], networks)


def _images(cell: Cell, positions: list[int], data_root: str | None) -> tuple[Dataset, Tensor, Tensor]:
    """The data set, and these of its test images, normalised, with their labels."""
    try:
        dataset = load(cell.data, data_root)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(str(error)) from None
    count = len(dataset.test.targets)
    for position in positions:
        if not 0 <= position < count:
            raise UserError(f"--images: there is no test image {position}; there are 0 to {count - 1}")
    at = torch.tensor(positions)
    chosen = Split(dataset.test.images[at], dataset.test.targets[at])
    size = cell.recipe.image_size
    [(images, targets)] = evaluation_batches(chosen, dataset, torch.device("cpu"), batch_size=len(at), image_size=size)
    return dataset, images, targets


def _network(cell: Cell, dataset: Dataset, weights: bytes) -> Network:
    spec: dict[str, Any] = {**stored(cell.student), "classes": dataset.classes, "channels": dataset.channels}
    network = MODELS.build({**spec, "pretrained": False} if "pretrained" in spec else spec).eval()
    if not len(network.blocks):
        raise UserError(f"{cell.id}: {describe(cell.student)} has no stages that could be looked into")
    try:
        network.load_state_dict(safetensors.torch.load(weights))
    except RuntimeError:
        raise UserError(f"{cell.id}: what {cell.label} deploys is not the plain student") from None
    return network
