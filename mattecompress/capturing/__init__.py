"""From an `nn.Module` to a float program."""
