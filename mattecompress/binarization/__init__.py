"""What one-bit passes find in a program, and what they write for masks."""
