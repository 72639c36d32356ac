"""The lowered operations `torch.ops.matte.*`: schema, reference and shape function of each."""
