"""Benchmarks that need several processes; run each as `python -m benchmarks.<name>` from the repository root."""
