"""What quantization does to a clip: the error of each region, and the numbers that global affine calibration found.

Source: figures 5 to 7 of PTQ4VM show errors over time and the distributions of gamma and beta.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from mattecompress.analysis.convolutions import bias_of
from mattecompress.analysis.regions import regions_in_order
from mattecompress.inspection.error import measure_errors
from mattecompress.interface import Clip
from mattecompress.modules.quantizer import FakeQuantize
from mattecompress.program import Program
from mattecompress.reconstruction.affine import Layer, layers_of

CALIBRATION = "calibrate-affine"


@dataclass(frozen=True)
class AffineNumbers:
    """What each layer's output was multiplied by, and what was added to it; of channels with their own, the means."""

    gamma: dict[str, float]
    beta: dict[str, float]


def region_ratios(program: Program, reference: Program, clips: Sequence[Clip]) -> dict[str, float | None]:
    """Signal to noise of the last value of each region against its counterpart, in dB; None where both are equal.

    Raises:
        CalibrationError: clips do not fit.
        NoReferenceError: the two take different inputs.
    """
    errors = measure_errors(program, reference, clips)
    ratios = {}
    for region, nodes in regions_in_order(program).items():
        measured = [errors[node.name] for node in nodes if node.name in errors]
        if measured:
            ratios[region] = measured[-1].sqnr
    return ratios


def find_uncalibrated(program: Program, others: Sequence[Program]) -> Program | None:
    """The program among others that `calibrate-affine`, its last pass, made a program of."""
    *before, last = program.history or (None,)
    if last is None or not last.text.startswith(CALIBRATION):
        return None
    return next((other for other in others if list(other.history) == before), None)


@torch.no_grad()
def affine_numbers(before: Program, after: Program) -> AffineNumbers:
    """gamma and beta of each layer, from scales and biases before and after they took them.

    Exact for numbers that act on outputs, up to rounding; of those that act on weights, beta is 0 here.
    """
    old = {_name(layer): layer for layer in layers_of(before)}
    gamma, beta = {}, {}
    for layer in layers_of(after):
        name = _name(layer)
        if name in old:
            factor = _scale(after, layer) / _scale(before, old[name])
            shift = _bias(after, layer.readers[0]) - factor * _bias(before, old[name].readers[0])
            gamma[name], beta[name] = float(factor.mean()), float(shift.mean())
    return AffineNumbers(gamma, beta)


def _scale(program: Program, layer: Layer) -> torch.Tensor:
    return program.module(layer.call, FakeQuantize).scale.abs()


def _bias(program: Program, reader: fx.Node) -> torch.Tensor:
    bias = bias_of(reader)
    return torch.zeros(()) if bias is None else program.tensor(bias)


def _name(layer: Layer) -> str:
    """The layer's path; that of the quantizer where its module holds the weights of several."""
    return str(layer.call.target).removesuffix(".weight_quantizer")
