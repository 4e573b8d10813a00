"""Data sets, losses, training loop and export."""
