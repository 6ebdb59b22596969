"""Deep mutual learning: networks of one kind that train together and teach each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Method, Output
from methods.parts import softened_kl, widened


@METHODS.register_module("dml")
class DeepMutualLearning(Method):
    """Zhang et al.: the student z_1 and peers z_2, ..., z_n; each learns from labels and from the others. Beside CE(z_1):

        "dml":   weight * mean_{l > 1} KL(softmax(z_l) || softmax(z_1))
        "peers": sum_{k > 1} [CE(z_k) + weight * mean_{l != k} KL(softmax(z_l) || softmax(z_k))]

    No gradient flows through a network that teaches. A peer is a network of the student's kind with an initialization of its
    own, which sees the same images. The student is deployed.

    Args:
        weight: factor on the divergences, 0 or more.
        peers: their number, in [1, 64].
        temperature: T, above 0; the divergences are multiplied by T^2.

    Raises:
        ValueError: in `setup`, without a way to build a peer.
    """

    card = Card(
        title="Deep mutual learning",
        formula="sum_k [CE(z_k) + weight/(n-1) sum_{l != k} KL(softmax(z_l) || softmax(z_k))], student z_1, peers z_2 to z_n",
        paper="Zhang, Xiang, Hospedales, Lu. Deep Mutual Learning. CVPR 2018. arXiv:1706.00384",
        deviations="all networks move at once, after one forward pass of each. The paper moves them in turn, and each sees "
        "what the others predict after their move. The paper states the accuracy of both networks; here the first counts",
        train_only="the peers",
    )

    networks: nn.ModuleList

    def __init__(self, weight: float = 1.0, peers: int = 1, temperature: float = 1.0) -> None:
        super().__init__()
        if not 1 <= peers <= 64:
            raise ValueError(f"peers: {peers} is not possible; allowed: 1 to 64")
        self.weight, self.peers, self.temperature = weight, peers, temperature

    def setup(self, context: Context) -> None:
        self.networks = nn.ModuleList(context.fresh(number) for number in range(self.peers))

    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        peers = [network(batch.image) for network in self.networks]
        logits = [widened(each.logits) for each in (student, *peers)]
        divergences = [self._divergence(logits, position) for position in range(len(logits))]
        labels = [self.cross_entropy(peer._replace(logits=z), batch) for peer, z in zip(peers, logits[1:], strict=True)]
        return {
            "dml": self.weight * divergences[0],
            "peers": torch.stack(labels).sum() + self.weight * torch.stack(divergences[1:]).sum(),
        }

    def _divergence(self, logits: list[Tensor], position: int) -> Tensor:
        """Of one network from the others, the mean."""
        others = [z.detach() for other, z in enumerate(logits) if other != position]
        return torch.stack([softened_kl(logits[position], z, self.temperature) for z in others]).mean()
