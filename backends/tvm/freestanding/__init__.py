"""Programs and libraries that need no runtime: a memory plan, C around the kernels, linking."""
