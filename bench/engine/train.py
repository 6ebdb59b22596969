"""Cells in, records out: assembles the parts, runs them on mmengine's Runner, writes what came of it."""

from __future__ import annotations

import csv
import gc
import io
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from mmengine.optim import OptimWrapperDict
from mmengine.runner import BaseLoop, Runner
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.data import Dataset, Split, Stream, evaluation_batches, hold_out, load
from bench.engine.device import (
    autocast,
    hand_back_freed_memory,
    keep_freed_memory,
    machine,
    resolve_device,
    resolve_precision,
)
from bench.engine.distributed import ALONE, Team
from bench.engine.hooks import CheckpointHook, EvaluateHook, ProgressHook, VisualiseHook, unpack
from bench.engine.loop import Clock, Group, TrainLoop
from bench.engine.trainee import Answers, Optimiser, Teacher, Trainee
from bench.errors import UserError
from bench.models import MODELS, Network, stored
from bench.models.weights import read as read_weights
from bench.records.cell import Cell, seed_from
from bench.records.options import Options
from bench.records.record import Accuracies, Accuracy, Clocks, Flops, Parameters, Record
from bench.records.store import DamagedError, Store
from methods import METHODS, Context, Networks

Module = TypeVar("Module", bound=nn.Module)


class BenchRunner(Runner):
    """mmengine's Runner, less what it does to the model's device and what it writes by itself."""

    def wrap_model(self, model_wrapper_cfg: Any, model: nn.Module) -> nn.Module:
        return model

    def build_train_loop(self, loop: Any) -> BaseLoop:
        return TrainLoop(self, self._train_dataloader, **loop)  # mmengine's own copies the arguments deeply, the clock included

    def _log_env(self, env_cfg: Any) -> None:
        pass

    def dump_config(self) -> None:
        pass


@dataclass
class Bench:
    """Everything that a group of cells works with: cells that share data, seed, recipe and precision."""

    cells: list[Cell]
    device: torch.device
    dataset: Dataset
    train: Split
    held: dict[str, Split]  # what is evaluated: test, and val where the recipe holds it out
    trainees: dict[str, Trainee]
    streams: dict[str | None, Stream] = field(default_factory=dict)  # by the kind of partner

    @property
    def first(self) -> Cell:
        return self.cells[0]

    def held_batches(self, name: str, batch_size: int = 500, team: Team = ALONE) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels that are evaluated on; this process's part of them."""
        size = self.first.recipe.image_size
        return evaluation_batches(
            team.part(self.held[name]),
            self.dataset,
            self.device,
            batch_size=batch_size,
            memory_format=torch.channels_last,
            image_size=size,
        )

    def sample(self) -> Tensor:
        """Two images as networks see them."""
        return next(self.held_batches("test", batch_size=2))[0]

    def stream(self, trainee: Trainee) -> Stream:
        """The batches that a trainee's method wants."""
        partner = trainee.method.partner
        if partner not in self.streams:
            cell = self.first
            self.streams[partner] = Stream(
                self.train,
                self.dataset,
                cell.recipe,
                cell.seed,
                self.device,
                partner=partner,
                memory_format=torch.channels_last,
            )
        return self.streams[partner]


def assemble(
    cells: list[Cell], store: Store, grid: str, options: Options, teacher_network: Callable[..., Network] | None = None
) -> Bench:
    """Build networks, methods and data of a group. Cells with the same teacher share it.

    Args:
        teacher_network: where a teacher comes from, called as `load_teacher` is, which is the default.

    Raises:
        UserError: a precision, data set or teacher that is not to be had.
        ValueError: a method that cannot work with these networks; the message says why.
    """
    cell = cells[0]
    device = resolve_device(options.device)
    resolve_precision(cell.precision, device)
    dataset = load(cell.data, options.data_root)
    train, held = dataset.train, {"test": dataset.test}
    if cell.recipe.validation:
        train, held["val"] = hold_out(train, cell.recipe.validation)
    bench = Bench(cells, device, dataset, train, held, {})
    teachers: dict[str, Teacher] = {}
    for each in cells:
        teacher = None
        if each.teacher:
            key = str(each.teacher.identity)
            if key not in teachers:
                network = (teacher_network or load_teacher)(each, store, grid, dataset)
                teachers[key] = Teacher(_place(network, device), bench.sample(), cell.precision)
            teacher = teachers[key]
        bench.trainees[each.id] = _trainee(each, bench, teacher)
    return bench


