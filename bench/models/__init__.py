"""The networks under comparison, registered in `MODELS`. Each returns an `Output`."""

import importlib
import pkgutil

from bench.models.base import MODELS, Network, Stage, stored

__all__ = ["MODELS", "Network", "Stage", "stored"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
