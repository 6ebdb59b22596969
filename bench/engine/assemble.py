"""Networks, methods and data of the cells that train as a group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from bench.data import Dataset, Split, Stream, evaluation_batches, hold_out, load
from bench.engine.device import resolve_device, resolve_precision
from bench.engine.distributed import ALONE, Team
from bench.engine.step import Step
from bench.engine.trainee import NetworkView, Teacher, Trainee
from bench.errors import UserError
from bench.models import MODELS, Network, stored
from bench.models.checkpoints import fit, fit_start
from bench.models.weights import read as read_weights
from bench.records.cell import Cell, seed_from
from bench.records.folders import GridFolder
from bench.records.options import Options
from methods import METHODS, Context, Networks

Module = TypeVar("Module", bound=nn.Module)


@dataclass
class Assembly:
    """Everything that a group of cells works with: cells that share data, recipe and precision."""

    cells: list[Cell]
    device: torch.device
    dataset: Dataset
    train: Split
    held: dict[str, Split]  # what is evaluated: test, and val where the recipe holds it out
    trainees: dict[str, Trainee]  # by cell id
    streams: dict[tuple[str | None, int], Stream] = field(default_factory=dict)  # by the kind of partner, and the seed

    @property
    def first(self) -> Cell:
        return self.cells[0]

    def step(self, team: Team = ALONE) -> Step:
        """The training step of all trainees."""
        streams = self.all_streams()
        sees = {cell.id: streams.index(self.stream(self.trainees[cell.id], cell.seed)) for cell in self.cells}
        return Step(self.trainees, self.device, self.first.precision, team, sees)

    def held_batches(self, name: str, batch_size: int | None = None, team: Team = ALONE) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels to evaluate on, not augmented; this process's part of them.

        Args:
            name: of a split of `held`, or "train".
            batch_size: by default larger on a GPU, for speed.
        """
        if batch_size is None:
            batch_size = 500 if self.device.type == "cpu" else 2500
        split = self.train if name == "train" else self.held[name]
        if self.device.type == "cuda" and isinstance(split.images, Tensor) and split.images.device != self.device:
            split = Split(split.images.to(self.device), split.targets)
            if name in self.held:
                self.held[name] = split  # sent once, not after every epoch
        return evaluation_batches(
            team.part(split),
            self.dataset,
            self.device,
            batch_size=batch_size,
            memory_format=torch.channels_last,
            image_size=self.first.recipe.image_size,
            crop_pct=self.first.recipe.crop_pct,
        )

    def sample(self) -> Tensor:
        """Two images as networks see them."""
        return next(self.held_batches("test", batch_size=2))[0]

    def all_streams(self) -> list[Stream]:
        """The batches of all cells, each stream once."""
        return list(dict.fromkeys(self.stream(self.trainees[cell.id], cell.seed) for cell in self.cells))

    def stream(self, trainee: Trainee, seed: int | None = None) -> Stream:
        """The batches that a trainee's method wants, by default with the first cell's seed."""
        partner, cell = trainee.method.partner, self.first
        key = partner, cell.seed if seed is None else seed
        if key not in self.streams:
            self.streams[key] = Stream(
                self.train,
                self.dataset,
                cell.recipe,
                key[1],
                self.device,
                partner=partner,
                memory_format=torch.channels_last,
            )
        return self.streams[key]


TeacherSource = Callable[[Cell, GridFolder, Dataset], Network]


def assemble(
    cells: list[Cell],
    folder: GridFolder,
    options: Options,
    teacher_network: TeacherSource | None = None,
    dataset: Dataset | None = None,
    teachers: dict[str, Teacher] | None = None,
) -> Assembly:
    """Build networks, methods and data of a group. Cells with the same teacher share it.

    Args:
        teacher_network: where a teacher's network comes from, by default `load_teacher`.
        dataset: the cells' data, where they are loaded already.
        teachers: by identity, where some are built already; gains those that are built here.

    Raises:
        UserError: this machine cannot have the precision, the data set or the teacher.
        ValueError: a method cannot work with these networks; the message says why.
    """
    cell = cells[0]
    device = resolve_device(options.device)
    resolve_precision(cell.precision, device)
    dataset = dataset or load(cell.data, options.data_root)
    train, held = dataset.train, {"test": dataset.test}
    if cell.recipe.validation:
        train, held["val"] = hold_out(train, cell.recipe.validation)
    assembly = Assembly(cells, device, dataset, train, held, {})
    teachers = {} if teachers is None else teachers
    for each in cells:
        own = []
        for source, alone in zip(each.teachers, each.by_teacher(), strict=True):
            key = str(source.identity)
            if key not in teachers:
                network = (teacher_network or load_teacher)(alone, folder, dataset)
                teachers[key] = Teacher(place(network, device), assembly.sample(), cell.precision, cell.recipe.compile)
            own.append(teachers[key])
        assembly.trainees[each.id] = _trainee(each, assembly, own)
    return assembly


