import torch
import torch.nn.functional as F

from mattecompress.reconstruction.unrolled import FlowTerm, Piece, sequence_loss, warp

TERM = FlowTerm(0.05)


def picture() -> torch.Tensor:
    return torch.rand(2, 1, 6, 9, generator=torch.Generator().manual_seed(0))


def test_no_flow_is_the_identity() -> None:
    torch.testing.assert_close(warp(picture(), torch.zeros(2, 2, 6, 9)), picture(), rtol=0, atol=1e-6)


def test_flow_is_in_pixels_x_first_and_borders_repeat() -> None:
    flow = torch.zeros(2, 2, 6, 9)
    flow[:, 0], flow[:, 1] = 2, -1
    padded = F.pad(picture(), (0, 2, 1, 0), mode="replicate")
    torch.testing.assert_close(warp(picture(), flow), padded[:, :, :6, 2:], rtol=0, atol=1e-6)


def test_what_moves_with_the_flow_costs_nothing() -> None:
    frames = torch.zeros(2, 1, 6, 9)
    frames[0, :, 2, 3] = frames[1, :, 2, 5] = 1
    flow = torch.zeros(1, 2, 6, 9)
    flow[:, 0] = -2
    piece = Piece([], {}, frames, flow)
    assert sequence_loss(frames, piece, TERM).item() < 1e-7
    still = Piece([], {}, frames, torch.zeros(1, 2, 6, 9))
    torch.testing.assert_close(sequence_loss(frames, still, TERM), torch.tensor(0.05 * 2 / 54))
    torch.testing.assert_close(sequence_loss(frames + 0.5, Piece([], {}, frames), TERM), torch.tensor(0.25))


def test_an_error_may_stay_and_what_is_aimed_at_may_change() -> None:
    aim, still = picture(), torch.zeros(1, 2, 6, 9)
    term = FlowTerm(0.05, "error")
    assert sequence_loss(aim, Piece([], {}, aim, still), TERM).item() > 0.01
    assert sequence_loss(aim, Piece([], {}, aim, still), term).item() == 0
    torch.testing.assert_close(sequence_loss(aim + 0.5, Piece([], {}, aim, still), term), torch.tensor(0.25))
    worse = aim + torch.tensor([0.5, 0.3]).view(2, 1, 1, 1)
    expected = torch.tensor((0.25 + 0.09) / 2 + 0.05 * 0.2)
    torch.testing.assert_close(sequence_loss(worse, Piece([], {}, aim, still), term), expected)
