"""Users' own modules: imported by name or by path, so that what they register is known."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import sources
from bench.errors import Stopped, UserError, described, no_exit
from bench.texts import brief

if TYPE_CHECKING:
    from mmengine.registry import Registry

LARGEST = 2**24  # bytes of a user's file
_OWN: set[str] = set()  # names of modules that are users' files, imported by path
IMPORTED: set[str] = set()  # names of all modules that the user has had imported


def import_plugin(name: str) -> None:
    """Import a user's module by dotted name or by path, so that what it registers is known.

    Raises:
        UserError: there is no such module, it fails, or this process has imported it and it was edited since.
    """
    path = Path(name)
    try:
        if path.suffix == ".py":
            _check_file(path)
            module_name = _module_name(path)
            if getattr(sys.modules.get(module_name), "__file__", None) == str(path.resolve()):
                _check_unedited(name, path)
                IMPORTED.add(module_name)
                return
            sources.loaded(path)  # before it runs, so that an edit in between is not taken for what runs
            spec = importlib.util.spec_from_file_location(module_name, path.resolve())
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module
            _OWN.add(module_name)
            with no_exit():
                spec.loader.exec_module(module)
            IMPORTED.add(module_name)
        elif not re.fullmatch(r"\w+(\.\w+)*", name):
            raise UserError(f"--import {name}: no module has such a name; write package.module, or a path that ends in .py")
        else:
            known = name in sys.modules
            with no_exit():
                file = getattr(importlib.import_module(name), "__file__", None)
            if known and file:
                _check_unedited(name, Path(file))
            IMPORTED.add(name)
    except (UserError, KeyboardInterrupt, Stopped):
        raise
    except BaseException as error:
        sources.forget(path)
        sys.modules.pop(_module_name(path), None)
        raise UserError(f"--import {name}: {described(error)}") from error


def looked_up(registry: Registry, key: str, where: str) -> Any:
    """What is registered by this key, or what lies at this dotted path; None where nothing does.

    Args:
        where: place of the key, for errors.

    Raises:
        UserError: what is registered has a name that files and sums cannot hold, or the dotted path leads into a module that
            cannot be imported.
    """
    if key in registry.module_dict:
        if not re.fullmatch(r"[\w-]+", key):
            raise UserError(f"{where}: {brief(key)} cannot be registered: a name has letters, digits, _ and - alone")
        return registry.module_dict[key]
    if not re.fullmatch(r"\w+(\.\w+)+", key):
        return None
    try:
        with no_exit():
            return registry.get(key)
    except Exception as error:
        cause = error.__context__ if isinstance(error.__context__, Exception) else error  # mmengine's own has no reason
        raise UserError(f"{where}: {brief(key)} cannot be imported: {described(cause)}") from error


def _check_file(path: Path) -> None:
    """
    Raises:
        UserError: it is no regular file, or too large.
    """
    if not path.is_file():
        raise UserError(f"--import {path}: {'not a regular file' if path.exists() else 'no such file'}")
    if path.stat().st_size > LARGEST:
        raise UserError(f"--import {path}: larger than {LARGEST // 2**20} MiB")


def _check_unedited(name: str, path: Path) -> None:
    if sources.edited(path):
        raise UserError(f"--import {name}: it was edited since this process imported it; start Python anew")


def _module_name(path: Path) -> str:
    """The file's name, with underscores for all that a module's name cannot hold, and "own_" before another module's name."""
    name = re.sub(r"[-.]", "_", re.sub(r"[^a-z0-9_+.-]+", "-", path.stem.lower()).strip(".-"))
    return f"own_{name}" if _is_anothers(name, path) else name


def _is_anothers(name: str, path: Path) -> bool:
    """Whether a module of this name, of Python's, of a package or of this project, would be hidden by the file."""
    if name in sys.stdlib_module_names or name in _OWN:
        return name not in _OWN
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(name)
        return spec is not None and Path(spec.origin or name).resolve() != path.resolve()
    return False
