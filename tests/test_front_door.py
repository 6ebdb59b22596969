"""The commands of the README work as they are written, whatever Python is called and whatever lies in the user's folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from small import write_grid

from bench.jobs.worker import environment
from run_bench import main


@pytest.fixture
def clone(tmp_path: Path, repository: Path) -> Path:
    """A fresh clone without an environment."""
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / "run_bench.py").write_bytes((repository / "run_bench.py").read_bytes())
    for name in ("bench", "methods", "reports"):
        (folder / name).symlink_to(repository / name)
    return folder


def call(clone: Path, *arguments: str, bare: bool, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the script; by a Python without any package, if `bare`."""
    command = [sys.executable, *["-S"] * bare, str(clone / "run_bench.py"), *arguments]
    return subprocess.run(command, cwd=cwd or clone, capture_output=True, text=True, timeout=300, check=False)


def test_a_python_without_packages_hands_over_to_the_projects_own(clone: Path) -> None:
    own = clone / ".venv/bin/python"
    own.parent.mkdir(parents=True)
    own.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    own.chmod(0o755)
    done = call(clone, "list", "grids", bare=True, cwd=clone.parent)
    assert (done.returncode, "quick" in done.stdout) == (0, True), done.stderr
    own.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')  # broken: it lacks them as well
    assert call(clone, "list", "grids", bare=True).returncode == 2


def test_without_an_environment_one_line_says_what_to_type(clone: Path) -> None:
    done = call(clone, "run", "quick", bare=True)
    assert done.returncode == 2
    assert done.stderr == f"error: the packages of this project are not installed; type: make -C '{clone}' bench\n"


@pytest.mark.slow
def test_folders_of_the_users_shadow_nothing(clone: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in ("bench", "methods", "reports"):
        (home / name).mkdir(parents=True)
        (home / name / "__init__.py").write_text("raise SystemExit('this is not the package')\n")
    grid = write_grid(home, methods=["none"], recipe={"name": "digits", "epochs": 1})
    done = call(
        clone, "run", grid, "--device", "cpu", "--jobs", "1", "--threads", "1", "--no-cost", "--no-report", bare=False, cwd=home
    )
    assert "1 of 1 done" in done.stdout, done.stdout + done.stderr


def test_workers_do_not_look_into_the_folder_they_start_in(tmp_path: Path) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods/__init__.py").write_text("raise SystemExit('this is not the package')\n")
    command = [sys.executable, "-c", "import methods.parts, sys; assert '' not in sys.path"]
    with environment(1):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_plan_lists_the_jobs_of_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, cluster = write_grid(tmp_path, seeds=[0, 1]), tmp_path / "cluster.yaml"
    cluster.write_text("{kind: slurm, minutes: 30, gpus: 1, cells_per_job: 2}")
    assert main(["plan", grid, "--cluster", str(cluster), "--results", str(tmp_path / "results")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "4 jobs in 3 arrays; at their time limit of 30 minutes they take 2 GPU-hours" in printed
    assert re.search(r"array 3: 1 jobs, 2 cells, 1 GPUs, 4 cores a job, after digits-resnet8x4-none-s0-\w{12}", printed)
    assert not (tmp_path / "results").exists()


def test_pip_installs_a_command(repository: Path) -> None:
    import run_bench

    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["distillation-bench"].partition(":")
    assert getattr(run_bench, name) is run_bench.main
    assert module == run_bench.__name__


@pytest.mark.parametrize(
    ("typed", "offered"), [("run_bench.py ver", {"verify"}), ("run_bench.py plan paper_", {"paper_table1", "paper_table2"})]
)
def test_a_shell_completes_verbs_and_grids(tmp_path: Path, repository: Path, typed: str, offered: set[str]) -> None:
    pytest.importorskip("argcomplete")
    answer = tmp_path / "answer"
    asked = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": typed,
        "COMP_POINT": str(len(typed)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
    }
    command = [sys.executable, str(repository / "run_bench.py")]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, **asked, "_ARGCOMPLETE_IFS": "\n"}, timeout=60, check=False)
    assert offered <= {word.strip() for word in answer.read_text().split("\n")}


def test_the_hosted_workflow_runs_what_ci_runs(repository: Path) -> None:
    workflow = yaml.safe_load((repository / ".github/workflows/check.yml").read_text())
    hosted = [step["run"] for step in workflow["jobs"]["check"]["steps"] if "run" in step]
    ours = re.findall(r"^make .* (\w+)$", (repository / ".ci/run").read_text(), re.MULTILINE)
    assert hosted == [f"make {target}" for target in ours]


def test_the_hosted_workflow_tests_the_floors_on_the_lowest_python(repository: Path) -> None:
    job = yaml.safe_load((repository / ".github/workflows/check.yml").read_text())["jobs"]["floors"]
    setup, run = job["steps"][-2:]
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert (f">={setup['with']['python-version']}", run["run"]) == (project["requires-python"], "make floors")
    makefile = (repository / "Makefile").read_text()
    tested = re.search(r"^TESTED := (.*)$", makefile, re.MULTILINE)
    assert tested
    assert all((repository / f"tests/test_{name}.py").is_file() for name in tested[1].split())


def test_every_requirement_has_a_floor(repository: Path) -> None:
    command = [sys.executable, str(repository / ".ci/floors.py")]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    stated = sum(project["optional-dependencies"].values(), project["dependencies"])
    assert [line.replace("==", ">=") for line in printed] == stated


def test_standing_files_agree_with_the_project(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    forms = [yaml.safe_load(path.read_text()) for path in (repository / ".github/ISSUE_TEMPLATE").glob("*.yml")]
    assert all({"name", "description", "body"} <= form.keys() for form in forms)
    made = re.search(r"^RUN make (\S+)$", (repository / "Dockerfile").read_text(), re.MULTILINE)
    assert made
    assert made[1].replace(".venv", "$(VENV)") + ":" in (repository / "Makefile").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--results", ""], "--results: a path, not ''"),
        (["merge", ""], "source: a path, not ''"),
        (["plan", "--results", "~nobody-of-that-name/x"], "there is no user ~nobody-of-that-name; write ./~nobody"),
        (["run", "--threads", "-1"], "--threads: a number from 0 to 999,999, not '-1'"),
        (["run", "--jobs", "9" * 30], "--jobs: a number from 0 to 999,999"),
        (["run", "--checkpoint-s", "nan"], "--checkpoint-s: a number of 0 or more, not 'nan'"),
        (["run", "--cost-minutes", "-1"], "--cost-minutes: a number of 0 or more, not '-1'"),
        (["run", "--memory-gib", "inf"], "--memory-gib: a number above 0, not 'inf'"),
    ],
)
def test_arguments_beyond_their_ranges_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
