"""Block by block reconstruction: units of a program, what they read and yield on clips, and learned rounding."""
