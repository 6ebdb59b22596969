"""Identity: what makes two cells one, and what leaves their ids alone."""

from __future__ import annotations

import inspect

from pydantic import Field

from bench.data import DATASETS
from bench.models import MODELS
from bench.records.cell import Cell, Teacher
from methods import METHODS


def test_the_identity_knows_neither_order_nor_defaults(tiny):
    plain = tiny(methods=[{"kd": {"temperature": 3}}], recipe={"name": "digits", "epochs": 2})
    wordy = tiny(
        methods=[{"weight": 0.9, "temperature": 3.0, "type": "kd", "ce_weight": 0.1}],
        recipe={"epochs": 2, "crop": "pad", "name": "digits", "momentum": 0.9},
        pairs=[{"teacher": {"type": "resnet8"}, "student": {"type": "resnet8"}}],
        data={"test_images": 40, "train_images": 40, "type": "digits"},
    )
    assert [cell.id for cell in plain.cells] == [cell.id for cell in wordy.cells]
    shuffled = [Cell.model_validate(dict(reversed(cell.model_dump(mode="json").items()))) for cell in plain.cells]
    assert [cell.id for cell in shuffled] == [cell.id for cell in plain.cells]


def test_a_new_field_of_a_cell_changes_no_id(tiny):
    class Newer(Cell):
        mood: str = "calm"

    for cell in tiny(methods=["none", "kd", "tfd+kd"]).cells:
        newer = Newer.model_validate({**cell.model_dump(mode="json"), "mood": "cheerful"})
        assert (newer.mood, newer.id, newer.cost_key) == ("cheerful", cell.id, cell.cost_key)


def test_an_argument_added_later_leaves_ids_alone_within_parts_too(tiny, monkeypatch):
    entries = ["kd", "tfd+kd", {"logit_std": {"method": {"type": "kd"}}}, {"tfd+kd": {"kd": {"ce_weight": 0.2}}}]
    before = {cell.label: cell for cell in tiny(methods=entries).cells}
    monkeypatch.setattr(METHODS.get("kd"), "added_later", ("ce_weight",))
    newer = {cell.label: cell for cell in tiny(methods=entries).cells}
    assert "ce_weight" not in newer["kd"].identity["method"]
    assert newer["tfd+kd"].identity["method"]["parts"][1] == {"type": "kd", "temperature": 4.0, "weight": 0.9}
    assert "ce_weight" not in newer["logit_std(method=kd)"].identity["method"]["method"]
    changed = "tfd+kd(ce_weight=0.2)"
    assert newer[changed].id == before[changed].id  # not at its default: it counts


def test_an_argument_of_a_model_or_of_data_that_is_added_later_leaves_ids_alone(tiny, monkeypatch):
    entries = {"methods": ["none", "kd"], "pairs": [{"student": "resnet8", "teacher": "resnet14"}]}
    before = tiny(**entries).cells

    def with_argument(registry, key, name, default):
        old = registry.get(key)

        def newer(**arguments):
            arguments.pop(name, None)
            return old(**arguments)

        parameters = inspect.signature(old).parameters
        newer.__signature__ = inspect.Signature(
            [*parameters.values(), inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=str)]
        )
        newer.added_later = (name,)
        newer.__module__ = old.__module__  # it still ships with the bench
        monkeypatch.setitem(registry.module_dict, key, newer)

    with_argument(MODELS, "resnet8", "taps", "sums")
    with_argument(MODELS, "resnet14", "taps", "sums")
    with_argument(DATASETS, "digits", "ink", "gray")
    newer = tiny(**entries).cells
    assert newer[-1].student == {"type": "resnet8", "taps": "sums"}
    assert newer[-1].data["ink"] == "gray"
    assert newer[-1].teacher.model["taps"] == "sums"
    assert [(cell.id, cell.cost_key) for cell in newer] == [(cell.id, cell.cost_key) for cell in before]
    assert [cell.identity for cell in newer] == [cell.identity for cell in before]
    [changed] = tiny(methods=["none"], pairs=[{"student": {"type": "resnet8", "taps": "rectified"}}]).cells
    [same] = tiny(methods=["none"], pairs=[{"student": "resnet8"}]).cells
    assert changed.id != same.id


def test_what_changes_the_answer_of_a_teacher_from_a_file_is_part_of_its_identity():
    class Newer(Teacher):
        taps: str = Field("sums", json_schema_extra={"changes_answer": True})

    old, same, other = (
        kind(model={"type": "resnet8"}, weights_sha256="0" * 64, weights=path, **taps)
        for kind, path, taps in ((Teacher, "a", {}), (Newer, "b", {}), (Newer, "a", {"taps": "rectified"}))
    )
    assert same.identity == old.identity == "0" * 64
    assert same.cost_identity == old.cost_identity == {"type": "resnet8"}
    assert other.identity == {"source": "0" * 64, "taps": "rectified"}
    assert other.cost_identity == {"source": {"type": "resnet8"}, "taps": "rectified"}
