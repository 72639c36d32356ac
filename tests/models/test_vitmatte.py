"""ViTMatte against the recorded outputs of the original program, and how its checkpoints load."""

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mattecompress import models
from mattecompress.analysis.cost import cost
from mattecompress.capturing.tracing import capture
from mattecompress.errors import MissingExtraError
from mattecompress.models import UnknownModelError, build_model
from mattecompress.models.checkpoints import CheckpointError, load_checkpoint
from mattecompress.models.signatures import SizeError, model_signature, trimap_signature
from mattecompress.models.vitmatte import ViTMatte, base, configuration, padding, small
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program
from tests.models.hashed import assert_recorded, hashed, hashed_input
from tests.models.vit import authors_name, hashed_vit, in_double, random_inputs, tiny_program, tiny_vit


@pytest.fixture(scope="module")
def double() -> ViTMatte:
    return hashed_vit(in_double(small))  # type: ignore[return-value]


def golden_case(spec_data: Path, name: str) -> dict:
    return json.loads((spec_data / "golden_models.json").read_text())[name]["outputs"]


def run_parts(model: ViTMatte, pixels: Tensor) -> tuple[Tensor, Tensor]:
    features = model.backbone(pixels).feature_maps[-1]
    return features, model.decoder(features, pixels)


@pytest.mark.parametrize("size", ["320x416", pytest.param("512x512", marks=pytest.mark.slow)])
@torch.no_grad()
def test_agrees_with_the_original(size: str, double: ViTMatte, spec_data: Path) -> None:
    pixels = hashed_input({"input_key": "input:vit", "input_shape": (1, 4, *map(int, size.split("x")))})
    features, alpha = run_parts(double, pixels)
    recorded = golden_case(spec_data, f"vitmatte/s/{size}")
    assert_recorded(features, recorded["features"])
    assert_recorded(alpha, recorded["phas"])


