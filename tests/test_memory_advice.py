"""What to change where memory is not enough, in literal numbers."""

import pytest

import lm
from lm import config as configs
from lm.memory_advice import advise, size

GB = 10**9
STATE = {'parameters': 2_800_000_000, 'optimizer': 5_600_000_000, 'gradients': 2_800_000_000}


def config(**sections):
    return configs.parse(
        lm.get_config(
            'base',
            **{
                'data': {'batch_size': 32, 'length': 1024},
                'model': {'num_layers': 10, 'embed_dim': 1024, 'dtype': 'bfloat16'},
            }
            | sections,
        )
    )


def mesh(**axes):
    return {'data': 1, 'fsdp': 1, 'tensor': 1, 'sequence': 1} | axes


def changes(advice):
    return [dict(one.change) for one in advice]


def test_the_state_is_sharded_over_the_devices_that_there_are():
    (one,) = advise(STATE, 4 * GB, config(), mesh(data=4))
    assert one.change == {'mesh.fsdp': 4}
    assert (one.before, one.after, one.enough, one.devices) == (
        112 * GB // 10,
        28 * GB // 10,
        True,
        1,
    )
    assert str(one) == (
        '--config.mesh.fsdp=4 takes parameters, optimizer, gradients from 11.2 GB to about 2.8 GB a '
        'device, which is enough (the same --workdir goes on)'
    )


@pytest.mark.parametrize(('limit', 'fsdp'), [(6, 2), (3, 4), (2, 8)])
def test_no_more_is_sharded_than_is_needed(limit, fsdp):
    (one,) = advise(STATE, limit * GB, config(), mesh(data=8))
    assert one.change == {'mesh.fsdp': fsdp}
    assert one.enough


