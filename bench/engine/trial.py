"""A trial of a cell on two images, before anything is trained: what would fail after hours fails here at once.

It does once what a training does: build, prepare, step, save, load, evaluate. It leaves nothing behind: no file, no number
that was drawn.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator
from dataclasses import replace

import safetensors.torch
import torch

from bench.data import Dataset, Split, load
from bench.engine import checkpoint
from bench.engine.assemble import Assembly, assemble, build_network, untrained_teacher
from bench.engine.capture import StepRunner
from bench.engine.device import autocast, choose_repeatable_kernels, draws_as_found, has_bf16, resolve_device
from bench.engine.evaluation import evaluate
from bench.engine.loop import Loop
from bench.engine.promises import TrialError, check_predictor, check_promises, check_terms
from bench.engine.step import Step
from bench.engine.trainee import Teacher, Trainee
from bench.errors import defined_at, place_of
from bench.models import MODELS
from bench.models.base import check_output
from bench.records.cell import Cell, digest
from bench.records.folders import GridFolder
from bench.records.options import Options
from methods.base import Batch

IMAGES = 2  # of a trial
KEPT = 8  # training images of a trial, spread over the training set


class Trials:
    """Tries cells out, one after the other. They share data and teachers, which are not trained.

    Args:
        folder: of the cells; nothing is written there.
    """

    def __init__(self, folder: GridFolder, options: Options) -> None:
        self.folder, self.options, self.device = folder, options, resolve_device(options.device)
        self._data: dict[str, Dataset] = {}
        self._teachers: dict[tuple[str, str], dict[str, Teacher]] = {}
        choose_repeatable_kernels()

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def try_out(self, cell: Cell) -> float:
        """Do once what the cell's training does, on two images; where they are too few for it, on a batch of the recipe's size.

        Returns:
            Seconds of a step.

        Raises:
            TrialError: it fails on both.
        """
        with draws_as_found(self.device):
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # for two images more would only wait for each other
            try:
                return self._try(_smaller(cell), few=True)
            except TrialError:
                return self._try(cell, few=False)
            finally:
                torch.set_num_threads(threads)

    def try_full_batch(self, cell: Cell) -> None:
        """Take a step of the recipe's batch size: two images do not show whether memory is large enough.

        Raises:
            TrialError: it fails.
        """
        with draws_as_found(self.device):
            self._try(cell, few=False, step_only=True)

    def _try(self, cell: Cell, few: bool, step_only: bool = False) -> float:
        if cell.precision == "bf16" and not has_bf16(self.device):  # of a cluster's GPU
            cell = cell.model_copy(update={"precision": "fp32"})
        with _part("data", ""):
            dataset = self._dataset(cell)
        teachers = self._teachers.setdefault((digest(cell.data), cell.precision), {})
        places = {part: defined_at(MODELS.get(cell.student["type"])) for part in ("networks", "weights")}
        with _part("networks and method", ""):
            assembly = assemble(
                [cell], self.folder, self.options, untrained_teacher, _few(dataset) if few else dataset, teachers
            )
        trainee = assembly.trainees[cell.id]
        with _part("networks", places["networks"]):
            _check_outputs(trainee, assembly)
        with _part("optimizer", defined_at(type(trainee.method))):
            loop = _loop(assembly, assembly.step())
        batch = next(iter(loop.streams[0].epoch(0)))
        seconds = _steps(loop.step, trainee, batch)
        if not step_only:
            with _part("checkpoint", defined_at(type(trainee.method))):
                _check_checkpoint(loop, assembly)
            with _part("predictor", defined_at(type(trainee.method))):
                _check_predictor(trainee, assembly)
            with _part("evaluation", ""):
                evaluate(trainee.predictor(), assembly.held_batches("test"), cell.precision, self.device)
            with _part("weights", places["weights"]):
                _check_weights(trainee, assembly)
        return seconds

    def _dataset(self, cell: Cell) -> Dataset:
        key = digest(cell.data)
        if key not in self._data:
            self._data[key] = load(cell.data, self.options.data_root)
        return self._data[key]


def _smaller(cell: Cell) -> Cell:
    """The cell with batches of two images in one part, on one process, with nothing held out."""
    small = {"batch_size": IMAGES, "processes": 1, "accumulate": 1, "validation": 0.0, "compile": False}
    return cell.model_copy(update={"recipe": cell.recipe.model_copy(update=small)})


def _few(dataset: Dataset) -> Dataset:
    """A few training images, of as many classes as there are among them, and two test images."""
    spread = torch.linspace(0, len(dataset.train.targets) - 1, KEPT).long().unique()
    parts = (dataset.train, spread), (dataset.test, torch.arange(min(IMAGES, len(dataset.test.targets))))
    train, test = (Split(split.images[rows], split.targets[rows]) for split, rows in parts)
    return replace(dataset, train=train, test=test)


def _check_outputs(trainee: Trainee, assembly: Assembly) -> None:
    image = assembly.sample()
    with torch.no_grad(), autocast(assembly.device, assembly.first.precision):
        check_output(trainee.student.eval()(image), len(image), assembly.dataset.classes)


def _check_predictor(trainee: Trainee, assembly: Assembly) -> None:
    predictor, image = trainee.predictor(), assembly.sample()
    network = predictor.eval() if isinstance(predictor, torch.nn.Module) else predictor
    with torch.no_grad(), autocast(assembly.device, assembly.first.precision):
        check_predictor(network, image, assembly.dataset.classes)


def _loop(assembly: Assembly, step: Step) -> Loop:
    cell = assembly.first
    trainee = assembly.trainees[cell.id]
    return Loop(StepRunner(step), assembly.all_streams(), cell.recipe, trainee.method.prepare_epochs, cell.recipe.lr, cell.seed)


def _steps(step: Step, trainee: Trainee, batch: Batch) -> float:
    """One of the preparation, where there is one, and one of the training; returns the latter's seconds."""
    step.train()
    step.set_lr(trainee.recipe.lr)
    seconds = 0.0
    for preparing in [True] * (trainee.method.prepare_epochs > 0) + [False]:
        with _part("preparation" if preparing else "step", defined_at(type(trainee.method))):
            started = time.perf_counter()
            try:
                step(batch, preparing=preparing)
                step.mean_terms(1, preparing)  # waits for the device
                seconds = time.perf_counter() - started
                check_promises(step, trainee, batch, preparing)
            except (TypeError, AttributeError, RuntimeError):
                check_terms(step, trainee, batch, preparing)
                raise
    return seconds


