"""Where jobs run and what they ask for: a cluster file, or options. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import UserError, unknown

KINDS = ("local", "debug", "slurm")
Name = Annotated[str, Field(pattern=r"^[^\s'\"\\]+$")]
LOCAL_ONLY = ("per_gpu",)


class Cluster(BaseModel):
    """What a cluster file may say. Numbers of 0 leave the choice to us, names of None to the cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    kind: Literal["local", "debug", "slurm"] = "slurm"
    jobs: int = Field(0, ge=0)  # at a time; local: one a GPU, or one a core; slurm: in each array, up to the cluster
    threads: int = Field(0, ge=0)  # CPU threads of a process; local: the cores shared out; slurm: 4
    per_gpu: int = Field(1, ge=1)  # local: jobs that share a GPU; more than that wait
    # The rest is for Slurm
    partition: Name | None = None
    account: Name | None = None
    qos: Name | None = None
    constraint: Name | None = None
    minutes: int = Field(240, ge=1)  # time limit of a job; what is not done by then goes on from its checkpoint
    gpus: int = Field(1, ge=0, le=1)  # of each process
    memory_gib: float | None = Field(None, gt=0)  # of each process
    nodes: int = Field(1, ge=1)  # over which the processes of a cell are spread
    cells_per_job: int = Field(1, ge=1)  # trained one after the other, so that small cells share a start
    setup: list[str] = []  # shell lines before the worker starts, such as `module load cuda`


def read(name: str, options: Mapping[str, Any]) -> Cluster:
    """A kind of cluster or a cluster file, with options (None: not given) over it.

    Raises:
        UserError: no such file, not YAML, an unknown key, a value that cannot be, or one without effect here.
    """
    raw: dict[str, Any] = {"kind": name}
    if name not in KINDS:
        raw = _file(Path(name))
    raw |= {key: value for key, value in options.items() if value is not None}
    try:
        cluster = Cluster.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise unknown("key", key, Cluster.model_fields, name) from None
        raise UserError(f"{name}, {key}: {first['msg']}, not {first['input']!r}") from None
    common = ("kind", "jobs", "threads")
    for key in cluster.model_fields_set.difference(common):
        if (cluster.kind == "slurm") == (key in LOCAL_ONLY) or cluster.kind == "debug":
            raise UserError(f"{name}, {key}: has no effect on a cluster of kind {cluster.kind}")
    return cluster


def _file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise unknown("cluster", str(path), KINDS, "no such file")
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise UserError(f"{path}: a cluster file is a mapping with keys {', '.join(Cluster.model_fields)}")
    return raw
