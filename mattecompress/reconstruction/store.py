"""Values of many frames: in memory up to a limit, beyond it in files. Threads may put and drop at the same time."""

import itertools
import threading
from collections.abc import Hashable
from pathlib import Path

import safetensors.torch
from torch import Tensor

Value = Tensor | int


class Store:
    """Keeps tensors (and plain integers) by key.

    limit: bytes kept in memory.
    folder: where the rest is written; it has to exist, and is the store's alone.
    """

    def __init__(self, limit: int, folder: Path) -> None:
        self.limit, self.folder = limit, folder
        self.used = 0
        self._values: dict[Hashable, Value | Path] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def put(self, key: Hashable, value: Value) -> None:
        """Keep a value, in place of an older one of the same key."""
        self.drop(key)
        if not isinstance(value, Tensor):
            self._values[key] = value
            return
        value = value.detach().contiguous()
        with self._lock:
            fits = self.used + value.nbytes <= self.limit
            self.used += value.nbytes if fits else 0
        if fits:
            self._values[key] = value.clone()
            return
        path = self.folder / f"{next(self._numbers)}.safetensors"
        safetensors.torch.save_file({"value": value}, path)
        self._values[key] = path

    def get(self, key: Hashable) -> Value:
        """The value of a key; not to be written to."""
        value = self._values[key]
        return safetensors.torch.load_file(value)["value"] if isinstance(value, Path) else value

    def drop(self, key: Hashable) -> None:
        """Forget a key, if it is there."""
        value = self._values.pop(key, None)
        if isinstance(value, Tensor):
            with self._lock:
                self.used -= value.nbytes
        elif isinstance(value, Path):
            value.unlink()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def __len__(self) -> int:
        """Number of values."""
        return len(self._values)
