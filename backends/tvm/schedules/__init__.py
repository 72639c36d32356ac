"""How float kernels are computed: rules that schedule a function from its shape and the target, or refuse it."""