def build_network(spec: dict[str, Any], dataset: Dataset) -> Network:
    return MODELS.build({**stored(spec), "classes": dataset.classes, "channels": dataset.channels})


def _trainee(cell: Cell, bench: Bench, teacher: Teacher | None) -> Trainee:
    torch.manual_seed(seed_from("student", cell.identity["student"], cell.seed))
    student = _place(build_network(cell.student, bench.dataset), bench.device)
    student.dropout.p = cell.recipe.dropout
    method = METHODS.build(cell.method)
    networks = Networks(Answers(student), teacher)
    sample = bench.sample()
    torch.manual_seed(seed_from("method", cell.seed))
    student.eval()
    with torch.no_grad():
        outputs = (networks.student(sample), teacher(sample) if teacher else None)
    method.setup(
        Context(
            *outputs,
            classes=bench.dataset.classes,
            samples=len(bench.train.targets),
            batch_size=cell.recipe.batch_size,
            image=(sample.shape[1], sample.shape[2], sample.shape[3]),
            targets=bench.train.targets.to(bench.device),
            networks=networks,
        )
    )
    return Trainee(student, _place(method, bench.device), teacher, cell.recipe)


def _place(module: Module, device: torch.device) -> Module:
    return module.to(device).to(memory_format=torch.channels_last)


def load_teacher(cell: Cell, store: Store, grid: str, dataset: Dataset) -> Network:
    """The trained teacher: of another cell, from the user's file, or with the published weights that its model comes with."""
    assert cell.teacher is not None
    source = cell.teacher
    network = build_network(source.model, dataset)
    if source.cell:
        record = store.record(grid, source.cell)
        if record is None:
            raise UserError(f"{cell.id}: its teacher {source.cell} is not trained yet")
        network.load_state_dict(safetensors.torch.load(store.weights(grid, record)))
    elif source.weights:
        tensors, sha256 = read_weights(source.weights)
        if sha256 != source.weights_sha256:
            raise UserError(f"{source.weights} is not the file that {cell.id} was planned with")
        network.load_state_dict(tensors)
    return network


def count_flops(bench: Bench, trainee: Trainee) -> Flops:
    """Counted on a copy, in eager mode."""
    rehearsal, batch = trainee.rehearsal(), next(iter(bench.stream(trainee).epoch(0)))

    teacher = rehearsal.networks.teacher

    def count(work: Callable[[], Any]) -> int:
        if teacher:
            teacher.forget()
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    def step(preparing: bool) -> None:
        sum(rehearsal(batch, preparing).values()).backward()

    network = rehearsal.predictor()
    with autocast(bench.device, bench.first.precision):
        flops = Flops(
            step=count(lambda: step(False)),
            prepare_step=count(lambda: step(True)) if rehearsal.method.prepare_epochs else 0,
            teacher_forward=count(lambda: teacher(batch.image)) if teacher else 0,
            inference=count(lambda: network.eval()(batch.image[:1])),
        )
    if teacher:
        teacher.forget()
    return flops


class Saved(BaseModel):
    """What a checkpoint must hold."""

    model_config = ConfigDict(strict=True)

    trainee: dict[str, Any]
    optimizer: dict[str, Any]
    epoch: int = Field(ge=0)  # behind, preparation included
    history: list[dict[str, float]]
    clocks: dict[str, float]
    threads: int = Field(ge=1, le=1024)


@dataclass
class Run:
    """What changes while a group trains."""

    history: dict[str, list[dict[str, float]]]
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(Clocks.model_fields, 0.0))
    done: int = 0  # epochs behind, preparation included


