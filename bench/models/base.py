"""What the bench needs of a network: an `Output` for every batch, and its parts by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.registry import Registry
from torch import Tensor, nn

from bench.models import own_images
from methods.base import Output

TAP_KEYS = ("stages", "head", "stem", "prefix_tokens")  # of a model's spec, beside its own arguments: see `bench.models.tapped`
START_KEYS = ("weights", "weights_sha256", "part")  # of a student's spec: the file that its training starts from
SIZES = (  # arguments that the harness gives, ours first, and what else networks call them
    ("classes", "num_classes", "n_classes"),
    ("channels", "in_channels", "in_chans", "num_channels"),
)


def build_model(cfg: Mapping[str, Any], registry: Registry, **_: Any) -> Network:
    """Build from `{"type": key or dotted path, "classes": K, **arguments}`; arguments that it does not have are a TypeError.

    Beside them there may be `normalize` and `image_size`, of the images that the network was trained on; `images`, the
    (mean, std) that the images have which it is given; and where features of a plain module are tapped, see `Tapped`.

    Raises:
        ValueError: see `bench.models.tapped.tap`.
    """
    from bench.models.tapped import tap  # it is a network itself

    arguments = dict(cfg)
    key = arguments.pop("type")
    model = registry.get(key)
    if model is None:
        raise KeyError(f"unknown model '{key}'; known: {', '.join(sorted(registry.module_dict))}")
    images = arguments.pop("images", None)
    own = own_images.from_spec(arguments, images and own_images.Normalization(*images))
    taps = taps_of(arguments, model)
    arguments = {name: value for name, value in arguments.items() if name not in (*own_images.KEYS, *START_KEYS)}
    network = tap(model(**_renamed_sizes(arguments, model)), taps, str(arguments.get("name", key)))
    if own:
        network.see(own)
    return network


def taps_of(spec: dict[str, Any], builder: Callable[..., Any]) -> dict[str, Any]:
    """Take out of a spec what says where features are tapped, unless the builder has arguments of these names."""
    own = inspect.signature(builder).parameters
    return {key: spec.pop(key) for key in TAP_KEYS if key in spec and key not in own}


def _renamed_sizes(arguments: Mapping[str, Any], builder: Callable[..., Any]) -> dict[str, Any]:
    """The arguments, with numbers of classes and channels under the names that the builder has; without those it lacks."""
    parameters = inspect.signature(builder).parameters
    found = {name: value for name, value in arguments.items() if name not in ("classes", "channels")}
    for names in SIZES:
        own = next((name for name in names if name in parameters), None)
        if own and names[0] in arguments:
            found[own] = arguments[names[0]]
    return found


MODELS = Registry("model", build_func=build_model, locations=["bench.models"])
WHEN_ABSENT: dict[str, dict[str, Any]] = {}  # by model: what a stored spec means that lacks an argument newer than itself


def stored(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of a record or cell, complete: arguments that are newer than it have the value that it was trained with."""
    return {**WHEN_ABSENT.get(spec["type"], {}), **spec}


class DropPath(nn.Module):
    """On a residual branch: in training each image goes without it at this rate, and the others' branch is scaled up.

    Huang et al. Deep Networks with Stochastic Depth. ECCV 2016. arXiv:1603.09382. As timm and torchvision have it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0

    def forward(self, branch: Tensor) -> Tensor:
        if not (self.rate and self.training):
            return branch
        kept = branch.new_empty(len(branch), *[1] * (branch.dim() - 1)).bernoulli_(1 - self.rate)
        return branch * kept.div_(1 - self.rate)


class Stage(nn.Module):
    """A stage of a network: `activation(body(norm(x)))`.

    Args:
        body: all up to the last activation; `Output.preact` holds what it returns.
        activation: the last activation, never in place; identity where the stage ends without one.
        norm: in a pre-activation network, the batch norm of the sum that the stage before ends with.
    """

    norm: nn.Module
    body: nn.Sequential
    activation: nn.Module

    def __init__(self, body: nn.Sequential, activation: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm, self.body, self.activation = norm or nn.Identity(), body, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(self.norm(x)))


class Network(nn.Module):
    """stem -> blocks -> head -> dropout -> classifier. It returns every intermediate result.

    `stages[0] = blocks[0](stem)`, `stages[i] = blocks[i](stages[i - 1])`, `embedding = head(stages[-1])`; a method may copy any
    of these parts. All weights are drawn from torch's global generator.

    Args:
        stem: image (B, channels, H, W) to feature map.
        blocks: the stages, shallow to deep.
        classifier: from the embedding (B, D) to logits (B, K).
        norms: for each stage, the last batch norm before `preact`, or None where no single one covers its channels.
        head: last stage to embedding (B, D); by default the mean over positions.
        other_names: prefixes of weights' names in another layout of the same network, to those in this one. Saved weights of
            either layout load.

    Attributes:
        dropout: on the embedding, before the classifier; `dropout.p` is 0 until a recipe sets it.
        library_names: of a library's network, the names of its weights here to those there.
        undecayed: names, or patterns of names, of further weights that have no weight decay where norms and biases have none.
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: Sequence[Stage],
        classifier: nn.Linear,
        norms: Sequence[nn.Module | None],
        head: nn.Module | None = None,
        other_names: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.head = head or global_pool()
        self.dropout = nn.Dropout(0.0)
        self.classifier = classifier
        self.norms = list(norms)  # a plain list: these modules are registered elsewhere
        self.other_names = dict(other_names or {})
        self.library_names: dict[str, str] = {}
        self.undecayed: frozenset[str] = frozenset()
        self.register_load_state_dict_pre_hook(_rename)

    def see(self, images: nn.Module) -> None:
        """Put a step without weights in front of the network: every image passes it once."""
        self.images = images
        self.register_forward_pre_hook(_own_images)

    def drop_paths(self, rate: float) -> None:
        """Have residual branches dropped in training: from never in the first unit to `rate` in the last one, linearly.

        Raises:
            ValueError: the network has no residual branches.
        """
        units = [module for module in self.modules() if isinstance(module, DropPath)]
        if not units:
            raise ValueError("it has no residual branches that could be dropped")
        for place, unit in enumerate(units):
            unit.rate = rate * place / max(1, len(units) - 1)

    @property
    def last_activation(self) -> nn.Module:
        """The module that answers with `Output.activated[-1]`, for tools that hook it."""
        assert isinstance(self.blocks[-1], Stage)
        return self.blocks[-1].activation

    def own_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Saved weights under the names of this network's layout."""
        own = set(self.state_dict())
        if not self.other_names or own == set(state):
            return dict(state)
        renamed = {}
        for name, tensor in state.items():
            other = next((prefix for prefix in self.other_names if name.startswith(prefix)), "")
            renamed[self.other_names.get(other, "") + name.removeprefix(other)] = tensor
        return renamed if own == set(renamed) else dict(state)

    def forward(self, image: Tensor) -> Output:
        x = stem = self.stem(image)
        stages, preact = [], []
        for block in self.blocks:
            assert isinstance(block, Stage)
            preact.append(block.body(block.norm(x)))
            x = block.activation(preact[-1])
            stages.append(x)
        embedding = self.head(x)
        logits = self.classifier(self.dropout(embedding))
        return Output(logits, embedding, tuple(stages), tuple(preact), stem)


