"""The files in docs/deploy are accepted by what they are for, ask for no privilege, and run nothing again in vain."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import requests
import yaml

from owm_outbox import ExitCode
from owm_outbox.operations import service
from owm_outbox.plugins import open_sink

from support.commands import run
from support.relays import relay

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
SERVICES = {path.name: path.read_text("utf-8") for path in sorted(DEPLOY.glob("*.service"))}
CRONTAB = (DEPLOY / "crontab").read_text("utf-8")
MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "cronjob.yaml").read_text("utf-8")))
RELAY: dict[str, Any] = yaml.safe_load((DEPLOY / "relay.yaml").read_text("utf-8"))
MONITOR: dict[str, Any] = yaml.safe_load((DEPLOY / "podmonitor.yaml").read_text("utf-8"))
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
FINAL = [code for code in ExitCode if code and code < 128 and code is not ExitCode.TRY_AGAIN_LATER]

HADOLINT = shutil.which("hadolint", path=sysconfig.get_path("scripts")) or shutil.which("hadolint")

with_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")


each_service = pytest.mark.parametrize("service", SERVICES)


def _job() -> dict[str, Any]:
    (spec,) = [manifest["spec"] for manifest in MANIFESTS if manifest["kind"] == "CronJob"]
    found: dict[str, Any] = spec["jobTemplate"]["spec"]
    return found


def _pod() -> dict[str, Any]:
    found: dict[str, Any] = _job()["template"]["spec"]
    return found


PODS: dict[str, dict[str, Any]] = {"producer": _pod(), "relay": RELAY["spec"]["template"]["spec"]}
each_pod = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)


# -- systemd


@with_systemd
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """Nothing in the services or the timer is refused or unknown."""
    for name, text in SERVICES.items():
        (tmp_path / name).write_text(re.sub(r"/usr/local/bin/owm-\w+", "/bin/true", text))
    shutil.copy(DEPLOY / "owm-producer.timer", tmp_path)
    units = [str(path) for path in sorted(tmp_path.iterdir())]
    assert len(units) == 3
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not [name for name in (*SERVICES, "owm-producer.timer") if name in done.stderr]


@with_systemd
@each_service
def test_a_service_is_hardened(service: str) -> None:
    """Its exposure, as systemd rates it, is 2.0 or less, of 10."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(DEPLOY / service)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Overall exposure level for {service}" in done.stdout


@each_service
def test_systemd_runs_nothing_again_in_vain(service: str) -> None:
    """Of the exit codes that it can have, only 75 is tried again; a stop is no failure."""
    (never,) = re.findall(r"^RestartPreventExitStatus=(.+)$", SERVICES[service], re.MULTILINE)
    possible = [code for code in FINAL if code is not ExitCode.DEAD_LETTERS or "owm-producer" in service]
    assert [int(code) for code in never.split()] == possible
    assert "Restart=on-failure\n" in SERVICES[service]
    assert f"SuccessExitStatus={ExitCode.SIGTERM:d}\n" in SERVICES[service]


@pytest.mark.slow
def test_the_relay_s_unit_starts_a_relay(tmp_path: Path) -> None:
    """Its command and its variables are understood, and with what systemctl stop sends it ends as the unit expects."""
    (command,) = re.findall(r"^ExecStart=/usr/local/bin/owm-outbox (.+)$", SERVICES["owm-relay.service"], re.MULTILINE)
    (outbox,) = re.findall(r"^Environment=OWM_OUTBOX=(.+)$", SERVICES["owm-relay.service"], re.MULTILINE)
    program, *args = shlex.split(command.replace(":9108", ":0"))
    assert program == "relay"
    env = {"OWM_OUTBOX": outbox.replace("/var/lib/shop", str(tmp_path)), "OWM_SINK": "jsonl:-"}
    with relay(*args, cwd=tmp_path, env=env) as process:
        process.says(f"relaying from sqlite:///{tmp_path}/orders.db")
        process.process.terminate()
        assert process.ends() == ExitCode.SIGTERM


def test_the_relay_s_unit_is_watched() -> None:
    """Systemd waits until it is ready, and kills it when it hangs for as long as /healthz takes for hanging."""
    unit = SERVICES["owm-relay.service"]
    assert "\nType=notify\n" in unit
    assert re.findall(r"^WatchdogSec=(\d+)$", unit, re.MULTILINE) == [f"{service._HANGS_AFTER:.0f}"]


