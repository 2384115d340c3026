"""A pipeline: layers split over the mesh's axis `stage`, through which micro-batches of the rows go.

GPipe's schedule (Huang et al. 2019, https://arxiv.org/abs/1811.06965), and the circular one with several
pieces of the layers a stage (Narayanan et al. 2021, https://arxiv.org/abs/2104.04473), in the form of
GSPMD (Xu et al. 2021, section 3.3, https://arxiv.org/abs/2105.04663): one loop in which all stages work at
the same time, each on a micro-batch of its own. What they work on is one array with an axis for stages,
which the mesh splits; after every turn it is rolled by one, and so each stage gets what the one before it
made. The backward pass is that of the loop: the same turns, the other way round.

With S stages, M micro-batches and R pieces a stage, N layers are S R pieces; piece r S + s is at stage s.
Two stages, three micro-batches (0 1 2), one piece a stage; turns go to the right, . is idle:

    stage 0   0 1 2 .
    stage 1   . 0 1 2

Two stages, two micro-batches, two pieces a stage (a b, of stage 1 too): a micro-batch goes round twice.

    stage 0   a0 a1 b0 b1 .
    stage 1   .  a0 a1 b0 b1

A turn takes as long as N / (S R) layers do for B / M rows. There are R M + S - 1, and each stage works in
R M of them; what is idle, (S - 1) / (R M + S - 1), is the bubble. More pieces make it smaller, and send R
times as much; more micro-batches make it smaller, and products narrower.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lm import attention
from lm.config import ModelConfig
from lm.errors import InputError
from lm.layers.dense import PRODUCT
from lm.mesh import ROWS

AXIS = 'stage'

# (parameters of a layer, x [B / M, T, D], what it knows, rng) -> x, and what it has sown.
Layer = Callable[[Any, jax.Array, Any, jax.Array | None], tuple[jax.Array, Any]]


# Name of what a layer is given.
_GIVEN = 'pipeline layer'
# What brings parameters into the form that products take them in, and costs nothing to do again.
_FORMS = ('convert_element_type', 'gather', 'reshape', 'squeeze', 'transpose', 'broadcast_in_dim')


class Schedule(NamedTuple):
    """Who works on what, and when.

    Attributes:
        stages: S.
        repeats: R, pieces of the layers a stage. With more than one, S divides M.
        micro_batches: M.
    """

    stages: int
    repeats: int
    micro_batches: int

    @property
    def iterations(self) -> int:
        """Turns of the loop."""
        return self.repeats * self.micro_batches + self.stages - 1

    @property
    def bubble(self) -> float:
        """The part of the turns in which a stage has nothing to do."""
        return (self.stages - 1) / self.iterations

    def work(self, iteration: Any, stage: Any) -> tuple[Any, Any, Any]:
        """Returns what stages work on in a turn: which piece and micro-batch; and whether on any.

        Args:
            iteration: int, or an array of them; so is the stage. They are broadcast to each other.
            stage: 0 to S - 1.

        Returns:
            Numbers below R and M (of an idle stage, some), and False for an idle stage.
        """
        number = iteration - stage
        busy = (number >= 0) & (number < self.repeats * self.micro_batches)
        number = number.clip(0, self.repeats * self.micro_batches - 1)
        # S micro-batches go round R times before the next S of them come.
        group, place = number // (self.stages * self.repeats), number % (self.stages * self.repeats)
        return place // self.stages, group * self.stages + place % self.stages, busy

    def iteration(self, repeat: Any, micro_batch: Any, stage: Any) -> Any:
        """Returns the turn in which a stage does that: the inverse of `work`."""
        group, place = micro_batch // self.stages, micro_batch % self.stages
        return stage + (group * self.repeats + repeat) * self.stages + place


def schedule(config: ModelConfig, rows: int) -> Schedule | None:
    """Returns how so many rows go through the stages of the mesh in context; None where they do not.

    There is but one stage; or rows are too few or odd, as of a prompt: layers then run in turn, and are
    gathered for it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    stages = 1 if mesh.empty else mesh.shape.get(AXIS, 1)
    if stages == 1:
        return None
    found = Schedule(stages, config.pipeline_repeats, config.pipeline_microbatches or stages)
    shards = int(np.prod([mesh.shape.get(axis, 1) for axis in ROWS]))
    return None if rows % (found.micro_batches * shards) else found


