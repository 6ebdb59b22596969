"""Which cells may train in lock-step: on one stream of batches, with one forward pass of each teacher.

Cells of one seed see the same images in the same order, whatever their method. What each computes is the same as when it trains
alone, bit for bit on a CPU, as long as nobody draws random numbers while others do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache

import torch

from bench.models import MODELS, stored
from bench.records.cell import Cell, digest
from methods import METHODS
from methods.base import Method


def alone_because(cell: Cell) -> str | None:
    """Why a cell trains by itself, or None."""
    method = _method(cell)
    if method.draws_random:
        return "its method draws random numbers"
    if cell.recipe.dropout or cell.recipe.drop_path:
        return f"its recipe has {'dropout' if cell.recipe.dropout else 'drop_path'}, which draws random numbers"
    if _network_draws(json.dumps(cell.student)):
        return "its network draws random numbers"
    if method.prepare_epochs:
        return "its method has a preparation phase"
    return None


def companions(cell: Cell, others: Iterable[Cell]) -> list[Cell]:
    """Those of `others` that may train in lock-step with `cell`."""
    if alone_because(cell):
        return []
    return [other for other in others if other.id != cell.id and not alone_because(other) and _stream(other) == _stream(cell)]


def _stream(cell: Cell) -> str:
    """Equal for cells that see the same batches."""
    shared = {name: cell.identity[name] for name in ("data", "recipe", "seed", "precision", "protocol")}
    return digest(shared | {"partner": _method(cell).partner})


def _method(cell: Cell) -> Method:
    """An instance, for its attributes alone."""
    return _built(json.dumps(cell.method))


@cache
def _network_draws(spec: str) -> bool:
    """Whether a network drops anything by itself, as some of timm's and of the users' own do."""
    model = {**stored(json.loads(spec)), "classes": 2, "channels": 3}
    try:
        with torch.device("meta"):
            network = MODELS.build({**model, "pretrained": False} if "pretrained" in model else model)
    except Exception:  # it is refused elsewhere, or needs values while it is built
        return False
    dropping = [module for module in network.modules() if re.search("Drop|StochasticDepth", type(module).__name__)]
    return any(getattr(module, name, 0) > 0 for module in dropping for name in ("p", "drop_prob"))


@cache
def _built(spec: str) -> Method:
    return METHODS.build(json.loads(spec))
