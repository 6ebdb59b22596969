"""The contract between a method and the engine: everything that a method gets, and everything that it provides.

A method is one file in this folder. Most write `terms`, or `distill` where there is a teacher, and nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch.nn.functional as F
from mmengine.registry import Registry
from torch import Tensor, nn

Needs = Literal["none", "teacher", "self"]
Partner = Literal["same_class", "second_view", "strong_view", "mixed"]


class Output(NamedTuple):
    """What a network computes for a batch of B images, with K classes."""

    logits: Tensor  # (B, K)
    embedding: Tensor  # (B, D) pooled, before the classifier
    stages: tuple[Tensor, ...]  # (B, C_i, H_i, W_i) stage outputs, shallow to deep, without the stem; a wide resnet: sums
    preact: tuple[Tensor, ...]  # the same before their last activation; in wide resnets the batch norm of the sum
    stem: Tensor  # (B, C, H, W) after the activation
    rectified: tuple[Tensor, ...] | None = None  # where `stages` end without an activation: see `activated`
    tokens: tuple[Tensor, ...] | None = None  # (B, P, C_i) of a network of tokens, such as a transformer: those that are no
    # patch (class, distillation), P may be 0. Its `stages` are grids of patches, or (B, N, C_i). None where stages are maps.

    @property
    def activated(self) -> tuple[Tensor, ...]:
        """(B, C_i, H_i, W_i) ReLU of `preact`, shallow to deep: `stages`, but where a network's stages end with bare sums."""
        return self.stages if self.rectified is None else self.rectified


class Batch(NamedTuple):
    """One batch of training images, already augmented, on the device."""

    image: Tensor  # (B, C, H, W)
    target: Tensor  # (B,) int64, always the hard labels
    index: Tensor  # type: ignore[assignment]  # (B,) int64, position in the training set; hides tuple.index
    epoch: int | Tensor = 0  # 0-based; in training a 0-dim int64 tensor on the device: compute with it, never branch on it
    epochs: int = 1  # total
    progress: float | Tensor = 0.0  # share of the training that is done, in [0, 1); in training a 0-dim tensor
    partner: Tensor | None = None  # (B, C, H, W), if the method asks for one
    soft: Tensor | None = None  # (B, K) mixed targets, rows summing to 1, under mixup and CutMix
    other: Tensor | None = None  # (B,) int64, with mixed partners: the row of this batch that each image is mixed with
    kept: Tensor | None = None  # 0-dim, with mixed partners: partner = kept image + (1 - kept) image[other]


class NetworkLike(Protocol):
    """A network as methods see it. Few methods need its parts."""

    def __call__(self, image: Tensor, /) -> Output: ...

    @property
    def blocks(self) -> nn.ModuleList:
        """The stages."""

    @property
    def classifier(self) -> nn.Linear: ...

    @property
    def norms(self) -> list[nn.Module | None]:
        """The last batch norm before each stage's `preact`, or None where there is none."""


@dataclass(frozen=True)
class Networks:
    """The networks of one training step."""

    student: NetworkLike
    teacher: NetworkLike | None = None  # frozen, in eval mode, without gradient; an output is computed once a step
    others: tuple[NetworkLike, ...] = ()  # further teachers of a pair that has several, for methods that read them

    @property
    def teachers(self) -> tuple[NetworkLike, ...]:
        """All of them."""
        return () if self.teacher is None else (self.teacher, *self.others)

    def require_teacher(self) -> NetworkLike:
        """The teacher.

        Raises:
            ValueError: there is none.
        """
        if self.teacher is None:
            raise ValueError("this method needs a teacher, and there is none")
        return self.teacher


