"""A model in ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mattecompress.backends import Artifact
from mattecompress.backends.onnx.model import extra
from mattecompress.errors import UserError
from mattecompress.files import atomic_path
from mattecompress.program import StatePair
from mattecompress.running.stream import Runner

STATE_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class InputError(UserError):
    """An artifact is given inputs that its model does not take."""


class OnnxArtifact(Artifact):
    """An ONNX model and its ONNX Runtime session on the CPU.

    name: base name of the saved file.
    data: the serialized model.
    threads: threads within one operation; 0 leaves the choice to ONNX Runtime.
    exact: keep ONNX Runtime from merging quantize and dequantize pairs with what stands between them into integer
        kernels, which are faster and round differently from the reference.
    states: outputs that are inputs of the next frame.
    """

    def __init__(
        self,
        name: str,
        data: bytes,
        threads: int = 1,
        exact: bool = True,
        states: Sequence[StatePair] = (),
    ) -> None:
        runtime = extra("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if exact:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            options.add_session_config_entry("session.disable_double_qdq_remover", "1")
        self.name = name
        self.data = data
        self.states = tuple(states)
        self.session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.input_names = tuple(value.name for value in self.session.get_inputs())
        self.output_names = tuple(value.name for value in self.session.get_outputs())

    def run(self, **inputs: Tensor) -> dict[str, Tensor]:
        """All outputs from all inputs, by name.

        Raises:
            InputError: an input is missing, unknown, or of another shape or type than the model's.
        """
        if set(inputs) != set(self.input_names):
            raise InputError(
                f"{self.name} takes {', '.join(self.input_names)}; it was given {', '.join(inputs) or 'nothing'}"
            )
        arrays = {name: value.detach().cpu().contiguous().numpy() for name, value in inputs.items()}
        try:
            values = self.session.run(list(self.output_names), arrays)
        except extra("onnxruntime.capi.onnxruntime_pybind11_state").InvalidArgument as error:
            raise InputError(f"{self.name}: {' '.join(str(error).split())}") from error
        named = zip(self.output_names, values, strict=True)
        return {name: torch.from_numpy(value) for name, value in named}

    def over_clips(self) -> Runner:
        """With the states left in ONNX Runtime, where their sizes are known."""
        return BoundClip(self) if all(map(_is_fixed, self.session.get_inputs())) else self.run

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write `NAME.onnx` into a folder.

        Raises:
            UnwritableError: the folder cannot be made or written.
        """
        path = Path(folder) / f"{self.name}.onnx"
        with atomic_path(path) as temporary:
            temporary.write_bytes(self.data)
        return (path,)


class BoundClip:
    """One clip in a session: each frame's states are bound to the next frame's inputs without a copy."""

    def __init__(self, artifact: OnnxArtifact) -> None:
        self.session, self.pairs = artifact.session, artifact.states
        carried = {pair.output for pair in self.pairs}
        self.output_names = [name for name in artifact.output_names if name not in carried]
        self.reset()

    def reset(self) -> None:
        """Forget the past: zero states."""
        make = extra("onnxruntime").OrtValue.ortvalue_from_numpy
        ports = {port.name: port for port in self.session.get_inputs()}
        self.states = {
            pair.input: make(np.zeros(ports[pair.input].shape, STATE_TYPES[ports[pair.input].type]))
            for pair in self.pairs
        }

    def step(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Every output that is no state, from every input that is none; the states move on.

        Raises:
            InputError: an input is missing, unknown, or of another shape or type than the model's.
        """
        binding = self.session.io_binding()
        names = [*self.output_names, *(pair.output for pair in self.pairs)]
        try:
            for name, value in inputs.items():
                binding.bind_cpu_input(name, value.detach().cpu().contiguous().numpy())
            for name, state in self.states.items():
                binding.bind_ortvalue_input(name, state)
            for name in names:
                binding.bind_output(name)
            self.session.run_with_iobinding(binding)
        except RuntimeError as error:
            raise InputError(" ".join(str(error).split())) from error
        results = dict(zip(names, binding.get_outputs(), strict=True))
        self.states = {pair.input: results[pair.output] for pair in self.pairs}
        return {name: torch.from_numpy(results[name].numpy()) for name in self.output_names}


def _is_fixed(port: Any) -> bool:
    return all(isinstance(extent, int) for extent in port.shape)
