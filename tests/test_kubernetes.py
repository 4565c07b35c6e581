"""The recipes for Kubernetes: accepted by its schemas and the operator's, and run here as processes, over TLS."""

from __future__ import annotations

import asyncio
import copy
import importlib.resources
import logging
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import dask
import jsonschema  # type: ignore[import-untyped]
import kubernetes.client
import psutil  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]
from dask_kubernetes.operator.controller import controller  # type: ignore[import-untyped]
from distributed import Client, Security

from daskrl.cli import signals
from daskrl.pools.demand import LEARNER, has_learner_resource
from daskrl.pools.workers import LOG_LENGTH, LOGGED, QUIET, THREADS, UNWATCHED
from tests.slurm import free_port

RECIPES = Path(__file__).parents[1] / "cluster"
DOCUMENTS: dict[str, Any] = {
    document["kind"]: document
    for name in ("kubernetes.yaml", "kubernetes-job.yaml")
    for document in yaml.safe_load_all((RECIPES / name).read_text())
}
SETTINGS: dict[str, str] = DOCUMENTS["ConfigMap"]["data"]
NAME: str = DOCUMENTS["DaskCluster"]["metadata"]["name"]
SERVICE: dict[str, Any] = DOCUMENTS["DaskCluster"]["spec"]["scheduler"]["service"]
PODS: dict[str, Any] = {
    "scheduler": DOCUMENTS["DaskCluster"]["spec"]["scheduler"]["spec"],
    "rollout": DOCUMENTS["DaskCluster"]["spec"]["worker"]["spec"],
    "learner": DOCUMENTS["DaskWorkerGroup"]["spec"]["worker"]["spec"],
    "driver": DOCUMENTS["Job"]["spec"]["template"]["spec"],
}


# -- schemas ------------------------------------------------------------------------------------------------


def closed(schema: Any) -> Any:
    """A schema that refuses what it does not name. A server would drop it, and `kubectl` warn of it."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made


def custom_kinds() -> dict[str, Any]:
    found = {}
    folder = "operator/deployment/helm/dask-kubernetes-operator/crds"
    for file in importlib.resources.files("dask_kubernetes").joinpath(folder).iterdir():
        spec = yaml.safe_load(file.read_text())["spec"]
        (version,) = spec["versions"]
        schema = closed(version["schema"]["openAPIV3Schema"])
        schema["properties"] |= {
            "apiVersion": {"const": f"{spec['group']}/{version['name']}"},
            "kind": {"const": spec["names"]["kind"]},
            "metadata": {"type": "object"},
        }
        schema["required"] = [*schema.get("required", []), "apiVersion", "kind", "metadata"]
        found[spec["names"]["kind"]] = schema
    return found


CUSTOM = custom_kinds()
APIS = {
    "v1": kubernetes.client.CoreV1Api, "batch/v1": kubernetes.client.BatchV1Api, "apps/v1": kubernetes.client.AppsV1Api
}  # fmt: skip


def accept(document: Mapping[str, Any]) -> None:
    """Raise ValueError where Kubernetes, with the operator's kinds, would not take a document as it stands."""
    kind = document["kind"]
    if kind in CUSTOM:
        try:
            jsonschema.validate(document, CUSTOM[kind], cls=jsonschema.Draft7Validator)
        except jsonschema.ValidationError as error:
            raise ValueError(f"{error.json_path}: {error.message}") from error
        as_model("V1ObjectMeta", document["metadata"])
        return
    call = "create_namespaced_" + re.sub(r"(?<!^)([A-Z])", r"_\1", kind).lower()
    if not hasattr(APIS.get(document["apiVersion"]), call):
        raise ValueError(f"no {kind} in {document['apiVersion']}")
    as_model(f"V1{kind}", document)


def as_model(name: str, document: Mapping[str, Any]) -> None:
    model = getattr(kubernetes.client, name).from_dict(document)
    if kubernetes.client.ApiClient().sanitize_for_serialization(model) != document:
        raise ValueError(f"{name} does not know all of {document}")


