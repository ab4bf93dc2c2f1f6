"""What MLflow's Kubernetes backend needs to run a stage on a cluster: a job template and a backend config.

`mlflow run -b kubernetes` fills in the job's name, image and command and waits for its end. Nothing here talks to a
cluster; the account of this machine's ``kubectl`` is what MLflow uses.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rhstudy.configs import require_at_least
from rhstudy.errors import masked, require
from rhstudy.tracking.atomic_files import write_text

TEMPLATE = "kubernetes-job.yaml"
BACKEND = "kubernetes-backend.json"
GPU = "nvidia.com/gpu"
CACHE, DATA = "/cache", "/data"
# MLflow quotes each argument of the container's command for a shell that never sees it; the command line undoes that.
QUOTED_ARGUMENTS = "RHSTUDY_QUOTED_ARGUMENTS"
# MLflow asks every 5 s how the job ended; one that is gone by then counts as an error.
MIN_KEEP_S = 60

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_NAME = rf"{_LABEL}(\.{_LABEL})*"
_WORD = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_REPOSITORY = r"([a-z0-9.-]+(:\d+)?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
_BYTES = r"[1-9]\d*(Ki|Mi|Gi|Ti)"

_HEADER = """\
# Job template for `mlflow run -b kubernetes`; MLflow adds the job's name and the container's name, image and command.
# Written by `rhstudy kubernetes`: change its flags or TOML rather than this file.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesConfig:
    """How stages run on a cluster.

    Attributes:
        repository: image repository that the cluster pulls from, without a tag: ``registry.example.org/me/rhstudy``.
        output: folder to write the two files to.
        namespace: namespace of the job.
        context: kubectl context; empty means the current one.
        num_gpus: GPUs of the job; 0 for none.
        num_cpus: CPU cores to ask for, and the number of threads.
        memory: memory to ask for and the limit, for instance 32Gi.
        shared_memory: size of /dev/shm, for loader processes and NCCL; part of `memory`.
        node_selector: labels a node must have.
        cache_claim: PersistentVolumeClaim for /cache: models, downloads and what makes unfinished work resumable.
        data_claim: PersistentVolumeClaim with the public data sets, mounted read-only as /data; empty for none.
        login_secret: Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; empty for none.
        pull_secret: Secret for a private registry; empty for none.
        tracking_uri: address of the tracking server as seen from the cluster; empty means the launcher's own.
        uid: user the container runs as.
        gid: its group, which also owns the volumes.
        time_limit_s: seconds after which the job is stopped; 0 for none.
        keep_finished_s: seconds a finished job and its log are kept.
    """

    repository: str
    output: str = "kubernetes"
    namespace: str = "default"
    context: str = ""
    num_gpus: int = 1
    num_cpus: int = 4
    memory: str = "32Gi"
    shared_memory: str = "2Gi"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    cache_claim: str = "rhstudy-cache"
    data_claim: str = ""
    login_secret: str = ""
    pull_secret: str = ""
    tracking_uri: str = ""
    uid: int = 1000
    gid: int = 1000
    time_limit_s: int = 0
    keep_finished_s: int = 86400

    def __post_init__(self) -> None:
        least = {"num_cpus": 1, "uid": 1, "gid": 1, "keep_finished_s": MIN_KEEP_S}
        require_at_least(self, "kubernetes", num_gpus=0, time_limit_s=0, **least)
        remedy = "Leave out the tag, which MLflow makes from the commit; lower case only"
        _require_form(self, "repository", _REPOSITORY, "be an image repository without a tag", remedy)
        _require_form(self, "namespace", _LABEL, "be a DNS label", "Use lower-case letters, digits and -")
        for name in ("memory", "shared_memory"):
            _require_form(self, name, _BYTES, "be a whole number of Ki, Mi, Gi or Ti", "Write 32Gi, for instance")
        _require_form(self, "cache_claim", _NAME, "name a claim", "Use lower-case letters, digits, - and .")
        for name in ("data_claim", "login_secret", "pull_secret"):
            _require_form(self, name, f"({_NAME})?", "be empty or a name", "Use lower-case letters, digits, - and .")
        for key, value in self.node_selector.items():
            valid = re.fullmatch(rf"({_NAME}/)?{_WORD}", key) and re.fullmatch(f"({_WORD})?", value)
            remedy = "kubectl get nodes --show-labels lists those there are"
            require(bool(valid), "kubernetes.node_selector", "hold labels", f"{key}={value}", remedy)
        remedy = "Put the login into a Secret and name it as kubernetes.login_secret"
        got = masked(self.tracking_uri)
        require(got == self.tracking_uri, "kubernetes.tracking_uri", "be without a password", got, remedy)
        remedy = "A pod sees no file of this machine: start `mlflow server` where the cluster reaches it"
        reachable = not self.tracking_uri or bool(re.match(r"https?://[^/]", self.tracking_uri))
        require(reachable, "kubernetes.tracking_uri", "begin with http:// or https://", got, remedy)


