"""Teacher-free methods: values against numpy in float64 from the formulas, where gradients stop, what is remembered."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.models import MODELS
from methods import METHODS, Batch, Context, Method, Networks, Output

B, K, N = 6, 5, 12
TARGET = torch.tensor([0, 3, 1, 4, 3, 0])
LABELS = TARGET.numpy()
ROWS = np.arange(B)
KEYS = ["tfkd_reg", "tfkd_self", "cskd", "byot", "pskd", "dlb", "frskd", "uskd", "beta_ls", "one"]


def output(seed: int) -> Output:
    """Leaves in float64 that want gradients: three stages of 4, 6 and 8 channels at 8, 4 and 2 pixels a side."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    stages = tuple(draw(B, c, s, s).relu().requires_grad_() for c, s in ((4, 8), (6, 4), (8, 2)))
    return Output(2 * draw(B, K).requires_grad_(), draw(B, 8).requires_grad_(), stages, stages, draw(B, 3, 8, 8))


def batch(**fields: Any) -> Batch:
    return Batch(torch.zeros(B, 1, 8, 8, dtype=torch.float64), TARGET, torch.arange(B))._replace(**fields)


def build(spec: dict[str, Any], student: Output | None = None, **setup: Any) -> Method:
    """As the engine builds it, in float64, with the random numbers of seed 0."""
    torch.manual_seed(0)
    method = METHODS.build(spec)
    context = Context(student or output(0), None, classes=K, samples=N, batch_size=B, image=(1, 8, 8))
    method.setup(context._replace(**setup))
    return method.double()


def network() -> nn.Module:
    torch.manual_seed(1)
    return MODELS.build({"type": "resnet8", "classes": K, "channels": 1}).double()


def images(seed: int, count: int = B) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def softmax(logits: Tensor | np.ndarray, temperature: float = 1.0) -> np.ndarray:
    z = (array(logits) if isinstance(logits, Tensor) else logits) / temperature
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def cross_entropy(logits: Tensor, target: np.ndarray | None = None) -> float:
    """With hard labels, or with distributions."""
    target = np.eye(K)[LABELS] if target is None else target
    return float(-(target * np.log(softmax(logits))).sum(1).mean())


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> float:
    """T^2 KL, mean over the batch."""
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return float(temperature**2 * (p * np.log(p / q)).sum(1).mean())


def gradient(term: Tensor, *leaves: Tensor) -> list[float]:
    """Norm of the gradient by each leaf; 0 where there is none."""
    found = torch.autograd.grad(term, leaves, retain_graph=True, allow_unused=True)
    return [0.0 if g is None else float(g.norm()) for g in found]


def agrees(term: Tensor, expected: float) -> None:
    assert term.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


# --- Tf-KD ---


def test_tfkd_reg() -> None:
    student = output(0)
    terms = build({"type": "tfkd_reg", "weight": 3.0, "temperature": 2.0, "correct": 0.9}).loss(student, None, batch())
    designed = np.full((B, K), 0.1 / (K - 1))
    designed[ROWS, LABELS] = 0.9
    p, q = softmax(designed, 2.0), softmax(student.logits)
    agrees(terms["tfkd_reg"], 3.0 * (p * np.log(p / q)).sum() / (B * K))
    agrees(terms["ce"], 0.9 * cross_entropy(student.logits))


def test_tfkd_reg_by_default_is_the_papers_loss_on_100_classes() -> None:
    """.9 CE + .1 KL(softmax(p_d / 20) || p), the divergence summed over classes."""
    logits = torch.randn(B, 100, dtype=torch.float64)
    student = output(0)._replace(logits=logits)
    terms = METHODS.build({"type": "tfkd_reg"}).loss(student, None, batch())
    designed = np.full((B, 100), 0.01 / 99)
    designed[ROWS, LABELS] = 0.99
    p, q = softmax(designed, 20.0), softmax(logits)
    agrees(terms["tfkd_reg"], 0.1 * (p * np.log(p / q)).sum(1).mean())
    plain = METHODS.build({"type": "tfkd_reg", "preset": "plain"}).loss(student, None, batch())
    agrees(plain["tfkd_reg"], 10 * terms["tfkd_reg"].item())


def test_tfkd_self() -> None:
    student, teacher = output(0), output(1)
    terms = METHODS.build({"type": "tfkd_self", "weight": 2.0, "temperature": 6.0}).loss(student, teacher, batch())
    agrees(terms["tfkd_self"], 2.0 * divergence(teacher.logits, student.logits, 6.0) / K)
    agrees(terms["ce"], 0.05 * cross_entropy(student.logits))
    assert gradient(terms["tfkd_self"], teacher.logits) == [0.0]


# --- Partners: cskd, dlb ---