@pytest.mark.slow
def test_the_producer_s_unit_runs_the_producer(tmp_path: Path) -> None:
    """Its command is understood; its metrics go where the unit lets it write, and no such folder does no harm."""
    unit = SERVICES["owm-producer.service"]
    (command,) = re.findall(r"^ExecStart=/usr/local/bin/owm-producer (.+)$", unit, re.MULTILINE)
    (folder,) = re.findall(r"^ReadWritePaths=-(.+)$", unit, re.MULTILINE)
    env = {"OWM_OUTBOX": f"sqlite:///{tmp_path}/tasks.db", "OWM_API_URL": "http://127.0.0.1:9", "OWM_SINK": "jsonl:-"}
    args = shlex.split(command.replace(folder, str(tmp_path / "textfile")))
    assert args == ["--metrics-file", f"{tmp_path}/textfile/owm.prom"]
    outcome = run("owm-producer", *args, cwd=tmp_path, env=env | {"OWM_RETRY_WAIT": "0.01"})
    assert outcome.code == 75, outcome.err
    assert f"WARNING --metrics-file {tmp_path}/textfile/owm.prom cannot be written" in outcome.err
    (tmp_path / "textfile").mkdir()
    assert run("owm-producer", *args, cwd=tmp_path, env=env | {"OWM_RETRY_WAIT": "0.01"}).code == 75
    assert "owm_outbox_last_exit_code" in (tmp_path / "textfile" / "owm.prom").read_text("utf-8")


# -- Kubernetes


@pytest.mark.parametrize("manifest", [*MANIFESTS, RELAY], ids=lambda manifest: manifest["kind"])
@pytest.mark.parametrize("version", ["1.31", "1.35"])
def test_kubernetes_accepts_the_manifests(manifest: dict[str, Any], version: str) -> None:
    """Each is valid, with no field that Kubernetes does not know."""
    kubernetes_validate.validate(manifest, version, strict=True)


def test_kubernetes_runs_nothing_again_in_vain() -> None:
    """The job fails at once for all that waiting does not fix; an evicted pod counts as no attempt."""
    ignored, failed = _job()["podFailurePolicy"]["rules"]
    assert ignored == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    (container,) = _pod()["containers"]
    assert failed == {
        "action": "FailJob",
        "onExitCodes": {"containerName": container["name"], "operator": "In", "values": FINAL},
    }
    assert _pod()["restartPolicy"] == "Never"


@each_pod
def test_a_container_needs_no_privilege(pod: dict[str, Any]) -> None:
    """It runs as an ordinary user, with a root file system that it cannot write, and no capability."""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["terminationGracePeriodSeconds"] > 5
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.slow
def test_the_container_s_command_is_accepted(tmp_path: Path) -> None:
    """Command and variables of the manifest are understood: the run fails at its API, which nobody serves here."""
    (container,) = _pod()["containers"]
    env = {variable["name"]: variable["value"] for variable in container["env"]}
    assert env["OWM_OUTBOX"].startswith(f"sqlite:///{container['volumeMounts'][0]['mountPath']}/")
    assert env["OWM_API_URL"] == "http://outpost-api-weather:8000"
    env |= {"OWM_OUTBOX": f"sqlite:///{tmp_path}/tasks.db", "OWM_API_URL": "http://127.0.0.1:9"}
    command, *args = container["command"]
    outcome = run(command, *args, cwd=tmp_path, env=env | {"OWM_SINK": "jsonl:-", "OWM_RETRY_WAIT": "0.01"})
    assert outcome.code == 75, outcome.err


@pytest.mark.slow
def test_the_relay_s_container_starts_a_relay(tmp_path: Path) -> None:
    """Command and variables of the Deployment are understood, and never are two of its pods at work by intent."""
    assert (RELAY["spec"]["replicas"], RELAY["spec"]["strategy"]) == (1, {"type": "Recreate"})
    assert RELAY["spec"]["selector"]["matchLabels"] == RELAY["spec"]["template"]["metadata"]["labels"]
    (container,) = PODS["relay"]["containers"]
    env = {variable["name"]: variable["value"] for variable in container["env"]}
    folder = f"sqlite:///{container['volumeMounts'][0]['mountPath']}/"
    assert env["OWM_OUTBOX"].startswith(folder)
    env |= {"OWM_OUTBOX": env["OWM_OUTBOX"].replace(folder, f"sqlite:///{tmp_path}/"), "OWM_SINK": "jsonl:-"}
    program, command, *args = (word.replace(":9108", ":0") for word in container["command"])
    assert (program, command) == ("owm-outbox", "relay")
    with relay(*args, cwd=tmp_path, env=env | {"OWM_HTTP_TOKEN": "t0ken"}) as process:
        port = process.says(r'"message": "serving http://0\.0\.0\.0:(\d+)"')[1]
        process.says(r'"message": "relaying from ')
        probes = {container[kind]["httpGet"]["path"] for kind in ("livenessProbe", "readinessProbe")}
        assert probes == {"/healthz", "/readyz"}
        for path in probes:  # without the token, which the kubelet does not have
            assert requests.get(f"http://127.0.0.1:{port}{path}", timeout=10).status_code == 200
        process.process.terminate()
        assert process.ends() == ExitCode.SIGTERM


