"""Names of mmengine's visualizer backends as a user writes them. No mmengine is imported until one is asked for."""

from __future__ import annotations

import importlib.util
import tempfile

from bench.errors import UserError, described, unknown

ON_DISK = ("local", "tensorboard")  # the others begin a run on somebody's server when they are first written to


def backend(name: str) -> str:
    """'tensorboard' -> 'TensorboardVisBackend'; the full name is taken as well.

    Raises:
        UserError: mmengine has no such backend.
    """
    from mmengine.registry import VISBACKENDS
    from mmengine.visualization import vis_backend  # noqa: F401  (registers them)

    known = {key.removesuffix("VisBackend").lower(): key for key in VISBACKENDS.module_dict if key != "BaseVisBackend"}
    short = name.removesuffix("VisBackend").lower()
    if short not in known:
        raise unknown("visualizer backend", name, known, "--visualize")
    return known[short]


def try_out(name: str) -> None:
    """Write one number with a backend, into a folder that is removed; of one that writes elsewhere only look for its package.

    Raises:
        UserError: there is no such backend, or its package is missing.
    """
    from mmengine.visualization import Visualizer

    full = backend(name)
    package = full.removesuffix("VisBackend").lower()
    if package not in ON_DISK:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--visualize {name}: the package {package} is not installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            visualizer = Visualizer(vis_backends=[{"type": full}], save_dir=folder)
            visualizer.add_scalars({"top1": 0.0}, step=1)
            visualizer.close()
        except Exception as error:
            raise UserError(f"--visualize {name}: {described(error)}") from error
