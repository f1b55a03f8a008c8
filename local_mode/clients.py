"""An in-process SageMaker API for local mode: training, processing and transform jobs, and endpoints."""

import contextlib
import datetime
import json
import secrets
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

from local_mode import endpoints
from local_mode.errors import EndpointError, EngineError, JobError
from local_mode.instances import Instances, ServingInstance
from local_mode.names import label
from local_mode.s3 import checkpoints, local_copy
from local_mode.transform import TransformJob
from local_mode.tuning import TuningJob
from local_mode.validation import check
from local_mode.versions import SUBMIT_DIRECTORY, entities, local_session


class SagemakerClient(local_session.LocalSagemakerClient):
    """Jobs and endpoints in containers of this machine."""

    sagemaker_session: Any
    _tuning_jobs: ClassVar[dict[str, TuningJob]] = {}

    def create_training_job(self, TrainingJobName: str, **request: Any) -> None:
        """Run a training job; JobError with the script's traceback where it fails."""
        request = {'TrainingJobName': TrainingJobName, 'InputDataConfig': [], 'Environment': {}, **request}
        check('CreateTrainingJob', request)
        if TrainingJobName in self._training_jobs:
            raise endpoints.error('CreateTrainingJob', 'ResourceInUse', f'There is a job {TrainingJobName} already.')
        refuse_what_only_aws_does(request)
        algorithm = request['AlgorithmSpecification']
        image = algorithm['TrainingImage']
        self.sagemaker_session.engine.check(image)
        instances = Instances(request['ResourceConfig'], image, self.sagemaker_session, algorithm)
        instances.label(job=TrainingJobName)
        job: Any = entities._LocalTrainingJob(instances)
        job.request, self._training_jobs[TrainingJobName] = request, job
        with ended(f'Training job {TrainingJobName}', job):
            self.train(job, instances, request)

    def train(self, job: Any, instances: Instances, request: dict[str, Any]) -> None:
        """Run a job's containers to their end, or to that of MaxRuntimeInSeconds."""
        name, output = request['TrainingJobName'], request['OutputDataConfig']
        hyperparameters = dict(request.get('HyperParameters') or {})
        if SUBMIT_DIRECTORY in hyperparameters:
            code = json.loads(hyperparameters[SUBMIT_DIRECTORY])
            hyperparameters[SUBMIT_DIRECTORY] = json.dumps(local_copy(instances.sagemaker_session, code))
        # What the hosts of a job log in to each other with, see sagemaker_chainer_container/mpi.py.
        environment = {**(request['Environment'] or {}), 'SAGEMAKER_MPI_SECRET': secrets.token_hex()}
        limit = request.get('StoppingCondition', {}).get('MaxRuntimeInSeconds')
        with contextlib.ExitStack() as stack:
            if config := request.get('CheckpointConfig'):
                inside = config.get('LocalPath') or '/opt/ml/checkpoints'
                environment.setdefault('SM_CHECKPOINT_DIR', inside)  # without Docker it is elsewhere
                kept = checkpoints(instances.sagemaker_session, config['S3Uri'])
                instances.mounts[inside] = stack.enter_context(kept)
            stopped = stack.enter_context(stopped_after(limit, instances))
            job.start(request['InputDataConfig'] or [], output, hyperparameters, environment, name)
        if stopped:  # as on SageMaker, with what there is so far
            job.state, job.model_artifacts = 'Stopped', instances.artifacts
            print(f'Training job {name} was stopped: it took longer than max_run, {limit} seconds.')

    def describe_training_job(self, TrainingJobName: str) -> dict[str, Any]:
        """Return what was asked for, and what has come of it."""
        described = super().describe_training_job(TrainingJobName)
        request = getattr(self._training_jobs[TrainingJobName], 'request', None)
        if request is None:  # it is a plain session's: the SDK has them all in one table
            return described
        output = {'KmsKeyId': '', **request['OutputDataConfig']}
        # Environment: without what create_training_job has added.
        return {
            **described,
            **request,
            'OutputDataConfig': output,
            'FinalMetricDataList': self.final_metrics(TrainingJobName),
        }

    def metrics(self, job: str) -> list[tuple[str, float, float]]:
        """Return the metrics in a training job's log: (name, time, value)."""
        return self._training_jobs[job].container.output.values

    def final_metrics(self, job: str) -> list[dict[str, Any]]:
        """Return the last value of each metric, as describe_training_job does."""
        last = {name: (when, value) for name, when, value in self.metrics(job)}
        moment = datetime.datetime.fromtimestamp
        return [dict(MetricName=name, Timestamp=moment(t), Value=value) for name, (t, value) in last.items()]

    def stop_training_job(self, TrainingJobName: str) -> None:
        """Stop a training job that another thread runs."""
        engine = self.sagemaker_session.engine
        if running := engine.find({label('job'): TrainingJobName}):
            self._training_jobs[TrainingJobName].stopping = True
            engine.stop([*running], 120)  # seconds from SIGTERM to SIGKILL, as on SageMaker

    def list_training_jobs(self, NameContains: str = '', StatusEquals: str = '', **_: Any) -> dict[str, Any]:
        """List this process's training jobs, the newest first."""
        jobs = [
            (name, self.describe_training_job(name)) for name in reversed(self._training_jobs) if NameContains in name
        ]
        rows = [{'TrainingJobName': name, 'TrainingJobStatus': job['TrainingJobStatus']} for name, job in jobs]
        return {'TrainingJobSummaries': [row for row in rows if StatusEquals in ('', row['TrainingJobStatus'])]}

    def create_hyper_parameter_tuning_job(self, HyperParameterTuningJobName: str, **request: Any) -> None:
        """Run a tuning job's training jobs, one after another; JobError if none succeeds."""
        if 'TrainingJobDefinition' not in request or request.get('WarmStartConfig'):
            raise ValueError('In local mode a tuning job has one estimator and no warm start.')
        job = self._tuning_jobs[HyperParameterTuningJobName] = TuningJob(HyperParameterTuningJobName, request)
        job.run(self)

    def describe_hyper_parameter_tuning_job(self, HyperParameterTuningJobName: str) -> dict[str, Any]:
        """Describe a tuning job of this process."""
        return self._tuning_jobs[HyperParameterTuningJobName].describe()

    def list_training_jobs_for_hyper_parameter_tuning_job(
        self, HyperParameterTuningJobName: str, **_: Any
    ) -> dict[str, Any]:
        """List a tuning job's training jobs."""
        return {'TrainingJobSummaries': self._tuning_jobs[HyperParameterTuningJobName].summaries}

    def create_endpoint_config(  # type: ignore[override]
        self, EndpointConfigName: str, ProductionVariants: Any, Tags: Any = None, **more: Any
    ) -> None:
        """Keep an endpoint's configuration; ValueError for what local mode does not have."""
        capture = more.pop('DataCaptureConfig', None)
        if more or any('ServerlessConfig' in variant for variant in ProductionVariants):
            raise ValueError(f'Local mode has no {", ".join(more) or "ServerlessConfig"}: leave that out.')
        super().create_endpoint_config(EndpointConfigName, ProductionVariants, Tags)
        self._endpoint_configs[EndpointConfigName].capture = capture

    def list_endpoints(self, NameContains: str = '', **_: Any) -> dict[str, Any]:
        """List this machine's endpoints."""
        found = self.sagemaker_session.engine.find({label('endpoint'): ''}, want=[label('endpoint')]).values()
        names = sorted(names[label('endpoint')] for names in found)
        rows = [{'EndpointName': name, 'EndpointStatus': 'InService'} for name in names if NameContains in name]
        return {'Endpoints': rows}

    def create_processing_job(self, ProcessingJobName: str, **request: Any) -> None:
        """Run a processing job; JobError with the end of its log where it fails."""
        program, cluster = request['AppSpecification'], request['ProcessingResources']['ClusterConfig']
        self.sagemaker_session.engine.check(program['ImageUri'])
        instances = Instances(cluster, program['ImageUri'], self.sagemaker_session, program)
        instances.label(processing=ProcessingJobName)
        job: Any = entities._LocalProcessingJob(instances)
        job.request, self._processing_jobs[ProcessingJobName] = {}, job
        inputs, outputs = request.get('ProcessingInputs') or [], request.get('ProcessingOutputConfig') or {}
        with ended(f'Processing job {ProcessingJobName}', job):
            job.start(inputs, outputs, request.get('Environment') or {}, ProcessingJobName)

    def list_tags(self, ResourceArn: str, **_: Any) -> dict[str, Any]:
        """Return no tags: nothing here has any."""
        return {'Tags': []}

    def create_endpoint(self, EndpointName: str, EndpointConfigName: str, Tags: Any = None) -> None:
        """Start an endpoint and return once it answers; EndpointError with its log if it stops."""
        session = self.sagemaker_session
        endpoint: Any = entities._LocalEndpoint(EndpointName, EndpointConfigName, Tags, session)
        model, variant = endpoint.primary_container, endpoint.production_variant
        if variant['InitialInstanceCount'] != 1:
            raise ValueError('In local mode an endpoint has one instance: deploy(1, ...).')
        session.engine.check(model['Image'])
        if endpoints.find(session.engine, EndpointName):
            raise endpoints.error(
                'CreateEndpoint', 'ValidationException', f'Cannot create already existing endpoint {EndpointName}.'
            )
        endpoints.check_serving_port(session)
        endpoint.port, config = session.serving_port, self._endpoint_configs[EndpointConfigName]
        endpoint.capture = getattr(config, 'capture', None)
        endpoint.container = ServingInstance(variant, model['Image'], session)
        endpoint.container.label(endpoint=EndpointName, config=EndpointConfigName)
        self._endpoints[EndpointName] = endpoint
        try:
            endpoint.container.serve(model['ModelDataUrl'], model['Environment'])
        except BaseException as e:
            self.delete_endpoint(EndpointName)
            if isinstance(e, EngineError):
                raise EndpointError(f'The endpoint {EndpointName} could not be started. {e}') from None
            raise
        endpoint.state, endpoint.port = endpoint._IN_SERVICE, endpoint.container.sagemaker_session.serving_port
        print(f'The endpoint {EndpointName} answers on port {endpoint.port}.')

    def running(self, name: str) -> Any:
        """Return this process's endpoint of that name while its container runs, or None."""
        endpoint = self._endpoints.get(name)
        thread = endpoint and endpoint.container.container
        return endpoint if thread and thread.is_alive() else None

    def describe_endpoint(self, EndpointName: str) -> dict[str, Any]:
        """Describe an endpoint of this process or of another one."""
        other = None if self.running(EndpointName) else endpoints.find(self.sagemaker_session.engine, EndpointName)
        if not other:
            return super().describe_endpoint(EndpointName)
        return dict(EndpointName=EndpointName, EndpointConfigName=other[endpoints.CONFIG], EndpointStatus='InService')

    def delete_endpoint(self, EndpointName: str) -> None:
        """Stop an endpoint and remove its container, also that of another process."""
        if EndpointName in self._endpoints:
            self._endpoints.pop(EndpointName).stop()
        else:
            self.sagemaker_session.engine.remove({label('endpoint'): EndpointName})

    def create_transform_job(self, TransformJobName: str, ModelName: str, **request: Any) -> None:
        """Run a batch transform job, its container on the session's port; JobError where it fails."""
        session, source = self.sagemaker_session, {'ContentType': None, **request.pop('TransformInput')}
        image = self.describe_model(ModelName)['PrimaryContainer']['Image']
        session.engine.check(image)
        endpoints.check_serving_port(session)
        if source.get('SplitType') in (None, 'None'):  # to join whole files the SDK takes them for text
            request['BatchStrategy'] = 'SingleRecord'
        output, resources = request.pop('TransformOutput'), request.pop('TransformResources')
        job: Any = TransformJob(TransformJobName, ModelName, session)
        job.container = ServingInstance({**resources, 'InstanceCount': 1}, image, session)
        job.request, self._transform_jobs[TransformJobName] = {}, job
        with ended(f'Transform job {TransformJobName}', job):
            job.start(source, output, resources, **request)


