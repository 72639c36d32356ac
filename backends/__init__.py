"""Backends: a program in, an artifact that runs out."""
