"""The compose files without an engine: what services may do, what images hold, what CI says without an engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from fednc.bench.containers import verify
from fednc.common.config.run import read_run_file

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
OVERLAYS = sorted([*DEPLOY.glob("compose.*.yml"), *(ROOT / "tests" / "compose").glob("*.yml")])
SHIPPED = [path for path in OVERLAYS if path.parent == DEPLOY]
BASE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = BASE["services"]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
CLIENTS = [name for name in SERVICES if name.startswith("edge-")]


def with_overlay(path: Path | None) -> dict[str, dict[str, Any]]:
    """The services as an engine sees them: mappings merged, everything else replaced."""
    over = yaml.safe_load(path.read_text())["services"] if path else {}
    return {name: merged(SERVICES.get(name, {}), over.get(name, {})) for name in {**SERVICES, **over}}


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    result = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            result[key] = merged(below[key], above[key])
    return result


STACKS = {"base": None, **{path.name: path for path in SHIPPED}}
EACH_SERVICE = pytest.mark.parametrize(
    ("stack", "name"), [(stack, name) for stack, path in STACKS.items() for name in with_overlay(path)]
)


@EACH_SERVICE
def test_no_service_may_do_more_than_it_needs(stack: str, name: str) -> None:
    service = with_overlay(STACKS[stack])[name]
    assert int(service["user"].partition(":")[0]) > 0
    assert service["cap_drop"] == ["ALL"]
    assert not service.get("cap_add")
    assert not service.get("privileged")
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["read_only"] is True
    assert service.get("init") is (True if name in SERVICES else None)
    assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]


@EACH_SERVICE
def test_no_service_reaches_the_host_or_is_reached_from_outside(stack: str, name: str) -> None:
    service = with_overlay(STACKS[stack])[name]
    assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))
    volumes = [volume.split(":")[0] for volume in service.get("volumes", [])]
    path = STACKS[stack]
    named = {**BASE["volumes"], **(yaml.safe_load(path.read_text()).get("volumes", {}) if path else {})}
    assert set(volumes) <= set(named), "named volumes only: no path, no socket of the engine"
    # Callers of a served model share no network with the federation.
    network = ["callers"] if name == "serve" else ["link"]
    assert (service.get("network_mode") == "none") != (service.get("networks") == network)


@EACH_SERVICE
def test_every_long_running_service_has_a_health_check(stack: str, name: str) -> None:
    """Services that run once need none. The check of verify tells when it has tried to get in."""
    health = with_overlay(STACKS[stack])[name]["healthcheck"]
    assert health.get("disable") is (True if name in ("certificates", "chaos", "serve-certificates") else None)
    assert health.get("disable") or health["test"][0] == "CMD"


def test_the_network_of_the_link_has_no_way_out() -> None:
    assert BASE["networks"] == {"link": {"internal": True}}


def test_only_owners_see_their_keys() -> None:
    seen: dict[str, dict[str, str]] = {volume: {} for volume in BASE["volumes"]}
    for name, service in SERVICES.items():
        for mount in service.get("volumes", []):
            volume, _, place = mount.partition(":")
            seen[volume][name] = place
    assert seen["authority"] == {"certificates": "/authority"}
    for owner in ["server", *CLIENTS]:
        where = "" if owner == "server" else "nodes/"
        expected = {"certificates": f"/authority/{where}{owner}", owner: "/certs:ro"}
        assert seen[f"{owner}-certs"] == expected
    assert seen["runs"] == {"server": "/runs", "verify": "/runs:ro"}


def test_the_served_model_has_an_authority_of_its_own_and_only_reads_the_run() -> None:
    services = with_overlay(DEPLOY / "compose.serve.yml")
    assert services["serve"]["volumes"] == ["serve-certs:/certs:ro", "runs:/runs:ro"]
    assert services["serve-certificates"]["volumes"] == [
        "serve-authority:/authority",
        "serve-certs:/authority/server",
    ]
    command = services["serve"]["command"]
    options = dict(zip(command[2::2], command[3::2], strict=True))
    assert (options["--auth"], options["--certs"]) == ("token", "/certs")
    assert f'_PROBE = "{options["--probe"]}"' in (DEPLOY / "healthy.py").read_text()
    assert [port.rpartition(":")[2] for port in services["serve"]["ports"]] == [
        options[name].rpartition(":")[2] for name in ("--listen", "--grpc")
    ]
    from fednc.cli.serve import _wanted

    run = SERVICES["server"]["command"]
    (wanted,) = _wanted([command[1]], [])
    assert (wanted.name, wanted.reference) == ("digits", run[run.index("--folder") + 1])


def test_the_server_keeps_its_run_on_a_disk_and_uses_the_demos_run_file() -> None:
    command = SERVICES["server"]["command"]
    assert command[command.index("--folder") + 1].startswith("/runs/")
    run = read_run_file(DEPLOY / "demo.toml")
    assert run.split is not None
    assert run.split.parts == run.rounds.min_clients == len(CLIENTS) == 3
    assert run.server.certs == "/certs", "without certificates the link would be open"
    health = (DEPLOY / "healthy.py").read_text()
    assert f"_PORT = {run.server.health_port} " in health


def test_each_client_has_its_own_share_and_the_checks_know_it() -> None:
    parts = {}
    for name in CLIENTS:
        command = SERVICES[name]["command"]
        options = dict(zip(command[1::2], command[2::2], strict=True))
        assert options["--name"] == name
        parts[options["--partition"]] = name
    assert sorted(parts) == ["0/3", "1/3", "2/3"]
    command = SERVICES["verify"]["command"]
    assert command[command.index("--clients") + 1] == ",".join(parts[f"{i}/3"] for i in range(3))


def test_the_run_cannot_start_before_verify_has_tried_to_get_in() -> None:
    assert SERVICES[CLIENTS[-1]]["depends_on"]["verify"] == {"condition": "service_healthy"}
    assert SERVICES["verify"]["healthcheck"]["test"] == ["CMD", "test", "-e", "/tmp/door-tried"]
    assert str(Path("/tmp") / verify.DOOR_TRIED.name) == "/tmp/door-tried"


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.name)
def test_an_overlay_changes_only_existing_services(path: Path) -> None:
    new = yaml.safe_load(path.read_text())["services"].keys() - SERVICES.keys()
    added = {"compose.chaos.yml": {"chaos"}, "compose.serve.yml": {"serve", "serve-certificates"}}
    assert new == added.get(path.name, set())


def composers() -> list[list[str]]:
    """The installed Compose programs: v2 as a plugin of docker, 1.29 as docker-compose."""
    candidates = [["docker", "compose"], ["docker-compose"]]
    return [each for each in candidates if shutil.which(each[0]) and answer([*each, "version"]).returncode == 0]


def answer(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("stack", STACKS)
def test_compose_reads_each_stack_as_intended(stack: str) -> None:
    """Needs no engine. In the stack with GPUs each client gets one, and no other service does."""
    if not composers():
        pytest.skip("neither Compose v2 nor docker-compose is installed")
    over = ["-f", str(STACKS[stack])] if STACKS[stack] else []
    for composer in composers():
        read = answer([*composer, "-f", "docker-compose.yml", *over, "config"])
        assert read.returncode == 0, read.stderr
        services = yaml.safe_load(read.stdout)["services"]
        assert services.keys() == with_overlay(STACKS[stack]).keys()
        devices = {name: devices_of(service) for name, service in services.items() if devices_of(service)}
        gpu = [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
        assert devices == (dict.fromkeys(CLIENTS, gpu) if "gpu" in stack else {})


def devices_of(service: dict[str, Any]) -> Any:
    return service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices")


def test_every_broken_setup_is_expected_to_fail_by_a_check_that_exists() -> None:
    script = (ROOT / "tests" / "compose" / "broken.sh").read_text()
    fails = dict(re.findall(r'^  \[([\w-]+)\]="(.+)"$', script, re.MULTILINE))
    assert {f"{name}.yml" for name in fails} == {p.name for p in OVERLAYS if p.parent != DEPLOY}
    titles = verify.titles(["edge-0", "edge-1", "edge-2"])
    for wanted in fails.values():
        assert set(wanted.split("|")) <= titles


# ---- images ------------------------------------------------------------------------------------------------


def locked(name: str) -> dict[str, tuple[str, str]]:
    """Package -> (version, everything after it) of a lock file."""
    found = re.split(r"^([A-Za-z0-9._-]+)==(\S+)", (DEPLOY / name).read_text(), flags=re.MULTILINE)
    return dict(zip(found[1::3], zip(found[2::3], found[3::3], strict=True), strict=True))


@pytest.mark.parametrize(("lock", "extras"), [("lock-base.txt", []), ("lock.txt", ["demo"])])
def test_the_lock_fits_the_project_and_pins_every_file(lock: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [text for extra in extras for text in project["optional-dependencies"][extra]]
    packages = locked(lock)
    for requirement in map(Requirement, [*project["dependencies"], *optional]):
        if requirement.name == "torch":  # not in the lock: its version is in the Dockerfile
            assert requirement.specifier.contains(torch_version(DOCKERFILE))
        else:
            assert requirement.specifier.contains(packages[requirement.name][0]), f"`make lock`: {requirement}"
    assert all("--hash=sha256:" in rest for _, rest in packages.values())
    assert "://" not in (DEPLOY / lock).read_text(), "an index belongs to a machine"


def torch_version(text: str) -> str:
    found = set(re.findall(r"torch==([\d.]+)", text))
    assert len(found) == 1, found
    return found.pop()


def test_one_version_of_pytorch_everywhere() -> None:
    places = [DEPLOY / "Dockerfile", DEPLOY / "wheelhouse.sh", DEPLOY / "compose.gpu.yml", ROOT / "Makefile"]
    assert len({torch_version(path.read_text()) for path in places}) == 1


def test_the_build_context_has_what_the_images_need_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines, "everything else stays out: certificates, runs, history"
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
        for source in line.replace("wheelhous[e]", "wheelhouse/*.whl").replace("${LOCK}", "deploy/*.txt").split()
    }
    assert {re.sub(r"deploy/\w+\.toml", "deploy/*.toml", source) for source in copied} == kept


def test_no_image_runs_as_root() -> None:
    stages = re.split(r"^FROM (.+)$", DOCKERFILE, flags=re.MULTILINE)
    bodies = dict(zip((line.split(" AS ")[-1] for line in stages[1::2]), stages[2::2], strict=True))
    last_user = {name: re.findall(r"^USER (.+)$", body, re.MULTILINE)[-1:] for name, body in bodies.items()}
    assert last_user["runtime"] == last_user["demo"] == ["10001:10001"]
    assert last_user["server"] == last_user["client"] == last_user["serve"] == [], "as runtime"
    assert all("HEALTHCHECK" in bodies[name] for name in ("server", "client", "serve"))


def test_ci_continues_without_an_engine(tmp_path: Path) -> None:
    for tool in ("bash", "dirname", "id"):
        found = subprocess.run(["which", tool], capture_output=True, text=True, check=True).stdout.strip()
        (tmp_path / tool).symlink_to(found)
    done = subprocess.run(
        [DEPLOY / "ci-compose.sh"], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("SKIPPED: compose")
