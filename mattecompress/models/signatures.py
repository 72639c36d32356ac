"""Signatures of the named models."""

from typing import Any

from mattecompress.errors import UserError
from mattecompress.program import StatePair
from mattecompress.signature import Shape, Signature

RVM_STATE_CHANNELS = {
    "rvm-mobilenetv3": (16, 20, 40, 64),
    "rvm-resnet50": (16, 32, 64, 128),
    "bimatting": (16, 20, 40, 64),
    "bimatting-32bit": (16, 20, 40, 64),
    "bivm": (16, 20, 40, 64),
    "bivm-32bit": (16, 20, 40, 64),
}
TRIMAP_MODELS = (
    "mematte-base",
    "mematte-small",
    "mematte-tiny",
    "vitmatte-base",
    "vitmatte-small",
    "vitmatte-tiny",
)
RVM_STATES = tuple(StatePair(f"r{k}i", f"r{k}o") for k in range(1, 5))


class SizeError(UserError):
    """A frame size that the network cannot take, or a size that is needed and absent."""


def model_signature(model: str, size: tuple[int, int] | None = None, ratio: float = 1) -> Signature:
    """The signature of a named model; arguments and errors as of `rvm_signature` and `trimap_signature`."""
    if model not in TRIMAP_MODELS:
        return rvm_signature(model, size, ratio)
    if ratio != 1:
        raise SizeError(f"{model} has no downsample ratio: leave --ratio out")
    if size is None:
        raise SizeError(f"{model} is captured at one size: add --size HEIGHTxWIDTH")
    return trimap_signature(size)


def trimap_signature(size: tuple[int, int], batch: int | str = 1) -> Signature:
    """Image and trimap of (height, width) in, alpha out; no states. A batch may be left open, as "n"."""
    return Signature((("image", (batch, 3, *size)), ("trimap", (batch, 1, *size))), ("alpha",))


def rvm_signature(model: str, size: tuple[int, int] | None = None, ratio: float = 1) -> Signature:
    """Frame and four states in; foreground, alpha and four states out.

    size: (height, width) of the frame; None leaves batch, height and width open as multiples of 16.

    Raises:
        SizeError: a ratio other than 1 without a size.
    """
    if size is None:
        if ratio != 1:
            raise SizeError(f"a downsample ratio of {ratio:g} needs a size: add --size HEIGHTxWIDTH")
        frame: Shape = ("n", 3, "16*h", "16*w")
        scales: list[Shape] = [("8*h", "8*w"), ("4*h", "4*w"), ("2*h", "2*w"), ("h", "w")]
        batch: int | str = "n"
    else:
        frame, batch = (1, 3, *size), 1
        scales = _halvings(int(size[0] * ratio), int(size[1] * ratio))
    channels = RVM_STATE_CHANNELS[model]
    states = tuple(
        (pair.input, (batch, count, *scale))
        for pair, count, scale in zip(RVM_STATES, channels, scales, strict=True)
    )
    outputs = ("fgr", "pha", *(pair.output for pair in RVM_STATES))
    return Signature((("src", frame), *states), outputs, RVM_STATES)


def fixed_options(model: str, ratio: float = 1) -> dict[str, Any]:
    """Arguments of the network's `forward` that a program of this signature has fixed."""
    if model in TRIMAP_MODELS:
        return {}
    ratios = {} if ratio == 1 else {"downsample_ratio": ratio}
    return ratios if model.startswith("rvm-") else {**ratios, "coarse_outputs": False}


def _halvings(height: int, width: int) -> list[Shape]:
    sizes: list[Shape] = []
    for _ in range(4):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes
