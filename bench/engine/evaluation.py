"""How good a network is on a split of the data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.engine.device import autocast
from bench.engine.distributed import ALONE, Team

BINS = 15  # of confidence, equally wide: Guo et al. 2017, arXiv:1706.04599


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in percent. With fewer than five classes top-5 counts all of them."""

    top1: float
    top5: float
    nll: float  # mean negative log-likelihood, nats
    calibration_error: float  # expected: distance of accuracy and confidence, mean over samples by bins of confidence; percent
    correct: Tensor  # (N,) of bool, on the device: which images of this process's part have the right class first


def evaluate(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str, device: torch.device, team: Team = ALONE
) -> Evaluation:
    """Evaluate a network in eval mode. Waits for the device once.

    Args:
        batches: (B, C, H, W) images and (B,) labels, this process's part of them.
    """
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # right first, right among the first five, samples, nats
    excess = torch.zeros(BINS, dtype=torch.float64, device=device)  # right first minus confidence
    correct, bins = [], torch.arange(BINS, device=device)
    was_training = network.training
    network.eval()
    with torch.no_grad(), autocast(device, precision):
        for image, target in batches:
            logits = network(image).logits
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
            first = ranked[:, 0]
            correct.append(first)
            log_p = logits.double().log_softmax(dim=1)
            confidence = log_p.amax(dim=1).exp()
            nats = -log_p.gather(1, target[:, None]).sum()
            sums += torch.stack([first.sum(), ranked.sum(), torch.ones_like(target).sum(), nats])
            within = (confidence * BINS).long().clamp(max=BINS - 1)[:, None] == bins
            excess += (within * (first.double() - confidence)[:, None]).sum(dim=0)
    network.train(was_training)
    right, right_of_five, samples, nats, *apart = team.sum(torch.cat([sums, excess])).tolist()
    return Evaluation(
        top1=100 * right / samples,
        top5=100 * right_of_five / samples,
        nll=nats / samples,
        calibration_error=100 * sum(map(abs, apart)) / samples,
        correct=torch.cat(correct),
    )
