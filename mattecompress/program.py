"""The program: a graph of ATen operations with named inputs, outputs, recurrent state and a history."""

import copy
import enum
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar, overload

import torch
from torch import Tensor, fx, nn

from mattecompress.errors import InternalError
from mattecompress.facts import FLOAT, Facts, Precision

Kind = TypeVar("Kind", bound=nn.Module)


@dataclass(frozen=True)
class StatePair:
    """A recurrent state: the output of one frame is the input of the next; zeros on the first."""

    input: str
    output: str


@dataclass(frozen=True)
class PassRecord:
    """One pass that has run: its text with options, the seed it drew from, the seconds it took."""

    text: str
    seed: int
    seconds: float = field(compare=False)


PLAIN = frozenset({"matte.attend_on_grid.default"})
"""Operations of ours that say at every level what some of ATen's say together."""


class Level(enum.Enum):
    """How far a program has come down: ATen operations; trainable forms too; or operations of lowering, none of these."""

    FLOAT = "float"
    TRAINABLE = "trainable"
    LOWERED = "lowered"


@dataclass(frozen=True)
class AbsentParameter:
    """A parameter of the model that the captured graph does not read; passes keep its bits up to date.

    The papers count whole models, so their sizes need it.
    """

    name: str
    shape: tuple[int, ...]
    bits: int = 32


def describe_parameters(network: nn.Module) -> tuple[AbsentParameter, ...]:
    """Every parameter of a network as if it were absent, weights in the bits that their layer stores them in."""
    found = []
    for name, parameter in network.named_parameters():
        owner, _, leaf = name.rpartition(".")
        precision: Precision = getattr(network.get_submodule(owner), "precision", FLOAT)
        bits = precision.weight_bits if leaf == "weight" else 32
        found.append(AbsentParameter(name, tuple(parameter.shape), bits))
    return tuple(found)


@dataclass(frozen=True)
class Source:
    """Where a program came from: the model or the function that built it, and what of it was not captured."""

    model: str = ""
    absent: tuple[AbsentParameter, ...] = ()