def made_by_the_operator() -> dict[str, Any]:
    """The deployments that the operator makes, by its own code."""
    group = controller.build_default_worker_group_spec(NAME, DOCUMENTS["DaskCluster"]["spec"]["worker"], {}, {})
    names = {"rollout": group["metadata"]["name"], "learner": DOCUMENTS["DaskWorkerGroup"]["metadata"]["name"]}
    workers = {
        f"{kind}-{i}": controller.build_worker_deployment_spec(
            names[kind], "default", NAME, str(i), copy.deepcopy(PODS[kind]), {}, {}
        )
        for kind, i in (("rollout", 0), ("rollout", 1), ("learner", 0))
    }
    return {"scheduler": controller.build_scheduler_deployment_spec(NAME, PODS["scheduler"], {}, {}), **workers}


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_every_document_is_accepted_by_the_schema_of_its_kind(kind: str) -> None:
    accept(DOCUMENTS[kind])


@pytest.mark.parametrize(
    ("kind", "path", "value", "message"),
    [
        ("DaskCluster", ["kind"], "DaskClusters", "no DaskClusters in kubernetes.dask.org/v1"),
        ("DaskCluster", ["apiVersion"], "kubernetes.dask.org/v2", r"\$\.apiVersion: .* was expected"),
        ("DaskCluster", ["spec"], None, r"\$: 'spec' is a required property"),
        ("DaskCluster", ["spec", "scheduler", "service"], None, r"\$\.spec\.scheduler: 'service' is a required"),
        ("DaskCluster", ["spec", "worker", "replicas"], "two", r"replicas: 'two' is not of type 'integer'"),
        ("DaskCluster", ["spec", "worker", "replica"], 2, r"\$\.spec\.worker: .*'replica' was unexpected"),
        (
            "DaskCluster",
            ["spec", "scheduler", "spec", "containers", 0, "readinessProbe", "tcpSocket", "port"],
            8786,
            r"readinessProbe\.tcpSocket\.port: 8786 is not of type 'string'",
        ),
        ("DaskWorkerGroup", ["spec", "cluster"], None, r"\$\.spec: 'cluster' is a required property"),
        ("DaskWorkerGroup", ["spec", "worker", "spec", "containers", 0, "image"], 1, "1 is not of type 'string'"),
        ("DaskWorkerGroup", ["metadata", "nam"], "daskrl", "V1ObjectMeta does not know all of"),
        ("Job", ["apiVersion"], "v1", "no Job in v1"),
        ("Job", ["spec", "template"], None, "template"),
        ("Job", ["spec", "backoffLimit"], "many", "valid integer"),
        ("Job", ["spec", "template", "spec", "restart"], "Never", "V1Job does not know all of"),
        ("PersistentVolumeClaim", ["spec", "accessMode"], "ReadWriteMany", "does not know all of"),
        ("ConfigMap", ["data", "A"], 1, "valid string"),
    ],
)
def test_a_wrong_document_is_refused_by_the_same_check(kind: str, path: list[Any], value: Any, message: str) -> None:
    document = copy.deepcopy(DOCUMENTS[kind])
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    with pytest.raises(ValueError, match=f"(?s){message}"):
        accept(document)


def test_what_the_operator_makes_of_the_documents_is_accepted_too() -> None:
    for deployment in made_by_the_operator().values():
        accept(deployment)
    accept(controller.build_scheduler_service_spec(NAME, SERVICE, {}, {}))


# -- one document and another -------------------------------------------------------------------------------


def test_names_agree_between_documents() -> None:
    deployments = made_by_the_operator()
    assert DOCUMENTS["DaskWorkerGroup"]["spec"]["cluster"] == NAME
    assert SERVICE["selector"].items() <= deployments["scheduler"]["spec"]["selector"]["matchLabels"].items()
    for name, pod in PODS.items():
        (tls,) = (v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v)
        claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
        assert tls == "daskrl-tls"
        assert claims == ([] if name == "scheduler" else [DOCUMENTS["PersistentVolumeClaim"]["metadata"]["name"]])
        for container in (c for c in every_container(pod) if c["name"] != "scale-down"):
            (source,) = container["envFrom"]
            assert source["configMapRef"]["name"] == DOCUMENTS["ConfigMap"]["metadata"]["name"]
        mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
        assert mounts == {"tls": "/tls"} | ({"runs": "/runs"} if claims else {})
    assert option(container_of("driver"), "--store").startswith("/runs/")
    assert len({c["image"] for pod in PODS.values() for c in every_container(pod)}) == 1


