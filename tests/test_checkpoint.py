"""What is saved is what the step had, and training goes on meanwhile."""

import errno
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import checkpoint
from lm.checkpoint import Checkpoints
from lm.config import CheckpointConfig
from lm.errors import InputError

KEEP = CheckpointConfig(every=1, keep=9, keep_best=0)


def random_state(seed, size=1 << 22):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        'params': {
            str(i): jax.random.normal(key, (size // 1024, 1024)) for i, key in enumerate(keys)
        },
        'rng': jax.random.key_data(keys[0]),
        'step': jnp.int32(seed),
    }


def shapes(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


@flax.struct.dataclass
class State:
    """A state as it is now; `older` is what one without `precision` was."""

    params: jax.Array
    ema: tuple
    precision: dict


def older(state):
    return {'params': state.params, 'ema': state.ema}


@pytest.mark.parametrize('precision', [{'loss_scale': ()}, {'loss_scale': jnp.float32(2)}])
def test_a_checkpoint_from_before_a_field_was_there(tmp_path, precision):
    state = State(jnp.arange(4.0), (), precision)
    with Checkpoints(tmp_path, KEEP) as checkpoints:
        checkpoints.save(1, older(state), {'next_index': 7}, None)
        checkpoints.wait()
    with Checkpoints(tmp_path, KEEP) as checkpoints:
        if jax.tree.leaves(precision):  # It holds something that is needed.
            with pytest.raises(InputError, match='can be read'):
                checkpoints.restore(shapes(state))
            return
        step, found, data = checkpoints.restore(shapes(state))
    assert (step, data['next_index'], found.precision) == (1, 7, precision)
    np.testing.assert_array_equal(found.params, state.params)


@jax.jit
def other_numbers(state):
    return jax.tree.map(lambda x: x * 3 + 1, state)


take_step = jax.jit(other_numbers, donate_argnums=0)


def buffers(state):
    return {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)}


@pytest.fixture
def gated(tmp_path):
    """Checkpoints whose files are not begun before the gate is opened."""
    with Checkpoints(tmp_path, KEEP) as checkpoints:
        gate = threading.Event()

        def close():
            gate.clear()
            checkpoints._writer.submit(gate.wait)

        yield checkpoints, close, gate.set
        gate.set()


@pytest.mark.slow
def test_what_is_saved_is_what_the_step_had_though_donated_steps_go_on(gated):
    checkpoints, close, open_ = gated
    state = take_step(random_state(0))
    checkpoints.prepare(shapes(state))
    checkpoints.save(0, state, {}, None)  # so that nothing is left to compile
    for step in range(1, 4):
        jax.block_until_ready(state)
        expected = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
        before = buffers(state)
        checkpoints.wait()
        close()
        checkpoints.save(step, state, {'next_index': step}, None)
        for _ in range(4):  # the first is dispatched while the state is being copied
            state = take_step(state)
        jax.block_until_ready(state)
        assert buffers(state) == before, 'the steps did not write where the saved state lay'
        assert not (checkpoints.folder / str(step)).exists()
        open_()
        found_step, found, data = checkpoints.restore(shapes(state), step)
        assert (found_step, data) == (step, {'next_index': step})
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_save_begins_when_the_one_before_it_is_on_the_disk(gated, monkeypatch):
    checkpoints, close, open_ = gated
    snapshot, seen = checkpoint._snapshot, []

    def noting(state, fingerprint):
        seen.append(sorted(path.name for path in checkpoints.folder.iterdir()))
        return snapshot(state, fingerprint)

    monkeypatch.setattr(checkpoint, '_snapshot', noting)
    state = random_state(0, 1024)
    checkpoints.prepare(state)
    checkpoints.wait()
    checkpoints._fingerprint.result()
    close()
    checkpoints.save(1, state, {}, None)
    threading.Timer(0.1, open_).start()
    checkpoints.save(2, state, {}, None)
    assert seen == [[], ['1']]
    assert checkpoints.steps == [1, 2]
    checkpoints.save(2, state, {}, None)
    assert len(seen) == 2, 'a step that is there was saved again'


def test_a_full_disk_is_told_at_the_next_call_and_only_once(tmp_path, monkeypatch):
    state = random_state(0, 1024)
    with Checkpoints(tmp_path, KEEP) as checkpoints:
        checkpoints.save(1, state, {}, None)
        checkpoints.wait()

        def fail(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            patched.setattr(checkpoints._manager, 'save', fail)
            checkpoints.save(2, state, {}, None)
            with pytest.raises(InputError, match=r'is full: .* Kept: steps \[1\]\.'):
                checkpoints.save(3, state, {}, None)
        checkpoints.save(3, state, {}, None)
        assert checkpoints.steps == [1, 3]


# Two processes that share the work of each step, and save while their steps go on.
HOST = """
import sys, threading
import jax, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec as P
address, rank, workdir = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(address, 2, rank)
from pathlib import Path
from lm.checkpoint import Checkpoints
from lm.config import CheckpointConfig
run_on_all_devices = multihost_utils.sync_global_devices
def only_from_the_loop(name):
    assert threading.current_thread() is threading.main_thread(), name
    run_on_all_devices(name)
multihost_utils.sync_global_devices = only_from_the_loop
mesh = jax.make_mesh((2,), ('data',), (jax.sharding.AxisType.Auto,))
split, whole = NamedSharding(mesh, P('data')), NamedSharding(mesh, P())
init = jax.jit(lambda: {'a': jax.numpy.arange(1 << 20, dtype='float32').reshape(1024, 1024),
                        'b': jax.numpy.zeros(1024)}, out_shardings={'a': split, 'b': whole})
step = jax.jit(lambda s: {'a': s['a'] + 1, 'b': s['b'] + s['a'].sum(0) * 0 + 1}, donate_argnums=0,
               out_shardings={'a': split, 'b': whole})
state = init()
with Checkpoints(Path(workdir), CheckpointConfig(every=1, keep=9, keep_best=0)) as checkpoints:
    assert checkpoints.restore(state) is None
    for i in range(1, 61):
        state = step(state)
        if i % 20 == 0:
            checkpoints.save(i, state, {'next_index': i}, 1.0 / i)
    checkpoints.wait()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    for i in (20, 40, 60):
        _, found, _ = checkpoints.restore(shapes, i)
        rows = found['a'].addressable_shards[0]
        expected = np.arange(1 << 20, dtype='float32').reshape(1024, 1024)[rows.index]
        for _ in range(i):
            expected = expected + np.float32(1)
        np.testing.assert_array_equal(np.asarray(rows.data), expected)
        assert (np.asarray(found['b'].addressable_shards[0].data) == i).all()
    assert checkpoints.steps == [20, 40, 60] and checkpoints.best == 60
print('whole')
"""


@pytest.mark.slow
def test_two_hosts_save_together_while_their_steps_go_on(tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
    hosts = [
        subprocess.Popen(
            [sys.executable, '-c', HOST, address, str(rank), str(tmp_path)],
            cwd=Path(__file__).parents[1],
            env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for host in hosts:
            out, err = host.communicate(timeout=120)
            assert host.returncode == 0, err
            assert out.endswith('whole\n')
    finally:
        for host in hosts:
            host.kill()
