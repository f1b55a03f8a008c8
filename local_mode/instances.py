"""This module runs the instances of a job or an endpoint as containers of our engine, without Docker Compose.

The SDK's class prepares directories, channels and configuration; its methods that call Docker Compose are
overridden here (see docs/patches.md).
"""

import contextlib
import functools
import os
import pathlib
import queue
import re
import shutil
import tarfile
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import urllib3
from local_mode import endpoints
from local_mode.engines.interface import Container, Engine
from local_mode.errors import EndpointError, EngineError, JobError, PortTaken
from local_mode.names import is_our_image, label
from local_mode.output import Output
from local_mode.s3 import fetch, local_copy, local_path, rescue, stays, unpack
from local_mode.versions import SUBMIT_DIRECTORY, entities, image

START = 240  # seconds in which a container must answer, as on SageMaker
CODES = {137: ' (SIGKILL: most likely there was not enough memory)', 139: ' (SIGSEGV: it crashed)'}
CODES |= {247: CODES[137], 245: CODES[139]}  # as version 3's driver passes them on


def compiled(metrics: Iterable[Mapping[str, str]]) -> dict[str, re.Pattern[str]]:
    """Return the pattern of each metric by its name; ValueError for one that is invalid."""
    patterns = {}
    for metric in metrics:
        try:
            patterns[metric['Name']] = re.compile(metric['Regex'])
        except (re.error, OverflowError) as e:
            what = f'The regular expression of the metric {metric["Name"]} is invalid, {metric["Regex"]!r}'
            raise ValueError(f'{what}: {e}. Mend it in metric_definitions.') from None
    return patterns


def wait_for_end(engine: Engine, containers: Sequence[Container], output: Output) -> str:
    """Print what containers print until all have ended; return how the first failed, or an empty string.

    If one fails, the others are stopped.
    """
    lines: queue.SimpleQueue[tuple[Container, str, str | None]] = queue.SimpleQueue()
    for container in containers:
        threading.Thread(target=follow, args=(engine, container, lines), daemon=True).start()
    running, failure = {container.name for container in containers}, ''
    while running:
        container, line, end = lines.get()
        if end is None:
            output.write(container.host, line)
            continue
        running.discard(container.name)
        if end and not failure:
            failure = f'{container.host if len(containers) > 1 else "It"} {end}'
            if running:
                with contextlib.suppress(EngineError):  # they may have ended by themselves
                    engine.stop(sorted(running), 10)
    return failure


def follow(engine: Engine, container: Container, lines: queue.SimpleQueue) -> None:
    """Put a container's lines into a queue, and in the end how it failed, a part of a sentence, or an empty string."""
    try:
        for line in engine.logs(container.name):
            lines.put((container, line, None))
        code = engine.wait(container.name)
        end = f'exited with code {code}{CODES.get(code, "")}' if code else ''
    except Exception as e:  # whoever waits for the end must learn of it
        end = f'was lost: {e}'
    lines.put((container, '', end))


@functools.cache  # once
def say_where(instance_type: str) -> None:
    print(f'{instance_type} is not started: sessions of local mode run jobs and endpoints on this machine.')


