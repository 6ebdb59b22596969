"""Weights from the user's files: safetensors, or torch files that hold nothing but tensors."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

WRAPPERS = ("model", "state_dict")  # keys under which common checkpoints keep the weights


def read(file: str) -> tuple[dict[str, Tensor], str]:
    """(tensors by name, SHA-256 of the file), on the CPU.

    Raises:
        OSError: there is no such file.
        ValueError: it is neither safetensors nor a torch file of plain tensors.
    """
    raw = Path(file).expanduser().read_bytes()
    return _parse(raw, file), hashlib.sha256(raw).hexdigest()


def _parse(raw: bytes, file: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(raw)
    except safetensors.SafetensorError:
        pass
    try:
        found = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception:  # of many kinds, where torch did not write the file
        raise ValueError(f"{file} is neither safetensors nor a torch file that holds nothing but tensors") from None
    for key in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{file} holds no tensors by name, neither at the top nor under {' or '.join(WRAPPERS)}")
    return found
