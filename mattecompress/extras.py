"""Parts of the package that need what one of its extras installs."""

import importlib
from types import ModuleType

from mattecompress.errors import MissingExtraError

EXTRAS = {"onnx": "onnx", "onnxruntime": "onnx", "onnxsim": "onnx", "transformers": "vit", "tvm": "tvm"}


def import_part(name: str) -> ModuleType:
    """The module of that name.

    Raises:
        MissingExtraError: the extra that it needs is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        absent = (error.name or "").partition(".")[0]
        if absent not in EXTRAS:
            raise
        raise MissingExtraError(absent, EXTRAS[absent]) from error
