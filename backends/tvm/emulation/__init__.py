"""What a program costs on a processor that is not at hand: instructions by kernel, cycles of the hot loops."""
