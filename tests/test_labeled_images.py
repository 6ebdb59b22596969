"""Images whose labels stand in a table: a CSV file beside them, and sets of Hugging Face."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from test_named_data import save, text
from toy_data import CPU

from bench.data import DATASETS, digest, load, look
from bench.data.sets import takes
from bench.data.stream import evaluation_batches
from bench.plan.grid_file import long_form
from bench.plan.specs import complete


def table(folder: Path, rows: list[str], name: str = "labels.csv", suffix: str = ".png") -> dict[str, str]:
    """A CSV file with images: 'file,label...' in each row but the first; the color is 20 times the label where that is one."""
    text(folder / name, "\n".join(rows) + "\n")
    for row in rows[1:]:
        file, label = row.replace(";", ",").replace("\t", ",").split(",")[:2]
        save(folder / (file if file.endswith(suffix) else file + suffix), 20 * int(label) if label.isdecimal() else 0)
    return {"type": "csv", "path": str(folder)}


def test_labels_in_a_table_with_a_column_of_parts(tmp_path):
    rows = ["file,label,part", "x/a.png,10,train", "x/b.png,9,train", "c.png,9,Test", "d.png,10,extra", "e.png,10,train"]
    spec = table(tmp_path, rows)
    data = load({**spec, "size": 5})
    assert (data.class_names, data.train.targets.tolist(), data.test.targets.tolist()) == (("9", "10"), [1, 0, 1], [0])
    assert data.train.images[:, 0, 0, 0].tolist() == [200, 180, 200]
    assert [file.name for file in load(spec).train.images] == ["a.png", "b.png", "e.png"]


def test_labels_in_two_tables_and_with_other_columns(tmp_path):
    rows = ["image_id;breed", "a;pug", "b;boxer", "c;pug"]
    spec = table(tmp_path, rows, "train.csv") | {"file": "image_id", "label": "breed", "suffix": ".png", "labels": "train.csv"}
    alone = load({**spec, "test_share": 0.34})
    assert (len(alone.train.targets), len(alone.test.targets)) == (2, 1)
    table(tmp_path, ["image_id\tbreed", "d\tboxer"], "test.csv")
    data = load({**spec, "test_labels": "test.csv"})
    assert (data.class_names, data.train.targets.tolist(), data.test.targets.tolist()) == (("boxer", "pug"), [1, 0, 1], [0])


def test_a_table_counts_by_labels_and_contents(tmp_path):
    spec = table(tmp_path, ["file,label", "a.png,0", "b.png,1", "c.png,0", "d.png,1"]) | {"test_share": 0.5}
    before = digest(spec)
    assert look({**spec, "size": 8}).shape == load({**spec, "size": 8}).shape == (3, 8, 8, 2, 2)
    text(tmp_path / "labels.csv", "file,label\na.png,1\nb.png,0\nc.png,1\nd.png,0\n")
    assert digest(spec) != before
    text(tmp_path / "labels.csv", "file,label\na.png,0\nb.png,1\nc.png,0\nd.png,1\n")
    assert digest(spec) == before
    save(tmp_path / "a.png", 3)
    assert digest(spec) != before


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["name,label", "a.png,0"], r"labels\.csv has no column 'file'; it has: name, label"),
        (["file,label", "a.png,"], r"labels\.csv, line 2: 'label' is empty"),
        (["file,label", "a.png,0", "../../b.png,1"], r"line 3: '\.\./\.\./b\.png' does not lie in the folder"),
        (["file,label", "a.png,0", "gone.png,1"], r"line 3: .*gone\.png is not a file"),
        (
            ["file,label", "a.png,0", "b.png,1"],
            r"has no column 'part', and test_labels names no other file",
        ),
        (["file,label,part", "a.png,0,train", "b.png,1,dev"], r"column 'part' has dev, train; needed: train, and one of test"),
        (["file,label,part", "a.png,0,train", "b.png,1,val"], "labels that no training image has: 1"),
    ],
)
def test_mistakes_in_tables_are_named_with_their_line(tmp_path, rows, message):
    text(tmp_path / "labels.csv", "\n".join(rows))
    for name in ("a.png", "b.png"):
        save(tmp_path / name)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load({"type": "csv", "path": str(tmp_path)})


def test_the_examples_of_the_page_on_data_are_those_that_a_grid_may_name():
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text()
    examples = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert examples
    for line in examples[1].splitlines():
        spec = long_form("data", yaml.safe_load(line)["data"])
        complete(DATASETS, "data set", {key: value for key, value in spec.items() if key != "name" or takes(spec["type"], key)},
                 line, ("root",))  # fmt: skip
    assert set(re.findall(r"`(\w+)`", page.partition("```")[0])) >= set(DATASETS.module_dict) - {"digits"}


# Sets of Hugging Face


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The package, its cache in a folder of the test, without a network."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    return library


def parts(library, named: bool = True, count: int = 6):
    """Train and test: 16-bit gray and RGB images, color 20 times the label."""
    images = [Image.new("RGB", (8, 6), (20 * (i % 2), 0, 0)) for i in range(count - 1)]
    images.append(Image.fromarray(np.full((6, 8), 256 * 20 * ((count - 1) % 2), np.uint16)))
    labels = [i % 2 for i in range(count)] if named else ["cat" if i % 2 else "bird" for i in range(count)]
    kinds = {"image": library.Image(), "label": library.ClassLabel(names=["bird", "cat"])}
    features = library.Features(kinds if named else {**kinds, "label": library.Value("string")})
    part = library.Dataset.from_dict({"image": images, "label": labels}, features=features)
    return library.DatasetDict({"train": part, "test": part.select(range(3))})


def test_parquet_files_on_disk(tmp_path, hub):
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    for name, part in parts(hub).items():
        part.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    spec = {"type": "huggingface", "path": str(tmp_path / "set")}
    data = load({**spec, "size": 6})
    assert (data.class_names, data.train.targets.tolist(), data.test.targets.tolist()) == (
        ("bird", "cat"),
        [0, 1] * 3,
        [0, 1, 0],
    )
    assert data.train.images[:, 0].float().mean((1, 2)).tolist() == [0, 20, 0, 20, 0, 20]
    streamed = load(spec)
    assert look(spec).shape == streamed.shape == (3, 224, 224, 2, 6)
    batches = list(evaluation_batches(streamed.train, streamed, CPU, batch_size=4, image_size=8))
    assert [images.shape for images, _ in batches] == [(4, 3, 8, 8), (2, 3, 8, 8)]
    with pytest.raises(ValueError, match="has no part 'dev'; it has: train, test"):
        load({**spec, "test": "dev"})
    with pytest.raises(ValueError, match="has no column 'breed'; it has: image, label"):
        load({**spec, "label": "breed"})


def test_what_save_to_disk_wrote(tmp_path, hub):
    parts(hub, named=False).save_to_disk(tmp_path / "saved")
    spec = {"type": "huggingface", "path": str(tmp_path / "saved")}
    before = digest(spec)
    assert load(spec).class_names == ("bird", "cat")
    parts(hub, named=False)["train"].save_to_disk(tmp_path / "one")
    alone = {"type": "huggingface", "path": str(tmp_path / "one")}
    with pytest.raises(FileNotFoundError, match="no part to test on among train; or give test_share"):
        load(alone)
    divided = load({**alone, "test_share": 0.34, "size": 6})
    assert (len(divided.train.targets), len(divided.test.targets)) == (4, 2)
    assert digest({**alone, "test_share": 0.34}) != before


def test_a_set_that_is_not_on_the_hub_is_named(tmp_path, hub):
    with pytest.raises(FileNotFoundError, match="nobody/nothing cannot be read as a set of Hugging Face"):
        load({"type": "huggingface", "name": "nobody/nothing"}, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="gone is not a folder"):
        load({"type": "huggingface", "path": str(tmp_path / "gone")})
    with pytest.raises(ValueError, match="needs `name`, of a set on the hub, or `path`"):
        load({"type": "huggingface"})


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'distillation-bench\[huggingface\]'"):
        load({"type": "huggingface", "path": str(tmp_path)})
