"""The files that start clusters and jobs, read by the code of Ray that reads them there."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray._private.runtime_env.packaging import create_package
from ray._private.runtime_env.working_dir import upload_working_dir_if_needed
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount
from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args

from sciqa.cli import parse_cli_options
from sciqa.core import cluster, model_workers
from sciqa.core.options import RunOptions
from sciqa.run import RunExamOptions

ROOT = Path(__file__).parent.parent
FILES = ("cluster.yaml", "kuberay.yaml")
#: Bytes of a model of seven billion parameters in 16 bits.
WEIGHTS = 14_500_000_000


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((ROOT / name).read_text()))


def autoscaling(name: str) -> AutoscalingConfig:
    """What Ray's autoscaler makes of a file; it checks the file against Ray's schema."""
    config = documents(name)[0]
    if config.get("kind") == "RayCluster":
        config["metadata"]["namespace"] = "default"  # as Kubernetes fills it in
        config = _derive_autoscaling_config_from_ray_cr(config)
    return AutoscalingConfig(config, skip_content_hash=True)


def workers(name: str) -> dict[str, dict]:
    """Resources of the types of nodes that work, by their names."""
    config = autoscaling(name)
    types = config.get_node_type_configs().items()
    return {kind: about.resources for kind, about in types if kind != config.get_head_node_type()}


def started(name: str, demands: list[dict]) -> dict[str, int]:
    """Return how many nodes of which types Ray's autoscaler starts for all of the demands."""
    config = autoscaling(name)
    requests = [ResourceRequestByCount(request=ResourceRequestUtil.make(demand), count=1) for demand in demands]
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=requests,
        )
    )
    unmet = Counter(unmet=len(reply.infeasible_resource_requests))
    return dict(+(unmet + Counter({launch.instance_type: launch.count for launch in reply.to_launch})))


@pytest.mark.parametrize("name", FILES)
def test_only_the_head_stays_and_it_runs_no_work(name):
    config = autoscaling(name)
    types = config.get_node_type_configs()
    head = types.pop(config.get_head_node_type())
    assert head.resources["CPU"] == 0
    assert not head.resources.get("GPU")
    assert {about.min_worker_nodes for about in types.values()} == {0}
    assert sum(about.max_worker_nodes for about in types.values()) == config.get_max_num_worker_nodes()
    assert 60 <= config.get_idle_timeout_s() <= 600


@pytest.mark.parametrize(
    ("section", "change"), [("resources", {"CPU": 0.5}), ("min_workers", "none"), ("spot", True), ("resources", None)]
)
def test_the_schema_refuses_what_ray_does_not_know(section, change):
    config = documents("cluster.yaml")[0]
    config["available_node_types"]["cpu"][section] = change
    with pytest.raises(jsonschema.ValidationError):
        AutoscalingConfig(config, skip_content_hash=True)


def test_what_can_be_lost_is_on_spot():
    types = documents("cluster.yaml")[0]["available_node_types"]
    spot = {kind for kind, about in types.items() if "InstanceMarketOptions" in about["node_config"]}
    assert spot == {"cpu", "gpu"}


@pytest.mark.parametrize(
    ("name", "accelerator", "count", "expected"),
    [
        ("cluster.yaml", "cpu", 2, {"cpu": 2}),
        ("cluster.yaml", "gpu", 1, {"gpu": 1}),
        ("cluster.yaml", "A10G", 2, {"gpu": 2}),
        ("cluster.yaml", "A10G", 3, {"gpu": 2, "unmet": 1}),
        ("cluster.yaml", "L40S", 4, {"training": 1}),
        ("kuberay.yaml", "cpu", 2, {"cpu": 2}),
        ("kuberay.yaml", "A10G", 2, {"gpu": 2}),
    ],
)
def test_the_autoscaler_brings_the_node_that_model_workers_ask_for(name, accelerator, count, expected, monkeypatch):
    # A cluster that has a node of each type: no machine here could be it.
    nodes = [{"Alive": True, "Resources": resources} for resources in workers(name).values()]
    monkeypatch.setattr(cluster, "_nodes", lambda: nodes)
    total = sum((Counter(node["Resources"]) for node in nodes), Counter())
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
    options = RunOptions(accelerator=accelerator)
    if accelerator in ("A10G", "L40S"):  # a node of each type has so many of that kind
        of_kind = sum(
            each.get("GPU", 0) for each in workers(name).values() if f"accelerator_type:{accelerator}" in each
        )
        assert cluster.num_cluster_workers(options, 100) == of_kind
    pool = model_workers.model_worker_pool(options, count, count, WEIGHTS)
    # Ray asks for a trace of a named accelerator.
    asked = {"CPU": pool["num_cpus"], "GPU": pool["num_gpus"], "memory": pool["memory"]}
    asked |= {f"accelerator_type:{pool['accelerator_type']}": 0.001} if pool["accelerator_type"] else {}
    asked = {resource: amount for resource, amount in asked.items() if amount}
    assert started(name, [asked] * count) == expected
    trained = cluster.cluster_worker_needs(options, count, WEIGHTS) | {key: asked[key] for key in asked if ":" in key}
    assert started(name, [trained] * count) == expected


