from mattecompress.measuring.benchmark import Comparison, compare


def test_compares_by_medians() -> None:
    comparison = compare(lambda: None, lambda: sum(range(100000)), "slow", threads=1, runs=3)
    assert comparison.ours_ms < comparison.peer_ms
    assert comparison.as_json()["speedup"] > 1


def test_document() -> None:
    document = Comparison(1, 20, 10.0, "onnxruntime", 25.0).as_json()
    assert document == {
        "threads": 1,
        "runs": 20,
        "ours_ms": 10.0,
        "peer": {"name": "onnxruntime", "ms": 25.0},
        "speedup": 2.5,
    }
