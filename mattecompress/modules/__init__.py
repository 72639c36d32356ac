"""Trainable forms: the modules that passes put into a program, each with a frozen configuration."""