class Instances(image._SageMakerContainer):
    """Runs the instances of a job, whose files are in a directory of their own.

    labels: of their containers, besides the session's, {name: value}. mounts: {path in them: directory here}.
    """

    def __init__(self, resources: Any, image: str, session: Any, program: Any = None, **labels: str) -> None:
        # Not the SDK's __init__, which asks for Docker Compose.
        program = program or {}
        patterns = compiled(program.get('MetricDefinitions') or [])
        self.sagemaker_session, self.image = session.in_own_directory(), image
        self.instance_type, self.instance_count = resources['InstanceType'], resources.get('InstanceCount', 1)
        self.container_entrypoint = program.get('ContainerEntrypoint') or []
        self.container_arguments = program.get('ContainerArguments') or []
        if not self.instance_type.startswith('local'):
            say_where(self.instance_type)
        suffix = uuid.uuid4().hex[:6]
        self.hosts = [f'algo-{i}-{suffix}' for i in range(1, self.instance_count + 1)]
        self.container_root, self.container = '', None
        self.engine: Engine = session.engine
        self.labels = self.sagemaker_session.labels() | {label(name): value for name, value in labels.items()}
        self.mounts: dict[str, str] = {}
        self.output = Output('', self.instance_count, patterns)
        self.stopped, self.over = '', threading.Event()  # why they were stopped; whether the job has ended
        self.kept = ''  # a sentence on results that could not be collected
        self.isolated = False

    def discard(self) -> None:
        """Remove the containers, their network and all files: results are elsewhere by now."""
        self.over.set()
        self.sagemaker_session.remove_containers(self.labels)  # with the directory's: two jobs may have one name
        shutil.rmtree(self.sagemaker_session.directory, ignore_errors=True)

    def containers(
        self, command: str, volumes: Iterable[Any], variables: dict[str, Any], directories: Iterable[str] = ()
    ) -> list[Container]:
        """Return a container for each host, with volumes, and directories of its own below /opt/ml."""
        self.engine.fetch(self.image, self.sagemaker_session.boto_session)
        mounts = {volume.container_dir: volume.host_dir for volume in volumes} | self.mounts
        default = [] if self.container_entrypoint or command == 'process' else [command]
        config = self.sagemaker_session.local.get('container_config', {})  # of the SDK's: here options of `docker run`
        cpus = self.engine.cpus() / self.instance_count if self.instance_count > 1 else None  # each would take all
        return [
            Container(
                name=f'{self.sagemaker_session.name}-{host}',
                image=self.image,
                host=host,
                command=self.container_arguments or default,
                entrypoint=self.container_entrypoint,
                environment=self.sagemaker_session.environment(variables),
                options=[f'--{name.replace("_", "-")}={value}' for name, value in config.items()],
                mounts={f'/opt/ml/{d}': os.path.join(self.container_root, host, d) for d in directories} | mounts,
                labels=self.labels,
                cpus=cpus,
                gpus=self.instance_type == 'local_gpu',
                isolated=self.isolated,
            )
            for host in self.hosts
        ]

    def train(  # type: ignore[override]
        self, inputs: Any, output: Any, hyperparameters: Any, environment: Any, job_name: str
    ) -> str:
        """Run a training job to its end; return where its model.tar.gz is. JobError if it fails."""
        self.container_root, data = self._create_tmp_folder(), self._create_tmp_folder()
        volumes = self._prepare_training_volumes(data, [], output, hyperparameters)
        for channel in inputs:
            os.mkdir(os.path.join(data, channel['ChannelName']))
            kind = channel['DataSource'].get('S3DataSource', {}).get('S3DataType', 'S3Prefix')
            directory = fetch(self.sagemaker_session, channel['DataUri'], kind)
            volumes.append(image._Volume(directory, channel=channel['ChannelName']))
        hyperparameters = self._update_local_src_path(hyperparameters, key=SUBMIT_DIRECTORY)
        for host in self.hosts:
            image._create_config_file_directories(self.container_root, host)
            self.write_config_files(host, hyperparameters, inputs)
            shutil.copytree(data, os.path.join(self.container_root, host, 'input', 'data'))
        session = self.sagemaker_session
        variables = {'AWS_REGION': session.boto_region_name, 'S3_ENDPOINT_URL': session.s3_client._endpoint.host}
        variables |= {'TRAINING_JOB_NAME': job_name, **environment}  # as the SDK sets them
        containers = self.containers('train', volumes, variables, ('output', 'output/data', 'input'))
        self.run(containers, self.container_root, lambda: self.collect(containers, output, job_name))
        return self.artifacts

    def run(self, containers: Sequence[Container], results: str, collect: Callable[[], None]) -> None:
        """Run containers and print their output; JobError with the end of it unless all exit with 0.

        The directory of results is collected in any case. If it cannot be collected, it stays: JobError, and self.kept
        says where it is.
        """
        try:
            self.engine.run(containers)
            failure = wait_for_end(self.engine, containers, self.output)
        except BaseException:  # before the files of a container that runs are packed
            self.output.close()
            with contextlib.suppress(EngineError):
                self.engine.stop([container.name for container in containers], 2)
            raise
        finally:
            try:
                collect()
            except Exception as e:  # of the disk, of S3
                self.container_root = rescue(results)
                self.kept = f' What it wrote is in {self.container_root}, as it could not be collected: {e}'
        if failure or self.kept:
            raise JobError(f'{failure}. {self.output.tail()}' if failure else 'It ended without an error.')

    def collect(self, containers: Iterable[Container], config: Any, job_name: str) -> None:
        """Move what all hosts wrote, packed or not, to the output path, or into the session's directory."""
        session, packed, model = self.sagemaker_session, self._create_tmp_folder(), 'model.tar.gz'
        pack_results(containers, packed)
        if config.get('CompressionType') == 'NONE':
            model = 'model/'
            for kind in 'model', 'output':  # without links that lead out
                unpack(f'{packed}/{kind}.tar.gz', f'{packed}/{kind}')
                os.remove(f'{packed}/{kind}.tar.gz')
        output = config['S3OutputPath'] or 'file://' + tempfile.mkdtemp(dir=os.path.dirname(session.directory))
        if output.startswith('file://'):
            uri = move(packed, local_path(output), job_name)
        else:
            uri = entities.move_to_destination(packed, output, job_name, session, prefix='output')
        self.artifacts = f'{uri}/{model}'

    def stop(self, reason: str) -> None:
        """Stop the containers, once there are some and the engine answers."""
        if not self.over.is_set():
            self.stopped = reason
        while not self.over.wait(1):
            with contextlib.suppress(EngineError):
                if running := self.engine.find(self.labels):
                    self.engine.stop([*running], 120)  # seconds from SIGTERM to SIGKILL, as on SageMaker

    def failure(self) -> str:
        """Return the text of the first /opt/ml/output/failure that the hosts wrote, or an empty string."""
        files = [f'{self.container_root}/{host}/output/failure' for host in self.hosts]
        files = [f for f in files if os.path.isfile(f) and stays(f, self.container_root) and os.access(f, os.R_OK)]
        return pathlib.Path(min(files, key=os.path.getmtime)).read_text(errors='replace') if files else ''

    def process(self, inputs: Any, outputs: Any, environment: Any, job_name: str) -> None:
        """Run a processing job to its end, and upload its outputs. JobError if it fails."""
        self.container_root, data = self._create_tmp_folder(), self._create_tmp_folder()
        volumes = self._prepare_processing_volumes(data, [], outputs)
        for item in inputs:
            source = item['S3Input']
            directory = fetch(self.sagemaker_session, item['DataUri'], source.get('S3DataType') or 'S3Prefix')
            volumes.append(image._Volume(directory, source['LocalPath']))
        for host in self.hosts:
            image._create_processing_config_file_directories(self.container_root, host)
            self.write_processing_config_files(host, environment, inputs, outputs, job_name)
        containers = self.containers('process', volumes, environment, ('output', 'config'))
        self.run(containers, data, lambda: self._upload_processing_outputs(data, outputs))

    def _upload_processing_outputs(self, data_dir: str, processing_output_config: Any) -> None:
        """Upload the outputs without links that lead out of them: the SDK would follow those on this machine."""

        def strays(here: str, names: list[str]) -> list[str]:
            return [name for name in names if not stays(os.path.join(here, name), data_dir)]

        plain = self._create_tmp_folder()
        shutil.copytree(data_dir, plain, symlinks=True, ignore=strays, dirs_exist_ok=True)
        super()._upload_processing_outputs(plain, processing_output_config)


