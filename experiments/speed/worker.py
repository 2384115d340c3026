"""The process of a contestant: builds it, then takes a sample whenever it is asked. See `race.py`."""

import importlib
import json
import os
import resource
import sys
import time


def cores_time() -> tuple[float, float]:
    """Returns seconds of all cores: in use by anyone or stolen by the hypervisor, and by this process."""
    with open('/proc/stat') as file:
        user, nice, system, _, _, irq, softirq, steal, *_ = map(int, file.readline().split()[1:])
    own = os.times()
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf('SC_CLK_TCK')
    return busy, own.user + own.system + own.children_user + own.children_system


def main() -> None:
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # What libraries print belongs to the log.
    request = json.loads(sys.stdin.readline())
    module, function = request['build'].split(':')
    facts, sample = getattr(importlib.import_module(module), function)(**request['options'])
    print(json.dumps(facts), file=answers, flush=True)
    cores = len(os.sched_getaffinity(0))
    for _ in sys.stdin:
        busy, own = cores_time()
        start = time.perf_counter()
        value = sample()
        seconds = time.perf_counter() - start
        busy_after, own_after = cores_time()
        foreign = max(0.0, (busy_after - busy) - (own_after - own)) / (seconds * cores)
        peak = max(
            resource.getrusage(who).ru_maxrss
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        answer = {'value': value, 'foreign': foreign, 'peak_mb': peak * 1024 / 1e6}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
    main()
