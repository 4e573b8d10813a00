"""Synthetic shapes, scenes, cameras and sensor errors."""
