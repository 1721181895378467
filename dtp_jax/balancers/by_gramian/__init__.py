"""What reads the Gramian of the gradients: a backward pass per task, and products."""
