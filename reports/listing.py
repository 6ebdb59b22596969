"""Lists that files add to: a function with the list's decorator is on it, and nothing else has to name the function."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

Given = TypeVar("Given")
Made = TypeVar("Made")
Function = TypeVar("Function", bound=Callable[..., object])


@dataclass(frozen=True)
class Entry(Generic[Given, Made]):
    """One function of a list."""

    place: int  # smaller ones come first
    section: str  # of the page
    make: Callable[[Given], Made]


class Listing(Generic[Given, Made]):
    """The functions that the modules of a package put on this list, in the order of their places.

    @tables_of_pair(20)
    def cost(pair: Pair) -> Table: ...
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self._entries: list[Entry[Given, Made]] = []

    def __call__(self, place: int, section: str = "") -> Callable[[Function], Function]:
        """A decorator that puts a function on the list.

        Args:
            place: smaller ones come first.
            section: of the page, where the page has several for this list.
        """

        def add(make: Function) -> Function:
            self._entries.append(Entry(place, section, cast("Callable[[Given], Made]", make)))
            return make

        return add

    def __iter__(self) -> Iterator[Entry[Given, Made]]:
        """All entries; imports the package's modules first."""
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__, f"{self.package}."):
            importlib.import_module(module.name)
        return iter(sorted(self._entries, key=lambda entry: entry.place))
