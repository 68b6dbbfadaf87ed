"""How processes find each other, exchange values, and stop together."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading

import jax
import pytest

from twelve_in_one.parallel import processes as distributed
from twelve_in_one.parallel.cluster import SINGLE, Cluster, detect, slurm_devices

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "node[3-6]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
JOBSET = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "JOBSET_NAME": "vl",
    "REPLICATED_JOB_NAME": "worker",
    "JOB_COMPLETION_INDEX": "3",
}
OURS = {
    "TWELVE_IN_ONE_COORDINATOR": "10.0.0.2:8476",
    "TWELVE_IN_ONE_NUM_PROCESSES": "4",
    "TWELVE_IN_ONE_PROCESS_ID": "1",
}
FLAGS = dict(coordinator="10.0.0.9:9999", num_processes=2, process_id=0)


# ------------------------------------------------------------------------------ who is there


@pytest.mark.parametrize(
    "environ, tpu, flags, expected",
    [
        pytest.param({}, False, {}, SINGLE, id="laptop"),
        pytest.param(
            OURS | SLURM, True, FLAGS, Cluster("explicit flags", "10.0.0.9:9999", 2, 0), id="flags"
        ),
        pytest.param(
            OURS, False, {}, Cluster("environment variables", "10.0.0.2:8476", 4, 1), id="ours"
        ),
        pytest.param(
            OURS,
            False,
            {"process_id": 0},
            Cluster("explicit flags", "10.0.0.2:8476", 4, 0),
            id="flags-over-ours",
        ),
        pytest.param(SLURM, False, {"num_processes": 1}, SINGLE, id="told-to-be-alone"),
        pytest.param(
            SLURM | {"TWELVE_IN_ONE_NUM_PROCESSES": "1"}, True, {}, SINGLE, id="ours-alone"
        ),
        pytest.param(SLURM, False, {}, Cluster("SLURM", "the first node of node[3-6]"), id="slurm"),
        pytest.param(SLURM | {"SLURM_NTASKS": "1"}, False, {}, SINGLE, id="slurm-one-task"),
        pytest.param(SLURM | {"SLURM_NTASKS": ""}, False, {}, SINGLE, id="slurm-empty"),
        pytest.param(SLURM | {"SLURM_STEP_NODELIST": ""}, False, {}, SINGLE, id="slurm-no-step"),
        pytest.param({"OMPI_MCA_orte_hnp_uri": ""}, False, {}, SINGLE, id="mpi-empty"),
        pytest.param(
            {"OMPI_MCA_orte_hnp_uri": "x", "OMPI_COMM_WORLD_SIZE": ""},
            False,
            {},
            SINGLE,
            id="mpi-size-empty",
        ),
        pytest.param({"SLURM_JOB_ID": "1"}, False, {}, SINGLE, id="slurm-without-srun"),
        pytest.param(
            {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"},
            False,
            {},
            Cluster("Open MPI", "the host that runs mpirun"),
            id="open-mpi",
        ),
        pytest.param({}, True, {}, Cluster("TPU", "worker 0 of this TPU"), id="tpu-vm"),
        pytest.param(
            {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"},
            True,
            {},
            Cluster("TPU", "a"),
            id="gke-tpu",
        ),
        pytest.param(
            {
                "TPU_WORKER_HOSTNAMES": "b",
                "MEGASCALE_NUM_SLICES": "2",
                "MEGASCALE_COORDINATOR_ADDRESS": "a",
            },
            True,
            {},
            Cluster("TPU", "a"),
            id="slices-of-one-host",
        ),
        pytest.param({"TPU_WORKER_HOSTNAMES": "localhost"}, True, {}, SINGLE, id="one-tpu-host"),
        pytest.param({"TPU_SKIP_MDS_QUERY": "1"}, True, {}, SINGLE, id="tpu-without-metadata"),
        pytest.param({"TPU_WORKER_HOSTNAMES": "a,b"}, False, {}, SINGLE, id="cpu-on-a-tpu-host"),
        pytest.param(
            JOBSET | {"TPU_WORKER_HOSTNAMES": "a,b"}, True, {}, Cluster("TPU", "a"), id="jobset-tpu"
        ),
        pytest.param(
            JOBSET | {"TWELVE_IN_ONE_NUM_PROCESSES": "8"},
            False,
            {},
            Cluster("JobSet", "vl-worker-0-0.vl:8476", 8, 3),
            id="jobset",
        ),
        pytest.param(
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"},
            False,
            {},
            SINGLE,
            id="independent-pods",
        ),
    ],
)
def test_detects_the_cluster(environ, tpu, flags, expected):
    assert detect(environ, tpu=tpu, **flags) == expected


@pytest.mark.parametrize(
    "environ, flags, message",
    [
        (
            {},
            {"coordinator": "h:1"},
            r"--num_processes \(or \$TWELVE_IN_ONE_NUM_PROCESSES\), ",
        ),
        ({}, {"num_processes": 2, "process_id": 0}, r"--coordinator \(or \$TWELVE_IN_ONE_COORD"),
        ({"TWELVE_IN_ONE_PROCESS_ID": "0"}, {"coordinator": "h:1"}, "also give --num_processes"),
        ({}, FLAGS | {"process_id": 2}, "process_id 2 must be from 0 to .* which is 1"),
        ({}, FLAGS | {"coordinator": "10.0.0.2"}, "'10.0.0.2' must be host:port"),
        ({}, FLAGS | {"coordinator": "h:99999"}, "'h:99999' must be host:port"),
        (
            OURS | {"TWELVE_IN_ONE_PROCESS_ID": "one"},
            {},
            "PROCESS_ID must be a whole .*'one'",
        ),
        (SLURM | {"SLURM_NTASKS": "2(x2)"}, {}, r"SLURM_NTASKS must be a whole .*'2\(x2\)'"),
        (JOBSET, {}, "pod 3 of JobSet vl, but not of how many: set .TWELVE_IN_ONE_NUM_PROCESSES"),
    ],
)
def test_says_what_is_missing_or_wrong(environ, flags, message):
    with pytest.raises(ValueError, match=message):
        detect(environ, tpu=False, **flags)


@pytest.mark.parametrize(
    "environ, expected",
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "-1", "SLURM_STEP_TASKS_PER_NODE": "1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles", "SLURM_STEP_TASKS_PER_NODE": "1"}, None),
        ({"SLURM_GPUS_ON_NODE": "", "SLURM_NODEID": "", "SLURM_STEP_TASKS_PER_NODE": "1"}, None),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, list(range(8))),
        (
            {"CUDA_VISIBLE_DEVICES": "4,5,6,7", "SLURM_STEP_TASKS_PER_NODE": "2", "local": "1"},
            [2, 3],
        ),
        ({"CUDA_VISIBLE_DEVICES": "0", "SLURM_STEP_TASKS_PER_NODE": "4", "local": "3"}, [0]),
        (
            {
                "CUDA_VISIBLE_DEVICES": "0,1",
                "SLURM_STEP_TASKS_PER_NODE": "2",
                "SLURM_GPUS_PER_TASK": "2",
                "local": "1",
            },
            [0, 1],
        ),
        (
            {
                "SLURM_GPUS_ON_NODE": "4",
                "SLURM_STEP_TASKS_PER_NODE": "1(x2),4",
                "SLURM_NODEID": "2",
                "local": "3",
            },
            [3],
        ),
    ],
    ids=[
        "unknown",
        "hidden",
        "no-devices",
        "empty",
        "one-task-a-node",
        "shared",
        "bound",
        "per-task",
        "uneven-nodes",
    ],
)
def test_a_slurm_task_takes_its_share_of_the_gpus(environ, expected):
    environ = {"SLURM_LOCALID": environ.pop("local", "0")} | environ
    assert slurm_devices(environ) == expected


def test_our_view_of_slurm_is_that_of_jax():
    """What `detect` waits for is what JAX's own detection needs."""
    from jax._src.clusters import SlurmCluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in SLURM.items():
            patch.setenv(name, value)
        assert SlurmCluster.is_env_present()
        assert SlurmCluster.get_process_count() == 4 and SlurmCluster.get_process_id() == 2


