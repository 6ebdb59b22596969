"""What trained networks look at: Grad-CAM++ maps of test images. Needs the optional package grad-cam."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.data import DATASETS, Dataset, Split, evaluation_batches, load
from bench.errors import UserError, place_of
from bench.models import MODELS, Network, stored
from bench.models.weights import unpacked
from bench.plan.specs import check_recorded
from bench.records.cell import Cell
from bench.records.cell_folder import CellFolder
from bench.records.naming import describe


class Look(NamedTuple):
    """What one network looks at."""

    title: str
    predicted: list[str]  # class names of the N images
    maps: np.ndarray  # (N, H, W) in [0, 1]: how much each pixel counts for the image's own class


class Looks(NamedTuple):
    """N images, and what several networks look at in them."""

    images: np.ndarray  # (N, H, W, 3) in [0, 1]
    classes: list[str]  # their labels
    networks: list[Look]


class Logits(nn.Module):
    """A network that returns logits alone, as other libraries expect."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image).logits


def look(cells: list[CellFolder], positions: list[int], data_root: str | None = None) -> Looks:
    """Grad-CAM++ (Chattopadhyay et al., WACV 2018) at the last stage, for the images' true classes, on the CPU.

    Args:
        cells: finished ones, trained on the same data.
        positions: of the images in the test set, from 0.
        data_root: the folder that holds the data set.

    Raises:
        UserError: grad-cam is not installed; a cell is not finished, was trained on other data, or deploys another network than
            the plain student; its network has no stages; the data are missing; or the test set has no image at a position.
    """
    try:
        from pytorch_grad_cam import GradCAMPlusPlus
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError:
        raise UserError("maps need the package grad-cam: pip install 'distillation-bench[gradcam]'") from None
    found = [cell.finished_weights() for cell in cells]
    records = [record for record, _ in found]
    first = records[0].cell
    for record in records:
        if record.cell.identity["data"] != first.identity["data"]:
            raise UserError(f"{first.id} and {record.id} were trained on different data")
        check_recorded(DATASETS, "data set", record.cell.data, record.id)
        check_recorded(MODELS, "model", record.cell.student, record.id)
    dataset, images, targets = _images(first, positions, data_root)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (dataset.mean, dataset.std))
    networks = []
    for record, weights in found:
        network = _network(record.cell, dataset, weights)
        wanted = [ClassifierOutputTarget(int(target)) for target in targets]
        last = network.last_activation  # a network calls its stages' parts, so that a hook on a stage never runs
        with GradCAMPlusPlus(model=Logits(network), target_layers=[last]) as cam:
            maps = cam(input_tensor=images, targets=wanted)
        with torch.no_grad():
            predicted = [dataset.class_names[int(k)] for k in network(images).logits.argmax(1)]
        title = f"{record.cell.label}, {describe(record.cell.student)}, seed {record.cell.seed}"
        networks.append(Look(title, predicted, maps))
    seen = (images * std + mean).clamp(0, 1).expand(-1, 3, -1, -1)
    return Looks(seen.permute(0, 2, 3, 1).numpy(), [dataset.class_names[int(t)] for t in targets], networks)


def _images(cell: Cell, positions: list[int], data_root: str | None) -> tuple[Dataset, Tensor, Tensor]:
    """The data set, and the test images at these positions, normalized, with their labels."""
    try:
        dataset = load(cell.data, data_root)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
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
    spec["images"] = (dataset.mean, dataset.std)
    try:
        network = MODELS.build({**spec, "pretrained": False} if "pretrained" in spec else spec).eval()
    except Exception as error:  # whatever a spec makes a network do that this version has not planned
        at = place_of(error, ours=False)
        why = f"{type(error).__name__}: {error}" + (f" ({at})" if at else "")
        raise UserError(f"{cell.id}: {describe(cell.student)} cannot be built: {why}") from None
    if not len(network.blocks):
        raise UserError(f"{cell.id}: {describe(cell.student)} has no stages to look into")
    try:
        network.load_state_dict(unpacked(weights, cell.id))
    except RuntimeError:
        raise UserError(f"{cell.id}: what {cell.label} deploys is not the plain student") from None
    return network
