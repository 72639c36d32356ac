from mattecompress.measuring.benchmark import Comparison, compare, time_in_turn


def test_runs_in_turn_after_one_warm_up() -> None:
    calls: list[str] = []
    works = {name: lambda name=name: calls.append(name) for name in "abc"}
    done: list[tuple[int, int]] = []
    times = time_in_turn(works, 2, lambda *progress: done.append(progress))
    assert calls == list("abc" * 3)
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2, "c": 2}
    assert done == [(1, 2), (2, 2)]


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
