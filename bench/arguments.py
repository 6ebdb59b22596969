"""The arguments that verbs of the command line share. Imports nothing that takes time."""

from __future__ import annotations

import math
import os.path
from argparse import ArgumentTypeError
from pathlib import Path

from bench.command_line import Given, argument, flag, group, number, several, together
from bench.records.options import COST_MINUTES

LISTS = ("methods", "models", "data", "optimizers", "augmentations", "grids", "recipes")
CLUSTER_OPTIONS = ("jobs", "threads", "per_gpu", "partition", "account", "minutes", "gpus", "memory_gib")


def grid_names(**_: object) -> list[str]:
    """For a shell: what `GRID` could be."""
    from bench.plan import grid_file

    return [*grid_file.shipped(), *(str(path) for path in Path().glob("*.yaml"))]


def finished_names(parsed_args: Given, **_: object) -> list[str]:
    """For a shell: what `FINISHED` could be."""
    from bench.records.folders import ResultsFolder

    return ResultsFolder(getattr(parsed_args, "results", None) or "results").grids()


def above_zero(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"a number above 0, not '{text}'")
    return value


def zero_or_more(text: str) -> float:
    """A number of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ArgumentTypeError(f"a number of 0 or more, not '{text}'")
    return value


def place(text: str) -> str:
    """A path, which may begin with `~` or `~user`; an empty one, of a variable that is not set, is none."""
    path = os.path.expanduser(text)  # noqa: PTH111 (pathlib drops the ./ before a ~ that is no home)
    if not path or "\0" in path:
        raise ArgumentTypeError(f"a path, not {text!r}")
    if path.startswith("~"):
        raise ArgumentTypeError(f"there is no user {path.partition('/')[0]}; write ./{path} for a file of that name")
    return path


RESULTS = argument("--results", type=place, default="results", metavar="DIR", help="the results folder (default: results)")
PLUGINS = several(
    "--import",
    "a file or module of yours: a method, model, data set, ...",
    "FILE.py|MODULE",
    dest="imports",
    type=place,
)
DATA_ROOT = argument("--data-root", type=place, metavar="DIR", help="where data sets lie or are downloaded to (default: data)")
GRID = together(
    argument(
        "grid",
        nargs="?",
        type=os.path.expanduser,
        default="quick",
        help="a shipped grid or a grid file (default: quick)",
        complete=grid_names,
    ),
    several("--set", "override a key of the grid; may be repeated", "KEY=VALUE", dest="overrides"),
    DATA_ROOT,
    argument("--device", default="auto", help="auto, cpu, cuda or cuda:N"),
)
FOLDER = "a grid's name in the results folder, or a folder of results"
FINISHED = argument(
    "grid", nargs="?", type=os.path.expanduser, default="quick", help=f"{FOLDER} (default: quick)", complete=finished_names
)
CELL = argument("cell", help="a cell's id, or enough of it")
GRAMS = argument("--grams-per-kwh", type=above_zero, metavar="N", help="grams of CO2 per kWh of your electricity")
PLANNING = together(
    flag("--commands", "print a command for each training instead, teachers first: for other schedulers"),
    argument(
        "--dry-run",
        type=place,
        nargs="?",
        const="sbatch",
        metavar="DIR",
        help="write the scripts for sbatch (default: sbatch)",
    ),
    GRAMS,
    argument("--detect", type=above_zero, metavar="GAIN", help="how many seeds it takes to show a true gain of GAIN points"),
    argument(
        "--spread",
        type=above_zero,
        metavar="POINTS",
        help="for --detect: spread of a paired difference (default: from records, else .42)",
    ),
    flag("--equal-cost", "epochs of each method that cost what the plain student does, from timed steps"),
)
THREADS = number("--threads", "CPU threads (default: all cores)", default=0)
JSON = flag("--json", "print JSON, for programs")
KINDS = "local (processes of this machine), debug (this process), slurm, or a cluster file"
CLUSTER = together(
    argument("--cluster", type=place, default="local", metavar="KIND|FILE", help=KINDS),
    number("--gpus", "slurm: GPUs of a process, 0 or 1 (default: 1)"),
)
JOBS = group(
    "how jobs run",
    number("--jobs", "cells at a time (default: one a GPU, or one a core)"),
    number("--threads", "CPU threads of a process (default: cores / jobs; slurm: 4)"),
    number("--per-gpu", "local: processes that share a GPU (default: 1); unless its MPS daemon runs, they only take turns"),
    argument("--partition", help="slurm, as all below"),
    argument("--account"),
    number("--minutes", "time limit of a job (default: 240)"),
    argument("--memory-gib", type=above_zero, metavar="N", help="memory of a process (default: the cluster's)"),
)
KIND = argument("what", nargs="?", choices=LISTS, help="one kind only")
COST_TIME = argument(
    "--cost-minutes",
    type=zero_or_more,
    default=COST_MINUTES,
    metavar="N",
    help=f"for measuring costs, about (default: {COST_MINUTES:g}; 0: no limit)",
)
TOOLS = together(
    several("--visualize", "an mmengine backend, such as tensorboard", "BACKEND", "--visualise", dest="visualize"),
    several(
        "--hook",
        "mmengine hook that the training loop calls: your own, or GradientShares, which measures each loss term's gradient",
        "MODULE.CLASS",
        dest="hooks",
    ),
)
TRAINING = together(
    flag("--wait", "on a cluster: stay until all is done"),
    flag("--together", "train methods of one seed in lock-step: one teacher forward for all; on a GPU the default"),
    flag("--apart", "train every cell by itself on a GPU too"),
    flag("--eager", "on a GPU: take every step one by one, even where a recorded graph gives the same"),
    flag("--retry", "train failed cells again"),
    flag("--force", "train finished cells again; their old records are set aside"),
    flag("--keep", "keep results that other code of your own made; else they are trained again"),
    argument("--no-check", dest="check", action="store_false", help="begin without trying each method out on each pair"),
    several("--cell", "train this cell alone, and its teacher; an id, or enough of it", "CELL", dest="only"),
    flag("--no-cost", "measure no costs"),
    flag("--no-report", "write no report"),
    COST_TIME,
    argument("--checkpoint-s", type=zero_or_more, default=30.0, metavar="S", help="seconds between checkpoints (default: 30)"),
    TOOLS,
)
MEASURING = together(THREADS, COST_TIME, flag("--force", "measure again what was measured on this hardware"))
ABLATE = flag("--ablate", "also switch off each piece in turn")
SPEED = "Measure this engine against the field's usual training loop, and what each of its pieces gains"
REPORT = together(
    argument(
        "grid",
        nargs="?",
        type=os.path.expanduser,
        help=f"{FOLDER} (default: quick; with --site all of them)",
        complete=finished_names,
    ),
    argument(
        "--site",
        type=place,
        metavar="DIR",
        help="write there, with a start page over the grids, as a web server shows them",
    ),
    argument("--compare", type=place, metavar="DIR", help="another folder of results, to set beside it"),
    argument(
        "--style",
        type=place,
        metavar="FILE",
        help="names, choice, order and colors of methods, size and font [reports/style.yaml]",
    ),
)
MAPS = together(
    argument("cells", nargs="+", metavar="CELL", help="ids of finished cells, or enough of them"),
    argument("--images", nargs="+", type=int, default=[0, 1, 2, 3], metavar="N", help="positions in the test set"),
)
TO = argument("--to", type=place, metavar="FILE", help="default: <cell>.safetensors in this folder, or <cell>.pth")
AS = argument(
    "--as", dest="layout", choices=["repdistiller"], help="a torch file with RepDistiller's names, as mdistiller reads it"
)
WATCH = flag("--watch", "look again every two seconds until nothing is left to train")
WEIGHTS = flag("--weights", "also the weights of cells that teach nobody")
ALL = flag("--all", "every grid of the results folder")
SOURCE = argument("source", type=place, help="a results folder, such as another machine's")
