"""Reading the text form back into a program."""

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from mattecompress.errors import UserError
from mattecompress.facts import DTYPES, Facts, evaluate_size, size_symbols
from mattecompress.modules import build_module
from mattecompress.program import AbsentParameter, PassRecord, Program, Source, StatePair, owner_of
from mattecompress.text import FORMAT, digest, parse_notes, parse_type

_TOKEN = re.compile(r'\s*("[^"]*"|[%@][\w.]+|[A-Za-z_][\w.]*=?|-?inf|-?\d[\w.+-]*|[\[\](),])')
INTEGER_OPERATIONS = ("add", "sub", "mul", "floordiv", "mod", "neg")
_ANY_SIZE = 13
_NODE_LINE = re.compile(r"%(\w+) : (\S+) = (.*)")

_UNREADABLE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class TextError(UserError):
    """The text is not a program; the message names the line."""


def parse_program(text: str, tensors: Mapping[str, Tensor]) -> Program:
    """The program that `text` describes, over the tensors it names.

    Only operators of the `aten` and `matte` namespaces, integer arithmetic and registered modules can be
    named, so reading a hostile text runs nothing.

    Raises:
        TextError: a line that cannot be read, an unknown operator or module, a tensor that is absent or
            does not have the digest the text gives.
    """
    reader = _Reader(tensors)
    lines = text.splitlines()
    if not lines or lines[0] != FORMAT:
        raise TextError(f"line 1: expected '{FORMAT}'")
    for number, line in enumerate(lines[1:], start=2):
        try:
            reader.read(line)
        except _UNREADABLE as error:
            raise TextError(f"line {number}: {error}: {line.strip()[:100]}") from error
        except UserError as error:
            raise TextError(f"line {number}: {error}") from error
    try:
        return reader.finish()
    except AttributeError as error:
        raise TextError(f"the graph reads what the text does not hold: {error}") from error


