"""A small network for each pass, and what the pass makes of its text: the examples of the catalogue, run to make it."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.signature import Signature
from mattecompress.text import print_program

FRAMES = (2, 3, 8, 8)
LONGEST = 30


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Layers(nn.Module):
    """A layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = _layer(3, 8), nn.Conv2d(8, 1, 1)

    def forward(self, frame: Tensor) -> Tensor:
        """Alpha."""
        return torch.sigmoid(self.head(self.body(frame)))


class Encoder(nn.Module):
    """Features at two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _layer(3, 8, 2), _layer(8, 8, 2)

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """At 1/2 and 1/4."""
        first = self.first(frame)
        return first, self.second(first)


class Block(nn.Module):
    """A layer without batch norm, of a class that `partition-blocks` knows."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(inputs, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """A convolution and a ReLU."""
        return self.layer(x).relu()


class Matting(nn.Module):
    """An encoder, a coarse block, a fine one under its result, and a head: foreground and alpha."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.coarse, self.fine, self.head = Encoder(), Block(8), Block(16), nn.Conv2d(8, 4, 1)

    def forward(self, frame: Tensor) -> Tensor:
        """Four channels at half the size."""
        first, second = self.encoder(frame)
        coarse = F.interpolate(self.coarse(second), scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.head(self.fine(torch.cat([coarse, first], 1)))


class Attention(nn.Module):
    """One attention of two heads over a 4x4 image of tokens, written as papers write it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N,4,4,8), like those that come in."""
        q, k, v = (
            self.qkv(self.norm(x))
            .reshape(1, 16, 3, 2, 4)
            .permute(2, 0, 3, 1, 4)
            .reshape(3, 2, 16, 4)
            .unbind(0)
        )
        y = ((q * 0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        return x + self.proj(y.reshape(1, 2, 4, 4, 4).permute(0, 2, 3, 1, 4).reshape(1, 4, 4, 8))


class Decoder(nn.Module):
    """One layer over a frame."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Alpha."""
        return self.layer(x).sigmoid()


class Whole(nn.Module):
    """A frame, brighter, through the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder()

    def forward(self, frame: Tensor) -> Tensor:
        """Alpha."""
        return self.decoder(2 * frame)


class Idle(nn.Module):
    """Cuts nothing off."""

    def forward(self, frame: Tensor) -> Tensor:
        """The frame, brighter."""
        return torch.ops.aten.slice.Tensor(frame, 2, 0, 8) * 2


class Ramp(nn.Module):
    """Makes a frame darker from right to left."""

    def forward(self, frame: Tensor) -> Tensor:
        """The frame, times the place in its row."""
        return frame * (torch.arange(8) / 8)


@dataclass(frozen=True)
class Sample:
    """A pass's text, the network that it runs on, and the passes that run before."""

    text: str
    network: Callable[[], nn.Module] = Layers
    before: str = ""
    shape: tuple[int | str, ...] = (1, *FRAMES[1:])


QUANTIZE = "quantize{weights=4 activations=4 first=none}"
QUANTIZED = f"fold-batch-norm,partition-blocks,{QUANTIZE}"
BINARIZE = "binarize{method=react exclude-first=false}"
MASKED = "partition-blocks,sparsify-decoder{coarse=coarse head=head regions=[fine]}"
TOKENS = (1, 4, 4, 8)
SAMPLES = {
    sample.text.partition("{")[0]: sample
    for sample in (
        Sample("attach-distillation{encoder=layer}", partial(Block, 3)),
        Sample("attach-mimicking{encoder=encoder}", Matting, MASKED),
        Sample(BINARIZE),
        Sample("calibrate-affine{epochs=20 rate=0.003}", before=QUANTIZED),
        Sample("calibrate-mask", Matting, MASKED.replace("]}", "] rule=residual}")),
        Sample("canonicalize", Idle),
        Sample("cast-half", before="fold-batch-norm"),
        Sample("equalize-channels", before="fold-batch-norm"),
        Sample("evolve-encoder{encoder=encoder stem=8 groups=[8-16-8/2] widening=[16]}", Matting),
        Sample("expand-modules", before="insert-elastic-shortcuts{exclude-first=false}"),
        Sample("fold-batch-norm"),
        Sample("fold-constants", Ramp),
        Sample("insert-elastic-shortcuts{exclude-first=false}"),
        Sample("linear-to-convolution", Attention, shape=TOKENS),
        Sample("lower-batch-norm"),
        Sample("lower-binary", before=BINARIZE),
        Sample("lower-functions", before=f"{QUANTIZED},lower-quantized"),
        Sample("lower-masks", Matting, f"{MASKED},binarize{{method=react}},lower-binary"),
        Sample("lower-quantized", before=QUANTIZED),
        Sample("lower-tokens", Attention, "route-tokens{limit=4 form=static}", TOKENS),
        Sample("merge-tokens", Attention, shape=TOKENS),
        Sample("partition-blocks", Matting),
        Sample("prune-tokens", Attention, shape=TOKENS),
        Sample(QUANTIZE, before="fold-batch-norm,partition-blocks"),
        Sample("reconstruct-blocks{method=qdrop iterations=2 rounding-rate=0.1}", before=QUANTIZED),
        Sample("rewrite-attention{queries=8}", Attention, shape=TOKENS),
        Sample("route-tokens", Attention, shape=TOKENS),
        Sample("set-resolution{height=8 width=12}", shape=(1, 3, "2*h", "2*w")),
        Sample("shift-activations{exclude-first=false}"),
        Sample("sparsify-decoder{coarse=coarse head=head regions=[fine]}", Matting, "partition-blocks"),
        Sample("tile-decoder{rows=4}", Whole),
    )
}


def difference(sample: Sample) -> str:
    """What a pass takes away from the program's text (`-`), adds (`+`), and which tensors get other values (`~`)."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = sample.network().eval()
    captured = capture(network, Signature((("x", sample.shape),), ("y",)), "sample")
    clip = torch.rand(FRAMES, generator=torch.Generator().manual_seed(0))
    context = Context(clips=[clip], teacher=captured)
    before = parse_pipeline(sample.before).run(captured, context) if sample.before else captured
    after = parse_pipeline(sample.text).run(before, context)
    changed = list(difflib.unified_diff(_lines(before), _lines(after), n=0, lineterm=""))[2:]
    lines = [f"{line[0]} {line[1:]}" for line in changed if not line.startswith("@@")]
    lines += [f"~ @{name}" for name in _revalued(before, after)]
    if len(lines) > LONGEST:
        lines[LONGEST:] = [f"  ... {len(lines) - LONGEST} lines more"]
    return "\n".join(lines)


def _lines(program: Program) -> list[str]:
    """The lines of modules and nodes, without scopes; numbers that rest on drawn weights are rounded."""
    text = re.sub(r" scope=\S+", "", print_program(program))
    text = re.sub(r"\d\.\d{4,}(e-\d+)?", lambda number: f"{float(number[0]):.2g}", text)
    return [line for line in text.splitlines() if line.startswith(("module", "%", "return"))]


def _revalued(before: Program, after: Program) -> list[str]:
    old, new = before.state_dict(), after.state_dict()
    return [name for name in old if name in new and not torch.equal(old[name], new[name])]
