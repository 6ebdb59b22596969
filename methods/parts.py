"""What several methods share: pure functions first, then the one module that several need."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import Batch, NetworkLike, Output

HALF = (torch.float16, torch.bfloat16)


def softened_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float, by_row: bool = False) -> Tensor:
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)) of two (B, K): mean over the batch or, `by_row`, all (B,).

    No gradient is stopped here.
    """
    log_student = F.log_softmax(widened(student_logits) / temperature, dim=1)
    log_teacher = F.log_softmax(widened(teacher_logits) / temperature, dim=1)
    return temperature**2 * divergence(log_student, log_teacher, by_row)


def divergence(log_student: Tensor, log_teacher: Tensor, by_row: bool = False) -> Tensor:
    """KL(teacher || student) of log probabilities, both (B, K): mean over the batch or, `by_row`, all (B,)."""
    if by_row:
        return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def log_binary(log_probabilities: Tensor, target: Tensor) -> Tensor:
    """(B, K) log probabilities to those, (B, 2), of the class `target` (B,) and of all others together."""
    label, others = split_target(log_probabilities, target)
    return torch.cat([label, others.logsumexp(1, keepdim=True)], dim=1)


def split_target(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K) logits and (B,) labels to the label's logit (B, 1) and those of the other classes (B, K - 1), in their order."""
    label = target.unsqueeze(1)
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, label), logits.gather(1, others + (others >= label))


def part(output: Output, rows: slice) -> Output:
    """Some rows of an output."""
    stages, preact = (tuple(feature[rows] for feature in features) for features in (output.stages, output.preact))
    rectified = output.rectified and tuple(feature[rows] for feature in output.rectified)
    tokens = output.tokens and tuple(token[rows] for token in output.tokens)
    return Output(output.logits[rows], output.embedding[rows], stages, preact, output.stem[rows], rectified, tokens)


def check_mean_embedding(output: Output, key: str, whose: str) -> None:
    """Refuse a network whose classifier does not work on the mean of its last stage.

    Raises:
        ValueError: the message names the method's key and whose network it is.
    """
    channels, width = output.activated[-1].shape[1], output.embedding.shape[1]
    if channels != width:
        raise ValueError(
            f"{key} needs a {whose} whose classifier works on the mean of its last stage; this one's last stage has {channels} "
            f"channels, its classifier {width} inputs"
        )


def divides_evenly(feature: Tensor, size: tuple[int, int] | torch.Size) -> bool:
    """Whether height and width of (B, C, H, W) are multiples of `size`."""
    return feature.shape[-2] % size[0] == 0 and feature.shape[-1] % size[1] == 0


