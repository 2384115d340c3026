"""Where tasks run: processes of this machine, Slurm, or Ray, by datatrove's executors."""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datatrove.executor.base as base
import tqdm
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils import logging as datatrove_logging
from loguru import logger

from lm.data.corpus.options import Run
from lm.environment import cores
from lm.errors import InputError, RunStopped


def log_to_files_only() -> None:
    """Keeps what datatrove tells of each task out of the terminal; it stands in the task's log."""

    def begin(folder: Any, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        file = folder.open(f'logs/task_{rank:05d}.log', 'w')
        logger.add(file, level='DEBUG', colorize=False)
        return file

    logger.remove()
    datatrove_logging.setup_default_logger = logger.remove
    base.add_task_logger = begin


class _Local(LocalPipelineExecutor):
    """Processes of this machine; with one at a time, this one.

    datatrove's own pool would wait for ever for a process that was killed.
    """

    def run(self) -> None:
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            for rank in ranks:
                self._run_for_rank(rank)
            return
        before = set(multiprocessing.active_children())
        context = multiprocessing.get_context(self.start_method)
        pool = concurrent.futures.ProcessPoolExecutor(self.workers, context, _end_with_parent)
        try:
            tasks = [pool.submit(self._run_for_rank, rank) for rank in ranks]
            for task in concurrent.futures.as_completed(tasks):
                task.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise RunStopped(
                'a task was killed, as it is where memory runs out. The same command goes on from what is '
                'done; fewer tasks at once take less memory: --config.run.tasks=1.'
            ) from None
        finally:
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Ends this process when the one that began it does, however that ends."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _local(step: PipelineStep, tasks: int, run: Run, folder: Path, before: Any) -> PipelineExecutor:
    workers = min(run.tasks or cores(), tasks)
    return _Local([step], tasks, workers, str(folder), **run.options)


def _ray(step: PipelineStep, tasks: int, run: Run, folder: Path, before: Any) -> PipelineExecutor:
    try:
        import ray
        from datatrove.executor.ray import RayPipelineExecutor
    except ImportError:
        raise InputError("config.run.executor = 'ray' needs Ray: pip install ray.") from None
    if tasks == 1:  # Not worth a process on a node.
        return _local(step, tasks, dataclasses.replace(run, options={}), folder, before)
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level='ERROR')
    workers = run.tasks or -1
    return RayPipelineExecutor([step], tasks, workers, logging_dir=str(folder), **run.options)


def _slurm(step: PipelineStep, tasks: int, run: Run, folder: Path, before: Any) -> PipelineExecutor:
    from datatrove.executor.slurm import SlurmPipelineExecutor

    for name in ('time', 'partition'):
        if name not in run.options:
            raise InputError(
                f"config.run.executor = 'slurm' needs config.run.options.{name}, as `sbatch` has it."
            )
    return SlurmPipelineExecutor(
        [step],
        tasks,
        workers=run.tasks or -1,
        job_name=f'corpus-{step.name}',
        logging_dir=str(folder),
        depends=before,
        **run.options,
    )


# (step, tasks, options, folder of logs, the executor before) -> what runs it.
EXECUTORS: dict[str, Callable[..., PipelineExecutor]] = {
    'local': _local,
    'ray': _ray,
    'slurm': _slurm,
}


def run_all(
    stages: Sequence[tuple[PipelineStep, int]],
    run: Run,
    logs: Path,
    after: Callable[[str], None] = lambda name: None,
) -> bool:
    """Runs stages one after the other; of each the tasks that were not done before.

    Args:
        stages: each with its number of tasks.
        run: where.
        logs: folder of logs, and of the marks of what is done.
        after: called with the name of a stage that is done.

    Returns:
        Whether all is done: jobs of Slurm have only been queued.

    Raises:
        InputError: what a task raised.
    """
    executor = None
    for step, tasks in stages:
        folder = logs / step.name
        try:
            executor = EXECUTORS[run.executor](step, tasks, run, folder, executor)
        except TypeError as error:
            told = str(error).partition(') ')[2] or error
            raise InputError(f'config.run.options: datatrove says of them: {told}.') from None
        if run.executor != 'slurm':
            with _progress(step.name, tasks, folder / 'completions'):
                executor.run()
            after(step.name)
    if run.executor == 'slurm' and executor:
        executor.run()
    return run.executor != 'slurm'


@contextlib.contextmanager
def _progress(name: str, tasks: int, done: Path) -> Iterator[None]:
    """Shows how many tasks are done; in a log file it says something only twice a minute."""
    live = sys.stderr.isatty()
    ended = threading.Event()
    bar = tqdm.tqdm(
        desc=f'{name:7s}',
        total=tasks,
        unit=' tasks',
        delay=0 if live else 30,
        mininterval=0.1 if live else 30,
        dynamic_ncols=live,
        leave=not live,
        smoothing=0,  # Tasks come in bursts.
    )

    def count() -> None:
        bar.update((sum(1 for _ in done.iterdir()) if done.is_dir() else 0) - bar.n)
        if live:
            bar.refresh()

    def watch() -> None:
        while not ended.wait(0.2 if live else 5):
            count()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        count()
    finally:
        ended.set()
        watcher.join()
        bar.close()
