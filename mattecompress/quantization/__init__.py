"""Ranges, factors and bits of quantizers: from clips, from noise and from rules."""
