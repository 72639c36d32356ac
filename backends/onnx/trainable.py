"""Called modules: batch norm, fake quantizers and binary convolutions as standard ONNX operations."""

from collections.abc import Callable, Mapping

from mattecompress.backends.onnx.call import Call
from mattecompress.backends.onnx.graph import RefusalError
from mattecompress.modules.batch_norm import BatchNorm2d

Rule = Callable[[Call], str]


def _batch_norm(call: Call) -> str:
    module = call.module
    assert isinstance(module, BatchNorm2d)
    if module.training or module.running_mean is None or module.running_var is None:
        raise RefusalError("batch norm in training mode: call eval() on the program's graph module")
    tensors = {
        "weight": module.weight,
        "bias": module.bias,
        "running_mean": module.running_mean,
        "running_var": module.running_var,
    }
    names = [call.writer.tensor(f"{call.node.target}.{name}", value) for name, value in tensors.items()]
    return call.emit("BatchNormalization", call.value("0"), *names, epsilon=float(module.eps))


RULES: Mapping[str, Rule] = {
    "BatchNorm2d": _batch_norm,
}
"""By class name, as in `mattecompress.modules.MODULES`."""
