"""Deep mutual learning: its values, its training beside two plain networks, and its peers on the bill."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.engine.assemble import assemble
from bench.engine.flops import count_flops
from bench.models import MODELS, Network
from bench.records.folders import ResultsFolder
from bench.records.options import Options
from methods import METHODS
from methods.base import Batch, Context, Networks

B, K = 6, 5
DRAWS = torch.Generator().manual_seed(0)
IMAGES = torch.randn(4, B, 1, 8, 8, generator=DRAWS, dtype=torch.float64)
TARGETS = torch.randint(0, K, (4, B), generator=DRAWS)


def network(seed: int) -> Network:
    torch.manual_seed(seed)
    return MODELS.build({"type": "resnet8", "classes": K, "channels": 1}).double()


def batch(step: int) -> Batch:
    return Batch(IMAGES[step], TARGETS[step], torch.arange(B))


def set_up(student: Network, **arguments):
    method = METHODS.build({"type": "dml", **arguments})
    output = copy.deepcopy(student)(IMAGES[0])
    networks = Networks(student)
    method.setup(Context(output, None, K, B, B, (1, 8, 8), networks=networks, another=lambda number: network(5 + number)))
    return method, networks


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum(1).mean())


def test_each_network_learns_the_labels_and_the_others():
    student = network(0)
    method, networks = set_up(student, weight=3.0, peers=2, temperature=2.0)
    found = {name: term.detach() for name, term in method.step(networks, batch(0)).items()}
    logits = [each(IMAGES[0]).logits.detach().numpy() for each in (network(0), network(5), network(6))]
    soft, plain = ([np.exp(z / t) / np.exp(z / t).sum(1, keepdims=True) for z in logits] for t in (2, 1))
    labels = [-np.log(p[np.arange(B), TARGETS[0].numpy()]).mean() for p in plain]
    from_others = [4 * np.mean([kl(soft[other], soft[own]) for other in range(3) if other != own]) for own in range(3)]
    assert float(found["ce"]) == pytest.approx(labels[0])
    assert float(found["dml"]) == pytest.approx(3 * from_others[0])
    assert float(found["peers"]) == pytest.approx(sum(labels[1:]) + 3 * sum(from_others[1:]))


def test_two_networks_move_as_under_two_plain_optimizers():
    student = network(0)
    method, networks = set_up(student)
    ours = torch.optim.SGD([*student.parameters(), *method.parameters()], lr=0.1, momentum=0.9, weight_decay=5e-4)
    pair = [network(0), network(5)]
    plain = [torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4) for each in pair]
    for step in range(4):
        ours.zero_grad()
        sum(method.step(networks, batch(step)).values()).backward()
        ours.step()
        logits = [each(IMAGES[step]).logits for each in pair]
        for own, optimizer in enumerate(plain):
            other = logits[1 - own].detach()
            divergence: Tensor = F.kl_div(logits[own].log_softmax(1), other.softmax(1), reduction="batchmean")
            optimizer.zero_grad()
            (F.cross_entropy(logits[own], TARGETS[step]) + divergence).backward()
            optimizer.step()
    for mine, theirs in zip((student, method.networks[0]), pair, strict=True):
        for name, value in mine.state_dict().items():
            torch.testing.assert_close(value, theirs.state_dict()[name], msg=name)


def test_a_peer_is_a_network_of_its_own_and_on_the_bill(tiny, tmp_path):
    grid = tiny(
        data={"type": "digits", "train_images": 32, "test_images": 20},
        recipe={"name": "digits", "epochs": 1, "batch_size": 16},
        methods=["none", "dml", {"dml": {"peers": 2}}],
        pairs=[{"student": "resnet8"}],
        seeds=[0, 1],
    )
    folder, options = ResultsFolder(tmp_path).grid(grid.name), Options(device="cpu", threads=1)
    by_seed = {}
    for seed in (0, 1):
        cells = [cell for cell in grid.cells if cell.seed == seed]
        assembly = assemble(cells, folder, options)
        by_seed[seed] = [assembly.trainees[cell.id] for cell in cells]
        none, one, two = by_seed[seed]
        deployed, _ = none.parameter_counts()
        assert [each.parameter_counts() for each in (none, one, two)] == [(deployed, n * deployed) for n in range(3)]
        assert all(torch.equal(a, b) for a, b in zip(none.student.parameters(), one.student.parameters(), strict=True))
    steps = [count_flops(assembly, trainee).step for trainee in by_seed[1]]
    assert steps[1:] == pytest.approx([2 * steps[0], 3 * steps[0]])
    first = [trainee.student.stem[0].weight for trainee in (by_seed[0][1], by_seed[1][1])]
    peers = [peer.stem[0].weight for seed in (0, 1) for peer in by_seed[seed][2].method.networks]
    assert all(not torch.equal(a, b) for i, a in enumerate([*first, *peers]) for b in [*first, *peers][i + 1 :])
    assert torch.equal(peers[0], by_seed[0][1].method.networks[0].stem[0].weight)


def test_without_a_way_to_build_a_peer_it_is_refused():
    output = network(0)(IMAGES[0])
    with pytest.raises(ValueError, match="its setup was given no way to"):
        METHODS.build({"type": "dml"}).setup(Context(output, None, K, B, B, (1, 8, 8)))
    with pytest.raises(ValueError, match="peers: 0 is not possible"):
        METHODS.build({"type": "dml", "peers": 0})
