"""What a program says of itself without being changed: shapes, costs, regions, scopes, attention, memory."""
