"""A cell is one training: what exactly is trained, on what, how. Equal cells have equal ids, on every machine.

No torch here: the registries' defaults are filled in by `bench.plan.expand`, which builds the cells.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, model_validator

from bench.records.frozen import Frozen, marked
from bench.records.naming import data_name, method_family, model_name
from bench.records.recipe import Recipe

PROTOCOL = 1  # raised when the engine's arithmetic changes, so that old results are not mixed with new ones

Spec = dict[str, Any]  # {"type": registry key, **every argument}


class Teacher(Frozen):
    """Where a cell's teacher comes from: another cell, a file with weights, or the library that its model is from.

    A field that is added later and changes what the teacher answers carries `json_schema_extra={"changes_answer": True}`: off
    its default it is part of the identity.
    """

    cell: str | None = None  # its id
    model: Spec
    weights_sha256: str | None = None  # of the file; at most one of `cell` and this is set
    weights: str | None = None  # path of the file; neither it nor the two below are part of the identity
    train_s: float | None = Field(None, ge=0)  # what training it took, as the user states it
    train_flops: float | None = Field(None, ge=0)
    part: str | None = Field(None, json_schema_extra={"changes_answer": True})  # of a file with the weights of several networks
    others: tuple[Teacher, ...] = ()  # that teach beside it; they have no others

    @property
    def identity(self) -> str | Spec:
        """Of a cell its digest, of a file its SHA-256; a model with published weights stands for itself."""
        digest_of_cell = self.cell.rpartition("-")[2] if self.cell else None  # without its readable part
        answer = self._with_changes(digest_of_cell or self.weights_sha256 or self.model)
        return {"source": answer, "others": [each.identity for each in self.others]} if self.others else answer

    @property
    def cost_identity(self) -> str | Spec:
        """What decides how long its forward pass takes."""
        started = ("weights", "weights_sha256")
        model = {key: value for key, value in self.model.items() if key not in started}
        answer = self.model_copy(update={"part": None})._with_changes(model)
        return {"source": answer, "others": [each.cost_identity for each in self.others]} if self.others else answer

    @property
    def each(self) -> tuple[Teacher, ...]:
        """It and the others, one by one."""
        return (self.model_copy(update={"others": ()}), *self.others)

    def _with_changes(self, source: str | Spec) -> str | Spec:
        changes = {name for name, at_default in marked(self, "changes_answer").items() if not at_default}
        answer = self.model_dump(mode="json", include=changes)
        if source == self.weights_sha256:  # a file holds weights alone
            answer |= {key: self.model[key] for key in ("taps", "normalize", "image_size") if key in self.model}
        return {"source": source, **answer} if answer else source


class Cell(Frozen):
    """One training. Its id is computed once: a plan of 20,000 cells asks for each a dozen times.

    Raises:
        ValueError: a teacher beside a method that needs none.
    """

    data: Spec  # {"type": ..., "digest": of the user's own data or None, "name": how ids name them, "train_images": ..., ...}
    student: Spec
    teacher: Teacher | None
    method: Spec  # every argument, defaults included
    method_version: int
    recipe: Recipe
    seed: int = Field(ge=0)
    precision: Literal["bf16", "fp32"]
    protocol: int = PROTOCOL
    # What follows is no part of the identity.
    needs: Literal["none", "teacher", "self"] = "none"  # what the method needs
    label: str = ""  # of the method, as the grid names it
    added_later: dict[str, Any] = {}  # newer arguments with their defaults: "gamma" of the method, "parts.0.gamma" of a part,
    # "student:taps" of the student, likewise "teacher:" and "data:"

    @model_validator(mode="after")
    def _no_idle_teacher(self) -> Cell:
        if self.teacher and self.needs == "none":
            raise ValueError(f"{method_family(self.method)} needs no teacher, so a cell with it has none")
        return self

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """All that teach it, one by one."""
        return self.teacher.each if self.teacher else ()

    @property
    def waits_for(self) -> tuple[str, ...]:
        """Ids of the cells that train its teachers."""
        return tuple(teacher.cell for teacher in self.teachers if teacher.cell)

    def by_teacher(self) -> list[Cell]:
        """This cell once with each of its teachers, as if that one taught alone."""
        return [self.model_copy(update={"teacher": teacher}) for teacher in self.teachers]

    @property
    def identity(self) -> dict[str, Any]:
        """What makes this cell this cell, as plain JSON values: what is listed here and nothing else."""
        older = self._without_added_later()
        return {
            "data": {key: value for key, value in older["data"].items() if key not in ("path", "name")},  # the digest counts
            "student": {key: value for key, value in older["student"].items() if key != "weights"},  # the file's digest counts
            "teacher": older["teacher"] and older["teacher"].identity,
            "method": older["method"],
            "method_version": self.method_version,
            "recipe": self.recipe.identity,
            "seed": self.seed,
            "precision": self.precision,
            "protocol": self.protocol,
        }

    def _without_added_later(self) -> dict[str, Any]:
        """Data, student, teacher and method, without the arguments added later that have their defaults."""
        specs: dict[str, Spec] = {"data": self.data, "student": self.student, "method": self.method}
        if self.teacher:
            specs["teacher"] = self.teacher.model
        specs = copy.deepcopy(specs)
        for path, default in self.added_later.items():
            place, _, argument = path.rpartition(":")
            *inner, name = argument.split(".")
            spec: Any = specs[place or "method"]
            for step in inner:
                spec = spec[int(step) if isinstance(spec, list) else step]
            if name in spec and spec[name] == default:
                del spec[name]
        return {**specs, "teacher": self.teacher and self.teacher.model_copy(update={"model": specs["teacher"]})}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Cell:
        """See pydantic; the copy computes its own id, since `update` may change it."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("id", "cost_key"):
            copied.__dict__.pop(name, None)
        return copied

    @cached_property
    def id(self) -> str:
        """Readable prefix and 12 hexadecimal digits of SHA-256 over canonical JSON; safe as a file name on every system."""
        readable = "-".join([data_name(self.data), model_name(self.student), method_family(self.method), f"s{self.seed}"])
        return f"{safe(readable)}-{digest(self.identity)[:12]}"

    @cached_property
    def cost_key(self) -> str:
        """Same for all cells whose training steps cost the same: everything but seed and teacher's training."""
        teacher = self._without_added_later()["teacher"]
        return digest(self.identity | {"seed": None, "teacher": teacher and teacher.cost_identity})[:16]


def digest(value: Any) -> str:
    """SHA-256 of canonical JSON: keys sorted, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seed_from(*parts: Any) -> int:
    """A generator's seed, in [0, 2^60), from any JSON values; different uses get unrelated seeds."""
    return int(digest(parts)[:15], 16)


def safe(name: str) -> str:
    """Lower case, only letters, digits, '_', '+', '.' and '-', at most 80 characters."""
    return re.sub(r"[^a-z0-9_+.-]+", "-", name.lower()).strip(".-")[:80]


def named_after(text: str) -> str:
    """The name of a grid whose file is called so; the text itself where it holds a path or nothing that a name can hold."""
    return text if "/" in text else safe(text) or text


def is_safe(name: str) -> bool:
    """Whether a name can be that of a grid's or a cell's folder: an id is a name of `safe` and its digest."""
    return re.fullmatch(r"[a-z0-9_+][a-z0-9_+.-]{0,119}", name) is not None


def is_id(name: str) -> bool:
    """Whether a name can be a cell's id."""
    return is_safe(name) and re.search(r"-[0-9a-f]{12}$", name) is not None