def micro_batches(config: ModelConfig, mesh: Mesh) -> int:
    """Returns into how many parts rows are cut for the stages of a mesh; 1 where there is one stage."""
    stages = mesh.shape[AXIS]
    return 1 if stages == 1 else config.pipeline_microbatches or stages


def check(config: ModelConfig, mesh: Mesh) -> None:
    """Raises InputError if the stages of a mesh cannot divide the layers, or the micro-batches."""
    stages, repeats, parts = mesh.shape[AXIS], config.pipeline_repeats, micro_batches(config, mesh)
    if stages == 1:
        return
    if config.share_layers:
        raise InputError(
            f'mesh.stage = {stages} splits layers, and config.model.share_layers = True has but one: '
            'let mesh.fsdp split it.'
        )
    if repeats > 1 and parts % stages:
        near = max(1, round(parts / stages)) * stages
        raise InputError(
            f'config.model.pipeline_microbatches = {parts} cannot be divided by mesh.stage = {stages}, as '
            f'config.model.pipeline_repeats = {repeats} needs it. The nearest that can: {near}.'
        )
    if config.matmul == 'fp8':
        raise InputError(
            f"mesh.stage = {stages} sends layers to stages, and config.model.matmul = 'fp8' keeps what "
            "each step found for the next one: set it to 'int8', or mesh.stage to 1."
        )
    stacks = [('num_layers', config.num_layers, config.attention)]
    if config.architecture == 'encoder_decoder':
        name = 'encoder_layers' if config.encoder_layers else 'num_layers'
        stacks.append((name, getattr(config, name), config.encoder_attention))
    for name, number, pattern in stacks:
        kinds = len(attention.parse_pattern(pattern))
        if config.experts:
            kinds = math.lcm(kinds, config.expert_every)
        if number % (pieces := stages * repeats * kinds):
            times = f' x {kinds} layers, after which the pattern begins anew' if kinds > 1 else ''
            raise InputError(
                f'config.model.{name} = {number} cannot be divided by {pieces} (mesh.stage {stages} x '
                f'config.model.pipeline_repeats {repeats}{times}). The nearest that can: '
                f'{max(1, round(number / pieces)) * pieces}.'
            )


def run(
    layer: Layer,
    params: Any,
    x: jax.Array,
    rows: Any,
    shared: Any,
    plan: Schedule,
    rng: jax.Array | None = None,
    remat: str = 'none',
    unroll: bool = False,
) -> tuple[jax.Array, Any]:
    """Returns what all layers make of `x`, one after the other, and what they have sown.

    Micro-batch i is every M-th row from the i-th on, so that each device keeps rows that it has.

    Args:
        layer: any; it must not mix rows.
        params: of all layers, stacked, `[N, ...]`.
        x: `[B, T, D]`.
        rows: what layers know of rows, arrays `[B, ...]`.
        shared: what they know besides, arrays that are the same for all rows.
        plan: whose S R divide N, and M the rows.
        rng: each layer gets one of its own for each micro-batch. None: layers get None.
        remat: what the backward pass keeps of layers: `config.model.remat`.
        unroll: the layers of a piece are not a loop.

    Returns:
        `[B, T, D]`; and what layers have sown: arrays of rows `[N, B, ...]`, and of numbers `[N]`, their
        sums over micro-batches.
    """
    stages, repeats, micro_batches = plan
    numbers = jnp.arange(stages)
    pieces = _pieces(params, plan)
    depth = jax.tree.leaves(pieces)[0].shape[2]
    x = _each_stage(_micro_batches(x, micro_batches), stages, 1)
    rows = jax.tree.map(lambda a: _each_stage(_micro_batches(a, micro_batches), stages, 1), rows)
    shared = jax.tree.map(lambda a: _each_stage(a, stages), shared)

    work = _work(layer, plan, depth, rng, remat, unroll)
    if remat != 'none' or repeats > 1:
        work = jax.checkpoint(work, policy=_keeps(remat, pieces, plan, depth), prevent_cse=False)
    every = jax.vmap(work, in_axes=(1, 0, 0, 0, 0, 0, 0), spmd_axis_name=AXIS)

    def turn(made: jax.Array, iteration: jax.Array) -> Any:
        repeat, micro_batch, _ = plan.work(iteration, numbers)
        begins = ((numbers == 0) & (repeat == 0))[:, None, None, None]
        new = jax.vmap(_nth)(x, micro_batch)
        given = _over_stages(jnp.where(begins, new, _passed_on(made)))
        made, sown = every(pieces, given, rows, shared, repeat, numbers, micro_batch)
        made = _over_stages(made)
        return made, (made, sown)

    # An idle stage works on rows that there are, so that nothing it makes is NaN; nobody takes it.
    first = jax.lax.stop_gradient(x[:, 0])
    _, (made, sown) = jax.lax.scan(turn, first, jnp.arange(plan.iterations))
    last = plan.iteration(repeats - 1, np.arange(micro_batches), stages - 1)
    # [M, S, B / M, T, D]: of these the last stage's, sent to all.
    made = jnp.where((numbers == stages - 1)[:, None, None, None], made[last], 0)
    return _rows(jnp.sum(made, axis=1)), jax.tree.map(lambda a: _in_order(a, plan), sown)


