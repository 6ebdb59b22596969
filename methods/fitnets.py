"""FitNets: one feature of the student, through a regressor, imitates the teacher's."""

from __future__ import annotations

from torch import Tensor

from methods.base import METHODS, Batch, Card, Context, Output, TeacherMethod
from methods.parts import Regressor, squared_error, widened


@METHODS.register_module("fitnets")
class FitNets(TeacherMethod):
    """Romero et al.: weight * mean of (r(f_s) - f_t)^2, with r a convolution, batch norm and ReLU, beside CE.

    Args:
        weight: factor on the hint term, 0 or more.
        stage: which feature is the hint, counted alike in both networks, 0 or more; 0 is the stem.

    Raises:
        ValueError: in `setup`, where a network has no such stage or no regressor leads from one map's size to the other's.
    """

    card = Card(
        title="FitNets (hints)",
        formula="CE + weight mean (ReLU(BN(conv(f2_s))) - f2_t)^2",
        paper="Romero et al. FitNets: Hints for Thin Deep Nets. ICLR 2015. arXiv:1412.6550",
        source="RepDistiller",
        deviations="the hint is trained together with the cross-entropy, as RepDistiller does, not in a stage before it",
        train_only="regressor: convolution and batch norm",
    )

    def __init__(self, weight: float = 100.0, stage: int = 2) -> None:
        super().__init__()
        self.weight, self.stage = weight, stage

    def hint(self, output: Output) -> Tensor:
        """The feature (B, C, H, W) of the chosen stage."""
        return (output.stem, *output.stages)[self.stage]

    def setup(self, context: Context) -> None:
        student, teacher = context.student, context.require_teacher()
        deepest = min(len(student.stages), len(teacher.stages))
        if not 0 <= self.stage <= deepest:
            raise ValueError(f"fitnets has no stage {self.stage} to take in both networks; there are 0 (the stem) to {deepest}")
        self.regressor = Regressor(self.hint(student), self.hint(teacher))

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        guess, hint = widened(self.regressor(self.hint(student))), widened(self.hint(teacher)).detach()
        return {"fitnets": self.weight * squared_error(guess, hint)}
