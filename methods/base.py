"""The contract between a method and the engine: everything that a method can see, and everything that it must answer.

A method is one file in this folder. Most override `Method.loss` and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch.nn.functional as F
from mmengine.registry import Registry
from torch import Tensor, nn


class Output(NamedTuple):
    """What a network says about a batch of B images, K classes."""

    logits: Tensor  # (B, K)
    embedding: Tensor  # (B, D) pooled, before the classifier
    stages: tuple[Tensor, ...]  # (B, C_i, H_i, W_i) stage outputs after the activation, shallow to deep, stem excluded
    preact: tuple[Tensor, ...]  # the same before their last activation
    stem: Tensor  # (B, C, H, W) after the activation


class Batch(NamedTuple):
    """One batch of training images, already augmented, on the device."""

    image: Tensor  # (B, C, H, W)
    target: Tensor  # (B,) int64, always the hard labels
    index: Tensor  # type: ignore[assignment]  # (B,) int64, position in the training set; hides tuple.index
    epoch: int = 0  # 0-based
    epochs: int = 1  # total
    progress: float = 0.0  # share of the training that is done, in [0, 1)
    partner: Tensor | None = None  # (B, C, H, W), if the method asks for one
    soft: Tensor | None = None  # (B, K) mixed targets, rows summing to 1, under mixup and CutMix


@dataclass(frozen=True)
class Networks:
    """The networks of one training step.

    Both are called with images and answer with an `Output`. Both also have `blocks` (their stages, an `nn.ModuleList`),
    `classifier` (`nn.Linear`) and `norms` (the last batch norm before each stage's `preact`, or None where there is none),
    for the few methods that need a part of a network.
    """

    student: Any
    teacher: Any = None  # frozen, in eval mode; its answer for an image tensor is computed once, without gradient, and kept


@dataclass(frozen=True)
class Card:
    """What a reader wants to know of a method before using it."""

    title: str  # full name
    formula: str  # the loss, in one line
    paper: str  # authors, title, venue and year, identifier
    source: str = ""  # public implementation consulted
    deviations: str = "none"  # where ours differs from paper or source, and why
    train_only: str = "none"  # parts that exist in training alone


def build_method(cfg: Mapping[str, Any], registry: Registry, **_: Any) -> Method:
    """Build from `{"type": key or dotted path, **arguments}`; `preset` names published values, which arguments override."""
    arguments = dict(cfg)
    key = arguments.pop("type")
    method = registry.get(key)
    if method is None:
        raise KeyError(f"unknown method '{key}'; known: {', '.join(sorted(registry.module_dict))}")
    preset = arguments.pop("preset", None)
    if preset is not None:
        if preset not in method.presets:
            raise ValueError(f"{key} has no preset '{preset}'; it has: {', '.join(method.presets) or 'none'}")
        arguments = {**method.presets[preset], **arguments}
    return method(**arguments)


METHODS = Registry("method", build_func=build_method, locations=["methods"])


class Method(nn.Module):
    """One way to train a network. Constructor arguments are its hyper-parameters: typed, defaults as published."""

    card: ClassVar[Card]
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # published values by name; 'teacher/student' names one pair's
    added_later: ClassVar[tuple[str, ...]] = ()  # arguments newer than `version`: at their default they leave a cell's id alone

    # The rest may depend on the arguments, hence may also be set on the instance.
    version: int = 1  # raised when the mathematics changes, so that old results are not mixed with new ones
    needs: Literal["none", "teacher", "self"] = "none"  # what must exist: a trained teacher, a trained copy of the student
    partner: Literal["same_class", "second_view"] | None = None  # a second image for each sample
    prepare_epochs: int = 0  # length of a preparation phase, in which `prepare` replaces `step`
    teacher_epochs_fraction: float = 1.0  # below 1 asks for a teacher whose schedule is shortened to that share
    draws_random: bool = False  # draws random numbers in `step`: not trained in lock-step with others
    memory_by_sample: bool = False  # keeps buffers indexed by `batch.index`: refused under several processes
    needs_hard_labels: bool = False  # makes no sense under mixup and CutMix
    ce_weight: float = 1.0

    @property
    def changes_cross_entropy(self) -> bool:
        """Whether the term "ce" is anything but the plain cross-entropy at weight 1; a composition takes it from this part."""
        return self.ce_weight != 1.0

    def setup(
        self,
        student: Output,
        teacher: Output | None,
        classes: int,
        samples: int,
        networks: Networks | None = None,
        targets: Tensor | None = None,
    ) -> None:
        """Create what depends on shapes, as submodules and buffers: trained, checkpointed, train-only.

        Args:
            student, teacher: answers to a small sample batch; read their shapes, not their values.
            classes: number of classes K.
            samples: size of the training set N; `batch.index` lies in [0, N).
            networks: the networks themselves.
            targets: (N,) int64 labels of the training set.
        """

    def cross_entropy(self, student: Output, batch: Batch) -> Tensor:
        """`ce_weight` times the cross-entropy with the labels, or with the mixed targets where there are any."""
        target = batch.target if batch.soft is None else batch.soft
        cross_entropy = F.cross_entropy(student.logits, target)
        return cross_entropy if self.ce_weight == 1.0 else self.ce_weight * cross_entropy  # saves two operations a step

    def loss(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        """Named, weighted, scalar terms, which the engine sums. "ce" is the term of the labels.

        A method with a single other term names it by its own registry key.
        """
        return {"ce": self.cross_entropy(student, batch)}

    def step(self, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """One training step's terms: `loss` on the networks' answers, unless the method needs more than one answer."""
        teacher = None if self.needs == "none" else nets.teacher(batch.image)
        return self.loss(nets.student(batch.image), teacher, batch)

    def prepare(self, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """One step of the preparation phase; parameters that get no gradient stay as they are."""
        raise TypeError(f"{type(self).__name__} sets prepare_epochs but does not define prepare")

    def predictor(self, student: nn.Module) -> nn.Module:
        """What is evaluated and deployed: by default the plain student."""
        return student
