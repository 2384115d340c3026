"""What is read from the text of a compiled program, against texts counted by hand."""

# ruff: noqa: E501  lines of programs

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm import flops, grouped, hlo, hlo_cost, hlo_memory

# A loop of 5 rounds: x [8, 16] times w [16, 16], gathered of four devices, and added up in place.
LOOP = """HloModule jit_step, is_scheduled=true

FileNames
1 "/home/me/lm/step.py"
2 "/home/me/lm/layers/dense.py"

FunctionNames
1 "step"

FileLocations
1 {file_name_id=1 function_name_id=1 line=12 end_line=12 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=34 end_line=34 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}


%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (carried: (s32[], f32[8,16], f32[4,16])) -> (s32[], f32[8,16], f32[4,16]) {
  %carried = (s32[], f32[8,16]{1,0}, f32[4,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carried), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%carried), index=1
  %part = f32[4,16]{1,0} get-tuple-element(%carried), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %w = f32[16,16]{1,0} all-gather(%part), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}, use_global_device_ids=true, metadata={op_name="jit(step)/while/gather" stack_frame_id=2}
  %y = f32[8,16]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(step)/jvp(model)/dot_general" stack_frame_id=2}
  ROOT %out = (s32[], f32[8,16]{1,0}, f32[4,16]{1,0}) tuple(%next, %y, %part)
}

%condition (carried.1: (s32[], f32[8,16], f32[4,16])) -> pred[] {
  %carried.1 = (s32[], f32[8,16]{1,0}, f32[4,16]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%carried.1), index=0
  %most = s32[] constant(5)
  ROOT %less = pred[] compare(%i.1, %most), direction=LT
}

ENTRY %main (x.1: f32[8,16], w.1: f32[4,16]) -> f32[] {
  %x.1 = f32[8,16]{1,0} parameter(0)
  %w.1 = f32[4,16]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %begun = f32[8,16]{1,0} copy(%x.1)
  %given = (s32[], f32[8,16]{1,0}, f32[4,16]{1,0}) tuple(%zero, %begun, %w.1)
  %loop = (s32[], f32[8,16]{1,0}, f32[4,16]{1,0}) while(%given), condition=%condition, body=%body
  %last = f32[8,16]{1,0} get-tuple-element(%loop), index=1
  %none = f32[] constant(0)
  ROOT %total = f32[] reduce(%last, %none), dimensions={0,1}, to_apply=%add
}
"""
MESH = {'data': 2, 'fsdp': 4}


def test_a_loop_counts_as_often_as_it_runs():
    module = hlo.parse(LOOP)
    counts = {one.name: times for _, one, times in module.executed()}
    assert counts['loop'] == 1
    assert counts['y'] == counts['w'] == 5
    assert 'sum' not in counts  # How two numbers become one.
    assert hlo_cost.flops(module) == 5 * 2 * 8 * 16 * 16


def test_collectives_are_counted_by_kind_axis_and_line():
    [one] = hlo_cost.collectives(hlo.parse(LOOP), MESH)
    assert (one.kind, one.axes, one.devices, one.count) == ('all-gather', ('fsdp',), 4, 5)
    assert one.bytes == 5 * 16 * 16 * 4
    assert one.sent == one.bytes * 3 / 4
    assert one.source == '/home/me/lm/layers/dense.py:34'


def test_bytes_moved():
    # Of the loop: x, w and y of the product, and little for the counter; a gather's are not counted.
    product = 4 * (8 * 16 + 16 * 16 + 8 * 16)
    counter = 3 * 4 + 2 * 4 + 1
    around = 4 * (2 * 8 * 16 + 8 * 16 + 1 + 1)  # A copy, and the sum.
    assert hlo_cost.moved(hlo.parse(LOOP)) == 5 * product + 5 * counter + around