def test_the_port_is_one_everywhere() -> None:
    """The relay serves on the port that the container, its probes and the pod monitor name."""
    (container,) = PODS["relay"]["containers"]
    (port,) = container["ports"]
    assert container["command"][-1] == f"0.0.0.0:{port['containerPort']}"
    assert {container[kind]["httpGet"]["port"] for kind in ("livenessProbe", "readinessProbe")} == {port["name"]}
    (endpoint,) = MONITOR["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == (port["name"], "/metrics")


def test_the_pod_monitor_finds_the_relay() -> None:
    """Its labels and its secret are the Deployment's. Its schema is the operator's, which nothing here has."""
    assert (MONITOR["apiVersion"], MONITOR["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert MONITOR["spec"]["selector"]["matchLabels"] == RELAY["spec"]["template"]["metadata"]["labels"]
    (endpoint,) = MONITOR["spec"]["podMetricsEndpoints"]
    (container,) = PODS["relay"]["containers"]
    (secret,) = [source["secretRef"]["name"] for source in container["envFrom"]]
    assert endpoint["authorization"]["credentials"] == {"name": secret, "key": "OWM_HTTP_TOKEN"}
    (rule,) = endpoint["relabelings"]
    assert rule["targetLabel"] == "job"
    assert rule["replacement"].startswith("owm-outbox-relay")


# -- Docker: images are not built here, as base images are out of reach


@pytest.mark.skipif(HADOLINT is None, reason="there is no hadolint")
def test_hadolint_accepts_the_dockerfile() -> None:
    """It has nothing to say."""
    assert HADOLINT is not None
    done = subprocess.run([HADOLINT, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_image_runs_as_nobody_in_particular() -> None:
    """Commands are in exec form, the user is a number, and what is copied is there."""
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE) == ["65532:65532"]
    assert re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE) == ['["owm-outbox", "relay"]', '["owm-producer"]']
    root = DEPLOY.parents[1]
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        assert all((root / name).exists() for name in line.split()), line


@pytest.mark.slow
def test_the_image_s_check_of_health_is_that_of_the_relay(tmp_path: Path) -> None:
    """It succeeds while the relay answers on the port that the image names, and fails when nobody does."""
    (text,) = re.findall(r"^ +CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)
    _, *args = yaml.safe_load(text)
    (port,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    assert f"OWM_HTTP=0.0.0.0:{port}\n" in DOCKERFILE
    assert f"127.0.0.1:{port}/healthz" in args[-1]
    env = {"OWM_OUTBOX": f"sqlite:///{tmp_path}/tasks.db", "OWM_SINK": "jsonl:-", "OWM_HTTP": "0.0.0.0:0"}
    with relay(cwd=tmp_path, env=env) as process:
        served = process.says(r"serving http://0\.0\.0\.0:(\d+)")[1]
        check = [sys.executable, *args[:-1], args[-1].replace(port, served)]
        assert subprocess.run(check, capture_output=True, check=False).returncode == 0
    assert subprocess.run(check, capture_output=True, check=False).returncode == 1


# -- cron


def test_the_cron_line_repeats_what_ends_with_75(tmp_path: Path) -> None:
    """Under cron's environment the line runs the producer until it ends with something other than 75."""
    (line,) = re.findall(r"^0 3 \* \* \*  (.+)$", CRONTAB, re.MULTILINE)
    settings = dict(re.findall(r"^(OWM_\w+)=(.+)$", CRONTAB, re.MULTILINE))
    assert "%" not in line  # to cron, the end of the line
    program = tmp_path / "owm-producer"
    program.write_text(
        f'#!/bin/sh\necho "$OWM_SINK" >> {tmp_path}/calls\n[ $(wc -l < {tmp_path}/calls) -ge 3 ] || exit 75\n'
    )
    program.chmod(0o700)
    line = line.replace("/usr/local/bin/owm-producer", str(program)).replace("sleep 600", "sleep 0")
    done = subprocess.run(
        ["/bin/sh", "-c", line], env={"PATH": "/usr/bin:/bin", **settings}, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "calls").read_text().splitlines() == [settings["OWM_SINK"]] * 3
    open_sink(settings["OWM_SINK"]).close()
