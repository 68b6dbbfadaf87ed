"""The launch scripts: what they would run, what they run, and what they say where they cannot."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
SCRIPTS = sorted({*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"} - {LAUNCH / "common.sh"})
COMMAND = [
    "python",
    "-m",
    "twelve_in_one.train",
    "--config=world:debug",
    "--workdir=a b",
]
TPU = ("--name=vl", "--zone=us-west4-a")
JOBSET = ("--name=vl", "--image=r/i:1", "--accelerator=tpu-v5-lite-podslice", "--topology=4x8")
IN_BUCKET = ["python", "-m", "twelve_in_one.train", "--workdir=/mnt/bucket/a"]


def run(script, *arguments, path=None, **environ):
    """The finished process of a script; `path` comes before all else on PATH."""
    drop = ("SLURM_", "TWELVE_IN_ONE_", "CUDA_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
    kept["PATH"] = f"{path}:{kept['PATH']}" if path else kept["PATH"]
    return subprocess.run(
        ["bash", LAUNCH / script, *map(str, arguments)],
        env=kept | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def stubs(tmp_path):
    """Makes programs that note their arguments: `make({"gcloud": body})` gives (path, calls)."""

    def make(programs):
        folder, log = tmp_path / "stubs", tmp_path / "calls"
        folder.mkdir()
        for name, body in programs.items():
            note = f'printf "%q " {name} "$@" >> {log}; echo >> {log}\n'
            (folder / name).write_text(f"#!/bin/bash\n{note}{body}\n")
            (folder / name).chmod(0o755)

        def calls():
            lines = log.read_text().splitlines() if log.exists() else []
            return [shlex.split(line) for line in lines]

        return folder, calls

    return make


# ------------------------------------------------------------------------------- every script


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_explain_themselves(script):
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert "\nset -euo pipefail\n" in text
    done = run(script.name, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert f"launch/{script.name}" in done.stdout and "#" not in done.stdout.splitlines()[0]
    for names in re.findall(r"^(?:take_options|names=).*", text, re.M):
        for option in {*re.findall(r"\b[a-z_]+\b", names), "dry_run"} - {"take_options", "names"}:
            assert f"--{option}" in done.stdout, option
    empty = run(script.name)
    assert empty.returncode != 0 and empty.stdout + empty.stderr != ""


@pytest.mark.parametrize(
    "script, arguments",
    [
        ("local.sh", COMMAND),
        *[("tpu_vm.sh", [a, *TPU, "--", *COMMAND]) for a in ("train", "create", "setup", "run")],
        *[("tpu_vm.sh", [a, *TPU]) for a in ("status", "logs", "stop", "delete")],
        ("xpk.sh", ["run", "--cluster=c", "--name=vl", "--image=i", "--", *COMMAND]),
        *[("xpk.sh", [a, "--cluster=c", "--name=vl"]) for a in ("status", "logs", "delete")],
        ("jobset.sh", ["run", *JOBSET, "--", *COMMAND]),
        *[("jobset.sh", [a, "--name=vl"]) for a in ("status", "logs", "delete")],
        *[("tpu_vm.sh", [a, *TPU, "--bucket=bkt", "--", *IN_BUCKET]) for a in ("train", "setup")],
        ("jobset.sh", ["run", *JOBSET, "--bucket=bkt", "--", *IN_BUCKET]),
        ("slurm.sbatch", COMMAND),
    ],
)
def test_a_dry_run_calls_nothing(script, arguments, stubs):
    names = (
        "gcloud",
        "xpk",
        "kubectl",
        "srun",
        "scontrol",
        "tar",
        "mktemp",
        "curl",
        "python",
        "sudo",
    )
    path, calls = stubs(dict.fromkeys(names, ""))
    at = 1 if script in ("tpu_vm.sh", "xpk.sh", "jobset.sh") else 0
    done = run(script, *arguments[:at], "--dry_run", *arguments[at:], path=path)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout and calls() == []


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        ("local.sh", ["--num_processes=0", "true"], "--num_processes must be at least 1, got 0"),
        ("local.sh", ["--platform=tpu", "true"], "--platform must be cpu or gpu, got tpu"),
        ("local.sh", ["--gpus=2", "true"], "unknown option --gpus=2"),
        ("tpu_vm.sh", ["run", "--zone=z", "--", "true"], "--name is missing"),
        ("tpu_vm.sh", ["run", "--name=n", "--", "true"], "--zone is missing"),
        ("tpu_vm.sh", ["train", *TPU], "train: the training command is missing, after --"),
        ("tpu_vm.sh", ["fly", *TPU], "unknown command fly"),
        ("tpu_vm.sh", ["run", *TPU, *COMMAND], "unknown option python"),
        (
            "tpu_vm.sh",
            ["setup", *TPU, "--bucket=gs://b"],
            "without gs:// and folders, got 'gs://b'",
        ),
        ("tpu_vm.sh", ["setup", *TPU, "--bucket="], "--bucket must be a bucket's name"),
        ("tpu_vm.sh", ["setup", *TPU, "--gcsfuse_deb=/no.deb"], "there is no file '/no.deb'"),
        ("xpk.sh", ["run", "--name=n"], "--cluster is missing"),
        ("xpk.sh", ["run", "--cluster=c", "--name=n", "--", "true"], "--image is missing"),
        ("jobset.sh", ["render", "--", "true"], "--name is missing"),
        (
            "jobset.sh",
            ["render", "--name=n"],
            "missing: --image --accelerator --topology the",
        ),
        ("jobset.sh", ["run", *JOBSET, "--slices=", "--", "true"], "--slices is empty"),
        ("jobset.sh", ["run", *JOBSET, "--topology=16", "--", "true"], "--topology must be like"),
        ("jobset.sh", ["run", *JOBSET, "--chips_per_host=3", "--", "true"], "has 32 chips, not a"),
        ("jobset.sh", ["run", *JOBSET, "--", "a\nb"], "control character"),
        ("jobset.sh", ["run", *JOBSET, "--bucket=b/c", "--", "true"], "folders, got 'b/c'"),
        (
            "jobset.sh",
            ["run", *JOBSET, "--bucket=", "--", "true"],
            "--bucket must be a bucket's name",
        ),
        ("jobset.sh", ["run", *JOBSET, "--service_account=A b", "--", "true"], "got 'A b'"),
        ("slurm.sbatch", ["true"], "hand it to sbatch"),
    ],
)
def test_says_what_is_missing_or_wrong(script, arguments, message, stubs):
    path, calls = stubs(dict.fromkeys(("gcloud", "xpk", "kubectl", "srun"), ""))
    done = run(script, *arguments, path=path)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert calls() == []


@pytest.mark.parametrize(
    "script, arguments",
    [
        ("tpu_vm.sh", ["train", *TPU, "--dry_run"]),
        ("tpu_vm.sh", ["run", *TPU, "--dry_run"]),
        ("jobset.sh", ["run", *JOBSET, "--dry_run"]),
        ("jobset.sh", ["render", *JOBSET]),
    ],
)
def test_warns_where_nothing_mounts_the_bucket(script, arguments):
    for command in (IN_BUCKET, ["python", "--workdir", "/mnt/bucket"], ["sh", "-c", *IN_BUCKET]):
        done = run(script, *arguments, "--", *command)
        assert done.returncode == 0 and "without --bucket nothing mounts" in done.stderr
        assert done.stdout and "gcsfuse" not in done.stdout
        done = run(script, *arguments, "--bucket=my-bucket_1.x", "--", *command)
        assert done.returncode == 0 and done.stderr == ""
        assert "gcsfuse" in done.stdout and "my-bucket_1.x" in done.stdout
    done = run(script, *arguments, "--", "python", "--workdir=/mnt/buckets/a")
    assert done.returncode == 0 and done.stderr == ""


def test_the_readme_attaches_a_bucket_as_xpk_sh_does():
    text = " ".join((LAUNCH / "README.md").read_text().split())
    shown = run("xpk.sh", "--help").stdout
    [attach] = re.findall(r"xpk storage attach(?:[^\\\n]*\\\n)+.*", shown)
    assert " ".join(attach.split()) in text


# ---------------------------------------------------------------------------------- local.sh

SHOW = (
    "import os, sys; e = os.environ; p = 'TWELVE_IN_ONE_';"
    "print(e[p + 'COORDINATOR'], e[p + 'NUM_PROCESSES'], e[p + 'PROCESS_ID'], sys.argv[1]);"
    "print(e.get('JAX_PLATFORMS'), e.get('CUDA_VISIBLE_DEVICES'), file=sys.stderr)"
)


def test_local_runs_processes_that_know_each_other():
    done = run("local.sh", "--port=23456", sys.executable, "-c", SHOW, "a b")
    assert done.returncode == 0
    expected = [f"[{i}] 127.0.0.1:23456 2 {i} a b" for i in range(2)]
    assert sorted(done.stdout.splitlines()) == expected
    assert sorted(done.stderr.splitlines()) == ["[0] cpu None", "[1] cpu None"]


def test_local_gives_each_process_its_gpu():
    gpu = ("--platform=gpu", sys.executable, "-c", SHOW, "x")
    done = run("local.sh", *gpu, CUDA_VISIBLE_DEVICES="3,GPU-5,7", JAX_PLATFORMS="cuda")
    assert sorted(done.stderr.splitlines()) == ["[0] cuda 3", "[1] cuda GPU-5"]
    done = run("local.sh", "--num_processes=4", *gpu, CUDA_VISIBLE_DEVICES="0,1")
    assert done.returncode == 2 and "need as many GPUs, there are 2" in done.stderr


def test_local_ends_all_when_one_fails():
    start = time.monotonic()
    body = "if [ $TWELVE_IN_ONE_PROCESS_ID = 1 ]; then exit 7; fi; exec sleep 50"
    done = run("local.sh", "--num_processes=3", "bash", "-c", body)
    assert done.returncode == 7 and "process 1 failed with exit code 7" in done.stderr
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("stopped", ["", "75"])
def test_local_passes_a_stop_on_and_waits(stopped, tmp_path):
    """Each process notes the signal, takes its time and exits; none is ended before."""
    body = (
        f"trap 'sleep 0.$TWELVE_IN_ONE_PROCESS_ID; touch {tmp_path}/saved$TWELVE_IN_ONE_PROCESS_ID;"
        f" exit {stopped or 0}' TERM;"
        f"touch {tmp_path}/up$TWELVE_IN_ONE_PROCESS_ID; while :; do sleep 0.05; done"
    )
    process = subprocess.Popen(
        ["bash", LAUNCH / "local.sh", "--num_processes=3", "bash", "-c", body],
        env=dict(os.environ, TWELVE_IN_ONE_STOPPED_EXIT_CODE=stopped),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 20
        while len(list(tmp_path.glob("up*"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == int(stopped or 0) and "failed" not in errors
    assert len(list(tmp_path.glob("saved*"))) == 3


# --------------------------------------------------------------------------------- tpu_vm.sh


def gcloud(states, outcomes):
    """A stub whose slice goes through `states` and whose run through `outcomes`, a look each."""
    return rf"""
    next() {{ head -n 1 "$1"; [ "$(wc -l < "$1")" -le 1 ] || sed -i 1d "$1"; }}
    here=$(dirname "$0")
    [ -f "$here/states" ] || printf '%s\n' {" ".join(f"'{s}'" for s in states)} > "$here/states"
    [ -f "$here/runs" ] || printf '%s\n' {" ".join(f"'{o}'" for o in outcomes)} > "$here/runs"
    case "$*" in
        *" describe "*) next "$here/states" ;;
        *" ssh "*"cat run.exit"*) next "$here/runs" ;;
    esac
    """


def actions(calls):
    """What the calls of gcloud did, without looking."""
    names = []
    for call in calls:
        text = " ".join(call)
        for name in ("queued-resources create", "queued-resources delete", "scp"):
            if f" {name} " in text:
                names.append(name.split()[-1])
        if "setsid" in text:
            names.append("run")
    return names


def test_tpu_vm_trains_through_a_preemption_until_the_run_is_finished(stubs):
    states = ["", "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDED"]
    states += ["", "ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE"]
    outcomes = ["empty", "running", "empty", "75", "0"]
    path, calls = stubs({"gcloud": gcloud(states, outcomes)})
    done = run(
        "tpu_vm.sh", "train", *TPU, "--spot", "--", *COMMAND, path=path, TPU_POLL_SECONDS="0"
    )
    assert done.returncode == 0 and "the run is finished" in done.stderr, done.stderr
    made = ["create", "scp", "run"]
    assert actions(calls()) == [*made, "delete", *made, "run"]
    create = next(call for call in calls() if "create" in call)
    assert create[1:6] == ["compute", "tpus", "queued-resources", "create", "vl"]
    assert set(create) >= {"--spot", "--zone=us-west4-a", "--node-id=vl"}
    assert set(create) >= {"--accelerator-type=v5litepod-16"}
    assert all("--zone=us-west4-a" in call for call in calls())


@pytest.mark.parametrize("deb", [False, True])
def test_tpu_vm_mounts_the_bucket_on_every_slice_before_it_trains(deb, stubs, tmp_path):
    states = ["ACTIVE", "ACTIVE", "SUSPENDED", "", "ACTIVE"]
    path, calls = stubs({"gcloud": gcloud(states, ["empty", "75", "empty", "0"])})
    options = ["--bucket=bkt"]
    if deb:
        (tmp_path / "g.deb").touch()
        options.append(f"--gcsfuse_deb={tmp_path}/g.deb")
    done = run(
        "tpu_vm.sh", "train", *TPU, *options, "--", *IN_BUCKET, path=path, TPU_POLL_SECONDS="0"
    )
    assert done.returncode == 0, done.stderr
    did = []
    for call in calls():
        text = " ".join(call)
        for name, sign in {
            "create": " create ",
            "deb": "g.deb vl:gcsfuse.deb --worker=all",
            "install": "touch .venv/installed",
            "mount": "--worker=all --command=bucket=bkt; set -e; at=/mnt/bucket; ",
            "train": "setsid",
        }.items():
            if sign in text:
                did.append(name)
    setup = [*["deb"] * deb, "install", "mount"]
    again = ["mount", "train"]
    assert did == [*setup, *again, *again, "create", *setup, *again]


def test_tpu_vm_does_not_train_where_the_mount_fails(stubs):
    fails = 'case "$*" in *"at=/mnt/bucket"*) exit 1 ;; esac'
    path, calls = stubs({"gcloud": f"{fails}\n{gcloud(['ACTIVE'], ['empty', 'new'])}"})
    options = (*TPU, "--bucket=bkt", "--max_restarts=1", "--", *IN_BUCKET)
    done = run("tpu_vm.sh", "train", *options, path=path, TPU_POLL_SECONDS="0")
    assert done.returncode == 1 and "setting up failed" in done.stderr
    assert "run" not in actions(calls())


INSTALLS = ["apt-get update", "apt-get gcsfuse"]
MOUNTS = ["umount", "mkdir", "chown", "gcsfuse"]


@pytest.mark.parametrize(
    "worker, does",
    [
        ("mounted", []),
        ("has gcsfuse", MOUNTS),
        ("has a source", [*INSTALLS, *MOUNTS]),
        ("has a package", ["apt-get update", "apt-get ./gcsfuse.deb", *MOUNTS]),
        ("has nothing", INSTALLS),
    ],
)
def test_tpu_vm_mounts_what_is_not_mounted(worker, does, stubs, tmp_path):
    """Runs what `setup` would run on a worker to mount the bucket, here, without its programs."""
    if worker.startswith("has ") and worker != "has gcsfuse" and shutil.which("gcsfuse"):
        pytest.skip("this machine has gcsfuse")
    home = tmp_path / "home"
    home.mkdir()
    if worker == "has a package":
        (home / "gcsfuse.deb").touch()
    ssh = 'case $a in --command=bucket=*) bash -c "${a#--command=}" || exit ;; esac'
    installs = "false" if worker == "has nothing" else 'mv "${0%/*}/later" "${0%/*}/gcsfuse"'
    path, calls = stubs(
        {
            "gcloud": f'cd {home}; for a in "$@"; do {ssh}; done',
            "mountpoint": f"[ '{worker}' = mounted ]",
            "sudo": f'case "$*" in umount*) exit 1 ;; *install*) {installs} ;; esac',
            "gcsfuse" if worker == "has gcsfuse" else "later": "",
        }
    )
    done = run("tpu_vm.sh", "setup", *TPU, "--bucket=bkt", path=path)
    did = []
    for program, *arguments in calls():
        if "apt-get" in arguments:
            did.append(f"apt-get {arguments[-1]}")
        elif program == "sudo":
            did.append(arguments[0])
        elif program in ("gcsfuse", "later"):
            did.append("gcsfuse")
            assert arguments[-2:] == ["bkt", "/mnt/bucket"]
            assert set(arguments[:-2]) == {"--implicit-dirs", "--rename-dir-limit=200000"}
    assert did == does
    if worker == "has nothing":
        assert done.returncode == 1 and "none to install: give --gcsfuse_deb=FILE" in done.stderr
    else:
        assert done.returncode == 0, done.stderr


def test_tpu_vm_gives_up_on_a_run_that_fails_by_itself(stubs):
    path, calls = stubs({"gcloud": gcloud(["ACTIVE"], ["new", "1"])})
    options = (*TPU, "--max_restarts=2", "--", *COMMAND)
    done = run("tpu_vm.sh", "train", *options, path=path, TPU_POLL_SECONDS="0")
    assert done.returncode == 1 and "exit code 1" in done.stderr
    assert actions(calls()) == ["run"] * 3


def test_tpu_vm_reports_a_request_that_gcloud_refuses(stubs):
    path, _ = stubs({"gcloud": 'case "$*" in *" create "*) echo quota >&2; exit 3 ;; esac'})
    done = run("tpu_vm.sh", "train", *TPU, "--", *COMMAND, path=path, TPU_POLL_SECONDS="0")
    assert done.returncode == 3 and "quota" in done.stderr


def test_tpu_vm_starts_a_run_that_outlives_its_shell_and_can_be_stopped(stubs, tmp_path):
    """Runs what `run`, `status` and `stop` would run on a worker, here."""
    stub = f"""
    cd {tmp_path}
    for a in "$@"; do case $a in --command=*) bash -c "${{a#--command=}}" ;; esac; done
    """
    path, _ = stubs({"gcloud": stub})
    (tmp_path / "twelve_in_one" / ".venv").mkdir(parents=True)
    (tmp_path / "twelve_in_one" / ".venv" / "installed").touch()
    body = (
        "import os, signal, sys, time\n"
        "code = int(os.environ['TWELVE_IN_ONE_STOPPED_EXIT_CODE'])\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))\n"
        "print('up', sys.argv[1], flush=True); time.sleep(50)"
    )
    log = tmp_path / "twelve_in_one" / "run.log"

    def outcome(*wanted):
        deadline = time.monotonic() + 20
        while True:
            last = run("tpu_vm.sh", "status", *TPU, path=path).stdout.split()[-1]
            if last in wanted or time.monotonic() > deadline:
                return last
            time.sleep(0.1)

    assert outcome("new") == "new"
    command = ("--", sys.executable, "-c", body, "a 'b' $HOME")
    assert run("tpu_vm.sh", "run", *TPU, *command, path=path).returncode == 0
    deadline = time.monotonic() + 20
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert log.read_text() == "up a 'b' $HOME\n"
    assert outcome("running") == "running"
    assert "already running" in run("tpu_vm.sh", "run", *TPU, *command, path=path).stdout
    assert run("tpu_vm.sh", "stop", *TPU, path=path).returncode == 0
    assert outcome("75") == "75"


# --------------------------------------------------------------------------- xpk and JobSet


def test_xpk_submits_the_command(stubs):
    path, calls = stubs({"xpk": "", "kubectl": ""})
    where = ("--cluster=c", "--name=vl", "--project=p", "--zone=z")
    options = ("--image=r/i:1", "--type=v6e-256", "--slices=2", "--grace_seconds=60")
    done = run("xpk.sh", "run", *where, *options, "--", *COMMAND, path=path)
    assert done.returncode == 0, done.stderr
    [call] = calls()
    assert call[:3] == ["xpk", "workload", "create"]
    assert set(call) >= {"--cluster=c", "--workload=vl", "--project=p", "--zone=z"}
    assert set(call) >= {"--tpu-type=v6e-256", "--num-slices=2", "--docker-image=r/i:1"}
    assert set(call) >= {"--termination-grace-period-seconds=60", "--max-restarts=100"}
    assert set(call) >= {"--env=TWELVE_IN_ONE_STOPPED_EXIT_CODE=75"}
    assert shlex.split(call[-1].removeprefix("--command=")) == ["exec", *COMMAND]
    run("xpk.sh", "delete", *where, path=path)
    assert calls()[-1][:3] == ["xpk", "workload", "delete"] and "--workload=vl" in calls()[-1]


def test_jobset_renders_a_complete_manifest():
    yaml = pytest.importorskip("yaml")
    odd = [*COMMAND, '--config.x="$(y)" \\ & ${NAME} ü: #']
    done = run("jobset.sh", "render", *JOBSET, "--slices=2", "--grace_seconds=60", "--", *odd)
    assert done.returncode == 0, done.stderr
    job_set = yaml.safe_load(done.stdout)
    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert job_set["metadata"]["name"] == "vl"
    assert "alpha.jobset.sigs.k8s.io/exclusive-topology" in job_set["metadata"]["annotations"]
    policy = job_set["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 10
    assert policy["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    [slices] = job_set["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert slices["replicas"] == 2
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 8, 8)
    assert job["backoffLimit"] == 0
    disrupted, stopped = job["podFailurePolicy"]["rules"]
    assert disrupted == {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget"}]}
    codes = stopped["onExitCodes"]
    pod = job["template"]["spec"]
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Never", 60)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    [container] = pod["containers"]
    assert container["image"] == "r/i:1" and container["command"] == odd
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["resources"]["requests"] == {"google.com/tpu": 4}
    # A stopped pod's code is the one that restarts all without counting.
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert codes == {"containerName": container["name"], "operator": "In", "values": [75]}
    assert env == {"TWELVE_IN_ONE_STOPPED_EXIT_CODE": "75"}


@pytest.mark.parametrize("bucket", [None, "123"])
@pytest.mark.parametrize("account", [None, "trainer"])
def test_jobset_has_a_bucket_and_an_account_exactly_when_asked(bucket, account):
    yaml = pytest.importorskip("yaml")
    options = [f"--bucket={bucket}"] * bool(bucket) + [f"--service_account={account}"] * bool(
        account
    )
    done = run("jobset.sh", "render", *JOBSET, *options, "--", *COMMAND)
    assert done.returncode == 0, done.stderr
    [slices] = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"]
    template = slices["template"]["spec"]["template"]
    [container] = template["spec"]["containers"]
    assert template["spec"].get("serviceAccountName") == account
    if not bucket:
        assert "metadata" not in template and "volumes" not in template["spec"]
        assert "volumeMounts" not in container and "gcsfuse" not in done.stdout
        return
    assert template["metadata"] == {"annotations": {"gke-gcsfuse/volumes": "true"}}
    [volume] = template["spec"]["volumes"]
    assert volume["csi"] == {
        "driver": "gcsfuse.csi.storage.gke.io",
        "volumeAttributes": {
            "bucketName": bucket,
            "mountOptions": "implicit-dirs,rename-dir-limit=200000",
        },
    }
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/mnt/bucket"}]


def test_jobset_applies_what_it_renders(stubs, tmp_path):
    path, calls = stubs({"kubectl": f"cat > {tmp_path}/applied"})
    done = run("jobset.sh", "run", *JOBSET, "--", *COMMAND, path=path)
    assert done.returncode == 0, done.stderr
    assert calls() == [["kubectl", "apply", "--filename", "-"]]
    rendered = run("jobset.sh", "render", *JOBSET, "--", *COMMAND).stdout
    assert (tmp_path / "applied").read_text() == rendered


# ------------------------------------------------------------------------------------ SLURM


def test_slurm_asks_for_the_signal_and_the_requeue():
    options = re.findall(r"^#SBATCH (.*)$", (LAUNCH / "slurm.sbatch").read_text(), re.M)
    assert {"--signal=TERM@120", "--requeue", "--ntasks-per-node=1"} <= set(options)


@pytest.mark.parametrize("code, requeued", [(0, False), (75, True), (3, False)])
def test_slurm_requeues_what_was_stopped(code, requeued, stubs):
    path, calls = stubs(
        {"srun": f"[ $TWELVE_IN_ONE_STOPPED_EXIT_CODE = 75 ] && exit {code}", "scontrol": ""}
    )
    done = run("slurm.sbatch", *COMMAND, path=path, SLURM_JOB_ID="42")
    assert done.returncode == (0 if requeued else code), done.stderr
    step, *rest = calls()
    assert step == ["srun", "--kill-on-bad-exit=0", "--label", *COMMAND]
    assert rest == ([["scontrol", "requeue", "42"]] if requeued else [])


# --------------------------------------------------------------------------------- Dockerfile


def test_the_image_copies_what_exists_and_takes_extras_that_exist():
    root, text = LAUNCH.parent, (LAUNCH / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*)$", text, re.M):
        assert all((root / name).exists() for name in line.split()[:-1]), line
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for names in re.findall(r"EXTRAS=([\w,]+)", text):
        assert set(names.split(",")) <= set(extras), names
