"""Training of the Reverse Distillation detector in PyTorch, and its evaluation."""