def test_cskd() -> None:
    student, partner = output(0), output(1)
    terms = METHODS.build({"type": "cskd", "weight": 2.0}).loss(student, partner, batch())
    agrees(terms["cskd"], 2.0 * divergence(partner.logits, student.logits, 4.0))
    agrees(terms["ce"], cross_entropy(student.logits))
    assert gradient(terms["cskd"], partner.logits) == [0.0]


def test_cskd_runs_the_student_on_the_partners_without_gradient() -> None:
    calls, outputs = [], {}

    def student(image: Tensor) -> Output:
        calls.append((image, torch.is_grad_enabled()))
        return outputs.setdefault(len(calls), output(len(calls)))

    now = batch(partner=images(3))
    terms = METHODS.build({"type": "cskd"}).step(Networks(student), now)
    assert [(image is now.image, image is now.partner, grad) for image, grad in calls] == [
        (True, False, True),
        (False, True, False),
    ]
    agrees(terms["cskd"], divergence(outputs[2].logits, outputs[1].logits, 4.0))


class Linear:
    """A student without batch statistics, so that halves of a joint forward pass can be computed apart."""

    def __init__(self) -> None:
        self.weight = torch.randn(64, K, generator=torch.Generator().manual_seed(5), dtype=torch.float64).requires_grad_()
        self.calls = 0

    def logits(self, image: Tensor) -> Tensor:
        return image.flatten(1) @ self.weight

    def __call__(self, image: Tensor) -> Output:
        self.calls += 1
        return Output(self.logits(image), image.flatten(1), (image,), (image,), image)


def test_dlb_remembers_the_previous_batch_within_an_epoch() -> None:
    method, student = build({"type": "dlb", "weight": 2.0}), Linear()
    steps = [
        batch(image=images(i), partner=images(10 + i), target=(TARGET + i) % K, epoch=epoch, epochs=3)
        for i, epoch in enumerate([0, 0, 0, 1, 1])
    ]
    remembered = None  # the previous step's logits
    for i, now in enumerate(steps):
        terms = method.step(Networks(student), now)
        assert student.calls == i + 1, "one forward pass for both halves"
        first = i == 0 or now.epoch != steps[i - 1].epoch
        before = now if first else steps[i - 1]
        again = student.logits(before.partner)
        agrees(terms["dlb"], 0.0 if first else 2.0 * divergence(remembered, again, 3.0))
        halves = [(student.logits(now.image), now.target), (again, before.target)]
        agrees(terms["ce"], float(np.mean([cross_entropy(z, np.eye(K)[t.numpy()]) for z, t in halves])))

        remembered = student.logits(now.image).detach()
        (grad,) = torch.autograd.grad(sum(terms.values()), student.weight)
        with torch.no_grad():
            student.weight -= 0.1 * grad


def test_dlb_forgets_after_a_batch_of_another_size() -> None:
    method, student = build({"type": "dlb"}), Linear()
    short = batch(image=images(1, 2), partner=images(2, 2), target=TARGET[:2], index=torch.arange(2))
    method.step(Networks(student), batch(partner=images(3)))
    for now in (short, batch(partner=images(4))):
        assert method.step(Networks(student), now)["dlb"].item() == 0.0


def test_dlb_resumes_exactly_at_an_epochs_start() -> None:
    first, net = build({"type": "dlb"}), network()
    for i in range(2):
        first.step(Networks(net), batch(image=images(i), partner=images(10 + i)))
    resumed, resumed_net = build({"type": "dlb"}), copy.deepcopy(net)
    resumed.load_state_dict(first.state_dict())
    for i in range(2):
        now = batch(image=images(20 + i), partner=images(30 + i), epoch=1, epochs=2)
        expected, found = first.step(Networks(net), now), resumed.step(Networks(resumed_net), now)
        assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in expected.items()}
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), resumed_net.buffers(), strict=True))


# --- Memories: pskd, beta_ls ---


@pytest.mark.parametrize("clock", [int, torch.tensor])
def test_pskd_over_three_epochs(clock: Any) -> None:
    method = build({"type": "pskd"})
    orders = [[4, 7, 0, 2, 9, 11], [0, 2, 4, 7, 9, 11], [11, 9, 7, 4, 2, 0]]
    past: dict[int, np.ndarray] = {}
    for epoch, order in enumerate(orders):
        student = output(epoch)
        now = batch(index=torch.tensor(order), epoch=clock(epoch), epochs=3)
        terms = method.loss(student, None, now)
        share = 0.8 * epoch / 3
        known = np.stack([past.get(i, np.zeros(K)) for i in order])
        expected = cross_entropy(student.logits, (1 - share) * np.eye(K)[LABELS] + share * known)
        assert terms["ce"].item() == pytest.approx(expected, rel=1e-9 if clock is int else 1e-6)
        past |= dict(zip(order, softmax(student.logits), strict=True))
    others = [i for i in range(N) if i not in orders[0]]
    assert np.allclose(array(method.predictions)[others], 1 / K), "images that were never seen stay as they were"
    assert np.allclose(array(method.predictions)[orders[2]], softmax(output(2).logits))