def whole_case(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    image = (torch.from_numpy(hashed("input:image", 3 * shape[0] * shape[1])) + 1) / 2
    trimap = (torch.from_numpy(hashed("input:trimap", shape[0] * shape[1])) + 1) / 2
    return image.reshape(1, 3, *shape), (3 * trimap).floor().reshape(1, 1, *shape) / 2


@torch.no_grad()
def test_prepares_as_the_original(double: ViTMatte, spec_data: Path) -> None:
    case = golden_case(spec_data, "vitmatte/s/preprocess_100x140")
    assert_recorded(double(*whole_case((100, 140))), case["phas"])


@torch.no_grad()
def test_agrees_in_single_precision(spec_data: Path) -> None:
    case = golden_case(spec_data, "vitmatte/s/preprocess_100x140")
    image, trimap = (value.float() for value in whole_case((100, 140)))
    alpha = hashed_vit(small())(image, trimap).flatten()
    picked = [alpha[j * (alpha.numel() - 1) // 7].item() for j in range(8)]
    assert picked == pytest.approx(case["phas"]["samples"], abs=1e-4)


@pytest.mark.parametrize(("build", "file"), [(small, "s"), pytest.param(base, "b", marks=pytest.mark.slow)])
def test_holds_the_published_tensors(build, file: str, spec_data: Path) -> None:
    with torch.device("meta"):
        tensors = build().state_dict()
    for names, name in (("vitmatte_hf", str), ("vitmatte", authors_name)):
        with (spec_data / f"{names}_{file}_state_dict.tsv").open() as lines:
            listed = {row["key"]: row["shape"] for row in csv.DictReader(lines, delimiter="\t")}
        found = {name(key): "x".join(map(str, value.shape)) for key, value in tensors.items()}
        assert {key: shape for key, shape in found.items() if shape} == {
            key: shape for key, shape in listed.items() if found.get(key)
        }
        assert found.keys() == listed.keys()


def test_checkpoints_load_under_both_names(tmp_path: Path) -> None:
    model, other = tiny_vit(), ViTMatte(configuration(32, 2, 3)).eval()
    tensors = model.state_dict()
    save_file(tensors, tmp_path / "hub.safetensors")
    own = {f"module.{authors_name(name)}": value for name, value in tensors.items()}
    torch.save({"model": own}, tmp_path / "authors.pth")
    for file in ("hub.safetensors", "authors.pth"):
        load_checkpoint(other, tmp_path / file, "vitmatte-small")
        for name, value in other.state_dict().items():
            assert torch.equal(value, tensors[name])
            value.zero_()


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    own = {authors_name(name): value for name, value in tiny_vit().state_dict().items()}
    save_file(own, tmp_path / "vit.safetensors")
    with pytest.raises(CheckpointError, match="holds vitmatte-small weights, not bivm"):
        build_model("bivm", tmp_path / "vit.safetensors")
    with pytest.raises(CheckpointError, match="tensors are missing"):
        build_model("vitmatte-small", tmp_path / "vit.safetensors")


def test_pads_as_its_custom_says() -> None:
    assert padding(96, 160, "official") == padding(96, 160, "huggingface") == (0, 0)
    assert padding(96, 150, "official") == (32, 10)
    assert padding(96, 150, "huggingface") == (0, 10)


@torch.no_grad()
def test_customs_differ_and_known_pixels_are_kept() -> None:
    image, trimap = whole_case((60, 72))
    mattes = {}
    for custom in ("official", "huggingface"):
        for keep in (False, True):
            alpha = tiny_vit(preprocessing=custom, keep_known=keep)(image.float(), trimap.float())
            assert alpha.shape == trimap.shape
            mattes[custom, keep] = alpha
    plain, kept = mattes["official", False], mattes["official", True]
    assert not torch.allclose(plain, mattes["huggingface", False], atol=1e-4)
    assert torch.equal(kept[trimap == 0.5], plain[trimap == 0.5])
    for value in (0, 1):
        assert (kept[trimap == value] == value).all() and (plain[trimap == value] != value).all()


def _one_unknown(trimap: Tensor) -> Tensor:
    trimap = trimap.round()
    trimap[..., 17, 33] = 0.5
    return trimap


TRIMAPS = {
    "all background": torch.zeros_like,
    "all foreground": torch.ones_like,
    "all unknown": lambda trimap: torch.full_like(trimap, 0.5),
    "one unknown": _one_unknown,
}


@pytest.mark.parametrize("kind", TRIMAPS)
@pytest.mark.parametrize("shape", [(33, 47), (64, 96)])
@torch.no_grad()
def test_any_trimap_at_any_size(kind: str, shape: tuple[int, int]) -> None:
    image, trimap = (value.float() for value in whole_case(shape))
    trimap = TRIMAPS[kind](trimap)
    network, other = tiny_vit(), tiny_vit(keep_known=True)
    plain, kept = network(image, trimap), other(image, trimap)
    assert plain.shape == trimap.shape and ((plain >= 0) & (plain <= 1)).all()
    assert torch.equal(kept, torch.where(trimap == 0.5, plain, trimap))
    for pipeline in ("canonicalize", "sdpa{rows=32}"):
        program = parse_pipeline(pipeline).run(capture(other, trimap_signature(shape), "tiny"))
        found = program.run(image=image, trimap=trimap)["alpha"]
        torch.testing.assert_close(found, kept, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [2, pytest.param("n", marks=pytest.mark.slow)])
@torch.no_grad()
def test_captured_for_several_images(batch: int | str) -> None:
    program = tiny_program((60, 72), batch)
    assert parse_program(print_program(program), program.state_dict()) == program
    inputs = random_inputs(program, batch=2)
    found = program.run(**inputs)["alpha"]
    torch.testing.assert_close(found, tiny_vit()(**inputs), rtol=0, atol=1e-6)
    for index in range(2 if batch == "n" else 0):
        alone = program.run(**{name: value[index : index + 1] for name, value in inputs.items()})["alpha"]
        torch.testing.assert_close(alone[0], found[index], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_costs_what_was_counted() -> None:
    """At 512x512, section 6 of the specification, whose count also has 5 for each element of a layer norm."""
    program = capture(small(), trimap_signature((512, 512)), "vitmatte-small")
    scopes = {node.name: program.facts(node).scope for node in program.operations()}
    counted = cost(program)
    decoder = sum(node.macs for node in counted.nodes if scopes[node.name].startswith("decoder"))
    assert decoder / 1e9 == pytest.approx(26.72, rel=0.01)
    assert (counted.totals.macs - decoder) / 1e9 == pytest.approx(33.25, rel=0.01)


def test_blocks_are_regions() -> None:
    program = parse_pipeline("partition-blocks").run(tiny_program())
    regions = {program.facts(node).region for node in program.operations()}
    assert {f"backbone.encoder.layer.{index}" for index in range(3)} <= regions


def test_needs_a_size() -> None:
    with pytest.raises(SizeError, match="add --size"):
        model_signature("vitmatte-small")
    with pytest.raises(SizeError, match="leave --ratio out"):
        model_signature("vitmatte-small", (96, 96), ratio=0.5)
    assert model_signature("vitmatte-base", (96, 64)) == trimap_signature((96, 64))


def test_options_and_extras_that_are_absent_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownModelError, match="vitmatte-small has no option refiner"):
        build_model("vitmatte-small", untrained=True, refiner="deep_guided_filter")
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "mattecompress.models.vitmatte")
    monkeypatch.delattr(models, "vitmatte", raising=False)
    with pytest.raises(MissingExtraError, match=r"mattecompress\[vit\]"):
        build_model("vitmatte-small", untrained=True)
