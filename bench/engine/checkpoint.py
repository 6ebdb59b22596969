"""What a training needs to go on: written between epochs, read when it is started again."""

from __future__ import annotations

import io
from typing import Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from bench.engine.loop import Loop
from bench.records.record import Machine


class Saved(BaseModel):
    """What a checkpoint must hold: tensors and plain values only."""

    model_config = ConfigDict(strict=True)

    trainee: dict[str, Any]
    optimizer: dict[str, Any]
    epoch: int = Field(ge=0)  # finished ones, preparation included
    history: list[dict[str, float]]
    clocks: dict[str, float]
    threads: int = Field(ge=1, le=1024)
    source: str | None = None  # whose code it is of, see `bench.records.source`
    machines: list[Machine] = []  # that trained it, in order; none in files of former versions


def state(loop: Loop, cell_id: str) -> dict[str, Any]:
    """The contents of a cell's checkpoint."""
    member = loop.step.members[cell_id]
    return {
        "trainee": member.trainee.state_dict(),
        "optimizer": member.optimizer.state_dict(),
        "epoch": loop.epoch,
        "history": loop.history[cell_id],
        "clocks": dict(loop.seconds),
        "threads": torch.get_num_threads(),
        "source": loop.sources.get(cell_id),
        "machines": [machine.model_dump(mode="json") for machine in loop.machines.get(cell_id, [])],
    }


def restore(loop: Loop, cell_id: str, state: dict[str, Any]) -> None:
    """Have a loop go on from a checkpoint's contents.

    Raises:
        LookupError, TypeError, ValueError, AttributeError, RuntimeError: they do not fit.
    """
    epochs = state["epoch"] - loop.prepare_epochs
    if epochs >= loop.recipe.epochs or len(state["history"]) != max(0, epochs):
        raise ValueError(f"it is of epoch {state['epoch']}, with {len(state['history'])} rows")
    member = loop.step.members[cell_id]
    member.trainee.restore(state["trainee"])
    member.optimizer.load_state_dict(state["optimizer"])
    loop.history[cell_id] = state["history"]
    loop.epoch = state["epoch"]
    loop.iter = loop.epoch * loop.steps
    loop.seconds.update(state["clocks"])


def machines(state: dict[str, Any]) -> list[Machine]:
    """What trained it so far, by a checkpoint's contents: in order, the last one wrote it."""
    return [Machine.model_validate(machine) for machine in state.get("machines", [])]


def pack(state: dict[str, Any]) -> bytes:
    """The contents as a file's bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpack(raw: bytes) -> dict[str, Any] | None:
    """The contents, on the CPU; None where the bytes are intact but no checkpoint of this program."""
    try:
        state = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        Saved.model_validate(state)
    except MemoryError:
        raise
    except Exception:  # torch.load raises whatever it meets
        return None
    return state


def pack_weights(network: nn.Module) -> bytes:
    """A deployed network's weights as safetensors writes them.

    Raises:
        RuntimeError: two of them share memory.
    """
    return safetensors.torch.save({name: value.contiguous() for name, value in network.state_dict().items()})
