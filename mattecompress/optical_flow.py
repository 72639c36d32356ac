"""Motion between frames, by OpenCV's dense inverse search (DIS) or by RAFT."""

import itertools

import torch
from torch import Tensor

from mattecompress.data.frames import to_bytes
from mattecompress.errors import MissingExtraError
from mattecompress.models.raft import Raft


def dis_flow(frames: Tensor) -> Tensor:
    """Flow (T-1,2,H,W) in pixels, x first, from each frame of (T,3,H,W) in 0..1 to the one before.

    Raises:
        MissingExtraError: OpenCV is not installed.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise MissingExtraError("opencv-python-headless", "flow") from error
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    pictures = [
        cv2.cvtColor(to_bytes(frame).permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2GRAY)
        for frame in frames
    ]
    flows = [
        torch.from_numpy(search.calc(here, before, None)).permute(2, 0, 1)
        for before, here in itertools.pairwise(pictures)
    ]
    return torch.stack(flows) if flows else frames.new_zeros((0, 2, *frames.shape[-2:]))


def raft_flow(frames: Tensor, network: Raft) -> Tensor:
    """As `dis_flow`, by `network`, pair by pair: what it compares takes (H W / 64)^2 floats."""
    flows = [network(here, before) for before, here in itertools.pairwise(frames.split(1))]
    return torch.cat(flows) if flows else frames.new_zeros((0, 2, *frames.shape[-2:]))