def refuse_what_only_aws_does(request: dict[str, Any]) -> None:
    """Raise ValueError for a training job that would run here in another way than on SageMaker."""
    channels = request['InputDataConfig'] or []
    modes = {request['AlgorithmSpecification'].get('TrainingInputMode'), *(c.get('InputMode') for c in channels)}
    if 'Pipe' in modes:
        raise ValueError("In local mode channels are files: input_mode='File'.")
    if any(channel.get('CompressionType') == 'Gzip' for channel in channels):
        raise ValueError('In local mode nothing decompresses channels: leave out compression.')


@contextlib.contextmanager
def ended(name: str, job: Any) -> Iterator[None]:
    """Set the state of a job that fails or is stopped, and remove every job's containers and files."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        job.state = 'Stopped'
        if job.container.kept:
            print(job.container.kept.strip())
        raise
    except Exception as e:
        failure = (job.container.failure() or str(e)) + job.container.kept
        job.state, job.request['FailureReason'] = 'Failed', failure
        if isinstance(e, (endpoints.ClientError, OSError, RuntimeError)):
            raise JobError(f'{name} failed. {failure}') from None
        raise
    finally:
        job.container.discard()


@contextlib.contextmanager
def stopped_after(seconds: float | None, instances: Instances) -> Iterator[list[bool]]:
    """Stop the job's containers after so many seconds; yield a list, which is then not empty."""
    over, engine = threading.Event(), instances.engine
    stopped: list[bool] = []

    def watch() -> None:
        if not over.wait(seconds):
            stopped.append(True)
            while not over.wait(1):  # until there is a container, and the engine answers
                with contextlib.suppress(EngineError):
                    if running := engine.find(instances.sagemaker_session.labels()):
                        engine.stop([*running], 120)  # seconds from SIGTERM to SIGKILL, as on SageMaker

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield stopped
    except JobError:
        if not stopped or instances.kept:
            raise
    finally:
        over.set()
        thread.join()
