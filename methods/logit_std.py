"""Logit standardization: a method on logits sees them with mean 0 and standard deviation 1 for each image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from methods.base import METHODS, Batch, Card, Method, Output
from methods.composition import Composition, adds_terms, overrides
from methods.parts import widened


def standardized(logits: Tensor) -> Tensor:
    """(B, K): each row less its mean, over its standard deviation (of K - 1 degrees of freedom) + 1e-7."""
    logits = widened(logits)
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-7)


@METHODS.register_module("logit_std")
class LogitStandardization(Composition):
    """Sun et al.: weight * the terms of `method` on standardized logits of student and teacher, beside that method's
    cross-entropy on the plain ones.

    Args:
        method: the wrapped method, as `{"type": key, **arguments}`. Its temperature is the paper's base temperature, 2 there.
        weight: factor on the sum of the wrapped terms, beside their own weights, at least 0; the presets have the published 9.

    Raises:
        ValueError: `method` is not one that compares the logits of one batch: it has a step or preparation of its own, or
            no term beside the cross-entropy.
    """

    card = Card(
        title="Logit standardization",
        formula="CE(z) + weight L((z_s - mean z_s) / std z_s, (z_t - mean z_t) / std z_t), L the wrapped method's terms",
        paper="Sun, Ren, Li, Wang, Cao. Logit Standardization in Knowledge Distillation. CVPR 2024. arXiv:2403.01427",
        source="sunshangquan/logit-standardization-KD",
        deviations="none. Around dkd the authors' published runs predate a repair of their code (2024-05-18): these have beta "
        "equal to alpha, and temperature 4",
        train_only="those of the wrapped method",
    )
    presets = {
        "kd": {"method": {"type": "kd", "temperature": 2.0, "weight": 1.0, "ce_weight": 0.1}, "weight": 9.0},
        "dkd": {"method": {"type": "dkd", "temperature": 2.0}, "weight": 9.0},
        # Pairs are with kd, at the temperature and weight in the names of the authors' logs.
        "wrn_40_2/wrn_16_2": {"method": {"type": "kd", "temperature": 2.0, "weight": 1.0, "ce_weight": 0.1}, "weight": 9.0},
        "wrn_40_2/wrn_40_1": {"method": {"type": "kd", "temperature": 2.0, "weight": 1.0, "ce_weight": 0.1}, "weight": 9.0},
        "resnet56/resnet20": {"method": {"type": "kd", "temperature": 2.0, "weight": 1.0, "ce_weight": 0.1}, "weight": 9.0},
        "resnet110/resnet20": {"method": {"type": "kd", "temperature": 4.0, "weight": 1.0, "ce_weight": 0.1}, "weight": 12.0},
        "resnet110/resnet32": {"method": {"type": "kd", "temperature": 2.0, "weight": 1.0, "ce_weight": 0.1}, "weight": 9.0},
        "resnet32x4/resnet8x4": {"method": {"type": "kd", "temperature": 2.0, "weight": 1.0, "ce_weight": 0.1}, "weight": 9.0},
        "vgg13/vgg8": {"method": {"type": "kd", "temperature": 3.0, "weight": 1.0, "ce_weight": 0.1}, "weight": 9.0},
        "vgg13/mobilenetv2": {"method": {"type": "kd", "temperature": 3.0, "weight": 1.0, "ce_weight": 0.1}, "weight": 9.0},
        "resnet50/mobilenetv2": {"method": {"type": "kd", "temperature": 3.0, "weight": 1.0, "ce_weight": 0.1}, "weight": 1.0},
        "resnet32x4/shufflenetv2": {
            "method": {"type": "kd", "temperature": 2.0, "weight": 1.0, "ce_weight": 0.1},
            "weight": 9.0,
        },
        "resnet34/resnet18": {"method": {"type": "kd", "temperature": 2.0, "weight": 1.0, "ce_weight": 1.0}, "weight": 9.0},
    }

    example = presets["kd"]

    def __init__(self, method: dict[str, Any], weight: float = 1.0) -> None:
        super().__init__()
        self.method: Method = METHODS.build(method)
        self.weight = weight
        if overrides(self.method, "step") or self.method.prepare_epochs:
            raise ValueError(f"logit_std wraps methods on the logits of one batch, which '{method['type']}' is not")
        if not adds_terms(self.method):
            raise ValueError(f"logit_std weights the terms beside the cross-entropy, and '{method['type']}' has none")
        self.fold_flags()

    @property
    def members(self) -> dict[str, Method]:
        return {"method": self.method}

    def loss(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        student_std = student._replace(logits=standardized(student.logits))
        teacher_std = teacher and teacher._replace(logits=standardized(teacher.logits))
        terms = self.method.loss(student_std, teacher_std, batch)
        others = [term for name, term in terms.items() if name != "ce"]
        return {"ce": self.method.cross_entropy(student, batch), "logit_std": self.weight * torch.stack(others).sum()}
