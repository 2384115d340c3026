"""Cloud TPU VMs: queued resources and `gcloud compute tpus`, started again when they are taken away.

    python -m lm.launch tpu-vm --config=configs/gpt2_124m.py --workdir=gs://my-bucket/runs/gpt2 \\
      --accelerator=v5e-16 --zone=us-west4-a --project=my-project --spot -- --config.data.batch_size=512

`launch.sh` asks for the TPU, waits, copies the code, trains on all hosts and shows what the first one
says, and deletes the TPU when that has ended. It must stay alive to start again after a preemption: run
it in tmux, or on a small machine. When it was stopped itself, the same command goes on: training does
not notice. A connection that is lost is made again, which is no restart: the hosts say whether training
still runs, or how it ended. --option is passed on to `queued-resources create`, such as
--option=--valid-until-duration=6h
(https://cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources/create).

--code is a folder (this one by default; what git tracks of it is copied) or URL@COMMIT. Values of
--secret are copied in a file that only its owner reads, and that is deleted here as soon as they are
there. JAX finds the hosts by the metadata of the machine (agent-worker-number,
worker-network-endpoints: jax._src.clusters.cloud_tpu_cluster).
"""

import shlex
from pathlib import Path

from lm.errors import InputError
from lm.launch import job as jobs
from lm.launch.job import Job, Rendered

# Seconds between looks at a TPU that is not there yet; a test sets another.
PAUSE = 30
# Lost connections of one start; one more counts as a restart.
RECONNECTS = 10


def render(job: Job) -> Rendered:
    """Returns the script that keeps a TPU training, and those of its hosts.

    Raises:
        InputError: the Cloud TPU API has no such machine, or something is missing.
    """
    _check(job)
    where = ' '.join(_where(job))
    ssh = f'gcloud compute tpus tpu-vm ssh {job.name} {where} --worker=0'
    return Rendered(
        files={
            'launch.sh': _launch(job),
            'host.sh': _HOST.replace('NAME', job.name),
            'train.sh': '\n'.join(_train(job)),
        },
        commands=(('bash', '{folder}/launch.sh'),),
        tools=('gcloud', *(['git'] if job.code.kind == 'folder' else [])),
        logs=f"{ssh} --command='tail -F lm-{job.name}/train.log'",
        stop=f'gcloud compute tpus queued-resources delete {job.name} {where} --force --quiet',
        note=f'A TPU that is taken away is asked for again, {job.max_restarts} times at most.',
    )


def _check(job: Job) -> None:
    if not job.machine.is_tpu:
        raise InputError(
            f"--accelerator = '{job.machine.name}' is no TPU: use slurm, gke or skypilot."
        )
    if not job.machine.tpu_type:
        raise InputError(
            f"--accelerator = '{job.machine.name}': the Cloud TPU API has no {job.machine.chip}; use gke."
        )
    if job.code.kind == 'image' or job.image:
        raise InputError('--image is for gke and skypilot: give --code=FOLDER or URL@COMMIT.')
    jobs.on_google_cloud(job, 'tpu-vm')
    jobs.no_folder_here(job, 'tpu-vm')


def _where(job: Job) -> list[str]:
    return [f'--zone={job.zone}', *([f'--project={job.project}'] if job.project else [])]


def _launch(job: Job) -> str:
    create = [
        f'--node-id={job.name}',
        f'--accelerator-type={job.machine.tpu_type}',
        f'--runtime-version={job.machine.runtime}',
        *(['--spot'] if job.spot else []),
        *(['--reserved'] if job.reserved else []),
        *job.options,
    ]
    final = ' | '.join(['0', *(str(100 + code) for code in jobs.final_codes(job))])
    values = {
        'DESCRIBED': jobs.described(job),
        'NAME': job.name,
        'WHERE': shlex.join(_where(job)),
        'CREATE': shlex.join(create),
        'RESTARTS': str(job.max_restarts),
        'RECONNECTS': str(RECONNECTS),
        'PAUSE': str(PAUSE),
        'FINAL': final,
        'COPY': '\n'.join(f'  {line}' for line in _copy(job)),
    }
    text = _LAUNCH
    for name, value in values.items():
        text = text.replace(f'@{name}@', value)
    return text


def _copy(job: Job) -> list[str]:
    """Returns lines that put what the hosts need into the folder "$pack"."""
    # Each ends the script where it fails: `set -e` does not, in a function whose exit code is looked at.
    lines = ['cp host.sh train.sh "$pack" || exit']
    if job.code.kind == 'folder':
        folder = shlex.quote(str(Path(job.code.where).resolve()))
        lines += [
            f'git -C {folder} ls-files -z |',
            f'  tar -C {folder} --null --files-from=- -czf "$pack/code.tar.gz" || exit',
        ]
    for name in job.secrets:
        lines += [
            f"""printf 'export {name}=%q\\n' "${{{name}:?is not set}}" >> "$pack/secrets.sh" || exit"""
        ]
    return lines


def _train(job: Job) -> list[str]:
    """Returns what a host runs: the bucket, the code, Python, and training."""
    if job.code.kind == 'git':
        code = jobs.checkout(job, 'code')
    else:
        code = ['mkdir -p code', 'tar -C code -xzf code.tar.gz']
    own = job.setup.splitlines() or jobs.own_python(job, 'code', '$PWD/environment')
    return [
        '#!/usr/bin/env bash',
        '# What each host runs, in its folder.',
        'set -euo pipefail',
        *code,
        *jobs.mounting(job),
        *own,
        *(['source ./secrets.sh'] if job.secrets else []),
        *jobs.exports(job),
        'cd code',
        f'exec {jobs.training(job)}',
        '',
    ]