@pytest.mark.parametrize("name", FILES)
def test_tasks_bring_nodes_without_gpus_up_to_the_most(name):
    assert started(name, [{"CPU": 1}] * 160) == {"cpu": 10}
    assert started(name, [{"CPU": cluster.SEARCH_CPUS}] * 16) == {"cpu": 1}
    assert started(name, [{"GPU": 1, "accelerator_type:H100": 0.001}]) == {"unmet": 1}


@pytest.mark.parametrize("name", FILES)
def test_accelerators_in_the_examples_are_there(name):
    named = set(re.findall(r"--accelerator ([A-Z]\w+)", (ROOT / name).read_text()))
    offered = {kind for resources in workers(name).values() for kind in resources if kind.startswith("accelerator_")}
    assert {f"accelerator_type:{kind}" for kind in named} <= offered


def test_nodes_install_this_project_from_its_pinned_files():
    config = documents("cluster.yaml")[0]
    mounts = dict(config["file_mounts"])
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert all((ROOT / local).exists() for local in mounts.values())
    assert all(remote == f"~/sciqa/{local}" for remote, local in mounts.items())
    commands = config["setup_commands"] + config["head_setup_commands"]
    named = set(re.findall(r"~/sciqa/([\w.]+)", " ".join(commands)))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert named == {"constraints.txt", "demo.txt"}
    assert named | {"pyproject.toml", "sciqa", project["readme"], *project["license-files"]} == set(mounts.values())
    readme = (ROOT / "README.md").read_text()
    for line in config["setup_commands"][-2:]:  # as README says to
        assert (
            line.replace("~/venv", ".venv").replace("~/sciqa/", "").replace("~/sciqa'[all]'", "'.[all]'") + " &&"
            in readme
        )


def test_jobs_need_a_token_and_a_tunnel():
    config = documents("cluster.yaml")[0]
    assert any("export RAY_AUTH_MODE=token" in line for line in config["setup_commands"])
    (start,) = (line for line in config["head_start_ray_commands"] if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in start
    assert "security_group" not in config["provider"]  # Ray's own opens ssh alone


def test_the_bucket_is_checked_before_any_job(tmp_path):
    check = documents("cluster.yaml")[0]["head_setup_commands"][-1].replace("~/venv/bin/python", sys.executable)

    def run(folder: str) -> subprocess.CompletedProcess:
        command = check.replace("s3://YOUR-BUCKET/sciqa", folder)
        assert command != check
        return subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert run(f"{tmp_path}/run").returncode == 0
    refused = run("/proc/run")
    assert refused.returncode != 0
    assert "/proc/run: cannot be written" in refused.stderr


def test_the_manifest_says_what_kuberay_relies_on():
    ray_cluster, ray_job = documents("kuberay.yaml")
    assert [document["apiVersion"] for document in (ray_cluster, ray_job)] == ["ray.io/v1"] * 2
    spec = ray_cluster["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"]
    assert spec["rayVersion"] == ray.__version__
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    (containers,) = zip(*(group["template"]["spec"]["containers"] for group in groups), strict=True)
    for container in containers:
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert len({container["image"] for container in containers}) == 1
    assert len({group["template"]["spec"]["serviceAccountName"] for group in groups}) == 1
    assert all(isinstance(value, str) for group in groups for value in group["rayStartParams"].values())
    assert all(isinstance(value, str) for group in groups for value in group.get("resources", {}).values())
    assert ray_job["spec"]["clusterSelector"] == {"ray.io/cluster": ray_cluster["metadata"]["name"]}
    program, step, *arguments = shlex.split(ray_job["spec"]["entrypoint"])
    assert (program, step) == ("sciqa", "exam")
    assert parse_cli_options(RunExamOptions, step, "answer", arguments).output == "s3://YOUR-BUCKET/run"


@pytest.mark.parametrize("follow_gitignore", [True, False])
def test_a_job_takes_the_code_along_and_no_data(follow_gitignore, tmp_path):
    checkout, package = tmp_path / "checkout", tmp_path / "package.zip"
    checkout.mkdir()
    shutil.copy(ROOT / ".gitignore", checkout)
    for folder in ("sciqa", "jobs"):
        shutil.copytree(ROOT / folder, checkout / folder)
    code = {str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    left = [".git/HEAD", ".venv/bin/python", "venv/bin/python", "sciqa-run/answers/part.jsonl", "sciqa-run-2/exam.csv"]
    left += ["data/wiki.jsonl", "enwiki.xml.bz2", "articles.parquet", "papers/a.pdf", "models/model.safetensors"]
    left += ["sciqa/__pycache__/a.pyc", "sciqa.egg-info/PKG-INFO", "build/lib/a.py", "tests/a.py", "model.gguf"]
    for name in [*left, "questions.csv", "options.yaml"]:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("x")
    environment = parse_runtime_env_args(str(ROOT / "jobs/runtime_env.yaml"), working_dir=str(checkout))

    def upload(folder: str, excludes: list[str]) -> None:
        create_package(folder, package, include_gitignore=follow_gitignore, excludes=excludes)

    upload_working_dir_if_needed(environment, include_gitignore=follow_gitignore, upload_fn=upload)
    packed = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
    assert packed == code | {"questions.csv", "options.yaml"}
    assert {"jobs/exam.py", "sciqa/cli.py", "sciqa/report/report.html.j2", "sciqa/exam/data/test.jsonl"} <= packed
    assert package.stat().st_size < 4_000_000
