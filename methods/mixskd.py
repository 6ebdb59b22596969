"""Mixup self-distillation: what a network says of a mix of two images, and the mix of what it says of each, are made alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Method, Networks, Output
from methods.parts import part, shuffled, softened_kl, unwrapped, widened


class Exit(nn.Module):
    """From a stage of the student to a last map and logits: shuffled copies of later stages, head and classifier."""

    def __init__(self, blocks: nn.Module, head: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.blocks, self.head, self.classifier = blocks, head, classifier

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        last = self.blocks(feature)
        return last, widened(self.classifier(self.head(last)))


class Ensemble(nn.Module):
    """Last maps (B, C, H, W) of all exits to logits (B, K)."""

    def __init__(self, exits: int, channels: int, classes: int) -> None:
        super().__init__()
        self.join = nn.Conv2d(exits * channels, channels, 1, bias=False)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return widened(self.classifier(self.join(torch.cat(maps, dim=1)).mean((2, 3))))


def discriminator(channels: int) -> nn.Sequential:
    """From a pooled map (B, C) to two logits: a mix of outputs, or the output for a mix."""
    return nn.Sequential(nn.Linear(channels, 128), nn.ReLU(), nn.Linear(128, 2)).requires_grad_(False)


@METHODS.register_module("mixskd")
class MixSKD(Method):
    """Yang et al.: each batch also holds mixes, kept * x + (1 - kept) * x', of its images. Stages but the last have exits.

    With z~, f~ an exit's logits and last map for the mixes, and z-, f- the same mix of those for the images:

        "exits":     cross-entropies: of shallow exits' z with the labels, of all z~ and of the ensembles with the mixed labels
        "kd":        weight * T^2 * ( sum over shallow exits of KL(z~ || z-) + KL(z- || z~), and of the last exit
                     KL(E(f~) || z-) + KL(E(f-) || z~) )
        "features":  feature_weight * sum over exits of mean (f- - f~)^2
        "adversary": adversary_weight * sum over exits of the BCE of fixed discriminators of f- and f~

    E joins the last maps of all exits. No gradient flows through the first distribution of a divergence. Images and mixes take
    one forward pass.

    Args:
        weight: factor on the divergences, 0 or more.
        temperature: T, above 0.
        feature_weight: factor on the squared distances, 0 or more.
        adversary_weight: factor on the discriminators' loss, 0 or more.

    Raises:
        ValueError: in `setup`, for a student of a single stage, or without networks.
    """

    card = Card(
        title="Mixup self-knowledge distillation",
        formula="CE of all exits on images and mixes + weight T^2 KL(both ways) + feature_weight sum |f- - f~|^2 + "
        "adversary_weight BCE",
        paper="Yang, An, Zhou, Cai, Zhi, Wu, Xu, Zhang. MixSKD: Self-Knowledge Distillation from Mixup for Image Recognition. "
        "ECCV 2022. arXiv:2208.05768",
        source="winycg/Self-KD-Lib",
        deviations="the ensembles' cross-entropies are in, as in its ImageNet script; the CIFAR one drops them. The "
        "discriminators are not trained, as in both. The last exit is deployed; the code reports the best of all. Shares are "
        "drawn from Beta(.4, .4), also on ImageNet, where the code has .1",
        train_only="an exit for each stage but the last, as large as the stages behind it; the ensemble; fixed discriminators",
    )
    partner = "mixed"
    needs_hard_labels = True
    needs_maps = True

    exits: nn.ModuleList

    def __init__(
        self, weight: float = 1.0, temperature: float = 3.0, feature_weight: float = 1.0, adversary_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.weight, self.temperature = weight, temperature
        self.feature_weight, self.adversary_weight = feature_weight, adversary_weight

    def setup(self, context: Context) -> None:
        networks, stages = context.networks, context.student.stages
        if networks is None:
            raise ValueError("mixskd copies the student's later stages; its setup needs the networks")
        if len(networks.student.blocks) != len(context.student.stages):
            raise ValueError("mixskd copies the student's stages, and this network has no modules that are its stages")
        if len(stages) < 2:
            raise ValueError("mixskd needs a student of at least two stages")
        network = unwrapped(networks.student)
        head = getattr(network, "head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        blocks, classifier = networks.student.blocks, networks.student.classifier
        self.exits = nn.ModuleList(
            Exit(shuffled(nn.Sequential(*blocks[i:])), shuffled(head), shuffled(classifier)) for i in range(1, len(stages))
        )
        channels = stages[-1].shape[1]
        self.ensemble = Ensemble(len(stages), channels, context.classes)
        self.discriminators = nn.ModuleList(discriminator(channels) for _ in stages)

    def loss(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        raise ValueError("mixskd runs the student on images and their mixes: call `step`")

    def step(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        assert batch.partner is not None
        assert batch.other is not None
        assert batch.kept is not None
        both = networks.student(torch.cat((batch.image, batch.partner)))
        size, other, kept = len(batch.image), batch.other, batch.kept

        def mix(rows: Tensor) -> Tensor:
            return kept * rows[:size] + (1 - kept) * rows[:size][other]

        def mixed_label_loss(logits: Tensor) -> Tensor:
            return kept * F.cross_entropy(logits, batch.target) + (1 - kept) * F.cross_entropy(logits, batch.target[other])

        def imitates(logits: Tensor, example: Tensor) -> Tensor:
            return softened_kl(logits, example.detach(), self.temperature)

        shallow = [exit_(stage) for exit_, stage in zip(self.exits, both.stages[:-1], strict=True)]
        maps = [widened(last) for last, _ in shallow] + [widened(both.stages[-1])]
        logits = [z for _, z in shallow] + [widened(both.logits)]
        mixes, of_mixes = [mix(last) for last in maps], [last[size:] for last in maps]
        ensembles = [self.ensemble(mixes), self.ensemble(of_mixes)]
        mixed_z, z_of_mixed = [mix(z) for z in logits], [z[size:] for z in logits]

        labels = [F.cross_entropy(z[:size], batch.target) for z in logits[:-1]]
        labels += [mixed_label_loss(z) for z in (*z_of_mixed, *ensembles)]
        kd = [imitates(mixed_z[-1], ensembles[1]), imitates(z_of_mixed[-1], ensembles[0])]
        for mixed, of_mixed in zip(mixed_z[:-1], z_of_mixed[:-1], strict=True):
            kd += [imitates(mixed, of_mixed), imitates(of_mixed, mixed)]
        return {
            "ce": self.cross_entropy(part(both, slice(size)), batch),
            "exits": torch.stack(labels).sum(),
            "kd": self.weight * torch.stack(kd).sum(),
            "features": self.feature_weight
            * torch.stack([F.mse_loss(*pair) for pair in zip(mixes, of_mixes, strict=True)]).sum(),
            "adversary": self.adversary_weight * self._adversary(mixes, of_mixes),
        }

    def _adversary(self, mixes: list[Tensor], of_mixes: list[Tensor]) -> Tensor:
        """Sum over exits of the binary cross-entropy with which their discriminators tell two kinds of maps apart."""
        losses = []
        for judge, first, second in zip(self.discriminators, mixes, of_mixes, strict=True):
            logits = widened(judge(torch.cat((first, second)).mean((2, 3))))
            kinds = torch.arange(len(logits), device=logits.device) >= len(first)
            target = torch.stack((~kinds, kinds), dim=1).to(logits.dtype)
            losses.append(F.binary_cross_entropy_with_logits(logits, target))
        return torch.stack(losses).sum()
