"""YAML that a user writes, bounded before it is held: size, depth, aliases, keys. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator

from bench.errors import UserError
from bench.texts import TRUTH, brief

LARGEST = 2**20  # bytes
DEEPEST = 40  # mappings and lists within each other
CORE = "tag:yaml.org,2002:"
WORDS = (f"{CORE}str", f"{CORE}merge")  # kinds of keys
PLAIN = (*WORDS, *(f"{CORE}{kind}" for kind in ("int", "float", "bool", "null", "map", "seq")))  # kinds of values
DIGITS = 1000  # of a number; Python reads at most 4,300
VALUES = 100_000  # where an alias counts as what it stands for


AMBIGUOUS = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")  # YAML reads them to the bases 8 and 60

NOWHERE = re.compile("[\0\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """Refuses what stands twice in a mapping, what would grow without bound, and numbers that are not what they look like.

    Dates are texts, and so is '=': nothing of ours is a date. There is no negative zero, another value than 0 in an id.
    """

    yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in found if not tag.endswith((":timestamp", ":value"))]
        for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        return super().construct_yaml_float(node) + 0.0

    def get_single_node(self) -> yaml.Node | None:
        root: yaml.Node | None = super().get_single_node()
        if root is not None:
            self._check(root)
        return root

    def _check(self, root: yaml.Node) -> None:
        count, left = 0, [(root, 1)]
        while left:
            node, depth = left.pop()
            count += 1
            if count > VALUES:
                raise yaml.MarkedYAMLError(problem=f"at most {VALUES:,} values, with aliases written out")
            if depth > DEEPEST:
                raise yaml.MarkedYAMLError(problem=f"at most {DEEPEST} levels", problem_mark=node.start_mark)
            if node.tag not in PLAIN:
                tag = brief(node.tag.replace(CORE, "!!"))
                problem = f"the tag {tag} stands for no text, number, true, false, null, list or mapping; leave it out"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
            if isinstance(node, yaml.MappingNode):
                self._check_keys(node)
                left += [(inner, depth + 1) for pair in node.value for inner in pair]
            elif isinstance(node, yaml.SequenceNode):
                left += [(inner, depth + 1) for inner in node.value]
            elif NOWHERE.search(node.value):
                problem = f"{brief(node.value)} has a character that no text or file name has"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
            elif node.tag.endswith((":int", ":float")) and len(node.value) > DIGITS:
                problem = f"a number of {len(node.value):,} characters; allowed: at most {DIGITS}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
            elif node.tag.endswith((":int", ":float")) and AMBIGUOUS.fullmatch(node.value):
                problem = f"{brief(node.value)} is no decimal number in YAML; leave out zeros before it, and colons"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)

    def _check_keys(self, mapping: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in mapping.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in WORDS:
                shown = brief(key.value) if isinstance(key, yaml.ScalarNode) else f"in column {key.start_mark.column + 1}"
                problem = f"the key {shown} is no word; put it in quotes, and write decimals with a point, as in 0.05"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {brief(key.value)} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)


def _no_truth(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"a number, not {value}{TRUTH}")
    return value


Number = Annotated[float, BeforeValidator(_no_truth)]  # pydantic takes true for 1
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def parse(text: str | bytes, where: str | Path) -> Any:
    """The value that YAML stands for.

    Raises:
        UserError: not YAML, or beyond a bound, with line and column.
    """
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UserError(f"{where}{at}: not YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise UserError(f"{where}: not YAML: at most {DEEPEST} levels") from None
    except (LookupError, AttributeError, TypeError):  # of PyYAML, where a value contradicts its tag
        raise UserError(f"{where}: not YAML: a value does not have the kind that its tag, such as !!bool, names") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from None


def expanded(path: str | Path) -> Path:
    """The path with the home of `~` or `~user` in its place.

    Raises:
        FileNotFoundError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise FileNotFoundError(f"there is no user {Path(path).parts[0]}, whose home {path} would lie in") from None


def mapping(path: str | Path, allowed: str) -> dict[str, Any]:
    """What a YAML file holds, whose keys are words; empty where the file is.

    Args:
        allowed: what it should be, for the error.

    Raises:
        UserError: it cannot be read, is too large, not YAML (with line and column), or not a mapping.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a regular file; {allowed}")
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if len(text) > LARGEST:
        raise UserError(f"{path}: larger than {LARGEST // 2**20} MiB; {allowed}")
    raw = parse(text, path)
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise UserError(f"{path}: {allowed}")
    return raw
