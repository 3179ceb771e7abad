"""Serving a bundle: admission, batching and swapping around one worker process, and the wires in front of it.

Two processes. The front takes requests and never imports torch; the worker holds the engine and nothing else. See
`service.py` for the front's core and `worker.py` for the other side.
"""
