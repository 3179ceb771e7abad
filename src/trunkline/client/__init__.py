"""The client: asks a running server over the native wire. It imports neither torch nor the server.

>>> from trunkline import Client
>>> with Client("http://127.0.0.1:8000") as client:                       # doctest: +SKIP
...     client.predict(["where is my parcel?"]).answers[0]["intent"].label
"""

from trunkline.client.clients import AsyncClient, Client
from trunkline.client.errors import BadReply, ClientError, ServerError, Unreachable
from trunkline.client.replies import ModelInfo, Reply, SpeedPoint, TaskInfo, Timings
from trunkline.engine.base import Input, ItemError
from trunkline.project.tasks import Answer, Span

__all__ = [
    "Answer",
    "AsyncClient",
    "BadReply",
    "Client",
    "ClientError",
    "Input",
    "ItemError",
    "ModelInfo",
    "Reply",
    "ServerError",
    "Span",
    "SpeedPoint",
    "TaskInfo",
    "Timings",
    "Unreachable",
]
