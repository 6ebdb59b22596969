"""Several files at once: all of them are written or none, and those of the former time go. No torch here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping

from bench.records import handles
from bench.records.files import Folder

WAIT_S = 60.0  # that one writer waits for another
LISTING = ".files.json"  # what was written, so that the next time removes that and nothing else


def replace(folder: Folder, files: Mapping[str, bytes | str], last: str) -> None:
    """Write files of a folder, and of ones below it, or none where that fails.

    What the former call wrote and this one does not is removed, and nothing else is; what cannot be removed now is the next
    time. Calls wait for each other.

    Args:
        files: contents by name, such as "tables/summary.md".
        last: the file that appears when all others are in their places.

    Raises:
        RefusedError: a device, a pipe or a socket stands in the place of a file.
        TimeoutError: another process writes here, and does not end.
        OSError: the system refuses; the former files are as they were.
    """
    scratch = {name: _scratch(name) for name in files}
    with folder.lock(".lock", WAIT_S):
        check_places(folder, LISTING, *files)
        former = _listed(folder)
        _list(folder, former | set(scratch.values()))
        try:
            for name, content in files.items():
                above, own = _split(folder, scratch[name])
                with above.opened(own, create=True) as handle:
                    handles.fill(handle, own, content if isinstance(content, bytes) else _encoded(content), durable=False)
            _list(folder, former | set(scratch.values()) | files.keys())
            for name in sorted(files, key=lambda name: name == last):
                above, own = _split(folder, name)
                with above.opened(own) as handle:
                    os.rename(_split(folder, scratch[name])[1], own, src_dir_fd=handle, dst_dir_fd=handle)
        except BaseException:
            _remove(folder, scratch.values())
            raise
        _list(folder, files.keys() | _remove(folder, former - files.keys()))


def _encoded(text: str) -> bytes:
    """UTF-8; half letters, such as names of files that are no text have, are spelled out."""
    return text.encode(errors="backslashreplace")


def check_places(folder: Folder, *names: str) -> None:
    """
    Raises:
        RefusedError: a device, a pipe or a socket stands in the place of one of these files.
    """
    for name in names:
        above, own = _split(folder, name)
        with above.opened(own, create=True) as handle:
            handles.check_replaceable(handle, own, f"{above}/{own}")


def _split(folder: Folder, name: str) -> tuple[Folder, str]:
    *above, own = name.split("/")
    return folder.at(*above), own


def _scratch(name: str) -> str:
    above, slash, own = name.rpartition("/")
    return above + slash + handles.scratch(own)


def _list(folder: Folder, names: Iterable[str]) -> None:
    folder.write_json(LISTING, {"files": sorted(names)}, durable=False)


def _listed(folder: Folder) -> set[str]:
    """What the former call has listed; nothing where that list is absent or damaged.

    Raises:
        OSError: it cannot be read now; to go on would forget what it names.
    """
    try:
        found = folder.read_json(LISTING).get("files")
    except (FileNotFoundError, ValueError):
        return set()
    return {name for name in found if isinstance(name, str)} if isinstance(found, list) else set()


def _remove(folder: Folder, names: Iterable[str]) -> set[str]:
    """Remove files; returns those that cannot be removed now.

    A stranger's list leads nowhere but below this folder: no name of a step may be '..' or hold a slash.
    """
    kept = set()
    for name in names:
        with contextlib.suppress(ValueError):
            above, own = _split(folder, name)
            try:
                above.remove(own)
            except OSError:
                kept.add(name)
    return kept
