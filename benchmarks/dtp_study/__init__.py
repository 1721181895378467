"""What prioritization does, and where: one question for each file."""
