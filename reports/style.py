"""How a user wants reports to look: names, choice, order and colors of methods; size and font of figures. No matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from bench.errors import UserError, unknown
from bench.records.comparisons import Baseline
from bench.texts import brief, misfit
from bench.user_files import mapping

DEFAULT = Path(__file__).with_name("style.yaml")  # explains the keys
WIDTH, FONT, FONT_SIZE = 5.2, "sans-serif", 9.5
BLOCK = ["setting", "student", "pair"]  # columns within which the rows of a table are put in order

LONGEST = 80  # characters of a name


def _line(name: str) -> str:
    if not name.strip() or not name.isprintable() or len(name) > LONGEST:
        raise ValueError(f"a line of at most {LONGEST} characters, not {brief(name)}")
    return name


Color = Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]


class Style(BaseModel):
    """The keys of a style file. Methods go by the names that reports give them without one.

    Attributes:
        names: by which to call methods, each a line of at most 80 characters.
        methods: the ones to show; empty: all. The plain student always stays, since all others are compared with it.
        order: these come first, in this order; the others follow as without it.
        colors: of points and lines that stand for a method.
        width: of figures, inches.
        font: a family that is installed, or serif, sans-serif, monospace.
        font_size: points.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    names: dict[str, Annotated[str, AfterValidator(_line)]] = {}
    methods: list[str] = []
    order: list[str] = []
    colors: dict[str, Color] = {}
    width: float = Field(WIDTH, ge=2, le=20)
    font: str = FONT
    font_size: float = Field(FONT_SIZE, ge=4, le=24)

    def named(self, label: str) -> str:
        """What a method is called."""
        return self.names.get(label, label)

    def color(self, name: str, default: str) -> str:
        """The color of a method, by the name that it is shown with."""
        return {self.named(label): color for label, color in self.colors.items()}.get(name, default)

    def renamed(self, labels: pd.Series) -> pd.Series:
        """The labels of a frame as they are shown.

        Raises:
            UserError: two methods would have one name.
        """
        found = sorted(set(labels))
        for name in self.names.values():
            same = [label for label in found if self.named(label) == name]
            if len(same) > 1:
                raise UserError(f"style, names: {' and '.join(same)} would both be called '{name}'")
        return labels.map(self.named)

    def shown(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of a frame that are about methods to show, in order; a frame without a column `label` as it is.

        Args:
            frame: labels as they are shown.
        """
        if "label" not in frame or not (self.methods or self.order):
            return frame
        wanted = {*map(self.named, self.methods), self.named(Baseline.NONE)} if self.methods else set(frame["label"])
        frame = frame[frame["label"].isin(wanted)]
        place = {self.named(label): index for index, label in enumerate(self.order)}
        keys = pd.DataFrame({"place": frame["label"].map(lambda label: place.get(label, len(place)))}, index=frame.index)
        blocks = [name for name in BLOCK if name in frame]
        keys["block"] = frame.groupby(blocks, sort=False, dropna=False).ngroup() if blocks else 0
        return frame.loc[keys.sort_values(["block", "place"], kind="stable").index]

    def arranged(self, names: Sequence[str]) -> list[int]:
        """Positions of these names, shown ones, in the order of the style; those not on it keep theirs."""
        place = {self.named(label): index for index, label in enumerate(self.order)}
        return sorted(range(len(names)), key=lambda index: place.get(names[index], len(place)))

    def hidden(self, labels: Iterable[str]) -> list[str]:
        """What a reader must know: which methods are not shown; empty where all are.

        Args:
            labels: of the report's methods, without a style.
        """
        names = sorted(self.named(label) for label in {*labels} - {*self.methods, Baseline.NONE}) if self.methods else []
        return [f"Not shown, as the style asks: {', '.join(names)}. They count in all corrections."] if names else []

    def in_vain(self, labels: Iterable[str]) -> list[str]:
        """What a user may want to know: names that no method of this report has; another grid may have them.

        Args:
            labels: of the report's methods, without a style.
        """
        known = set(labels)
        asked = [(key, name) for key in ("names", "methods", "order", "colors") for name in getattr(self, key)]
        return [str(unknown("method", name, known, f"style, {key}")) for key, name in asked if name not in known]


def read(path: str | Path = DEFAULT) -> Style:
    """The style of a file.

    Raises:
        UserError: no such file, not YAML, an unknown key, or a value that cannot be.
    """
    raw = mapping(path, f"a style file is a mapping with keys {', '.join(Style.model_fields)}")
    given: dict[str, Any] = {key: value for key, value in raw.items() if value is not None}
    try:
        return Style.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise unknown("key", key, Style.model_fields, str(path)) from None
        raise UserError(f"{path}, {key}: {misfit(first)}") from None
