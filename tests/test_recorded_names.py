"""A record is data: what it names is built only where it is registered, or where the user has imported its module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import synthetic
import torch

from bench.records.cell import Cell
from run_bench import main

DIGITS = {"type": "digits", "train_images": 20, "test_images": 20}
VERBS = {"maps": ["maps", "--images", "0"], "export": ["export", "--as", "repdistiller"]}


OWN = """
import torch
from methods.base import Output
from bench.models import Network

class Net(Network):
    def __init__(self, classes, channels):
        raise RuntimeError("built")

def clean(path):
    raise RuntimeError("called")
"""


def recorded(root: Path, raw: bytes | None = None, **changes: Any) -> str:
    """The id of a finished cell, with weights, whose spec a stranger has written."""
    plain = synthetic.cell("none", 0).model_dump(mode="json") | {"data": DIGITS} | changes
    cell = Cell.model_validate({key: value for key, value in plain.items() if key in Cell.model_fields})
    raw = raw or safetensors.torch.save({"classifier.weight": torch.zeros(10, 2), "stem": torch.zeros(1, 1, 1, 1)})
    record = synthetic.record(cell, 50.0, weights_sha256=synthetic.digest_of(raw))
    folder = synthetic.filled(root, "theirs", [record], costs=False)
    folder.cell(record.id).write_weights(raw)
    return record.id


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("part", ["student", "data"])
def test_a_record_calls_nothing(verb: str, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if verb == "maps":
        pytest.importorskip("pytorch_grad_cam")
    spec = {"type": "os.system", "command": f"touch {tmp_path / 'called'}"}
    cell_id = recorded(tmp_path, **{part: spec})
    assert main([VERBS[verb][0], cell_id, *VERBS[verb][1:], "--results", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert not (tmp_path / "called").exists()
    assert part == "data" or "os.system" in printed


@pytest.mark.parametrize(("name", "message"), [("Net", "built"), ("clean", "is not imported")])
def test_what_the_user_imports_is_built_where_it_is_a_network(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pytorch_grad_cam")
    own = tmp_path / "own_net.py"
    own.write_text(OWN)
    cell_id = recorded(tmp_path, student={"type": f"own_net.{name}"} | ({"path": "x"} if name == "clean" else {}))
    words = ["maps", cell_id, "--images", "0", "--results", str(tmp_path)]
    assert main(words) == 2
    assert "--import own_net" in capsys.readouterr().err
    assert main([*words, "--import", str(own)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("changes", "raw", "message"),
    [
        ({"student": {"type": "resnet8", "mystery": 1}}, None, "mystery"),
        ({}, b"x" * 20, "its weights are no safetensors"),
        ({}, b"", "is not the one that the record names"),
    ],
)
def test_a_record_that_cannot_be_used_is_one_line(
    verb: str, changes: dict[str, Any], raw: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if verb == "maps":
        pytest.importorskip("pytorch_grad_cam")
    cell_id = recorded(tmp_path, raw, **changes)
    if raw == b"":
        (tmp_path / "theirs" / cell_id / "weights.safetensors").write_bytes(b"")
    assert main([VERBS[verb][0], cell_id, *VERBS[verb][1:], "--results", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
