"""The FLOPs that a run's model needs for a token, as shares of the peak (MFU) are counted.

`lm.throughput` has the conventions and the formulas; here is which of them fits what a config builds.
"""

from lm import throughput
from lm.models import Decoder, Encoder
from lm.objectives import OBJECTIVES
from lm.run import Run


def flops_per_token(run: Run) -> dict[str, float | None]:
    """Returns the FLOPs of one token's training step, by the share that they make; None is not known.

    That is so of encoder-decoders, since the tokens that are counted are those of targets, and sources are
    as long as they are; of encoders with a second stream, or that several tasks share; of ELECTRA; and
    where layers share their parameters.
    """
    config, model, shapes = run.config, run.steps.model, run.steps.shapes.params
    length = config.data.length
    if isinstance(model, Decoder) and not config.model.share_layers:
        facts = run.steps.active_parameters, config.model, length, model.vocab_size
        return {
            'mfu': throughput.flops_per_token(*facts),
            'mfu_causal': throughput.flops_per_token(*facts, causal=True),
        }
    found = {'mfu': None, 'mfu_causal': None}
    if not isinstance(model, Encoder) or model.streams or run.others or config.model.share_layers:
        return found
    if config.model.position == 'transformer_xl':  # It multiplies distances too.
        return found
    most = OBJECTIVES[config.objective.name].predictions(length, config.objective)
    used = {'layers': 1.0, 'embed_projection': 1.0}
    for name, head in model.heads:
        asked = 1 if head.kind == 'pooled' else most
        used[f'head_{name}'] = asked / length
        if head.kind != 'pooled':
            used['embed'] = asked / length
    parts = [
        (throughput.active(shapes[name], config.model), share)
        for name, share in used.items()
        if name in shapes
    ]
    return found | {'mfu': throughput.encoder_flops_per_token(parts, config.model, length)}
