"""A network's spec in full: its own arguments, where its features are tapped, and the weights that it starts from."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.data import Shape
from bench.errors import UserError
from bench.models import MODELS, weights
from bench.models.base import SIZES, TAP_KEYS, taps_of
from bench.models.checkpoints import fit_start
from bench.models.tapped import Tapped
from bench.plan.compatibility import forward_shapes
from bench.plan.specs import complete, value_of
from bench.records.cell import Spec
from bench.records.naming import describe
from bench.texts import brief
from bench.user_files import expanded

FROM_HARNESS = tuple(name for names in SIZES for name in names)


def network_spec(spec: Mapping[str, Any], where: str) -> Spec:
    """The spec with every argument of its constructor, and with taps where it is a plain module.

    Keys that a library's network has and our function for it does not, such as timm's `img_size`, go into its `arguments`.

    Raises:
        UserError: see `bench.plan.specs.complete`.
    """
    given = dict(spec)
    builder = MODELS.module_dict.get(str(given.get("type")))
    taps = taps_of(given, builder) if builder else {key: given.pop(key) for key in TAP_KEYS if key in given}
    if builder and "arguments" in (known := inspect.signature(builder).parameters):
        more = {key: given.pop(key) for key in list(given) if key not in known and key != "type"}
        stated = given.get("arguments")
        if more and isinstance(stated, dict | None):
            given["arguments"] = {**(stated or {}), **more}
    full = complete(MODELS, "model", given, where, elsewhere=FROM_HARNESS)
    hints = typing.get_type_hints(Tapped.__init__)
    defaults = {name: each.default for name, each in inspect.signature(Tapped).parameters.items()}
    found = {key: value_of(value, hints[key], f"{where}.{key}") for key, value in taps.items()}
    return full | {key: value for key, value in found.items() if value != defaults[key]}


class WeightFiles:
    """Files of weights that a grid names, each read once."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[dict[str, Tensor], str]] = {}

    def read(self, file: object, where: str) -> tuple[dict[str, Tensor], str]:
        """(tensors by name, SHA-256 of the file).

        Raises:
            UserError: it is no path, or no file of weights.
        """
        if not isinstance(file, str):
            raise UserError(f"{where}.weights: the path of a file, not {brief(file)}")
        try:
            if file not in self._read:
                self._read[file] = weights.read(file)
            return self._read[file]
        except (OSError, ValueError) as error:
            raise UserError(f"{where}.weights: {error}") from None

    def start(self, model: Spec, shape: Shape, file: object, part: object, where: str) -> Spec:
        """What a student's spec gains that starts from a file: its path, its SHA-256, and the part of it, if one is named.

        Raises:
            UserError: the file does not fit the network; its classifier may be of other classes, and is then new.
        """
        if file is None:
            if part is not None:
                raise UserError(f"{where}.part: belongs to a network with weights from a file")
            return {}
        if part is not None and not isinstance(part, str):
            raise UserError(f"{where}.part: a step on the way to the weights in the file, such as student, not {brief(part)}")
        tensors, sha256 = self.read(file, where)
        try:
            fit_start(tensors, forward_shapes(model, shape)[0], model, part)
        except ValueError as error:
            raise UserError(f"{where}.weights: {file} does not fit {describe(model)} on these data: {error}") from None
        path = str(expanded(str(file)))
        return {"weights": path, "weights_sha256": sha256} | ({"part": part} if part else {})
