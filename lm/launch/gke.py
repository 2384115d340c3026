"""Kubernetes, of Google (GKE) or others with NVIDIA's GPUs: a JobSet, by `kubectl`.

    python -m lm.launch gke --config=configs/gpt2_124m.py --workdir=gs://my-bucket/runs/gpt2 \\
      --accelerator=v5e-16 --spot --code=https://github.com/me/lm@4f2a9c1 -- --config.data.batch_size=512

The cluster needs JobSet (https://jobset.sigs.k8s.io/docs/installation/) and nodes of the machine: a
node pool of the machine type that is printed, or Autopilot. --code is a repository and a commit, cloned
in the container, or image:FOLDER, where --image has the project installed. --option is passed on to
kubectl, such as --option=--namespace=research. Values of --secret are those of the same names in the
Secret `lm-secrets`: kubectl create secret generic lm-secrets
--from-literal=WANDB_API_KEY="$WANDB_API_KEY".

A bucket is mounted by the Cloud Storage FUSE CSI driver (a feature of the cluster, with Workload
Identity for the service account `default`). Pods that are taken away, or fail, restart the whole set;
exit code 2 ends it.

Of TPUs JAX finds the hosts by TPU_WORKER_ID and TPU_WORKER_HOSTNAMES, which GKE adds to pods that ask
for google.com/tpu (jax._src.clusters.cloud_tpu_cluster). Of GPUs it would need the package `kubernetes`
and the right to read pods (k8s_cluster): here the first pod's name is given, and JOB_COMPLETION_INDEX
says which one each is.
"""

import shlex
from typing import Any

from lm.errors import InputError
from lm.launch import job as jobs
from lm.launch.job import Job, Rendered

SECRETS = 'lm-secrets'
IMAGE = 'python:3.12'


def render(job: Job) -> Rendered:
    """Returns the JobSet of a job and what applies it.

    Raises:
        InputError: GKE has no such machine, or the pods would not find the code or the workdir.
    """
    _check(job)
    apply = ('kubectl', 'apply', *job.options)
    of = ' '.join(['kubectl', *job.options])
    pool = f'{job.machine.gke_machine} {job.machine.topology}'.strip()
    return Rendered(
        files={'jobset.yaml': jobs.as_yaml(jobset(job))},
        commands=(
            (*apply, '--dry-run=server', '--filename={folder}/jobset.yaml'),
            (*apply, '--filename={folder}/jobset.yaml'),
        ),
        tools=('kubectl',),
        logs=f'{of} logs --follow --selector=jobset.sigs.k8s.io/jobset-name={job.name} --prefix '
        f'--max-log-requests={job.hosts} --container=train',
        stop=f'{of} delete jobset {job.name}',
        note=f'Nodes: {pool}. When pods fail, all start again, {job.max_restarts} times at most.',
    )


def _check(job: Job) -> None:
    if not job.machine.gke_accelerator:
        raise InputError(
            f"--accelerator = '{job.machine.name}' is not on GKE: {job.machine.chip}-8 is."
        )
    if job.code.kind == 'folder':
        raise InputError(
            f"--code = '{job.code.where}' is a folder, which pods do not see: give URL@COMMIT of what was "
            'pushed, or image:FOLDER of an --image that has it.'
        )
    if job.code.kind == 'image' and not job.image:
        raise InputError('--code=image:FOLDER needs --image=IMAGE, which has it.')
    for flag, value in (('zone', job.zone), ('project', job.project)):
        if value:
            raise InputError(
                f"--{flag} is a matter of kubectl's context: gcloud container clusters get-credentials."
            )
    jobs.no_folder_here(job, 'GKE')


