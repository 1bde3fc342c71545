"""The files of cluster/ and jobs/ are what their readers take: Ray, Kubernetes, bash, Docker, and our own commands."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv
from ray.serve.schema import ServeDeploySchema

import sarm_ray.pipelines.serving.application as application
from sarm_ray.cli.submit import describe, runtime_env
from sarm_ray.config.loading import load_config
from sarm_ray.config.score import ScoreConfig
from sarm_ray.config.serve import ServeConfig, applied_args

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "cluster/kuberay"
SCRIPTS = sorted([*ROOT.glob("cluster/*.sh"), *ROOT.glob("jobs/*.sh"), ROOT / ".ci/run"])
CLUSTERS = ("RayCluster", "RayJob", "RayService")
GROUPS = {"RayCluster": ["decode", "gpu"], "RayJob": ["decode", "gpu"], "RayService": ["gpu"]}

PROGRAM = r"(?:sarm-ray|jobs/submit\.sh|cluster/local\.sh|cluster/slurm\.sh)"

# KubeRay's definitions travel in no Python package: the fields of ours, from its reference of 1.6
FIELDS = {
    "spec": {
        "rayVersion",
        "authOptions",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    },
    "autoscalerOptions": {"version", "upscalingMode", "idleTimeoutSeconds", "resources"},
    "headGroupSpec": {"rayStartParams", "labels", "template"},
    "workerGroupSpecs": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "labels", "template"},
    "RayJob": {
        "entrypoint",
        "metadata",
        "submissionMode",
        "backoffLimit",
        "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished",
        "rayClusterSpec",
    },
    "RayService": {"serveConfigV2", "rayClusterConfig"},
}


def tool(name: str) -> str:
    """A program that a package of the development requirements brings."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert path is not None, f"{name} is missing; make venv"
    return path


def documents(file: Path) -> dict[str, dict]:
    return {document["kind"]: document for document in yaml.safe_load_all(file.read_text())}


def kuberay(kind: str) -> dict:
    return documents(KUBERAY / f"{kind.lower()}.yaml")[kind]


