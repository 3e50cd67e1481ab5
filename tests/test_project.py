"""The repository's own promises: what its documents and deployment files say is there, is there."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from db import lathe_yaml
from db.settings import Settings
from tests.conftest import LONGEST_FIRST

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "api", "cli", "db", "deploy", "llama.cpp", "migrations", "retention", "retrieval", "serving",
    "training_data", "webhooks", "worker",
)  # fmt: skip
# Longer files exist in good codebases; each is a reason to look for the second noun in it.
MOST_LINES = 450
# Variables that are read before there is a Python to read settings with.
SETUP_VARIABLES = {"LATHE_TORCH_INDEX_URL"}

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def read(path: str) -> str:
    return (ROOT / path).read_text()


def load_yaml(path: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(read(path))
    return loaded


def documents() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def anchors(document: Path) -> set[str]:
    """The headings of a document as links name them."""
    prose = re.sub(r"(?ms)^ *```.*?^ *```$", "", document.read_text())
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def python_files() -> list[Path]:
    return [path for folder in (*PACKAGES, "tests", "bench") for path in (ROOT / folder).rglob("*.py")]


def setting_names() -> set[str]:
    """The environment variables that `db.settings` reads."""
    names = {f"LATHE_{name.upper()}" for name in Settings.model_fields}
    for field in Settings.model_fields.values():
        choices = getattr(field.validation_alias, "choices", ())
        names.update(choice for choice in choices if isinstance(choice, str))
    return names | {f"LATHE_{key.upper()}" for key in lathe_yaml.SHARED}


def interpolated(text: str) -> set[str]:
    """The variables that a compose file takes from `.env`."""
    return set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", text))


def make_verbs() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))


class TestMakefile:
    def test_explains_every_verb(self) -> None:
        explained = set(re.findall(r"^([a-z-]+):.*## \S", read("Makefile"), re.MULTILINE))
        assert explained == make_verbs()

    def test_has_the_verbs_that_the_documents_use(self) -> None:
        used = {
            verb
            for document in documents()
            for verb in re.findall(r"(?:^|`)make ([a-z-]+)", document.read_text(), re.MULTILINE)
        }
        assert {"setup", "test"} <= used
        assert used <= make_verbs()

    def test_help_lists_every_verb(self) -> None:
        shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert set(re.findall(r"^  make ([a-z-]+) ", shown, re.MULTILINE)) == make_verbs()

    def test_ci_is_an_executable_script_that_parses(self) -> None:
        script = ROOT / ".ci" / "run"
        assert script.stat().st_mode & 0o100
        subprocess.run(["bash", "-n", script], check=True)


class TestCompose:
    compose = load_yaml("docker-compose.yml")
    services: dict[str, dict[str, Any]] = compose["services"]

    def test_publishes_ports_on_loopback_only(self) -> None:
        published = [port for service in self.services.values() for port in service.get("ports", [])]
        assert published
        assert all(port.startswith("127.0.0.1:") for port in published)

    def test_checks_the_health_of_every_service_that_stays(self) -> None:
        staying = {name for name, service in self.services.items() if service.get("restart") != "no"}
        unchecked = {name for name in staying if "test" not in self.services[name].get("healthcheck", {})}
        assert not unchecked

    def test_pins_every_image(self) -> None:
        for service in self.services.values():
            _, _, tag = service["image"].partition(":")
            assert re.match(r"v?\d+\.\d+", tag), service["image"]

    def test_builds_only_targets_that_exist(self) -> None:
        targets = {service["build"]["target"] for service in self.services.values() if "build" in service}
        assert targets <= set(stages(read("deploy/docker/Dockerfile")))

    def test_waits_only_for_what_can_come_true(self) -> None:
        for service in self.services.values():
            for name, dependency in service.get("depends_on", {}).items():
                other = self.services[name]
                if dependency["condition"] == "service_healthy":
                    assert "healthcheck" in other
                else:
                    assert other["restart"] == "no"

    def test_gives_containers_only_settings_that_exist(self) -> None:
        ours = [service for service in self.services.values() if service["image"].startswith("lathe-")]
        given = {name for service in ours for name in service.get("environment", {})}
        assert given - {"FLOWER_BASIC_AUTH", "WANDB_API_KEY"} <= setting_names()

    def test_keeps_a_worker_for_every_queue(self) -> None:
        queues = [name for name in Settings.model_fields if name.endswith("_concurrency")]
        workers = [self.services["worker"], self.services["worker-train"]]
        for queue in queues:
            values = [worker["environment"][f"LATHE_{queue.upper()}"] for worker in workers]
            assert sum(value != "0" for value in values) == 1, queue

    def test_declares_the_volumes_it_mounts(self) -> None:
        mounts = [mount for service in self.services.values() for mount in service.get("volumes", [])]
        names = {mount.partition(":")[0] for mount in mounts if not mount.startswith("${LATHE_")}
        assert names == set(self.compose["volumes"])

    def test_gpu_override_names_services_of_the_compose_file(self) -> None:
        override = load_yaml("deploy/docker/compose.gpu.yml")
        assert set(override["services"]) <= set(self.services)


def stages(dockerfile: str) -> list[str]:
    return re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE)


class TestDockerfile:
    dockerfile = read("deploy/docker/Dockerfile")

    def test_starts_from_a_pinned_image(self) -> None:
        image = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", self.dockerfile, re.MULTILINE)
        assert image is not None
        assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", image.group(1))

    @pytest.mark.parametrize("target", ["api", "worker", "embeddings", "all-in-one"])
    def test_images_run_as_a_numbered_user(self, target: str) -> None:
        stage = self.dockerfile.partition(f" AS {target}\n")[2].partition("\nFROM ")[0]
        assert re.findall(r"^USER (\S+)$", stage, re.MULTILINE)[-1] == "10001:10001"

    def test_pins_what_pyproject_pins(self) -> None:
        project = PYPROJECT["project"]
        extras = project["optional-dependencies"].values()
        pinned = {*project["dependencies"], *(requirement for extra in extras for requirement in extra)}
        repeated = set(re.findall(r"[\w-]+==[\d.]+", self.dockerfile))
        assert repeated
        assert repeated <= pinned

    def test_context_holds_every_package(self) -> None:
        kept = set(re.findall(r"^!(\S+)$", read("deploy/docker/Dockerfile.dockerignore"), re.MULTILINE))
        assert set(PACKAGES) <= kept
        assert not kept & {".env", ".git", "tests"}


class TestSettingsInDocuments:
    def test_env_example_names_settings_and_compose_variables_only(self) -> None:
        named = set(re.findall(r"^([A-Z_]+)=", read(".env.example"), re.MULTILINE))
        known = setting_names() | interpolated(read("docker-compose.yml"))
        assert named
        assert named <= known

    def test_env_example_holds_no_secret(self) -> None:
        for name, value in re.findall(r"^([A-Z_]+)=(.*)$", read(".env.example"), re.MULTILINE):
            if re.search(r"KEY|PASSWORD|SECRET|TOKEN", name):
                assert value == "", name

    def test_env_example_names_every_required_variable(self) -> None:
        required = set(re.findall(r"\$\{([A-Z_]+):\?", read("docker-compose.yml")))
        named = set(re.findall(r"^([A-Z_]+)=", read(".env.example"), re.MULTILINE))
        assert required <= named

    @pytest.mark.parametrize("path", ["deploy/lathe.service", "deploy/docker/Dockerfile", ".env.example"])
    def test_deployment_files_name_settings_that_exist(self, path: str) -> None:
        assert set(re.findall(r"\bLATHE_[A-Z0-9_]+\b", read(path))) <= setting_names() | SETUP_VARIABLES

    def test_documents_name_settings_that_exist(self) -> None:
        for document in documents():
            named = set(re.findall(r"\bLATHE_[A-Z0-9_]*[A-Z0-9]\b", document.read_text()))
            assert named <= setting_names() | SETUP_VARIABLES, document


class TestDocuments:
    def test_relative_links_lead_somewhere(self) -> None:
        for document in documents():
            for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", document.read_text()):
                there = document.parent / target if target else document
                assert there.exists(), f"{document}: {target}"
                assert not anchor or anchor in anchors(there), f"{document}: {target}#{anchor}"

    def test_decisions_are_numbered_without_gaps(self) -> None:
        numbers = [int(path.name[:4]) for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
        assert numbers == list(range(1, len(numbers) + 1))

    def test_decisions_have_their_four_parts(self) -> None:
        for path in (ROOT / "docs" / "decisions").glob("*.md"):
            headings = re.findall(r"^## (.+)$", path.read_text(), re.MULTILINE)
            assert headings == ["Context", "Decision", "Consequences", "Alternatives"], path.name
            assert path.read_text().startswith(f"# {int(path.name[:4])}. "), path.name


class TestSource:
    def test_files_stay_readable_in_one_sitting(self) -> None:
        long = {path: len(path.read_text().splitlines()) for path in python_files()}
        assert not {str(path): lines for path, lines in long.items() if lines > MOST_LINES}

    def test_files_that_the_tests_begin_with_exist(self) -> None:
        assert [file for file in LONGEST_FIRST if not (ROOT / file).is_file()] == []

    def test_leaves_nothing_for_later(self) -> None:
        left = re.compile(r"\b(TO" r"DO|FIX" r"ME|raise NotImplemented" r"Error)\b")
        assert not [path for path in python_files() if left.search(path.read_text())]

    def test_environment_is_read_by_settings_alone(self) -> None:
        # Setting a variable for libraries, or copying all of them for a child, reads no setting.
        reading = re.compile(r"os\.getenv|os\.environ\.get\(|os\.environ\[[^]]+\](?! = )")
        readers = {
            str(path.relative_to(ROOT))
            for folder in PACKAGES
            for path in (ROOT / folder).rglob("*.py")
            if reading.search(path.read_text())
        }
        assert readers == {"db/settings.py"}

    @pytest.mark.parametrize(
        ("modules", "without"),
        [
            ("api.app, worker.app", "torch"),
            # A step never sees the database, and its process is started anew for each.
            ("worker.run_step, worker.checkpoints, worker.steps.train, worker.steps.export", "sqlalchemy"),
        ],
    )
    def test_starts_without_what_it_has_no_use_for(self, modules: str, without: str) -> None:
        program = f"import {modules}, sys; assert {without!r} not in sys.modules"
        ended = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
