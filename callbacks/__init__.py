"""What looks on at training or steps in: inheritance, averaged weights, checkpoints."""
