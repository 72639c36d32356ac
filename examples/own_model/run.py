"""Anybody's network: captured, cut into blocks at its narrow points, quantized, run in ONNX Runtime.

    python examples/own_model/run.py --folder mine/

Leaves in the folder: mine.mcg and mine.onnx.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mattecompress as mc
from mattecompress.analysis.regions import regions_in_order
from mattecompress.data.clips import procedural_clip
from mattecompress.program import StatePair
from mattecompress.signature import Signature

SIZE = (64, 96)
PIPELINE = "canonicalize,fold-batch-norm,partition-blocks,quantize{weights=8 activations=8}"


def layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class SmallMatting(nn.Module):
    """Frame and state in; alpha and state out. Nothing in it knows mattecompress."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(layer(3, 16, 2), layer(16, 32, 2), layer(32, 32))
        self.decoder = nn.Sequential(layer(32, 16), layer(16, 16))
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, frame: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = 0.5 * (self.encoder(frame) + state)
        alpha = torch.sigmoid(self.head(self.decoder(state)))
        return F.interpolate(alpha, scale_factor=4, mode="bilinear", align_corners=False), state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("mine"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    height, width = SIZE
    inputs = (("frame", (1, 3, height, width)), ("state", (1, 32, height // 4, width // 4)))
    signature = Signature(inputs, ("alpha", "next"), (StatePair("state", "next"),))
    network = mc.capture(SmallMatting(), signature)
    clip = procedural_clip(7, 0, 4, *SIZE).frames
    quantized = mc.opt(network, PIPELINE, [clip])
    mc.save(quantized, folder / "mine.mcg")
    for region, nodes in regions_in_order(quantized).items():
        print(f"{region}: {len(nodes)} nodes")

    artifact = mc.compile(quantized, "onnx")
    artifact.save(folder)
    state = torch.zeros(1, 32, height // 4, width // 4)
    expected = mc.compile(network).run(frame=clip[:1], state=state)["alpha"]
    got = artifact.run(frame=clip[:1], state=state)["alpha"]
    sizes = [mc.inspect(program).totals.size_mib * 1024 for program in (network, quantized)]
    print(f"weights: {sizes[0]:.1f} KiB, then {sizes[1]:.1f} KiB")
    print(f"8 bits in ONNX Runtime move alpha by {float((got - expected).abs().max()):.1e} at most")


if __name__ == "__main__":
    main()