PARTS = """HloModule jit_parts, is_scheduled=true

%pick (stack: f32[12,8,16], at: s32[]) -> f32[1,8,16] {
  %stack = f32[12,8,16]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %none = s32[] constant(0)
  ROOT %one = f32[1,8,16]{2,1,0} dynamic-slice(%stack, %at, %none, %none), dynamic_slice_sizes={1,8,16}
}

%twice (stacked: f32[12,8,16], place: s32[]) -> f32[8,16] {
  %stacked = f32[12,8,16]{2,1,0} parameter(0)
  %place = s32[] parameter(1)
  %picked = f32[1,8,16]{2,1,0} fusion(%stacked, %place), kind=kLoop, calls=%pick
  %flat = f32[8,16]{1,0} bitcast(%picked)
  ROOT %sum = f32[8,16]{1,0} add(%flat, %flat)
}

%put (all: f32[12,8,16], new: f32[8,16], where: s32[]) -> f32[12,8,16] {
  %all = f32[12,8,16]{2,1,0} parameter(0)
  %new = f32[8,16]{1,0} parameter(1)
  %where = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,8,16]{2,1,0} bitcast(%new)
  ROOT %update = f32[12,8,16]{2,1,0} dynamic-update-slice(%all, %row, %where, %zero, %zero)
}

ENTRY %main (x: f32[12,8,16], n: s32[]) -> f32[12,8,16] {
  %x = f32[12,8,16]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %ahead = ((f32[12,8,16]{2,1,0}), f32[3,8,16]{2,1,0:S(1)}, s32[]) slice-start(%x), slice={[0:3], [0:8], [0:16]}
  %near = f32[3,8,16]{2,1,0:S(1)} slice-done(%ahead)
  %read = f32[8,16]{1,0} fusion(%x, %n), kind=kLoop, calls=%twice
  ROOT %write = f32[12,8,16]{2,1,0} fusion(%x, %read, %n), kind=kLoop, calls=%put
}
"""


def test_of_an_array_that_is_looked_at_in_part_the_part_moves():
    part = 8 * 16 * 4
    ahead = 3 * part  # From memory; where it goes is on the chip.
    read = part + part + 4  # One of twelve, though a fusion is inside of a fusion; and the place.
    write = part + part + 4  # What is new, where it goes, and the place.
    assert hlo_cost.moved(hlo.parse(PARTS)) == ahead + read + write


def test_what_is_in_memory_at_the_peak():
    live = hlo_memory.peak(hlo.parse(LOOP))
    # The carried array lies where it began; the body has w besides, and what becomes of x is written anew.
    assert sorted(one.shape for one in live if one.bytes > 8) == ['f32[16,16]', 'f32[8,16]']
    assert live[0].source == '/home/me/lm/layers/dense.py:34'


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('replica_groups={{0,1},{2,3}}', [[0, 1], [2, 3]]),
        ('replica_groups=[2,2]<=[4]', [[0, 1], [2, 3]]),
        ('replica_groups=[2,2]<=[2,2]T(1,0)', [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ('source_target_pairs={{0,1},{1,0}}', [[0, 1], [1, 0]]),
        ('replica_groups={}', [[0, 1, 2, 3]]),
    ],
)
def test_every_way_to_write_groups(text, expected):
    one = hlo.Instruction('x', 'all-reduce', (), (), {}, f', {text}, channel_id=1', '')
    assert hlo_cost.groups(one, 4).tolist() == expected


def test_axes_of_groups():
    assert hlo_cost.axes_of(np.array([[0, 1, 2, 3], [4, 5, 6, 7]]), MESH) == ('fsdp',)
    assert hlo_cost.axes_of(np.array([[0, 4], [1, 5]]), MESH) == ('data',)
    assert hlo_cost.axes_of(np.arange(8)[None], MESH) == ('data', 'fsdp')


@pytest.mark.parametrize(
    ('line', 'expected'),
    [
        # [30, 1024, 768] x [768, 12, 64]; a window of 12 places sees one head at each.
        (
            '%c = f32[30,1024,12,64] convolution(%l, %r), window={size=1x12 pad=0_0x11_11 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f',
            2 * 30 * 1024 * 768 * 12 * 64,
        ),
        # [30, 12, 128, 64] x [30, 12, 64, 128], row by row and head by head.
        (
            '%c = f32[30,12,128,128] convolution(%l, %r), window={size=30x12 stride=29x11 lhs_dilate=30x12}, dim_labels=01bf_01oi->01bf',
            2 * 30 * 12 * 128 * 128 * 64,
        ),
    ],
)
def test_a_product_of_a_tpu_is_a_convolution(line, expected):
    shapes = ('30,1024,768,1', '768,12,64,1') if '1x12' in line else ('30,12,128,64',) * 2
    text = 'ENTRY %main (l: f32[1]) -> f32[1] {\n' + ''.join(
        f'  %{name} = f32[{sizes}]{{3,2,1,0}} parameter({i})\n'
        for i, (name, sizes) in enumerate(zip('lr', shapes, strict=True))
    )
    assert hlo_cost.flops(hlo.parse(f'{text}  ROOT {line}\n}}\n')) == expected


