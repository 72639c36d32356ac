import torch
from torch import Tensor, nn

from mattecompress.analysis.memory import live_bytes
from mattecompress.capturing.tracing import capture
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.signature import Signature

PLANE = 4 * 8 * 8


class Net(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(x)
        b = torch.sigmoid(a)
        c = b[:, :, :4]
        d = torch.cat([c, c], 2)
        return d + a


def net() -> Program:
    return capture(Net(), Signature((("x", (1, 1, 8, 8)),), ("y",)), "net")


def test_counts_what_is_alive() -> None:
    found = live_bytes(net())
    assert found == {
        "relu": 2 * PLANE,
        "sigmoid": 2 * PLANE,
        "slice_1": 2 * PLANE,
        "cat": 3 * PLANE,
        "add": 3 * PLANE,
    }


def test_an_input_is_alive_from_the_start(tiny: Program) -> None:
    first, *_ = live_bytes(tiny).values()
    sizes = [4 * 3 * 12 * 16, 4 * 4 * 6 * 8, 4 * 8 * 6 * 8]
    assert first == sum(sizes)


def test_fake_quantized_weights_are_no_activations(tiny: Program) -> None:
    clips = [torch.rand(1, 3, 12, 16)]
    quantized = parse_pipeline("mse").run(tiny, Context(clips=clips))
    found = live_bytes(quantized)
    for name in found:
        if name.endswith("weight_quantizer"):
            place = list(found).index(name)
            assert found[name] <= max(list(found.values())[place - 1 : place + 2])
    assert max(found.values()) < 2 * max(live_bytes(tiny).values())
