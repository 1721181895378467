"""Examples: each one command, real data, honest tables."""
