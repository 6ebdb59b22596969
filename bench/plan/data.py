"""The data that a grid names: the full spec, and what a plan must know of them before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.data import DATASETS, Look, Normalization, load, look
from bench.data.sets import takes
from bench.errors import LONGEST_NAME, UserError
from bench.plan.grid_file import long_form
from bench.plan.specs import complete, value_of
from bench.records.cell import Spec
from bench.records.cell import digest as hashed
from bench.texts import brief

SUBSETS = ("train_images", "test_images")  # sizes of fixed, stratified subsets; 0, their default: all images


class Data:
    """The data sets of a grid and its variations; each is looked at once.

    Args:
        root: the folder that holds the data sets.

    Attributes:
        looks: by the digest of a cell's `data`.
    """

    def __init__(self, root: str | None) -> None:
        self.root = root
        self.looks: dict[str, Look] = {}
        self._found: dict[str, Look] = {}  # by the digest of the spec without the data's digest

    def spec(self, value: str | Mapping[str, Any], where: str) -> Spec:
        """The full spec, with the digest of the user's own data.

        Raises:
            UserError: it is malformed, or the data are missing or cannot be trained on.
        """
        spec = long_form("data", value)
        common: dict[str, Any] = {}
        for key in SUBSETS:
            common[key] = value_of(spec.pop(key, 0), int, f"{where}.{key}")
            if common[key] < 0:
                raise UserError(f"{where}.{key}: a number of images, 0 for all, not {common[key]}")
        if "name" in spec and not takes(str(spec.get("type", "")), "name"):
            name = common["name"] = value_of(spec.pop("name"), str, f"{where}.name")
            if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
                raise UserError(f"{where}.name: a line of at most {LONGEST_NAME} characters, not {brief(name)}")
        asked = spec.pop("digest", None)
        filled = {**complete(DATASETS, "data set", spec, where, elsewhere=("root",)), **common}
        key = hashed(filled)
        if key not in self._found:
            try:
                self._found[key] = look(filled, self.root)
            except (OSError, ValueError, KeyError, ImportError) as error:
                missing = isinstance(error, OSError) and "path" in filled
                hint = "; name their folder by --data-root or data.path" if missing else ""
                raise UserError(f"{where}: {error}{hint}") from None
        found = self._found[key]
        if "name" in common and found.digest is None:
            raise UserError(f"{where}.name: only data of your own can be given a name; these are {filled['type']}")
        if asked not in (None, found.digest):
            own = f"'{found.digest}'" if found.digest else "none, since they are the same everywhere"
            raise UserError(f"{where}.digest: that of these data is {own}, not {brief(asked)}")
        spec = {**filled, "digest": found.digest}
        self.looks[hashed(spec)] = found
        return spec

    def look(self, spec: Spec) -> Look:
        """What was found of data whose spec `spec` returned."""
        return self.looks[hashed(spec)]

    def normalization(self, spec: Spec) -> Normalization:
        """Mean and std, as networks get them. Of few standard sets the images are read for it.

        Raises:
            OSError, ValueError, KeyError: they are missing or malformed.
        """
        found = self.look(spec).normalization
        if found is None:
            data = load(spec, self.root)
            found = data.mean, data.std
        return found
