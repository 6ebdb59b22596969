"""Label smoothing: a share of the label's probability is spread over all classes."""

import torch.nn.functional as F
from torch import Tensor

from methods.base import METHODS, Batch, Card, Method, Output


@METHODS.register_module("ls")
class LabelSmoothing(Method):
    """Szegedy et al.: the cross-entropy with (1 - epsilon) y + epsilon / K. Mixed targets are smoothed in the same way.

    Args:
        epsilon: share of the probability that is spread, in [0, 1); 0 is the plain cross-entropy.
    """

    card = Card(
        title="Label smoothing",
        formula="CE(z, (1 - epsilon) y + epsilon / K)",
        paper="Szegedy et al. Rethinking the Inception Architecture for Computer Vision. CVPR 2016. arXiv:1512.00567",
    )

    def __init__(self, epsilon: float = 0.1) -> None:
        super().__init__()
        self.epsilon = epsilon

    @property
    def changes_cross_entropy(self) -> bool:
        return self.epsilon != 0.0

    def cross_entropy(self, student: Output, batch: Batch) -> Tensor:
        target = batch.target if batch.soft is None else batch.soft
        return F.cross_entropy(student.logits, target, label_smoothing=self.epsilon)
