"""Results never outlive their code: digests of code, and what becomes of results when a user's own code was edited."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic
from small import write_grid

from bench import run, sources
from bench.errors import UserError
from bench.jobs.debug import Debug
from bench.models import MODELS
from bench.records.cell import Teacher
from bench.records.cell_folder import CellFolder
from bench.records.folders import ResultsFolder
from bench.records.options import Options
from bench.records.source import source, stale_among, unknown_among
from methods import METHODS
from run_bench import main

PENALTY = '''
"""A penalty."""
from torch import Tensor
from methods import METHODS, Batch, Card, Method, Output

@METHODS.register_module("penalty")
class Penalty(Method):
    card = Card(title="Penalty", formula="CE + w |z|", paper="none")

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__()
        self.weight = weight

    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        # of the logits
        return {"penalty": self.weight * student.logits.abs().mean()}
'''
EDITED = PENALTY.replace(".abs()", ".square()")
QUIET = ["--device", "cpu", "--no-cost", "--no-report", "--cluster", "debug", "--threads", "1"]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Writes the plug-in's file; whoever runs next imports it anew, as a new process would."""
    path = tmp_path / "penalty.py"

    def forget() -> None:
        sys.modules.pop("penalty", None)
        METHODS._module_dict.pop("penalty", None)
        sources.forget(path)

    def written(text: str) -> str:
        forget()
        path.write_text(text)
        return str(path)

    yield written
    forget()


# Digests


@pytest.mark.parametrize(
    "same",
    [
        PENALTY.replace("# of the logits", "# of what it answers"),
        PENALTY.replace('"""A penalty."""', '"""The same, described in other words."""'),
        PENALTY.replace("self.weight * ", "self.weight  *  "),
        PENALTY.replace("(self, student: Output, batch: Batch)", "(\n        self, student: Output, batch: Batch\n    )"),
        PENALTY.replace("\n", "\r\n"),
    ],
)
def test_comments_and_layout_change_no_digest(same: str) -> None:
    assert same != PENALTY
    assert sources.of_text(same.encode()) == sources.of_text(PENALTY.encode())


@pytest.mark.parametrize(("old", "new"), [(".abs()", ".square()"), ("0.1", "0.2"), ('"penalty": ', '"other": ')])
def test_code_changes_the_digest(old: str, new: str) -> None:
    assert sources.of_text(PENALTY.replace(old, new).encode()) != sources.of_text(PENALTY.encode())


def test_blocks_and_texts_change_the_digest() -> None:
    texts = [
        "if a:\n    b()\n    c()\n",
        "if a:\n    b()\nc()\n",
        "f'{a} b'\nx = f'{a} b'\n",
        "x = f'{a}  b'\n",
        "x = f'{a}b'\n",
    ]
    assert len({sources.of_text(text.encode()) for text in texts}) == len(texts)


