"""Files of weights: safetensors, and torch files in whatever form the field saves them. Reading one executes nothing of it."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections import OrderedDict
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from bench.errors import UserError
from bench.user_files import expanded

MOST_BYTES = 16 * 2**30  # of a file, which is read into memory in one piece
MOST_LEVELS = 8  # of containers within containers

NOT_ALLOWED = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")


class _Ignored:
    """Takes the place of what a file holds beside its weights: takes every argument and state, and keeps none."""

    def __new__(cls, *_: object, **__: object) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _no_items(*_: object) -> list[Any]:
    return []


def _no_keys(*_: object) -> dict[Any, Any]:
    return {}


# What checkpoints name beside tensors. Each name stands for one of the four below, never for what it names. Others are refused.
_ALLOWED: dict[Any, tuple[str, ...]] = {
    _Ignored: (
        "argparse.Namespace",
        "types.SimpleNamespace",
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        "numpy.ndarray",
        "numpy.dtype",
        *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
        *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
        *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
        *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str", "tuple")),  # as values, such as types
        "torch.torch_version.TorchVersion",
        "mmengine.logging.history_buffer.HistoryBuffer",
    ),
    OrderedDict: (  # subclasses of dict, which torch fills only under this type
        "yacs.config.CfgNode",
        "fvcore.common.config.CfgNode",
        "easydict.EasyDict",
        "addict.addict.Dict",
        "mmcv.utils.config.ConfigDict",
        "mmengine.config.config.ConfigDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
    ),
    _no_items: ("collections.deque",),
    _no_keys: ("collections.defaultdict",),
}
_STAND_INS: list[Any] = [(stand_in, name) for stand_in, names in _ALLOWED.items() for name in names]


def read(file: str) -> tuple[dict[str, Tensor], str]:
    """(every tensor in the file, SHA-256 of the file), on the CPU.

    A tensor's name is the path to it, joined by dots: "model.conv1.weight" where the key "model" holds "conv1.weight".
    `bench.models.checkpoints.fit` finds a network's weights among them.

    Raises:
        OSError: there is no such file.
        ValueError: it is neither safetensors nor a torch file of weights, or larger than 16 GiB.
    """
    path = expanded(file)
    if path.exists() and not path.is_file():  # a device has no end
        raise ValueError(f"'{file}' is not a file")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{file} is larger than {MOST_BYTES // 2**30} GiB")
    raw = path.read_bytes()
    return _parse(raw, file), hashlib.sha256(raw).hexdigest()


def _parse(raw: bytes, file: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(raw)
    except safetensors.SafetensorError:
        pass
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings(action="ignore"):
            content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, where the file is none of torch's
        refused = NOT_ALLOWED.search(str(error))
        reason = f": it names {refused[1]}, and only a state_dict is read, not objects of a program" if refused else ""
        raise ValueError(f"{file} is neither safetensors nor a torch file of tensors{reason}") from None
    found = _tensors(content)
    if not found:
        raise ValueError(f"{file} holds no tensors by name")
    return found


def _tensors(content: object) -> dict[str, Tensor]:
    """The dense tensors in nested containers, by their paths; each container counts once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()

    def collect(value: object, path: tuple[str, ...]) -> None:
        if isinstance(value, Tensor):
            if path and value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized:
                found[".".join(path)] = value.detach()
        elif isinstance(value, dict | list | tuple) and id(value) not in seen and len(path) < MOST_LEVELS:
            seen.add(id(value))
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                collect(inner, (*path, str(key)))

    collect(content, ())
    return found


def unpacked(raw: bytes, whose: str) -> dict[str, Tensor]:
    """Tensors by name, out of a finished cell's weights.

    Raises:
        UserError: they are no safetensors; that their digest is right does not make them so.
    """
    try:
        return safetensors.torch.load(raw)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{whose}: its weights are no safetensors: {error}") from None
