"""What a backend is: whoever runs the jobs that train cells. A new one is one class in one file of this folder. No torch here.

Every job gets a list of cells and takes the first that is neither done, failed, locked by another, nor waiting for its teacher:
see `bench.jobs.worker`. Only the results folder says what is done; no backend is asked for a job's own result.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from bench.errors import UserError, unknown
from bench.jobs.scripts import Commands
from bench.jobs.worker import ATTEMPTS
from bench.records.cell import Cell
from bench.records.folders import GridFolder
from bench.records.options import MOST_THREADS, Options

if TYPE_CHECKING:
    from bench.engine.distributed import Team

# Launches in a row that may end without any cell's end: so many it takes to name a cell that kills its trial and its workers
ROUNDS = ATTEMPTS + 2


class Queued(NamedTuple):
    """A cell's place in a queue."""

    job_id: str  # of this moment
    state: str  # as the queue names it: PENDING, RUNNING, ...
    reason: str

    def __str__(self) -> str:
        return f"job {self.job_id}, {self.state.lower()}, {self.reason}"


class Handed(NamedTuple):
    """What became of the cells that a backend was given."""

    cells: int  # that were handed over by this call
    ended: bool  # whether each cell is done or has failed; else jobs go on after this call


class Watch(Protocol):
    """Follows a run while cells are trained; `bench.records.progress.Progress` is one."""

    def update(self) -> None:
        """Called about twice a second."""

    def note(self, line: str) -> None:
        """Takes one line for the user."""


class Backend(BaseModel):
    """Runs the jobs of a grid. Its fields are its settings: the keys of a cluster file, and the options of the same names.

    Numbers of 0 leave the choice to the backend. Only `train` has to be written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    kind: ClassVar[str]  # the name in `--cluster` and in cluster files
    measures_here: ClassVar[bool] = True  # whether this machine is the one whose costs are asked for

    jobs: int = Field(0, ge=0)  # at a time
    threads: int = Field(0, ge=0, le=MOST_THREADS)  # CPU threads of a process

    def plans_for(self, device: str) -> str:
        """The device that jobs will have where the user asks for `device`, for `bench.engine.device.resolve_device`."""
        return device

    def check(self, options: Options) -> None:
        """Refuse what this backend cannot do, before anything is trained.

        Raises:
            UserError: says what to change.
        """

    def check_cells(self, cells: Sequence[Cell], folder: GridFolder, options: Options) -> None:
        """Refuse cells that this backend could not train now, before anything in the folder is touched.

        Raises:
            UserError: says what to change.
        """

    def team(self, device: str) -> contextlib.AbstractContextManager[Team | None]:
        """The processes that were started with this one to train together; None where this one is alone."""
        return contextlib.nullcontext()

    @abstractmethod
    def train(self, cells: Sequence[Cell], folder: GridFolder, options: Options, wait: bool, watch: Watch) -> Handed:
        """Train cells that are neither done nor failed, teachers before their students.

        Args:
            wait: stay until each cell is done or has failed, where this backend could also leave at once.

        Raises:
            UserError: this backend refuses, or does not answer.
            KeyboardInterrupt, SystemExit: after what cannot go on alone has been stopped.
        """
        raise NotImplementedError

    def try_out(self, cells: Sequence[Cell], folder: GridFolder, options: Options, watch: Watch, seconds: float) -> str:
        """Try cells out in a worker of this machine: see `bench.jobs.check`. Returns the last lines of one that failed."""
        from bench.jobs.local import Local

        return Local(threads=self.threads).try_out(cells, folder, options, watch, seconds)

    def outline(self, cells: Sequence[Cell]) -> list[str]:
        """The jobs that these cells would become, a line each; nothing is handed over. Empty where none waits in a queue."""
        return []

    def scripts(self, cells: Sequence[Cell], grid: str, folder: Path, make: Commands) -> dict[str, str]:
        """Scripts that somebody may read and submit, by the names of their files; nothing is handed over.

        Args:
            folder: where they will lie.
            make: see `bench.jobs.scripts.words`.

        Raises:
            UserError: this backend knows no scripts.
        """
        raise UserError(
            f"--dry-run: a cluster of kind {self.kind} has no scripts; name one with --cluster slurm or a cluster file"
        )

    def assist(self, folder: GridFolder, options: Options, team: Team) -> None:
        """Train in a follower of the team what its leader sends."""
        from bench.jobs.worker import assist

        assist(folder, options, team)

    def queue(self, folder: GridFolder) -> Mapping[str, Queued]:
        """Cells of this grid that wait or run in a queue, by id.

        Raises:
            UserError: the queue does not answer, and this grid was handed to it before.
        """
        return {}

    def cancel(self, folder: GridFolder) -> int:
        """End this grid's jobs and no others; returns how many cells they held.

        Raises:
            UserError: the queue does not answer.
        """
        return 0


BACKENDS: dict[str, type[Backend]] = {}
Class = TypeVar("Class", bound=type[Backend])


def register(backend: Class) -> Class:
    """Make a backend known by its kind."""
    BACKENDS[backend.kind] = backend
    return backend


def backends() -> dict[str, type[Backend]]:
    """Every known backend by its kind; those of this folder are imported here."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"bench.jobs.{module.name}")
    return BACKENDS


def _used(folder: GridFolder) -> Iterator[Backend]:
    """Those to which cells of this grid were handed before."""
    known = backends()
    for kind in sorted({launch.backend for launch in folder.launches().values()}):
        if kind not in known:
            raise unknown("cluster kind", kind, known, f"{folder.name}/launches")
        yield known[kind]()


def queue(folder: GridFolder) -> dict[str, Queued]:
    """Cells of this grid that wait or run in some queue, by id.

    Raises:
        UserError: a queue does not answer.
    """
    return {cell_id: place for backend in _used(folder) for cell_id, place in backend.queue(folder).items()}


def try_queue(folder: GridFolder) -> tuple[dict[str, str], str]:
    """(where each waiting cell stands, "") or, where a queue does not answer, (nothing, why)."""
    try:
        return {cell_id: str(place) for cell_id, place in queue(folder).items()}, ""
    except UserError as error:
        return {}, str(error)


def cancel(folder: GridFolder) -> int:
    """End this grid's jobs, wherever they are; returns how many cells they held.

    Raises:
        UserError: a queue does not answer.
    """
    return sum(backend.cancel(folder) for backend in _used(folder))


def give_up(cells: Sequence[Cell], folder: GridFolder, last_lines: str, watch: Watch) -> None:
    """Name as failed what was lost without a trace; where no trace can be written, the user reads why."""
    for cell in cells:
        place = folder.cell(cell.id)
        if place.locked() or place.settled():  # in this order: it may end between the two questions
            continue
        error = "its workers died (killed, or out of memory), or could not write its folder"
        try:
            place.write_failure(error, last_lines, again=True)
        except (OSError, ValueError) as why:
            watch.note(f"{cell.id} is not done, and its folder cannot be written: {why}")