def test_everybody_is_given_the_address_of_the_service_with_tls() -> None:
    (port,) = (p["port"] for p in SERVICE["ports"] if p["name"] == "tcp-comm")
    address = f"tls://{controller.SCHEDULER_NAME_TEMPLATE.format(cluster_name=NAME)}:{port}"
    assert option(container_of("driver"), "--scheduler") == address
    assert address in PODS["driver"]["initContainers"][0]["args"][-1]
    for name, deployment in made_by_the_operator().items():
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            told = [e["value"] for e in container.get("env", []) if e["name"] == "DASK_SCHEDULER_ADDRESS"]
            assert told == ([] if name == "scheduler" else [address])


def test_ports_are_found_by_name() -> None:
    ports = {p["name"]: p["containerPort"] for c in PODS["scheduler"]["containers"] for p in c["ports"]}
    scheduler = container_of("scheduler")
    assert {p["targetPort"] for p in SERVICE["ports"]} <= ports.keys()
    assert option(scheduler, "--port") == str(ports["tcp-comm"])
    assert {scheduler[probe]["tcpSocket"]["port"] for probe in ("readinessProbe", "livenessProbe")} == {"tcp-comm"}
    assert str(ports["scale-down"]) in container_of("scheduler", "scale-down")["args"]


def test_the_learner_offers_its_resource_and_has_the_threads_of_its_cores() -> None:
    learner, rollout = container_of("learner"), container_of("rollout")
    assert option(learner, "--resources") == f"{LEARNER}=1"
    assert "--resources" not in rollout["args"]
    assert f'resources={{"{LEARNER}": 1}}' in PODS["driver"]["initContainers"][0]["args"][-1]
    for container in (learner, rollout):
        threads = {e["value"] for e in container["env"] if e["name"] in THREADS}
        assert threads == {container["resources"]["limits"]["cpu"]}
        assert option(container, "--nthreads") == "1"
    assert option(container_of("driver"), "--torch-threads") == learner["resources"]["limits"]["cpu"]


def test_a_driver_that_was_stopped_starts_again_and_never_beside_another() -> None:
    spec = DOCUMENTS["Job"]["spec"]
    codes = [r["onExitCodes"] for r in spec["podFailurePolicy"]["rules"] if "onExitCodes" in r]
    assert codes == [{"containerName": "driver", "operator": "In", "values": [signals.STOPPED]}]
    assert {rule["action"] for rule in spec["podFailurePolicy"]["rules"]} == {"Ignore"}
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # else podFailurePolicy is refused
    assert spec["podReplacementPolicy"] == "Failed"
    assert "--resume" in container_of("driver")["args"]


def test_dask_has_the_settings_of_other_clusters_and_asks_for_a_certificate() -> None:
    with configured(SETTINGS):
        for key, value in {**QUIET, **UNWATCHED, LOG_LENGTH: LOGGED}.items():
            assert dask.config.get(key) == value
        assert dask.config.get("distributed.scheduler.allowed-failures") == 30
        security = Security()
    assert security.require_encryption is True
    for role in ("scheduler", "worker", "client"):
        found = security.get_tls_config_for_role(role)
        assert found == {"ca_file": "/tls/ca.crt", "ciphers": None, "cert": "/tls/tls.crt", "key": "/tls/tls.key"}


# -- as processes -------------------------------------------------------------------------------------------


def configured(environment: Mapping[str, str]) -> Any:
    """Dask's configuration as of a process with these variables."""
    given = dask.config.collect_env(environment)
    return dask.config.set(dask.config.update(copy.deepcopy(dask.config.global_config), given))


