"""What `deploy/` says agrees with the server, and is what Kubernetes and KServe accept as far as their types tell."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving.fakes import FakeService

from trunkline.serving.app import create_app
from trunkline.serving.command import serve
from trunkline.serving.limits import Limits

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
KUBERNETES = ROOT / "deploy" / "kubernetes"
DEPLOYMENT, SERVICE, BUDGET = yaml.safe_load_all((KUBERNETES / "trunkline.yaml").read_text(encoding="utf-8"))
KSERVE = yaml.safe_load((KUBERNETES / "kserve.yaml").read_text(encoding="utf-8"))
PODS = [
    pytest.param(DEPLOYMENT["spec"]["template"]["spec"], id="deployment"),
    pytest.param(KSERVE["spec"]["predictor"], id="kserve"),
]


def test_the_kubernetes_objects_have_no_unknown_key_and_no_wrong_type() -> None:
    client = pytest.importorskip("kubernetes.client")
    for document in (DEPLOYMENT, SERVICE, BUDGET):
        getattr(client, f"V1{document['kind']}").model_validate(document)
    broken = {**SERVICE, "spec": {**SERVICE["spec"], "prots": []}}
    with pytest.raises(ValueError, match="prots"):
        client.V1Service.model_validate(broken)


def test_the_inference_service_has_no_unknown_key_and_no_wrong_type() -> None:
    kserve = pytest.importorskip("kserve")
    client = pytest.importorskip("kubernetes.client")
    predictor = KSERVE["spec"]["predictor"]
    assert (KSERVE["apiVersion"], KSERVE["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert predictor.keys() <= set(kserve.V1beta1PredictorSpec.attribute_map.values())
    of_kserve = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"}
    client.V1PodSpec.model_validate({key: value for key, value in predictor.items() if key not in of_kserve})


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_may_do_nothing_that_serving_does_not_need(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    user = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert user is not None
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (int(user[1]), int(user[2]))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")} == {"/tmp"}


@pytest.mark.parametrize("pod", PODS)
def test_probes_ask_what_the_server_answers_where_it_listens(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    (port,) = container["ports"]
    assert f"--port={port['containerPort']}" in container["args"]
    assert f"EXPOSE {port['containerPort']}\n" in DOCKERFILE
    paths = create_app(FakeService()).openapi()["paths"]  # type: ignore[arg-type]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert "get" in paths[asked["path"]]
        assert asked["port"] in (port["containerPort"], port["name"])
    healthcheck = re.search(r"'GET', '([^']+)'", DOCKERFILE)
    assert healthcheck is not None
    assert "get" in paths[healthcheck[1]]


@pytest.mark.parametrize("pod", PODS)
def test_the_arguments_are_those_of_serve(pod: dict[str, Any]) -> None:
    known = {f"--{name.replace('_', '-')}" for name in inspect.signature(serve).parameters}
    (container,) = pod["containers"]
    image = json.loads(re.findall(r"^CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)[-1])
    for arguments in (container["args"], image):
        command, bundle, *options = arguments
        assert command == "serve"
        assert bundle.startswith("/bundle")
        assert {option.partition("=")[0] for option in options if option.startswith("--")} <= known


def test_a_pod_has_the_time_that_starting_and_draining_may_take() -> None:
    limits = Limits()
    pod = DEPLOYMENT["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= pause + limits.drain_seconds + 10
    starting = container["startupProbe"]
    assert starting["periodSeconds"] * starting["failureThreshold"] >= limits.start_timeout


def test_the_image_is_built_from_what_the_build_context_holds_and_names_no_index() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for name in line.split()[:-1]:
            assert f"!{name}" in ignored
            assert (ROOT / name).exists()
    assert re.findall(r"https?://(?!127\.0\.0\.1)", DOCKERFILE) == []
    assert re.search(r"^torch==", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