def _work(
    layer: Layer, plan: Schedule, depth: int, rng: jax.Array | None, remat: str, unroll: bool
) -> Callable[..., tuple[jax.Array, Any]]:
    """Returns what one stage does in a turn: a piece, of so many layers, of a micro-batch.

    It takes the stage's pieces `[R, N / (S R), ...]`, vectors, what is known of rows `[M, B / M, ...]` and
    besides, and the numbers of the piece, the stage and the micro-batch.
    """
    if remat != 'none':
        layer = jax.checkpoint(layer, prevent_cse=unroll)

    def work(params: Any, x: jax.Array, rows: Any, shared: Any, repeat, stage, micro_batch):
        params = _nth(
            params, repeat if plan.repeats > 1 else 0
        )  # One and the same leaves no copies.
        facts = _nth(rows, micro_batch), shared
        first = (repeat * plan.stages + stage) * depth

        def one(x: jax.Array, inputs: Any) -> Any:
            params, number = inputs
            key = rng
            if rng is not None:
                key = jax.random.fold_in(jax.random.fold_in(rng, number), micro_batch)
            return layer(params, checkpoint_name(x, _GIVEN), facts, key)

        inputs = params, first + jnp.arange(depth)
        return jax.lax.scan(one, x, inputs, unroll=depth if unroll else 1)

    return work


def _pieces(params: Any, plan: Schedule) -> Any:
    """Returns `[R, S, N / (S R), ...]` of `[N, ...]`, each stage's on its devices.

    The mesh splits `[N]` in order. With R > 1 stages hold other layers than they work on: each sends its
    pieces to where they belong once before the loop, and gets their gradients back after it.
    """

    def cut(x: jax.Array) -> jax.Array:
        if plan.repeats == 1:
            return _constrain(x.reshape(1, plan.stages, -1, *x.shape[1:]), (None, AXIS, None))
        send = functools.partial(_sent, plan=plan)
        return jax.shard_map(
            send, in_specs=P(AXIS), out_specs=P(None, AXIS), axis_names={AXIS}, check_vma=False
        )(x)

    return jax.tree.map(cut, params)