def test_beta_ls() -> None:
    student, average = output(0), output(1)
    method = METHODS.build({"type": "beta_ls", "weight": 2.0})
    torch.manual_seed(7)
    terms = method.loss(student, average, batch())
    torch.manual_seed(7)
    draws = np.sort(torch.rand(B, dtype=torch.float64).numpy() ** (1 / 3))  # P(b < x) = x^3
    right = np.empty(B)
    right[np.argsort(softmax(average.logits)[ROWS, LABELS])] = draws
    target = np.repeat((1 - right)[:, None] / (K - 1), K, axis=1)
    target[ROWS, LABELS] = right
    agrees(terms["beta_ls"], 2.0 * cross_entropy(student.logits, target))
    agrees(terms["ce"], 0.4 * cross_entropy(student.logits))
    assert gradient(terms["beta_ls"], average.logits) == [0.0]


def test_beta_ls_average_follows_the_student() -> None:
    net = network()
    method = build({"type": "beta_ls", "decay": 0.6}, networks=Networks(net))
    assert not any(p.requires_grad for p in method.parameters())
    expected = array(net.classifier.weight).copy()
    for n in range(4):
        keep = min(1 - 1 / (n + 1), 0.6)
        expected = keep * expected + (1 - keep) * array(net.classifier.weight)
        method.step(Networks(net), batch(image=images(n)))
        assert np.allclose(array(method.average.classifier.weight), expected, rtol=1e-6)
        with torch.no_grad():
            net.classifier.weight += 0.1


# --- Parts beside the student: byot, uskd, frskd, one ---


def test_byot() -> None:
    student = output(0)
    method = build({"type": "byot", "weight": 2.0, "feature_weight": 0.5})
    terms = method.loss(student, None, batch())
    exits = [exit_(stage) for exit_, stage in zip(method.exits, student.stages[:2], strict=True)]
    agrees(terms["ce"], 0.9 * cross_entropy(student.logits))
    agrees(terms["exits"], 0.9 * sum(cross_entropy(z) for _, z in exits))
    agrees(terms["kd"], 2.0 * sum(divergence(student.logits, z, 3.0) for _, z in exits))
    e = array(student.embedding)
    distances = [((array(x) - e) ** 2)[(array(x) > 0) | (e > 0)].sum() for x, _ in exits]
    agrees(terms["features"], 0.5 * sum(distances))
    assert gradient(terms["kd"] + terms["features"], student.logits, student.embedding) == [0.0, 0.0]
    assert all(gradient(terms["exits"], *student.stages[:2]))


def test_uskd() -> None:
    student = output(0)
    method = build({"type": "uskd", "alpha": 2.0, "beta": 3.0, "mu": 0.5, "weight": 1.5})
    terms = method.loss(student, None, batch())
    fc = method.classifier
    weak_logits = array(student.stages[1]).mean((2, 3)) @ array(fc.weight).T + array(fc.bias)
    s, w = softmax(student.logits), softmax(weak_logits)
    s_t, w_t = s[ROWS, LABELS], w[ROWS, LABELS]

    soft = s_t**2 + 1 - (s_t**2).mean()
    target_loss = -(soft * np.log(s_t)).mean()
    rest_loss = 0.0
    for i, t in enumerate(LABELS):
        score = w[i] / (1 - w_t[i]) + s[i] / (1 - s_t[i])
        others = [k for k in range(K) if k != t]
        zipf = {k: 1 / (1 + sum(score[j] > score[k] for j in range(K))) for k in others}
        rest_loss -= sum(zipf[k] / sum(zipf.values()) * np.log(s[i, k] / (1 - s_t[i])) for k in others) / B
    smoothed = 0.9 * np.eye(K)[LABELS] + 0.1 / K
    weak_loss = -(smoothed * np.log(w)).sum(1).mean()
    agrees(terms["uskd"], 1.5 * (2.0 * target_loss + 3.0 * rest_loss + 0.5 * weak_loss))
    agrees(terms["ce"], cross_entropy(student.logits))

    # The soft label is a constant: d/dz of -P log S_t is P (S - y).
    (found,) = torch.autograd.grad(
        build({"type": "uskd", "alpha": 1.0, "beta": 0.0}).loss(student, None, batch())["uskd"], student.logits
    )
    assert np.allclose(found.numpy(), soft[:, None] * (s - np.eye(K)[LABELS]) / B)


