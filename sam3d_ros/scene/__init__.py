"""The scene as a whole: objects that stand on a support and touch each other."""
