"""The modules that a program's operations come from."""

from torch import fx

from mattecompress.program import Program


def lies_in(scope: str, module: str) -> bool:
    """Whether the path `scope` is that of a module or of something in it."""
    return f"{scope}.".startswith(f"{module}.")


def nodes_of(program: Program, module: str) -> list[fx.Node]:
    """The operations of a module, in order."""
    return [node for node in program.operations() if lies_in(program.facts(node).scope, module)]


def handed_on(program: Program, module: str) -> list[fx.Node]:
    """What operations outside of a module, or the output, read from it, in order."""
    own = dict.fromkeys(nodes_of(program, module))
    return [node for node in own if any(user not in own for user in node.users)]
