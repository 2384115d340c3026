"""FLOPs that a plan counts against 6 N and attention, of models that are only traced.

    python -m experiments.plan.flops

The first count is of a step without what is computed again (remat, logits in pieces) and with attention's
full square, as 6 N has it; the second of the config as it is. Prints lines of JSON.
"""

import json

import jax

from lm import config as configs
from lm import flops, plan, plan_inputs
from lm.model_flops import flops_per_token

PLAIN = {
    'model.remat': 'none',
    'model.attention_implementation': 'xla',
    'loss.max_logits_mb': 10**9,
}
ONE = {'mesh.data': 1, 'mesh.fsdp': 1}
CASES = ('gpt2_124m', 'gpt2_xl', 'llama_7b')


def counted(name: str, changes: dict) -> tuple[float, float]:
    """Returns the FLOPs of a step: counted, and by 6 N and attention."""
    config = configs.load(name)
    configs.put(config, ONE | changes)
    run = plan.build(configs.parse(config), plan.target('cpu:1'))
    with jax.set_mesh(run.mesh):
        fields = plan_inputs.batch(run)
        step = run.steps.step.trace(run.steps.shapes, fields, plan_inputs.rates(run))
    return flops.count(step.jaxpr), flops_per_token(run)['mfu'] * plan_inputs.tokens(fields)


def main() -> None:
    for name in CASES:
        plain, expected = counted(name, PLAIN)
        real, _ = counted(name, {})
        line = {'config': name, 'expected': expected, 'plain': plain, 'as_it_is': real}
        ratios = {'plain_ratio': plain / expected, 'real_ratio': real / expected}
        print(json.dumps(line | ratios), flush=True)


if __name__ == '__main__':
    main()
