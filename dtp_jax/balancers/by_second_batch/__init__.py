"""What reads the gradients of other batches as well: a forward pass more for each."""
