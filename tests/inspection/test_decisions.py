from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mattecompress.inspection.decisions import Decision, Decisions, NoDecisionError, record_decisions
from mattecompress.inspection.page import Version, write_page
from mattecompress.inspection.page_pictures import picture_decisions, picture_frames
from mattecompress.inspection.rows import node_rows
from mattecompress.modules.routed_attention import RoutedAttention, RoutedAttentionConfig
from mattecompress.modules.spatial_mask import SpatialMask, SpatialMaskConfig
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from tests.inspection.browser import Tab
from tests.inspection.choosing import HEIGHT, WIDTH, Masked, Routed, program_of

CLIP = torch.zeros(2, 3, HEIGHT, WIDTH)
CLIP[1, :, 2:5, 3:9] = 1


NOISE = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(5)) * 8 - 4


@pytest.fixture(scope="module")
def masked() -> Program:
    torch.manual_seed(0)
    return program_of(Masked())


@pytest.fixture(scope="module")
def routed() -> Program:
    torch.manual_seed(2)
    return program_of(Routed())


def test_a_mask_by_hand(masked: Program) -> None:
    found = record_decisions(masked, CLIP)
    (decision,) = found.decisions
    expected = (
        torch.cat([SpatialMask(SpatialMaskConfig())(frame[None, :1, ::2, ::2])[0] for frame in CLIP]) != 0
    )
    assert torch.equal(decision.maps, expected) and expected[1].any() and not expected[0].any()
    assert decision.kind == "mask" and decision.densities == [0.0, expected[1].double().mean()]
    assert torch.equal(found.frames, CLIP)


def test_nodes_have_the_density_of_the_mask_at_their_size(masked: Program) -> None:
    found = record_decisions(masked, CLIP)
    wide = F.interpolate(found.decisions[0].maps[:, None].float(), scale_factor=2, mode="bilinear") != 0
    (convolution,) = masked.find(torch.ops.aten.conv2d.default)
    assert found.densities[convolution.name] == pytest.approx(float(wide.double().mean()))
    assert found.densities[convolution.name] > found.decisions[0].density
    rows = {row["name"]: row["density"] for row in node_rows(masked, densities=found.densities)}
    assert {name for name, density in rows.items() if density is not None} == {*found.densities}


def test_a_lowered_program_chooses_the_same(masked: Program) -> None:
    lowered = parse_pipeline("lower").run(masked)
    before, after = record_decisions(masked, CLIP), record_decisions(lowered, CLIP)
    assert torch.equal(before.decisions[0].maps, after.decisions[0].maps)
    computed = [density for name, density in after.densities.items() if name != after.decisions[0].node]
    assert computed and all(density >= max(before.densities.values()) for density in computed)


def test_a_router_sends_what_attention_takes(routed: Program) -> None:
    found = record_decisions(routed, NOISE)
    (decision,) = found.decisions
    assert 0 < decision.density < 1
    assert decision.kind == "router" and decision.maps.shape == (2, HEIGHT, WIDTH)
    (call,) = routed.called_modules(RoutedAttention)
    assert found.densities == {call.name: decision.density}
    net = Routed().eval()
    net.load_state_dict(routed.state_dict())
    for frame, chosen in zip(NOISE, decision.maps, strict=True):
        with torch.no_grad():
            tokens = net.widen(frame[None].permute(0, 2, 3, 1))
            attended = (net(frame[None]) != tokens).any(-1)[0]
        assert torch.equal(attended, chosen)
        assert int(chosen.sum()) <= 40


def test_a_lowered_router_sends_the_same() -> None:
    torch.manual_seed(2)
    static = program_of(Routed("static"))
    lowered = parse_pipeline("lower-tokens").run(static)
    before, after = (record_decisions(program, NOISE).decisions[0] for program in (static, lowered))
    assert torch.equal(before.maps, after.maps) and 0 < before.density < 1
    assert lowered.find(torch.ops.matte.choose_tokens.default)[0].name == after.node


def test_no_more_than_the_limit_attend() -> None:
    scores = torch.stack([torch.rand(1, 4, 5) + 1, torch.zeros(1, 4, 5)], -1)
    module = RoutedAttention(RoutedAttentionConfig(8, 2, limit=3))
    chosen = module.chosen(scores)
    assert int(chosen.sum()) == 3 and set(scores[..., 0][chosen].tolist()) == {
        *scores[..., 0].flatten().topk(3)[0].tolist()
    }


def test_nothing_to_choose(tiny: Program) -> None:
    with pytest.raises(NoDecisionError, match="tiny has neither masks nor routers"):
        record_decisions(tiny, torch.zeros(1, 3, 12, 16))


def test_pictures(masked: Program) -> None:
    pytest.importorskip("PIL")
    found = record_decisions(masked, CLIP)
    assert all(address.startswith("data:image/png;base64,") for address in picture_frames(found))
    (shown,) = picture_decisions(found)
    assert len(shown["maps"]) == 2 and (shown["across"], shown["down"]) == (1, 1)
    assert shown["density"] == found.decisions[0].density


@pytest.mark.parametrize(
    ("height", "width", "grid"), [(96, 160, (6, 10)), (500, 512, (32, 32)), (90, 200, (6, 14))]
)
def test_positions_beyond_the_frame_are_square(height: int, width: int, grid: tuple[int, int]) -> None:
    pytest.importorskip("PIL")
    decision = Decision("router", "router", "", torch.zeros(1, *grid, dtype=torch.bool))
    (cover,) = picture_decisions(Decisions(torch.zeros(1, 3, height, width), (decision,), {}))
    sides = cover["across"] * width / grid[1], cover["down"] * height / grid[0]
    assert sides == pytest.approx((16, 16))


def test_the_page_draws_them(tab: Tab, masked: Program, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    found = record_decisions(masked, CLIP)
    path = tmp_path / "page.html"
    write_page(path, [Version("masked", masked, node_rows(masked, densities=found.densities), found)])
    tab.open(path.as_uri())
    node = found.decisions[0].node
    drawn = "[...document.querySelectorAll('#choices img')].map((image) => image.naturalWidth)"
    tab.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
    assert tab.evaluate(drawn) == [WIDTH, WIDTH // 2]
    density = "document.querySelector('[data-density]').textContent"
    assert tab.evaluate(density) == "0.0 %"
    tab.evaluate("frame.value = 1, frame.dispatchEvent(new Event('input'))")
    assert tab.evaluate(density) == f"{100 * found.decisions[0].densities[1]:.1f} %"
    tab.evaluate("document.querySelector('.choice').click()")
    assert tab.evaluate("location.hash") == f"#v1-{node}"
    tab.evaluate("overlay.value = 'density', overlay.dispatchEvent(new Event('change'))")
    heated = "[...document.querySelectorAll('.box')].filter((box) => parseFloat(box.style.getPropertyValue('--share')))"
    assert tab.evaluate(f"{heated}.length") == 1
