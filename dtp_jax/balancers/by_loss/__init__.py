"""What reads the losses: the cost of a fixed weighted sum of the losses."""