@pytest.mark.parametrize(("side", "size", "starts"), [(8, 4, [0, 2, 4, 6]), (7, 4, [-1, 1, 3, 5]), (16, 4, [0, 4, 8, 12])])
def test_frskd_pools_over_the_windows_of_the_source(side: int, size: int, starts: list[int]) -> None:
    """Padded as TensorFlow's "same" would: an even side with a stride of 2 at its end alone. Windows listed by hand."""
    from methods.frskd import max_pool_to

    feature = torch.rand(2, 3, side, side, dtype=torch.float64)
    whole, expected = array(feature), np.empty((2, 3, size, size))
    for i, top in enumerate(starts):
        for j, left in enumerate(starts):
            expected[:, :, i, j] = whole[:, :, max(0, top) : top + 3, max(0, left) : left + 3].max((2, 3))
    assert np.array_equal(array(max_pool_to(feature, torch.Size((size, size)))), expected)


def test_frskd() -> None:
    student = output(0)
    method = build({"type": "frskd", "weight": 1.5, "attention_weight": 10.0})
    terms = method.loss(student, None, batch())
    refined, logits = method.self_teacher(student.stages)
    assert [f.shape[1] for f in refined] == [8, 12, 16]

    def attention(feature: Tensor) -> np.ndarray:
        q = (array(feature) ** 2).mean(1).reshape(B, -1)
        return q / np.linalg.norm(q, axis=1, keepdims=True)

    distances = [((attention(f) - attention(r)) ** 2).mean() for f, r in zip(student.stages, refined, strict=True)]
    agrees(terms["ce"], cross_entropy(student.logits))
    agrees(terms["teacher"], cross_entropy(logits))
    agrees(terms["kd"], 1.5 * divergence(logits, student.logits, 4.0))
    agrees(terms["at"], 10.0 * sum(distances))
    assert not any(gradient(terms["kd"] + terms["at"], *method.parameters()))
    assert all(gradient(terms["teacher"], *method.parameters(), *student.stages))


def test_one() -> None:
    net = network()
    student = net(images(0))
    method = build({"type": "one", "weight": 2.0, "branches": 3, "ramp_epochs": 4}, student, networks=Networks(net))
    terms = method.loss(student, None, batch(epoch=1, epochs=8))
    feature = student.stages[1]
    logits = [student.logits, *(branch(feature) for branch in method.branches)]
    score = array(feature).mean((2, 3)) @ array(method.gate[0].weight).T + array(method.gate[0].bias)
    score = (score - score.mean(0)) / np.sqrt(score.var(0) + 1e-5)
    gate = softmax(np.maximum(score, 0))
    ensemble = torch.tensor(sum(gate[:, i, None] * array(z) for i, z in enumerate(logits)))
    agrees(terms["ce"], cross_entropy(student.logits))
    agrees(terms["branches"], sum(cross_entropy(z) for z in logits[1:]))
    agrees(terms["ensemble"], cross_entropy(ensemble))
    assert terms["kd"].item() == pytest.approx(2 / 4 * 2.0 * sum(divergence(ensemble, z, 3.0) for z in logits))
    assert not any(gradient(terms["kd"], *method.gate.parameters()))
    assert all(gradient(terms["kd"], *method.branches.parameters(), student.logits))


def test_one_branches_are_copies_of_the_last_stage_with_weights_of_their_own() -> None:
    net = network()
    method = build({"type": "one"}, net(images(0)), networks=Networks(net))
    own = nn.Sequential(net.blocks[-1], net.head, net.classifier)
    for first, second in itertools.combinations([own, *method.branches], 2):
        for p, q in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(p.flatten().sort().values, q.flatten().sort().values)
            assert p.std() == 0 or not torch.equal(p, q)
    with pytest.raises(ValueError, match="networks"):
        build({"type": "one"})


# --- All ---


@pytest.mark.parametrize("key", [key for key in KEYS if key != "one"])
def test_float64_without_the_networks(key: str) -> None:
    terms = build({"type": key, "weight": 1.0}).loss(output(0), output(1), batch(epoch=1, epochs=2))
    assert all(term.dtype == torch.float64 and term.ndim == 0 and term.isfinite() for term in terms.values())


@pytest.mark.parametrize("key", KEYS)
def test_the_deployed_student_is_the_plain_one(key: str) -> None:
    net = network()
    plain = {name: tensor.shape for name, tensor in net.state_dict().items()}
    nets = Networks(net, network().eval().requires_grad_(False))
    method = build({"type": key}, net(images(0)), networks=nets, targets=torch.arange(N) % K)
    for i in range(2):
        terms = method.step(nets, batch(image=images(i), partner=images(10 + i)))
        sum(terms.values()).backward()
    assert {name: tensor.shape for name, tensor in net.state_dict().items()} == plain
    assert method.predictor(net) is net
    assert not {id(p) for p in method.parameters()} & {id(p) for p in net.parameters()}
    assert all(p.grad is not None for p in [*net.parameters(), *method.parameters()] if p.requires_grad)
