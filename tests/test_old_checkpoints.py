"""Checkpoints that an older version wrote go on under this one.

Commit 5394e57 wrote the files in `data/checkpoints`, each after the second epoch of a training in `old.yaml`. The trainings go
on from there and are compared with undisturbed ones. On the machine that wrote the files the two agree bit for bit. Other
processors round otherwise, so the distance between the two is compared with the way that was left to go. With SSE4.1 in place
of AVX-512 it is up to .0002 of the way. Without the momenta it is .0086 for simkd and .22 or more for the rest.
"""

from __future__ import annotations

import io
import lzma
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

import run_bench
from bench.records.folders import ResultsFolder

HERE = Path(__file__).parent / "data/checkpoints"
OLD = sorted(path.stem for path in HERE.glob("*.xz"))
FAR = 0.003  # of the way from the checkpoint to the end


def read(cell_id: str) -> bytes:
    """An old checkpoint as it lay in its cell's folder: 64 digits of SHA-256, then what `torch.save` wrote."""
    return lzma.decompress((HERE / f"{cell_id}.xz").read_bytes())


def run(root: Path) -> None:
    arguments = ["--cluster", "debug", "--device", "cpu", "--threads", "1", "--no-cost", "--no-report", "--checkpoint-s", "1e9"]
    plugin = ["--import", str(HERE / "narrow_networks.py")]
    assert run_bench.main(["run", str(HERE / "old.yaml"), "--results", str(root), *arguments, *plugin]) == 0


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Folders of the undisturbed trainings and of those that went on from the old checkpoints, with the same teachers."""
    undisturbed, resumed = (tmp_path_factory.mktemp(name) for name in ("undisturbed", "resumed"))
    run(undisturbed)
    shutil.copytree(undisturbed, resumed, dirs_exist_ok=True)
    for cell_id in OLD:
        folder = resumed / "old" / cell_id
        shutil.rmtree(folder)  # which must be there: ids have not changed
        folder.mkdir()
        (folder / "checkpoint").write_bytes(read(cell_id))
    run(resumed)
    return undisturbed, resumed


@pytest.mark.parametrize("cell_id", OLD)
def test_an_old_checkpoint_goes_on_to_the_undisturbed_weights(results, cell_id):
    undisturbed, resumed = (root / "old" / cell_id for root in results)
    assert not list(resumed.glob("checkpoint*"))  # it was used, and not set aside
    record = ResultsFolder(results[1]).grid("old").cell(cell_id).record()
    assert record is not None
    assert record.clocks.checkpoint_s > 0  # the old checkpoint's: no other was written
    end, found = (safetensors.torch.load_file(folder / "weights.safetensors") for folder in (undisturbed, resumed))
    assert end.keys() == found.keys()
    assert all(torch.equal(end[name], found[name]) for name in end if not end[name].is_floating_point())
    assert distance(found, end) < FAR * distance(start(cell_id, end), end)


def start(cell_id: str, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The deployed network's tensors in the old checkpoint."""
    saved = torch.load(io.BytesIO(read(cell_id)[64:]), weights_only=True)["trainee"]
    core = "average.module" if any(name.startswith("average.") for name in saved) else "core"
    places = {
        name: [f"{core}.{part}{name}" for part in ("student.", "method.", "")] for name in names
    }  # simkd deploys all three
    return {name: next(saved[key] for key in keys if key in saved) for name, keys in places.items()}


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Between the parameters; batch norm's statistics are much larger numbers."""
    names = [name for name in other if name.endswith(("weight", "bias"))]
    return float(torch.stack([(one[name] - other[name]).double().square().sum() for name in names]).sum().sqrt())
