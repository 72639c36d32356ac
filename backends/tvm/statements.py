"""Sequences of statements."""

from collections.abc import Sequence

from tvm import tirx


def statements_of(statement: tirx.Stmt) -> list[tirx.Stmt]:
    """The statements of a sequence, or the one that is none."""
    if isinstance(statement, tirx.SeqStmt):
        return [part for child in statement.seq for part in statements_of(child)]
    return [statement]


def sequence_of(statements: Sequence[tirx.Stmt]) -> tirx.Stmt:
    """The statements one after the other."""
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))
