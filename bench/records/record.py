"""What one finished cell leaves behind. The schema is versioned; what a reader does not know it refuses and leaves alone.

No torch here. Accuracies are in percent, times in seconds, sizes in MiB.
"""

from __future__ import annotations

import statistics
from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from bench.records.cell import Cell, Spec, digest
from bench.records.frozen import Frozen

SCHEMA = 1

PARTS_ON_DISK = {"optimizer": "optimiser"}  # of a cost: parts whose name on disk is older than the one in code
PARTS_IN_CODE = {on_disk: name for name, on_disk in PARTS_ON_DISK.items()}
BUSY_PERCENT = 10  # share of the cores that other work uses, above which timings deserve a warning

Percent = Annotated[float, Field(ge=0, le=100)]
Seconds = Annotated[float, Field(ge=0)]


class Accuracy(Frozen):
    epoch: int = Field(ge=1)  # counted from 1
    top1: Percent
    top5: Percent


class Accuracies(Frozen):
    """All on the test set; they differ in how the epoch was chosen."""

    last: Accuracy  # no choice: the headline
    best_test: Accuracy  # chosen on the test set itself, as much of the field reports it: flattering
    chosen: Accuracy | None  # chosen on the validation split, where the recipe holds one out


class Clocks(Frozen):
    """Wall seconds of this run, by what they were spent on. Runs may share a machine: never compare them between cells."""

    train_s: Seconds = 0.0
    prepare_s: Seconds = 0.0  # the method's preparation phase
    evaluate_s: Seconds = 0.0
    checkpoint_s: Seconds = 0.0
    log_s: Seconds = 0.0
    compile_s: Seconds = 0.0  # of networks; this engine runs them as they are on every device, so far
    redone_s: Seconds = 0.0  # spent before an interruption, after the last checkpoint, and therefore spent again


class Parameters(Frozen):
    deployed: int = Field(ge=0)  # in the network that is used after training
    train_only: int = Field(ge=0)  # trained beside it and dropped


class Flops(Frozen):
    """Of one full batch by torch's FlopCounterMode: matrix products and convolutions only, a multiply-add counted as two."""

    step: int = Field(ge=0)  # forward and backward, the teacher's forward and the method's parts included
    teacher_forward: int = Field(ge=0)  # the part of `step` that is the teacher's
    prepare_step: int = Field(ge=0)  # a step of the preparation phase; 0 without one
    inference: int = Field(ge=0)  # forward of the deployed network, one image


class Machine(Frozen):
    host: str
    device: str  # "cpu" or the accelerator's name
    cpu: str
    cores: int
    memory_mib: int
    platform: str
    versions: dict[str, str]  # python, torch, ...

    @property
    def hardware(self) -> str:
        """Timings are pooled only where this is the same."""
        return f"{self.device} / {self.cpu} x{self.cores}" if self.device != "cpu" else f"{self.cpu} x{self.cores}"

    def computes_like(self, other: Machine) -> bool:
        """Whether the same sums come out: of the same hardware and versions, whatever its name."""
        return (self.hardware, self.versions) == (other.hardware, other.versions)


LATER: dict[str, Any] = {"added_later": True}  # of a field that is left out of the file while it is None


