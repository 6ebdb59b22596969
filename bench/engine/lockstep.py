"""Which cells may train in lock-step: at one learning rate and epoch, with one forward pass of each teacher.

Cells of one seed see the same images in the same order, whatever their method; those of other seeds or other partners have
streams of batches of their own. What each computes is the same as when it trains alone, bit for bit on a CPU, as long as one
cell of a group at most draws random numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache

import torch

from bench.models import MODELS, stored
from bench.records.cell import Cell, digest
from methods import METHODS
from methods.base import Method


def alone_because(cell: Cell) -> str | None:
    """Why a cell trains by itself, or None."""
    return "its method has a preparation phase" if _method(cell).prepare_epochs else None


def draws(cell: Cell) -> bool:
    """Whether its steps draw random numbers: its method, its recipe's dropout or drop path, or its network by itself."""
    recipe = cell.recipe
    return _method(cell).draws_random or recipe.dropout > 0 or recipe.drop_path > 0 or _network_draws(json.dumps(cell.student))


def may_join(group: Sequence[Cell], other: Cell, several_streams: bool = False) -> bool:
    """Whether a cell may train in lock-step with these.

    Args:
        several_streams: whether it may see other batches than they do, of another seed or with another kind of partner. Worth
            it on a GPU, where steps overlap.
    """
    first = group[0]
    if other.id in [cell.id for cell in group] or alone_because(first) or alone_because(other):
        return False
    if draws(other) and any(draws(cell) for cell in group):
        return False
    return _shared(first) == _shared(other) and (several_streams or _stream(first) == _stream(other))


def _shared(cell: Cell) -> str:
    """Equal for cells whose steps fit together."""
    return digest({name: cell.identity[name] for name in ("data", "recipe", "precision", "protocol")})


def _stream(cell: Cell) -> tuple[int, str | None]:
    """Equal for cells that see the same batches, of those whose steps fit together."""
    return cell.seed, _method(cell).partner


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
