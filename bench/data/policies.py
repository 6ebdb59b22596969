"""Policies that a recipe names in `augment`: torchvision's three, and RandAugment with timm's operations and magnitudes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.data.augment import NAMES, OPERATIONS, Operations, Table, affine, apply
from bench.data.augmentations import AUGMENTATIONS, Augmentation, check_channels
from bench.data.dataset import Dataset

LEVELS = 10.0  # timm's scale of magnitudes


class Policy(Augmentation):
    """Draws operations for each image as a policy of torchvision would.

    Spaces and AutoAugment's sub-policies come from torchvision. It applies one draw to all images of a call, so drawing and
    applying are done here.
    """

    name: ClassVar[str]

    def setup(self, data: Dataset, shape: tuple[int, int, int]) -> None:
        check_channels(self.name, shape)
        policy = self._torchvisions(data)
        self.bins = 10 if hasattr(policy, "_policies") else policy.num_magnitude_bins
        space = policy._AUGMENTATION_SPACE
        self.kinds = torch.tensor([NAMES.index(kind) for kind in space])
        self.magnitudes = torch.zeros(len(NAMES), self.bins)
        self.signed = torch.zeros(len(NAMES), dtype=torch.bool)
        for kind, (magnitudes, signed) in space.items():
            values = magnitudes(self.bins, *shape[1:])
            self.magnitudes[NAMES.index(kind)] = 0 if values is None else values.float()
            self.signed[NAMES.index(kind)] = signed

    @abstractmethod
    def _torchvisions(self, data: Dataset) -> Any:
        """torchvision's transform; what `_choose` needs of it is kept."""

    @abstractmethod
    def _choose(self, count: int, generator: torch.Generator) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Operations and bins of their magnitudes, by round, (count,) each."""

    def draw(self, count: int, generator: torch.Generator) -> list[Operations]:
        """The rounds, each for `count` images."""
        rounds = []
        for kind, bin_ in zip(*self._choose(count, generator), strict=True):
            negative = self.signed[kind] & (torch.rand(count, generator=generator) <= 0.5)
            magnitude = self.magnitudes[kind, bin_]
            rounds.append(Operations(kind, torch.where(negative, -magnitude, magnitude)))
        return rounds

    def apply(self, images: Tensor, draws: list[Operations]) -> Tensor:
        for operations in draws:
            images = apply(images, operations)
        return images


@AUGMENTATIONS.register_module(name="auto_augment")
class AutoAugment(Policy):
    """AutoAugment, the policy for such data: Cubuk et al. CVPR 2019. arXiv:1805.09501. As in torchvision."""

    name = "auto_augment"

    def _torchvisions(self, data: Dataset) -> Any:
        from torchvision.transforms import v2  # takes two seconds

        policy = v2.AutoAugment(v2.AutoAugmentPolicy(data.auto_augment))
        sub_policies = policy._policies  # 25 of two operations
        self.pairs = torch.tensor([[NAMES.index(kind) for kind, _, _ in row] for row in sub_policies])
        self.chances = torch.tensor([[chance for _, chance, _ in row] for row in sub_policies])
        self.pair_bins = torch.tensor([[bin_ or 0 for _, _, bin_ in row] for row in sub_policies])
        return policy

    def _choose(self, count: int, generator: torch.Generator) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        row = torch.randint(len(self.pairs), (count,), generator=generator)
        happens = torch.rand(count, 2, generator=generator) <= self.chances[row]
        kinds = torch.where(happens, self.pairs[row], NAMES.index("Identity")).unbind(1)
        return kinds, self.pair_bins[row].unbind(1)


@AUGMENTATIONS.register_module(name="rand_augment")
class RandAugment(Policy):
    """RandAugment, two operations at magnitude 9 of 31: Cubuk et al. 2020. arXiv:1909.13719. As in torchvision."""

    name = "rand_augment"

    def _torchvisions(self, data: Dataset) -> Any:
        from torchvision.transforms import v2

        policy = v2.RandAugment()
        self.rounds, self.bin = policy.num_ops, policy.magnitude
        return policy

    def _choose(self, count: int, generator: torch.Generator) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        kinds = self.kinds[torch.randint(len(self.kinds), (self.rounds, count), generator=generator)].unbind(0)
        return kinds, (torch.full((count,), self.bin),) * self.rounds


@AUGMENTATIONS.register_module(name="trivial_augment")
class TrivialAugment(Policy):
    """TrivialAugment, one operation of any strength: Müller, Hutter. ICCV 2021. arXiv:2103.10158. As in torchvision."""

    name = "trivial_augment"

    def _torchvisions(self, data: Dataset) -> Any:
        from torchvision.transforms import v2

        return v2.TrivialAugmentWide()

    def _choose(self, count: int, generator: torch.Generator) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        kinds = (self.kinds[torch.randint(len(self.kinds), (count,), generator=generator)],)
        return kinds, (torch.randint(self.bins, (count,), generator=generator),)


@AUGMENTATIONS.register_module(name="timm_rand_augment")
class TimmRandAugment(Augmentation):
    """RandAugment with timm's operations and magnitudes, of 10; short: timm's own way of writing, rand-m9-mstd0.5-inc1.

    Geometric operations are bilinear (timm draws bilinear or bicubic) and fill with the data's mean, as in timm.

    Args:
        magnitude: of every operation, 0 to `largest`.
        operations: how many an image passes, drawn with replacement; in [1, 20].
        probability: of each that it happens.
        spread: standard deviation of the magnitude; above 100 it is uniform up to `magnitude`.
        largest: magnitude at which draws end.
        increasing: whether all operations become stronger with the magnitude.
    """

    KINDS = (
        *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast"),
        *("Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY"),
    )

    def __init__(
        self,
        magnitude: float = LEVELS,
        operations: int = 2,
        probability: float = 0.5,
        spread: float = 0.0,
        largest: float = LEVELS,
        increasing: bool = False,
    ) -> None:
        if operations < 1 or not 0 <= probability <= 1 or min(magnitude, spread) < 0 or largest <= 0:
            raise ValueError(
                "operations are 1 or more, probability is 0 to 1, magnitude and spread are 0 or more, largest above 0"
            )
        self.magnitude, self.operations, self.probability = magnitude, operations, probability
        self.spread, self.largest, self.increasing = spread, largest, increasing

    def setup(self, data: Dataset, shape: tuple[int, int, int]) -> None:
        check_channels("timm_rand_augment", shape)
        super().setup(data, shape)
        fill = torch.tensor([min(255, round(255 * mean)) for mean in data.mean], dtype=torch.float32)
        self.table = timm_table(fill)

    def draw(self, count: int, generator: torch.Generator) -> list[Operations]:
        """The rounds, each for `count` images."""
        rounds = []
        for _ in range(self.operations):
            kind = torch.randint(len(self.KINDS), (count,), generator=generator)
            happens, negative, uniform = torch.rand(3, count, generator=generator, dtype=torch.float64)
            normal = torch.randn(count, generator=generator, dtype=torch.float64)
            level = self.magnitude * uniform if self.spread > 100 else self.magnitude + self.spread * normal
            share = level.clamp(0, self.largest) / LEVELS
            arguments = self.arguments(share, torch.where(negative > 0.5, -1.0, 1.0))
            magnitude = torch.stack([arguments.get(name, torch.zeros(count)).double() for name in self.KINDS])
            magnitude = magnitude[kind, torch.arange(count)].float()
            kind = torch.where(happens <= self.probability, kind, len(self.KINDS))
            rounds.append(Operations(kind, magnitude))
        return rounds

    def arguments(self, share: Tensor, sign: Tensor) -> dict[str, Tensor]:
        """What each operation gets at a share (B,) of the scale: degrees, slopes, pixels, levels, bits, factors minus 1."""
        bits, threshold = (4 * share).floor(), (256 * share).floor().clamp(max=256)
        factor = (1 + 0.9 * share * sign).clamp(min=0.1) if self.increasing else 1.8 * share + 0.1
        return {
            "Rotate": 30 * share * sign,
            "Posterize": 4 - bits if self.increasing else bits,
            "Solarize": 256 - threshold if self.increasing else threshold,
            "SolarizeAdd": (110 * share).floor().clamp(max=128),
            **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), factor - 1),
            **dict.fromkeys(("ShearX", "ShearY"), 0.3 * share * sign),
            "TranslateX": 0.45 * share * sign * self.shape[2],
            "TranslateY": 0.45 * share * sign * self.shape[1],
        }

    def apply(self, images: Tensor, draws: list[Operations]) -> Tensor:
        for operations in draws:
            images = apply(images, operations, self.table)
        return images


def timm_table(fill: Tensor) -> Table:
    """timm's operations in the order of `TimmRandAugment.KINDS`, and what leaves an image as it is.

    Args:
        fill: (C,) levels of what geometric operations leave empty.
    """

    def posterize(images: Tensor, bits: Tensor) -> Tensor:
        return torch.where(bits >= 8, images, OPERATIONS["Posterize"](images, bits.clamp(max=8)))

    other: Table = {
        "Rotate": lambda images, degrees: affine(images, fill, **_rotation(degrees.flatten())),
        "Posterize": posterize,
        "Solarize": lambda images, level: torch.where(images >= level, 255 - images, images),
        "SolarizeAdd": lambda images, add: torch.where(images < 128, (images + add).clamp(max=255).to(torch.uint8), images),
        "ShearX": lambda images, slope: affine(images, fill, xy=slope.flatten(), x0=slope.flatten() * images.shape[2] / 2),
        "ShearY": lambda images, slope: affine(images, fill, yx=slope.flatten(), y0=slope.flatten() * images.shape[3] / 2),
        "TranslateX": lambda images, pixels: affine(images, fill, x0=pixels.flatten()),
        "TranslateY": lambda images, pixels: affine(images, fill, y0=pixels.flatten()),
    }
    return {name: other.get(name) or OPERATIONS[name] for name in (*TimmRandAugment.KINDS, "Identity")}


def _rotation(degrees: Tensor) -> dict[str, Tensor]:
    angle = degrees.deg2rad()
    return {"xx": angle.cos(), "xy": -angle.sin(), "yx": angle.sin(), "yy": angle.cos()}
