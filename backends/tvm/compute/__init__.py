"""What kernels compute, as tensor expressions over NHWC, and how tensors are stored."""