def pack_results(containers: Iterable[Container], directory: str, ending: str = '.tar.gz') -> None:
    """Write model.tar.gz and output.tar.gz, or with another ending, of what containers wrote."""
    for kind in 'model', 'output':
        inside = f'/opt/ml/{kind}'
        pack(f'{directory}/{kind}{ending}', dict.fromkeys(container.mounts[inside] for container in containers), inside)


def move(packed: str, place: str, job_name: str) -> str:
    """Move a job's results to a directory of this machine, below the job's name as on S3; return their URI.

    Their tar files go to `place` itself, where the SDK leaves those of the newest job.
    """
    there = os.path.join(place, job_name, 'output')
    shutil.copytree(packed, there, dirs_exist_ok=True)
    for file in pathlib.Path(packed).glob('*.tar.gz'):
        new = os.path.join(place, f'.{job_name}-{file.name}')  # two jobs may end at once
        shutil.move(file, new)
        os.replace(new, os.path.join(place, file.name))
    shutil.rmtree(packed)
    return 'file://' + there


def pack(archive: str, directories: Iterable[str], inside: str) -> None:
    """Write a .tar.gz or .tar of the files in directories, which are the containers' directory `inside`.

    Sockets, FIFOs and links that lead out are left out; other links become relative.
    """
    with tarfile.open(archive, 'w:gz' if archive.endswith('.gz') else 'w') as tar:
        for directory in map(os.path.realpath, directories):

            def kept(member: tarfile.TarInfo, top: str = directory) -> tarfile.TarInfo | None:
                if member.issym():
                    here = os.path.join(top, os.path.dirname(member.name))
                    target = os.path.join(here, member.linkname.replace(inside + '/', top + '/', 1))
                    if not stays(target, top):
                        return None
                    member.linkname = os.path.relpath(os.path.realpath(target), here)
                return None if member.isdev() else member

            for name in sorted(os.listdir(directory)):
                tar.add(os.path.join(directory, name), name, filter=kept)


