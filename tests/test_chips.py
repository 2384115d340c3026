"""The table of chips, and what throughput sees of it."""

from types import SimpleNamespace

import pytest

from lm import chips, throughput

KINDS = {
    'TPU v4': 275e12,
    'TPU v5 lite': 197e12,
    'TPU v5': 459e12,
    'TPU v6 lite': 918e12,
    'TPU7x': 1153.5e12,
    'NVIDIA H100 80GB HBM3': 990e12,
    'NVIDIA H200': 990e12,
    'NVIDIA A100-SXM4-80GB': 312e12,
}


@pytest.mark.parametrize(('kind', 'peak'), KINDS.items())
def test_a_device_is_found_by_its_kind(kind, peak):
    device = SimpleNamespace(device_kind=kind)
    assert chips.of(device).peak('bfloat16') == throughput.peak_flops(device) == peak


def test_a_cpu_is_not_in_the_table():
    assert chips.of(SimpleNamespace(device_kind='cpu')) is None


@pytest.mark.parametrize('chip', chips.CHIPS, ids=lambda chip: chip.kind)
def test_every_chip_has_a_source_and_numbers_that_go_together(chip):
    assert chip.source.startswith('https://')
    assert (chip.memory is None) == (chip.bandwidth is None) == (chip.link is None)
    assert chip.float32 is None or chip.float32 <= chip.flops
    if chip.memory:
        assert 16e9 <= chip.memory < 300e9
        # A byte of main memory feeds some hundred FLOPs, and links are slower than that.
        assert 150 < chip.flops / chip.bandwidth < 700
        assert chip.link < chip.bandwidth


def test_no_kind_hides_a_later_one():
    for place, chip in enumerate(chips.CHIPS):
        assert not any(earlier.kind in chip.kind for earlier in chips.CHIPS[:place])
