"""The real HTTP app over a made-up service, on a real socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import certifi
import pytest
import uvicorn
from serving.fakes import FakeService

from trunkline.serving.app import create_app


@pytest.fixture(autouse=True)
def _one_authority(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test here speaks TLS, and reading all authorities for each client would take most of their time."""
    path = tmp_path_factory.getbasetemp() / "authority.pem"
    if not path.exists():
        first, end, _ = Path(certifi.where()).read_text(encoding="utf-8").partition("-----END CERTIFICATE-----\n")
        path.write_text(first + end, encoding="utf-8")
    monkeypatch.setenv("SSL_CERT_FILE", str(path))


@pytest.fixture
def served() -> Iterator[tuple[str, FakeService]]:
    """URL and service of a running app."""
    service = FakeService()
    server = uvicorn.Server(uvicorn.Config(create_app(service), port=0, lifespan="off", log_config=None))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", service
    finally:
        server.should_exit = True
        thread.join()