class Node:
    """Runs containers as processes: their mounts are folders, and the scheduler is on loopback."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.ports = {port: free_port() for port in ("8786", "8787", "8788")}
        self.address = f"tls://127.0.0.1:{self.ports['8786']}"
        self.processes: list[subprocess.Popen[str]] = []

    def command(self, container: Mapping[str, Any], pod: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
        mounted = {
            mount["mountPath"]: self.place / (v["secret"]["secretName"] if "secret" in v else "runs")
            for mount in container.get("volumeMounts", [])
            for v in pod["volumes"]
            if v["name"] == mount["name"]
        }

        def here(text: str) -> str:
            for path, folder in mounted.items():
                text = re.sub(f"^{path}/", f"{folder}/", text)
            text = text.replace(f"{NAME}-scheduler:", "127.0.0.1:")
            return re.sub("878[678]", lambda port: self.ports[port.group()].__str__(), text)

        given = SETTINGS if container.get("envFrom") else {}
        environment = {**given, **{e["name"]: e["value"] for e in container.get("env", [])}}
        arguments = [
            re.sub(r"\$\((\w+)\)", lambda name: environment[name.group(1)], text) for text in container["args"]
        ]
        if arguments[0] == "dask":
            arguments += ["--host", "127.0.0.1"]
        kept = {k: v for k, v in os.environ.items() if not k.startswith("DASK_") and k not in THREADS}
        kept |= {"PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "PYTHONUNBUFFERED": "1"}
        return [*map(here, arguments)], {**kept, **{name: here(value) for name, value in environment.items()}}

    def start(self, name: str, container: Mapping[str, Any], pod: Mapping[str, Any], *more: str) -> Any:
        command, environment = self.command(container, pod)
        with self.log(name).open("w") as log:
            process = subprocess.Popen(
                [*command, *more], env=environment, cwd=self.place, stdout=log, stderr=log, text=True
            )
        self.processes.append(process)
        return process

    def log(self, name: str) -> Path:
        return self.place / f"{name}.log"

    def security(self) -> Security:
        with configured(self.command(container_of("driver"), PODS["driver"])[1]):
            return Security()

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def every_container(pod: Mapping[str, Any]) -> list[Any]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def container_of(pod: str, name: str | None = None) -> Any:
    return next(c for c in PODS[pod]["containers"] if name in (None, c["name"]))


def option(container: Mapping[str, Any], name: str) -> str:
    return str(container["args"][container["args"].index(name) + 1])


def make_the_secret(place: Path) -> None:
    """As README.md says, up to `kubectl`."""
    text = (RECIPES / "README.md").read_text()
    (script,) = re.findall(r"```sh\n(mkdir -m 700 tls\n.*?)kubectl create secret generic (\S+)", text, re.DOTALL)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "-euc", script[0]], cwd=place, env={**os.environ, "PATH": path}, check=True)
    (place / "tls").rename(place / script[1])


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with the cluster's pods, two of rollouts; the driver's init container ran while they started."""
    node = Node(tmp_path_factory.mktemp("node"))
    make_the_secret(node.place)
    made = made_by_the_operator()
    try:
        for container in PODS["scheduler"]["containers"]:
            node.start(container["name"], container, PODS["scheduler"])
        waits = node.start("init", PODS["driver"]["initContainers"][0], PODS["driver"])
        for name in ("rollout-0", "rollout-1", "learner-0"):
            if name == "learner-0":
                with Client(node.address, security=node.security(), timeout=60) as client:
                    client.wait_for_workers(2, timeout=60)
                assert waits.poll() is None
            pod = made[name]["spec"]["template"]["spec"]
            node.start(name, pod["containers"][0], pod)
        assert waits.wait(120) == 0, node.log("init").read_text()
        yield node
    finally:
        node.stop()


def test_a_run_on_its_processes_has_the_digest_of_one_process(node: Node) -> None:
    driver = copy.deepcopy(container_of("driver"))
    for name, value in (("--env-steps", "2000"), ("--streams", "4")):
        driver["args"][driver["args"].index(name) + 1] = value
    alone = copy.deepcopy(driver)
    place = alone["args"].index("--scheduler")
    alone["args"][place : place + 2] = ["--workers", "0"]
    alone["args"][alone["args"].index("--store") + 1] += "-alone"
    digests = []
    for name, container in (("driver", driver), ("alone", alone)):
        process = node.start(name, container, PODS["driver"], "--episodes", "0", "-s", "learning_starts=500")
        assert process.wait(300) == 0, node.log(name).read_text()
        command, _ = node.command(container, PODS["driver"])
        digest = [sys.executable, "-m", "daskrl.cli", "digest", command[command.index("--store") + 1]]
        digests.append(subprocess.run(digest, check=True, capture_output=True, text=True).stdout)
    assert digests[0] == digests[1]
    assert len(digests[0].strip()) == 64


