"""Fixtures and markers that every test may use."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.models.rvm import RVM
from mattecompress.models.signatures import rvm_signature
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program, StatePair
from mattecompress.signature import Signature

torch.set_num_threads(1)
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("needs"):
            for executable in mark.args:
                if shutil.which(executable) is None:
                    item.add_marker(pytest.mark.skip(reason=f"{executable} is not on PATH"))


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Lets a test choose how many threads torch may use; behind it there is one again."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real weights and pictures: $MATTECOMPRESS_DATA, or shared/data beside the checkout."""
    folder = Path(os.environ.get("MATTECOMPRESS_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}: set MATTECOMPRESS_DATA")
    return folder


@pytest.fixture(scope="session")
def raft_weights(shared_data: Path) -> Path:
    """The authors' RAFT-small."""
    path = shared_data / "raft" / "raft_small.pth"
    if not path.is_file():
        pytest.skip(f"no RAFT weights: {path} is not there")
    return path


@pytest.fixture(scope="session")
def spec_data(shared_data: Path) -> Path:
    """The folder of golden vectors beside the test data."""
    folder = shared_data.parent / "spec" / "data"
    if not folder.is_dir():
        pytest.skip(f"no golden vectors in {folder}")
    return folder


@pytest.fixture
def golden(request: pytest.FixtureRequest):
    """Compare text with tests/golden/<test path>/<test name>.txt; `--update-golden` rewrites it."""
    folder = ROOT / "tests" / "golden" / request.path.relative_to(ROOT / "tests").with_suffix("")
    path = folder / f"{request.node.name}.txt"

    def check(text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.is_file(), f"no golden file {path.relative_to(ROOT)}: run pytest --update-golden"
        assert text == path.read_text()

    return check


class TinyNet(nn.Module):
    """Every construct that capture normalises: in-place operations, splits, crops, a state, batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(inplace=True)
        )
        self.middle = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.ReLU(inplace=True))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, src: Tensor, state: Tensor) -> list[Tensor]:
        kept, remembered = self.middle(self.stem(src)).split(4, dim=1)
        state = remembered * torch.sigmoid(state) + state
        whole = F.interpolate(
            torch.cat([kept, state], 1), scale_factor=2, mode="bilinear", align_corners=False
        )
        whole = whole[:, :, : src.shape[2], : src.shape[3]]
        foreground, alpha = self.head(whole).split([3, 1], dim=1)
        return [(foreground + src).clamp(0, 1), alpha.clamp(0, 1), state]


@pytest.fixture(scope="session")
def tiny_net() -> TinyNet:
    net = TinyNet().eval()
    generator = torch.Generator().manual_seed(1)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3 + 0.3 * (tensor.ndim == 1))
    return net


def tiny_signature(height: int | str, width: int | str) -> Signature:
    half = ("h", "w") if isinstance(height, str) else (height // 2, int(width) // 2)
    inputs = (("src", (1, 3, height, width)), ("r1i", (1, 4, *half)))
    return Signature(inputs, ("fgr", "pha", "r1o"), (StatePair("r1i", "r1o"),))


@pytest.fixture(scope="session")
def tiny_open(tiny_net: TinyNet) -> Program:
    """A small recurrent program with open sizes."""
    return capture(tiny_net, tiny_signature("2*h", "2*w"), "tiny")


@pytest.fixture(scope="session")
def tiny_shapes() -> Signature:
    """The small program's inputs and outputs at 12x16."""
    return tiny_signature(12, 16)


@pytest.fixture(scope="session")
def tiny(tiny_net: TinyNet, tiny_shapes: Signature) -> Program:
    """The same at 12x16."""
    return capture(tiny_net, tiny_shapes, "tiny")


@pytest.fixture(scope="session")
def rvm_open() -> Program:
    """RVM MobileNetV3 with random weights and open sizes."""
    torch.manual_seed(0)
    return capture(RVM().eval(), rvm_signature("rvm-mobilenetv3"), "rvm-mobilenetv3")


@pytest.fixture(scope="session")
def rvm(rvm_open: Program) -> Program:
    """RVM MobileNetV3 with random weights at 64x96."""
    return parse_pipeline("set-resolution{height=64 width=96},canonicalize").run(rvm_open)
