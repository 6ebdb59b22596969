"""How good a network is on a split of the data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.engine.device import autocast
from bench.engine.distributed import ALONE, Team


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in percent. With fewer than five classes top-5 counts all of them."""

    top1: float
    top5: float
    correct: Tensor  # (N,) of bool, on the device: which images of this process's part have the right class first


def evaluate(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str, device: torch.device, team: Team = ALONE
) -> Evaluation:
    """Evaluate a network in eval mode. Waits for the device once.

    Args:
        batches: (B, C, H, W) images and (B,) labels, this process's part of them.
    """
    hits = torch.zeros(3, dtype=torch.int64, device=device)  # first, among the first five, samples
    correct = []
    was_training = network.training
    network.eval()
    with torch.no_grad(), autocast(device, precision):
        for image, target in batches:
            logits = network(image).logits
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
            correct.append(ranked[:, 0])
            hits[:2] += torch.stack([ranked[:, 0].sum(), ranked.sum()])
            hits[2] += len(target)
    network.train(was_training)
    hits = team.sum(hits).double()
    top1, top5 = (100 * hits[:2] / hits[2]).tolist()
    return Evaluation(top1, top5, torch.cat(correct))