def test_the_learners_process_has_the_threads_of_its_cores_and_those_of_rollouts_one(node: Node) -> None:
    def threads() -> set[str | None]:
        return {os.environ.get(name) for name in THREADS}

    with Client(node.address, security=node.security()) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        found = client.run(threads)
    learners = {address for address, info in workers.items() if has_learner_resource(info["resources"])}
    assert [workers[a]["name"] for a in learners] == [f"{DOCUMENTS['DaskWorkerGroup']['metadata']['name']}-worker-0"]
    assert found == {a: {"4" if a in learners else "1"} for a in workers}


def test_who_has_no_certificate_or_another_one_is_refused(node: Node) -> None:
    with pytest.raises(OSError):  # noqa: PT011 - what it says depends on who closes first
        Client(node.address.replace("tls://", "tcp://"), timeout=2)
    with pytest.raises(OSError, match="TLS certificate does not match"):
        Client(node.address, security=Security.temporary(), timeout=30)
    silent = ssl.create_default_context(cafile=node.place / "daskrl-tls" / "ca.crt")
    silent.check_hostname = False
    silent.verify_flags &= ~ssl.VERIFY_X509_STRICT  # as Dask does
    with (
        socket.create_connection(("127.0.0.1", node.ports["8786"]), timeout=30) as raw,
        silent.wrap_socket(raw) as connection,
        pytest.raises(ssl.SSLError, match="certificate required"),
    ):
        connection.recv(1)


def test_http_is_on_loopback_and_the_scheduler_is_where_the_probes_look(node: Node) -> None:
    for name in ("scheduler", "rollout", "learner"):
        assert option(container_of(name), "--dashboard-address").startswith("127.0.0.1:")
    scheduler = psutil.Process(node.processes[0].pid)
    listening = {c.laddr for c in scheduler.net_connections() if c.status == psutil.CONN_LISTEN}
    assert listening == {("127.0.0.1", node.ports["8786"]), ("127.0.0.1", node.ports["8787"])}


def test_the_operator_closes_workers_of_the_group_it_scales_and_never_the_learners(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = made_by_the_operator()
    ports = {p["name"]: str(p["containerPort"]) for c in PODS["scheduler"]["containers"] for p in c["ports"]}
    reached = {p["name"]: node.ports[ports[p["targetPort"]]] for p in SERVICE["ports"]}

    async def address(service: str, namespace: str, port_name: str = "tcp-comm", **_: Any) -> str:
        return f"tcp://127.0.0.1:{reached[port_name]}"

    async def get(kind: str, namespace: str, label_selector: dict[str, str]) -> AsyncIterator[Any]:
        for deployment in made.values():
            if label_selector.items() <= deployment["metadata"]["labels"].items():
                yield SimpleNamespace(name=deployment["metadata"]["name"])

    def closed_by_the_operator(group: str) -> list[str]:
        labels = made[group]["metadata"]["labels"]
        logger = logging.getLogger(__name__)
        with dask.config.set({"distributed.comm.timeouts.connect": "2s"}):
            return asyncio.run(
                controller.retire_workers(
                    1, f"{NAME}-scheduler", labels["dask.org/workergroup-name"], "default", logger
                )
            )

    monkeypatch.setattr(controller, "get_scheduler_address", address)
    monkeypatch.setattr(controller.kr8s.asyncio, "get", get)
    assert closed_by_the_operator("rollout-0") == [made["rollout-1"]["metadata"]["name"]]
    reached["http-dashboard"] = free_port()  # without the container that answers
    with pytest.raises(aiohttp.ClientConnectorError):
        closed_by_the_operator("rollout-0")
