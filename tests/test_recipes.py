"""Recipes of today: optimizers, schedules and what they leave out, against timm and torch, or by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from bench.engine.assemble import assemble, untrained_teacher
from bench.engine.lockstep import draws, may_join
from bench.engine.optimizer import Optimizer, spared_from_decay
from bench.engine.schedule import learning_rate
from bench.errors import UserError
from bench.measure.usual_loop import UsualLoop
from bench.models import MODELS
from bench.models.base import DropPath
from bench.records.folders import ResultsFolder
from bench.records.options import Options
from bench.records.recipe import Recipe

CPU = Options(device="cpu", threads=1)
DIGITS = {"name": "digits", "epochs": 2, "batch_size": 16}
VIT = {"type": "timm", "name": "vit_tiny_patch16_224", "arguments": {"img_size": 8, "patch_size": 4, "depth": 4}}


def assembled(tiny, folder, **changes):
    grid = tiny(precision="fp32", **changes)
    return assemble(grid.cells[-1:], ResultsFolder(folder).grid("tiny"), CPU)


def test_adamw_is_its_papers(tiny, tmp_path):
    """By hand, in numpy: theta <- theta - lr (m^ / (sqrt v^ + eps) + wd theta), Loshchilov and Hutter's algorithm 2."""
    recipe = {**DIGITS, "optimizer": {"type": "adamw", "betas": [0.8, 0.95], "eps": 1e-6}, "weight_decay": 0.05}
    assembly = assembled(tiny, tmp_path, recipe=recipe)
    [trainee] = assembly.trainees.values()
    optimizer, weight = Optimizer(trainee, assembly.device), trainee.student.classifier.weight
    theta, m, v = weight.detach().double().numpy(), np.zeros(1), np.zeros(1)
    for t, (lr, batch) in enumerate(zip((1e-3, 2e-3, 5e-4), assembly.stream(trainee).epoch(0), strict=False), 1):
        optimizer.set_lr(lr)
        sum(trainee(batch).values()).backward()
        g = weight.grad.double().numpy()
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        theta = theta - lr * (m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6) + 0.05 * theta)
        optimizer.step()
    assert weight.detach().double().numpy() == pytest.approx(theta, abs=1e-7)
    kinds = {tuple(state) for state in optimizer.inner.state.values()}
    assert kinds == {("step", "exp_avg", "exp_avg_sq")}
    assert len(optimizer.momenta()) == 3 * len(trainee.trained_parameters())


@pytest.mark.parametrize("student", ["resnet8", VIT])
def test_what_is_spared_from_decay_is_timms(student, tiny, tmp_path):
    pytest.importorskip("timm")
    from timm.optim import param_groups_weight_decay

    recipe = {**DIGITS, "optimizer": "adamw", "decay_all": False, "weight_decay": 0.05}
    [trainee] = assembled(tiny, tmp_path, recipe=recipe, pairs=[{"student": student}]).trainees.values()
    skipped = getattr(getattr(trainee.student, "body", None), "no_weight_decay", set)()
    theirs, _ = param_groups_weight_decay(trainee.student, 0.05, no_weight_decay_list=[f"body.{name}" for name in skipped])
    spared = {id(parameter) for parameter in spared_from_decay(trainee)}
    assert spared == {id(parameter) for parameter in theirs["params"]}
    groups = Optimizer(trainee, torch.device("cpu")).inner.param_groups
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert {id(parameter) for parameter in groups[1]["params"]} == spared
    if student is VIT:
        assert {"body.pos_embed", "body.cls_token"} <= {
            name for name, parameter in trainee.student.named_parameters() if id(parameter) in spared
        }


def test_networks_that_a_method_builds_are_spared_alike(tiny, tmp_path):
    pytest.importorskip("timm")
    recipe = {**DIGITS, "decay_all": False}
    [trainee] = assembled(tiny, tmp_path, recipe=recipe, pairs=[{"student": VIT}], methods=["dml"]).trainees.values()
    spared = {id(parameter) for parameter in spared_from_decay(trainee)}
    embeddings = [parameter for name, parameter in trainee.core.named_parameters() if name.endswith("pos_embed")]
    assert len(embeddings) > 1
    assert {id(parameter) for parameter in embeddings} <= spared


