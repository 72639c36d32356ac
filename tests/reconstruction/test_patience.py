import torch

from mattecompress.reconstruction.patience import Patience


def test_stops_when_the_error_has_not_fallen_and_goes_back() -> None:
    value = torch.zeros(1)
    errors = {0: 5.0, 10: 3.0, 20: 4.0, 30: 2.0, 40: 2.5, 50: 2.0, 60: 9.0}
    patience = Patience([value], lambda: errors[int(value)], limit=30)
    stops = []
    for step in range(1, 61):
        value.fill_(step)
        if patience.exhausted(step):
            stops.append(step)
    assert stops == [60]
    patience.restore()
    assert value.item() == 30 and patience.least == 2.0


def test_counts_from_the_first_question() -> None:
    patience = Patience([torch.zeros(1)], lambda: 1.0, limit=20)
    assert [step for step in range(400, 430) if patience.exhausted(step)] == list(range(420, 430))