def cluster_of(kind: str) -> dict:
    spec = kuberay(kind)["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def groups_of(kind: str) -> list[dict]:
    spec = cluster_of(kind)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


# ----------------------------------------------------------------------------------------------------------- scripts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    found = subprocess.run([tool("shellcheck"), str(script)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_may_be_executed(script):
    assert os.access(script, os.X_OK)


def test_hadolint_finds_nothing_in_the_dockerfile():
    found = subprocess.run(
        [tool("hadolint"), str(ROOT / "cluster/Dockerfile")], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


def test_the_dockerfile_pins_runs_as_a_user_and_copies_what_the_context_lets_in():
    lines = (ROOT / "cluster/Dockerfile").read_text().replace("\\\n", " ").splitlines()
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[2:-1]]
    assert sorted(copied) == sorted(let_in)
    assert all((ROOT / name).exists() for name in copied)
    assert all("--constraint constraints.txt" in line for line in lines if "pip install" in line and line[0] != "#")
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    runs_as = {
        group["template"]["spec"]["securityContext"]["runAsUser"] for kind in CLUSTERS for group in groups_of(kind)
    }
    assert users == [str(user) for user in runs_as]
    assert users != ["0"]


# ---------------------------------------------------------------------------------------------------------- commands


def commands() -> list[tuple[str, str]]:
    """The sarm-ray command lines in these files: (file, arguments)."""
    found = []
    for file in sorted([*ROOT.glob("cluster/*"), *KUBERAY.glob("*"), *ROOT.glob("jobs/*"), ROOT / "README.md"]):
        if file.is_dir():
            continue
        text = file.read_text()
        if file.name == "README.md":
            text = text[text.index("\n## On a cluster\n") :].split("\n## ", 2)[1]
        for line in re.findall(rf"(?:^[#$ ]*(?:sbatch |entrypoint: )?|`){PROGRAM} ([a-z-][^`\n]*)", text, re.MULTILINE):
            words = shlex.split(line.replace("'", ""), comments=True)
            while words and words[0] in ("--workers", "--cpus", "--gpus"):
                words = words[2:]
            if words and words[0].isalpha() and "--help" not in words:
                found.append((file.name, shlex.join(words)))
    return sorted(set(found))


@pytest.mark.parametrize(("file", "line"), commands())
def test_every_command_line_is_one_that_the_command_takes(file, line):
    assert describe(shlex.split(line))["command"] == line.split()[0]


def test_there_are_command_lines_in_all_that_run_one():
    named = {file for file, _ in commands()}
    assert {
        "local.sh",
        "slurm.sh",
        "submit.sh",
        "aws.yaml",
        "gcp.yaml",
        "raycluster.yaml",
        "rayjob.yaml",
        "README.md",
    } <= named


def test_the_environment_of_jobs_is_one_of_rays():
    file = str(ROOT / "jobs/runtime_env.yaml")
    assert set(runtime_env(file, None, {})) == {"env_vars"}
    full = runtime_env(file, str(ROOT), {"AWS_REGION": "eu-west-1", "HF_TOKEN": "secret"})
    assert full["env_vars"] == {"AWS_REGION": "eu-west-1"}
    assert "*.mp4" in full["excludes"]
    RuntimeEnv(**{**full, "working_dir": "gcs://_ray_pkg_0.zip"})
    text = (ROOT / "jobs/runtime_env.yaml").read_text()
    for name in re.findall(r"# (\w+): \$\{\1\}", text):  # secrets, which a person puts in
        assert name not in yaml.safe_load(text)["env_vars"]


# -------------------------------------------------------------------------------------------------------- Kubernetes


@pytest.mark.parametrize("kind", CLUSTERS)
def test_rays_own_autoscaler_reads_the_cluster(kind):
    resource = {"metadata": {"name": "sarm-ray", "namespace": "default"}, "spec": cluster_of(kind)}
    types = _derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]
    head, *workers = types.values()
    assert (head["resources"]["CPU"], head["resources"].get("GPU", 0)) == (0, 0)
    assert list(types)[1:] == GROUPS[kind]
    for name, worker in zip(GROUPS[kind], workers, strict=True):
        assert worker["labels"] == {"sarm-ray/role": name}
        assert bool(worker["resources"].get("GPU")) == (name == "gpu")
        assert 1 <= worker["min_workers"] < worker["max_workers"]


@pytest.mark.parametrize("kind", CLUSTERS)
def test_pods_are_ones_that_kubernetes_takes(kind):
    for group in groups_of(kind):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_storage_and_configs_are_ones_that_kubernetes_takes():
    for file in KUBERAY.glob("*.yaml"):
        for document in yaml.safe_load_all(file.read_text()):
            if document["apiVersion"] == "v1":
                kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
            else:
                assert (document["apiVersion"], document["kind"] in CLUSTERS) == ("ray.io/v1", True)


@pytest.mark.parametrize("kind", CLUSTERS)
def test_fields_of_kuberay(kind):
    spec = cluster_of(kind)
    assert set(spec) <= FIELDS["spec"]
    assert set(spec["autoscalerOptions"]) <= FIELDS["autoscalerOptions"]
    assert set(spec["headGroupSpec"]) <= FIELDS["headGroupSpec"]
    assert all(set(group) <= FIELDS["workerGroupSpecs"] for group in spec["workerGroupSpecs"])
    if kind in FIELDS:
        assert set(kuberay(kind)["spec"]) <= FIELDS[kind]
    for group in groups_of(kind):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("kind", CLUSTERS)