class Program:
    """An `fx.GraphModule` of ATen operations and registered modules, with what a graph alone cannot say.

    Every node yields one tensor (or one integer); tensors reach the graph through `get_attr`. The graph
    returns one flat tuple, whose elements are named by `output_names`.
    """

    def __init__(
        self,
        name: str,
        graph_module: fx.GraphModule,
        output_names: tuple[str, ...],
        states: tuple[StatePair, ...] = (),
        scopes: dict[str, str] | None = None,
        source: Source | None = None,
        history: tuple[PassRecord, ...] = (),
    ) -> None:
        self.name = name
        self.graph_module = graph_module
        self.output_names = output_names
        self.states = states
        self.scopes = dict(scopes or {})
        self.source = source or Source()
        self.history = history

    @property
    def graph(self) -> fx.Graph:
        """The graph itself, for passes."""
        return self.graph_module.graph

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        """The placeholders, in order; their targets are the input names."""
        return tuple(node for node in self.graph.nodes if node.op == "placeholder")

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(str(node.target) for node in self.inputs)

    @property
    def outputs(self) -> dict[str, fx.Node]:
        """The node behind each output name."""
        (values,) = self.graph.output_node().args
        return dict(zip(self.output_names, values, strict=True))  # type: ignore[arg-type]

    @property
    def level(self) -> Level:
        """Trainable while any module but a batch norm is called, else lowered once any operation of lowering is."""
        modules = {type(self.module(node)).__name__ for node in self.called_modules()}
        if modules - {"BatchNorm2d"}:
            return Level.TRAINABLE
        lowered = any(
            namespace(node) == "matte" for node in self.graph.nodes if str(node.target) not in PLAIN
        )
        return Level.LOWERED if lowered else Level.FLOAT

    @property
    def has_regions(self) -> bool:
        """Whether `partition-blocks` has run."""
        return any(self.facts(node).region for node in self.operations())

    def operations(self) -> Iterator[fx.Node]:
        """Nodes that compute: function and module calls, in order."""
        return (node for node in self.graph.nodes if node.op in ("call_function", "call_module"))

    def find(self, target: object) -> list[fx.Node]:
        """Calls of one operation, such as `torch.ops.aten.conv2d.default`, in order."""
        return [node for node in self.graph.nodes if node.op == "call_function" and node.target is target]

    def called_modules(self, kind: type[nn.Module] = nn.Module) -> list[fx.Node]:
        """Calls of modules of one kind, in order."""
        calls = (node for node in self.graph.nodes if node.op == "call_module")
        return [node for node in calls if isinstance(self.module(node), kind)]

    @overload
    def module(self, node: fx.Node) -> nn.Module: ...

    @overload
    def module(self, node: fx.Node, kind: type[Kind]) -> Kind: ...

    def module(self, node: fx.Node, kind: type[nn.Module] = nn.Module) -> nn.Module:
        """The module, known to be of a kind, that a `call_module` node calls."""
        module = self.graph_module.get_submodule(str(node.target))
        assert isinstance(module, kind)
        return module

    def facts(self, node: fx.Node) -> Facts:
        """The facts of a node."""
        facts = node.meta["facts"]
        assert isinstance(facts, Facts)
        return facts

    def tensor(self, node: fx.Node) -> Tensor:
        """The tensor behind a `get_attr` node."""
        return fetch_tensor(self.graph_module, str(node.target))

    def constant(self, name: str, value: Tensor, replaces: bool = False) -> fx.Node:
        """Put a tensor into the program under `name` (a dotted path) and return its `get_attr` node.

        replaces: whether what already has that name gives way; otherwise the name has to be free.
        """
        owner, leaf = owner_of(self.graph_module, name, create=True)
        if getattr(owner, leaf, None) is not None:
            if not replaces:
                raise InternalError(f"@{name} is there already: take `free_path`, or replace it on purpose")
            delattr(owner, leaf)
        if isinstance(value, nn.Parameter):
            owner.register_parameter(leaf, value)
        else:
            owner.register_buffer(leaf, value)
        first = next(iter(self.graph.nodes))
        with self.graph.inserting_before(first):
            node = self.graph.get_attr(name)
        node.meta["facts"] = Facts(tuple(value.shape), value.dtype)
        return node

    def free_path(self, path: str) -> str:
        """The path, or with the first number behind it that no tensor or module of the program has."""
        modules = self.graph_module.named_modules(remove_duplicate=False)
        taken = {*self.graph_module.state_dict(), *(name for name, _ in modules)}
        return next(each for each in numbered(path) if each not in taken)

    def add_module(self, name: str, module: nn.Module) -> None:
        """Put a module at a dotted path; whatever tensors stood at that path are replaced."""
        owner, leaf = owner_of(self.graph_module, name, create=True)
        owner.add_module(leaf, module)

    def add_output(self, name: str, value: fx.Node) -> None:
        """Let the graph also return the value of a node, under `name`, behind the other outputs."""
        node = self.graph.output_node()
        (values,) = node.args
        node.args = ((*values, value),)  # type: ignore[misc]
        self.output_names = (*self.output_names, name)

    def keep_outputs(self, *names: str) -> None:
        """Return the outputs of these names only, in the order that they have."""
        kept = {name: node for name, node in self.outputs.items() if name in names}
        self.graph.output_node().args = (tuple(kept.values()),)
        self.output_names = tuple(kept)

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let every user of `old` read `new`; scope and region move along, and `old` leaves the graph."""
        if "facts" not in new.meta:
            new.meta["facts"] = old.meta["facts"]
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        self.graph.erase_node(old)

    def run(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Compute all outputs from all inputs, by name."""
        values = self.graph_module(*(inputs[name] for name in self.input_names))
        return dict(zip(self.output_names, values, strict=True))

    def clone(self) -> "Program":
        """A copy that shares nothing with this program; nobody watches it."""
        module = copy.deepcopy(self.graph_module)
        module._replace_hooks = []
        return Program(
            self.name,
            module,
            self.output_names,
            self.states,
            self.scopes,
            self.source,
            self.history,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor of the program by dotted name, sorted."""
        return dict(sorted(self.graph_module.state_dict().items()))

    def __eq__(self, other: object) -> bool:
        """Same graph, facts, names and history, and bit-equal tensors."""
        if not isinstance(other, Program):
            return NotImplemented
        mine, theirs = self.state_dict(), other.state_dict()
        return (
            self._structure() == other._structure()
            and list(mine) == list(theirs)
            and all(torch.equal(mine[name], theirs[name]) for name in mine)
        )

    __hash__ = None  # type: ignore[assignment]

    def _structure(self) -> tuple[object, ...]:
        written = [node for node in self.graph.nodes if node.op != "get_attr"]
        labels = {node: f"%{index}" for index, node in enumerate(written)}
        nodes = [
            (node.op, str(node.target), None if node.op == "output" else self.facts(node))
            + (str(fx.map_arg((node.args, node.kwargs), lambda n: labels.get(n, f"@{n.target}"))),)
            for node in written
        ]
        return (self.name, self.output_names, self.states, self.scopes, self.source, self.history, nodes)


def numbered(name: str) -> Iterator[str]:
    """The name, then the same with numbers behind it: name, name_1, name_2."""
    return itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))


def namespace(node: fx.Node) -> str:
    """`aten`, `matte` or another namespace of an operator call; empty for everything else."""
    return node.target.namespace if isinstance(node.target, torch._ops.OpOverload) else ""


def fetch_tensor(root: nn.Module, name: str) -> Tensor:
    """The parameter or buffer at a dotted path."""
    owner, leaf = owner_of(root, name)
    value = getattr(owner, leaf)
    assert isinstance(value, Tensor)
    return value


def owner_of(root: nn.Module, name: str, create: bool = False) -> tuple[nn.Module, str]:
    """The module that holds a dotted path's last part, and that part; missing modules are made on request."""
    *path, leaf = name.split(".")
    for part in path:
        if create and part not in root._modules:
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    return root, leaf