class _Reader:
    """Collects what the lines say; `finish` makes the program."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.nodes: dict[str, fx.Node] = {}
        self.attributes: dict[str, fx.Node] = {}
        self.name, self.model = "", ""
        self.absent: list[AbsentParameter] = []
        self.history: list[PassRecord] = []
        self.states: list[StatePair] = []
        self.scopes: dict[str, str] = {}
        self.output_names: tuple[str, ...] = ()

    def read(self, line: str) -> None:
        if self.output_names:
            raise ValueError("the program ended above, with 'return'")
        if line.startswith("%"):
            self.read_node(line)
            return
        keyword, _, rest = line.partition(" ")
        readers: dict[str, Callable[[str], None]] = {
            "program": self.read_program,
            "model": self.read_model,
            "absent": self.read_absent,
            "pass": self.read_pass,
            "state": self.read_state,
            "scope": self.read_scope,
            "module": self.read_module,
            "parameter": lambda rest: self.read_tensor(rest, nn.Parameter),
            "buffer": lambda rest: self.read_tensor(rest, nn.Buffer),
            "return": self.read_return,
        }
        if keyword not in readers:
            raise ValueError(f"unknown line '{keyword}'")
        readers[keyword](rest)

    def read_program(self, rest: str) -> None:
        self.name = rest.split(" ")[0]

    def read_model(self, rest: str) -> None:
        self.model = rest

    def read_absent(self, rest: str) -> None:
        name, shape, bits = rest.removeprefix("@").split(" ")
        sizes = tuple(int(size) for size in shape.strip("[]").split(",") if size)
        self.absent.append(AbsentParameter(name, sizes, int(bits)))

    def read_pass(self, rest: str) -> None:
        text, seed = rest.rsplit(" seed=", 1)
        self.history.append(PassRecord(text, int(seed), 0.0))

    def read_state(self, rest: str) -> None:
        self.states.append(StatePair(*rest.split(" <- ")))

    def read_scope(self, rest: str) -> None:
        path, kind = rest.split(" ")
        self.scopes[path] = kind

    def read_module(self, rest: str) -> None:
        name, text = rest.removeprefix("@").split(" ", 1)
        owner, leaf = owner_of(self.root, name, create=True)
        with torch.device("meta"):
            owner.add_module(leaf, build_module(text))

    def read_tensor(self, rest: str, wrap: Callable[[Tensor], Tensor]) -> None:
        name, kind, expected = rest.removeprefix("@").split(" ")
        if name not in self.tensors:
            raise ValueError(f"tensor '{name}' is absent")
        value = self.tensors[name]
        dtype, shape = parse_type(kind)
        if (value.dtype, tuple(value.shape)) != (DTYPES[dtype], shape) or digest(value) != expected:
            raise ValueError(f"tensor '{name}' is not the one the text names")
        owner, leaf = owner_of(self.root, name, create=True)
        if not hasattr(owner, leaf):
            setattr(owner, leaf, wrap(value))
            return
        existing = getattr(owner, leaf)
        if existing.shape != value.shape:
            raise ValueError(
                f"'{name}' has shape {list(value.shape)}, its module needs {list(existing.shape)}"
            )
        held: Any = owner._parameters if leaf in owner._parameters else owner._buffers
        held[leaf] = wrap(value)

    def read_node(self, line: str) -> None:
        match = _NODE_LINE.fullmatch(line)
        if match is None:
            raise ValueError("expected '%name : type = operation'")
        name, kind, operation = match.groups()
        dtype, shape = parse_type(kind)
        if operation == "input":
            for size in shape:
                evaluate_size(size, dict.fromkeys(size_symbols(size), _ANY_SIZE))
            node = self.graph.placeholder(name)
            notes: dict[str, Any] = {}
        else:
            target, arguments, named, rest = _parse_call(operation, self.resolve)
            notes = parse_notes(rest)
            node = self.call(target, tuple(arguments), named)
        node.name = name
        if name in self.nodes:
            raise ValueError(f"%{name} is defined twice")
        node.meta["facts"] = Facts(shape, None if dtype == "int" else DTYPES[dtype], **notes)
        self.nodes[name] = node

    def call(self, target: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> fx.Node:
        if target.startswith("@"):
            return self.graph.call_module(target[1:], arguments, named)
        return self.graph.call_function(resolve_operator(target), arguments, named)

    def resolve(self, token: str) -> fx.Node:
        if token.startswith("%"):
            if token[1:] not in self.nodes:
                raise ValueError(f"{token} is not defined above")
            return self.nodes[token[1:]]
        name = token[1:]
        if name not in self.attributes:
            with self.graph.inserting_before(next(iter(self.graph.nodes))):
                self.attributes[name] = self.graph.get_attr(name)
            value = self.tensors[name]
            self.attributes[name].meta["facts"] = Facts(tuple(value.shape), value.dtype)
        return self.attributes[name]

    def read_return(self, rest: str) -> None:
        pairs = [item.split("=") for item in rest.split()]
        self.output_names = tuple(name for name, _ in pairs)
        self.graph.output(tuple(self.resolve(node) for _, node in pairs))

    def finish(self) -> Program:
        if not self.output_names:
            raise TextError("the text ends without a 'return' line: it is cut short")
        for name, tensor in self.root.state_dict().items():
            if tensor.is_meta:
                raise TextError(f"module tensor '{name}' is absent")
        for attribute in self.attributes.values():
            while attribute.name in self.nodes:
                attribute.name += "_"
        source = Source(self.model, tuple(self.absent))
        module = fx.GraphModule(self.root, self.graph)
        module.eval()
        return Program(
            self.name, module, self.output_names, tuple(self.states), self.scopes, source, tuple(self.history)
        )


def resolve_operator(name: str) -> Any:
    """The operator that a text names: `aten.*`, `matte.*` or integer arithmetic.

    Raises:
        ValueError: there is no such operator, or a program may not use it.
    """
    space, _, rest = name.partition(".")
    if space == "operator" and rest in INTEGER_OPERATIONS:
        return getattr(operator, rest)
    packet, _, overload = rest.partition(".")
    if space in ("aten", "matte") and overload:
        found = getattr(getattr(getattr(torch.ops, space), packet, None), overload, None)
        if isinstance(found, torch._ops.OpOverload):
            return found
    raise ValueError(f"no operator '{name}'")


def _parse_call(text: str, resolve: Callable[[str], fx.Node]) -> tuple[str, list[Any], dict[str, Any], str]:
    head, _, rest = text.partition("(")
    parser = _Arguments(rest, resolve)
    arguments, named = parser.read_all()
    return head, arguments, named, rest[parser.position :]


class _Arguments:
    """The argument list of one call, up to its closing parenthesis."""

    def __init__(self, text: str, resolve: Callable[[str], fx.Node]) -> None:
        self.text, self.position, self.resolve = text, 0, resolve

    def token(self) -> str:
        match = _TOKEN.match(self.text, self.position)
        if match is None:
            raise ValueError(f"cannot read '{self.text[self.position :][:20]}'")
        self.position = match.end()
        return match[1]

    def read_all(self) -> tuple[list[Any], dict[str, Any]]:
        arguments: list[Any] = []
        named: dict[str, Any] = {}
        token = self.token()
        while token != ")":
            if token == ",":
                token = self.token()
                continue
            if token.endswith("="):
                named[token[:-1]] = self.value(self.token())
            else:
                arguments.append(self.value(token))
            token = self.token()
        return arguments, named

    def value(self, token: str) -> Any:
        if token == "[":
            return self.items()
        if token[0] in "%@":
            return self.resolve(token)
        if token[0] == '"':
            return token[1:-1]
        words: dict[str, Any] = {"none": None, "true": True, "false": False, "inf": float("inf"), **DTYPES}
        if token in words:
            return words[token]
        if token == "-inf":
            return -float("inf")
        return int(token) if re.fullmatch(r"-?\d+", token) else float(token)

    def items(self) -> list[Any]:
        found = []
        token = self.token()
        while token != "]":
            if token != ",":
                found.append(self.value(token))
            token = self.token()
        return found
