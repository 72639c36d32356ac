"""Passes: one file, one class, one sentence that says what holds before and after."""
