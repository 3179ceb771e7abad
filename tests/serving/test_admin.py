"""Admin calls: who may make them, and which bundles they may name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server's tests need the extra serve")

from serving.fakes import FakeService
from starlette.testclient import TestClient

from trunkline.errors import UsageError
from trunkline.serving.app import Settings, create_app
from trunkline.serving.errors import Invalid
from trunkline.serving.keys import Keys, read_key

KEY = {"Authorization": "Bearer admin key"}
CALLS = [
    ("GET", "/admin/release"),
    ("POST", "/admin/release"),
    ("POST", "/v2/repository/models/intent/load"),
    ("POST", "/v2/repository/models/intent/unload"),
    ("POST", "/v2/repository/models/support/load"),
]


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    (tmp_path / "bundles" / "ab12").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "bundles" / "link").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "bundles"


@pytest.fixture
def client(service: FakeService, bundles: Path) -> Iterator[TestClient]:
    with TestClient(create_app(service, Settings(Keys(api="api key", admin="admin key"), bundles))) as made:
        yield made


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_there_are_no_admin_calls_without_an_admin_key(service: FakeService, method: str, path: str) -> None:
    for keys in (Keys(), Keys(api="api key")):
        with TestClient(create_app(service, Settings(keys))) as client:
            for headers in ({}, {"Authorization": "Bearer api key"}, {"Authorization": "Bearer "}):
                assert client.request(method, path, headers=headers).status_code == 404
    assert service.calls == []


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_admin_calls_take_the_admin_key_and_no_other(
    service: FakeService, client: TestClient, method: str, path: str
) -> None:
    for wrong in ("", "Bearer", "Bearer api key", "Bearer admin ke", "Bearer admin key2", "Basic admin key"):
        assert client.request(method, path, headers={"Authorization": wrong}).status_code == 401
    assert client.request(method, path).status_code == 401
    assert service.calls == []
    assert client.request(method, path, headers=KEY).status_code == 200


def test_the_admin_key_opens_nothing_but_admin_calls(client: TestClient) -> None:
    assert client.get("/v1/model", headers=KEY).status_code == 401
    assert client.post("/v2/repository/index", headers={"Authorization": "Bearer api key"}).status_code == 200


@pytest.mark.parametrize("content", [b"", b"{}", b'{"bundle": null}'])
def test_a_release_without_a_bundle_takes_over_the_live_one(
    service: FakeService, client: TestClient, content: bytes
) -> None:
    response = client.post("/admin/release", content=content, headers=KEY)
    assert response.status_code == 200
    assert response.json()["bundle"] == "cd" * 8
    assert service.calls == [("swap", None)]
    assert client.get("/admin/release", headers=KEY).json() == response.json()


def test_a_bundle_is_named_from_the_folder_of_bundles(service: FakeService, client: TestClient, bundles: Path) -> None:
    for name in ("ab12", "./ab12", str(bundles / "ab12")):
        assert client.post("/admin/release", json={"bundle": name}, headers=KEY).status_code == 200
    assert service.calls == [("swap", bundles / "ab12")] * 3


@pytest.mark.parametrize(
    "name",
    ["..", ".", "../elsewhere", "/etc", "link", "link/x", "ab12/../../elsewhere", "a\0b", "x" * 5000, "no"],
)
def test_a_bundle_outside_that_folder_is_refused_whether_or_not_it_exists(
    service: FakeService, client: TestClient, name: str
) -> None:
    response = client.post("/admin/release", json={"bundle": name}, headers=KEY)
    assert response.status_code == 404
    assert service.calls == []


def test_without_a_folder_of_bundles_none_can_be_named(service: FakeService) -> None:
    with TestClient(create_app(service, Settings(Keys(admin="admin key")))) as client:
        response = client.post("/admin/release", json={"bundle": "ab12"}, headers=KEY)
        assert response.status_code == 404
        assert "live releases only" in response.json()["error"]["message"]
    assert service.calls == []


def test_a_bundle_that_cannot_serve_says_why_and_the_old_one_stays(service: FakeService, client: TestClient) -> None:
    before = client.get("/admin/release", headers=KEY).json()
    service.refusal = Invalid("task 'intent' is off by 1.0 on its stored probes")
    response = client.post("/admin/release", json={"bundle": "ab12"}, headers=KEY)
    assert response.status_code == 422
    assert response.json()["error"]["message"] == "task 'intent' is off by 1.0 on its stored probes"
    assert client.get("/admin/release", headers=KEY).json() == before


def test_a_path_names_all_its_methods(client: TestClient) -> None:
    def allowed(path: str, headers: dict[str, str]) -> set[str]:
        return set(client.delete(path, headers=headers).headers["allow"].split(", "))

    assert allowed("/admin/release", KEY) == {"GET", "POST"}
    assert allowed("/", {"Authorization": "Bearer api key"}) == {"GET", "HEAD"}


def test_unknown_keys_of_a_release_are_refused(client: TestClient) -> None:
    response = client.post("/admin/release", json={"bundel": "ab12"}, headers=KEY)
    assert response.status_code == 422
    assert response.json()["error"]["message"] == "unknown key 'bundel' (did you mean 'bundle'? keys: bundle)"


def test_a_key_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("schlüssel\n", encoding="utf-8")
    assert read_key("TRUNKLINE_API_KEY", file, {"TRUNKLINE_API_KEY": "other"}) == "schlüssel"
    assert read_key("TRUNKLINE_API_KEY", None, {"TRUNKLINE_API_KEY": " other "}) == "other"
    assert read_key("TRUNKLINE_API_KEY", None, {}) is None


@pytest.mark.parametrize("content", [b"", b" \n", b"two\nlines", b"\xff\xfe", None])
def test_a_key_that_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match="key"):
        read_key("TRUNKLINE_ADMIN_KEY", file, {})
    with pytest.raises(UsageError, match="TRUNKLINE_ADMIN_KEY"):
        read_key("TRUNKLINE_ADMIN_KEY", None, {"TRUNKLINE_ADMIN_KEY": " "})
