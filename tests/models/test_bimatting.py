"""BiMatting against the recorded outputs of the original program, BiVM against BiMatting, and both as programs."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mattecompress.analysis.cost import Cost, cost
from mattecompress.analysis.regions import regions_in_order
from mattecompress.capturing.tracing import capture
from mattecompress.models import build_model
from mattecompress.models.bimatting import BiMatting, BiVM, bimatting, bimatting_float, bivm, bivm_float
from mattecompress.models.checkpoints import AbsentPart, find_model
from mattecompress.models.rvm import RefinerError
from mattecompress.models.signatures import fixed_options, rvm_signature
from mattecompress.modules.binary import BinaryConv2d
from mattecompress.modules.elastic_shortcut import ElasticShortcut
from mattecompress.modules.spatial_mask import SpatialMask
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Level, Program
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program
from tests.models.hashed import assert_all_recorded, hashed_double, hashed_input

STATE_CHANNELS = (16, 20, 40, 64)
MATTES = ("fgr", "pha", "fgr_s", "pha_s")
OUTPUTS = (*MATTES, "r1", "r2", "r3", "r4")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def network() -> BiMatting:
    torch.manual_seed(0)
    return build_model("bimatting", untrained=True)  # type: ignore[return-value]


def captured(network: nn.Module, name: str, size: tuple[int, int] | None = None) -> Program:
    return capture(network, rvm_signature(name, size), name, fixed_options(name))


@pytest.fixture(scope="module")
def program(network: BiMatting) -> Program:
    return captured(network, "bimatting", (288, 512))


@pytest.fixture(scope="module")
def bivm_and_program() -> tuple[BiVM, Program]:
    """With biases and means that a trained network may have."""
    torch.manual_seed(0)
    model = bivm().eval()
    for key, value in model.state_dict().items():
        if key.endswith(("bias", "running_mean")):
            value.normal_(0, 0.2)
    return model, captured(model, "bivm", (32, 48))


def states(height: int, width: int, batch: int = 1) -> list[Tensor]:
    shapes, size = [], (height, width)
    for channels in STATE_CHANNELS:
        size = (-(-size[0] // 2), -(-size[1] // 2))
        shapes.append((batch, channels, *size))
    return [torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize("name", ["bimatting/5d", "bimatting/5d_ds"])
@torch.no_grad()
def test_equals_original(name: str, spec_data: Path) -> None:
    case = json.loads((spec_data / "golden_models.json").read_text())[name]
    model, src = hashed_double(bimatting), hashed_input(case)
    assert_all_recorded(OUTPUTS, model(src, downsample_ratio=case["downsample_ratio"]), case["outputs"])
    if "backbone_features" in case:
        features = [tap.unflatten(0, src.shape[:2]) for tap in model.backbone(src.flatten(0, 1))]
        assert_all_recorded(("f1", "f2", "f3", "f4"), features, case["backbone_features"])


def test_state_dict_is_the_official_one(spec_data: Path) -> None:
    with (spec_data / "bimatting_state_dict.tsv").open() as file:
        expected = [(row["key"], row["shape"]) for row in csv.DictReader(file, delimiter="\t")]
    for model in (bimatting(), bimatting_float()):
        state = model.state_dict()
        found = [(key, "x".join(map(str, value.shape)) or "scalar") for key, value in state.items()]
        assert found == expected
        assert find_model(state) == "bimatting"


@pytest.mark.parametrize("ratio", [1, 0.5])
@torch.no_grad()
def test_batches_and_single_frames_equal_clips(ratio: float) -> None:
    """What the original program cannot do: any batch, and frames without a time axis; odd sizes too."""
    model = hashed_double(bimatting)
    clip = torch.rand(3, 2, 3, 50, 70, dtype=torch.float64)
    whole = model(clip, downsample_ratio=ratio)
    for sample in range(3):
        alone = model(clip[sample : sample + 1], downsample_ratio=ratio)
        for all_of_it, part in zip(whole, alone, strict=True):
            torch.testing.assert_close(all_of_it[sample : sample + 1], part)
    carried: list[Tensor] = []
    for t in range(2):
        *mattes, r1, r2, r3, r4 = model(clip[:, t], *carried, downsample_ratio=ratio)
        carried = [r1, r2, r3, r4]
        for all_of_it, matte in zip(whole, mattes, strict=False):
            torch.testing.assert_close(all_of_it[:, t], matte)
    for last, state in zip(whole[4:], carried, strict=True):
        torch.testing.assert_close(last, state)


@torch.no_grad()
def test_tiny_frames_and_the_segmentation_pass() -> None:
    model = bimatting().eval()
    for size in ((16, 16), (1, 1), (17, 33)):
        fgr, pha, *_ = model(torch.rand(2, 3, *size))
        assert fgr.shape == (2, 3, *size) and pha.isfinite().all()
    logits, *carried = model(torch.rand(1, 2, 3, 32, 48), segmentation_pass=True)
    assert logits.shape == (1, 2, 1, 32, 48) and len(carried) == 4


@pytest.mark.parametrize("form", [(bimatting, bivm), (bimatting_float, bivm_float)])
@torch.no_grad()
def test_bivm_with_fixed_factors_is_bimatting(form, tmp_path: Path) -> None:
    """Bit for bit, loaded from a checkpoint of BiMatting: a = 1, b = 1 at stride 2 and else 0, c = 0."""
    plain, elastic = form[0]().eval(), form[1]().eval()
    save_file(plain.state_dict(), tmp_path / "bimatting.safetensors")
    name = "bivm" if form[1] is bivm else "bivm-32bit"
    loaded = build_model(name, tmp_path / "bimatting.safetensors")
    frames = torch.rand(2, 2, 3, 50, 70)
    for one, other in zip(plain(frames), loaded(frames), strict=True):
        assert torch.equal(one, other)
    elastic.load_state_dict({**elastic.state_dict(), **plain.state_dict()})
    assert not torch.equal(plain(frames)[1], elastic(frames)[1])


def test_bivm_keeps_its_own_factors(tmp_path: Path) -> None:
    model = bivm(seed=5)
    save_file(model.state_dict(), tmp_path / "bivm.safetensors")
    assert find_model(model.state_dict()) == "bivm"
    for key, value in build_model("bivm", tmp_path / "bivm.safetensors").state_dict().items():
        assert torch.equal(value, model.state_dict()[key])


def test_factors_are_drawn_from_the_seed() -> None:
    def factors(model: BiVM) -> dict[str, float]:
        return {name: part.factor.item() for name, part in model.backbone.elastic_shortcuts()}

    drawn = factors(bivm(seed=1))
    layerwise = {name: value for name, value in drawn.items() if name.startswith("feature.")}
    crossing = {name: value for name, value in drawn.items() if name.startswith("joins.")}
    assert set(layerwise.values()) == {1.0} and len(layerwise) == 34
    assert all(0 <= value < 1 for value in crossing.values()) and len(set(crossing.values())) == 10
    assert factors(bivm(seed=1)) == drawn != factors(bivm(seed=2))
    assert set(factors(bivm(init_scale=0)).values()) == {0.0, 1.0}


@pytest.mark.parametrize("build", [bimatting, bimatting_float, bivm, bivm_float])
def test_gradients_reach_every_used_parameter(build) -> None:
    model = build().train()
    outputs = model(torch.rand(2, 3, 48, 64), *states(48, 64, 2))
    sum((output - 0.5).square().sum() for output in outputs).backward()
    unused = ("channel_threshold", "project_seg", "refiner")
    for name, parameter in model.named_parameters():
        assert any(part in name for part in unused) == (parameter.grad is None), name


@torch.no_grad()
def test_twin_has_no_signs() -> None:
    """It follows its input continuously."""
    model = hashed_double(bimatting_float)
    frame = torch.rand(1, 3, 32, 48, dtype=torch.float64)
    features = [model.backbone(x)[3] for x in (frame, frame + 1e-9)]
    assert 0 < (features[0] - features[1]).abs().max() < 1e-3
    assert not [part for part in model.modules() if isinstance(part, BinaryConv2d)]


def assert_computes_the_same(program: Program, network: nn.Module, size: tuple[int, int], batch: int) -> None:
    src, carried = torch.rand(batch, 3, *size), states(*size, batch=batch)
    expected = network(src, *carried, coarse_outputs=False)
    found = program.run(src=src, **{f"r{k}i": state for k, state in enumerate(carried, start=1)})
    assert list(found) == ["fgr", "pha", "r1o", "r2o", "r3o", "r4o"]
    for one, other in zip(found.values(), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@torch.no_grad()
def test_program_of_open_size_computes_the_same(network: BiMatting) -> None:
    program = captured(network, "bimatting")
    assert parse_program(print_program(program), program.state_dict()) == program
    assert parse_pipeline("partition-blocks").run(program).has_regions
    for size in ((64, 96), (16, 16), (48, 32)):
        assert_computes_the_same(program, network, size, batch=2)


def test_program_is_trainable_and_prints_and_parses(program: Program, network: BiMatting) -> None:
    assert program.level is Level.TRAINABLE
    layers = [part for part in network.modules() if isinstance(part, BinaryConv2d)]
    calls = program.called_modules(BinaryConv2d)
    assert len(calls) == len(layers) - 2
    assert {program.facts(call).precision for call in calls} == {BinaryConv2d.precision}
    assert {type(program.module(call)) for call in calls} == {BinaryConv2d}
    assert len(program.called_modules(SpatialMask)) == 1
    assert parse_program(print_program(program), program.state_dict()) == program


def test_regions_are_found(program: Program) -> None:
    regions = list(regions_in_order(parse_pipeline("partition-blocks").run(program)))
    blocks = [f"backbone.feature.{number}" for number in range(18)]
    for place, number in ((4, 0), (8, 1), (15, 3)):
        blocks.insert(place, f"backbone.joins.{number}")
    decoder = ["aspp", *(f"decoder.decode{number}" for number in (4, 3, 2, 1, 0)), "project_mat"]
    assert regions == [*blocks, *decoder]


@torch.no_grad()
def test_bivm_as_a_program(bivm_and_program: tuple[BiVM, Program]) -> None:
    model, program = bivm_and_program
    assert len(program.called_modules(ElasticShortcut)) == 44
    assert_computes_the_same(program, model, (32, 48), batch=1)
    assert parse_pipeline("partition-blocks").run(program).has_regions


@torch.no_grad()
def test_lowers_to_bits(bivm_and_program: tuple[BiVM, Program]) -> None:
    """Every one-bit layer is packed; what differs is four roundings of a batch norm that is folded."""
    _, program = bivm_and_program
    lowered = parse_pipeline("lower{strict=true}").run(program)
    assert lowered.level is Level.LOWERED
    matte = torch.ops.matte
    packed = [
        node
        for target in (matte.binary_conv2d.default, matte.masked_binary_conv2d.default)
        for node in lowered.find(target)
    ]
    assert len(packed) == len(program.called_modules(BinaryConv2d))
    inputs = {node.name: torch.rand(program.facts(node).sizes) for node in program.inputs}
    before, after = program.run(**inputs), lowered.run(**inputs)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def costs(program: Program) -> Cost:
    return cost(program)


def test_costs_what_the_paper_says(costs: Cost) -> None:
    """At 512x288, computed and published in section 8 of the specification.

    Its count of operations met the last projection once, on the coarse matte, where the network calls it twice:
    ours has those 9.44 M more.
    """
    totals = costs.totals
    projection = 16 * 4 * 288 * 512 * 1e-9
    masked = [node for node in costs.nodes if node.masked]
    assert round(totals.binary_macs / 1e6, 2) == 6934.18
    assert round(sum(node.binary_macs for node in masked) / 1e6, 2) == 2982.33
    assert round(sum(node.macs for node in masked) / 1e6, 2) == 339.74
    assert round(totals.macs / 1e6 - projection * 1e3, 2) == 393.45
    assert round(totals.paper_gflops - projection, 3) == 0.577
    assert round(totals.paper_gflops - totals.masked_gflops - projection, 4) == 0.1907
    assert round(totals.masked_gflops, 4) == 0.3863


def test_weighs_what_the_paper_says(costs: Cost) -> None:
    thresholds = 9184 * 32 / 8 / 2**20
    assert costs.totals.model_parameters == 4_265_293
    assert round(costs.totals.paper_size_mib, 3) == 0.685
    assert round(costs.totals.paper_size_mib - thresholds, 3) == 0.650


def test_twin_costs_what_the_paper_says() -> None:
    name = "bimatting-32bit"
    program = captured(build_model(name, untrained=True), name, (288, 512))
    totals, projection = cost(program).totals, 16 * 4 * 288 * 512 * 1e-9
    assert totals.model_parameters == 4_265_293
    assert round(totals.paper_size_mib, 2) == 16.27
    assert round(totals.masked_gflops, 3) == 3.322
    assert round(totals.paper_gflops - totals.masked_gflops - projection, 3) == 4.081


def test_parts_left_out_of_a_checkpoint_still_weigh_one_bit(tmp_path: Path) -> None:
    kept = {key: value for key, value in bimatting().state_dict().items() if not key.startswith("refiner")}
    save_file(kept, tmp_path / "small.safetensors")
    network = build_model("bimatting", tmp_path / "small.safetensors")
    assert isinstance(network.refiner, AbsentPart)
    bits = {part.name: part.bits for part in network.refiner.absent_parameters}
    assert bits["conv.2.weight"] == bits["conv.8.weight"] == 1
    assert bits["conv.12.weight"] == bits["conv.2.channel_threshold"] == 32


def test_refiner_by_name() -> None:
    assert not list(bimatting("fast_guided_filter").refiner.parameters())
    with pytest.raises(RefinerError, match="no refiner is called 'fast'"):
        bimatting("fast")  # type: ignore[arg-type]