def _sent(x: jax.Array, plan: Schedule) -> jax.Array:
    """Returns a stage's pieces `[R, 1, N / (S R), ...]`, of the layers `[N / S, ...]` that it holds."""
    stage, rounds = jax.lax.axis_index(AXIS), moves(plan)
    x = x.reshape(plan.repeats, -1, *x.shape[1:])
    found = []
    for pieces in rounds:  # Of each stage, which of the S R.
        own = jax.lax.dynamic_index_in_dim(x, jnp.asarray(pieces % plan.repeats)[stage], 0, False)
        to = [(s, int(piece % plan.stages)) for s, piece in enumerate(pieces)]
        found.append(jax.lax.ppermute(own, AXIS, to))
    # They come in an order of their own: `came[s, r]` is the round that brings piece r S + s.
    came = np.zeros((plan.stages, plan.repeats), int)
    for number, pieces in enumerate(rounds):
        came[pieces % plan.stages, pieces // plan.stages] = number
    return jnp.stack(found)[jnp.asarray(came)[stage]][:, None]


def moves(plan: Schedule) -> np.ndarray:
    """Returns int `[R, S]`: the piece that each stage sends in each of R rounds; each gets one, too.

    Stage s holds the pieces s R to s R + R - 1, and piece p belongs to stage p mod S: with S = 2 and R = 2

        [[0, 3],  # stage 0 keeps piece 0, and stage 1 piece 3
         [1, 2]]  # they exchange pieces 1 and 2
    """
    stages, repeats, _ = plan
    # So many stages in a row send their k-th piece to different ones; the next so many another than it.
    run = stages // math.gcd(stages, repeats)
    rounds, stage = np.arange(repeats)[:, None], np.arange(stages)
    return stage * repeats + (rounds + stage // run) % repeats


def _micro_batches(x: jax.Array, count: int) -> jax.Array:
    """Returns `[M, B / M, ...]` of `[B, ...]`."""
    return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)


def _rows(x: jax.Array) -> jax.Array:
    """Returns `[B, ...]` of `[M, B / M, ...]`."""
    x = x.swapaxes(0, 1)
    return x.reshape(-1, *x.shape[2:])


def _keeps(remat: str, pieces: Any, plan: Schedule, depth: int) -> Callable[..., bool]:
    """Returns what the backward pass keeps of a turn, as a policy of jax.checkpoint.

    It never keeps the parameters of a piece: each turn would leave a copy of them. (With one piece a stage,
    which is the same in all turns, there is no copy, and no need of a policy.) For policies of its own in
    a layer it does not ask: what the MLP would compute again of its activation is kept with 'none'.
    """
    # Of parameters: of all layers, of one piece of each stage, and of one layer of each.
    shapes = {
        tuple(sorted((plan.stages, *part, *leaf.shape[3:])))
        for leaf in jax.tree.leaves(pieces)
        for part in ((plan.repeats, depth), (1, depth), (depth,), ())
    }

    def everything(primitive: Any, *arrays: Any, **_: Any) -> bool:
        return primitive.name not in _FORMS or tuple(sorted(arrays[0].shape)) not in shapes

    named = jax.checkpoint_policies.save_only_these_names
    return {'none': everything, 'dots': named(_GIVEN, PRODUCT), 'full': named(_GIVEN)}[remat]


def _each_stage(x: jax.Array, stages: int, rows_at: int | None = None) -> jax.Array:
    """Returns `[S, ...]`, the same for each stage: their gradients are summed after the loop."""
    x = jnp.broadcast_to(x[None], (stages, *x.shape))
    spec = [AXIS] + [P.UNCONSTRAINED] * (x.ndim - 1)
    if rows_at is not None:
        spec[1 : rows_at + 2] = [None] * rows_at + [ROWS]
    return _constrain(x, spec)


def _over_stages(x: jax.Array) -> jax.Array:
    """Lays `[S, B / M, T, D]` over the mesh."""
    return _constrain(x, (AXIS, ROWS, 'sequence', None))


@jax.custom_vjp
def _passed_on(x: jax.Array) -> jax.Array:
    """Returns `[S, ...]`, of each stage what was the one's before it. (Its gradient in one piece, too.)"""
    return jnp.roll(x, 1, axis=0)


_passed_on.defvjp(
    lambda x: (_passed_on(x), None), lambda _, gradient: (jnp.roll(gradient, -1, axis=0),)
)


def _constrain(x: jax.Array, spec: Any) -> jax.Array:
    spec = (*spec, *[P.UNCONSTRAINED] * (x.ndim - len(spec)))
    return jax.lax.with_sharding_constraint(x, P(*spec))


def _nth(tree: Any, number: jax.Array) -> Any:
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, number, axis=0, keepdims=False), tree
    )


def _in_order(sown: jax.Array, plan: Schedule) -> jax.Array:
    """Returns `[N, B, ...]`, or `[N]`, of what was sown in each turn, `[turns, S, N / (S R), ...]`."""
    repeat, stage, micro_batch = np.ix_(
        np.arange(plan.repeats), np.arange(plan.stages), np.arange(plan.micro_batches)
    )
    found = sown[plan.iteration(repeat, micro_batch, stage), stage]  # [R, S, M, N / (S R), ...]
    found = jnp.moveaxis(found, 2, 3).reshape(
        -1, plan.micro_batches, *found.shape[4:]
    )  # [N, M, ...]
    return jax.vmap(_rows)(found) if found.ndim > 2 else jnp.sum(found, axis=1)