def pool_to(feature: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Average-pool (B, C, H, W) to (B, C, *size); the same tensor where it has that size already."""
    (h_in, w_in), (h_out, w_out) = feature.shape[-2:], size
    if (h_in, w_in) == (h_out, w_out):
        return feature
    if divides_evenly(feature, size):  # same values as the adaptive kind, whose gradient on CUDA is not deterministic
        return _MeanPool.apply(feature, (h_in // h_out, w_in // w_out))
    return F.adaptive_avg_pool2d(feature, (h_out, w_out))


class _MeanPool(torch.autograd.Function):
    """`avg_pool2d` by integer factors. Its gradient is the same too, but upsampling spreads it faster."""

    @staticmethod
    def forward(ctx: Any, feature: Tensor, factors: tuple[int, int]) -> Tensor:
        ctx.factors = factors
        return F.avg_pool2d(feature, factors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        height, width = ctx.factors
        return F.interpolate(gradient / (height * width), scale_factor=(height, width), mode="nearest"), None


def pool_to_smaller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps to the height and width of the smaller."""
    size = (min(first.shape[-2], second.shape[-2]), min(first.shape[-1], second.shape[-1]))
    return pool_to(first, size), pool_to(second, size)


def common_stages(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs of (student's, teacher's) features: the last L of both, L the smaller of their numbers of stages.

    Networks of one family have equally many. Across families the deepest stages correspond.
    """
    length = min(len(student), len(teacher))
    return list(zip(student[-length:], teacher[-length:], strict=True))


def stage_pairs(stages: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """For i < j: f_i pooled to the height and width of f_j, and f_j, both cut to their first min(C_i, C_j) channels."""
    for i, shallow in enumerate(stages):
        pooled = shallow
        for deep in stages[i + 1 :]:
            # A mean of means is the mean where every factor is an integer: pool on from here, not from the large map.
            nested = divides_evenly(shallow, pooled.shape[-2:]) and divides_evenly(pooled, deep.shape[-2:])
            pooled = widened(pool_to(pooled if nested else shallow, deep.shape[-2:]))
            channels = min(shallow.shape[1], deep.shape[1])
            yield pooled[:, :channels], widened(deep[:, :channels])


def squared_error(first: Tensor, second: Tensor, reduction: str = "mean") -> Tensor:
    """Mean (or sum) of the squared differences of two (B, C, H, W).

    Taken over (B, H, W, C): `mse_loss` returns a contiguous gradient, which this turns into channels last. In the other
    layout the rest of the backward pass is up to six times slower (measured on a CPU, TFD's term).
    """
    return F.mse_loss(first.permute(0, 2, 3, 1), second.permute(0, 2, 3, 1), reduction=reduction)


def widened(feature: Tensor) -> Tensor:
    """In single precision where it comes in half precision, so that sums over many elements keep their digits.

    The gradient of a map (B, C, H, W) gets the layout of the map. Many terms return another layout (a mean over channels
    does), which slows the network's backward pass: by a seventh, measured on a CPU with AT.
    """
    if feature.dim() == 4 and feature.requires_grad:
        return _Widened.apply(feature)
    return feature.float() if feature.dtype in HALF else feature


class _Widened(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature: Tensor) -> Tensor:
        last = feature.is_contiguous(memory_format=torch.channels_last)
        ctx.layout = torch.channels_last if last else torch.contiguous_format
        ctx.dtype = feature.dtype
        return feature.float() if feature.dtype in HALF else feature.view_as(feature)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.to(ctx.dtype).contiguous(memory_format=ctx.layout)


def attention(feature: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H W): mean over channels of the squares, flattened, of L2 norm 1."""
    return F.normalize(_MeanSquare.apply(feature).flatten(1), dim=1)


class _MeanSquare(torch.autograd.Function):
    """Mean over channels of the squares, (B, H, W), never in half precision, with its gradient in one product."""

    @staticmethod
    def forward(ctx: Any, feature: Tensor) -> Tensor:
        ctx.save_for_backward(feature)
        return widened(feature).square().mean(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (feature,) = ctx.saved_tensors
        return (feature * (gradient * (2 / feature.shape[1])).unsqueeze(1)).to(feature.dtype)


def gram(first: Tensor, second: Tensor) -> Tensor:
    """Inner products of rows: (..., N, D) and (..., M, D) to (..., N, M); never in half precision, not even under autocast."""
    with torch.autocast(first.device.type, enabled=False):
        return widened(first) @ widened(second).mT


class Wrapped:
    """A network of `Networks` around another one, whose parts are its own. A subclass does something around the call."""

    def __init__(self, network: NetworkLike) -> None:
        self.network = network

    def __call__(self, image: Tensor) -> Output:
        return self.network(image)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.network.blocks

    @property
    def classifier(self) -> nn.Linear:
        return self.network.classifier

    @property
    def norms(self) -> list[nn.Module | None]:
        return self.network.norms


def unwrapped(network: Any) -> nn.Module:
    """The module behind a network of `Networks`, for the few methods that copy it or a part of it."""
    while not isinstance(network, nn.Module):
        network = network.network
    return network


@torch.no_grad()
def shuffled(module: nn.Module) -> nn.Module:
    """A copy, each weight's elements in random order: another initialization with the same distribution.

    Orders are drawn on the CPU, as all initial weights are, so that they are the same on every device.
    """
    module = copy.deepcopy(module)
    for parameter in module.parameters():
        order = torch.randperm(parameter.numel()).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return module


def ramp(batch: Batch, epochs: int) -> Tensor | float:
    """min(1, epoch / epochs) with the epoch counted from 1, as the public code of TFD and DKD has it; 1 where `epochs` is 0.

    Arithmetic without a branch on the epoch, which may be a tensor. Multiply by it last: it is in single precision,
    and so would its product with a weight be.
    """
    if epochs == 0:
        return 1.0
    return torch.as_tensor((batch.epoch + 1) / epochs).clamp(max=1.0)


class Regressor(nn.Module):
    """Maps a student feature to a teacher feature's shape: convolution, batch norm, ReLU (RepDistiller's `ConvReg`).

    The convolution is 3x3 with stride 2 where the student's map is twice as large, a transposed 4x4 with stride 2 where it is
    half as large, and otherwise, where it is at least as large, without padding and of size 1 + H_s - H_t.

    Args:
        student, teacher: sample features (B, C, H, W).
        activation: whether the ReLU follows.

    Raises:
        ValueError: no convolution of these kinds leads from one size to the other.
    """

    def __init__(self, student: Tensor, teacher: Tensor, activation: bool = True) -> None:
        super().__init__()
        (in_channels, height_s, width_s), (channels, height_t, width_t) = student.shape[1:], teacher.shape[1:]
        if (height_s, width_s) == (2 * height_t, 2 * width_t):
            convolution: nn.Module = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        elif (2 * height_s, 2 * width_s) == (height_t, width_t):
            convolution = nn.ConvTranspose2d(in_channels, channels, 4, stride=2, padding=1)
        elif height_s >= height_t and width_s >= width_t:
            convolution = nn.Conv2d(in_channels, channels, (1 + height_s - height_t, 1 + width_s - width_t))
        else:
            raise ValueError(f"no regressor from the student's {height_s}x{width_s} map to the teacher's {height_t}x{width_t}")
        self.convolution = convolution
        self.norm = nn.BatchNorm2d(channels)
        self.activation = nn.ReLU(inplace=True) if activation else nn.Identity()

    def forward(self, feature: Tensor) -> Tensor:
        return self.activation(self.norm(self.convolution(feature)))
