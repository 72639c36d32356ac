import torch

from mattecompress.analysis.cost import cost
from mattecompress.inspection.error import measure_errors
from mattecompress.inspection.rows import FIELDS, node_rows, select
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program

CLIP = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(2))


def test_a_row_for_each_operation(tiny: Program) -> None:
    quantized = parse_pipeline("mse{weights=4}").run(tiny, Context(clips=[CLIP]))
    rows = node_rows(quantized, measure_errors(quantized, tiny, [CLIP]))
    assert [row["name"] for row in rows] == [node.name for node in quantized.operations()]
    assert all(row.keys() == FIELDS.keys() for row in rows)
    assert sum(row["macs"] for row in rows) == cost(quantized).totals.macs
    layers = select(rows, "op=conv2d and bits<8", "own_sqnr")
    assert [row["bits"] for row in layers] == [4, 4]
    assert layers[0]["own_sqnr"] <= layers[1]["own_sqnr"]
    made = select(rows, "maker=fold-batch-norm", None)
    assert [row["origins"] for row in made] == ["conv2d,stem_1"]


def test_sorting_puts_the_worst_first(tiny: Program) -> None:
    rows = node_rows(tiny)
    assert select(rows, None, "macs")[0]["macs"] == max(row["macs"] for row in rows)
    names = [row["name"] for row in select(rows, None, "name")]
    assert names == sorted(names)


def test_few_bits_are_the_worst(tiny: Program) -> None:
    quantized = parse_pipeline("mse{weights=4 activations=6}").run(tiny, Context(clips=[CLIP]))
    for field in ("bits", "activation_bits"):
        found = [row[field] for row in select(node_rows(quantized), "op=conv2d", field)]
        assert found == sorted(found) and found[0] < found[-1]