def train(cells: list[Cell], store: Store, grid: str, options: Options, team: Team = ALONE) -> list[Record]:
    """Train a group of cells to the end, from their checkpoints where there are any, and write their records.

    Args:
        team: of the processes that do so together; only the leader writes, and only to it the records are returned.

    Raises:
        DivergedError, UserError, ValueError, torch.OutOfMemoryError: nothing but a checkpoint is left then.
        DamagedError: a checkpoint that does not fit; it was set aside, so that the next attempt starts anew.
    """
    started = _now()
    saved = {cell.id: _read_checkpoint(store, grid, cell.id) for cell in cells}
    checkpoints = [state for state in saved.values() if state]
    if len({(state["epoch"], state["threads"]) if state else None for state in saved.values()}) > 1:
        raise ValueError("cells in lock-step must have stopped at the same epoch, with as many threads")
    threads = checkpoints[0]["threads"] if checkpoints else options.threads
    if threads:
        torch.set_num_threads(threads)
    gc.collect()  # mmengine's runner and its loop hold each other, and with them what the last training had
    torch.cuda.empty_cache()
    hand_back_freed_memory()
    keep_freed_memory()
    bench = assemble(cells, store, grid, options)
    for cell_id, trainee in bench.trainees.items():
        if team.size > 1 and trainee.method.memory_by_sample:
            raise UserError(f"{cell_id}: its method keeps a memory by sample, which several processes would each see a part of")
    flops = {cell_id: count_flops(bench, trainee) for cell_id, trainee in bench.trainees.items()}
    parameters = {cell_id: trainee.parameter_counts() for cell_id, trainee in bench.trainees.items()}

    stream = bench.stream(bench.trainees[cells[0].id])
    run = Run({cell.id: [] for cell in cells})
    clock = Clock(bench.device, run.seconds)
    optimisers = {
        cell_id: Optimiser(trainee.optimiser(), bench.device, bench.first.precision, trainee.recipe.clip_grad_norm)
        for cell_id, trainee in bench.trainees.items()
    }
    for cell_id, state in saved.items():
        if state:
            try:
                _restore(run, cell_id, state, bench.trainees[cell_id], optimisers[cell_id])
            except torch.OutOfMemoryError:  # not the checkpoint's fault
                raise
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                store.set_aside(store.cell(grid, cell_id) / "checkpoint")
                raise DamagedError(f"its checkpoint cannot be used and was set aside ({error})") from error
            told = store.scratch(grid, cell_id, "progress.json")
            if told:  # what was done after the checkpoint is done again
                lost = sum(told["clocks"].values()) - sum(state["clocks"].values())
                run.seconds["redone_s"] += max(0.0, lost)

    with tempfile.TemporaryDirectory() as scratch:
        _runner(bench, run, clock, optimisers, store, grid, options, scratch, team).train()
    if not team.leads:
        return []

    facts = machine(bench.device)
    records = []
    for cell in cells:
        if store.done(grid, cell.id) and (first := store.record(grid, cell.id)):
            records.append(first)  # our lock was lost, and another was faster: one record a cell
            continue
        folder = store.cell(grid, cell.id)
        weights = bench.trainees[cell.id].predictor().state_dict()
        weights = {name: value.contiguous() for name, value in weights.items()}
        steps = cell.recipe.epochs * len(stream)
        record = Record(
            id=cell.id,
            cell=cell,
            accuracies=accuracies(run.history[cell.id]),
            epochs=cell.recipe.epochs,
            steps=steps,
            prepare_steps=bench.trainees[cell.id].method.prepare_epochs * len(stream),
            train_samples=len(bench.train.targets),
            clocks=Clocks(**run.seconds),
            neighbours=options.neighbours + len(cells) - 1,
            parameters=Parameters(deployed=parameters[cell.id][0], train_only=parameters[cell.id][1]),
            flops=flops[cell.id],
            threads=torch.get_num_threads(),
            machine=facts,
            commit=commit(),
            started=started,
            finished=_now(),
            weights_sha256=store.write(folder / "weights.safetensors", safetensors.torch.save(weights)),
            curves_sha256=store.write(folder / "curves.csv", as_csv(run.history[cell.id])),
        )
        store.write_record(grid, record)
        records.append(record)
    return records