class Extensible(Frozen):
    """A model that gains optional fields (see `LATER`): at None they are not written, so that older files stay as they are."""

    @model_serializer(mode="wrap")
    def _without_later_nones(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        body: dict[str, Any] = handler(self)
        for name, field in type(self).model_fields.items():
            if field.json_schema_extra == LATER and body.get(name, ...) is None:
                del body[name]
        return body


class Record(Extensible):
    schema_version: int = SCHEMA
    id: str
    cell: Cell
    accuracies: Accuracies
    epochs: int  # as run, preparation excluded
    steps: int  # optimizer steps of the main phase
    prepare_steps: int
    train_samples: int
    clocks: Clocks
    neighbours: int = Field(ge=0)  # other cells of the same run that trained at the same time, at most
    parameters: Parameters
    flops: Flops
    threads: int
    machine: Machine  # that ended it
    commit: str | None  # of this project; None outside a checkout
    started: str  # ISO 8601, UTC
    finished: str
    weights_sha256: str  # of the weights file beside the record
    curves_sha256: str  # of the curves file beside the record
    correct_sha256: str | None = Field(None, json_schema_extra=LATER)  # of the file that holds which test images are right
    test_samples: int | None = Field(None, ge=1, json_schema_extra=LATER)  # test images, of which that file has a bit each
    source: str | None = Field(None, json_schema_extra=LATER)  # digest of the source code that trained it
    path: str | None = Field(None, json_schema_extra=LATER)  # how its steps were run: eagerly, or as a recorded graph
    path_reason: str | None = Field(None, json_schema_extra=LATER)  # why so
    train_top1: Percent | None = Field(None, json_schema_extra=LATER)  # after the last epoch, as are the next two
    test_nll: float | None = Field(None, ge=0, json_schema_extra=LATER)  # mean negative log-likelihood, nats
    test_calibration_error: Percent | None = Field(None, json_schema_extra=LATER)  # expected, over confidence bins
    earlier_machines: tuple[Machine, ...] | None = Field(None, json_schema_extra=LATER)  # that trained it before, in order

    @property
    def hardware(self) -> str:
        """All that trained it, in order."""
        return ", then ".join(machine.hardware for machine in (*(self.earlier_machines or ()), self.machine))

    @property
    def ran(self) -> str:
        """What may change an accuracy: cpu, or the GPU's model whether steps were eager or a graph, and on what it began."""
        others = dict.fromkeys(machine.device for machine in self.earlier_machines or ())
        began = [f"after {device}" for device in others if device != self.machine.device]
        return ", ".join(filter(None, (self.machine.device, self.path, *began)))

    def mismatch(self) -> str | None:
        """Why this record contradicts itself, or None."""
        try:
            given = self.cell.id
        except (KeyError, TypeError, AttributeError) as error:
            return f"its cell has a spec without a name ({type(error).__name__}: {error})"
        return None if self.id == given else f"its id is {self.id}, its contents give {given}"


class Timing(Frozen):
    """One quantity of the exclusive probe, measured once a turn; milliseconds."""

    turns_ms: tuple[Annotated[float, Field(ge=0)], ...] = Field(min_length=1)  # in the order of the turns

    @property
    def median_ms(self) -> float:
        return statistics.median(self.turns_ms)

    @property
    def low_ms(self) -> float:
        """The lower quartile."""
        return self._quartiles[0]

    @property
    def high_ms(self) -> float:
        """The upper quartile."""
        return self._quartiles[2]

    @property
    def _quartiles(self) -> list[float]:
        return statistics.quantiles(self.turns_ms, n=4, method="inclusive") if len(self.turns_ms) > 1 else [*self.turns_ms] * 3


class Cost(Extensible):
    """What a step costs on an otherwise idle machine; one for all seeds of a (pair, method, recipe), see `Cell.cost_key`.

    `step` is measured in one piece. Its parts are measured apart and need not add up to it. All is measured in one process,
    which takes full batches, even where a recipe divides them among several processes.
    """

    schema_version: int = SCHEMA
    key: str
    label: str
    example: str  # id of a cell that this is the cost of
    student: str
    teacher: str  # empty without one
    session: str  # costs of one session were timed in turn: their n-th turns belong together
    step: Timing
    prepare_step: Timing | None
    parts: dict[str, Timing]  # data, student, teacher, method, backward, and the optimizer by its name in PARTS_ON_DISK
    teacher_alone: Timing | None  # the teacher's forward on a batch, with nothing around it
    inference: Timing | None  # the deployed network, one batch of `inference_batch` images
    inference_batch: int = 0
    latency: Timing | None = None  # the deployed network, one image
    peak_mib: float | None  # most device memory that tensors hold during a step
    host_peak_mib: float | None
    """Most main memory that the probing process held during a step (resident set): the program with its libraries, the data
    set where it lies in main memory, and on a CPU the tensors of all methods of the session. For planning; it hides what
    distinguishes methods."""
    energy_j_per_step: float | None  # None: not measured
    energy_j_per_prepare_step: float | None = None  # likewise, or nothing to prepare
    busy_percent: Percent  # share of the CPU cores that other processes used during the session
    threads: int
    machine: Machine
    measured: str  # ISO 8601, UTC
    method: Spec | None = Field(None, json_schema_extra=LATER)  # whose step it is, every argument
    path: str | None = Field(None, json_schema_extra=LATER)  # how the steps were run; as of a record
    own_source: str | None = Field(None, json_schema_extra=LATER)  # digest of the user's own code, where the step has any
    energy_windows_j_per_step: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(None, json_schema_extra=LATER)
    # of each window of at least 5 s; `energy_j_per_step` is their median


def seal(body: dict[str, Any]) -> dict[str, Any]:
    """Add a digest of all the rest, which shows a file that was edited by hand or cut short."""
    return body | {"sha256": digest(body)}


def unseal(sealed: dict[str, Any]) -> dict[str, Any]:
    """The body of a sealed object.

    Raises:
        ValueError: the digest is missing or wrong.
    """
    body = {key: value for key, value in sealed.items() if key != "sha256"}
    if sealed.get("sha256") != digest(body):
        raise ValueError("its digest does not match its contents: edited by hand, or damaged")
    return body
