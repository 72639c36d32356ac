"""MEMatte against the recorded outputs of the original program, and how its checkpoints load."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mattecompress.models.checkpoints import load_checkpoint
from mattecompress.models.mematte import MEMatte, base, small
from mattecompress.models.vitmatte import configuration
from mattecompress.modules.routed_attention import RoutedAttention
from mattecompress.modules.token_router import TokenRouter
from tests.models.hashed import assert_recorded, hashed_input
from tests.models.vit import authors_name, hashed_vit, in_double, tiny_mematte

PIXELS = {"input_key": "input:vit", "input_shape": (1, 4, 320, 416)}


@pytest.fixture(scope="module")
def double() -> MEMatte:
    return hashed_vit(in_double(small))  # type: ignore[return-value]


def set_routing(model: MEMatte, **options: Any) -> None:
    for part in model.modules():
        if isinstance(part, RoutedAttention):
            part.config = type(part.config)(**{**vars(part.config), **options})


def routed(model: MEMatte, pixels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Features, alpha, and what each router said."""
    said: list[Tensor] = []
    hooks = [
        part.register_forward_hook(lambda module, inputs, output: said.append(output))
        for part in model.modules()
        if isinstance(part, TokenRouter)
    ]
    features = model.backbone(pixels).feature_maps[-1]
    for hook in hooks:
        hook.remove()
    return features, model.decoder(features, pixels), said


@pytest.mark.parametrize("form", ["dynamic", "static"])
@pytest.mark.parametrize("limit", [18500, 64])
@torch.no_grad()
def test_agrees_with_the_original(limit: int, form: str, double: MEMatte, spec_data: Path) -> None:
    """Without and with an active limit; one router chooses no token."""
    case = json.loads((spec_data / "golden_models.json").read_text())[f"mematte/s/320x416/cap{limit}"]
    set_routing(double, limit=limit, form=form)
    features, alpha, said = routed(double, hashed_input(PIXELS))
    assert_recorded(features, case["outputs"]["features"])
    assert_recorded(alpha, case["outputs"]["phas"])
    for scores, record in zip(said, case["router_logprob"], strict=True):
        assert_recorded(scores, record)
    counts = [min(limit, int((scores[..., 0] > scores[..., 1]).sum())) for scores in said]
    assert counts == case["attention_token_counts"]


@torch.no_grad()
def test_agrees_in_single_precision(spec_data: Path) -> None:
    case = json.loads((spec_data / "golden_models.json").read_text())["mematte/s/320x416/cap18500"]
    _, alpha, said = routed(hashed_vit(small()), hashed_input(PIXELS).float())
    assert [int((scores[..., 0] > scores[..., 1]).sum()) for scores in said] == case["attention_token_counts"]
    flat = alpha.flatten()
    picked = [flat[j * (flat.numel() - 1) // 7].item() for j in range(8)]
    assert picked == pytest.approx(case["outputs"]["phas"]["samples"], abs=1e-4)


@pytest.mark.parametrize(("build", "file"), [(small, "s"), (base, "b")])
def test_holds_the_published_tensors(build, file: str, spec_data: Path) -> None:
    with torch.device("meta"):
        tensors = build().state_dict()
    with (spec_data / f"mematte_{file}_state_dict.tsv").open() as lines:
        listed = {row["key"]: row["shape"] for row in csv.DictReader(lines, delimiter="\t")}
    assert {
        authors_name(name): "x".join(map(str, value.shape)) or "scalar" for name, value in tensors.items()
    } == listed


@pytest.mark.parametrize("teacher", [False, True])
def test_checkpoints_load_with_and_without_a_teacher(teacher: bool, tmp_path: Path) -> None:
    model, other = tiny_mematte(), MEMatte(configuration(32, 2, 3)).eval()
    tensors = {authors_name(name): value for name, value in model.state_dict().items()}
    if teacher:
        tensors |= {
            f"teacher_{name}": value for name, value in tensors.items() if name.startswith("backbone")
        }
        tensors["teacher_backbone.blocks.2.attn.rel_pos_h"] = torch.rand(63, 16)
    torch.save({"model": tensors}, tmp_path / "mematte.pth")
    load_checkpoint(other, tmp_path / "mematte.pth", "mematte-small")
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other() -> None:
    model = tiny_mematte()
    pixels = torch.rand(2, 4, 96, 160)
    for form in ("dynamic", "static"):
        set_routing(model, form=form, limit=40)
        together, _, said = routed(model, pixels)
        counts = (said[0][..., 0] > said[0][..., 1]).sum((1, 2)).tolist()
        assert len(set(counts)) == 2 and min(counts) > 0
        for index in range(2):
            alone, _, _ = routed(model, pixels[index : index + 1])
            torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-5)
