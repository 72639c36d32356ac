"""ViTMatte at a size for tests, and with the weights behind the golden vectors."""

import re
from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from mattecompress.capturing.tracing import capture
from mattecompress.models.mematte import MEMatte
from mattecompress.models.signatures import trimap_signature
from mattecompress.models.vitmatte import NAMES, ViTMatte, configuration
from mattecompress.program import Program
from tests.models.hashed import hashed_weight


def authors_name(name: str) -> str:
    """The authors' name of a tensor from Hugging Face's."""
    router = re.match(r"backbone\.encoder\.layer\.(\d+)\.router\.", name)
    if router:
        name = f"backbone.routers.{(int(router[1]) - 2) // 3}.{name[router.end() :]}"
    for own, theirs in (*NAMES, (".efficient_block.", ".refinement.")):
        name = name.replace(theirs, own)
    return name


def hashed_vit(model: nn.Module) -> nn.Module:
    """The model in eval mode, all of its tensors by the rule of the golden vectors, which goes by the authors' names."""
    values = {name: hashed_weight(authors_name(name), value) for name, value in model.state_dict().items()}
    model.load_state_dict(values)
    return model.eval()


def in_double(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` makes, in float64 from the beginning."""
    torch.set_default_dtype(torch.float64)
    try:
        return build()
    finally:
        torch.set_default_dtype(torch.float32)


def tiny_vit(**options: object) -> ViTMatte:
    """Three blocks of 32 channels and 2 heads, the last one global, with weights that matter everywhere."""
    model = hashed_vit(ViTMatte(configuration(32, 2, 3), **options))  # type: ignore[arg-type]
    for name, value in model.state_dict().items():
        if "rel_pos" in name or "position" in name:
            value.mul_(25)
    return model  # type: ignore[return-value]


@cache
def tiny_program(size: tuple[int, int] = (96, 160), batch: int | str = 1) -> Program:
    return capture(tiny_vit(), trimap_signature(size, batch), "vitmatte-tiny")


def random_inputs(program: Program, batch: int = 1) -> dict[str, torch.Tensor]:
    """An image and a trimap of three values."""
    generator = torch.Generator().manual_seed(0)
    height, width = program.facts(program.inputs[0]).shape[2:]
    image = torch.rand(batch, 3, int(height), int(width), generator=generator)
    trimap = torch.randint(0, 3, (batch, 1, int(height), int(width)), generator=generator) / 2
    return {"image": image, "trimap": trimap}


def tiny_mematte(**options: object) -> MEMatte:
    """The same blocks with routing that sends about half of the tokens through attention."""
    model = hashed_vit(MEMatte(configuration(32, 2, 3), **options))  # type: ignore[arg-type]
    with torch.no_grad():
        said: list[torch.Tensor] = []
        router = model.backbone.encoder.layer[2].router
        hook = router.register_forward_hook(lambda module, inputs, output: said.append(output))
        model.backbone(torch.rand(1, 4, 96, 160, generator=torch.Generator().manual_seed(0)))
        hook.remove()
        router.out_conv[4].bias[0] -= (said[0][..., 0] - said[0][..., 1]).median()
    return model  # type: ignore[return-value]
