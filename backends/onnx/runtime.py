"""A model in ONNX Runtime."""

from pathlib import Path

import torch
from torch import Tensor

from mattecompress.backends.onnx.model import extra
from mattecompress.errors import UserError
from mattecompress.files import atomic_path


class InputError(UserError):
    """An artifact is given inputs that its model does not take."""


class OnnxArtifact:
    """An ONNX model and its ONNX Runtime session on the CPU.

    name: base name of the saved file.
    data: the serialized model.
    threads: threads within one operation; 0 leaves the choice to ONNX Runtime.
    exact: keep ONNX Runtime from merging quantize and dequantize pairs with what stands between them into integer
        kernels, which are faster and round differently from the reference.
    """

    def __init__(self, name: str, data: bytes, threads: int = 1, exact: bool = True) -> None:
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

    def save(self, folder: Path) -> tuple[Path, ...]:
        """Write `NAME.onnx` into a folder.

        Raises:
            UnwritableError: the folder cannot be made or written.
        """
        path = folder / f"{self.name}.onnx"
        with atomic_path(path) as temporary:
            temporary.write_bytes(self.data)
        return (path,)
