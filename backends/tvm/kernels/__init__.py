"""Kernels on bits and integers: what each computes and its schedule, in one file."""
