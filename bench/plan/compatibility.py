"""Whether networks, images and methods fit together, found out on shapes alone, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn import init
from torch.overrides import TorchFunctionMode

from bench.data import Shape
from bench.models import MODELS, Network, stored
from bench.records.cell import Spec
from bench.records.naming import model_name
from methods.base import Context, Method, Networks, Output


def pretrained(model: Spec, classes: int) -> bool:
    """Whether the network comes with published weights whose classifier has this many classes, hence can teach as it is."""
    if not model.get("pretrained"):
        return False
    if model["type"] == "timm":
        from timm import get_pretrained_cfg

        return bool(get_pretrained_cfg(model["name"]).num_classes == classes)
    return bool(model["type"] == "torchvision" and classes == 1000)


def answer(model: Spec, shape: Shape) -> tuple[Network, Output]:
    """The network and what it answers to two images, on the meta device: neither memory nor arithmetic, nor published weights.

    What needs values while it is built or asked is built and asked on the CPU instead.

    Raises:
        Unbuildable: the model's arguments are wrong.
        ValueError: it cannot take such images.
    """
    spec = json.dumps({**model, "pretrained": False} if "pretrained" in model else model, sort_keys=True)
    return _answer(spec, *shape[:4])


DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_, init.normal_, init.uniform_, init.trunc_normal_, init.kaiming_uniform_)
SAME_SHAPE = (*DRAWS, F.batch_norm, F.relu)
SUMS = (torch.Tensor.add, torch.Tensor.add_)


class ShapesAlone(TorchFunctionMode):
    """On the meta device, spares networks what torch does in Python there, for which it imports its compiler (a second).

    Shapes are as they would be; values do not exist there.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        if isinstance(tensor, torch.Tensor) and tensor.is_meta:
            if func in SAME_SHAPE or (func in SUMS and getattr(args[1], "shape", None) == tensor.shape):
                return tensor
            if func is F.linear:
                return tensor.new_empty(*tensor.shape[:-1], len(args[1]))
            if func is F.adaptive_avg_pool2d and args[1] == 1:
                return tensor[..., :1, :1]
        return func(*args, **kwargs)


class Unbuildable(Exception):  # noqa: N818
    """A model whose constructor refuses its arguments; the message says why."""


@cache
def _answer(spec: str, channels: int, height: int, width: int, classes: int) -> tuple[Network, Output]:
    for device in ("meta", "cpu"):
        try:
            with ShapesAlone(), torch.device(device):
                network = MODELS.build({**stored(json.loads(spec)), "classes": classes, "channels": channels}).eval()
                images = torch.zeros(2, channels, height, width)
        except Exception as error:  # whatever a plug-in raises
            failure: Exception = Unbuildable(str(error))
            continue
        try:
            with ShapesAlone(), torch.no_grad():
                return network, network(images)
        except Exception as error:
            failure = ValueError(f"{model_name(json.loads(spec))} cannot take {channels}x{height}x{width} images ({error})")
    raise failure


def refusal(method: Method, student: Spec, teacher: Spec | None, shape: Shape) -> str | None:
    """Why a fresh method cannot be set up with these networks, or None.

    Only what `setup` refuses by a ValueError counts: one that fails because there are no values may work with them.
    """
    try:
        network_s, output_s = answer(student, shape)
        network_t, output_t = answer(teacher, shape) if teacher and method.needs != "none" else (None, None)
        with ShapesAlone(), torch.device("meta"):
            targets = torch.zeros(shape.samples, dtype=torch.int64)
            image = (shape.channels, shape.height, shape.width)
            networks = Networks(network_s, network_t)
            method.setup(Context(output_s, output_t, shape.classes, shape.samples, 2, image, targets, networks))
    except ValueError as error:
        return str(error)
    except Exception:
        return None
    return None


def differences(found: Mapping[str, Any], network: Network) -> str | None:
    """How these weights differ in name or shape from the network's, in a line; None where they fit."""
    expected, found = network.state_dict(), network.own_names(found)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    classifier = shapes.get("classifier.weight", ())
    if classifier and len(classifier) == 2 and classifier[0] != network.classifier.out_features:
        return f"its classifier is of {classifier[0]} classes, the data have {network.classifier.out_features}"
    told = [f"it lacks {name}" for name in expected if name not in shapes]
    told += [f"it has {name} besides" for name in shapes if name not in expected]
    told += [
        f"its {name} is of shape {shapes[name]}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in shapes and shapes[name] != tuple(tensor.shape)
    ]
    more = f"; and {len(told) - 3} more" if len(told) > 3 else ""
    return "; ".join(told[:3]) + more if told else None
