"""A cell is one training: what exactly is trained, on what, how. Equal cells have equal ids, on every machine.

No torch here: the registries' defaults are filled in by `bench.plan.expand`, which builds the cells.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bench.records.naming import data_name, method_family, model_name

PROTOCOL = 1  # raised when the engine's arithmetic changes, so that old results are not mixed with new ones

Fraction = Annotated[float, Field(ge=0, le=1)]
Spec = dict[str, Any]  # {"type": registry key, **every argument}


class Frozen(BaseModel):
    """Immutable, no unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Recipe(Frozen):
    """How a network is trained, whatever the method. Defaults: the CIFAR-100 protocol of the CRD paper (Tian et al. 2020).

    A field that is added later carries `json_schema_extra={"added_later": True}`: at its default it leaves every id alone.
    """

    epochs: int = Field(240, ge=1)
    batch_size: int = Field(64, ge=2)
    lr: float = Field(0.05, gt=0)
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["step", "cosine", "one_cycle"] = "step"
    milestones: tuple[Fraction, ...] = (0.625, 0.75, 0.875)  # shares of `epochs` after which `step` multiplies lr by gamma
    gamma: float = Field(0.1, gt=0)
    warmup_epochs: int = Field(0, ge=0)  # lr rises linearly over them; beside `step` and `cosine`
    clip_grad_norm: float = Field(0.0, ge=0)  # 0: no clipping
    ema: Fraction = 0.0  # decay per step of an averaged copy, which is then what is evaluated; 0: none
    label_smoothing: Fraction = 0.0  # through soft targets, hence refused beside methods that need hard labels
    dropout: Fraction = 0.0  # on the embedding, before the classifier
    crop: Literal["none", "pad", "resized"] = "pad"  # zero padding and random crop; ImageNet's random resized crop
    crop_padding: int = Field(4, ge=0)  # pixels on each side, for `pad`
    image_size: int = Field(0, ge=0)  # height and width that networks see, for `resized`; 0: as stored
    flip: bool = True  # horizontal, with probability 1/2
    augment: Literal["none", "auto_augment", "rand_augment", "trivial_augment"] = "none"
    cutout: int = Field(0, ge=0)  # side of the erased square in pixels; 0: none
    mixup: float = Field(0.0, ge=0)  # alpha of the Beta distribution; 0: none
    cutmix: float = Field(0.0, ge=0)  # likewise; with both, each batch draws one of them
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0  # stratified share of the training set that is held out
    processes: int = Field(1, ge=1, json_schema_extra={"added_later": True})  # that share each batch; batch norm sees a share

    @model_validator(mode="after")
    def _no_idle_fields(self) -> Recipe:
        if self.warmup_epochs and self.schedule == "one_cycle":
            raise ValueError("warmup_epochs has no effect beside schedule one_cycle, which has a rise of its own")
        if self.warmup_epochs >= self.epochs and self.warmup_epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} leaves nothing of {self.epochs} epochs")
        if self.batch_size < 2 * self.processes:
            raise ValueError(f"batch_size {self.batch_size} leaves some of {self.processes} processes fewer than 2 images")
        if self.image_size and self.crop != "resized":
            raise ValueError("image_size needs crop: resized")
        return self

    @property
    def soft_targets(self) -> bool:
        return bool(self.mixup or self.cutmix or self.label_smoothing)


class Teacher(Frozen):
    """Where a cell's teacher comes from: another cell, a file that the user brings, or the library that its model is from."""

    cell: str | None = None  # its id
    model: Spec
    weights_sha256: str | None = None  # of the user's file; at most one of `cell` and this is set
    weights: str | None = None  # where that file lies; not part of the identity, nor is what follows
    train_s: float | None = Field(None, ge=0)  # what training it took, as the user tells who brings it
    train_flops: float | None = Field(None, ge=0)

    @property
    def identity(self) -> Any:
        """The model follows from a cell or a file; with neither, it comes with published weights and stands for itself."""
        digest_of_cell = self.cell.rpartition("-")[2] if self.cell else None  # without its readable part
        return digest_of_cell or self.weights_sha256 or self.model


class Cell(Frozen):
    data: Spec  # {"type": ..., "digest": of user-given data or None, "name": what they are known as, "train_images": ..., ...}
    student: Spec
    teacher: Teacher | None
    method: Spec  # every argument, defaults included
    method_version: int
    recipe: Recipe
    seed: int = Field(ge=0)
    precision: Literal["bf16", "fp32"]
    protocol: int = PROTOCOL
    needs: Literal["none", "teacher", "self"] = "none"  # of the method; follows from it, hence not part of the identity
    label: str = ""  # the method as reports name it; likewise
    added_later: dict[str, Any] = {}  # newer arguments ("gamma", of a part "parts.0.gamma") with their defaults; likewise

    @model_validator(mode="after")
    def _no_idle_teacher(self) -> Cell:
        if self.teacher and self.needs == "none":
            raise ValueError(f"{method_family(self.method)} needs no teacher, and none would be asked")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """What makes this cell this cell, as plain JSON values."""
        identity = self.model_dump(mode="json", exclude={"needs", "label", "added_later"})
        for name, field in Recipe.model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("added_later") and getattr(self.recipe, name) == field.default:
                del identity["recipe"][name]
        for path, default in self.added_later.items():
            *steps, name = path.split(".")
            spec = identity["method"]
            for step in steps:
                spec = spec[int(step) if isinstance(spec, list) else step]
            if spec.get(name) == default:
                del spec[name]
        for name in ("path", "name"):  # the digest says what lies there
            identity["data"].pop(name, None)
        if self.teacher:
            identity["teacher"] = self.teacher.identity
        return identity

    @property
    def id(self) -> str:
        """Readable prefix and 12 hexadecimal digits of SHA-256 over canonical JSON; safe as a file name on every system."""
        readable = "-".join([data_name(self.data), model_name(self.student), method_family(self.method), f"s{self.seed}"])
        return f"{safe(readable)}-{digest(self.identity)[:12]}"

    @property
    def cost_key(self) -> str:
        """Same for all cells whose training steps cost the same: everything but seed and teacher's training."""
        identity = self.identity | {"seed": None, "teacher": self.teacher and self.teacher.model}
        return digest(identity)[:16]


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