def _check_checkpoint(loop: Loop, assembly: Assembly) -> None:
    """Save, read again, and go on with a copy."""
    cell_id = assembly.first.id
    saved = checkpoint.unpack(checkpoint.pack(checkpoint.state(loop, cell_id)))
    if saved is None:
        raise ValueError("it cannot be read again: keep tensors and plain values alone in a module's state")
    again = Step({cell_id: assembly.trainees[cell_id].duplicate()}, assembly.device, assembly.first.precision)
    checkpoint.restore(_loop(assembly, again), cell_id, saved)


def _check_weights(trainee: Trainee, assembly: Assembly) -> None:
    """Save the deployed network, and load it into a new one."""
    network = trainee.predictor()
    shared: dict[tuple[int, int], list[str]] = {}
    for name, value in network.state_dict().items():
        if value.numel():
            shared.setdefault((value.data_ptr(), value.numel()), []).append(name)
    for names in shared.values():
        if len(names) > 1:
            raise ValueError(f"{' and '.join(names)} are one tensor (tied weights), which cannot be saved: give each its own")
    state = safetensors.torch.load(checkpoint.pack_weights(network))
    if network is trainee.student:
        build_network(assembly.first.student, assembly.dataset).load_state_dict(state)
    else:
        copy.deepcopy(network).load_state_dict(state)


@contextlib.contextmanager
def _part(name: str, place: str) -> Iterator[None]:
    """Errors inside become a TrialError that names the part, and the line: of the traceback, or `place`."""
    try:
        yield
    except Exception as error:
        line = place_of(error, ours=False) or place or place_of(error)
        kind = "" if isinstance(error, TrialError | ValueError) else f"{type(error).__name__}: "
        raise TrialError(f"{name}: {kind}{error}" + (f" ({line})" if line else "")) from error
