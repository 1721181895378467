"""What reads the size of each gradient: a backward pass per task when it looks."""
