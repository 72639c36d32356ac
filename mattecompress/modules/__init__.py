"""Trainable forms: the modules that passes put into a program, each with a frozen configuration.

The registry is closed: only these can stand in a program's text, so that reading one runs nothing else.
A module `X` takes one frozen dataclass, keeps it as `config`, and prints as `X{option=value ...}`.
"""

import importlib
import typing

from torch import nn

from mattecompress.options import OptionError, nearest, parse_options

MODULES = {
    "BatchNorm2d": "batch_norm",
    "BinaryConv2d": "binary",
    "ElasticShortcut": "elastic_shortcut",
    "FakeQuantize": "quantizer",
    "RoutedAttention": "routed_attention",
    "SpatialMask": "spatial_mask",
    "TokenRefinement": "token_refinement",
    "TokenRouter": "token_router",
}


def build_module(text: str) -> nn.Module:
    """A module with fresh tensors from its text form, such as `BatchNorm2d{features=16}`.

    Raises:
        OptionError: the module is not in the registry, or an option is unknown or ill-typed.
    """
    name, _, options = text.removesuffix("}").partition("{")
    if name not in MODULES:
        raise OptionError(f"unknown module '{name}'{nearest(name, MODULES)}")
    kind = getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)
    config_type = typing.get_type_hints(kind.__init__)["config"]
    module = kind(parse_options(config_type, options, name))
    assert isinstance(module, nn.Module)
    return module
