"""A network's weights, found among the tensors of a file: whatever prefix they lie under, in our names or in the field's."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.models.base import MODELS, Network
from bench.models.field_names import layouts

IGNORED = ("total_ops", "total_params")  # what thop leaves behind in a model that it counted
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
Shape = tuple[int, ...]
COUNTER = "num_batches_tracked"  # older files lack it; only training without momentum reads it


class _Match(NamedTuple):
    """Tensors below one prefix of a file, read in one layout."""

    prefix: str
    tensors: dict[str, Tensor]  # by our names; those without such a name, by their own
    theirs: dict[str, str]  # how this layout calls each of our names
    missing: list[str]  # our names
    spare: list[str]  # names without one of ours
    misshapen: list[str]  # our names

    def without(self, names: Collection[str]) -> _Match:
        """The same, where tensors of these names do not count."""

        def kept(found: list[str]) -> list[str]:
            return [name for name in found if name not in names]

        tensors = {name: tensor for name, tensor in self.tensors.items() if name not in names}
        return self._replace(
            tensors=tensors, missing=kept(self.missing), spare=kept(self.spare), misshapen=kept(self.misshapen)
        )

    @property
    def fits(self) -> bool:
        return not (self.missing or self.spare or self.misshapen)

    @property
    def agreement(self) -> int:
        """Tensors of the right name and shape."""
        return len(self.tensors) - len(self.spare) - len(self.misshapen)


def fit_start(
    found: Mapping[str, Tensor], network: Network, model: Mapping[str, Any], part: str | None = None
) -> dict[str, Tensor]:
    """The weights from which a training starts: as `fit`, but a classifier of other classes is left out.

    Raises:
        ValueError: see `fit`.
    """
    try:
        return fit(found, network, model, part)
    except ValueError:
        classifier = {name for name, module in network.named_modules() if module is network.classifier}
        own = {f"{name}.{each}" for name in classifier for each in network.classifier.state_dict()}
        with contextlib.suppress(ValueError):
            return fit(found, network, model, part, other_classes=own)
        raise


def fit(
    found: Mapping[str, Tensor],
    network: Network,
    model: Mapping[str, Any],
    part: str | None = None,
    other_classes: Collection[str] = (),
) -> dict[str, Tensor]:
    """The weights of this network, by the names of its `state_dict`.

    Names may be ours, RepDistiller's, mdistiller's, or those of the library that the network is from, below any prefix, such
    as "model.module.student".

    Args:
        found: as `weights.read` returns them.
        network: on any device, the meta device included.
        model: the spec that it was built from.
        part: a step of the prefix, such as "student", where several networks of a file fit.
        other_classes: names of weights whose size may be another; those are left out.

    Raises:
        ValueError: none or several fit; the message names what is missing and the nearest names.
    """
    found = {_today(name): tensor for name, tensor in found.items() if not name.endswith(IGNORED)}
    if not found:
        raise ValueError("it holds no weights")
    matches = [_best(readings) for readings in _by_prefix(found, network, model).values()]
    matches = [match.without(other_classes) for match in matches]
    if part is not None:
        matches = [match for match in matches if part == match.prefix or part in match.prefix.split(".")]
        if not matches:
            raise ValueError(f"it holds no network below '{part}'; prefixes in it: {_prefixes(found)}")
    fitting = [match for match in matches if match.fits]
    if len(fitting) > 1 and not all(_equal(match.tensors, fitting[0].tensors) for match in fitting):
        places = ", ".join(f"'{match.prefix}'" for match in fitting)
        raise ValueError(f"it holds {len(fitting)} such networks, below {places}; choose one by `part`")
    if fitting:
        return fitting[0].tensors
    nearest = max(matches, key=lambda match: (match.agreement, -len(match.tensors)))
    raise ValueError(_explained(nearest, network, found))


def _today(name: str) -> str:
    """The name itself; of DenseNets that torchvision published in 2017 the name that it gives today, without its inner dot."""
    return OLD_DENSENET.sub(r"\1\2", name)


def _by_prefix(found: Mapping[str, Tensor], network: Network, model: Mapping[str, Any]) -> dict[str, list[_Match]]:
    """Every reading of the tensors below each prefix that has at least half as many as the network."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    enough = min(len(found), sum(not name.endswith(COUNTER) for name in expected) / 2)
    own = {name: name for name in expected}
    known = list(layouts(model, network))
    matches = {}
    for prefix, count in _counts(found).items():
        if count >= enough:
            group = _below(found, prefix)
            matches[prefix] = [_match(prefix, network.own_names(group), own, expected)]
            matches[prefix] += [_match(prefix, group, layout, expected) for layout in known]
    return matches


