"""What is trained: each objective, with what it needs besides its name."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Case:
    """An objective and its options.

    Attributes:
        name: in the table, the figure, and of the run's folder.
        like: who trains so.
        predicts: the terms of its loss, by what is predicted in each: the one that the case is about first.
        overrides: keys of the config that differ from `COMMON`.
    """

    name: str
    like: str
    predicts: dict[str, str]
    overrides: dict[str, object]


# The same for all; the rest is as in `configs/brown.py`.
COMMON = {
    'data.valid': 'data:brown/brown.txt[800000w:850000w]',
    'data.test': '',
    'data.batch_size': 32,
    'tokenizer.vocab_size': 4096,
    'model.embed_dim': 128,
    'model.dropout': 0.0,
    'train.eval_every': 0,
    'checkpoint.every': 200,
    'eval.stride': 0,
    'eval.beams': 0,
    'log.tensorboard': False,
}
ENCODER = {'model.architecture': 'encoder', 'model.attention': ('full',)}
# As many layers as the others have.
BOTH = {'model.architecture': 'encoder_decoder', 'model.num_layers': 2, 'model.encoder_layers': 2}
MASK, SENTINELS = {'tokenizer.mask': True}, {'tokenizer.sentinels': 60}
PAIRS = ENCODER | MASK | {'model.token_types': 2, 'data.packing': False}
MULTI30K = {
    'data.train': 'data:multi30k/train.{en,de}',
    'data.valid': 'data:multi30k/val.{en,de}',
    'data.random_crop': False,
}

CASES = (
    Case('causal', 'GPT', {'tokens': 'the next token'}, {}),
    Case(
        'prefix',
        'prefix LM',
        {'tokens': 'the next token after a prefix'},
        {'model.attention': ('causal | prefix',)},
    ),
    Case('masked', 'BERT, RoBERTa', {'tokens': 'masked tokens'}, ENCODER | MASK),
    Case(
        'masked + next',
        'BERT',
        {'pair': 'does the text follow?', 'tokens': 'masked tokens'},
        PAIRS | {'objective.pairs': 'next'},
    ),
    Case(
        'masked + order',
        'ALBERT',
        {'pair': 'which text is first?', 'tokens': 'masked tokens'},
        PAIRS | {'objective.pairs': 'order'},
    ),
    Case(
        'permutation',
        'XLNet',
        {'tokens': 'tokens in a random order'},
        {'model.architecture': 'encoder', 'objective.max_span': 5},
    ),
    Case(
        'replaced',
        'ELECTRA',
        {'discriminator': 'is the token made up?', 'generator': 'masked tokens'},
        ENCODER | MASK | {'objective.generator_size': 0.5},
    ),
    Case(
        'span_corruption',
        'T5',
        {'tokens': 'hidden spans'},
        BOTH | SENTINELS | {'data.source_length': 128, 'data.length': 32},
    ),
    Case('ul2', 'UL2', {'tokens': 'hidden spans'}, BOTH | SENTINELS | {'data.source_length': 128}),
    Case('denoising', 'BART', {'tokens': 'the whole text'}, BOTH | MASK | {'objective.rate': 0.3}),
    Case('seq2seq', 'translation', {'tokens': 'German of English'}, BOTH | MULTI30K),
)


def overrides(case: Case) -> dict[str, object]:
    """Returns the keys of a case's config that differ from `configs/brown.py`."""
    name, _, _ = case.name.partition(' ')
    return COMMON | {'objective.name': name} | case.overrides
