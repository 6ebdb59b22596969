"""Whatever a file holds that a user can give: a clear error or a right result, no traceback, nothing outside the results."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from small import GRID, results, write_grid

from bench.errors import UserError
from bench.jobs import cluster_file, slurm
from bench.plan import grid_file
from bench.plan.expand import expand
from bench.plugins import import_plugin
from bench.records.cell import safe
from bench.records.folders import GridFolder, ResultsFolder
from bench.records.record import Record, seal
from reports import published
from run_bench import main

# ruff: noqa: PT017 (an error is one of two right answers)
FEW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FEWER = settings(FEW, max_examples=12)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["../../x", "os.system", "a/b", "\0", "CON", "1e309", "kd+kd", "resnet8", "tfd", "nan", "-", ".."]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=6
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        found += places(value, (*path, key))
    return found


@st.composite
def changed(draw: st.DrawFn, tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with one to three values replaced or removed, or with a key more."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        *above, key = draw(st.sampled_from(places(tree)))
        place: Any = tree
        for step in above:
            place = place[step]
        if isinstance(place, dict) and draw(st.integers(0, 3)) == 0:
            del place[key]
            if draw(st.booleans()):
                place[draw(st.text(max_size=6))] = draw(values)
        else:
            place[key] = draw(values)
        assume(places(tree))
    return tree


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# What is planned from


@FEW
@given(raw=changed({**GRID, "teacher_seeds": "each", "methods": ["none", {"kd": {"temperature": [2, 4]}}, "tfd+kd", "crd"]}))
def test_grid_contents(raw: dict[str, Any]) -> None:
    methods = raw.get("methods")
    assume(not isinstance(methods, list) or len(methods) < 10)
    try:
        found = expand("fuzz", raw, device="cpu")
    except UserError as error:
        assert str(error)
    else:
        assert found.cells
        assert all(cell.id == safe(cell.id) for cell in found.cells)


@FEW
@given(raw=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_grid_and_cluster_bytes(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(raw)
    for read in (lambda: expand(*grid_file.read(str(path)), device="cpu"), lambda: cluster_file.read(str(path), {})):
        try:
            read()
        except UserError as error:
            assert str(error)


@pytest.mark.parametrize(
    "text",
    ["a: " * 50, "[" * 5000, "&a [*a]", "{? {a: b} : c}", "a: !!python/object/apply:os.system [x]", "a: 1\n---\nb: 2", "1: 2"],
)
def test_yaml_with_a_trap(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert main(["plan", str(path), "--results", str(tmp_path / "r")]) == 2
    assert main(["plan", "quick", "--cluster", str(path), "--results", str(tmp_path / "r")]) == 2
    assert files_under(tmp_path) == {"x.yaml"}


@FEW
@given(
    raw=changed(
        {"kind": "slurm", "partition": "gpu", "minutes": 60, "gpus": 1, "memory_gib": 4.0, "setup": ["true"], "jobs": 2}
    )
)
def test_cluster_contents(tmp_path: Path, raw: dict[str, Any]) -> None:
    path = tmp_path / "x.yaml"
    try:
        path.write_text(yaml.safe_dump(raw))
    except (yaml.YAMLError, UnicodeEncodeError):
        assume(False)
    try:
        found = cluster_file.read(str(path), {})
    except UserError as error:
        assert str(error)
    else:
        for name in (getattr(found, key, None) for key in ("partition", "account", "qos", "constraint")):
            assert name is None or not set(name) & set(" \n\t'\"\\")


@pytest.mark.parametrize("name", ["os.system", "subprocess.run", "builtins.exec", "pathlib.Path", "torch.load"])
@pytest.mark.parametrize("where", ["methods", "student", "data"])
def test_a_dotted_name_calls_nothing_that_is_no_part(tmp_path: Path, name: str, where: str) -> None:
    spec = {"type": name, "command": f"touch {tmp_path}/made", "args": f"touch {tmp_path}/made"}
    for part in (spec, {"type": name}):
        raw = {
            "methods": {**GRID, "methods": [part]},
            "student": {**GRID, "pairs": [{"student": part}], "methods": ["none"]},
            "data": {**GRID, "data": part},
        }[where]
        with pytest.raises(UserError):
            expand("fuzz", raw, device="cpu")
    assert files_under(tmp_path) == set()


@FEW
@given(
    raw=st.binary(max_size=80)
    | st.sampled_from([b"raise ValueError", b"import nothing_like_that", b"def", b"\0", b"1/0", b"\xff"])
)
def test_plugin(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "plug.py"
    path.write_bytes(raw)
    try:
        import_plugin(str(path))
    except UserError as error:
        assert "plug.py" in str(error)


# What is read from results


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> GridFolder:
    records = synthetic.draw({"none": 0.0, "kd": 1.0}, 2, np.random.default_rng(0))
    return synthetic.filled(tmp_path_factory.mktemp("drawn"), "drawn", records)


@FEW
@given(data=st.data())
def test_record(drawn: GridFolder, capsys: pytest.CaptureFixture[str], data: st.DataObject) -> None:
    record = drawn.records()[0][0]
    path = synthetic.record_path(drawn, record)
    before = path.read_bytes()
    body = data.draw(changed(record.model_dump(mode="json")))
    raw = data.draw(st.sampled_from(["sealed", "plain", "bytes"]))
    try:
        path.write_bytes(
            data.draw(st.binary(max_size=50))
            if raw == "bytes"
            else json.dumps(seal_anyway(body) if raw == "sealed" else body).encode("utf-8", "surrogatepass")
        )
        try:
            read = drawn.cell(record.id).record()
            assert isinstance(read, Record)
            assert read.id == record.id
        except ValueError as error:
            assert str(error)
        for verb in ("verify", "status"):
            assert main([verb, "drawn", "--results", str(drawn.results.root)]) in (0, 1)
    finally:
        path.write_bytes(before)


def seal_anyway(body: dict[str, Any]) -> dict[str, Any]:
    """Sealed by somebody who knows how; as it is, where that cannot be."""
    try:
        return seal(body)
    except ValueError:
        return {**body, "sha256": "0"}


@FEW
@given(data=st.data())
def test_manifest_and_hints(drawn: GridFolder, capsys: pytest.CaptureFixture[str], data: st.DataObject) -> None:
    manifest = drawn.manifest()
    manifest_bytes = (drawn.results.root / "drawn" / "manifest.json").read_bytes()
    record = drawn.records()[0][0]
    folder = drawn.results.root / "drawn"
    launches = {"arrays": [[[record.id]]]}
    progress = {"epoch": 1, "epochs": 2, "share": 0.5, "top1": 1.0, "images_per_s": 1.0, "clocks": {"train_s": 1.0}}
    trees = {
        folder / "manifest.json": manifest,
        folder / "launches/x.json": launches,
        folder / record.id / "progress.json": progress,
        folder / record.id / "failure.json": {"error": "e", "trace": "t", "when": "w", "again": True},
        folder / record.id / "attempts.json": {"attempts": 1, "checkpoint": None},
    }
    path = data.draw(st.sampled_from(sorted(trees)))
    record_path = folder / record.id / "record.json"
    hidden = record_path.with_suffix(".hidden")
    record_path.rename(hidden)
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(seal_anyway(data.draw(changed(trees[path])))))
        for verb in ("status", "verify", "cancel", "clean"):
            assert main([verb, "drawn", "--results", str(drawn.results.root)]) in (0, 1, 2)
        assert main(["logs", record.id, "--results", str(drawn.results.root)]) in (0, 2)
        assert drawn.cell(record.id).begin_attempt() >= 1
    finally:
        hidden.rename(record_path)
        (folder / "manifest.json").write_bytes(manifest_bytes)  # `write_manifest` would keep the keys that were added
        for other in trees:
            if other.name != "manifest.json":
                other.unlink(missing_ok=True)


@FEW
@given(name=st.text(max_size=12) | st.sampled_from(["..", ".", "../up", "/tmp", "a/../../b", "CON/", "\0"]))
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    root = tmp_path / "in"
    for verb in (
        ["status", name],
        ["clean", name],
        ["verify", name],
        ["logs", name],
        ["export", name, "--to", str(root / "x")],
    ):
        assert main([verb[0], "--results", str(root), *verb[2:], "--", verb[1]]) in (0, 1, 2)
    assert files_under(tmp_path) <= {"in"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("trained")
    grid = write_grid(folder, methods=["none"], recipe={"name": "digits", "epochs": 2})
    assert main(["run", grid, *quietly(folder)]) == 0
    return folder, grid, results(folder)


def quietly(root: Path) -> list[str]:
    return ["--results", str(root), "--device", "cpu", "--no-cost", "--no-report", "--cluster", "debug", "--threads", "1"]


@FEWER
@given(data=st.data())
def test_checkpoint(trained: tuple[Path, str, dict[str, Any]], data: st.DataObject) -> None:
    from bench.engine.checkpoint import pack

    root, grid, expected = trained
    (cell_id,) = expected
    folder = ResultsFolder(root).grid("small").cell(cell_id)
    tree = {
        "trainee": {},
        "optimizer": {"state": {}},
        "epoch": 1,
        "history": [{"epoch": 1}],
        "clocks": {"train_s": 1.0},
        "threads": 1,
    }
    raw = data.draw(st.binary(max_size=50) | changed(tree).map(pack))
    (root / "small" / cell_id / "record.json").unlink(missing_ok=True)
    folder.write_checkpoint(raw)
    assert main(["run", grid, *quietly(root)]) in (0, 1)
    assert main(["run", grid, *quietly(root)]) == 0
    assert results(root) == expected


HEADER = ",".join(published.COLUMNS)
ROW = "A,1,cifar100,resnet20,,none,70.1,last,3,mean,"


@FEW
@given(
    text=st.one_of(
        st.binary(max_size=100),
        st.lists(st.text(max_size=8), min_size=9, max_size=12).map(
            lambda row: f"{HEADER}\n{ROW}\n{','.join(row)}\n".encode("utf-8", "replace")
        ),
        st.text(max_size=60).map(lambda text: f"{HEADER}\n{ROW}\n{text}".encode("utf-8", "replace")),
    )
)
def test_published_numbers(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "x.csv").write_bytes(text)
    try:
        found = published.read(tmp_path)
    except UserError as error:
        assert "x.csv" in str(error)
    else:
        assert list(found.columns) == published.COLUMNS
        assert found["top1"].between(0, 100).all()


@FEW
@given(arrays=values)
def test_launches_are_hints(drawn: GridFolder, arrays: Any) -> None:
    path = drawn.results.root / "drawn" / "launches/y.json"
    path.parent.mkdir(exist_ok=True)
    try:
        path.write_text(json.dumps(seal_anyway({"arrays": arrays})))
        for launch in drawn.launches().values():
            assert all(isinstance(cell_id, str) for array in launch.arrays for job in array for cell_id in job)
        slurm.job_name("y", 0)
    finally:
        path.unlink(missing_ok=True)
