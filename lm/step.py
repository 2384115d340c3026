"""The step: pure functions of a state and a batch, compiled once over the mesh."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lm import backend, mesh, models, precision, terms, throughput, tree
from lm.config import Config
from lm.layers.products import HISTORIES
from lm.models import Model
from lm.precision import Precision
from lm.terms import Batch, Loss, Sums, Trained

# By task; None where there is but one.
Rates = dict[str, jax.Array] | None


@flax.struct.dataclass
class TrainState:
    """Everything that the next step depends on.

    Attributes:
        step: int32 [], steps done, skipped ones included.
        params: float32 tree.
        opt_state: optax's state.
        ema: the moving average of the parameters, or an empty tuple when it is off.
        rng: uint32 key data, never advanced: each step folds its number in.
        skipped: int32 [], steps skipped for a gradient that was not finite.
        skipped_in_a_row: int32 [], of these, the latest without a good one after them; without those that
            only made the loss scale of float16 smaller.
        precision: what `config.model.dtype` and `config.model.matmul` keep: nothing, of most.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    rng: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    precision: Precision


def init_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    config: Config,
    seed: int,
    histories: Any,
) -> TrainState:
    """Returns the state before the first step. Traceable; `histories` as of `first_state`."""
    params = _init(model, seed)['params']
    return first_state(params, optimizer, config, seed, histories)


def _init(model: Model, seed: int) -> Any:
    """Returns the variables of a model, by collection."""
    # The parameters are those of unrolled layers too, and a loop compiles faster.
    looped = model.clone(config=dataclasses.replace(model.config, scan_layers=True))
    return looped.init(jax.random.key(seed), **models.example(looped))


def _histories(model: Model, config: Config) -> Any:
    """Returns the shapes of what a model's products keep."""
    if config.model.matmul == 'same':
        return {}
    variables = jax.eval_shape(lambda: _init(model, config.seed))
    return variables.get(HISTORIES, {})


def first_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    config: Config,
    seed: int,
    histories: Any,
) -> TrainState:
    """Returns the state before the first step, of parameters that there are. Traceable.

    Args:
        params: float32 tree.
        optimizer: the whole chain from gradient to update.
        config: the run's.
        seed: of the steps' random numbers.
        histories: shapes of `Precision.histories`.
    """
    key = jax.random.key(seed)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else (),
        rng=jax.random.key_data(jax.random.fold_in(key, 1)),
        skipped=jnp.int32(0),
        skipped_in_a_row=jnp.int32(0),
        precision=precision.first(config.optimizer, config.model.dtype, histories),
    )


