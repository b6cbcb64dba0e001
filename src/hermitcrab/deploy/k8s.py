"""k8s: one manifests.yaml for the image of `docker`: Deployment, Service, PodDisruptionBudget, NetworkPolicy, and where asked
for a HorizontalPodAutoscaler; a ConfigMap with the signer's public key where it was given.

A secret is referred to by name and never written; the package is a volume that is only read; the pod reaches nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hermitcrab.deploy import Made
from hermitcrab.deploy.serving import (
    DRAIN,
    KEY_FILE,
    KEY_FOLDER,
    KEY_VARIABLE,
    LABEL,
    LIVE,
    MODEL_FOLDER,
    PORT,
    READY,
    USER,
    about,
    as_yaml,
    command,
    image_of,
    memory,
    slug,
)
from hermitcrab.errors import UsageError
from hermitcrab.lineage.card import plain
from hermitcrab.packaged import Packaged

if TYPE_CHECKING:
    from hermitcrab.deploy import Options

NAME = "manifests.yaml"
SECRET_KEY = "api-key"
LEAVING = 5  # seconds that a pod still answers after it was told to end, until no service sends to it
SPARE = 10  # seconds more than leaving and draining take, before the pod is killed
PATIENCE = 10  # seconds for an answer to a probe: the server itself gives its engine five
SLOWEST = 50e6  # bytes of weights a second that a start is given time for
BUSY = 70  # percent of the processors asked for, at which the autoscaler adds a server


def make(package: Packaged, options: Options) -> Made:
    """manifests.yaml.

    Raises:
        UsageError: a name that Kubernetes would refuse, fewer servers at most than at least, or no weights.
    """
    name = slug(package.name)
    volume, secret = _named("--volume", options.volume, name), _named("--secret", options.secret, f"{name}-api-key")
    if options.autoscale is not None and options.autoscale <= options.replicas:
        raise UsageError(
            f"--autoscale: expected more than --replicas {options.replicas}. Received: {options.autoscale}"
        )
    documents = [
        *([_config_map(name, options.signer)] if options.signer is not None else []),
        deployment(package, options, name, volume, secret),
        _service(name),
        _disruption_budget(name),
        _network_policy(name),
        *([_autoscaler(name, options.replicas, options.autoscale)] if options.autoscale is not None else []),
    ]
    several = options.replicas > 1 or options.autoscale is not None
    notes = [
        f"volume claim `{volume}`: holds the package at its top, read-only" + (" by many nodes" if several else ""),
        f"secret `{secret}`: holds the clients' key under `{SECRET_KEY}`",
        f"clients: pods of the same namespace with the label hermitcrab/client-of: {name}",
        "memory is an estimate from the size of the weights; measure it, then set it",
    ]
    return Made({NAME: as_yaml(*documents)}, notes=tuple(notes))


def deployment(package: Packaged, options: Options, name: str, volume: str, secret: str) -> dict[str, Any]:
    spec = {
        **({"replicas": options.replicas} if options.autoscale is None else {}),  # else it is the autoscaler's to set
        "selector": {"matchLabels": _labels(name)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {
            "metadata": {"labels": _labels(name), "annotations": about(package)},
            "spec": {
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "securityContext": {
                    "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"},
                },
                "terminationGracePeriodSeconds": LEAVING + DRAIN + SPARE,
                "containers": [_container(package, options, secret)],
                "volumes": _volumes(name, volume, options.signer is not None),
            },
        },
    }  # fmt: skip
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": _metadata(name), "spec": spec}


def _container(package: Packaged, options: Options, secret: str) -> dict[str, Any]:
    needed = f"{memory(package) >> 20}Mi"
    mounts = [
        {"name": "package", "mountPath": MODEL_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
        *([{"name": "keys", "mountPath": KEY_FOLDER, "readOnly": True}] if options.signer is not None else []),
    ]
    return {
        "name": "serve",
        "image": image_of(options.image),
        "imagePullPolicy": "IfNotPresent",
        "args": command(package, options.signer is not None),
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "env": [{"name": KEY_VARIABLE, "valueFrom": {"secretKeyRef": {"name": secret, "key": SECRET_KEY}}}],
        "resources": {
            "requests": {"cpu": "1", "memory": needed, "ephemeral-storage": "64Mi"},
            "limits": {"memory": needed, "ephemeral-storage": "512Mi"},  # no limit of cpu: it only makes answers late
        },
        "startupProbe": _probe(READY, period=5, failures=12 + round(package.size / SLOWEST / 5)),
        "readinessProbe": _probe(READY, period=5, failures=2),
        "livenessProbe": _probe(LIVE, period=15, failures=4),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(LEAVING)]}}},
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }  # fmt: skip


def _probe(path: str, period: int, failures: int) -> dict[str, Any]:
    get = {"path": path, "port": "http"}
    return {"httpGet": get, "periodSeconds": period, "timeoutSeconds": PATIENCE, "failureThreshold": failures}


def _volumes(name: str, volume: str, signer: bool) -> list[dict[str, Any]]:
    return [
        {"name": "package", "persistentVolumeClaim": {"claimName": volume, "readOnly": True}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
        *([{"name": "keys", "configMap": {"name": f"{name}-signer"}}] if signer else []),
    ]


def _config_map(name: str, signer: bytes) -> dict[str, Any]:
    told = {"name": f"{name}-signer", "labels": _labels(name)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": told, "data": {KEY_FILE: signer.decode("ascii")}}


def _service(name: str) -> dict[str, Any]:
    port = {"name": "http", "port": PORT, "targetPort": "http", "protocol": "TCP"}
    spec = {"type": "ClusterIP", "selector": _labels(name), "ports": [port]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(name), "spec": spec}


def _disruption_budget(name: str) -> dict[str, Any]:
    """One at a time may go; of a single server, that one: a budget of none would hold up every drain of its node."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": _labels(name)}}
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": _metadata(name), "spec": spec}


def _network_policy(name: str) -> dict[str, Any]:
    """In: the port, from pods that say they are clients. Out: nothing. Probes of the node are always let in."""
    clients = {"podSelector": {"matchLabels": {"hermitcrab/client-of": name}}}
    spec = {
        "podSelector": {"matchLabels": _labels(name)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [clients], "ports": [{"protocol": "TCP", "port": PORT}]}],
        "egress": [],
    }
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": _metadata(name), "spec": spec}


def _autoscaler(name: str, least: int, most: int) -> dict[str, Any]:
    target = {"type": "Utilization", "averageUtilization": BUSY}
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
        "minReplicas": least,
        "maxReplicas": most,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
    }
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _metadata(name),
        "spec": spec,
    }


def _metadata(name: str) -> dict[str, Any]:
    return {"name": name, "labels": _labels(name)}


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "hermitcrab", "app.kubernetes.io/instance": name}


def _named(option: str, asked: str | None, default: str) -> str:
    if asked is not None and not LABEL.fullmatch(asked):
        raise UsageError(
            f"{option}: expected a name of Kubernetes (lower case letters, digits, dashes). Received: {plain(asked, 80)}"
        )
    return asked or default