@pytest.mark.parametrize(
    ('text', 'size', 'fast'),
    [
        ('f32[3,5]{1,0}', 60, False),
        ('bf16[3,5]{1,0:T(8,128)(2,1)}', 8 * 128 * 2, False),
        ('f32[9,130]{0,1:T(8,128)}', 136 * 128 * 4, False),
        ('f32[8,128]{1,0:T(8,128)S(1)}', 4096, True),
        ('pred[7]{0}', 7, False),
        ('s4[6]{0}', 3, False),
        ('f8e4m3fn[10]{0}', 10, False),
        ('token[]', 0, False),
    ],
)
def test_bytes_of_arrays_with_their_tiles(text, size, fast):
    array, _ = hlo._shape(text, 0)
    assert (array.bytes, array.fast) == (size, fast)


def test_products_and_loops_of_a_jaxpr():
    x, w = jnp.ones((8, 16)), jnp.ones((3, 16, 16))

    def function(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    forward = 3 * 2 * 8 * 16 * 16
    assert flops.of(function, x, w) == forward
    assert flops.of(jax.grad(function, 1), x, w) == 3 * forward
    computed_again = jax.checkpoint(function)
    assert flops.of(jax.grad(computed_again, 1), x, w) == 4 * forward
    compiled = jax.jit(jax.grad(function, 1)).lower(x, w).compile()
    # The gradient of the first x is not asked for, and XLA knows.
    assert 2 * forward < hlo_cost.flops(hlo.parse(compiled.as_text())) <= 3 * forward


def test_bytes_and_products_without_loops_are_those_of_xla():
    def function(x, w):
        for _ in range(3):
            x = jnp.tanh(x @ w)[:, ::-1]
        return x[:8].sum()

    compiled = (
        jax.jit(jax.grad(function, 1)).lower(jnp.ones((64, 64)), jnp.ones((64, 64))).compile()
    )
    module, cost = hlo.parse(compiled.as_text()), compiled.cost_analysis()
    assert hlo_cost.moved(module) == pytest.approx(cost['bytes accessed'], rel=0.05)
    assert hlo_cost.flops(module) == pytest.approx(cost['flops'], rel=0.05)


def test_the_loop_of_a_compiled_program():
    def function(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=7)[0]

    compiled = jax.jit(function).lower(jnp.ones((64, 64)), jnp.ones((64, 64))).compile()
    assert hlo_cost.flops(hlo.parse(compiled.as_text())) == 7 * 2 * 64**3


def test_gradients_of_data_parallel_rows_are_added_up_once():
    mesh = jax.make_mesh((4,), ('data',), (AxisType.Auto,), devices=jax.devices()[:4])
    rows, whole = NamedSharding(mesh, P('data')), NamedSharding(mesh, P())
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=rows)
    w = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=whole)
    gradient = jax.jit(jax.grad(lambda w, x: jnp.sum((x @ w) ** 2)), out_shardings=whole)
    module = hlo.parse(gradient.lower(w, x).compile().as_text())
    [one] = hlo_cost.collectives(module, {'data': 4})
    assert (one.kind, one.axes, one.count, one.bytes) == ('all-reduce', ('data',), 1, 16 * 32 * 4)
    assert one.sent == 2 * one.bytes * 3 / 4


def test_what_is_no_program():
    with pytest.raises(ValueError, match='no ENTRY'):
        hlo.parse('hello')


def test_rows_of_groups_go_through_one_matrix_each():
    x, kernel, sizes = jnp.ones((12, 5)), jnp.ones((4, 5, 7)), jnp.array([3, 0, 6, 3])
    products = 2 * 12 * 5 * 7
    assert flops.of(grouped.products_ragged, x, kernel, sizes) == products
    assert flops.of(grouped.outer_ragged, x, jnp.ones((12, 7)), sizes) == products
