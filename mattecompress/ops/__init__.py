"""The lowered operations `torch.ops.matte.*`: schema, reference and shape function of each.

Importing this package registers them.
"""

from mattecompress.ops import attention, binary, integer, masked, packing, reproducible, resize, tokens

__all__ = ["attention", "binary", "integer", "masked", "packing", "reproducible", "resize", "tokens"]
