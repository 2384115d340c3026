"""The families that are known. A new one is a file here, and a line."""

from lm.pretrained.families.bart import BART, MARIAN
from lm.pretrained.families.bert import ALBERT, BERT, BIG_BIRD, DISTILBERT, ELECTRA, ROBERTA
from lm.pretrained.families.gpt2 import GPT2
from lm.pretrained.families.gpt_neox import GPT_NEOX
from lm.pretrained.families.llama import GEMMA2, LLAMA, MISTRAL, QWEN2, QWEN3
from lm.pretrained.families.opt import OPT
from lm.pretrained.families.t5 import MT5, T5
from lm.pretrained.families.xlnet import XLNET
from lm.pretrained.family import Family

# By `model_type`. An export is of the first that a model fits.
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *(GPT2, LLAMA, MISTRAL, QWEN3, QWEN2, GEMMA2, GPT_NEOX, OPT),
        *(BERT, ROBERTA, DISTILBERT, ALBERT, BIG_BIRD, ELECTRA, XLNET),
        *(T5, MT5, BART, MARIAN),
    )
}
