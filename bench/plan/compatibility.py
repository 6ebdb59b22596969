"""Whether networks, images and methods fit together: found out from shapes alone, before anything is trained."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn import init
from torch.overrides import TorchFunctionMode

from bench.data import Look, Shape, check_recipe
from bench.errors import UserError, defined_at, place_of
from bench.models import MODELS, Network, stored
from bench.models.base import check_output
from bench.records.cell import Spec
from bench.records.naming import model_name
from bench.records.recipe import Recipe
from methods.base import Context, Method, Networks, Output

IMAGENET_CLASSES = 1000  # of torchvision's published classifiers


def pretrained(model: Spec, classes: int) -> bool:
    """Whether the network has published weights with a classifier for this many classes, so that it needs no training."""
    if not model.get("pretrained"):
        return False
    if model["type"] == "timm":
        from timm import get_pretrained_cfg

        return bool(get_pretrained_cfg(model["name"]).num_classes == classes)
    return bool(model["type"] == "torchvision" and classes == IMAGENET_CLASSES)


def forward_shapes(model: Spec, shape: Shape) -> tuple[Network, Output]:
    """The network and its output for two images, on the meta device: no memory, no arithmetic, no published weights.

    A network that needs values while it is built or called runs on the CPU instead.

    Raises:
        UnbuildableError: the model's arguments are wrong.
        ValueError: it cannot take such images.
    """
    spec = json.dumps({**model, "pretrained": False} if "pretrained" in model else model, sort_keys=True)
    return _forward_shapes(spec, *shape[:4])


DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_, init.normal_, init.uniform_, init.trunc_normal_, init.kaiming_uniform_)
SAME_SHAPE = (*DRAWS, F.batch_norm, F.relu)
SUMS = (torch.Tensor.add, torch.Tensor.add_)


class ShapesOnly(TorchFunctionMode):
    """Shortcuts for common functions on the meta device, where torch's own Python code imports its compiler (a second).

    Shapes are right; values do not exist on that device.
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


class UnbuildableError(Exception):
    """A model whose constructor refuses its arguments; the message says why."""


def check_buildable(model: Spec, shape: Shape, where: str) -> None:
    """
    Raises:
        UserError: the network's constructor refuses its arguments.
    """
    try:
        forward_shapes(model, shape)
    except UnbuildableError as error:
        raise UserError(f"{where}: {error}") from None
    except ValueError:
        pass  # it cannot take the images: a reason to skip what needs it


def check_trainable(recipe: Recipe, model: Spec, shape: Shape, look: Look, where: str) -> None:
    """Refuse a recipe that suits neither the images nor the network.

    Args:
        shape: of the images that the network sees.
        look: what was found of the data.

    Raises:
        UserError: see above.
    """
    held_out = round(recipe.validation * shape.samples)
    if recipe.validation and not 0 < held_out < shape.samples:
        amount = "all of them" if held_out else "none"
        raise UserError(f"{where}.validation: {recipe.validation:g} of {shape.samples} training images is {amount}")
    try:
        check_recipe(recipe, look.shape._replace(samples=shape.samples - held_out), look.streamed)
    except ValueError as error:
        raise UserError(f"{where}, {error}") from None
    if recipe.drop_path:
        try:
            copy.deepcopy(forward_shapes(model, shape)[0]).drop_paths(recipe.drop_path)
        except ValueError as error:
            raise UserError(f"{where}.drop_path: {model_name(model)} cannot have it: {error}") from None


@cache
def _forward_shapes(spec: str, channels: int, height: int, width: int, classes: int) -> tuple[Network, Output]:
    for device in ("meta", "cpu"):
        try:
            with ShapesOnly(), torch.device(device):
                network = MODELS.build({**stored(json.loads(spec)), "classes": classes, "channels": channels}).eval()
                images = torch.zeros(2, channels, height, width)
        except Exception as error:  # whatever a plug-in raises
            failure: Exception = UnbuildableError(f"{error}{_own_place(error)}")
            continue
        try:
            with ShapesOnly(), torch.no_grad():
                output = network(images)
        except Exception as error:
            reason = f"({error}{_own_place(error)})"
            failure = ValueError(f"{model_name(json.loads(spec))} cannot take {channels}x{height}x{width} images {reason}")
            continue
        try:
            check_output(output, len(images), classes)
        except ValueError as error:
            place = defined_at(MODELS.get(json.loads(spec)["type"]))
            raise UnbuildableError(f"{error}" + (f" ({place})" if place else "")) from None
        return network, output
    raise failure


def _own_place(error: Exception) -> str:
    """' at mine.py:23', of an error in a user's own file."""
    place = place_of(error, ours=False)
    return f" at {place}" if place else ""


def _of_tokens(model: Spec, output: Output | None) -> str | None:
    """Why a method that needs maps cannot work with this network, or None."""
    if output is None or (output.tokens is None and all(stage.dim() == 4 for stage in output.stages)):
        return None
    return f"works on maps of convolutions, and the stages of {model_name(model)} are tokens"


def refusal(method: Method, student: Spec, teachers: Sequence[Spec], shape: Shape) -> str | None:
    """Why a fresh method cannot be set up with these networks, or None.

    Only a ValueError of `setup` counts. A method that fails otherwise may fail only because there are no values.
    """
    try:
        network_s, output_s = forward_shapes(student, shape)
        taught = [forward_shapes(teacher, shape) for teacher in teachers if method.needs != "none"]
        network_t, output_t = taught[0] if taught else (None, None)
        if method.needs_maps:
            outputs = [(student, output_s), *zip(teachers, (output for _, output in taught), strict=False)]
            if reason := next(filter(None, (_of_tokens(*each) for each in outputs)), None):
                return reason
        with ShapesOnly(), torch.device("meta"):
            targets = torch.zeros(shape.samples, dtype=torch.int64)
            image = (shape.channels, shape.height, shape.width)
            others = taught[1:]
            networks = Networks(network_s, network_t, tuple(network for network, _ in others))
            samples = (shape.classes, shape.samples, 2)
            more = tuple(output for _, output in others)
            method.setup(
                Context(output_s, output_t, *samples, image, targets, networks, lambda number: copy.deepcopy(network_s), more)
            )
    except ValueError as error:
        return str(error)
    except Exception:
        return None
    return None
