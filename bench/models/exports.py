"""A finished network's weights as other code reads them."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from bench.errors import UserError
from bench.models.base import MODELS, stored
from bench.models.field_names import published
from bench.models.weights import unpacked
from bench.records import files
from bench.records.cell_folder import CellFolder
from bench.texts import brief


def write_repdistiller(cell: CellFolder, target: Path) -> Path:
    """Write a checkpoint as RepDistiller saves it and mdistiller reads it; of a library's network, with that library's names.

    Raises:
        UserError: the cell is not finished, its files are damaged, or its network has no counterpart there.
        OSError: the file cannot be written.
    """
    record, raw = cell.finished_weights()
    weights, model = unpacked(raw, cell.id), stored(record.cell.student)
    if model["type"] not in MODELS.module_dict:  # a record is data: nothing that it names is imported
        raise UserError(f"{cell.id}: the network {brief(model['type'])} has no counterpart there")
    try:
        first = next(tensor for tensor in weights.values() if tensor.ndim == 4)
        shape = {"classes": len(weights["classifier.weight"]), "channels": first.shape[1]}
        with torch.device("meta"):
            network = MODELS.build({**model, **({"pretrained": False} if "pretrained" in model else {}), **shape})
        names = published(model, network)
        state = {names[name]: tensor for name, tensor in network.own_names(weights).items()}
    except (KeyError, StopIteration):
        raise UserError(f"{cell.id}: what its method deploys is not the plain network") from None
    except (ValueError, TypeError, ImportError, RuntimeError, MemoryError) as error:
        raise UserError(f"{cell.id}: {error}") from None
    content = {"epoch": record.epochs, "model": state, "best_acc": record.accuracies.best_test.top1}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    cell.check_target(target)
    files.write(target, buffer.getvalue())
    return target