def check_output(output: object, images: int, classes: int) -> None:
    """Refuse what is no `Output` for so many images and classes: a user's network may return anything.

    Raises:
        ValueError: names the part that is wrong, and what it should be.
    """
    if not isinstance(output, Output):
        raise ValueError(f"the network returns a {type(output).__name__}, not a methods.Output")
    for name, width in (("logits", classes), ("embedding", None)):
        found = getattr(output, name)
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != images or width not in (None, found.shape[1]):
            raise ValueError(f"{name}: {_shape(found)}, not a tensor of shape ({images}, {width or 'D'})")
    if not output.stages or len(output.stages) != len(output.preact):
        raise ValueError(f"stages and preact: {len(output.stages)} and {len(output.preact)}; as many of both, and at least one")
    parts = {f"{name}[{i}]": each for name in ("stages", "preact") for i, each in enumerate(getattr(output, name))}
    for name, found in (parts | {"stem": output.stem}).items():
        if not isinstance(found, Tensor) or found.dim() not in (3, 4) or len(found) != images:
            raise ValueError(f"{name}: {_shape(found)}, not a tensor of shape ({images}, C, H, W), or ({images}, N, C)")
    if output.tokens is None:
        return
    if len(output.tokens) != len(output.stages):
        raise ValueError(f"tokens: those of {len(output.tokens)} stages, and there are {len(output.stages)}")
    for i, found in enumerate(output.tokens):
        if not isinstance(found, Tensor) or found.dim() != 3 or len(found) != images:
            raise ValueError(f"tokens[{i}]: {_shape(found)}, not a tensor of shape ({images}, P, C)")


def _shape(found: object) -> str:
    return f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"


def _own_images(network: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    assert isinstance(network, Network)
    return (network.images(inputs[0]),)


def _rename(network: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before loading: weights below `prefix` that were saved in the other layout get the names of this one."""
    assert isinstance(network, Network)
    if network.other_names:
        found = {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}
        state |= {prefix + name: tensor for name, tensor in network.own_names(found).items()}


def names_of(library: nn.Module) -> dict[int, str]:
    """The name of each weight of a library's network by the identity of its tensor, before the network is taken apart."""
    return {id(tensor): name for name, tensor in library.state_dict(keep_vars=True).items()}


def renamed(network: Network, names: Mapping[int, str]) -> dict[str, str]:
    """Names of a network's weights to those that `names_of` found for the same tensors."""
    return {name: names[id(tensor)] for name, tensor in network.state_dict(keep_vars=True).items()}


def conv_norm(in_channels: int, channels: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias that keeps height and width up to its stride, and batch norm."""
    return [
        nn.Conv2d(in_channels, channels, size, stride=stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
    ]


def global_pool() -> nn.Sequential:
    """(B, C, H, W) to (B, C): the mean over positions."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def relu_between(units: Sequence[nn.Module]) -> nn.Sequential:
    """Units that end before their activation, with a ReLU after each but the last."""
    layers: list[nn.Module] = []
    for unit in units:
        layers += [unit, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def kaiming_convolutions(network: nn.Module) -> None:
    """He et al.'s normal initialization, by fan-out, of every convolution's weight; its bias, if any, to 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