def test_names_and_ports_agree(kind):
    spec = cluster_of(kind)
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert spec["rayVersion"] == pinned[1] == ray.__version__
    secrets = re.findall(r"create secret generic (\S+) --from-literal=(\w+)", (KUBERAY / "storage.yaml").read_text())
    named = dict(secrets)
    assert (spec["authOptions"], named["sarm-ray-token"]) == (
        {"mode": "token", "secretName": "sarm-ray-token"},
        "auth_token",
    )
    head, *workers = groups_of(kind)
    claims = {claim["metadata"]["name"] for claim in yaml.safe_load_all((KUBERAY / "storage.yaml").read_text())}
    configs = {"sarm-ray-jobs"} if kind == "RayJob" else set()
    for group in (head, *workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["name"] == ("ray-head" if group is head else "ray-worker")
        assert container["image"] == "sarm-ray:0.1.0"
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        used = {key: volume[key] for volume in pod["volumes"] for key in volume if key != "name"}
        assert {
            v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
        } == claims
        assert {used["configMap"]["name"]} == configs if "configMap" in used else not configs
        assert "secret" not in used or used["secret"]["secretName"] in named
        assert {source["secretRef"]["name"] for source in container["envFrom"]} <= set(named)
        assert {"readinessProbe", "livenessProbe"} <= set(container)
        if "GPU" in str(container["resources"]).upper():
            assert container["resources"]["requests"] == container["resources"]["limits"]
    ports = {port["name"]: port["containerPort"] for port in head["template"]["spec"]["containers"][0]["ports"]}
    assert ports.items() >= {"gcs-server": 6379, "dashboard": 8265, "client": 10001}.items()


def test_probes_ask_where_no_token_is_wanted():
    dashboard = Path(ray.__file__).parent / "dashboard"
    says = {
        8265: (dashboard / "http_server_head.py").read_text(),
        52365: (dashboard / "http_server_agent.py").read_text(),
    }
    asked = re.findall(r"path: (/api/\S+), port: (\d+)", "".join(f.read_text() for f in KUBERAY.glob("ray*.yaml")))
    assert asked
    for path, port in asked:
        _, public = says[int(port)].rsplit("PUBLIC_EXACT_PATHS = [" if port == "52365" else "public_exact_paths = ", 1)
        assert f'"{path}"' in public.split("\n\n")[0]


def test_the_job_runs_on_the_cluster_of_raycluster_yaml_with_a_config_of_score():
    def bare(kind):
        spec = cluster_of(kind)
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] != "jobs"]
            mounts = pod["containers"][0]["volumeMounts"]
            pod["containers"][0]["volumeMounts"] = [mount for mount in mounts if mount["name"] != "jobs"]
        return spec

    assert bare("RayJob") == bare("RayCluster")
    job = documents(KUBERAY / "rayjob.yaml")
    (name, text) = next(iter(job["ConfigMap"]["data"].items()))
    assert job["RayJob"]["spec"]["entrypoint"] == f"sarm-ray score --config /etc/sarm-ray/{name}"
    load_config(ScoreConfig, None, yaml.safe_load(text))


def test_the_service_is_one_that_serve_deploys():
    config = ServeDeploySchema.model_validate(yaml.safe_load(kuberay("RayService")["spec"]["serveConfigV2"]))
    (served,) = config.applications
    module, _, name = served.import_path.partition(":")
    assert (module, callable(getattr(application, name))) == (application.__name__, True)
    args = load_config(ServeConfig, None, {**applied_args(served.args), "host": "0.0.0.0"})  # as `app` does
    assert args.token_file.startswith("/etc/sarm-ray/")
    ports = [group["template"]["spec"]["containers"][0]["ports"] for group in groups_of("RayService")]
    assert all({"name": "serve", "containerPort": config.http_options.port} in those for those in ports)


# ------------------------------------------------------------------------------------------------------------- cloud


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_ray_up_takes_the_file(name):
    config = yaml.safe_load((ROOT / f"cluster/{name}.yaml").read_text())
    full = prepare_config(config)
    validate_config(full)
    types = full["available_node_types"]
    assert list(types) == ["head", "decode", "gpu"]
    assert {kind: of["labels"] for kind, of in types.items()} == {kind: {"sarm-ray/role": kind} for kind in types}
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert all(types[kind]["min_workers"] >= 1 for kind in ("decode", "gpu"))
    assert "RAY_AUTH_MODE=token" in str(config["docker"]["run_options"])
    assert "/home/ray/.ray/auth_token" in config["file_mounts"]


@pytest.mark.parametrize(
    "file", [*ROOT.glob("cluster/*.*"), *KUBERAY.glob("*"), ROOT / "cluster/Dockerfile"], ids=lambda p: p.name
)
def test_each_file_says_what_to_edit_what_it_costs_and_how_to_watch(file):
    head = re.split(r"^[^#\n]", file.read_text(), maxsplit=1, flags=re.MULTILINE)[0]
    assert "# Edit: " in head
    assert "# Costs" in head
    assert "# Watch: " in head or file.name in ("Dockerfile", "storage.yaml")