def test_what_a_file_imports_below_its_folder_counts(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/__init__.py").touch()
    (tmp_path / "parts/norm.py").write_text("x = 1\n")
    (tmp_path / "beside.py").write_text("y = 1\n")
    (tmp_path / "mine.py").write_text("import torch\nfrom parts.norm import x\n")
    before = sources.of_file(tmp_path / "mine.py")
    (tmp_path / "beside.py").write_text("y = 2\n")
    assert sources.of_file(tmp_path / "mine.py") == before
    (tmp_path / "parts/norm.py").write_text("x = 2\n")
    assert sources.of_file(tmp_path / "mine.py") != before


def test_every_shipped_method_and_network_is_found_in_one_file(repository: Path) -> None:
    for folder, registry in (("methods", METHODS), ("bench/models", MODELS)):
        for key, found in registry.module_dict.items():
            file = Path(sys.modules[found.__module__].__file__ or "")
            if file.is_relative_to(repository / folder):
                assert sources.shipped(repository / folder, key) == sources.of_file(file, repository / folder), key


# What becomes of results


def test_an_edited_method_is_trained_again_and_its_old_result_is_used_nowhere(
    tmp_path: Path, write: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"methods": ["none", "penalty", "kd"], "recipe": {"name": "digits", "epochs": 1}}
    grid, other = write_grid(tmp_path, **changes), write_grid(tmp_path, "other", **changes)
    root = ["--results", str(tmp_path / "results")]
    plugin = write(PENALTY)
    asked = [*root, *QUIET, "--import", plugin]
    assert main(["run", grid, *asked]) == 0
    place = _cell(tmp_path, "penalty")
    before, curves = _kept(place)
    write(PENALTY.replace("# of the logits", "# nothing new"))
    assert main(["run", grid, *asked]) == 0
    assert "0 were left; 4 of 4 done" in capsys.readouterr().out

    write(EDITED)
    assert main(["plan", grid, *root, "--import", plugin]) == 0
    assert "1 result was made by other code" in capsys.readouterr().out
    assert main(["run", other, *asked]) == 0  # another grid does not take the old one
    assert "1 were left; 4 of 4 done" in capsys.readouterr().out
    assert _kept(_cell(tmp_path, "penalty", "other"))[0]["weights_sha256"] != before["weights_sha256"]

    assert main(["run", grid, *asked, "--keep"]) == 0
    assert "1 result was made by other code: kept" in capsys.readouterr().out
    assert _kept(place) == (before, curves)
    assert main(["verify", "small", *root]) == 0
    assert "note: small: 1 result was made by other code" in capsys.readouterr().out
    assert main(["report", "small", *root]) == 0
    assert "made by other code" in (tmp_path / "results/small/report/report.md").read_text()
    capsys.readouterr()

    assert main(["run", grid, *asked]) == 0
    printed = capsys.readouterr().out
    assert "1 result was made by other code: trained again" in printed
    assert "4 of 4 done" in printed
    assert _kept(place)[0]["weights_sha256"] == _kept(_cell(tmp_path, "penalty", "other"))[0]["weights_sha256"]
    (old,) = (tmp_path / "results/small/superseded").iterdir()
    assert (old / "curves.csv").read_text() == curves
    assert main(["verify", "small", *root]) == 0
    assert capsys.readouterr().out == "0 problems\n"


def _cell(folder: Path, family: str, grid: str = "small") -> CellFolder:
    return next(cell for cell in ResultsFolder(folder / "results").grid(grid).cells() if f"-{family}-" in cell.id)


def _kept(cell: CellFolder) -> tuple[dict[str, object], str]:
    record = cell.record()
    assert record
    return record.model_dump(mode="json"), cell.curves(record)


def test_what_is_edited_in_mid_run_is_refused(tmp_path: Path, write: Callable[[str], str]) -> None:
    options = Options(device="cpu", threads=1, imports=(write(PENALTY),))
    grid = write_grid(tmp_path, methods=["penalty"], recipe={"name": "digits", "epochs": 1})
    planned, folder = run.plan(grid, tmp_path / "results", options=options)
    late = replace(options, code=tuple(planned.manifest()["code"].items()))
    write(EDITED)
    backend = Debug(threads=1)
    from bench.records.progress import Progress

    with Progress(folder, [], run.SILENT) as progress:
        backend.train(planned.cells, folder, late, True, progress)
    failure = folder.cell(planned.cells[0].id).failure()
    assert failure
    assert failure["again"]
    assert "method:penalty was edited after the run began" in failure["error"]


def test_an_edit_is_not_overlooked_within_one_process(tmp_path: Path, write: Callable[[str], str]) -> None:
    plugin = write(PENALTY)
    options = Options(device="cpu", threads=1, imports=(plugin,))
    grid = write_grid(tmp_path, methods=["penalty"])
    run.plan(grid, tmp_path / "results", options=options)
    Path(plugin).write_text(EDITED)
    with pytest.raises(UserError, match=r"penalty\.py: it was edited .* start Python anew"):
        run.plan(grid, tmp_path / "results", options=options)


def test_students_of_a_stale_teacher_are_stale() -> None:
    cells = [synthetic.teacher_cell("own_net"), synthetic.cell("kd", 0, teacher="own_net"), synthetic.cell("none", 0)]
    teacher, student, plain = (synthetic.record(cell, 60.0) for cell in cells)
    code = {"model:own_net": "1" * 64}
    student = student.model_copy(update={"source": source(student.cell, code)})
    student = student.model_copy(
        update={"cell": student.cell.model_copy(update={"teacher": Teacher(cell=teacher.id, model={"type": "own_net"})})}
    )
    for made_with, expected in ((code, []), ({"model:own_net": "2" * 64}, [teacher.id, student.id])):
        made = teacher.model_copy(update={"source": source(teacher.cell, made_with)})
        assert stale_among([made, student, plain], code) == expected
    assert unknown_among([teacher, student, plain], code) == [teacher.id]  # kept, since nobody knows