def _counts(found: Mapping[str, Tensor]) -> Counter[str]:
    """How many tensors lie below each prefix; below '' all of them."""
    return Counter(prefix for name in found for prefix in _above(name))


def _below(found: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}." if prefix else ""
    return {name.removeprefix(start): tensor for name, tensor in found.items() if name.startswith(start)}


def _above(name: str) -> Iterator[str]:
    """'' and every prefix of a name: 'model', 'model.layer1' of 'model.layer1.weight'."""
    yield ""
    steps = name.split(".")
    yield from (".".join(steps[:count]) for count in range(1, len(steps)))


def _match(prefix: str, group: Mapping[str, Tensor], layout: Mapping[str, str], expected: Mapping[str, Shape]) -> _Match:
    tensors = {layout.get(name, name): tensor for name, tensor in group.items()}
    for name in expected:
        if name.endswith(COUNTER):
            tensors.setdefault(name, torch.zeros((), dtype=torch.int64))
    return _Match(
        prefix,
        tensors,
        theirs={ours: name for name, ours in layout.items()},
        missing=[name for name in expected if name not in tensors],
        spare=[name for name in tensors if name not in expected],
        misshapen=[name for name in expected if name in tensors and tuple(tensors[name].shape) != expected[name]],
    )


def _best(readings: list[_Match]) -> _Match:
    """The reading that fits, or else the one with the most agreement; of equal ones the first, in our names."""
    return max(readings, key=lambda match: (match.fits, match.agreement))


def _equal(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, others[name]) for name, tensor in some.items())


def _explained(match: _Match, network: Network, found: Mapping[str, Tensor]) -> str:
    """Why it does not fit, in its own names."""
    classifier = match.tensors.get("classifier.weight")
    if classifier is not None and classifier.ndim == 2 and len(classifier) != network.classifier.out_features:
        return f"its classifier has {len(classifier)} classes, the data have {network.classifier.out_features}"
    problems: list[str] = []
    for name in match.missing:
        close = get_close_matches(match.theirs[name], match.spare, n=1) if len(problems) < 3 else []
        problems.append(f"it lacks {match.theirs[name]}" + (f" (nearest: {close[0]})" if close else ""))
    problems += [f"it has {name} besides" for name in match.spare]
    for name in match.misshapen:
        wanted = tuple(network.state_dict()[name].shape)
        problems.append(f"its {match.theirs[name]} has shape {tuple(match.tensors[name].shape)}, not {wanted}")
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    below = f"below '{match.prefix}' " if match.prefix else ""
    return below + "; ".join(problems[:3]) + more + _architecture(found, network)


def _architecture(found: Mapping[str, Tensor], network: Network) -> str:
    """' (its shapes are those of resnet32x4)' where a network of ours has them; else nothing."""
    groups = [_shapes(_below(found, prefix)) for prefix, _ in _counts(found).most_common(8)]
    classes = {shape[0] for shapes in groups for shape in shapes if len(shape) == 2}
    channels = next((tensor.shape[1] for tensor in network.state_dict().values() if tensor.ndim == 4), 3)
    fitting = []
    for key, count in itertools.product(sorted(MODELS.module_dict), sorted(classes)[:4]):
        with contextlib.suppress(Exception), torch.device("meta"):  # some need further arguments
            if _shapes(MODELS.build({"type": key, "classes": count, "channels": channels}).state_dict()) in groups:
                fitting.append(key)
    return f" (its shapes are those of {' or '.join(fitting)})" if fitting else ""


def _shapes(tensors: Mapping[str, Tensor]) -> list[tuple[int, ...]]:
    return sorted(tuple(tensor.shape) for tensor in tensors.values() if tensor.ndim)


def _prefixes(found: Mapping[str, Tensor]) -> str:
    return ", ".join(f"'{prefix}'" for prefix, count in _counts(found).most_common(9) if prefix and count > 1) or "none"
