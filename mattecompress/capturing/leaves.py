"""Registered modules through `torch.export`: each call is one opaque operator, which becomes a module call again.

The operator holds the module's path and text form, so that shapes can be derived from the call alone.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from mattecompress.modules import MODULES, build_module
from mattecompress.options import format_options
from mattecompress.program import owner_of


@torch.library.custom_op("matte::registered_module", mutates_args=())
def registered_module(inputs: list[Tensor], path: str, text: str) -> Tensor:
    """Stands for a call while a network is exported; never computed."""
    raise NotImplementedError(f"{path}: {text} is only a mark")


@registered_module.register_fake
def _(inputs: list[Tensor], path: str, text: str) -> Tensor:
    with torch.device("meta"):
        module: Any = build_module(text)
    if hasattr(module, "shaped"):
        shape: Tensor = module.shaped(*inputs)
        return shape
    tensors = {
        name: inputs[0].new_empty(value.shape)
        for name, value in (*module.named_parameters(), *module.named_buffers())
    }
    result: Tensor = torch.func.functional_call(module.eval(), tensors, tuple(inputs))
    return result


def keep_registered(model: nn.Module) -> None:
    """Let every registered module of `model` be exported as one operator; changes the model in place."""
    for path, module in model.named_modules():
        kind = registered_kind(module)
        if kind is not None:
            config: Any = module.config
            text = format_options(kind.__name__, config)
            module.forward = partial(_mark, path=path, text=text)


def registered_kind(module: nn.Module) -> type[nn.Module] | None:
    """The class of the registry that the module is an instance of."""
    for kind in type(module).__mro__:
        place = MODULES.get(kind.__name__)
        if place and kind.__module__ == f"mattecompress.modules.{place}":
            return kind
    return None


def call_registered(module: fx.GraphModule, model: nn.Module) -> None:
    """Turn the operators of an exported graph into calls of modules, with the tensors of `model`'s modules.

    What a subclass adds to a registered module is left behind.
    """
    for node in module.graph.find_nodes(op="get_attr"):
        if not node.users:
            module.graph.erase_node(node)
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.matte.registered_module.default):
        inputs, path, text = node.args
        owner, leaf = owner_of(module, path, create=True)
        if leaf not in owner._modules or registered_kind(owner.get_submodule(leaf)) is None:
            owner.add_module(leaf, _copy(model.get_submodule(path), text))
        with module.graph.inserting_before(node):
            call = module.graph.call_module(path, tuple(inputs))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)


def _mark(*inputs: Tensor, path: str, text: str) -> Tensor:
    result: Tensor = registered_module(list(inputs), path, text)
    return result


def _copy(module: nn.Module, text: str) -> nn.Module:
    copy = build_module(text)
    known = module.state_dict()
    copy.load_state_dict({name: known[name] for name in copy.state_dict()})
    return copy.eval()