def _require_form(config: KubernetesConfig, name: str, pattern: str, must: str, remedy: str) -> None:
    value = getattr(config, name)
    require(re.fullmatch(pattern, value) is not None, f"kubernetes.{name}", must, value, remedy)


def job_template(config: KubernetesConfig) -> dict[str, Any]:
    """The Job (batch/v1) without what MLflow adds."""
    spec: dict[str, Any] = {
        "backoffLimit": 0,
        "ttlSecondsAfterFinished": config.keep_finished_s,
        "template": {"metadata": {"labels": {"app.kubernetes.io/name": "rhstudy"}}, "spec": _pod(config)},
    }
    if config.time_limit_s:
        spec["activeDeadlineSeconds"] = config.time_limit_s
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"namespace": config.namespace}, "spec": spec}


def _pod(config: KubernetesConfig) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": config.uid,
            "runAsGroup": config.gid,
            "fsGroup": config.gid,
            # A cache of many gigabytes would be walked at every start otherwise.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(config)],
        "volumes": _volumes(config),
    }
    if config.num_gpus:
        pod["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    if config.node_selector:
        pod["nodeSelector"] = dict(config.node_selector)
    if config.pull_secret:
        pod["imagePullSecrets"] = [{"name": config.pull_secret}]
    return pod


def _container(config: KubernetesConfig) -> dict[str, Any]:
    # A pod sees all cores of its node; torch would start a thread for each.
    env = {"RHSTUDY_CACHE": CACHE, "HF_HOME": f"{CACHE}/huggingface", "OMP_NUM_THREADS": str(config.num_cpus)}
    env[QUOTED_ARGUMENTS] = "1"
    mounts: list[dict[str, Any]] = [{"name": "cache", "mountPath": CACHE}, {"name": "shm", "mountPath": "/dev/shm"}]
    if config.data_claim:
        env["RHSTUDY_DATA"] = DATA
        mounts.append({"name": "data", "mountPath": DATA, "readOnly": True})
    limits: dict[str, Any] = {"memory": config.memory} | ({GPU: str(config.num_gpus)} if config.num_gpus else {})
    container: dict[str, Any] = {
        "resources": {"requests": {"cpu": str(config.num_cpus), "memory": config.memory}, "limits": limits},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "env": [{"name": name, "value": value} for name, value in env.items()],
        "volumeMounts": mounts,
    }
    if config.login_secret:
        container["envFrom"] = [{"secretRef": {"name": config.login_secret}}]
    return container


def _volumes(config: KubernetesConfig) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        {"name": "cache", "persistentVolumeClaim": {"claimName": config.cache_claim}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": config.shared_memory}},
    ]
    if config.data_claim:
        claim = {"claimName": config.data_claim, "readOnly": True}
        volumes.append({"name": "data", "persistentVolumeClaim": claim})
    return volumes


def backend_config(config: KubernetesConfig) -> dict[str, str]:
    """What ``--backend-config`` holds; the path is absolute, since MLflow takes it from where it runs."""
    template = str((Path(config.output) / TEMPLATE).absolute())
    context = {"kube-context": config.context} if config.context else {}
    return {**context, "repository-uri": config.repository, "kube-job-template-path": template}


def launch_command(config: KubernetesConfig) -> str:
    """The shell command that runs a study on the cluster."""
    address = f"KUBE_MLFLOW_TRACKING_URI={shlex.quote(config.tracking_uri)} " if config.tracking_uri else ""
    backend = shlex.quote(str(Path(config.output) / BACKEND))
    return (
        f"{address}mlflow run . -b kubernetes --backend-config {backend} --build-image"
        " --experiment-name rhstudy -e study -P config=study.toml"
    )


def run(config: KubernetesConfig) -> dict[str, Any]:
    """Write both files and say how to launch; returns the facts of the last line.

    Raises:
        InputError: the folder cannot be written.
    """
    import yaml

    folder = Path(config.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(job_template(config), sort_keys=False, default_flow_style=False)
        write_text(folder / TEMPLATE, _HEADER + text)
        write_text(folder / BACKEND, json.dumps(backend_config(config), indent=2) + "\n")
    except OSError as error:
        remedy = f"Choose another --output; writing failed: {error.strerror}"
        require(False, "kubernetes.output", "be a folder to write in", config.output, remedy)
    command = launch_command(config)
    note = "From a clean clone (MLflow copies the folder into the image), with docker, kubectl's account and"
    print(f"{note} MLFLOW_TRACKING_URI set to a server:\n\n  {command}\n", file=sys.stderr)
    return {"template": str(folder / TEMPLATE), "backend_config": str(folder / BACKEND), "launch": command}
