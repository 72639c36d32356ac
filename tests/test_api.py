from pathlib import Path

import pytest
import torch
from torch import nn

import mattecompress as mc
import mattecompress.capturing.tracing
from mattecompress.signature import Signature


def test_verbs_follow_one_another(tiny_net: nn.Module, tiny_shapes: Signature, tmp_path: Path) -> None:
    program = mc.capture(tiny_net, tiny_shapes)
    folded = mc.opt(program, "fold-batch-norm,partition-blocks")
    mc.save(folded, tmp_path / "tiny.mcg")
    again = mc.load(tmp_path / "tiny.mcg")
    assert mc.inspect(again).totals.parameters == sum(p.numel() for p in again.graph_module.parameters())
    artifact = mc.compile(again, "reference")
    inputs = {"src": torch.rand(1, 3, 12, 16), "r1i": torch.rand(1, 4, 6, 8)}
    assert torch.equal(artifact.run(**inputs)["pha"], folded.run(**inputs)["pha"])
    assert callable(mc.capture)


def test_paths_may_be_strings(tiny_net: nn.Module, tiny_shapes: Signature, tmp_path: Path) -> None:
    program = mc.capture(tiny_net, tiny_shapes)
    mc.save(program, f"{tmp_path}/tiny.mcg")
    again = mc.load(f"{tmp_path}/tiny.mcg")
    assert mc.compile(again).save(f"{tmp_path}/made") == (tmp_path / "made" / f"{program.name}.mcg",)
    assert again == program
    quantize = "fold-batch-norm,partition-blocks,quantize,reconstruct-blocks{method=qdrop iterations=2}"
    mc.opt(again, quantize, [torch.rand(2, 3, 12, 16)], folder=f"{tmp_path}/work")
    assert any((tmp_path / "work").iterdir())


def test_a_module_needs_a_signature(tiny_net: nn.Module) -> None:
    with pytest.raises(TypeError, match="a module needs a signature"):
        mc.capture(tiny_net)
