"""The house keeps its own rules: who imports whom, what starts fast, what our pages state."""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.image import imread

from reports import readme

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("methods", "bench", "reports")
ROOMS = (  # of bench, from the ground up
    ("texts", "cores", "sources", "environment"),
    ("errors",),
    ("user_files", "screen"),
    ("stats", "records", "plugins", "command_line"),
    ("data", "models"),
    ("engine",),
    ("plan",),
    ("measure", "jobs"),
    ("run", "arguments"),
)
WITHOUT_TORCH = (
    *(
        "bench.errors",
        "bench.user_files",
        "bench.cores",
        "bench.sources",
        "bench.plugins",
        "bench.stats",
        "bench.plan.recipes",
        "bench.plan.grid_file",
        "bench.plan.seeds",
    ),
    *("bench.records.cell", "bench.records.files", "bench.records.folders", "bench.records.options", "bench.records.progress"),
    *("bench.records.naming", "bench.records.record", "bench.records.source", "bench.records.upkeep"),
    *("bench.jobs.cluster_file", "bench.jobs.base", "bench.jobs.slurm", "bench.jobs.worker", "reports", "reports.readme"),
)
REFERENCE = readme.REFERENCE


# Who imports whom


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, as a dotted name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def sources(package: str) -> Iterator[tuple[str, set[str]]]:
    """(path, what it imports) of every file of a package."""
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths
    for path in paths:
        yield str(path.relative_to(ROOT)), imports(path)


def inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def test_methods_know_torch_the_contract_and_nothing_else():
    allowed = ("torch", "mmengine.registry", "methods.base", "methods.composition", "methods.parts", *sys.stdlib_module_names)
    for path, names in sources("methods"):
        beyond = {name for name in names if not inside(name, *allowed)}
        assert not beyond, f"{path} imports {beyond}"
    assert not any(inside(name, "methods.parts") for name in imports(ROOT / "methods/base.py"))


def test_reports_know_records_and_statistics_and_no_torch():
    for path, names in sources("reports"):
        own = {name for name in names if inside(name, "bench", "methods", "torch", "mmengine")}
        allowed = ["bench.errors", "bench.texts", "bench.user_files", "bench.screen", "bench.records", "bench.stats"]
        if path == "reports/readme.py":  # shows the methods' cards
            allowed.append("bench.plan.catalogue")
        assert all(inside(name, *allowed) for name in own), f"{path} imports {own}"


def test_rooms_import_only_from_floors_below():
    floor = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}
    found = {path.relative_to(ROOT / "bench").parts[0].removesuffix(".py") for path in (ROOT / "bench").rglob("*.py")}
    assert found - {"__init__"} == floor.keys()
    for path, names in sources("bench"):
        assert not any(inside(name, "reports", "run_bench") for name in names), path
        room = path.split("/")[1].removesuffix(".py")
        others = {name.split(".")[1] for name in names if inside(name, "bench")} - {room}
        above = {other for other in others if room != "__init__" and floor[other] >= floor[room]}
        assert not above, f"{path} imports {above}"


def test_the_engine_names_no_method():
    keys = {path.stem for path in (ROOT / "methods").glob("*.py")} - {"none", "sum"}  # also a value of `needs`, a word of torch
    for path in (ROOT / "bench/engine").glob("*.py"):
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not keys & {text for text in texts if isinstance(text, str)}, path


def test_packages_are_listed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {
        str(path.parent.relative_to(ROOT)).replace("/", ".") for name in FLOORS for path in (ROOT / name).rglob("__init__.py")
    }
    assert found == set(project["tool"]["setuptools"]["packages"])


# What starts fast, and without torch


