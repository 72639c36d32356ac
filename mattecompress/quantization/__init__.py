"""Ranges, factors and bits of quantizers: from clips, from noise, from rules and from what each region costs."""
