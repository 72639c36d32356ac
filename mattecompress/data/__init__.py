"""Clips: made from a seed, read from files, written to files."""
