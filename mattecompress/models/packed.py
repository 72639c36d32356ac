"""One-bit weights in a checkpoint: signs, eight to a byte, and one float16 scale a filter in place of floats.

A one-bit layer sees of a filter w of K values (`mattecompress.modules.binary`) only the signs B and the scale alpha of
w, which bimatting centres first. What is read back has them too, centred or not:

    w_i = +alpha K / 2P where B_i is +, -alpha K / 2N where it is -;  P and N count them, and P + N = K

so that mean(w) = 0 and mean|w| = alpha. Both are exact sums: the w_i are integers times a power of two, as equal as
they can be, since alpha has 11 bits. A filter of one sign is alpha everywhere, one whose alpha float16 rounds to 0 is 0.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from mattecompress.modules.binary import BinaryConv2d

SIGNS, SCALE = ".signs", ".scale"
METHODS = ("react", "bimatting")
"""Whose scale is the mean of each filter's own weights."""
BITS = 12
"""One more than those of a float16, so that K alpha has a half."""


class PackingError(ValueError):
    """Packed weights contradict themselves."""


def pack(module: nn.Module) -> dict[str, Tensor]:
    """The state dict, packed: one-bit weights as `.signs` and `.scale`, other floats as float16.

    signs: uint8 (ceil(O/8),I,KH,KW), output channel o in bit o % 8. scale: float16 (O,).
    What float16 cannot hold stays float32; counters of batch norms are left out.
    """
    layers = {f"{name}.weight".lstrip("."): part for name, part in module.named_modules() if _packable(part)}
    packed: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if name in layers:
            signs = (layers[name].binary_weight() > 0).cpu().numpy()
            packed[name + SIGNS] = torch.from_numpy(np.packbits(signs, axis=0, bitorder="little"))
            packed[name + SCALE] = layers[name].output_scale().flatten().half().cpu()
        elif value.is_floating_point():
            packed[name] = _halved(value)
    return packed


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with float32 weights (O,I,KH,KW) for each pair of `.signs` and `.scale`; others as they are.

    Raises:
        PackingError: half of a pair is missing, or is not of the shape and values that `pack` gives.
    """
    names = [name.removesuffix(SIGNS) for name in tensors if name.endswith(SIGNS)]
    plain = {name: value for name, value in tensors.items() if not name.endswith(SIGNS)}
    for name in names:
        scale = plain.pop(name + SCALE, None)
        if scale is None:
            raise PackingError(f"'{name}' has signs and no scale")
        plain[name] = _filters(name, tensors[name + SIGNS], scale)
    return plain


def _filters(name: str, signs: Tensor, scale: Tensor) -> Tensor:
    if signs.dtype != torch.uint8 or signs.ndim != 4 or scale.ndim != 1 or -(-len(scale) // 8) != len(signs):
        shapes = f"{signs.dtype} {tuple(signs.shape)} for {len(scale)} filters"
        raise PackingError(f"'{name}' has signs {shapes}")
    if scale.dtype != torch.float16 or not bool((scale >= 0).all() & scale.isfinite().all()):
        raise PackingError(f"'{name}' has scales that are no finite float16 from 0")
    bits = np.unpackbits(signs.numpy(), axis=0, count=len(scale), bitorder="little")
    return _balanced(torch.from_numpy(bits).bool(), scale.float())


def _balanced(positive: Tensor, scale: Tensor) -> Tensor:
    """(O,I,KH,KW) of the module's equation from where it is positive and float32 alpha (O,)."""
    mantissa, exponent = torch.frexp(scale)
    flat = positive.flatten(1)
    total = (mantissa * 2**BITS).long()[:, None] * flat.shape[1]
    up, down = _shares(flat, total // 2), _shares(~flat, total // 2)
    mixed = flat.any(1, keepdim=True) & ~flat.all(1, keepdim=True)
    even = torch.where(flat, 1, -1) * (total // flat.shape[1])
    integers = torch.where(mixed, up - down, even)
    return torch.ldexp(integers.float(), exponent[:, None] - BITS).view(positive.shape)


def _shares(chosen: Tensor, total: Tensor) -> Tensor:
    """Integers (O,K), 0 but where chosen, that sum to `total` (O,1) in each row and differ by at most 1."""
    count = chosen.sum(1, keepdim=True).clamp_min(1)
    first = chosen.cumsum(1) <= total % count
    return torch.where(chosen, total // count + first, 0)


def _packable(part: nn.Module) -> bool:
    return isinstance(part, BinaryConv2d) and part.config.method in METHODS


def _halved(value: Tensor) -> Tensor:
    half = value.detach().half().cpu().contiguous()
    return half if half.isfinite().all() else value.detach().cpu().contiguous()
