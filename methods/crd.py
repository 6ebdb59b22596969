"""Contrastive representation distillation: an image's embeddings by student and teacher agree; those of other images do not."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Output, TeacherMethod
from methods.parts import gram, widened

EPSILON = 1e-7


def contrast(ratio: Tensor, samples: int) -> Tensor:
    """Noise-contrastive estimation, mean over the batch.

    Args:
        ratio: (B, 1 + M) estimated probabilities of samples under the model, the positive one first.
        samples: N; noise is uniform, so that M noise samples have density M / N.
    """
    noise = (ratio.shape[1] - 1) / samples
    positive, negative = ratio[:, :1], ratio[:, 1:]
    log_positive = (positive / (positive + noise + EPSILON)).log()
    log_negative = (noise / (negative + noise + EPSILON)).log()
    return -(log_positive.sum() + log_negative.sum()) / len(ratio)


@METHODS.register_module("crd")
class ContrastiveRepresentationDistillation(TeacherMethod):
    """Tian, Krishnan, Isola: weight * (NCE of the student's embedding against the memory of the teacher's + the reverse).

    Both pooled embeddings are mapped linearly to `dim` numbers of norm 1: v. Two memories hold a running mean of v for every
    training image. The positive is the image itself, the negatives are images of other classes, drawn anew in every step. Each
    side's P = exp(v . memory / temperature) / Z, with Z set in the first step: N times the mean of the exponentials then.

    Args:
        weight: factor on the term, at least 0.
        dim: length of the embeddings, 1 or more.
        negatives: M, per image, 1 or more; no more than there are images outside the largest class.
        temperature: above 0.
        momentum: share of the old entry in the memory's update, in [0, 1).

    Raises:
        ValueError: in `setup`, where all images are of one class.
    """

    card = Card(
        title="Contrastive representation distillation",
        formula="CE + weight sum over both sides of -mean [log P+/(P+ + M/N) + sum over M negatives of log (M/N)/(P- + M/N)]",
        paper="Tian, Krishnan, Isola. Contrastive Representation Distillation. ICLR 2020. arXiv:1910.10699",
        source="RepDistiller",
        deviations="negatives are drawn on the device with replacement, not by the data loader without; where other classes "
        "have fewer than `negatives` images, only so many are drawn. On a GPU its sums have no fixed order: "
        "trainings repeat up to rounding",
        train_only="two linear embeddings; two memories of N x dim",
    )
    draws_random = True
    memory_by_sample = True
    needs_hard_labels = True

    order: Tensor  # (N,) images sorted by class
    first: Tensor  # (N,) of each image: where in `order` its class begins
    size: Tensor  # (N,) and how many images its class has

    def __init__(
        self,
        weight: float = 0.8,
        dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        self.weight, self.dim, self.negatives = weight, dim, negatives
        self.temperature, self.momentum = temperature, momentum

    def setup(self, context: Context) -> None:
        student, teacher, samples = context.student, context.require_teacher(), context.samples
        self.embed_student = nn.Linear(student.embedding.shape[1], self.dim)
        self.embed_teacher = nn.Linear(teacher.embedding.shape[1], self.dim)
        bound = math.sqrt(3 / self.dim)  # entries of norm 1, about
        for side in ("student", "teacher"):
            self.register_buffer(f"memory_{side}", torch.empty(samples, self.dim).uniform_(-bound, bound))
            self.register_buffer(f"scale_{side}", torch.tensor(-1.0))  # Z; below 0: not yet set

        # Images sorted by class: those of other classes are all places but one interval. Without labels, each is its own class.
        label = torch.arange(samples) if context.targets is None else context.targets.cpu()
        size = torch.bincount(label)
        if size.max() == samples:
            raise ValueError("crd contrasts images of different classes, and all images here are of one class")
        self.drawn = min(self.negatives, samples - int(size.max()))
        self.register_buffer("order", label.argsort(stable=True), persistent=False)
        self.register_buffer("first", (size.cumsum(0) - size)[label], persistent=False)
        self.register_buffer("size", size[label], persistent=False)

    def draw(self, index: Tensor) -> Tensor:
        """(B,) images to (B, 1 + M): themselves, and M of other classes, uniformly and with replacement."""
        first, size = self.first[index, None], self.size[index, None]
        # the remainder of a large number is uniform for all purposes, whatever each row's number of images to choose from
        place = torch.randint(2**48, (len(index), self.drawn), device=index.device) % (len(self.order) - size)
        place = place + size * (place >= first)
        return torch.cat([index[:, None], self.order[place]], dim=1)

    def side(self, anchor: Tensor, other: str, drawn: Tensor) -> Tensor:
        """NCE of embeddings (B, dim) against the memory of the `other` network."""
        memory, scale = getattr(self, f"memory_{other}"), getattr(self, f"scale_{other}")
        # scores of all images, then a choice: cheaper than gathering B x M rows of the memory. A copy, since the memory is
        # overwritten before the backward pass.
        scores = (gram(anchor, memory.clone()).gather(1, drawn) / self.temperature).exp()
        scale.copy_(torch.where(scale < 0, scores.detach().mean() * len(memory), scale))
        return contrast(scores / scale.clone(), len(memory))

    @torch.no_grad()
    def remember(self, embedding: Tensor, network: str, index: Tensor) -> None:
        """Move the memory of a network at these images towards their embeddings (B, dim)."""
        memory = getattr(self, f"memory_{network}")
        entry = self.momentum * memory[index] + (1 - self.momentum) * embedding
        memory.index_copy_(0, index, F.normalize(entry, dim=1).to(memory.dtype))

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        v_s = F.normalize(widened(self.embed_student(student.embedding)), dim=1)
        v_t = F.normalize(widened(self.embed_teacher(teacher.embedding.detach())), dim=1)
        drawn = self.draw(batch.index)
        crd = self.side(v_s, "teacher", drawn) + self.side(v_t, "student", drawn)
        self.remember(v_s, "student", batch.index)
        self.remember(v_t, "teacher", batch.index)
        return {"crd": self.weight * crd}
