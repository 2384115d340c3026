"""Measures this project beside its peers, in one run, on this machine.

    python -m pip install -e '.[bench]'
    python -m experiments.speed --output=speed.jsonl

Each case is a race: every contestant does the same work in a process of its own, in interleaved rounds of
random order, and a ratio is taken within a round. See `race.py` for when a sample is dropped.
"""

import argparse
import fnmatch
import json
import sys
from pathlib import Path
from typing import Any

from experiments.speed import (
    against,
    checkpoints,
    decoding,
    inputs,
    limits,
    mkl,
    race,
    shards,
    startup,
    steps,
)
from lm.environment import environment

CASES = [
    case
    for module in (limits, steps, startup, decoding, inputs, shards, checkpoints)
    for case in module.CASES
]


def main() -> None:
    """Runs the benchmark."""
    options = _parser().parse_args()
    chosen = [c for c in CASES if any(fnmatch.fnmatch(c.name, p) for p in options.only)]
    if options.list or not chosen:
        print('\n'.join(case.name for case in CASES))
        sys.exit(0 if options.list else f'error: --only={" ".join(options.only)}: no such case.')
    mkl.build()
    machine = environment()
    records = []
    with options.output.open('w') as file:
        print(json.dumps(machine), file=file, flush=True)
        for number, case in enumerate(chosen, 1):
            title = f'[{number}/{len(chosen)}] {case.name}'
            for record in race.run(case, options.rounds, options.seed, _Progress(title)):
                record['share'] = against.share(record, records)
                record['commit'] = machine['commit']
                print(json.dumps(record), file=file, flush=True)
                records.append(record)
            _print_case([r for r in records if r['case'] == case.name])
    against.figure(records, machine, options.output.with_suffix('.png'))
    print(f'{options.output} and {options.output.with_suffix(".png")}')
    if options.against:
        _print_comparison(against.read(options.against)[1], records)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m experiments.speed',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--only', nargs='+', default=['*'], metavar='PATTERN', help="cases, such as 'step/*'"
    )
    parser.add_argument('--list', action='store_true', help='name the cases')
    parser.add_argument('--rounds', type=int, default=9, help='samples of each (default: 9)')
    parser.add_argument('--seed', type=int, default=0, help='of the order')
    parser.add_argument(
        '--output', type=Path, default=Path('speed.jsonl'), help='JSON lines; the figure beside it'
    )
    parser.add_argument(
        '--against', type=Path, metavar='FILE', help='an earlier output: which ratios have fallen?'
    )
    return parser


class _Progress:
    """One line that says what is going on, on a terminal."""

    def __init__(self, title: str) -> None:
        self._title = title

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f'\r\033[K{self._title}: {text}', end='', file=sys.stderr, flush=True)


def _print_case(records: list[dict[str, Any]]) -> None:
    if sys.stderr.isatty():
        print('\r\033[K', end='', file=sys.stderr, flush=True)
    unit = records[0]['unit']
    print(f'{records[0]["case"]}, {unit}')
    for record in records:
        low, high = record['spread']
        line = f'  {record["contestant"]:28} {record["median"]:>10,.4g} [{low:,.4g} to {high:,.4g}]'
        if record is not records[0]:
            worst, best = record['ratio_spread']
            line += f'   {record["ratio"]:5.2f}x [{worst:.2f} to {best:.2f}]'
        if record['share']:
            line += f'   {record["share"]:.0%} of {record["limit"].removeprefix("limit/")}'
        if record['noisy']:
            line += f'   ({record["noisy"]} of {len(record["samples"])} samples disturbed)'
        print(line, flush=True)


def _print_comparison(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    rows = against.compare(old, new)
    print(f'\nRatios against the earlier run ({len(rows)} in both):')
    for case, contestant, before, after, fallen in rows:
        mark = 'FALLEN' if fallen else ''
        print(
            f'  {case:36} {contestant:28} {before:6.2f}x -> {after:6.2f}x {after / before - 1:+6.0%} {mark}'
        )
    if not any(fallen for *_, fallen in rows):
        print('None has fallen.')


if __name__ == '__main__':
    main()
