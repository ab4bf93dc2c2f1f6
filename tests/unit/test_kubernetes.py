"""The job template: what Kubernetes' own schema, its Python client and MLflow's backend make of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes import client

from rhstudy.configs import from_mapping
from rhstudy.errors import InputError
from rhstudy.kubernetes import KubernetesConfig, job_template, launch_command, run

REPOSITORY = "registry.example.org/me/rhstudy"
CONFIGS = {
    "as it comes": KubernetesConfig(repository=REPOSITORY),
    "no GPU": KubernetesConfig(repository=REPOSITORY, num_gpus=0),
    "everything": KubernetesConfig(
        repository="localhost:5000/rhstudy", namespace="research", context="lab", num_gpus=2, num_cpus=16,
        memory="64Gi", shared_memory="512Mi", node_selector={"nvidia.com/gpu.product": "H100", "zone": "true"},
        data_claim="public-data", login_secret="mlflow-login", pull_secret="registry", uid=1234, gid=77,
        tracking_uri="https://mlflow.example.org", time_limit_s=3600, keep_finished_s=600,
    ),
}  # fmt: skip


def filled(config: KubernetesConfig, folder: Path) -> dict[str, Any]:
    """The job that MLflow makes of the written files, for a command of our project."""
    from mlflow.projects import _parse_kubernetes_config
    from mlflow.projects.kubernetes import _get_kubernetes_job_definition, _get_run_command

    facts = run(
        KubernetesConfig(**{**{name: getattr(config, name) for name in config.__slots__}, "output": str(folder)})
    )
    parsed = _parse_kubernetes_config(json.loads(Path(facts["backend_config"]).read_text()))
    command = "rhstudy --skip-empty detect 'my config.toml' --data 0123 --checkpoint ''"
    env = {"MLFLOW_RUN_ID": "ab" * 16, "MLFLOW_TRACKING_URI": "http://mlflow:5000", "MLFLOW_EXPERIMENT_ID": "1"}
    job = _get_kubernetes_job_definition(
        "rhstudy", parsed["repository-uri"] + ":1234567", "sha256:" + "0" * 64, _get_run_command([command]), env,
        parsed["kube-job-template"],
    )  # fmt: skip
    assert parsed.get("kube-context", "") == config.context
    return dict(job)


def as_the_client_sees_it(job: dict[str, Any]) -> Any:
    """Through the official client's V1Job and back: it drops what it does not know."""
    api = client.ApiClient()
    known = api.deserialize(SimpleNamespace(data=json.dumps(job)), "V1Job")
    return api.sanitize_for_serialization(known)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_filled_template_is_a_valid_job(config: KubernetesConfig, tmp_path: Path) -> None:
    job = filled(config, tmp_path)
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    assert as_the_client_sees_it(job) == job
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["image"].startswith(config.repository)
    names = [item["name"] for item in container["env"]]
    assert names.count("MLFLOW_RUN_ID") == 1
    assert {"RHSTUDY_CACHE", "MLFLOW_TRACKING_URI"} <= set(names)
    mounted = {item["name"] for item in container["volumeMounts"]}
    assert mounted == {item["name"] for item in job["spec"]["template"]["spec"]["volumes"]}


def test_a_misspelt_key_would_be_found(tmp_path: Path) -> None:
    job = filled(CONFIGS["everything"], tmp_path)
    wrong = copy.deepcopy(job)
    wrong["spec"]["template"]["spec"]["nodeSelektor"] = wrong["spec"]["template"]["spec"].pop("nodeSelector")
    assert as_the_client_sees_it(wrong) != wrong
    with pytest.raises(kubernetes_validate.ValidationError, match="nodeSelektor"):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_gpus_are_asked_for_only_when_wanted() -> None:
    with_gpus, without = (job_template(CONFIGS[name]) for name in ("everything", "no GPU"))
    assert with_gpus["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert with_gpus["spec"]["template"]["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert "nvidia.com/gpu" not in json.dumps(without)


def test_the_file_reads_back_as_the_template(tmp_path: Path) -> None:
    config = CONFIGS["everything"]
    filled(config, tmp_path)
    # A label "true" must stay text.
    assert yaml.safe_load((tmp_path / "kubernetes-job.yaml").read_text()) == job_template(config)


def test_no_secret_is_in_the_files(tmp_path: Path) -> None:
    template = job_template(CONFIGS["everything"])
    container = template["spec"]["template"]["spec"]["containers"][0]
    assert container["envFrom"] == [{"secretRef": {"name": "mlflow-login"}}]
    assert "MLFLOW_TRACKING_PASSWORD" not in json.dumps(template)


def test_the_launch_line_names_the_server_the_cluster_sees() -> None:
    line = launch_command(CONFIGS["everything"])
    assert line.startswith("KUBE_MLFLOW_TRACKING_URI=https://mlflow.example.org mlflow run . -b kubernetes ")
    assert "KUBE_MLFLOW" not in launch_command(CONFIGS["as it comes"])


BAD = {
    "namespace": ("Research_Lab", r"kubernetes\.namespace must be a DNS label, got 'Research_Lab'\. Use lower-case"),
    "repository": ("me/rhstudy:0.1.0", r"kubernetes\.repository must be an image repository without a tag"),
    "memory": ("32 GB", r"kubernetes\.memory must be a whole number of Ki, Mi, Gi or Ti, got '32 GB'"),
    "shared_memory": ("0Gi", r"kubernetes\.shared_memory must be a whole number"),
    "num_gpus": (-1, r"kubernetes\.num_gpus must be at least 0, got -1"),
    "num_cpus": (0, r"kubernetes\.num_cpus must be at least 1, got 0"),
    "uid": (0, r"kubernetes\.uid must be at least 1, got 0"),
    "keep_finished_s": (5, r"kubernetes\.keep_finished_s must be at least 60, got 5"),
    "cache_claim": ("", r"kubernetes\.cache_claim must name a claim, got ''"),
    "data_claim": ("a b", r"kubernetes\.data_claim must be empty or a name, got 'a b'"),
    "node_selector": ({"gpu": "a b"}, r"kubernetes\.node_selector must hold labels, got 'gpu=a b'"),
    "tracking_uri": ("sqlite:///mlflow.db", r"kubernetes\.tracking_uri must begin with http:// or https://"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused(name: str) -> None:
    value, text = BAD[name]
    with pytest.raises(InputError, match=text):
        from_mapping(KubernetesConfig, {"repository": REPOSITORY, name: value})


def test_a_login_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match=r"must be without a password, got 'http://\*\*\*@mlflow'") as refused:
        KubernetesConfig(repository=REPOSITORY, tracking_uri="http://ada:sesame@mlflow")
    assert "sesame" not in str(refused.value)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"kubernetes\.output must be a folder to write in"):
        run(KubernetesConfig(repository=REPOSITORY, output=str(tmp_path / "file")))
