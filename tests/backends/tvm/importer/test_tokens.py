"""Transformers and their parts against torch, on small nets through the whole path."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from mattecompress import ops
from mattecompress.backends.onnx import Onnx
from mattecompress.backends.tvm.backend import Freestanding
from mattecompress.backends.tvm.compile import lower
from mattecompress.backends.tvm.importer import tokens
from mattecompress.backends.tvm.importer.layout import matching_groups
from mattecompress.backends.tvm.importer.program import supports
from mattecompress.backends.tvm.schedule import rules_used
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from tests.backends.tvm.nets import HOST, Net, PairNet, compiled, largest_difference, program_of
from tests.models.vit import random_inputs, tiny_program
from tests.passes.attention_nets import inclined, mixer

assert ops
matte = torch.ops.matte
few = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
lengths = st.integers(1, 40)


@few
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    inputs=lengths,
    outputs=lengths,
    bias=st.booleans(),
    activated=st.booleans(),
)
def test_linear(shape, inputs, outputs, bias, activated):
    layer = nn.Linear(inputs, outputs, bias=bias)
    net = nn.Sequential(layer, nn.GELU()) if activated else layer
    program = program_of(net, (*shape, inputs))
    assert largest_difference(program) < 1e-5
    assert set(rules_used(lower(program, HOST)).values()) <= {"product", "injective"}


@few
@given(batch=st.integers(1, 3), heads=st.integers(1, 3), rows=lengths, depth=lengths, columns=lengths)
def test_product(batch, heads, rows, depth, columns):
    net = PairNet(lambda self, x, y: x @ y)
    assert (
        largest_difference(program_of(net, (batch, heads, rows, depth), (batch, heads, depth, columns)))
        < 2e-5
    )
    assert largest_difference(program_of(net, (batch, rows, depth), (batch, depth, columns))) < 2e-5


def test_what_moves_a_product_is_a_kernel_of_its_own():
    net = PairNet(lambda self, x, y: (x @ y).reshape(2, 7, 7, 7, 7) + x.reshape(2, 7, 7, 7, 7)[..., :1])
    assert largest_difference(program_of(net, (2, 49, 49), (2, 49, 49))) < 2e-5


@few
@given(shape=st.lists(st.integers(1, 5), min_size=0, max_size=3), length=lengths, affine=st.booleans())
def test_functions_of_rows(shape, length, affine):
    norm = nn.LayerNorm(length, eps=1e-6, elementwise_affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    for function, tolerance in (
        (lambda x: (3 * x).softmax(-1), 1e-6),
        (lambda x: (3 * x).log_softmax(-1), 1e-5),
    ):
        net = Net(lambda self, x, function=function: function(x))
        assert largest_difference(program_of(net, (*shape, length))) < tolerance
    if length > 1:
        assert largest_difference(program_of(norm, (*shape, length))) < 1e-4


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_layer_norm_with_one_of_its_tensors(name):
    net = Net(lambda self, x: F.layer_norm(x, (7,), **{name: self.table.bias}), table=nn.Linear(1, 7))
    assert largest_difference(program_of(net, (2, 5, 7))) < 1e-5


def test_softmax_of_what_is_far_apart():
    program = program_of(Net(lambda self, x: (1e4 * x).softmax(-1)), (5, 12))
    assert largest_difference(program) < 1e-6


@few
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    queries=st.integers(1, 9),
    keys=lengths,
    width=st.sampled_from([1, 4, 10]),
    biased=st.sampled_from(["not", "for each", "for all"]),
    tile=st.integers(2, 5),
)
def test_attention(batch, heads, queries, keys, width, biased, tile):
    shape = {"for each": (heads, queries, keys), "for all": (1, 1, keys), "not": ()}[biased]
    net = PairNet(lambda self, x, y: F.scaled_dot_product_attention(x, y, y * 2 + 1, self.bias))
    net.bias = nn.Parameter(torch.randn(1, *shape)) if shape else None
    program = program_of(net, (batch, heads, queries, width), (batch, heads, keys, width))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "QUERIES", tile)
        assert largest_difference(program) < 1e-5


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_attention_with_a_scale_of_its_own(scale):
    net = PairNet(lambda self, x, y: F.scaled_dot_product_attention(x, y, y, scale=scale))
    assert largest_difference(program_of(net, (1, 2, 9, 5), (1, 2, 7, 5))) < 1e-5


def test_attention_to_values_of_another_width(monkeypatch):
    monkeypatch.setattr(tokens, "QUERIES", 4)
    net = PairNet(lambda self, x, y: F.scaled_dot_product_attention(x, x, y).softmax(-1))
    for width in (3, 8):
        assert largest_difference(program_of(net, (1, 2, 9, 5), (1, 2, 9, width))) < 1e-5


@few
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 30),
    limit=st.integers(1, 30),
    channels=st.integers(1, 20),
    levels=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_routed_tokens(batch, length, limit, channels, levels, seed):
    """Margins of few levels: ties, and tokens that are not chosen."""
    limit = min(limit, length)

    net = PairNet(lambda self, x, y: doubled_where_chosen(x, y, limit))
    program = program_of(net, (batch, length), (batch, length, channels))
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        "x": torch.randint(-levels, levels + 1, (batch, length), generator=generator).float(),
        "y": torch.randn(batch, length, channels, generator=generator),
    }
    assert torch.equal(compiled(program).run(**inputs)["out0"], program.run(**inputs)["out0"])


def doubled_where_chosen(margin: torch.Tensor, x: torch.Tensor, limit: int) -> torch.Tensor:
    places = matte.choose_tokens(margin, limit)
    return matte.scatter_tokens(matte.gather_tokens(x, places) * 2, places, x)


MOVES = {
    "images to tokens and back": lambda x: (x.permute(0, 2, 3, 1) * 2).permute(0, 3, 1, 2),
    "tokens to images and back": lambda x: (x.permute(0, 3, 1, 2) * 2).permute(0, 2, 3, 1) + 1,
    "windows": lambda x: (
        F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 0, 2)).reshape(2, 2, 4, 2, 4, 3).permute(0, 1, 3, 2, 4, 5)
    ),
    "heads": lambda x: x.flatten(2).transpose(1, 2).reshape(2, 36, 3, 1).permute(2, 0, 3, 1).select(0, 1),
    "one axis": lambda x: (x.unsqueeze(1) + x.select(2, -1).unsqueeze(2)).squeeze(0),
    "joined": lambda x: torch.cat(
        [(y := x.permute(0, 2, 3, 1)), y.mean((1, 2), keepdim=True).expand_as(y)], -1
    ),
    "mean": lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
    "cut": lambda x: x.permute(0, 2, 3, 1)[:, 1:4, ::2].exp(),
    "padded image": lambda x: F.pad(x, (1, 2, 0, 3), value=0.5) * 2,
    "power and root": lambda x: (x.pow(2) + 1).sqrt(),
    "both kinds": lambda x: x + (x.permute(0, 2, 3, 1) * 2).permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("name", MOVES)
def test_elements_find_their_places(name):
    assert largest_difference(program_of(Net(lambda self, x: MOVES[name](x)), (2, 3, 6, 6))) < 1e-6


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("taps", [1, 3, 5])
def test_a_convolution_over_channels(taps, dilation):
    layer = nn.Conv1d(1, 1, taps, padding=dilation * (taps // 2), dilation=dilation, bias=False)
    assert largest_difference(program_of(layer, (2, 1, 7))) < 1e-6


def test_an_image_becomes_tokens_without_a_copy():
    net = Net(
        lambda self, x: self.b(self.l(self.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        a=nn.Conv2d(3, 8, 1),
        l=nn.Linear(8, 8),
        b=nn.Conv2d(8, 4, 1),
    )
    assert len(rules_used(lower(program_of(net, (1, 3, 6, 6)), HOST))) == 5


@given(st.lists(st.integers(1, 4), max_size=4), st.randoms(use_true_random=False))
def test_shapes_match_in_groups(sizes, random):
    """However neighbouring axes are joined, both shapes come back, in runs of as many elements."""
    after = []
    for size in sizes:
        if after and random.random() < 0.5:
            after[-1] *= size
        else:
            after.append(size)
    groups = matching_groups(sizes, after)
    assert [size for before, _ in groups for size in before] == sizes
    assert [size for _, own in groups for size in own] == after
    for before, own in groups:
        assert torch.Size(before).numel() == torch.Size(own).numel()


REFUSED = {
    "a softmax must run over the last axis": Net(lambda self, x: x.softmax(1)),
    "a layer norm must run over the last axis": nn.LayerNorm((4, 6)),
    "a product must be of equal batches": Net(lambda self, x: x @ x[:1].transpose(-1, -2)),
    "attention is implemented without": Net(
        lambda self, x: F.scaled_dot_product_attention(x, x, x, is_causal=True)
    ),
    "attention must be of equal batches and heads": Net(
        lambda self, x: F.scaled_dot_product_attention(x[None], x[None, ::2], x[None, ::2], enable_gqa=True)
    ),
    "no kernel for the sum": Net(lambda self, x: torch.einsum("abc,abd->acd", x, x)),
    "gelu is implemented exactly": nn.GELU(approximate="tanh"),
    "powers are implemented for exponent 2": Net(lambda self, x: x.pow(3)),
    "padding is implemented with constants": Net(lambda self, x: F.pad(x, (1, 1), mode="reflect")),
    "a convolution of one dimension": nn.Conv1d(4, 4, 3),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_implemented_says_so(reason):
    program = program_of(REFUSED[reason], (2, 4, 6))
    reasons = [supports(program, node) for node in program.operations()]
    assert any((text or "").startswith(reason) for text in reasons), reasons


def lowered(program: Program, pipeline: str) -> Program:
    return parse_pipeline("lower").run(parse_pipeline(pipeline).run(program))


@pytest.mark.parametrize("margin", [-1e3, -0.2, 0.2, 1e3])
@torch.no_grad()
def test_routing_of_a_batch(margin):
    form = parse_pipeline("route-tokens{limit=7 form=static}").run(mixer(batch=2, blocks=2))
    program = parse_pipeline("lower").run(inclined(form, margin))
    assert largest_difference(program) < 1e-5


def test_exact_attention_with_positions():
    assert largest_difference(lowered(mixer(positioned=True), "rewrite-attention{queries=8}")) < 1e-5
    assert largest_difference(lowered(mixer(positioned=True), "canonicalize")) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("size", [(96, 160), (64, 64)])
@pytest.mark.parametrize(
    "pipeline", ["sdpa", "mematte{limit=99 form=static}", "mematte{limit=7 form=static}"]
)
@torch.no_grad()
def test_a_transformer(pipeline, size):
    whole = parse_pipeline(pipeline).run(tiny_program(size, 2))
    margins = [0.0] if pipeline == "sdpa" else [-0.3, 0.0, 0.3]
    for margin in margins:
        program = parse_pipeline("lower").run(inclined(whole.clone(), margin))
        assert "serial" not in rules_used(lower(program, HOST)).values()
        inputs = random_inputs(program, batch=2)
        found, expected = compiled(program).run(**inputs)["alpha"], whole_answer(whole, margin, inputs)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.slow
@torch.no_grad()
def test_a_transformer_in_integers():
    """Linear layers and convolutions in 8 bits: every bit as the reference, and as ONNX Runtime."""
    program = tiny_program((64, 96))
    seen = random_inputs(program, batch=1)
    quantized = parse_pipeline("sdpa,linear-to-convolution,mse").run(program, Context(clips=[seen]))
    whole = parse_pipeline("lower").run(quantized)
    assert not whole.find(torch.ops.aten.linear.default)
    assert len(whole.find(matte.quantized_conv2d.default)) > 12
    expected = whole.run(**seen)["alpha"]
    assert torch.equal(compiled(whole).run(**seen)["alpha"], expected)
    assert torch.equal(Onnx(verify=False).compile(whole).run(**seen)["alpha"], expected)
    assert (expected - program.run(**seen)["alpha"]).abs().mean() < 5e-3


def whole_answer(program: Program, margin: float, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return inclined(program.clone(), margin).run(**inputs)["alpha"]


@pytest.mark.needs("qemu-aarch64")
@pytest.mark.parametrize("margin", [-1e3, 0.0])
def test_aarch64_gives_the_same_bits(margin, tmp_path):
    form = parse_pipeline("route-tokens{limit=5 form=static}").run(mixer(batch=2))
    program = parse_pipeline("lower").run(inclined(form, margin))
    here, there = (Freestanding.of(program, target).link(tmp_path) for target in ("host", "cortex-a76"))
    x = torch.randn(2, 3, 4, 8)
    assert torch.equal(there.run(x=x)["y"], here.run(x=x)["y"])
    with torch.no_grad():
        torch.testing.assert_close(here.run(x=x)["y"], program.run(x=x)["y"], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.needs("qemu-aarch64")
@pytest.mark.parametrize("pipeline", ["sdpa", "mematte{limit=20 form=static}"])
def test_a_transformer_on_aarch64(pipeline, tmp_path):
    whole = inclined(parse_pipeline(pipeline).run(tiny_program((64, 64))), 0.0)
    program = parse_pipeline("lower").run(whole)
    inputs = random_inputs(program)
    found = Freestanding.of(program, "cortex-a76").link(tmp_path).run(**inputs)["alpha"]
    with torch.no_grad():
        torch.testing.assert_close(found, whole.run(**inputs)["alpha"], rtol=0, atol=1e-3)