def fresh(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter; returns what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


HELP = """
import sys, run_bench
try:
    run_bench.main(["--help"])
except SystemExit:
    pass
slow = {"torch", "pandas", "numpy", "mmengine", "matplotlib", "pydantic"} & set(sys.modules)
assert not slow, slow
"""


def test_help_is_instant():
    assert "run_bench.py run quick" in fresh(HELP)


BLOCKED = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
"""
VERB = (
    BLOCKED
    + """
import run_bench
raise SystemExit(run_bench.main(sys.argv[1:]))
"""
)


def test_what_reads_results_works_without_torch(tmp_path):
    import numpy as np
    import synthetic

    truth = {"none": 0.0, "tfd": 0.5, "kd": 1.0}
    root = tmp_path / "results"
    synthetic.filled(root, "demo", synthetic.draw(truth, 3, np.random.default_rng(1), epochs=4))
    at = ("--results", str(root))
    counts = json.loads(fresh(VERB, "status", "demo", "--json", *at))["counts"]
    assert counts["done"] == 10  # three methods, three seeds, one teacher
    assert "0 problems" in fresh(VERB, "verify", "demo", *at)
    fresh(VERB, "report", "demo", *at)
    assert "tfd" in (root / "demo/report/report.html").read_text(encoding="utf-8")
    assert "copied" in fresh(VERB, "merge", str(root), "--results", str(tmp_path / "second"))


@pytest.mark.parametrize("name", readme.GRIDS)
def test_the_reference_records_are_sound_and_make_the_report_again_without_torch(name, tmp_path):
    """What stands in the repository as read by people comes from what stands there for programs."""
    folder, copy = REFERENCE / name, tmp_path / "results" / "reference" / name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("report"))
    assert "0 problems" in fresh(VERB, "verify", str(copy))
    fresh(VERB, "report", str(copy))
    assert (copy / "report/report.md").read_text(encoding="utf-8") == (folder / "report/report.md").read_text(encoding="utf-8")
    drawn = [path.name for path in (folder / "report/figures").glob("*.png")]
    assert drawn
    for figure in drawn:
        ours, again = (imread(place / "report/figures" / figure) for place in (folder, copy))
        assert ours.shape == again.shape
        assert abs(ours - again).mean() < 0.01  # of 1: fonts may be drawn a little differently


@pytest.mark.parametrize("name", readme.GRIDS)
def test_the_reference_records_are_those_of_the_shipped_grid(name):
    from bench.plan import grid_file

    manifest = json.loads((REFERENCE / name / "manifest.json").read_text(encoding="utf-8"))
    assert manifest.get("file") in (None, f"{name}.yaml")  # relative to the results, and no path of the machine that trained
    made = manifest["grid"]
    file = REFERENCE / f"{name}.yaml"
    _, shipped = grid_file.read(str(file) if file.exists() else name)
    if name == "cifar100_30":
        shipped["also"] = []  # its secondary methods are not trained yet
    data = shipped.pop("data")
    used = made.pop("data")
    for change in shipped.get("also", []):  # stated since the recipe `tfd_code` reflects; then zeros were all there was
        if isinstance(change.get("recipe"), dict) and change["recipe"].get("padding") == "zero":
            del change["recipe"]["padding"]
    assert made == shipped
    changed = ("type", "path", "name")
    assert {key: value for key, value in used.items() if key not in changed} == (
        {key: value for key, value in data.items() if key not in changed} if isinstance(data, dict) else {}
    )


def test_no_scratch_and_no_weights_but_one_teachers_are_among_the_reference_records():
    kept = re.compile(
        r"README\.md|\w+\.yaml|manifest\.json|speed_\w*cpu\.json|gpu_h200\.json|record\.json|curves\.csv|correct\.bin|report\.md|.*\.png"
        r"|[0-9a-f-]+.*\.json"
    )
    others = [path for path in tracked() if REFERENCE in path.parents and not kept.fullmatch(path.name)]
    [teacher] = others
    assert teacher.relative_to(REFERENCE).as_posix() == "cifar100_30/cifar100-resnet56-none-s0-e7b757158202/weights.safetensors"
    assert teacher.stat().st_size < 5 * 2**20


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_module_imports_without_torch(module):
    fresh(BLOCKED + f"import {module}")


# What is in the repository


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_path_of_anyones_machine():
    absolute = re.compile(rb"(?<![\w.:/)}])/(?:" + b"|".join([b"work", b"home", b"root", b"Users", b"mnt"]) + rb")/\w")
    found = [path.name for path in tracked() if path.suffix != ".png" and absolute.search(path.read_bytes())]
    assert not found


def test_pins_are_within_the_ranges():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = re.search(r"-e '\.\[([\w,]+)\]'", (ROOT / "Makefile").read_text())
    assert installed is not None
    extras = (project["optional-dependencies"][name] for name in installed[1].split(","))
    wanted = itertools.chain(project["dependencies"], *extras)
    for requirement in map(Requirement, wanted):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


# What our pages state


TEXTS = {path: path.read_text(encoding="utf-8") for path in readme.PAGES}


def blocks() -> list[tuple[str, str, str]]:
    """(language, file name, text) of every fenced block of our pages, in order."""
    fence = re.compile(r"^```(\w+) ?([\w.]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [match.groups() for text in TEXTS.values() for match in fence.finditer(text)]  # type: ignore[misc]


def commands() -> list[str]:
    return [line for language, _, text in blocks() if language == "sh" for line in text.splitlines()]


@pytest.mark.parametrize("name", readme.BLOCKS)
def test_the_readmes_tables_are_true(name):
    [written] = [found[name] for found in map(readme.blocks_of, TEXTS.values()) if name in found]
    blocked = "" if name == "methods" else BLOCKED
    # in a fresh interpreter, without what other tests register
    made = fresh(f"{blocked}\nfrom reports import readme; print(readme.BLOCKS[{name!r}](), end='')")
    assert written == made, "run `make readme`"


def test_every_method_has_a_page_that_is_true():
    written = {path.stem: path.read_text(encoding="utf-8") for path in readme.METHODS.glob("*.md")}
    made = fresh("import json; from reports import readme; print(json.dumps(readme.method_pages()))")
    assert written == json.loads(made), "run `make readme`"


def test_the_front_page_is_short_and_its_first_command_soon():
    lines = TEXTS[ROOT / "README.md"].splitlines()
    assert len(lines) <= 140
    assert lines.index("make bench") < 15


def test_a_page_lists_every_verb():
    import run_bench  # noqa: F401  (declares them)
    from bench.command_line import VERBS

    assert {verb for verb in VERBS if f"`{verb}`" not in TEXTS[ROOT / "docs/commands.md"]} == set()


def test_links_of_our_pages_lead_somewhere():
    for path in {*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *readme.PAGES}:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)(?:#[\w-]+)?\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).is_file(), f"{path.relative_to(ROOT)}: {target}"


@pytest.mark.slow
def test_the_commands_and_examples_of_our_pages_run_in_a_fresh_clone(tmp_path):
    """In the order of the pages, without activating anything; `make bench` and the shipped grid cut down to a tiny training."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True, timeout=120)
    (clone / ".venv").symlink_to(sys.prefix)
    for language, name, text in blocks():
        if name:
            assert language in ("python", "yaml"), name
            (clone / name).write_text(text, encoding="utf-8")
    tiny = {"data": "digits", "recipe": {"name": "digits", "epochs": 1}, "seeds": [0], "pairs": [{"student": "resnet8"}]}
    (clone / "tiny.yaml").write_text(json.dumps(tiny | {"methods": ["none"]}), encoding="utf-8")
    short = ["--set", "recipe.epochs=1", "--set", "seeds=[0]", "--set", "methods=[none]", "--no-cost", "--no-report"]
    active = str(Path(sys.prefix) / "bin")
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if folder != active]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"PATH": os.pathsep.join(folders), "COLUMNS": "200"}

    def run(*arguments: str) -> str:
        done = subprocess.run(arguments, cwd=clone, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    printed = {}
    for line in commands():
        if line in printed:
            continue
        program, *arguments = shlex.split(line)
        if line == "make bench":
            printed[line] = run("make", "-o", ".venv/.installed", "bench", "GRID=tiny.yaml")
        elif program == "make":
            printed[line] = run(program, "--dry-run", *arguments)
        elif program == "./run_bench.py":
            printed[line] = run(program, *arguments, *(short if arguments == ["run"] else []))
        else:
            assert line == "pip install -e ."  # the environment that this test runs in
    assert "1 of 1 done" in printed["make bench"]
    run(".venv/bin/python", "accuracies.py")
    assert run(".venv/bin/python", "train.py").count("'done'") == 2

    own = next(text for line, text in printed.items() if line.startswith("./run_bench.py run penalty.yaml"))
    assert "cp(weight=0.5)" in own
    assert re.search(r"report: .*report\.html", own)
    assert (clone / "results/penalty/report/report.html").is_file()
    assert "11 done" in next(text for line, text in printed.items() if line.startswith("./run_bench.py status"))
