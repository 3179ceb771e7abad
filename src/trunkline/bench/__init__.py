"""Measuring: what N tasks cost on a bundle and machine, and what a running server takes. Never training or pipeline."""