def test_where_these_devices_are_too_few_more_are_needed():
    few, more = advise(STATE, GB, config(), mesh(data=8))
    assert (few.change, few.enough, few.after) == ({'mesh.fsdp': 8}, False, 14 * GB // 10)
    assert (more.change, more.enough, more.devices) == ({'mesh.fsdp': 16}, True, 2)


def test_a_data_axis_of_a_fixed_size_changes_too():
    sizes = {'mesh': {'data': 4, 'fsdp': 2}}
    (one,) = advise(STATE, 6 * GB, config(**sizes), mesh(data=4, fsdp=2))
    assert one.change == {'mesh.fsdp': 4, 'mesh.data': 2}


def test_where_all_devices_share_already_more_are_needed():
    (one,) = advise(STATE, 3 * GB, config(), mesh(fsdp=2))
    assert (one.change, one.devices, one.after) == ({'mesh.fsdp': 8}, 4, 28 * GB // 10)
    assert 'on 4 times as many devices' in str(one)


def test_activations():
    """A layer's input is 8 rows x 1024 x 1024 x 2 bytes = 16.8 MB, and there are ten of them."""
    found = advise(STATE | {'activations': 40 * GB}, 20 * GB, config(), mesh(fsdp=4))
    by_key = {key: one for one in found for key in one.change}
    remat = by_key['model.remat']
    assert remat.after == 10 * 8 * 1024 * 1024 * 2 + 4 * GB
    assert remat.enough
    assert remat.resumable
    parts, rows = by_key['optimizer.accumulation'], by_key['data.batch_size']
    assert (dict(parts.change), dict(rows.change)) == (
        {'optimizer.accumulation': 8},
        {'data.batch_size': 4},
    )
    assert parts.after == rows.after == 5 * GB
    assert parts.enough
    assert not parts.resumable
    assert 'in another --workdir' in str(rows)


STAGES = {'num_layers': 8, 'embed_dim': 1024, 'dtype': 'bfloat16'}


@pytest.mark.parametrize(
    ('limit', 'parts', 'repeats', 'most', 'after'),
    [
        # 4 stages keep what 4 + 4 turns need, each of a quarter of the rows.
        (32, 0, 1, 8, 40 * (12 / 8) / (8 / 4)),
        (26, 0, 1, 16, 40 * (20 / 16) / (8 / 4)),
        (None, 0, 1, 8, 40 * (12 / 8) / (8 / 4)),
        (38, 4, 2, 8, 40 * (20 / 16) / (12 / 8)),
        (10, 8, 1, 16, 40 * (20 / 16) / (12 / 8)),
    ],
)
def test_more_micro_batches(limit, parts, repeats, most, after):
    keys = {'pipeline_microbatches': parts, 'pipeline_repeats': repeats}
    found = advise(
        {'activations': 40 * GB},
        limit and limit * GB,
        config(model=STAGES | keys),
        mesh(stage=4, data=2),
    )
    (one,) = [one for one in found if 'model.pipeline_microbatches' in one.change]
    assert one.change == {'model.pipeline_microbatches': most}
    assert one.after == pytest.approx(after * GB, rel=1e-9)
    assert one.enough == (limit and limit != 10)
    assert one.resumable


def test_micro_batches_that_are_of_one_row_are_not_cut():
    keys = {'pipeline_microbatches': 16}
    found = advise({'activations': GB}, None, config(model=STAGES | keys), mesh(stage=4, data=2))
    assert [*changes(found)[0]] == ['model.remat']
    assert changes(found)[1:] == [{'data.length': 512}]
    keys = {'pipeline_repeats': 2}
    rows = {'data': {'batch_size': 24, 'length': 1024}}
    sizes = mesh(stage=4)
    # 6 and 24 parts of 24 rows: with several pieces a stage the stages divide them.
    found = advise({'activations': GB}, None, config(model=STAGES | keys, **rows), sizes)
    assert {'model.pipeline_microbatches': 8} in changes(found)
    found = advise({'activations': GB}, None, config(model=STAGES, **rows), sizes)
    assert {'model.pipeline_microbatches': 6} in changes(found)


def test_fewer_rows_are_still_whole_micro_batches():
    """32 rows are 4 micro-batches over 2 parts of rows: by 4 they can be divided, and not by 8."""
    found = advise({'activations': 40 * GB}, GB, config(model=STAGES), mesh(stage=4, data=2))
    assert {'optimizer.accumulation': 4} in changes(found)
    assert {'data.batch_size': 8} in changes(found)


def test_rematerialisation_of_a_stage():
    """A stage keeps inputs of its 2 layers in 7 turns of 4, and of one layer of a micro-batch all."""
    found = advise({'activations': 40 * GB}, None, config(model=STAGES), mesh(stage=4, data=2))
    (one,) = [one for one in found if 'model.remat' in one.change]
    inputs = 16 * 1024 * 1024 * 2
    ends = (2 + 2 * 7 / 4) * inputs
    assert one.after == pytest.approx(2 * 7 / 4 * inputs + ends + 40 * GB / (2 * 8), rel=1e-6)


def test_of_one_row_a_device_only_the_length_can_shrink():
    found = advise({'activations': 40 * GB}, None, config(), mesh(data=32))
    assert {'data.length': 512} in changes(found)
    assert found[-1].enough is None


def test_evaluation():
    found = advise({'parameters': GB, 'evaluation': 8 * GB}, 4 * GB, config(), mesh(data=2))
    assert {'eval.batch_size': 8} in changes(found)
    assert found[-1].after == 2 * GB
    assert found[-1].resumable
    assert found[-1].enough


def test_nothing_is_advised_that_is_so_already():
    remat = config(model={'num_layers': 10, 'remat': 'full'})
    assert changes(advise({'activations': GB}, None, remat, mesh(data=16))) == [
        {'optimizer.accumulation': 2},
        {'data.batch_size': 16},
    ]
    assert advise({'batch': GB}, GB // 2, config(), mesh()) == []


def test_sizes():
    numbers = (12_300, 350e6, 999.96e6, 2.8e9, 4e14, 3e15)
    assert [size(n) for n in numbers] == ['12.3 kB', '350 MB', '1 GB', '2.8 GB', '400 TB', '3 PB']


def test_an_encoder_has_as_many_layers_as_the_decoder_unless_they_are_told():
    def advised(layers):
        model = {'num_layers': 10, 'encoder_layers': layers, 'architecture': 'encoder_decoder'}
        options = config(model=model | {'embed_dim': 1024, 'dtype': 'bfloat16'})
        return advise({'activations': 40 * GB}, GB, options, mesh())

    assert advised(0) == advised(10) != advised(20)