def test_a_single_process_joins_nobody(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("initialised"))
    line = distributed.initialize()
    assert line.startswith("process 0 of 1 (single process) on ")
    assert f"{len(jax.devices())} of {len(jax.devices())} devices, cpu" in line
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES"):
        distributed.initialize(local_device_ids=[0])


def test_a_taken_port_is_named(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("initialised"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        coordinator = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"{coordinator}: process 0 cannot listen on port"):
            distributed.initialize(coordinator=coordinator, num_processes=2, process_id=0)


# ------------------------------------------------------------------------- one process by itself


def test_values_come_back_as_json_in_a_single_process():
    value = {"scores": (1, 2.5), 3: None, "e": "é"}
    expected = {"scores": [1, 2.5], "3": None, "e": "é"}
    assert distributed.gather(value) == [expected]
    assert distributed.broadcast(value) == expected
    distributed.barrier("here")
    with pytest.raises(TypeError, match="JSON"):
        distributed.gather({1, 2})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_signal_asks_and_the_second_acts(number, capfd):
    seen = []
    outer = signal.signal(number, lambda *_: seen.append("outer"))
    try:
        with distributed.stop_on_signals() as stop:
            assert not stop.agreed(0) and not stop.reason
            signal.raise_signal(number)
            assert stop.agreed(1) and stop.reason == number.name and not seen
            assert f"{number.name}: stopping" in capfd.readouterr().err
            signal.raise_signal(number)
            assert seen == ["outer"]
        signal.raise_signal(number)
        assert seen == ["outer"] * 2
    finally:
        signal.signal(number, outer)


def test_an_ignored_sigint_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with distributed.stop_on_signals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop.agreed(0)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_install_no_handlers(caplog):
    handlers = []

    def work():
        with distributed.stop_on_signals() as stop:
            handlers.append(signal.getsignal(signal.SIGTERM))
            stop.request("time is over")
            handlers.append(stop.agreed(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM), True]
    assert "main thread" in caplog.text


@pytest.mark.parametrize("text, code", [(None, 0), ("", 0), ("75", 75)])
def test_exit_code_of_a_stopped_run(monkeypatch, text, code):
    monkeypatch.delenv("TWELVE_IN_ONE_STOPPED_EXIT_CODE", raising=False)
    if text is not None:
        monkeypatch.setenv("TWELVE_IN_ONE_STOPPED_EXIT_CODE", text)
    assert distributed.exit_code_when_stopped() == code


@pytest.mark.parametrize("text", ["256", "-1", "x"])
def test_exit_code_must_be_one(monkeypatch, text):
    monkeypatch.setenv("TWELVE_IN_ONE_STOPPED_EXIT_CODE", text)
    with pytest.raises(ValueError, match="TWELVE_IN_ONE_STOPPED_EXIT_CODE"):
        distributed.exit_code_when_stopped()


# --------------------------------------------------------------------------- two real processes

PROGRAM = textwrap.dedent("""
    import os, signal, sys
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec
    from twelve_in_one.parallel import processes as distributed, sharding

    coordinator, me = sys.argv[1], int(sys.argv[2])
    line = distributed.initialize(coordinator=coordinator, num_processes=2, process_id=me)
    assert line.startswith(f"process {me} of 2 (explicit flags, coordinator {coordinator})"), line
    assert "1 of 2 devices, cpu" in line, line
    assert distributed.initialize().startswith(f"process {me} of 2 (joined before)")

    # Values of different sizes, also larger than one piece.
    for value in ([{"me": i, "text": "é" * (1 + 40 * i)} for i in range(2)], [None, [1.5] * 1000]):
        for piece in (distributed._GATHER_BYTES, 256):
            distributed._GATHER_BYTES = piece
            assert distributed.gather(value[me]) == value
        assert distributed.broadcast(value[me]) == value[0]
    distributed.barrier("start")
    try:
        distributed.barrier(f"place {me}")
    except RuntimeError as error:
        assert "process 0 at 'place 0', process 1 at 'place 1'" in str(error), error
    else:
        raise AssertionError("met at different places")

    # Only process 1 is told, in round 7; under a training loop's mesh and transfer guard.
    mesh = sharding.make_mesh()
    x = jax.make_array_from_process_local_data(
        NamedSharding(mesh, PartitionSpec("data")), jnp.ones((1, 8))
    )
    step = jax.jit(lambda x: x + x.sum())
    with sharding.use(mesh, "dp"), distributed.stop_on_signals() as stop:
        with jax.transfer_guard("disallow"):
            for number in range(20):
                x = step(x)
                if number == 7 and me == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                if stop.agreed(number):
                    break
    assert stop.agreed(number + 1)
    assert distributed.gather([number, stop.reason]) == [[8, ""], [8, "SIGTERM"]]

    apart = distributed.StopRequest()
    apart.agreed(me)
    try:
        apart.agreed(5)
    except RuntimeError as error:
        assert "different rounds, 0 to 1" in str(error), error
    else:
        raise AssertionError("agreed on different rounds")
    distributed.barrier("end")

    if me == 1:  # without a `stop_on_signals`, SIGTERM ends the process as it would without JAX
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("survived")
    os._exit(0)
""")


TWO_SLICES = textwrap.dedent("""
    import os, sys
    import jax
    jax.config.update("jax_num_cpu_devices", 4)
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding
    from twelve_in_one.parallel import processes, sharding

    coordinator, me = sys.argv[1], int(sys.argv[2])
    processes.initialize(coordinator=coordinator, num_processes=2, process_id=me)
    mesh = sharding.make_mesh(model=2, slices=2)
    for number, slice_ in enumerate(mesh.devices):  # each of one process, which is a slice
        assert {device.process_index for device in slice_.flat} == {number}

    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(8, 12)), rng.normal(size=(12, 8))
    rows = rng.normal(size=(16, 8))
    own = rows[8 * me : 8 * me + 8]

    def gradient(first, second, rows):
        def loss(first, second):
            hidden = sharding.constrain(jnp.tanh(rows @ first), "act_batch", "act_mlp")
            return jnp.sum(jnp.square(hidden @ second)) / len(rows)

        return jax.grad(loss, (0, 1))(first, second)

    with jax.default_device(jax.local_devices()[0]):
        expected = jax.jit(gradient)(*(jnp.asarray(x, jnp.float32) for x in (first, second, rows)))
        expected = jax.device_get(expected)
    for layout in ("dp", "fsdp", "fsdp_tp", "hsdp"):
        rules = sharding.layout_rules(layout)
        placed = []
        for value, names in ((first, ("text_embed", "mlp")), (second, ("mlp", "text_embed"))):
            spec = sharding.partition_spec(names, value.shape, mesh.shape, rules)
            value = value.astype(np.float32)
            where = NamedSharding(mesh, spec)
            placed.append(jax.make_array_from_callback(value.shape, where, value.__getitem__))
        if layout == "hsdp":  # a slice has all of it: its four devices a quarter each
            held = {shard.data.shape for shard in placed[0].addressable_shards}
            assert held == {(4, 6)}, held
        with sharding.use(mesh, layout):
            batch = sharding.shard_batch({"rows": own.astype(np.float32)}, mesh)
            found = jax.jit(lambda *x: gradient(*x), out_shardings=sharding.replicated(mesh))(
                *placed, batch["rows"]
            )
        for ours, value in zip(jax.device_get(found), expected, strict=True):
            np.testing.assert_allclose(ours, value, rtol=1e-5, atol=1e-5, err_msg=layout)
    processes.barrier("end")
    os._exit(0)
""")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def environment():
    """Of a process with one CPU device, without what this one or a cluster has set."""
    drop = ("XLA_", "JAX_", "SLURM_", "OMPI_", "TPU_", "TWELVE_IN_ONE_", "JOB", "KUBERNETES_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
    return kept | {"JAX_PLATFORMS": "cpu"}


def run_two(program):
    """Exit codes and outputs of two processes that run a program together."""
    coordinator = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, coordinator, str(i)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], "\n".join(outputs)


def test_two_processes_exchange_values_and_stop_together():
    codes, outputs = run_two(PROGRAM)
    assert codes == [0, -signal.SIGTERM], outputs


def test_two_processes_of_four_devices_are_two_slices():
    """Every layout computes what one device does."""
    codes, outputs = run_two(TWO_SLICES)
    assert codes == [0, 0], outputs


def test_a_process_that_waits_in_vain_says_for_whom():
    coordinator = f"127.0.0.1:{free_port()}"
    program = (
        "from twelve_in_one.parallel import processes as d\n"
        f"d.initialize(coordinator={coordinator!r}, num_processes=3, process_id=1,"
        " timeout_seconds=1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    message = f"gave up waiting for all 3 processes to meet at {coordinator} (explicit flags)"
    assert message in done.stderr and "Check that" in done.stderr
