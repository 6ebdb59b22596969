"""Grids to cells: every default filled in, every mistake named with its file and key, teachers before students."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pydantic import ValidationError

from bench.data import DATASETS, Normalization, Shape
from bench.engine.device import resolve_device, resolve_precision
from bench.errors import UserError, described
from bench.models import MODELS
from bench.models.checkpoints import fit
from bench.plan import images
from bench.plan.choice import Choice, Value
from bench.plan.compatibility import check_buildable, check_trainable, forward_shapes, pretrained, refusal
from bench.plan.data import Data
from bench.plan.declared import TAKE_AWAY, Declarations
from bench.plan.flags import check_method
from bench.plan.grid import Grid, Skip
from bench.plan.grid_file import Choose, GridFile, SequentialSeeds, Shortened, long_form, variations
from bench.plan.networks import WeightFiles, network_spec
from bench.plan.recipe_parts import full_recipe
from bench.plan.specs import Entry, added_later, amount, complete, expand_methods, pair_presets, signatures, unordered
from bench.records.cell import Cell, Spec, Teacher
from bench.records.naming import describe, method_family, method_label, model_name, pair_name
from bench.records.recipe import Recipe
from bench.texts import brief, misfit
from methods import METHODS
from methods.base import Method

MOST_CELLS = 100_000  # of a grid
TWIN = 1000  # the seed of a teacher of the student's own spec, less the student's


def expand(
    name: str, raw: Mapping[str, Any], data_root: str | None = None, device: str = "auto", overridden: Collection[str] = ()
) -> Grid:
    """The cells of a grid, teachers first, each once. What cannot be combined is listed with the reason.

    Args:
        name: of the grid; names its folder.
        raw: the contents of a grid file, as `grid_file.read` returns them.
        data_root: the folder that holds the data sets.
        device: "auto", "cpu" or "cuda"; decides what precision "auto" is.
        overridden: keys of the file that `--set` has set.

    Raises:
        UserError: anything wrong in the file, with its place.
    """
    found = variations(name, raw)
    expansion = _Expansion(data_root, device, overridden)
    for where, file in found:
        expansion.add(where, file)
    cells = {**expansion.teachers, **expansion.students}
    if not cells:
        reasons = "; ".join(f"{skip.what}: {skip.reason}" for skip in expansion.skipped)
        raise UserError(f"{name}: the grid expands to nothing. {reasons}")
    file = found[0][1]
    asked = [where for where, each in found if each.choose]
    if asked and not expansion.declarations.choices and not TAKE_AWAY & set(overridden):
        raise UserError(f"{asked[0]}, choose: no method of this grid has several values, so there is nothing to choose")
    declared = expansion.declarations.declared(expansion.students, overridden)
    grid = Grid(name, file.about, list(cells.values()), list(expansion.skipped), dict(raw), expansion.data.looks, declared)
    grid = replace(grid, until=file.until)
    if declared.primary and grid.comparisons and not any(each.primary for each in grid.comparisons):
        raise UserError(f"{name}, primary: no comparison is about these methods; others are compared with none and with kd")
    return grid.spending(file.seeds) if isinstance(file.seeds, SequentialSeeds) else grid


@dataclass(frozen=True)
class _Side:
    """One network of a pair, its data and its recipe."""

    data: Spec
    shape: Shape
    model: Spec
    recipe: Recipe
    precision: str

    @property
    def added_later(self) -> dict[str, Any]:
        """Newer arguments of data and network with their defaults, as a cell holds them that trains this network."""
        return added_later(DATASETS, self.data, "data:") | added_later(MODELS, self.model, "student:")

    def holding_out(self, share: float) -> _Side:
        """The same with a part of the training set held out; a recipe that holds out a part itself stays as it is."""
        if self.recipe.validation:
            return self
        return replace(self, recipe=self.recipe.model_copy(update={"validation": share}))

    def undistilled(self, seed: int) -> Cell:
        """The cell that trains this network with the cross-entropy alone."""
        return Cell(
            data=self.data,
            student=self.model,
            teacher=None,
            method={"type": "none"},
            method_version=METHODS.get("none").version,
            recipe=self.recipe,
            seed=seed,
            precision=self.precision,
            label="none",
            added_later=self.added_later,
        )


class _Supplier(NamedTuple):
    """A teacher of a pair."""

    side: _Side
    ready: Teacher | None  # where it needs no training here


@dataclass(frozen=True)
class _Sides:
    student: _Side
    teachers: list[_Supplier]
    copied: _Side | None = None  # the student as a copy of itself is trained, where that is by another recipe

    @property
    def key(self) -> str | None:
        """'resnet56/resnet20': how presets name a pair."""
        return pair_name(self.teachers[0].side.model if self.teachers else None, self.student.model)

    def __str__(self) -> str:
        names = " and ".join(describe(teacher.side.model) for teacher in self.teachers)
        return describe(self.student.model) + (f" taught by {names}" if names else "")


class _Expansion:
    """Collects the cells of a grid and of its variations."""

    def __init__(self, data_root: str | None, device: str, overridden: Collection[str]) -> None:
        self.overridden = overridden
        self.data, self.device = Data(data_root), device
        self.teachers: dict[str, Cell] = {}
        self.students: dict[str, Cell] = {}
        self.skipped: dict[Skip, None] = {}
        self.declarations = Declarations()
        self.weights = WeightFiles()

    def add(self, where: str, file: GridFile) -> None:
        precision = resolve_precision(file.precision, resolve_device(self.device))
        data = self.data.spec(file.data, f"{where}, data")
        shape = self.data.look(data).shape
        entries = expand_methods(file.methods, f"{where}, methods")
        count = len(self.students) + len(entries) * len(file.every_seed) * len(file.pairs)
        if count > MOST_CELLS:
            raise UserError(f"{where}, seeds: {count:,} cells; allowed: at most {MOST_CELLS:,}; divide the grid into several")
        former: list[tuple[object, ...]] = []
        for index, pair in enumerate(file.pairs):
            at = f"{where}, pairs[{index}]"
            spec = long_form("student", pair.student)
            start, part, asked = spec.pop("weights", None), spec.pop("part", None), images.asked(spec)
            model = network_spec(spec, f"{at}.student")
            recipe = full_recipe(long_form("recipe", file.recipe), model_name(model), f"{where}, recipe")
            student = _Side(data, shape.resized(recipe.image_size), model, recipe, precision)
            has_weights = start is not None or bool(model.get("pretrained"))
            student = self._seeing(student, asked, has_weights, f"{at}.student")
            check_buildable(student.model, student.shape, f"{at}.student")
            started = self.weights.start(student.model, student.shape, start, part, f"{at}.student")
            student = replace(student, model={**student.model, **started})
            self._check_trainable(student, f"{where}, recipe")
            teachers = [self._teacher(file, given, student, where, f"{at}.{place}") for place, given in pair.every_teacher]
            sides = _Sides(student, teachers)
            known = student.model, [(each.side.model, each.ready and each.ready.identity) for each in teachers]
            if known in former:
                raise UserError(f"{at}: {sides} stands twice; remove one")
            former.append(known)
            cells = self._add_methods(file, sides, entries)
            self.declarations.add(file, sides.key, cells, where)
            if file.choose:
                self._add_trials(file, file.choose, sides, entries, cells, where)
            for place, short in enumerate(file.equal_cost):
                self._add_shortened(file, short, sides, cells, f"{where}, equal_cost[{place}]")

    def _teacher(self, file: GridFile, given: str | Spec, student: _Side, where: str, at: str) -> _Supplier:
        spec = long_form("teacher", given)
        weights_file, part, asked = spec.pop("weights", None), spec.pop("part", None), images.asked(spec)
        cost = {name: amount(spec.pop(name, None), f"{at}.{name}") for name in ("train_s", "train_flops")}
        model = network_spec(spec, at)
        source = file.recipe if file.teacher_recipe is None else file.teacher_recipe
        recipe = full_recipe(long_form("recipe", source), model_name(model), f"{where}, teacher_recipe")
        teacher = _Side(student.data, student.shape, model, recipe, student.precision)
        has_weights = weights_file is not None or bool(model.get("pretrained"))
        teacher = self._seeing(teacher, asked, has_weights, at)
        check_buildable(teacher.model, teacher.shape, at)
        ready = self._ready(teacher, weights_file, part, at)
        if ready:
            return _Supplier(teacher, ready.model_copy(update=cost))
        self._check_trainable(teacher, f"{where}, teacher_recipe")
        if any(value is not None for value in cost.values()):
            raise UserError(f"{at}: train_s and train_flops belong to a teacher with weights; others are measured here")
        return _Supplier(teacher, None)

    def _check_trainable(self, side: _Side, where: str) -> None:
        check_trainable(side.recipe, side.model, side.shape, self.data.look(side.data), where)

    def _seeing(self, side: _Side, asked: Spec, has_weights: bool, where: str) -> _Side:
        """The network with its own normalization and image size in its spec, where they are not the data's."""

        def of_data() -> Normalization:
            return self.data.normalization(side.data)

        own = images.own_images(asked, side.model, has_weights, side.shape, of_data, where)
        return replace(side, model={**side.model, **own})

    def _ready(self, teacher: _Side, file: object, part: object, where: str) -> Teacher | None:
        """The teacher from its file or with published weights; None where it must be trained."""
        if file is None:
            if part is not None:
                raise UserError(f"{where}.part: belongs to a teacher with weights from a file")
            has_weights = pretrained(teacher.model, teacher.shape.classes)
            return Teacher(model=teacher.model) if has_weights else None
        if part is not None and not isinstance(part, str):
            raise UserError(f"{where}.part: a step on the way to the weights in the file, such as student, not {brief(part)}")
        tensors, sha256 = self.weights.read(file, where)
        try:
            fit(tensors, forward_shapes(teacher.model, teacher.shape)[0], teacher.model, part)
        except ValueError as error:
            raise UserError(f"{where}.weights: {file} does not fit {describe(teacher.model)} on these data: {error}") from None
        return Teacher(model=teacher.model, weights_sha256=sha256, weights=str(file), part=part)

    def _add_methods(self, file: GridFile, sides: _Sides, entries: list[Entry]) -> list[Cell]:
        """Add and return the cells of all methods on one pair."""
        seen: dict[str, Cell] = {}
        seen_alike = set[str]()
        labels: dict[str, tuple[Spec, bool]] = {}  # the method of a label, and whether that is the user's own
        for short, at, own_label in entries:
            spec, name, method = _method(short, sides, at)
            name = own_label or name
            if reason := _misfit(method, sides):
                self.skipped[Skip(f"{name} on {sides}", reason)] = None
                continue
            own = own_label is not None
            other, others_own = labels.setdefault(name, (spec, own))
            if other != spec and (own or others_own):
                raise UserError(f"{at}: two methods would be called {name}; give one of them another `label`")
            later = added_later(METHODS, spec) | sides.student.added_later
            seeds = file.every_seed
            counts = {"first": 1, "each": len(seeds)}
            teachers = seeds[: counts.get(str(file.teacher_seeds)) or int(file.teacher_seeds)]
            suppliers = [self._taught_by(method, sides, seed) for seed in teachers]
            for place, seed in enumerate(seeds):
                teacher = suppliers[place % len(suppliers)]
                cell = Cell(
                    data=sides.student.data,
                    student=sides.student.model,
                    teacher=teacher,
                    method=spec,
                    method_version=method.version,
                    recipe=sides.student.recipe,
                    seed=seed,
                    precision=sides.student.precision,
                    needs=method.needs,
                    label=name,
                    added_later=later | (added_later(MODELS, teacher.model, "teacher:") if teacher else {}),
                )
                cell_id, alike = cell.id, unordered(cell)
                if alike in seen_alike:
                    raise UserError(f"{at}: {name} stands twice in the grid for {sides}; remove one")
                seen[cell_id] = cell
                seen_alike.add(alike)
                self.students.setdefault(cell_id, cell)
                if own:
                    self.declarations.labeled.add(cell_id)
        return list(seen.values())

    def _add_trials(
        self, file: GridFile, choose: Choose, sides: _Sides, entries: list[Entry], cells: list[Cell], where: str
    ) -> None:
        """Add the trials of every method that has several values on one pair; teachers do not see the held-out images either.

        Args:
            cells: the pair's cells, of all values.
        """
        teachers = [each._replace(side=each.side.holding_out(choose.share)) for each in sides.teachers]
        held = replace(sides, student=sides.student.holding_out(choose.share), teachers=teachers)
        self._check_trainable(held.student, f"{where}, choose, recipe")
        trials = file.model_copy(update={"seeds": choose.seeds})
        for _, group in itertools.groupby(entries, key=lambda entry: (entry.where, method_family(entry.spec))):
            if len(values := list(group)) == 1:
                continue
            by_method: dict[str, list[Cell]] = {}
            for cell in self._add_methods(trials, held, values):
                by_method.setdefault(json.dumps(cell.method, sort_keys=True), []).append(cell)
            found = [
                Value(
                    tried[0].label,
                    tuple(cell.id for cell in tried),
                    tuple(cell.id for cell in cells if cell.method == tried[0].method),
                )
                for tried in by_method.values()
            ]
            if found:
                self.declarations.choices.append(Choice(method_family(values[0].spec), str(sides), tuple(found)))

    def _add_shortened(self, file: GridFile, asked: Shortened, sides: _Sides, full: list[Cell], where: str) -> None:
        """Add the methods of an entry of `equal_cost` on one pair. Teachers and copies keep the full schedule.

        Args:
            full: the pair's cells of the full schedule.
        """
        if asked.epochs == sides.student.recipe.epochs:
            raise UserError(f"{where}.epochs: {asked.epochs} are the full schedule; give another number")
        recipe = {**long_form("recipe", file.recipe), "epochs": asked.epochs}
        student = replace(sides.student, recipe=full_recipe(recipe, model_name(sides.student.model), f"{where}, recipe"))
        entries = []
        for entry in expand_methods(asked.methods, f"{where}, methods"):
            spec, name, method = _method(entry[0], sides, entry[1])
            if any(cell.method == spec for cell in full):
                entries.append(entry)
            elif not _misfit(method, sides):
                self.declarations.lacks_full(name, entry[1], self.overridden)
        steps = {json.dumps(cell.method, sort_keys=True): cell.cost_key for cell in full}
        for cell in self._add_methods(file, replace(sides, student=student, copied=sides.student), entries):
            self.declarations.equal_cost[cell.id] = steps[json.dumps(cell.method, sort_keys=True)]

    def _taught_by(self, method: Method, sides: _Sides, seed: int) -> Teacher | None:
        """Where the trained networks come from that the method needs; one that must be trained becomes a cell."""
        if method.needs == "none":
            return None
        if method.needs == "self":
            return self._trained(sides.copied or sides.student, seed, twins=1)
        found: list[Teacher] = []
        known = [sides.student.model]
        for teacher in sides.teachers:
            twins = known.count(teacher.side.model)
            found.append(teacher.ready or self._trained(_stopped(teacher.side, method), seed, twins))
            known.append(teacher.side.model)
        return found[0].model_copy(update={"others": tuple(found[1:])})

    def _trained(self, side: _Side, seed: int, twins: int) -> Teacher:
        """
        Args:
            twins: networks of this spec beside it, the student among them. It gets another seed than they have, and with it
                another initialization and other batches: a teacher with the student's own would be it without the method.
        """
        cell = side.undistilled((seed + twins * TWIN) % 2**32)
        cell_id = cell.id
        self.teachers[cell_id] = cell
        return Teacher(cell=cell_id, model=cell.student)


