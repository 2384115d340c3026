"""Devices by name; what is wrong in one is a line that names the right one."""

import importlib.util

import jax
import pytest

from lm import chips, topology
from lm.errors import InputError


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('v5x:4x4', "Did you mean 'v5p'"),
        ('h20:8', "Did you mean 'h200'"),
        ('nothing', 'Choose one of'),
        ('', 'Choose one of'),
        ('h200:0', "Did you mean 'h200:8'"),
        ('h200:2x2', "Did you mean 'h200:8'"),
        ('cpu:many', "Did you mean 'cpu:8'"),
        ('cpu:1000', 'has 8 CPU devices'),
    ],
)
def test_what_is_no_topology(name, words):
    with pytest.raises(InputError, match=words) as error:
        topology.devices(name)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', topology.TPUS)
def test_a_shape_has_the_dimensions_of_its_chips(name, monkeypatch):
    monkeypatch.setattr(topology, '_installed', lambda module: True)
    for shape in ('', '4', '2x', '0x2', '2x2x2x2'):
        with pytest.raises(InputError, match=f"Did you mean '{name}:2x2"):
            topology.devices(f'{name}:{shape}')


@pytest.mark.parametrize('name', ['v5e:2x2', 'h200'])
def test_what_is_not_installed_is_said_with_the_command(name, monkeypatch):
    monkeypatch.setattr(topology, '_installed', lambda module: False)
    with pytest.raises(InputError, match=r"pip install -e '\.\[plan\]'"):
        topology.devices(name)


def test_cpu_devices():
    assert topology.devices('cpu:4') == jax.devices('cpu')[:4]
    assert topology.devices('cpu') == jax.devices('cpu')[:1]


def test_an_h100_differs_from_an_h200_in_its_memory():
    text = topology._CHIP.read_text()
    for changes in topology.GPUS.values():
        assert all(old in text for old in changes)


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason="needs '.[plan]'")
@pytest.mark.parametrize(
    ('name', 'count'),
    [
        *(('v4:2x2x1', 4), ('v4:2x2x2', 8), ('v5e:1x1', 1), ('v5e:4x4', 16), ('v5p:2x2x2', 8)),
        *(('v6e:2x2', 4), ('tpu7x:2x2x1', 8)),
    ],
)
def test_tpus(name, count, monkeypatch):
    found = topology.devices(name)
    assert len(found) == count
    assert chips.of(found[0]).memory


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason="needs '.[plan]'")
def test_a_shape_that_libtpu_does_not_have():
    with pytest.raises(InputError, match="Did you mean 'v5e:2x2'"):
        topology.devices('v5e:3x3')
