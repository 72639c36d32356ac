import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mattecompress.capturing.tracing import capture
from mattecompress.errors import MissingExtraError
from mattecompress.measuring.sensitivity import PREPARE, Cell, Scan, ScanError, Scanner, choose, conv2d
from mattecompress.measuring.sensitivity_plot import plot_scan
from mattecompress.options import OptionError
from mattecompress.passes.quantize import quantizer_of
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.running.stream import Stream
from mattecompress.signature import Signature
from tests.reconstruction.nets import FedBack, Trimapped, captured, clips_for


def clips() -> list[Tensor]:
    return clips_for(FedBack, clips=1)


@pytest.fixture(scope="module")
def net() -> Program:
    """With a state, and a layer that is used twice."""
    return captured(FedBack)


@pytest.fixture(scope="module")
def scanner(net: Program) -> Scanner:
    return Scanner(net, clips())


@pytest.fixture(scope="module")
def scan(scanner: Scanner) -> Scan:
    return scanner.scan(["w2a8", "w4a8", "w8a8"])


def error_by_rules(net: Program, rules: str) -> float:
    """The long way: a pipeline for each cell."""
    text = f"{PREPARE},quantize{{first=none rules=[*:float,{rules}]}}"
    program = parse_pipeline(text).run(net, Context(clips=clips()))
    pairs = [
        (found["pha"] - expected["pha"]).square().mean()
        for found, expected in zip(
            Stream(program).over(clips()[0]), Stream(net).over(clips()[0]), strict=True
        )
    ]
    return float(torch.stack(pairs).mean())


def test_one_region_at_a_time(net: Program, scan: Scan) -> None:
    assert [cell.region for cell in scan.cells[:3]] == ["block.0", "block.1", "block.2"]
    for cell in scan.cells:
        assert cell.error == pytest.approx(error_by_rules(net, f"{cell.region}:{cell.precision}"), rel=1e-3)
    by_precision = {
        precision: sum(cell.error for cell in scan.cells if cell.precision == precision)
        for precision in ("w2a8", "w4a8", "w8a8")
    }
    assert by_precision["w2a8"] > by_precision["w4a8"] > by_precision["w8a8"] > 0


def test_a_clip_by_the_names_of_its_inputs() -> None:
    program, (clip,) = captured(Trimapped), clips_for(Trimapped, clips=1)
    backwards = {name: clip[name] for name in ("trimap", "image")}
    (expected,) = Scanner(program, [backwards]).expected
    for index, alpha in enumerate(expected):
        frame = {name: value[index : index + 1] for name, value in backwards.items()}
        assert torch.equal(alpha, program.run(**frame)["alpha"][0])


def test_bytes_are_those_that_lowering_stores(tiny: Program) -> None:
    fed = [torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(5))]
    scan = Scanner(tiny, fed).scan(["w3a8", "w8a8"])
    for bits, precision in ((3, "w3a8"), (8, "w8a8")):
        text = f"{PREPARE},quantize{{weights={bits} first=none}},lower"
        lowered = parse_pipeline(text).run(tiny, Context(clips=fed)).state_dict()
        stored = sum(value.nbytes for name, value in lowered.items() if name.endswith("weight_codes"))
        assert sum(cell.weight_bytes for cell in scan.cells if cell.precision == precision) == stored


def test_choices_save_bytes_where_they_cost_least() -> None:
    cells = [
        Cell(region, precision, error, size)
        for region, errors in {"a": (9.0, 1.0), "b": (2.0, 1.5), "c": (1.0, 3.0)}.items()
        for precision, error, size in zip(("w4a8", "w8a8"), errors, (5, 10), strict=True)
    ]
    assert [tuple(choice.precisions.values()) for choice in choose(cells)] == [
        ("w8a8", "w8a8", "w4a8"),
        ("w8a8", "w4a8", "w4a8"),
        ("w4a8", "w4a8", "w4a8"),
    ]
    assert [(choice.weight_bytes, choice.error) for choice in choose(cells)] == [
        (25, 3.5),
        (20, 4.0),
        (15, 12.0),
    ]


def test_the_rules_can_be_pasted(net: Program, scanner: Scanner, scan: Scan) -> None:
    choice = scan.choices[1]
    assert len(set(choice.precisions.values())) == 2
    program = parse_pipeline(choice.pipeline).run(net, Context(clips=clips()))
    found = {
        program.facts(node).region: str(program.facts(node).precision)
        for node in program.find(conv2d)
        if quantizer_of(program, node.args[1])
    }
    assert found == choice.precisions
    assert scanner.measure(choice) == pytest.approx(scanner.error(program), rel=1e-6)


def test_chooses_within_a_budget(scan: Scan) -> None:
    sizes = [choice.weight_bytes for choice in scan.choices]
    assert sizes == sorted(sizes, reverse=True) and len(scan.choices) == 5
    assert scan.within(1.0) == scan.choices[0]
    assert scan.within(sizes[-1] / 2**20) == scan.choices[-1]
    assert sizes[-1] < scan.within(None).weight_bytes < sizes[0]
    with pytest.raises(ScanError, match="budget 1e-06 MiB: the smallest choice has 0.000415 MiB"):
        scan.within(1e-6)


def test_refuses(net: Program, scanner: Scanner) -> None:
    quantized = parse_pipeline(f"{PREPARE},quantize").run(net, Context(clips=clips()))
    with pytest.raises(ScanError, match="fedback is trainable: scan the float program"):
        Scanner(quantized, clips())
    with pytest.raises(ScanError, match="give two or more, such as w4a8,w8a8"):
        scanner.scan(["w4a8", "w4a8"])
    with pytest.raises(ScanError, match="precision 'four': expected such as w4a8"):
        scanner.scan(["four", "w8a8"])
    with pytest.raises(OptionError, match="a quantizer has 2 to 8 bits"):
        scanner.scan(["w1a8", "w8a8"])


def test_refuses_what_has_no_convolution_of_its_own() -> None:
    signature = Signature((("src", (1, 3, 16, 24)),), ("pha",))
    program = capture(torch.nn.AvgPool2d(2), signature, "pool")
    scanner = Scanner(program, [torch.rand(2, 3, 16, 24)])
    with pytest.raises(ScanError, match="pool: there is no convolution to quantize"):
        scanner.scan(["w4a8", "w8a8"])


def test_draws_a_picture(scan: Scan, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    plot_scan(scan, [("chosen", 100, 1e-3)], tmp_path / "scan.png")
    assert (tmp_path / "scan.png").read_bytes()[:4] == b"\x89PNG"


def test_names_the_extra_for_pictures(scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = builtins.__import__

    def absent(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return known(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtraError, match=r"pip install 'mattecompress\[plot\]'"):
        plot_scan(scan, [], tmp_path / "scan.png")
    assert not list(tmp_path.iterdir())


def test_json(scan: Scan) -> None:
    document = json.loads(json.dumps(scan.as_json()))
    assert len(document["cells"]) == 12
    assert document["choices"][0]["pipeline"].startswith(
        "canonicalize,fold-batch-norm,partition-blocks,quantize{"
    )
