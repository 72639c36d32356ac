"""Other people's engines running our programs: each function makes one that takes all inputs and gives all outputs.

Threads are set when the engine is made. All compute in float32 but `onnxruntime_int8`.
"""

import contextlib
import io
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mattecompress.backends import load_backend
from mattecompress.errors import MissingExtraError, UserError
from mattecompress.preparation import lower
from mattecompress.program import Program
from mattecompress.running.stream import Run, Runner, Stream

Make = Callable[[Program, int], Runner]
CALIBRATION_FRAMES = 8


class PeerError(UserError):
    """A peer cannot take a program."""


def onnxruntime(program: Program, threads: int) -> Runner:
    """ONNX Runtime on our export, in its fastest way: merged kernels that need not round as the reference does."""
    return load_backend("onnx")(threads=threads, exact=False, verify=False).compile(program).over_clips()


def onnxruntime_int8(program: Program, threads: int) -> Runner:
    """ONNX Runtime on a float program that its own tool quantized: static, QDQ, a scale for each output channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from mattecompress.backends.onnx import OnnxArtifact

    class Frames(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = calibration_inputs(program)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name), _quiet():
        folder = Path(name)
        source = _export(program, folder)
        quant_pre_process(source, folder / "prepared.onnx", skip_symbolic_shape=True)
        quantize_static(
            folder / "prepared.onnx",
            folder / "int8.onnx",
            Frames(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        data = (folder / "int8.onnx").read_bytes()
    return OnnxArtifact(program.name, data, threads, exact=False, states=program.states).over_clips()


def openvino(program: Program, threads: int) -> Run:
    """OpenVINO on our ONNX export, held to float32 arithmetic."""
    try:
        import openvino as ov
    except ImportError as error:
        raise MissingExtraError("openvino", "bench") from error
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    with tempfile.TemporaryDirectory() as name:
        model = ov.Core().compile_model(_export(program, Path(name)), "CPU", settings)
    request = model.create_infer_request()

    def run(**inputs: Tensor) -> dict[str, Tensor]:
        values = request.infer(_arrays(inputs), share_inputs=True)
        return {port.get_any_name(): torch.from_numpy(value) for port, value in values.items()}

    return run


def ncnn(program: Program, threads: int) -> Run:
    """ncnn on what its converter makes of the traced graph; Winograd where it chooses so, float32 storage."""
    try:
        import ncnn as library
    except ImportError as error:
        raise MissingExtraError("ncnn", "bench") from error
    net = library.Net()
    net.opt.num_threads = threads
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, option, False)
    with tempfile.TemporaryDirectory() as name:
        stem = _convert_for_ncnn(program, Path(name))
        if net.load_param(f"{stem}.ncnn.param") or net.load_model(f"{stem}.ncnn.bin"):
            raise PeerError(f"ncnn cannot load {program.name}")

    def run(**inputs: Tensor) -> dict[str, Tensor]:
        with net.create_extractor() as extractor:
            for number, name in enumerate(program.input_names):
                extractor.input(f"in{number}", library.Mat(inputs[name].numpy()[0]))
            results = [extractor.extract(f"out{number}")[1] for number in range(len(program.output_names))]
            arrays = [torch.from_numpy(np.array(result))[None] for result in results]
        return dict(zip(program.output_names, arrays, strict=True))

    return run


def torch_eager(program: Program, threads: int) -> Run:
    """PyTorch, operation by operation."""
    return _torch_run(program, program.graph_module, threads)


def torch_compile(program: Program, threads: int) -> Run:
    """PyTorch with kernels that its own compiler makes; needs a C++ compiler and minutes."""
    return _torch_run(program, torch.compile(program.graph_module), threads)


def calibration_inputs(program: Program) -> Iterator[dict[str, Any]]:
    """All inputs of some frames of a procedural clip, states carried."""
    from mattecompress.data.clips import procedural_clip
    from mattecompress.interface import frame_size

    seen: list[dict[str, Any]] = []

    def watch(**inputs: Tensor) -> dict[str, Tensor]:
        seen.append(_arrays(inputs))
        return program.run(**inputs)

    height, width = frame_size(program) or (0, 0)
    for _ in Stream(program, watch).over(procedural_clip(1000, 0, CALIBRATION_FRAMES, height, width).frames):
        pass
    return iter(seen)


def _torch_run(program: Program, module: Any, threads: int) -> Run:
    torch.set_num_threads(threads)

    @torch.no_grad()
    def run(**inputs: Tensor) -> dict[str, Tensor]:
        values = module(*(inputs[name] for name in program.input_names))
        return dict(zip(program.output_names, values, strict=True))

    return run


def _arrays(inputs: dict[str, Tensor]) -> dict[str, Any]:
    return {name: value.contiguous().numpy() for name, value in inputs.items()}


def _export(program: Program, folder: Path) -> Path:
    (path, *_) = load_backend("onnx")(exact=False, verify=False).compile(program).save(folder)
    return Path(path)


def _convert_for_ncnn(program: Program, folder: Path) -> Path:
    lowered, stem = lower(program), folder / "program"
    examples = tuple(torch.zeros(lowered.facts(node).sizes) for node in lowered.inputs)
    with torch.no_grad():
        torch.jit.trace(lowered.graph_module, examples, check_trace=False).save(stem.with_suffix(".pt"))
    shapes = ",".join(f"[{','.join(map(str, example.shape))}]" for example in examples)
    command = [_find("pnnx"), str(stem.with_suffix(".pt")), f"inputshape={shapes}", "fp16=0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        raise PeerError(f"pnnx cannot convert {program.name}: {done.stderr.strip().splitlines()[-1:]}")
    return stem


def _find(command: str) -> str:
    """A command beside this Python, else on PATH."""
    found = shutil.which(
        command, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    if found is None:
        raise MissingExtraError(command, "bench")
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        yield
    logging.root.setLevel(level)