def build_network(spec: dict[str, Any], dataset: Dataset) -> Network:
    """A network for the data's classes and channels, in contiguous layout on the CPU."""
    images = (dataset.mean, dataset.std)
    return MODELS.build({**stored(spec), "classes": dataset.classes, "channels": dataset.channels, "images": images})


def load_teacher(cell: Cell, folder: GridFolder, dataset: Dataset) -> Network:
    """The trained teacher: of another cell, from the user's file, or with the published weights that its model comes with.

    Raises:
        UserError: it is not trained yet, or its file is not the one that the cell was planned with.
    """
    assert cell.teacher is not None
    source = cell.teacher
    network = build_network(source.model, dataset)
    if source.cell:
        trained = folder.cell(source.cell)
        record = trained.record()
        if record is None:
            raise UserError(f"{cell.id}: its teacher {source.cell} is not trained yet")
        network.load_state_dict(safetensors.torch.load(trained.weights(record)))
    elif source.weights:
        tensors, sha256 = read_weights(source.weights)
        if sha256 != source.weights_sha256:
            raise UserError(f"{source.weights} is not the file that {cell.id} was planned with")
        network.load_state_dict(fit(tensors, network, source.model, source.part))
    return network


def _start_from(student: Network, cell: Cell) -> None:
    """Load the weights that a student's training starts from; a classifier of other classes stays as it was drawn.

    Raises:
        UserError: the file is not the one that the cell was planned with.
    """
    spec = cell.student
    tensors, sha256 = read_weights(spec["weights"])
    if sha256 != spec["weights_sha256"]:
        raise UserError(f"{spec['weights']} is not the file that {cell.id} was planned with")
    student.load_state_dict(fit_start(tensors, student, spec, spec.get("part")), strict=False)


def untrained_teacher(cell: Cell, folder: GridFolder, dataset: Dataset) -> Network:
    """The teacher's network without its weights: as fast as a trained one."""
    assert cell.teacher is not None
    model = cell.teacher.model
    return build_network({**model, "pretrained": False} if "pretrained" in model else model, dataset)


def _trainee(cell: Cell, assembly: Assembly, teachers: Sequence[Teacher]) -> Trainee:
    student = _student(cell, assembly)
    method = METHODS.build(cell.method)
    teacher, others = (teachers[0] if teachers else None), tuple(teachers[1:])
    networks = Networks(NetworkView(student), teacher, others)
    sample = assembly.sample()
    torch.manual_seed(seed_from("method", cell.seed))
    student.eval()
    with torch.no_grad():
        outputs = (networks.student(sample), *(each(sample) for each in teachers))
    train = assembly.train
    method.setup(
        Context(
            student=outputs[0],
            teacher=outputs[1] if teachers else None,
            others=outputs[2:],
            classes=assembly.dataset.classes,
            samples=len(train.targets),
            batch_size=cell.recipe.batch_size,
            image=(sample.shape[1], sample.shape[2], sample.shape[3]),
            targets=train.targets.to(assembly.device),
            networks=networks,
            another=partial(_another, cell, assembly),
        )
    )
    return Trainee(student, place(method, assembly.device), teacher, cell.recipe, others)


def _student(cell: Cell, assembly: Assembly, *number: object) -> Network:
    """The untrained student; with a number one of its kind that is initialized otherwise."""
    torch.manual_seed(seed_from("student", cell.identity["student"], cell.seed, *number))
    network = build_network(cell.student, assembly.dataset)
    if "weights" in cell.student:
        _start_from(network, cell)
    student = place(network, assembly.device)
    student.dropout.p = cell.recipe.dropout
    if cell.recipe.drop_path:
        student.drop_paths(cell.recipe.drop_path)
    return student


def _another(cell: Cell, assembly: Assembly, number: int) -> Network:
    """What a method's draws are does not depend on it."""
    with torch.random.fork_rng(devices=[]):
        return _student(cell, assembly, "peer", number)


def place(module: Module, device: torch.device) -> Module:
    """On the device, in channels-last layout."""
    return module.to(device).to(memory_format=torch.channels_last)