def test_a_methods_own_weight_decay_stays(tiny, tmp_path):
    recipe = {**DIGITS, "decay_all": False}
    [trainee] = assembled(tiny, tmp_path, recipe=recipe).trainees.values()
    first, *rest = trainee.trained_parameters()
    trainee.method.parameter_groups = lambda _: [{"params": [first], "weight_decay": 0.3}, {"params": rest, "lr_factor": 2.0}]
    optimizer = Optimizer(trainee, torch.device("cpu"))
    optimizer.set_lr(0.1)
    found = [(group["weight_decay"], float(group["lr"])) for group in optimizer.inner.param_groups]
    assert found == [(0.3, 0.1), (5e-4, 0.2), (0.0, 0.2)]


def rates(recipe, steps_per_epoch=3):
    return [learning_rate(recipe, epoch * steps_per_epoch, steps_per_epoch) for epoch in range(recipe.epochs)]


@pytest.mark.parametrize(("warmup", "start", "floor"), [(20, 5e-7, 1e-5), (3, 1e-4, 1e-3), (0, 0.0, 0.0)])
def test_timms_cosine_is_timms(warmup, start, floor):
    pytest.importorskip("timm")
    from timm.scheduler import CosineLRScheduler

    recipe = Recipe(epochs=50, lr=0.05, schedule="timm_cosine", warmup_epochs=warmup, warmup_lr=start, min_lr=floor)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.05)
    scheduler = CosineLRScheduler(optimizer, t_initial=50, lr_min=floor, warmup_t=warmup, warmup_lr_init=start)
    theirs = []
    for epoch in range(50):
        theirs.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch + 1)
    assert rates(recipe) == pytest.approx(theirs)


def test_the_cosine_ends_at_its_floor_and_the_warm_up_begins_at_its_start():
    recipe = Recipe(epochs=10, lr=1.0, schedule="cosine", min_lr=0.2, warmup_epochs=2, warmup_lr=0.1)
    found = [learning_rate(recipe, step, 4) for step in range(40)]
    assert found[:8] == pytest.approx([0.1 + 0.9 * (step + 1) / 8 for step in range(8)])
    assert found[8:] == pytest.approx([0.2 + 0.8 * (1 + math.cos(math.pi * step / 32)) / 2 for step in range(32)])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"min_lr": 0.01}, "recipe: min_lr has no effect beside schedule step"),
        ({"warmup_lr": 0.01}, "recipe: warmup_lr needs warmup_epochs above 0"),
        ({"schedule": "cosine", "min_lr": 2.0}, "min_lr 2 and warmup_lr 0 are at most lr, which is 0.05"),
        ({"optimizer": "adamv"}, r"recipe\.optimizer: .*adamv.*adamw"),
        ({"optimizer": {"type": "adamw", "beta": [0.9, 0.99]}}, r"recipe\.optimizer\.beta: .*betas"),
        ({"optimizer": {"type": "adamw", "betas": [0.9, 1.5]}}, r"recipe\.optimizer: Invalid beta parameter at index 1: 1\.5"),
        (
            {"batch_size": 7, "accumulate": 4},
            r"batch_size 7 leaves some of 4 parts \(processes x accumulate\) fewer than 2 images",
        ),
        ({"optimizer": "adamw", "nesterov": True}, "nesterov has no effect beside optimizer adamw"),
    ],
)
def test_mistakes_in_recipes_are_named(recipe, message, tiny):
    with pytest.raises(UserError, match=message):
        tiny(recipe={"name": "crd", **recipe})


def test_the_usual_loop_refuses_what_it_lacks():
    with pytest.raises(UserError, match=r"knows no recipe\.optimizer, recipe\.decay_all"):
        UsualLoop(None, None, None, None, Recipe(optimizer="adamw", decay_all=False), None)