def train_step(
    state: TrainState,
    batch: Batch,
    rates: Rates,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    accumulation: int,
    ema_decay: float,
    loss_scale_steps: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one optimizer step. Pure.

    A step whose gradient is not finite changes nothing but the counters.

    Args:
        state: before the step.
        batch: fields [B, T] of the batch contract; of several tasks by task.
        rates: of tasks that are learnt jointly, by task; what is minimised is the sum of their losses, each
            times its rate. None: 1.
        loss: what is minimised.
        optimizer: the whole chain from gradient to update.
        accumulation: the batch goes through the model in so many equal parts; the result is the same.
        ema_decay: of the moving average; 0 is off.
        loss_scale_steps: good steps after which the loss scale of float16 is doubled.

    Returns:
        The state after it, and metrics as float32 scalars: `loss`, which is minimised; each term's sums
        divided by its weight (nats a token), those of terms but the main one as `TERM/NAME`; `grad_norm`,
        `tokens` that went in (those of targets; no padding), `skipped`, `skipped_in_a_row`; in float16
        `loss_scale`, that of this step.
    """
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    weights = loss.weights(batch)
    grads, histories, (total, sums) = _gradient(
        state, batch, rng, weights, loss, accumulation, rates
    )
    grad_norm = optax.global_norm(grads)
    finite = jnp.isfinite(grad_norm) & jnp.isfinite(total)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = (
        jax.tree.map(lambda a, p: ema_decay * a + (1 - ema_decay) * p, state.ema, params)
        if ema_decay
        else ()
    )
    params, opt_state, ema = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (params, opt_state, ema),
        (state.params, state.opt_state, state.ema),
    )
    new = TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        ema=ema,
        rng=state.rng,
        skipped=state.skipped + ~finite,
        skipped_in_a_row=jnp.where(
            finite, 0, state.skipped_in_a_row + ~precision.recovers(state.precision)
        ),
        precision=precision.after(state.precision, histories, finite, loss_scale_steps),
    )
    means = jax.tree.map(
        jnp.divide, sums, {name: dict.fromkeys(sums[name], _one(weights[name])) for name in sums}
    )
    metrics = terms.flat(means, loss.main) | {
        'loss': total,
        'grad_norm': grad_norm,
        'tokens': tokens_in(batch),
        'skipped': new.skipped,
        'skipped_in_a_row': new.skipped_in_a_row,
    }
    if state.precision.loss_scale:
        metrics['loss_scale'] = state.precision.loss_scale.scale
    return new, metrics


def tokens_in(batch: Any) -> jax.Array:
    """Returns how many tokens the rows of `[B, T]` hold, float32; padding is none."""
    if 'segment_ids' not in batch:
        return sum(map(tokens_in, batch.values()))
    return jnp.sum(batch['segment_ids'] > 0).astype(jnp.float32)


def _one(weight: jax.Array) -> jax.Array:
    """A batch without anything to learn has a sum of 0, and not a mean of 0 / 0."""
    return jnp.maximum(weight, 1.0)


def _gradient(
    state: TrainState,
    batch: Batch,
    rng: jax.Array,
    weights: dict[str, jax.Array],
    loss: Loss,
    parts: int,
    rates: Rates = None,
) -> tuple[Any, Any, tuple[jax.Array, Sums]]:
    """Returns the gradient of the loss, the new histories, and the loss and its terms' sums.

    The batch goes through the model in `parts` micro-batches.
    """
    trained = Trained(state.params, state.precision.histories)

    def mean(trained: Trained, part: Batch, rng: jax.Array) -> Any:
        marked = precision.marked(trained.histories)
        sums = loss.sums(trained._replace(histories=marked), part, rng)
        total = sum(
            loss.coefficients[name]
            * (rates[name.partition('/')[0]] if rates else 1.0)
            * (found['loss'] / _one(weights[name]))
            for name, found in sums.items()
        )
        return precision.scaled(total, state.precision), (total, sums)

    def gradient(part: Batch, rng: jax.Array) -> Any:
        (grads, histories), found = jax.grad(mean, has_aux=True)(trained, part, rng)
        return grads, precision.used(histories, trained.histories), found

    if parts == 1:
        grads, histories, found = gradient(batch, rng)
        return precision.unscaled(grads, state.precision), histories, found

    # Part i takes every parts-th row, so that each device keeps rows that it already has.
    batch = jax.tree.map(
        lambda x: mesh.constrain(
            x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1),
            (None, mesh.ROWS, 'sequence'),
        ),
        batch,
    )

    def body(total: Any, inputs: Any) -> Any:
        index, part = inputs
        grads, histories, found = gradient(part, jax.random.fold_in(rng, index))
        # Each part has the scales of the step before; the largest magnitude is that of all of them.
        return (
            jax.tree.map(jnp.add, total[0], grads),
            jax.tree.map(jnp.maximum, total[1], histories),
            jax.tree.map(jnp.add, total[2], found),
        ), ()

    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], batch), rng)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    grads, histories, found = jax.lax.scan(body, zeros, (jnp.arange(parts), batch))[0]
    return precision.unscaled(grads, state.precision), histories, found


def eval_step(params: Any, batch: Batch, *, loss: Loss) -> dict[str, jax.Array]:
    """Returns sums over a batch: those of each term, without dropout or smoothing, and its `weight`."""
    weights = loss.weights(batch)
    sums = loss.sums(params, batch, None)
    return terms.flat({name: sums[name] | {'weight': weights[name]} for name in sums}, loss.main)


def norms(
    state: TrainState,
    batch: Batch,
    rates: Rates,
    step: jax.Array,
    *,
    loss: Loss,
    accumulation: int,
) -> dict[str, Any]:
    """Returns the norm of each parameter and of its gradient at a step, for a post-mortem."""
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), step)
    grads, *_ = _gradient(state, batch, rng, loss.weights(batch), loss, accumulation, rates)
    return jax.tree.map(
        lambda x: jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)))),
        {'gradient_norms': grads, 'parameter_norms': state.params},
    )


def gradient_norm(
    state: TrainState, batch: Batch, step: jax.Array, *, loss: Loss, accumulation: int
) -> jax.Array:
    """Returns the norm of the gradient of a batch's loss, all rates being 1."""
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), step)
    grads, *_ = _gradient(state, batch, rng, loss.weights(batch), loss, accumulation)
    return optax.global_norm(grads)


