"""Writing files whole or not at all."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mattecompress.errors import UserError


class UnwritableError(UserError):
    """A file or folder cannot be written."""


def require_empty(folder: Path) -> None:
    """Raise `UnwritableError` where `folder` holds something."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UnwritableError(
            f"cannot write {folder}: it holds something already; name a new folder or an empty one"
        )


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` on success, remove it on any failure.

    The temporary name keeps the suffix of `path`, so that writers which choose a format by suffix agree.

    Raises:
        UnwritableError: the folder cannot be made or written, or the disk is full.
    """
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.filename is not None and Path(error.filename) not in (temporary, path, path.parent):
            raise
        reason = error.strerror or str(error)
        raise UnwritableError(f"cannot write {path}: {reason}; choose another place") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary.exists():
            temporary.unlink()
