"""The model: encoders, the frozen trunk, heads and branches. Knows nothing of projects, training or bundles."""
