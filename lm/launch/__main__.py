"""Renders a training job for the machines that you have, and with --execute runs it.

  python -m lm.launch tpu-vm    Cloud TPU VMs, by queued resources
  python -m lm.launch gke       Kubernetes, by a JobSet
  python -m lm.launch slurm     Slurm, by sbatch
  python -m lm.launch skypilot  SkyPilot, by a managed job
Without --execute nothing is run: the files and commands are printed, as a script that does the same.
  python -m lm.launch slurm --config=configs/gpt2_124m.py --workdir=/shared/runs/gpt2 \\
    --accelerator=h100-8 --nodes=2 --option=--partition=gpu -- --config.data.batch_size=512
A whole example of each: python -m lm.launch TARGET --help
"""

import os
import re
import shlex
import sys
import types
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from lm import command, launch
from lm.errors import InputError, lookup

EXAMPLE = 'configs/gpt2_124m.py'


def define_flags() -> None:
    """Defines the options of the command: only there, since those of `lm.main` have the same names."""
    config_flags.DEFINE_config_file(
        'config', None, "Config file. Changes of its keys stand behind '--': -- --config.KEY=VALUE."
    )
    flags.DEFINE_string(
        'workdir', '', 'Folder of the run that all hosts share: gs://BUCKET/PATH, or a whole path.'
    )
    flags.DEFINE_string(
        'accelerator', '', 'v4-8 | v5e-16 | v5p-128 | v6e-256 | tpu7x-64 | h100-8 | h200-8 | ...'
    )
    flags.DEFINE_integer('nodes', 1, 'Of GPUs: how many such nodes.')
    flags.DEFINE_string('name', '', 'Of the job. Default: the name of the config file.')
    flags.DEFINE_string(
        'code', '.', 'Where hosts get this project: a folder | URL@COMMIT | image:FOLDER (gke).'
    )
    flags.DEFINE_string('image', '', 'gke, skypilot: image of the containers.')
    flags.DEFINE_string(
        'setup', '', 'Lines of shell before training, in place of the installation.'
    )
    flags.DEFINE_multi_string('env', [], 'NAME=VALUE for the hosts; may be repeated.')
    flags.DEFINE_multi_string(
        'secret', [], 'NAME of a variable whose value is never written down; may be repeated.'
    )
    flags.DEFINE_bool('spot', False, 'tpu-vm, gke, skypilot: cheaper, taken away at any time.')
    flags.DEFINE_bool('reserved', False, 'tpu-vm: of reserved capacity.')
    flags.DEFINE_string('reservation', '', 'gke, slurm: the name of a reservation.')
    flags.DEFINE_string('zone', '', 'tpu-vm, skypilot: zone of Google Cloud.')
    flags.DEFINE_string('project', '', "tpu-vm: project of Google Cloud. Default: gcloud's.")
    flags.DEFINE_integer('max_restarts', 10, 'Starts after the first one.', 0)
    flags.DEFINE_multi_string(
        'option', [], 'Passed on to the tool, such as --option=--partition=gpu; may be repeated.'
    )
    flags.DEFINE_string(
        'output', '', 'Folder to write the files to. --execute: runs/launch/NAME by default.'
    )
    flags.DEFINE_bool('execute', False, 'Run the commands, each shown before it runs.')


def job(target: str, overrides: list[str]) -> launch.Job:
    """Returns the job that the flags describe.

    Args:
        target: a name of TARGETS.
        overrides: such as '--config.train.steps=500'.

    Raises:
        InputError: a flag is missing or wrong.
    """
    given = flags.FLAGS
    if given.config is None:
        raise InputError(f'--config=FILE is missing, such as --config={EXAMPLE}.')
    for name, example in (('workdir', 'gs://my-bucket/runs/gpt2'), ('accelerator', 'v5e-16')):
        if not given[name].value:
            raise InputError(f'--{name} is missing, such as --{name}={example}.')
    if target == 'gke' and given.reserved:
        raise InputError('--reserved: gke asks for the name, --reservation=NAME.')
    if target == 'tpu-vm' and given.reservation:
        raise InputError('--reservation: tpu-vm asks for no name, --reserved.')
    path = config_flags.get_config_filename(flags.FLAGS['config'])
    source = launch.code(given.code)
    return launch.Job(
        name=given.name or re.sub(r'[^a-z0-9]+', '-', Path(path).stem.lower()),
        config=launch.config_in(path, source),
        workdir=given.workdir.rstrip('/'),
        overrides=tuple(overrides),
        machine=launch.machine(given.accelerator),
        nodes=given.nodes,
        code=source,
        image=given.image,
        setup=given.setup,
        env=launch.variables(given.env),
        secrets=tuple(given.secret),
        spot=given.spot,
        reserved=given.reservation or ('reserved' if given.reserved else ''),
        zone=given.zone,
        project=given.project,
        max_restarts=given.max_restarts,
        options=tuple(given.option),
    )


def split(arguments: list[str]) -> tuple[str, list[str], list[str]]:
    """Returns the target, the options before '--', and the changes of the config behind it.

    >>> split(['gke', '--spot', '--', '--config.seed=2'])
    ('gke', ['--spot'], ['--config.seed=2'])

    Raises:
        InputError: the target is not known, or something else stands behind '--'.
    """
    if not arguments or arguments[0].startswith('-'):
        raise InputError(
            f'which of {", ".join(launch.TARGETS)}? As in: python -m lm.launch slurm --help'
        )
    target, *rest = arguments
    lookup(launch.TARGETS, target, 'the target')
    cut = rest.index('--') if '--' in rest else len(rest)
    options, overrides = rest[:cut], rest[cut + 1 :]
    for each in options:
        if each.startswith('--config.'):
            raise InputError(f"{each} changes a key of the config: such changes stand behind '--'.")
    for each in overrides:
        if not re.match(r'--config\.[\w.]+=', each):
            raise InputError(
                f"'{each}' behind '--' is no change of the config, --config.KEY=VALUE."
            )
    return target, options, overrides


def main(arguments: list[str]) -> None:
    """Runs the command; bad input is one line and exit code 2."""
    with command.errors_as_lines():
        helps = {'--help', '-h', '-help'} & set(arguments)
        if helps and (len(arguments) < 2 or arguments[1] not in launch.TARGETS):
            command.parse_flags([arguments[0], '--help'], sys.modules[__name__], EXAMPLE)
        target, options, overrides = split(arguments[1:])
        module = types.SimpleNamespace(__name__=__name__, __doc__=launch.TARGETS[target].__doc__)
        sys.argv = [arguments[0], *options, *overrides]  # config_flags reads it
        command.no_more(command.parse_flags(sys.argv, module, EXAMPLE))
        what = job(target, overrides)
        rendered = launch.render(target, what)
        folder = flags.FLAGS.output or f'runs/launch/{what.name}'
        if flags.FLAGS.execute:
            missing = [name for name in what.secrets if name not in os.environ]
            if missing and target != 'gke':  # There a Secret of the cluster has them.
                raise InputError(f'--secret={missing[0]}: the environment has no such variable.')
            launch.execute(rendered, folder, lambda line: print(line, file=sys.stderr))
            return
        if flags.FLAGS.output:
            launch.write(rendered, folder)
        again = shlex.join(['python', '-m', 'lm.launch', *arguments[1:]])
        title = f'{again}\nNothing was run. {launch.job.described(what)}.'
        print(launch.script(rendered, folder, title), end='')


if __name__ == '__main__':
    define_flags()
    main(sys.argv)