_LAUNCH = r"""#!/usr/bin/env bash
# @DESCRIBED@. Start it again at any time: it goes on from what there is.
set -euo pipefail
umask 077
cd "$(dirname "${BASH_SOURCE[0]}")"
name=@NAME@
where=(@WHERE@)
restarts=0
counted='' # the restart that a TPU which is gone may be the cause of
lost=0     # connections, since the last restart
silent=@RECONNECTS@ # times in a row that the API did not answer; at first it has to
copied=''  # what the hosts need is there
pack=''    # what is copied, with the secrets
trap 'rm -rf "$pack"' EXIT
trap 'exit 130' INT

run() {
  printf '+ %s\n' "${*@Q}" >&2
  "$@"
}

state() { # WAITING_FOR_RESOURCES, SUSPENDED, ACTIVE/READY, ...; nothing where no TPU was asked for
  local now node='' which="name~/$name\$"
  now=$(gcloud compute tpus queued-resources list "${where[@]}" \
    --filter="$which" --format='value(state.state)') || return
  if [ "$now" = ACTIVE ]; then
    node=$(gcloud compute tpus tpu-vm list "${where[@]}" \
      --filter="$which" --format='value(state)') || return
    now+=/$node
  fi
  echo "$now"
}

create() {
  run gcloud compute tpus queued-resources create "$name" "${where[@]}" @CREATE@ --quiet
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

copy() {
  local code=0
  pack=$(mktemp -d) || exit
@COPY@
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --quiet \
    --command="mkdir -p lm-$name && chmod 700 lm-$name" &&
    run gcloud compute tpus tpu-vm scp "$pack"/* "$name:lm-$name/" "${where[@]}" --worker=all \
      --quiet || code=255
  rm -rf "$pack"
  return "$code"
}

train() { # the exit code is that of host.sh; 255 or 1 where a host cannot be reached, or not any more
  if [ -z "$copied" ]; then
    copy || return
    copied=yes
    counted=''
  fi
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --quiet \
    --command="bash lm-$name/host.sh $attempt"
}

begin() { # what the hosts start once, however often they are asked for it
  attempt=$(date +%s)-$$-$restarts
  lost=0
  copied=''
}

again() {
  restarts=$((restarts + 1))
  if [ "$restarts" -gt @RESTARTS@ ]; then
    echo "error: given up after @RESTARTS@ restarts: $1." >&2
    if ! now=$(state) || [ -n "$now" ]; then delete; fi
    exit 1
  fi
  echo "Restart $restarts of at most @RESTARTS@: $1." >&2
  begin
}

begin
while true; do
  code=0
  now=$(state) || code=$?
  if [ "$code" != 0 ]; then
    if [ "$silent" -ge @RECONNECTS@ ]; then
      echo 'error: gcloud does not answer. Start this again: what trains goes on meanwhile.' >&2
      exit "$code"
    fi
    silent=$((silent + 1))
    echo "No answer: once more, $silent of at most @RECONNECTS@ times." >&2
    sleep @PAUSE@
    continue
  fi
  silent=0
  case $now in
    '')
      [ "$lost" = 0 ] || [ -n "$counted" ] || again 'the TPU is gone'
      counted=''
      lost=0
      create
      sleep @PAUSE@
      ;;
    ACTIVE/READY)
      train || code=$?
      case $code in
        @FINAL@)
          delete
          exit $((code % 100))
          ;;
      esac
      sleep @PAUSE@ # until it is known whether the TPU is there still
      if { [ "$code" = 255 ] || [ "$code" = 1 ]; } && [ "$lost" -lt @RECONNECTS@ ]; then
        lost=$((lost + 1))
        echo "No connection, or it was lost: once more, $lost of at most @RECONNECTS@ times." >&2
      else
        again "exit code $code"
        counted=yes
      fi
      ;;
    FAILED | SUSPENDED | ACTIVE/ | ACTIVE/PREEMPTED | ACTIVE/TERMINATED)
      [ -n "$counted" ] || again "the TPU was $now"
      counted=''
      delete
      ;;
    *)
      echo "$name: $now" >&2
      sleep @PAUSE@
      ;;
  esac
done
"""

_HOST = r"""#!/usr/bin/env bash
# On each host: starts training for this attempt unless it was started or still runs, shows what the
# first host says, and ends as training ends.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
mark=/dev/shm/lm-NAME.pid # gone after a restart of the machine

runs() {
  [ -f "$mark" ] && kill -0 "$(cat "$mark")" 2> /dev/null
}

if [ "$(cat attempt.txt 2> /dev/null)" != "$1" ]; then
  if ! runs; then
    rm -f code.txt
    touch train.log
    setsid nohup bash -c 'code=0; bash train.sh || code=$?; echo "$code" > code.txt' \
      >> train.log 2>&1 < /dev/null &
    echo "$!" > "$mark"
  fi
  echo "$1" > attempt.txt
fi
if runs; then
  tail --pid="$(cat "$mark")" -n 20 -F train.log
else
  tail -n 20 train.log
fi
code=$(cat code.txt 2> /dev/null || echo 137) # killed before it could say
case $code in
  1 | 2) exit $((code + 100)) ;; # not to be taken for gcloud's own
  255) exit 254 ;;               # nor for a connection that is lost
  *) exit "$code" ;;
esac
"""