def test_at_its_default_nothing_new_is_in_the_identity(tiny):
    [plain], [other] = tiny().cells, tiny(recipe={**DIGITS, "optimizer": "sgd", "decay_all": True, "min_lr": 0.0}).cells
    assert plain.id == other.id
    [short], [full] = (
        tiny(recipe={**DIGITS, "optimizer": optimizer}).cells
        for optimizer in ("adamw", {"type": "adamw", "betas": [0.9, 0.999], "eps": 1e-8})
    )
    assert short.id == full.id != plain.id


def steps_taken(tiny, folder, student, wrap=lambda module: module, **recipe):
    """Weights and mean terms after three steps; the last batch has 8 images."""
    assembly = assembled(tiny, folder, recipe={**DIGITS, "lr": 0.01, **recipe}, pairs=[{"student": student}])
    step = assembly.step()
    [(cell_id, member)] = step.members.items()
    member.module = wrap(member.module)
    step.train()
    step.set_lr(0.01)
    for batch in assembly.stream(member.trainee).epoch(0):
        step(batch)
    return member.trainee.student.state_dict(), step.mean_terms(3)[cell_id]


def close(some, others):
    return all(torch.allclose(some[name].double(), others[name].double(), atol=1e-6) for name in some)


def test_gradients_of_parts_add_up_to_those_of_the_batch(tiny, tmp_path):
    """Where nothing looks across images, as in a transformer, the parts make no difference; last batch: parts of 3, 3 and 2."""
    pytest.importorskip("timm")
    (whole, terms), (parts, sums) = (steps_taken(tiny, tmp_path, VIT, accumulate=n) for n in (1, 3))
    assert close(whole, parts)
    assert sums == pytest.approx(terms)


def test_batch_norm_sees_a_part(tiny, tmp_path):
    found, _ = steps_taken(tiny, tmp_path, "resnet8", accumulate=2)
    assembly = assembled(tiny, tmp_path, recipe=DIGITS, pairs=[{"student": "resnet8"}])
    [trainee] = assembly.trainees.values()
    optimizer = Optimizer(trainee, assembly.device)
    optimizer.set_lr(0.01)
    trainee.train()
    for batch in assembly.stream(trainee).epoch(0):
        for image, target in zip(batch.image.chunk(2), batch.target.chunk(2), strict=True):
            (nn.functional.cross_entropy(trainee.student(image).logits, target) / 2).backward()
        optimizer.step()
    assert close(found, trainee.student.state_dict())


def test_processes_average_gradients_once_a_step(tiny, tmp_path):
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    plain, _ = steps_taken(tiny, tmp_path, "resnet8", accumulate=2)
    reduced = []

    def average(_, bucket):
        reduced.append(bucket.index())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:

        def wrap(module):
            wrapped = DistributedDataParallel(module, find_unused_parameters=True)
            wrapped.register_comm_hook(None, average)
            return wrapped

        found, _ = steps_taken(tiny, tmp_path, "resnet8", wrap, accumulate=2)
    finally:
        dist.destroy_process_group()
    assert all(torch.equal(plain[name], found[name]) for name in plain)
    assert reduced.count(0) == 3  # of three steps with two parts each


def network(spec):
    return MODELS.build({**(spec if isinstance(spec, dict) else {"type": spec}), "classes": 4})


