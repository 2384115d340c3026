"""Checks of a config before anything is built of it: keys that cannot go together, or would be ignored.

What attention sees must fit the objective, places what reads them, and the checkpoint that is evaluated at
the end those that are kept.
"""

from collections.abc import Sequence
from typing import Any

from lm import attention, checkpoint, codes, tokenizer, vocabulary
from lm import config as configs
from lm.attention.masks import Mask, causal, full
from lm.config import Config
from lm.errors import InputError, nearest
from lm.objectives import OBJECTIVES


def check_attention(config: Config) -> None:
    """Raises InputError where the model would see what it is to predict, or what packing moves."""
    model, sees = config.model, OBJECTIVES[config.objective.name].sees
    patterns = {'attention': model.attention}
    if model.architecture == 'encoder_decoder':
        patterns['encoder_attention'] = model.encoder_attention
    for key, pattern in patterns.items():
        place = f'config.model.{key}'
        for kind in attention.parse_pattern(pattern, place):
            if sees == 'ranks' and kind not in (causal, full):
                raise InputError(
                    f"{place}: '{kind}' is asked about places, and config.objective.name = "
                    f"'{config.objective.name}' about the order of prediction. Did you mean 'full'?"
                )
            alone = attention.without_prefix(kind) if sees == 'prefix' else kind
            decodes = key == 'attention' and model.architecture != 'encoder'
            if decodes and not alone.is_causal:
                raise InputError(
                    f"{place}: '{kind}' lets tokens see those that they are to predict. "
                    f"Did you mean '{attention.causal_form(kind)}'?"
                )
            if config.data.packing and not kind.may_pack:
                raise InputError(
                    f"{place}: '{kind}' counts from the start of a row, and "
                    'config.data.packing = True puts documents anywhere in it. Set it to False.'
                )


def check_options(config: Config, text: tokenizer.Tokenizer) -> None:
    """Raises InputError where a key would be ignored, or asks for what cannot be."""
    _check_codes(config, text)
    model, name = config.model, config.objective.name
    objective = OBJECTIVES[name]
    kinds = attention.parse_pattern(model.attention)
    if model.architecture == 'encoder_decoder':
        kinds += attention.parse_pattern(model.encoder_attention)
    _check_position(config, kinds)
    if model.architecture == 'encoder':
        if not model.tie_embeddings or model.logit_softcap:
            raise InputError(
                'config.model.tie_embeddings = False and logit_softcap are for decoders; an encoder has '
                'neither.'
            )
        if objective.sees == 'both' and all(kind.is_causal for kind in kinds):
            raise InputError(
                f'config.model.attention = {model.attention} sees earlier tokens only, and what is '
                f"hidden from '{name}' has two sides. Did you mean ('full',)?"
            )
    if objective.writes:
        from lm import metrics  # sacreBLEU takes a while to import.

        metrics.check_tokenizer(config.eval.bleu_tokenizer, 'config.eval.bleu_tokenizer')
    if objective.labels(config.objective) and config.data.packing:
        raise InputError(
            f"config.objective.name = '{name}' with labels needs rows of one text each, or one pair: set "
            'config.data.packing = False.'
        )


def _check_codes(config: Config, text: tokenizer.Tokenizer) -> None:
    if config.data.code_dropout and not config.tokenizer.codes:
        raise InputError(
            f'config.data.code_dropout = {config.data.code_dropout} leaves out codes, and '
            'config.tokenizer.codes has none.'
        )
    ids = vocabulary.code_ids(text, config.tokenizer)
    codes.tokens(config.generate.codes, ids, text.encode, 'config.generate.codes')


def _check_position(config: Config, kinds: Sequence[Any]) -> None:
    """Raises InputError where attention cannot take how places are told, or the objective needs more."""
    model, name = config.model, config.objective.name
    if model.position in ('relative', 'transformer_xl'):
        position = f"config.model.position = '{model.position}'"
        if not all(isinstance(kind, Mask) for kind in kinds):
            raise InputError(
                f'{position} is a bias on masked attention, and config.model.attention has other kinds '
                "too: take 'rotary'."
            )
        if model.attention_implementation not in ('auto', 'xla'):
            raise InputError(
                f'{position} is a bias on all pairs: set config.model.attention_implementation = '
                "'auto'."
            )
        if model.position == 'transformer_xl' and model.attention_softcap:
            raise InputError(
                f'{position} is a part of the logits that config.model.attention_softcap = '
                f'{model.attention_softcap:g} would not cap: set it to 0.'
            )
    tells_places = ('rotary', 'transformer_xl', 'learned', 'sinusoidal')
    if OBJECTIVES[name].sees == 'ranks' and model.position not in tells_places:
        raise InputError(
            f"config.objective.name = '{name}' asks what stands at a place, which config.model."
            f"position = '{model.position}' does not tell. Did you mean 'rotary'?"
        )


def check_evaluated(config: Config) -> None:
    """Raises InputError where `config.eval.checkpoint` will not be there at the end."""
    name, kept = config.eval.checkpoint, config.checkpoint
    place = f"config.eval.checkpoint = '{name}'"
    count = checkpoint.averaged(name)
    if name not in ('latest', 'best') and not count:
        near = nearest(name, ('latest', 'best', 'average:5'))
        raise InputError(f'{place} is not known.{near}')
    validates = any(part.data.valid for part in configs.tasks(config).values())
    if name == 'best' and not (validates and kept.keep_best):
        raise InputError(
            f'{place} is that of the lowest validation loss: it needs config.data.valid, and '
            'config.checkpoint.keep_best = 1.'
        )
    if count > kept.keep:
        raise InputError(f'{place} needs config.checkpoint.keep = {count}, not {kept.keep}.')
    made = -(-config.train.steps // kept.every) if kept.every else 1
    if count > made:
        raise InputError(
            f'{place} needs {count} checkpoints, and config.checkpoint.every = {kept.every} makes {made} '
            f'in {config.train.steps} steps.'
        )
