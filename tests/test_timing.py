from mattecompress.timing import time_in_turn


def test_runs_in_turn_after_one_warm_up() -> None:
    calls: list[str] = []
    works = {name: lambda name=name: calls.append(name) for name in "abc"}
    done: list[tuple[int, int]] = []
    times = time_in_turn(works, 2, lambda *progress: done.append(progress))
    assert calls == list("abc" * 3)
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2, "c": 2}
    assert done == [(1, 2), (2, 2)]
