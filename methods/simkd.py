"""SimKD: the student learns the teacher's last feature, and the teacher's classifier is used on it."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Output, TeacherMethod
from methods.parts import check_mean_embedding, pool_to, pool_to_smaller, squared_error, widened


def projector(channels_s: int, channels_t: int, reduction: int) -> nn.Sequential:
    """1x1, 3x3, 1x1 convolutions with batch norm and ReLU behind each, channels_t / reduction wide inside."""
    layers: list[nn.Module] = []
    width = channels_t // reduction
    for channels_in, channels_out, size in ((channels_s, width, 1), (width, width, 3), (width, channels_t, 1)):
        convolution = nn.Conv2d(channels_in, channels_out, size, padding=size // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class ReusedClassifier(nn.Module):
    """The deployed network: the student's stages, the projector, the mean over space, the teacher's classifier."""

    def __init__(self, student: nn.Module, projector: nn.Module, classifier: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.student, self.projector, self.classifier, self.size = student, projector, classifier, size

    def forward(self, image: Tensor) -> Output:
        output = self.student(image)
        embedding = self.projector(pool_to(output.activated[-1], self.size)).mean((2, 3))
        return output._replace(logits=self.classifier(embedding), embedding=embedding)


@METHODS.register_module("simkd")
class SimKD(TeacherMethod):
    """Chen et al.: weight * mean (P(f_s) - f_t)^2 on the last stage, P a projector, and nothing else: no CE.

    The student's own classifier is not trained. Deployed are the student's stages, the projector and the teacher's classifier,
    whose parameters therefore count as the student's. Where maps differ in size, the larger is average-pooled to the smaller.

    Args:
        weight: factor on the feature term, above 0.
        reduction: by which the projector's inner width is smaller than the teacher's channels, 1 or more.

    Raises:
        ValueError: in `setup`, where the teacher's classifier does not work on the mean of its last stage; in `predictor`,
            where `setup` got no networks.
    """

    card = Card(
        title="SimKD (reused teacher classifier)",
        formula="weight mean (P(f3_s) - f3_t)^2; logits = W_t mean over space of P(f3_s) + b_t",
        paper="Chen, Mei, Zhang, Wang, Feng, Chen. Knowledge Distillation with the Reused Teacher Classifier. CVPR 2022. "
        "arXiv:2203.14001",
        source="DefangChen/SimKD",
        train_only="none; the projector and the teacher's classifier are deployed, the student's classifier is not",
    )
    ce_weight = 0.0
    needs_maps = True

    def __init__(self, weight: float = 1.0, reduction: int = 2) -> None:
        super().__init__()
        self.weight, self.reduction = weight, reduction
        self.classifier: nn.Module | None = None

    def setup(self, context: Context) -> None:
        student, teacher = context.student, context.require_teacher()
        check_mean_embedding(teacher, "simkd", "teacher")
        feature_s, feature_t = pool_to_smaller(student.activated[-1], teacher.activated[-1])
        self.projector = projector(feature_s.shape[1], feature_t.shape[1], self.reduction)
        self.size = (feature_t.shape[2], feature_t.shape[3])
        if context.networks is not None:
            self.classifier = copy.deepcopy(context.networks.require_teacher().classifier).requires_grad_(False)

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        feature_s, feature_t = pool_to_smaller(student.activated[-1], teacher.activated[-1])
        simkd = squared_error(widened(self.projector(feature_s)), widened(feature_t).detach())
        return {"simkd": self.weight * simkd}

    def predictor(self, student: nn.Module) -> nn.Module:
        if self.classifier is None:
            raise ValueError("simkd deploys the teacher's classifier: `setup` must be given the networks")
        return ReusedClassifier(student, self.projector, self.classifier, self.size)
