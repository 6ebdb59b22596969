"""Names of mmengine's visualizer backends as a user writes them. No mmengine is imported until one is asked for."""

from __future__ import annotations

from bench.errors import unknown


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