def jobset(job: Job) -> dict[str, Any]:
    """Returns the manifest.

    Fields: https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/, and of its jobs
    https://kubernetes.io/docs/tasks/job/pod-failure-policy/.
    """
    final = {'operator': 'In', 'values': list(jobs.final_codes(job)), 'containerName': 'train'}
    one_pool = {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'}
    several = job.machine.is_tpu and job.hosts > 1
    spec = {
        'completionMode': 'Indexed',
        'completions': job.hosts,
        'parallelism': job.hosts,
        'backoffLimit': 0,  # A host cannot start again alone: the set does.
        'podFailurePolicy': {
            'rules': [
                {
                    'action': 'Count',
                    'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}],
                },
                {'action': 'FailJob', 'onExitCodes': final},
            ]
        },
        'template': {'metadata': _annotations(job), 'spec': _pod(job)},
    }
    give_up = {
        'name': 'exit_code',
        'action': 'FailJobSet',
        'onJobFailureReasons': ['PodFailurePolicy'],
    }
    return {
        'apiVersion': 'jobset.x-k8s.io/v1alpha2',
        'kind': 'JobSet',
        'metadata': {'name': job.name, **({'annotations': one_pool} if several else {})},
        'spec': {
            'network': {'enableDNSHostnames': True, 'publishNotReadyAddresses': True},
            'failurePolicy': {'maxRestarts': job.max_restarts, 'rules': [give_up]},
            'replicatedJobs': [{'name': 'hosts', 'replicas': 1, 'template': {'spec': spec}}],
        },
    }


def _annotations(job: Job) -> dict[str, Any]:
    return {'annotations': {'gke-gcsfuse/volumes': 'true'}} if job.bucket else {}


def _pod(job: Job) -> dict[str, Any]:
    chips = {
        'google.com/tpu' if job.machine.is_tpu else 'nvidia.com/gpu': job.machine.chips_per_host
    }
    volumes, mounts = _volumes(job)
    tolerated = [{'key': key, 'operator': 'Exists', 'effect': 'NoSchedule'} for key in chips]
    container = {
        'name': 'train',
        'image': job.image or IMAGE,
        'command': ['bash', '-c', '\n'.join(script(job))],
        'env': _environment(job),
        'resources': {'requests': chips, 'limits': chips},
        'volumeMounts': mounts,
    }
    return {
        'restartPolicy': 'Never',
        'terminationGracePeriodSeconds': 120,  # To save in. Spot nodes give less.
        'nodeSelector': _nodes(job),
        'tolerations': tolerated,
        'containers': [container],
        'volumes': volumes,
    }


def _nodes(job: Job) -> dict[str, str]:
    machine = job.machine
    if machine.is_tpu:
        labels = {
            'cloud.google.com/gke-tpu-accelerator': machine.gke_accelerator,
            'cloud.google.com/gke-tpu-topology': machine.topology,
        }
    else:
        labels = {'cloud.google.com/gke-accelerator': machine.gke_accelerator}
    if job.spot:
        labels['cloud.google.com/gke-spot'] = 'true'
    if job.reserved:
        labels['cloud.google.com/reservation-name'] = job.reserved
    return labels


def _environment(job: Job) -> list[dict[str, Any]]:
    secret = [
        {'name': name, 'valueFrom': {'secretKeyRef': {'name': SECRETS, 'key': name}}}
        for name in job.secrets
    ]
    return [{'name': name, 'value': value} for name, value in job.env] + secret


def _volumes(job: Job) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the volumes of a pod, and where its container has them."""
    volumes, mounts = [], []
    if job.bucket:
        options = (
            f'implicit-dirs,rename-dir-limit={jobs.RENAMES},metadata-cache:ttl-secs:0,'
            'metadata-cache:negative-ttl-secs:0'
        )
        attributes = {'bucketName': job.bucket, 'mountOptions': options}
        driver = {'driver': 'gcsfuse.csi.storage.gke.io', 'volumeAttributes': attributes}
        volumes.append({'name': 'bucket', 'csi': driver})
        mounts.append({'name': 'bucket', 'mountPath': f'{jobs.MOUNTS}/{job.bucket}'})
    if not job.machine.is_tpu:  # NCCL's: containers have 64 MB otherwise.
        volumes.append({'name': 'shared-memory', 'emptyDir': {'medium': 'Memory'}})
        mounts.append({'name': 'shared-memory', 'mountPath': '/dev/shm'})
    return volumes, mounts


def script(job: Job) -> list[str]:
    """Returns the lines that a container runs; the last one becomes its process, which gets SIGTERM."""
    lines = ['set -euo pipefail']
    folder = job.code.where
    if job.code.kind == 'git':
        folder = '/code'
        lines += jobs.checkout(job, folder)
    lines += [f'cd {shlex.quote(folder)}']
    if job.setup:
        lines += job.setup.splitlines()
    elif job.code.kind == 'git':
        lines += [
            f"python -m pip install --quiet --root-user-action=ignore -e '.[{jobs.extra(job)}]'"
        ]
    first = f'{job.name}-hosts-0-0.{job.name}:{jobs.PORT}'
    who = (
        f'--coordinator={first}',
        f'--processes={job.hosts}',
        '--process="$JOB_COMPLETION_INDEX"',
    )
    return [*lines, f'exec {jobs.training(job, *(() if job.machine.is_tpu else who))}']
