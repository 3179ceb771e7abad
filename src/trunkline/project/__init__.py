"""A project's files, data, kinds of task and metrics. Imports no torch and no transformers."""