@pytest.mark.parametrize("name", ["resnet20", "preact_resnet18", "wrn_16_2", "mobilenetv2"])
def test_a_dropped_path_leaves_the_shortcut_and_the_others_are_scaled(name):
    student = network(name).train()
    student.drop_paths(0.5)
    units = [(unit, unit.drop_path) for unit in student.modules() if getattr(unit, "drop_path", None) is not None]
    rates = [path.rate for _, path in units]
    assert rates == pytest.approx([0.5 * place / (len(units) - 1) for place in range(len(units))])
    unit, path = units[-1]
    branches = []
    unit.branch.register_forward_hook(lambda *given: branches.append(given[2].detach()))
    torch.manual_seed(0)
    draws = torch.ones(64, 1, 1, 1).bernoulli_(0.5)
    x = torch.rand(64, next(p for p in unit.branch.parameters() if p.ndim == 4).shape[1], 4, 4)
    x = x if name != "preact_resnet18" else torch.rand(64, 512, 4, 4)
    torch.manual_seed(0)
    added = unit(x)
    path.rate = 0.0
    whole = unit(x)
    kept = draws.flatten().bool()
    assert 16 < int(kept.sum()) < 48
    assert torch.allclose(added[kept], whole[kept] + branches[0][kept], atol=1e-5)  # twice the branch
    assert torch.allclose(added[~kept], whole[~kept] - branches[0][~kept], atol=1e-5)  # none of it
    student.eval()
    path.rate = 0.5
    assert torch.equal(unit(x), unit(x))


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "mixer_b16_224", "resnet18", "swin_tiny_patch4_window7_224"])
def test_timms_networks_drop_paths_as_timm_does(name):
    timm = pytest.importorskip("timm")

    def rates(body):
        return {key: module.drop_prob for key, module in body.named_modules() if type(module).__name__ == "DropPath"}

    with torch.device("meta"):
        student = network({"type": "timm", "name": name})
        theirs = timm.create_model(name, drop_path_rate=0.3)
    before = torch.get_rng_state()
    student.drop_paths(0.3)
    assert torch.equal(torch.get_rng_state(), before)  # what is drawn next is not another
    assert rates(student.body) == rates(theirs)


def test_torchvisions_stochastic_depth_is_the_recipes():
    with torch.device("meta"):
        student = network({"type": "torchvision", "name": "convnext_tiny"})
    paths = [module for module in student.modules() if isinstance(module, DropPath)]
    assert len(paths) == 18
    assert {path.rate for path in paths} == {0.0}
    student.drop_paths(0.1)
    assert paths[-1].rate == 0.1


def test_a_network_without_branches_is_refused(tiny):
    with pytest.raises(UserError, match=r"tiny, recipe\.drop_path: vgg8 cannot have it: it has no residual branches"):
        tiny(recipe={**DIGITS, "drop_path": 0.1}, pairs=[{"student": "vgg8"}], data="cifar100")


@pytest.mark.parametrize(
    ("student", "recipe", "drawing"),
    [
        ("resnet8", {}, False),
        ("resnet8", {"drop_path": 0.1}, True),
        ({**VIT, "arguments": {**VIT["arguments"], "drop_path_rate": 0.1}}, {}, True),
        (VIT, {}, False),
    ],
)
def test_two_trainees_that_draw_do_not_train_together(student, recipe, drawing, tiny):
    first, second = tiny(methods=["none", "ls"], recipe={**DIGITS, **recipe}, pairs=[{"student": student}]).cells
    assert draws(first) == drawing
    assert may_join([first], second) != drawing


def test_adamw_in_lock_step_is_adamw_alone(tiny, tmp_path):
    """Bit for bit, with a teacher that is asked once for each part of a batch."""
    recipe = {**DIGITS, "optimizer": "adamw", "accumulate": 2, "augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.5}
    grid = tiny(precision="fp32", recipe=recipe, methods=["kd", "tfd"])
    cells = [cell for cell in grid.cells if cell.label in ("kd", "tfd")]

    def trained(group):
        torch.manual_seed(0)  # of the untrained teacher
        assembly = assemble(group, ResultsFolder(tmp_path).grid("tiny"), CPU, untrained_teacher)
        step = assembly.step()
        step.train()
        step.set_lr(1e-3)
        for batch in assembly.stream(next(iter(assembly.trainees.values()))).epoch(0):
            step(batch)
        return {cell_id: member.trainee.student.state_dict() for cell_id, member in step.members.items()}

    together = trained(cells)
    for cell in cells:
        [alone] = trained([cell]).values()
        assert all(torch.equal(alone[name], together[cell.id][name]) for name in alone)
