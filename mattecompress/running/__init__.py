"""Clips through programs, frame by frame, states fed back."""