class ServingInstance(Instances):
    """Runs the one instance of an endpoint or a batch transform job, which only this machine reaches.

    A container of our image can write only to /tmp and the model, unless it installs the user's requirements.
    """

    container: threading.Thread | None  # type: ignore[assignment]  # the thread that prints its log

    def serve(self, model: Any, environment: dict[str, Any], longest: float = START) -> None:
        """Start the container; return once /ping answers 200. EndpointError with its log if it stops or is late."""
        key = SUBMIT_DIRECTORY.upper()
        code = local_copy(self.sagemaker_session, environment.get(key, ''))
        self.container_root = self._create_tmp_folder()
        volumes = self._prepare_serving_volumes(model)
        here = local_path(code) if code.startswith('file://') else ''
        if here:
            volumes.append(image._Volume(here, '/opt/ml/code'))
            environment = {**environment, key: '/opt/ml/code'}
        (container,) = self.containers('serve', volumes, environment)
        if here and is_our_image(self.image):
            container.read_only = not os.path.exists(os.path.join(here, 'requirements.txt'))
        self.start(container)
        # A daemon, or a script that ends with a live endpoint would never exit.
        self.container = threading.Thread(target=self.show, args=[container.name], daemon=True)
        self.container.start()
        self.wait(self.container, f'http://{self.engine.host}:{container.port}/ping', longest)

    def start(self, container: Container) -> None:
        """Run the container on the session's port; if that is taken, and the session may choose, on the next one."""
        session = self.sagemaker_session
        while True:
            container.port = session.serving_port
            container.labels = self.labels | {endpoints.PORT: str(container.port)}
            try:
                return self.engine.run([container])
            except PortTaken:
                session.remove_containers(self.labels)
                if not session.takes_next_port:
                    raise
                endpoints.check_serving_port(session, container.port + 1)

    def show(self, name: str) -> None:
        """Print a container's log, for as long as it runs."""
        with contextlib.suppress(EngineError, ValueError):  # it has been removed
            for line in self.engine.logs(name):
                self.output.write('', line)

    def wait(self, container: threading.Thread, url: str, longest: float) -> None:
        http = urllib3.PoolManager(retries=False, timeout=2)
        deadline = time.monotonic() + longest
        while container.is_alive() and time.monotonic() < deadline:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if http.request('GET', url).status == 200:
                    return
            time.sleep(0.1)
        what = f'did not answer within {longest} s' if container.is_alive() else 'stopped'
        raise EndpointError(f'The endpoint {what}. {self.output.tail()}')

    def discard(self) -> None:
        """Remove the container and its files."""
        super().discard()
        if self.container:
            self.container.join(10)

    stop_serving = discard  # the SDK's name

    def _prepare_serving_volumes(self, model: Any) -> list[Any]:
        """Unpack the model in a directory of its own, not beside its tar file as the SDK does."""
        source = model.get('ModelDataSource', {}).get('S3DataSource', {})
        if not (uri := model.get('ModelDataUrl') or source.get('S3Uri')):
            raise ValueError(
                'The model has no model_data, which local mode needs; a training job that failed leaves none.'
            )
        packed = source.get('CompressionType') != 'None'
        directory = fetch(self.sagemaker_session, uri, 'S3Object' if packed else 'S3Prefix')
        files = [entry.path for entry in os.scandir(directory) if entry.is_file()]
        if packed and files and all(map(tarfile.is_tarfile, files)):
            ours, directory = directory, self._create_tmp_folder()
            for file in files:
                unpack(file, directory)
            if ours.startswith(self.sagemaker_session.directory):  # a copy
                shutil.rmtree(ours)
        if directory.startswith(self.sagemaker_session.directory):
            os.chmod(directory, 0o777)  # for workers that are not root; the directory above keeps others out
        return [image._Volume(directory, '/opt/ml/model')]
