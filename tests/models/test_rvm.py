"""RVM against the recorded outputs of the original program, in float64 with hashed weights."""

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mattecompress.models.rvm import RVM, RefinerError
from tests.models.hashed import assert_all_recorded, assert_recorded, hashed_double, hashed_input

STATES = ("r1", "r2", "r3", "r4")
CASES = [
    f"rvm/{variant}/{refiner}/{form}"
    for variant in ("mobilenetv3", "resnet50")
    for refiner, forms in (
        ("deep_guided_filter", ("4d", "4d_ds", "5d", "5d_ds")),
        ("fast_guided_filter", ("4d_ds", "5d_ds")),
    )
    for form in forms
]


def hashed_model(variant: str, refiner: str) -> RVM:
    return hashed_double(lambda: RVM(variant, refiner))  # type: ignore[return-value]


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_equals_original(name: str, spec_data: Path) -> None:
    case = json.loads((spec_data / "golden_models.json").read_text())[name]
    _, variant, refiner, _ = name.split("/")
    model = hashed_model(variant, refiner)
    src = hashed_input(case)

    first = model(src, downsample_ratio=case["downsample_ratio"])
    assert_all_recorded(("fgr", "pha", *STATES), first, case["outputs"])

    if "second_step_same_input_with_states" in case:
        second = model(src, *first[2:])
        assert_all_recorded(("fgr", "pha", *STATES), second, case["second_step_same_input_with_states"])
    if "segmentation_pass" in case:
        assert_all_recorded(("seg", *STATES), model(src, segmentation_pass=True), case["segmentation_pass"])
    if "backbone_features" in case:
        features = model.backbone(src)
        assert_all_recorded(("f1", "f2", "f3", "f4"), list(features), case["backbone_features"])
        assert_recorded(model.aspp(features[3]), case["aspp"])


@pytest.mark.parametrize("variant", ["mobilenetv3", "resnet50"])
def test_state_dict_is_the_official_one(variant: str, spec_data: Path) -> None:
    with (spec_data / f"rvm_{variant}_state_dict.tsv").open() as file:
        expected = [(row["key"], row["shape"]) for row in csv.DictReader(file, delimiter="\t")]
    state = RVM(variant).state_dict()
    assert [(key, "x".join(map(str, value.shape)) or "scalar") for key, value in state.items()] == expected


@torch.no_grad()
def test_chunk_equals_frame_by_frame() -> None:
    model = hashed_model("mobilenetv3", "deep_guided_filter")
    clip = torch.rand(2, 3, 3, 50, 70, dtype=torch.float64)
    chunk = model(clip, downsample_ratio=0.5)
    states: list[Tensor] = []
    for t in range(3):
        fgr, pha, *states = model(clip[:, t], *states, downsample_ratio=0.5)
        torch.testing.assert_close(chunk[0][:, t], fgr)
        torch.testing.assert_close(chunk[1][:, t], pha)
    for ours, theirs in zip(chunk[2:], states, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("ratio", [1, 0.25])
@pytest.mark.parametrize("first_frame", [True, False])
@torch.no_grad()
def test_exports(ratio: float, first_frame: bool) -> None:
    model = RVM().eval()
    src = torch.rand(1, 3, 128, 128)
    states = [None] * 4 if first_frame else model(src, downsample_ratio=ratio)[2:]
    program = torch.export.export(model, (src, *states), {"downsample_ratio": ratio})
    called = [node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert called
    assert not [op for op in called if op._schema.is_mutable]
    for ours, theirs in zip(
        program.module()(src, *states, downsample_ratio=ratio),
        model(src, *states, downsample_ratio=ratio),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_an_unknown_refiner_is_named() -> None:
    with pytest.raises(RefinerError, match="no refiner is called 'fast'"):
        RVM("mobilenetv3", "fast")  # type: ignore[arg-type]
