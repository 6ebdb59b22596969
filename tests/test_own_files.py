"""Files and folders that users name: ~ is their home, and a plug-in takes no other module's place."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from bench.command_line import VERBS, parser
from bench.plugins import import_plugin

PLACES = {"results", "data_root", "grid", "dry_run", "cluster", "site", "compare", "style", "to", "source"}


def test_every_place_may_begin_at_home(monkeypatch, tmp_path):
    import run_bench  # noqa: F401 (declares the verbs)

    monkeypatch.setenv("HOME", str(tmp_path))
    actions = [
        action
        for verbs in parser("bench", None)._subparsers._group_actions  # type: ignore[union-attr]
        for verb in VERBS
        for action in verbs.choices[verb]._actions  # type: ignore[index, call-overload]
        if action.dest in PLACES | {"imports"}
    ]
    assert {action.dest for action in actions} == PLACES | {"imports"}
    assert {action.type("~/x") for action in actions} == {f"{tmp_path}/x"}  # type: ignore[operator, misc]


@pytest.mark.parametrize("name", ["random", "methods", "types"])
def test_a_plugin_takes_no_other_modules_place(name: str, tmp_path: Path):
    before = sys.modules[name]
    (tmp_path / f"{name}.py").write_text("from methods import METHODS\nfound = METHODS\n")
    import_plugin(str(tmp_path / f"{name}.py"))
    assert sys.modules[name] is before
    assert sys.modules[f"own_{name}"].__file__ == str(tmp_path / f"{name}.py")
    assert random.random() < 1
    (tmp_path / f"{name}.py").unlink()
    del sys.modules[f"own_{name}"]
