"""A sweep of plans: meshes, what is computed again, and batch sizes, by the tokens of a day."""

import dataclasses
from typing import Any

from lm import plan
from lm.config import Config
from lm.errors import InputError
from lm.models.transformer import REMATS
from lm.plan import Target
from lm.writer import Progress


def variants(config: Config, on: Target) -> list[Config]:
    """Returns the configs of a sweep: meshes, what is computed again, and half and twice the batch."""
    rows = config.data.batch_size
    return [
        dataclasses.replace(
            config,
            mesh=each,
            model=dataclasses.replace(config.model, remat=remat),
            data=dataclasses.replace(config.data, batch_size=size),
        )
        for each in plan.meshes(config, on)
        for remat in REMATS
        for size in (rows // 2, rows, rows * 2)
        if size
    ]


def sweep(config: Config, on: Target, shown: bool = True) -> list[dict[str, Any]]:
    """Returns the plan of each variant, by tokens a second; those that cannot be last, with the reason.

    A batch is not tried where half of it did not fit.

    Args:
        config: what is varied.
        on: what is planned for.
        shown: a progress bar is.
    """
    tried, too_large = [], {}
    options = variants(config, on)
    with Progress(len(options), enabled=shown) as progress:
        for number, option in enumerate(options, 1):
            key = (option.mesh, option.model.remat)
            facts = _facts(option)
            if key in too_large:
                facts |= {'fits': False, 'why': f'{too_large[key]} rows do not fit'}
            else:
                facts |= _tried(option, on)
                if facts['fits'] is False and 'memory' in facts:
                    too_large[key] = option.data.batch_size
            tried.append(facts)
            progress.update(number)
    return sorted(tried, key=_rank)


def _facts(option: Config) -> dict[str, Any]:
    return {
        'mesh': dataclasses.asdict(option.mesh),
        'remat': option.model.remat,
        'rows': option.data.batch_size,
    }


def _tried(option: Config, on: Target) -> dict[str, Any]:
    try:
        found = plan.plan(option, on)
    except InputError as error:
        return {'fits': False, 'why': str(error)}
    keys = ('fits', 'why', 'roofline', 'tokens', 'compile_seconds')
    return {key: found[key] for key in keys} | {'memory': found['memory'].get('total')}


def _rank(facts: dict[str, Any]) -> tuple:
    roofline = facts.get('roofline')
    speed = roofline['tokens_per_day'] if roofline else 0.0
    return facts['fits'] is False, -speed, facts.get('memory') or 0