def _stopped(teacher: _Side, method: Method) -> _Side:
    """With the share of its schedule that the method asks for.

    Raises:
        ValueError: the recipe does not allow so few epochs.
    """
    epochs = max(1, round(teacher.recipe.epochs * method.teacher_epochs_fraction))
    return replace(teacher, recipe=Recipe.model_validate({**teacher.recipe.model_dump(), "epochs": epochs}))


def _method(short: Spec, sides: _Sides, where: str) -> tuple[Spec, str, Method]:
    """The full spec for this pair, its label, and an instance."""
    short = pair_presets(short, sides.key, where)
    full = complete(METHODS, "method", short, where)
    name = method_label(full, sides.key, signatures([full]))
    try:
        method = METHODS.build(full)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # whatever a plug-in raises
        raise UserError(f"{where}: {described(error)}") from error
    return full, name, check_method(method, full["type"], where)


def _misfit(method: Method, sides: _Sides) -> str | None:
    """Why a fresh method cannot run on this pair, or None."""
    student, teachers = sides.student, sides.teachers
    if method.needs == "teacher" and not teachers:
        return "needs a teacher, and this pair has none"
    if method.needs == "teacher" and len(teachers) > 1 and not method.several_teachers:
        return f"takes one teacher, and this pair has {len(teachers)}: put each_teacher around it"
    if method.needs == "teacher" and method.teacher_epochs_fraction < 1 and any(teacher.ready for teacher in teachers):
        return "needs a teacher whose training was stopped early, and this pair's is not trained here"
    if method.needs == "teacher" and method.teacher_epochs_fraction < 1:
        try:
            _stopped(teachers[0].side, method)
        except ValidationError as error:
            return f"needs a teacher whose training was stopped early: {misfit(error.errors()[0])}"
    if method.memory_by_sample and student.recipe.repeats > 1:
        return "keeps a memory by sample, and this recipe shows a part of the samples in an epoch, several times each"
    if method.memory_by_sample and student.recipe.processes > 1:
        return "keeps a memory by sample, of which each of several processes would see a part"
    if method.partner == "mixed" and student.recipe.shares > 1:
        return "mixes the images of a batch, of which it would see a part at a time"
    if method.needs_hard_labels and student.recipe.soft_targets:
        return "needs hard labels, and this recipe mixes or smooths them"
    others = [student] if method.needs == "self" else [teacher.side for teacher in teachers]
    return refusal(method, student.model, [other.model for other in others], student.shape)