class Steps:
    """The functions above for one config, compiled over its mesh.

    Attributes:
        model: the model.
        shapes: the state as `jax.ShapeDtypeStruct`s with shardings.
        init: `() -> state`.
        initial: the same, not compiled: to be a part of what is.
        step: `(state, batch, rates) -> (state, metrics)`. The state is donated.
        evaluations: by task, `(params, batch) -> sums`.
        gradient_norm: `(state, batch, step) -> norm`.
        norms: `(state, batch, rates, step) -> {'gradient_norms', 'parameter_norms'}`.
    """

    def __init__(
        self,
        config: Config,
        vocab_size: int,
        device_mesh: Mesh,
        optimizer: optax.GradientTransformation,
    ):
        trained, loss, _ = terms.build(config, vocab_size, device_mesh)
        self.model, _, parts = terms.build(precision.plain(config), vocab_size, device_mesh)
        kept = _histories(trained, config)

        def init() -> TrainState:
            return init_state(self.model, optimizer, config, config.seed, kept)

        shapes = jax.eval_shape(init)
        shardings = mesh.state_shardings(shapes, shapes.params, device_mesh)
        replicated = NamedSharding(device_mesh, P())
        rows = mesh.batch_sharding(device_mesh)

        def step(state: TrainState, batch: Batch, rates: Rates) -> Any:
            return train_step(
                state,
                batch,
                rates,
                loss=loss,
                optimizer=optimizer,
                accumulation=config.optimizer.accumulation,
                ema_decay=config.optimizer.ema_decay,
                loss_scale_steps=config.optimizer.loss_scale_steps,
            )

        self.shapes = jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
            shapes,
            shardings,
        )
        jit = functools.partial(jax.jit, compiler_options=backend.compiler_options())
        self.initial = init
        self.init = jit(init, out_shardings=shardings)
        begin = functools.partial(
            first_state, optimizer=optimizer, config=config, seed=config.seed, histories=kept
        )
        self.begin = jit(begin, out_shardings=shardings, donate_argnums=0)
        self.step = jit(
            step,
            in_shardings=(shardings, rows, replicated),
            out_shardings=(shardings, replicated),
            donate_argnums=0,
        )
        self.evaluations = {
            task: jit(
                functools.partial(eval_step, loss=part),
                in_shardings=(shardings.params, rows),
                out_shardings=replicated,
            )
            for task, part in parts.items()
        }
        self.gradient_norm = jit(
            functools.partial(gradient_norm, loss=loss, accumulation=config.optimizer.accumulation),
            out_shardings=replicated,
        )
        self.norms = jit(
            functools.partial(norms, loss=loss, accumulation=config.optimizer.accumulation),
            out_shardings=replicated,
        )

    def train(self, state: TrainState, batch: Batch, rates: Rates = None) -> Any:
        """Calls `step`."""
        return self.step(state, batch, rates)

    def evaluate(self, params: Any, batch: Batch, task: str = '') -> dict[str, jax.Array]:
        """Returns the sums of a batch of a task."""
        return self.evaluations[task](params, batch)

    @property
    def parameters(self) -> int:
        """The number of the model's parameters."""
        return tree.size(self.shapes.params)

    @property
    def active_parameters(self) -> int:
        """Those that a token goes through: of E experts k."""
        return throughput.active(self.shapes.params, self.model.config)


def evaluated_params(state: TrainState) -> Any:
    """Returns the parameters to evaluate: the moving average where there is one."""
    return state.ema if jax.tree.leaves(state.ema) else state.params
