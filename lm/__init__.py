"""lm: language models in JAX and Flax, from a config to a report one can trust.

In a notebook (colab/ has more):

    import lm
    lm.train(lm.get_config('quickstart'), 'runs/quickstart')
    lm.show('runs/quickstart')
    print(lm.load('runs/quickstart').generate('Return the', max_tokens=50))
"""

from typing import Any

__version__ = '0.1.0'
__all__ = ['InputError', 'from_pretrained', 'get_config', 'load', 'show', 'train']

# Imported when first used, so that `import lm` takes no time.
_LAZY = {
    'InputError': 'lm.errors',
    'from_pretrained': 'lm.pretrained',
    'load': 'lm.inference',
    'show': 'lm.pictures',
    'train': 'lm.training',
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lm' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def get_config(name: str, **overrides: Any) -> Any:
    """Returns a config as a ConfigDict that can still be changed.

    Args:
        name: one of the project's configs, such as 'quickstart', or the path of a config file.
        overrides: sections with the keys to change: `model={'num_layers': 8}, seed=1`.

    Raises:
        InputError: there is no such config or key.
    """
    from lm import config as configs

    config = configs.load(name)
    flat = configs.flatten(overrides)
    configs.put(config, {k: tuple(v) if isinstance(v, list) else v for k, v in flat})
    return config
