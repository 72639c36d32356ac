"""Networks written from their papers, with official state-dict names, and the loading of checkpoints."""
