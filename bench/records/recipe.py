"""How a network is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bench.records.frozen import Fraction, Frozen, marked

LATER: dict[str, Any] = {"added_later": True}
MOST = 10**6  # that a number of a recipe may be: beyond it nothing is trained, and arithmetic overflows
PIXELS = 4096  # of an image's side
Augment = str | dict[str, Any] | tuple[str | dict[str, Any], ...]


class Recipe(Frozen):
    """How a network is trained, whatever the method. Defaults: the CIFAR-100 protocol of the CRD paper (Tian et al. 2020).

    Every field is part of a cell's identity. One that is added later carries `json_schema_extra=LATER`: at its default it
    leaves every id alone.

    Raises:
        ValueError: a field is out of its range, or has no effect beside the others.
    """

    epochs: int = Field(240, ge=1, le=MOST)
    batch_size: int = Field(64, ge=2, le=MOST)
    lr: float = Field(0.05, gt=0, le=MOST)
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: float = Field(5e-4, ge=0, le=MOST)
    schedule: Literal["step", "cosine", "one_cycle", "timm_cosine"] = "step"  # see `bench.engine.schedule`
    milestones: Annotated[tuple[Fraction, ...], Field(max_length=100)] = (0.625, 0.75, 0.875)
    # shares of `epochs` after which `step` multiplies lr by gamma
    gamma: float = Field(0.1, gt=0, le=MOST)
    warmup_epochs: int = Field(0, ge=0)  # lr rises linearly over them; not beside `one_cycle`
    clip_grad_norm: float = Field(0.0, ge=0, le=MOST)  # 0: no clipping
    ema: Fraction = 0.0  # decay per step of an averaged copy, which is then what is evaluated; 0: none
    label_smoothing: Fraction = 0.0  # through soft targets, hence refused beside methods that need hard labels
    dropout: Fraction = 0.0  # on the embedding, before the classifier
    crop: Literal["none", "pad", "resized"] = "pad"  # padding and random crop; ImageNet's random resized crop
    crop_padding: int = Field(4, ge=0, le=PIXELS)  # pixels on each side, for `pad`
    image_size: int = Field(0, ge=0, le=PIXELS)  # height and width that networks see, for `resized`; 0: as stored
    flip: bool = True  # horizontal, with probability 1/2
    augment: Augment = "none"  # of `list augmentations`, in order; also as timm writes RandAugment: rand-m9-mstd0.5-inc1
    cutout: int = Field(0, ge=0, le=PIXELS)  # side of the erased square in pixels; 0: none
    mixup: float = Field(0.0, ge=0, le=MOST)  # alpha of the Beta distribution; 0: none
    cutmix: float = Field(0.0, ge=0, le=MOST)  # likewise; with both, each batch draws one of them
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0  # stratified share of the training set that is held out
    padding: Literal["zero", "reflect"] = Field("zero", json_schema_extra=LATER)  # what `pad` pads with
    processes: int = Field(1, ge=1, json_schema_extra=LATER)  # that share each batch; batch norm sees a share
    color_jitter: Fraction = Field(0.0, json_schema_extra=LATER)  # largest change of brightness, contrast and saturation
    random_erasing: Fraction = Field(0.0, json_schema_extra=LATER)  # probability that a rectangle becomes noise
    repeats: int = Field(1, ge=1, le=100, json_schema_extra=LATER)  # copies of an image in an epoch; DeiT's are 3
    crop_pct: Annotated[float, Field(gt=0, le=1)] = Field(0.875, json_schema_extra=LATER)  # of test images, for `image_size`
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, json_schema_extra=LATER)  # of the last residual branch
    accumulate: int = Field(1, ge=1, json_schema_extra=LATER)  # parts of a batch, one after the other; batch norm sees a part
    optimizer: dict[str, Any] = Field({"type": "sgd"}, json_schema_extra=LATER)  # of `list optimizers`, with its arguments
    decay_all: bool = Field(True, json_schema_extra=LATER)  # False: no weight decay of norms, biases and position embeddings
    min_lr: float = Field(0.0, ge=0, json_schema_extra=LATER)  # at which `cosine` and `timm_cosine` end
    warmup_lr: float = Field(0.0, ge=0, json_schema_extra=LATER)  # at which the warm-up begins
    compile: bool = Field(False, json_schema_extra=LATER)  # by torch.compile: networks in training; rounding differs

    @field_validator("optimizer", mode="before")
    @classmethod
    def _long_form(cls, optimizer: object) -> object:
        return {"type": optimizer} if isinstance(optimizer, str) else optimizer

    @model_validator(mode="after")
    def _no_idle_fields(self) -> Recipe:
        if self.warmup_epochs and self.schedule == "one_cycle":
            raise ValueError("warmup_epochs has no effect beside schedule one_cycle, which has a rise of its own")
        if self.warmup_epochs >= self.epochs and self.warmup_epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} leaves nothing of {self.epochs} epochs")
        if self.warmup_lr and not self.warmup_epochs:
            raise ValueError("warmup_lr needs warmup_epochs above 0")
        if self.min_lr and "cosine" not in self.schedule:
            raise ValueError(f"min_lr has no effect beside schedule {self.schedule}; it needs cosine or timm_cosine")
        if max(self.min_lr, self.warmup_lr) > self.lr:
            raise ValueError(f"min_lr {self.min_lr:g} and warmup_lr {self.warmup_lr:g} are at most lr, which is {self.lr:g}")
        if self.nesterov and self.optimizer.get("type") == "adamw":
            raise ValueError("nesterov has no effect beside optimizer adamw")
        if self.batch_size < 2 * self.shares:
            owners = f"{self.processes} processes" if self.accumulate == 1 else f"{self.shares} parts (processes x accumulate)"
            raise ValueError(f"batch_size {self.batch_size} leaves some of {owners} fewer than 2 images")
        if self.padding != "zero" and (self.crop != "pad" or not self.crop_padding):
            raise ValueError(f"padding: {self.padding} needs crop: pad, with a crop_padding above 0")
        if self.color_jitter and self.augment != "none":
            raise ValueError("color_jitter beside augment: timm switches it off there; leave one of them out")
        if self.crop_pct != 0.875 and self.crop != "resized":
            raise ValueError("crop_pct needs crop: resized")
        if self.image_size and self.crop != "resized":
            raise ValueError("image_size needs crop: resized")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """The fields as JSON values, without those added later that have their default."""
        later = marked(self, "added_later")
        return self.model_dump(mode="json", exclude={name for name, at_default in later.items() if at_default})

    @property
    def parts(self) -> list[str]:
        """What it names of registries: "optimizer:sgd", "augmentation:auto_augment"."""
        entries = self.augment if isinstance(self.augment, tuple) else [] if self.augment == "none" else [self.augment]
        names = [each if isinstance(each, str) else each["type"] for each in entries]
        return [f"optimizer:{self.optimizer['type']}", *(f"augmentation:{name}" for name in names)]

    @property
    def shares(self) -> int:
        """How many parts of a batch batch norm and methods see apart: of processes, and within each."""
        return self.processes * self.accumulate

    @property
    def soft_targets(self) -> bool:
        """Whether labels are mixed or smoothed."""
        return bool(self.mixup or self.cutmix or self.label_smoothing)
