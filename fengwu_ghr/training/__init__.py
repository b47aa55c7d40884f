"""Training: a simulated world, a backbone pretrained on its coarse states, its transfer to the fine ones."""
