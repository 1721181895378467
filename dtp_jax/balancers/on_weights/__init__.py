"""What reads weights only: fixed and random ones, and tools for a chain."""