class Context(NamedTuple):
    """What a method's `setup` is given: everything that is known before the first step. Read shapes, not values."""

    student: Output  # for a small sample batch
    teacher: Output | None  # for the same batch; None where the method needs no teacher
    classes: int  # K
    samples: int  # N, size of the training set; `batch.index` lies in [0, N)
    batch_size: int  # of a full batch; the last one of an epoch may be shorter
    image: tuple[int, int, int]  # (C, H, W) of a training image
    targets: Tensor | None = None  # (N,) int64 labels of the training set
    networks: Networks | None = None  # the networks themselves; None where values are checked on given tensors
    another: Callable[[int], nn.Module] | None = None  # what `fresh` calls
    others: tuple[Output, ...] = ()  # of further teachers, for the same batch as `teacher`

    def fresh(self, number: int = 0) -> nn.Module:
        """A new network of the student's kind, with an initialization of its own for each number; as a submodule it is trained.

        Raises:
            ValueError: there is no way to build one.
        """
        if self.another is None:
            raise ValueError("this method builds networks of the student's kind, and its setup was given no way to")
        return self.another(number)

    def require_teacher(self) -> Output:
        """The teacher's output.

        Raises:
            ValueError: there is no teacher.
        """
        if self.teacher is None:
            raise ValueError("this method needs a teacher, and its setup was given none")
        return self.teacher


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
    key = arguments.pop("type", None)
    if not isinstance(key, str):
        raise ValueError(f"a method is written as {{type: name, argument: value}}, not {str(dict(cfg))[:100]}")
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
    example: ClassVar[dict[str, Any]] = {}  # values for arguments without a default, for tests and `every` in a grid
    added_later: ClassVar[tuple[str, ...]] = ()  # arguments newer than `version`: at their default they leave a cell's id alone

    # These may depend on the arguments, and may then be set on the instance.
    version: int = 1  # raised when the mathematics changes, so that old results are not mixed with new ones
    needs: Needs = "none"  # what must exist: a trained teacher, a trained copy of the student
    partner: Partner | None = None  # a second image for each sample
    prepare_epochs: int = 0  # length of a preparation phase, in which `prepare` replaces `step`
    prepare_lr: float | None = None  # its learning rate, which is constant; None: the recipe's
    teacher_epochs_fraction: float = 1.0  # below 1 asks for a teacher whose schedule is shortened to that share
    draws_random: bool = False  # draws random numbers in `step`: not trained in lock-step with others
    memory_by_sample: bool = False  # keeps buffers indexed by `batch.index`: refused under several processes
    needs_hard_labels: bool = False  # makes no sense under mixup and CutMix
    needs_maps: bool = False  # works on maps of convolutions: refused where a network's stages are tokens
    several_teachers: bool = False  # reads `networks.teachers`; refused on a pair with several where it is False
    ce_weight: float = 1.0

    @property
    def changes_cross_entropy(self) -> bool:
        """Whether the term "ce" is anything but the plain cross-entropy at weight 1; a composition takes it from this part.

        Override it together with `cross_entropy`.
        """
        return self.ce_weight != 1.0

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        try:
            inspect.signature(cls.setup).bind(None, None)
        except TypeError:
            raise TypeError(
                f"{cls.__name__}.setup is of an older version; write `def setup(self, context: Context) -> None`, which has "
                f"context.{', .'.join(Context._fields)}"
            ) from None

    def setup(self, context: Context) -> None:
        """Create what depends on shapes, as submodules and buffers: trained, checkpointed, train-only.

        It also runs while a grid is planned, without data: on tensors that have a shape and no values.

        Raises:
            ValueError: the method cannot work with these networks; the message says why.
        """

    def cross_entropy(self, student: Output, batch: Batch) -> Tensor:
        """`ce_weight` times the cross-entropy with the labels, or with the mixed targets where there are any."""
        target = batch.target if batch.soft is None else batch.soft
        cross_entropy = F.cross_entropy(student.logits, target)
        return cross_entropy if self.ce_weight == 1.0 else self.ce_weight * cross_entropy  # saves two operations a step

    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        """What the method adds beside the cross-entropy: named, weighted, scalar terms.

        A single term is named by the method's own registry key.
        """
        return {}

    def loss(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        """All terms, which the engine sums: "ce", that of the labels, and those of the method.

        Args:
            student: the student's output for `batch.image`.
            teacher: the teacher's output for it; None for a method without a teacher.
            batch: its epoch and progress may be tensors or Python's numbers.
        """
        terms = self._by_name(self.terms(student, batch), "terms")
        return {"ce": self.cross_entropy(student, batch), **terms}

    def _by_name(self, terms: dict[str, Tensor], part: str) -> dict[str, Tensor]:
        """
        Raises:
            TypeError: what a subclass returns is no dict.
        """
        if not isinstance(terms, dict):
            raise TypeError(f"{type(self).__name__}.{part} returns a dict of its terms by name, not a {type(terms).__name__}")
        return terms

    def step(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """One training step's terms: `loss` on the networks' outputs, unless the method needs more of them."""
        teacher = None if self.needs == "none" else networks.require_teacher()(batch.image)
        return self.loss(networks.student(batch.image), teacher, batch)

    def prepare(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """One step of the preparation phase; parameters that get no gradient stay as they are."""
        raise TypeError(f"{type(self).__name__} sets prepare_epochs but does not define prepare")

    def predictor(self, student: nn.Module) -> nn.Module:
        """What is evaluated and deployed: by default the plain student."""
        return student

    # What few methods do around the optimizer. A step is: backward, reduce over processes, `gradients`, clip, optimizer,
    # `after_step`, average.

    def gradients(self, student: nn.Module) -> None:
        """Change gradients (`parameter.grad`) of the student or of this method, in place; by default nothing."""

    def after_step(self, student: nn.Module) -> None:
        """Change weights or buffers, in place and under `torch.no_grad`, after the optimizer's step; by default nothing."""

    def parameter_groups(self, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        """The optimizer's groups, each `{"params": [...]}` and what differs from the recipe ("weight_decay", "momentum").

        "lr_factor" is the factor on the recipe's learning rate, 1 where it is missing.

        Args:
            parameters: all that are trained, the student's and then this method's; each belongs into one group.
        """
        return [{"params": parameters}]


class TeacherMethod(Method):
    """A method that compares the student with a second output: a teacher's, or the one that its own `step` passes to `loss`."""

    needs: Needs = "teacher"
    second_output: ClassVar[str] = "the teacher's output"  # what `loss` takes beside the student's

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """What the method adds beside the cross-entropy, as `terms` does; nothing for one that only prepares."""
        return {}

    def loss(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        """All terms, as `Method.loss`.

        Raises:
            ValueError: `teacher` is None.
        """
        if teacher is None:
            raise ValueError(f"{type(self).__name__} compares the student with {self.second_output}, and none was given")
        terms = self._by_name(self.distill(student, teacher, batch), "distill")
        return {"ce": self.cross_entropy(student, batch), **terms}
