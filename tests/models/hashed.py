"""Networks and frames made from names by a hash, and the outputs recorded for them."""

import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn


def hashed(name: str, count: int) -> np.ndarray:
    """`count` values in [-1, 1) from a name: the rule of the golden vectors."""
    i = np.arange(1, count + 1, dtype=np.uint64)
    mask = np.uint64(0xFFFFFFFF)
    h = (i * np.uint64(2654435761) + np.uint64(zlib.crc32(name.encode()) * 2246822519 % 2**32)) & mask
    h ^= h >> np.uint64(15)
    h = (h * np.uint64(2246822519)) & mask
    h ^= h >> np.uint64(13)
    return h.astype(np.float64) / 2**31 - 1


def hashed_weight(key: str, like: Tensor) -> Tensor:
    """The value of a state dict's tensor by the same rule."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros_like(like)
    s = torch.from_numpy(hashed(key, like.numel())).reshape(like.shape)
    if key.endswith("running_mean"):
        return 0.1 * s
    if key.endswith("running_var"):
        return 1 + 0.25 * s
    if key.endswith(("bias", "channel_threshold")):
        return 0.05 * s
    if "pos_embed" in key or "rel_pos" in key:
        return 0.02 * s
    if like.ndim == 1:
        return 1 + 0.1 * s
    return s * (3 * like.shape[0] / like.numel()) ** 0.5


def hashed_double(build: Callable[[], nn.Module]) -> nn.Module:
    """A network in eval mode and float64, all of its tensors by the rule."""
    torch.set_default_dtype(torch.float64)
    try:
        model = build().eval()
    finally:
        torch.set_default_dtype(torch.float32)
    model.load_state_dict({key: hashed_weight(key, value) for key, value in model.state_dict().items()})
    return model


def hashed_input(case: dict) -> Tensor:
    """The frames of a case, in 0..1."""
    shape = case["input_shape"]
    return torch.from_numpy((hashed(case["input_key"], int(np.prod(shape))) + 1) / 2).reshape(shape)


def assert_recorded(tensor: Tensor, record: dict) -> None:
    assert list(tensor.shape) == record["shape"]
    flat = tensor.flatten()
    picked = [flat[j * (flat.numel() - 1) // 7].item() for j in range(8)]
    measured = [tensor.mean().item(), tensor.std(correction=0).item(), *picked]
    assert measured == pytest.approx([record["mean"], record["std"], *record["samples"]], rel=1e-9, abs=1e-10)


def assert_all_recorded(names: tuple[str, ...], tensors: list[Tensor], record: dict) -> None:
    for name, tensor in zip(names, tensors, strict=True):
        assert_recorded(tensor, record[name])