def _restore(run: Run, cell_id: str, state: dict[str, Any], trainee: Trainee, optimiser: Optimiser) -> None:
    epochs = state["epoch"] - trainee.method.prepare_epochs
    if epochs >= trainee.recipe.epochs or len(state["history"]) != max(0, epochs):
        raise ValueError(f"it is of epoch {state['epoch']}, with {len(state['history'])} rows")
    trainee.load_state_dict(state["trainee"])
    optimiser.optimizer.load_state_dict(state["optimizer"])
    run.history[cell_id] = state["history"]
    run.done = state["epoch"]
    run.seconds.update(state["clocks"])


def _runner(
    bench: Bench,
    run: Run,
    clock: Clock,
    optimisers: dict[str, Optimiser],
    store: Store,
    grid: str,
    options: Options,
    scratch: str,
    team: Team,
) -> BenchRunner:
    cell, history = bench.first, run.history
    first = bench.trainees[cell.id]

    def save(cell_id: str, raw: bytes) -> None:
        store.write_checkpoint(grid, cell_id, raw)

    def tell(cell_id: str, progress: dict[str, Any]) -> None:
        store.write_json(store.cell(grid, cell_id) / "progress.json", progress)

    hooks: list[Any] = [EvaluateHook(history, bench, clock)]
    if options.visualise and team.leads:
        hooks.append(VisualiseHook(history, clock))
    if team.leads:
        hooks += [CheckpointHook(save, history, clock, options.checkpoint_s), ProgressHook(tell, history, clock)]
    defaults = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
    return BenchRunner(
        model=Group(bench.trainees, team, bench.device),
        work_dir=str(store.cell(grid, cell.id) / "visual") if options.visualise else scratch,
        train_dataloader=bench.stream(first),
        train_cfg={
            "recipe": cell.recipe,
            "prepare_epochs": first.method.prepare_epochs,
            "seed": cell.seed,
            "clock": clock,
            "done": run.done,
        },
        optim_wrapper=OptimWrapperDict(**optimisers),
        default_hooks=dict.fromkeys(defaults),
        custom_hooks=hooks,
        visualizer={"type": "Visualizer", "vis_backends": [{"type": name} for name in options.visualise]},
        randomness={"seed": cell.seed},
        log_level="WARNING",
        experiment_name=f"{cell.id}-{time.monotonic_ns()}",  # mmengine shares what bears the same name
    )


def accuracies(history: list[dict[str, float]]) -> Accuracies:
    """The three ways to choose an epoch. Of equal accuracies the earliest wins."""

    def at(row: dict[str, float]) -> Accuracy:
        return Accuracy(epoch=int(row["epoch"]), top1=row["test_top1"], top5=row["test_top5"])

    best = max(history, key=lambda row: row["test_top1"])
    chosen = max(history, key=lambda row: row["val_top1"]) if "val_top1" in history[0] else None
    return Accuracies(last=at(history[-1]), best_test=at(best), chosen=at(chosen) if chosen else None)


def as_csv(history: list[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in history for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def commit() -> str | None:
    """This project's commit, with '+' behind it where the checkout differs from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        found = [
            subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603, S607
            for arguments in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return found[0] + ("+" if found[1] else "")


def _read_checkpoint(store: Store, grid: str, cell_id: str) -> dict[str, Any] | None:
    raw = store.read_checkpoint(grid, cell_id)
    if raw is None:
        return None
    try:
        state = unpack(raw, torch.device("cpu"))
        Saved.model_validate(state)
        return state
    except MemoryError:
        raise
    except Exception:  # intact, but no checkpoint of this program: torch.load raises whatever it meets
        store.set_aside(store.cell(grid, cell_id) / "checkpoint")
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
