"""Trainings as commands for other schedulers, and as scripts for sbatch; a real Slurm takes them in test_slurm.py."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from small import write_grid

from bench.errors import UserError
from bench.jobs import cluster_file, scripts
from bench.records.folders import ResultsFolder
from run_bench import main

CLUSTER = """
kind: slurm
partition: ci
minutes: 30
gpus: 0
threads: 1
cells_per_job: 2
setup: [module load cuda]
sbatch: {mail-type: END, reservation: spring term, exclusive: true}
"""


@pytest.fixture
def cluster(tmp_path: Path) -> str:
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER)
    return str(path)


def test_a_command_trains_one_cell_and_its_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path, seeds=[0, 1], precision="auto", recipe={"name": "digits", "epochs": 1})
    at = ["--results", str(tmp_path / "results"), "--device", "cpu"]
    assert main(["plan", grid, *at, "--commands"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not (tmp_path / "results").exists()
    assert len(lines) == 7
    assert "-resnet8x4-none-s0-" in lines[0]  # teachers first
    assert all(re.search(r"--set precision=\w+ ", line) for line in lines)  # of this machine, whatever the next one has
    command = shlex.split(next(line for line in lines if "-kd-s1-" in line))
    subprocess.run(command, check=True, cwd="/", timeout=300, capture_output=True)
    folder = ResultsFolder(tmp_path / "results").grid("small")
    done = sorted(cell.id.rsplit("-", 1)[0] for cell in folder.cells() if cell.done())
    assert done == ["digits-resnet8-kd-s1", "digits-resnet8x4-none-s0"]
    assert not folder.report_folder().exists()
    assert folder.costs() == ([], [])
    main(["plan", grid, *at, "--commands"])
    assert len(capsys.readouterr().out.splitlines()) == 5  # what is left
    assert main(["run", grid, *at, "--cell", "kd-s7"]) == 2
    assert "small, --cell: unknown cell 'kd-s7'. Known: digits" in capsys.readouterr().err
    assert main(["run", grid, *at, "--cell", "kd-s"]) == 2
    assert "kd-s names 2 cells" in capsys.readouterr().err


def test_a_dry_run_writes_scripts_and_nothing_else(tmp_path: Path, cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path, seeds=[0, 1])
    asked = ["plan", grid, "--results", str(tmp_path / "results"), "--device", "cpu", "--cluster", cluster]
    assert main([*asked, "--dry-run", str(tmp_path / "scripts")]) == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "results").exists()
    names = sorted(path.name for path in (tmp_path / "scripts").iterdir())
    assert names == ["array-0.sh", "array-1.sh", "array-2.sh", "submit.sh"]
    assert all(str(tmp_path / "scripts" / name) in printed for name in names)
    for name in names:
        subprocess.run(["bash", "-n", str(tmp_path / "scripts" / name)], check=True)
    text = (tmp_path / "scripts/array-1.sh").read_text()
    options = {line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")}
    assert {"--array=0-1%2", "--partition=ci", "--time=30", "--cpus-per-task=1", "--requeue", "--signal=TERM@90"} <= options
    assert {"--mail-type=END", "--reservation='spring term'", "--exclusive"} <= options
    assert "\nmodule load cuda\n" in text
    assert len(re.findall(r"--cell digits-resnet8-(none|tfd)-s\d-\w{12}", text)) == 4
    submit = (tmp_path / "scripts/submit.sh").read_text().splitlines()
    assert submit[-1] == ("array_2=$(sbatch --parsable --dependency=afterok:${array_0}_0 --kill-on-invalid-dep=yes array-2.sh)")
    assert main([*asked[:-2], "--dry-run"]) == 2
    assert "a cluster of kind local has no scripts" in capsys.readouterr().err


def test_processes_of_a_cell_find_each_other(tmp_path: Path, cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path, methods=["none"], recipe={"name": "digits", "epochs": 1, "processes": 2})
    asked = ["plan", grid, "--results", str(tmp_path / "results"), "--device", "cpu"]
    main([*asked, "--commands"])
    assert " -m torch.distributed.run --nproc-per-node 2 " in capsys.readouterr().out
    main([*asked, "--cluster", cluster, "--dry-run", str(tmp_path / "scripts")])
    text = (tmp_path / "scripts/array-0.sh").read_text()
    assert "#SBATCH --ntasks-per-node=2" in text
    assert "WORLD_SIZE=$SLURM_NTASKS" in text
    assert "export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{time: 30}", "'time' is set by `minutes`"),
        ("{array: 1-3}", "'array' is set by this program"),
        ("{partition: gpu}", "'partition' is set by `partition` of the cluster file"),
        ("{mail_type: END}", "'mail_type' is no long option of sbatch"),
        ('{comment: "a\\n#SBATCH --wrap=x"}', "comment: one line of text"),
        ("{exclusive: false}", "exclusive: one line of text, a number, or true"),
        ("{exclude: [a, b]}", "sbatch.exclude"),
    ],
)
def test_options_that_cannot_be_passed_through_are_named(tmp_path: Path, options: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"sbatch: {options}")
    with pytest.raises(UserError, match=r"c\.yaml, sbatch") as error:
        cluster_file.read(str(path), {})
    assert message in str(error.value)


def test_a_shell_reads_names_that_are_no_text_as_they_are(tmp_path: Path) -> None:
    names = [os.fsdecode(b"a\xff\xfe0 'b'"), "a\nb $x \x1b[1m", "é \\ \"'", "", "plain"]
    line = scripts.command_line(["printf", r"%s\0", *names])
    assert line.isprintable()
    printed = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout
    assert printed.split(b"\0")[:-1] == list(map(os.fsencode, names))
    scripts.write({"script": names[0]}, tmp_path / names[0])
    assert (tmp_path / names[0] / "script").read_bytes() == os.fsencode(names[0])


def test_a_key_that_is_no_text_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "quick", "--set", "\udcff=1"]) == 2
    assert capsys.readouterr().err == "error: --set \\udcff=1: the key has a character that no text has\n"
