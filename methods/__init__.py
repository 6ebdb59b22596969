"""The methods under comparison: one file each, registered in `METHODS` under the file's name."""

import importlib
import pkgutil

from methods.base import METHODS, Batch, Card, Context, Method, Networks, Output, TeacherMethod

__all__ = ["METHODS", "Batch", "Card", "Context", "Method", "Networks", "Output", "TeacherMethod"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
