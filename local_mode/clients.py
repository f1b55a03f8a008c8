"""This module is an in-process SageMaker API for local mode: training, processing and transform jobs, and endpoints."""

import contextlib
import datetime
import json
import secrets
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

from botocore.exceptions import ClientError
from local_mode import cells, endpoints
from local_mode.errors import EndpointError, JobError, LocalModeError, stopped
from local_mode.instances import START, Instances, ServingInstance
from local_mode.names import label
from local_mode.s3 import checkpoints, local_copy
from local_mode.transform import TransformJob
from local_mode.tuning import TuningJob
from local_mode.validation import check, error, exceptions, existing, refuse, refuse_what_only_aws_does
from local_mode.versions import SUBMIT_DIRECTORY, FailedJob, entities, local_session


class SagemakerClient(local_session.LocalSagemakerClient):
    """Runs jobs and endpoints in containers of this machine."""

    sagemaker_session: Any
    _tuning_jobs: ClassVar[dict[str, TuningJob]] = {}

    def create_training_job(self, TrainingJobName: str, **request: Any) -> None:
        """Run a training job; JobError with the script's traceback if it fails."""
        request = {'TrainingJobName': TrainingJobName, 'InputDataConfig': [], 'Environment': {}, **request}
        check('CreateTrainingJob', request, self._training_jobs)
        refuse_what_only_aws_does(request)
        algorithm, resources = request['AlgorithmSpecification'], request['ResourceConfig']
        session, image = self.sagemaker_session, algorithm['TrainingImage']
        session.engine.check(image)
        instances = Instances(resources, image, session, algorithm, job=TrainingJobName)
        instances.isolated = request.get('EnableNetworkIsolation', False)
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
        # The hosts of a job log in to each other with this secret, see sagemaker_chainer_container/mpi.py.
        environment = {**(request['Environment'] or {}), 'SAGEMAKER_MPI_SECRET': secrets.token_hex()}
        limit = request.get('StoppingCondition', {}).get('MaxRuntimeInSeconds')
        with contextlib.ExitStack() as stack:
            if config := request.get('CheckpointConfig'):
                inside = config.get('LocalPath') or '/opt/ml/checkpoints'
                environment.setdefault('SM_CHECKPOINT_DIR', inside)  # without Docker it is elsewhere
                kept = checkpoints(instances.sagemaker_session, config['S3Uri'])
                instances.mounts[inside] = stack.enter_context(kept)
            stack.enter_context(stopped_after(limit, instances))
            job.start(request['InputDataConfig'] or [], output, hyperparameters, environment, name)
        if instances.stopped:  # as on SageMaker, with what there is so far
            job.model_artifacts = instances.artifacts

    def describe_training_job(self, TrainingJobName: str) -> dict[str, Any]:
        """Return a training job's request, and its state and results so far."""
        described = super().describe_training_job(TrainingJobName)
        job = self._training_jobs[TrainingJobName]
        request = getattr(job, 'request', None)
        if request is None:  # it is a plain session's: the SDK has them all in one table
            return described
        state = 'Training' if job.state == 'created' else job.state
        return {
            **described,
            **request,  # its Environment lacks what create_training_job has added
            'OutputDataConfig': {'KmsKeyId': '', **request['OutputDataConfig']},
            'TrainingJobStatus': 'InProgress' if state == 'Training' else state,
            'SecondaryStatus': state,
            'CreationTime': job.start_time,
            'LastModifiedTime': job.end_time or job.start_time,
            'FinalMetricDataList': [*{m['MetricName']: m for m in job.container.output.metrics}.values()],
        }

    def metrics(self, job: str, name: str) -> list[dict[str, Any]]:
        """Return the values of a metric in a training job's log, as in FinalMetricDataList."""
        return [m for m in self._training_jobs[job].container.output.metrics if m['MetricName'] == name]

    def stop_training_job(self, TrainingJobName: str) -> None:
        """Stop a training job that another thread runs."""
        job = existing('StopTrainingJob', self._training_jobs, TrainingJobName)
        threading.Thread(target=job.container.stop, args=['by stop_training_job()'], daemon=True).start()

    def list_training_jobs(
        self, NameContains: str = '', StatusEquals: str = '', MaxResults: int | None = None
    ) -> dict[str, Any]:
        """List this process's training jobs, the newest first."""
        jobs = [self.describe_training_job(name) for name in [*self._training_jobs][::-1] if NameContains in name]
        names = 'TrainingJobName', 'TrainingJobStatus', 'CreationTime', 'LastModifiedTime', 'TrainingEndTime'
        rows = [{name: job.get(name) for name in names} for job in jobs]
        found = [row for row in rows if StatusEquals in ('', row['TrainingJobStatus'])]
        return {'TrainingJobSummaries': found[:MaxResults]}

    def create_hyper_parameter_tuning_job(self, HyperParameterTuningJobName: str, **request: Any) -> None:
        """Run a tuning job's training jobs, one after another; JobError if none succeeds."""
        request['HyperParameterTuningJobName'] = name = HyperParameterTuningJobName
        check('CreateHyperParameterTuningJob', request, self._tuning_jobs)
        job = self._tuning_jobs[name] = TuningJob(name, request)
        job.run(self)

    def describe_hyper_parameter_tuning_job(self, HyperParameterTuningJobName: str) -> dict[str, Any]:
        """Describe a tuning job of this process."""
        name = HyperParameterTuningJobName
        return existing('DescribeHyperParameterTuningJob', self._tuning_jobs, name).describe()

    def list_training_jobs_for_hyper_parameter_tuning_job(self, **request: Any) -> dict[str, Any]:
        """List a tuning job's training jobs."""
        operation, name = 'ListTrainingJobsForHyperParameterTuningJob', request['HyperParameterTuningJobName']
        return {'TrainingJobSummaries': existing(operation, self._tuning_jobs, name).summaries}

    def create_model(self, ModelName: str, PrimaryContainer: Any = None, **more: Any) -> None:  # type: ignore[override]
        """Keep a model's description; ValueError for a chain of containers."""
        if not PrimaryContainer:
            raise ValueError('In local mode a model has one container.')
        check('CreateModel', {'ModelName': ModelName, 'PrimaryContainer': PrimaryContainer})
        if more.get('EnableNetworkIsolation'):
            print('An endpoint in local mode reaches the network, in spite of enable_network_isolation.')
        super().create_model(ModelName, PrimaryContainer)

    def create_endpoint_config(  # type: ignore[override]
        self, EndpointConfigName: str, ProductionVariants: Any, Tags: Any = None, **more: Any
    ) -> None:
        """Keep an endpoint's configuration; ValueError for what local mode does not have."""
        given = dict(EndpointConfigName=EndpointConfigName, ProductionVariants=ProductionVariants)
        check('CreateEndpointConfig', given)
        capture = more.pop('DataCaptureConfig', None)
        more.pop('KmsKeyId', None)  # of a volume that is not there
        if len(ProductionVariants) != 1:
            raise ValueError('In local mode an endpoint has one variant.')
        refuse({*more} | {'ServerlessConfig', 'AcceleratorType'} & {*ProductionVariants[0]})
        super().create_endpoint_config(EndpointConfigName, ProductionVariants, Tags)
        self._endpoint_configs[EndpointConfigName].capture = capture

    def list_endpoints(self, NameContains: str = '') -> dict[str, Any]:
        """List this machine's endpoints, which are in service."""
        found = self.sagemaker_session.engine.find({label('endpoint'): ''}, want=[label('endpoint')]).values()
        names = sorted(names[label('endpoint')] for names in found)
        rows = [{'EndpointName': name, 'EndpointStatus': 'InService'} for name in names if NameContains in name]
        return {'Endpoints': rows}

    def create_processing_job(self, ProcessingJobName: str, **request: Any) -> None:
        """Run a processing job; JobError with the end of its log if it fails."""
        check('CreateProcessingJob', {'ProcessingJobName': ProcessingJobName, **request}, self._processing_jobs)
        program, cluster = request['AppSpecification'], request['ProcessingResources']['ClusterConfig']
        session, image = self.sagemaker_session, program['ImageUri']
        session.engine.check(image)
        instances = Instances(cluster, image, session, program, processing=ProcessingJobName)
        instances.isolated = (request.get('NetworkConfig') or {}).get('EnableNetworkIsolation', False)
        job: Any = entities._LocalProcessingJob(instances)
        job.request, self._processing_jobs[ProcessingJobName] = {}, job
        inputs, outputs = request.get('ProcessingInputs') or [], request.get('ProcessingOutputConfig') or {}
        limit = (request.get('StoppingCondition') or {}).get('MaxRuntimeInSeconds')
        with (
            ended(f'Processing job {ProcessingJobName}', job),
            stopped_after(limit, instances, 'max_runtime_in_seconds'),
        ):
            job.start(inputs, outputs, request.get('Environment') or {}, ProcessingJobName)

    def describe_processing_job(self, ProcessingJobName: str) -> dict[str, Any]:
        """Return the SDK's description of a processing job, with FailureReason if it failed."""
        job = existing('DescribeProcessingJob', self._processing_jobs, ProcessingJobName)
        return job.describe() | getattr(job, 'request', {})

    @property
    def exceptions(self) -> Any:
        return exceptions('sagemaker')

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f'Local mode has no {name}: that needs SageMaker itself.')

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
        endpoint.cell = cells.current()
        self.delete_endpoints_of_earlier_run(endpoint.cell)
        if endpoints.find(session.engine, EndpointName):
            message = f'Cannot create already existing endpoint {EndpointName}.'
            raise error('CreateEndpoint', 'ValidationException', message)
        endpoints.check_serving_port(session)
        endpoint.port, config = session.serving_port, self._endpoint_configs[EndpointConfigName]
        endpoint.capture = getattr(config, 'capture', None)
        labels = dict(endpoint=EndpointName, config=EndpointConfigName)
        endpoint.container = ServingInstance(variant, model['Image'], session, **labels)
        self._endpoints[EndpointName] = endpoint
        try:
            longest = variant.get('ContainerStartupHealthCheckTimeoutInSeconds') or START
            endpoint.container.serve(model, model['Environment'], longest)
        except BaseException as e:
            self.delete_endpoint(EndpointName)
            if isinstance(e, KeyboardInterrupt):
                raise KeyboardInterrupt(stopped('The deployment')) from None
            if isinstance(e, LocalModeError) and not isinstance(e, EndpointError):
                raise EndpointError(f'The endpoint {EndpointName} could not be started. {e}') from None
            raise
        endpoint.state, endpoint.port = endpoint._IN_SERVICE, endpoint.container.sagemaker_session.serving_port
        print(f'The endpoint {EndpointName} answers on port {endpoint.port}.')

    def delete_endpoints_of_earlier_run(self, cell: cells.Cell) -> None:
        """Delete the endpoints that an earlier run of this cell of a notebook deployed, and print which."""
        for name, other in list(self._endpoints.items()):
            if cell.ran_before(getattr(other, 'cell', cell)):
                self.delete_endpoint(name)
                print(f"The endpoint {name} of this cell's earlier run is deleted.")

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
        """Run a batch transform job, its container on the session's port; JobError if it fails."""
        session = self.sagemaker_session
        named = {'TransformJobName': TransformJobName, 'ModelName': ModelName}
        check('CreateTransformJob', named | request, self._transform_jobs)
        if 'DataCaptureConfig' in request:
            refuse(['batch_data_capture_config'])
        job: Any = TransformJob(TransformJobName, ModelName, session)
        image = job.primary_container['Image']
        session.engine.check(image)
        endpoints.check_serving_port(session)
        one = {**request['TransformResources'], 'InstanceCount': 1}
        job.container = ServingInstance(one, image, session, transform=TransformJobName)
        job.request, self._transform_jobs[TransformJobName] = request, job
        with ended(f'Transform job {TransformJobName}', job):
            job.start(**request)


@contextlib.contextmanager
def ended(name: str, job: Any) -> Iterator[None]:
    """Set the state of a job that fails or is stopped, and remove every job's containers and files."""
    try:
        yield
        if job.container.stopped:
            job.state = 'Stopped'
            print(f'{name} was stopped: {job.container.stopped}.')
    except (KeyboardInterrupt, SystemExit) as e:
        job.state = 'Stopped'
        if isinstance(e, KeyboardInterrupt):
            e.args = (stopped(name.partition(' job')[0]),)
        if job.container.kept:
            print(job.container.kept.strip())
        raise
    except Exception as e:
        failure = (job.container.failure() or str(e)) + job.container.kept
        job.state, job.request['FailureReason'] = 'Failed', failure
        if isinstance(e, (ClientError, OSError, RuntimeError)):
            raise FailedJob(f'{name} failed. {failure}') from None
        raise
    finally:
        job.end_time = datetime.datetime.now()
        job.container.discard()


@contextlib.contextmanager
def stopped_after(seconds: float | None, instances: Instances, limit: str = 'max_run') -> Iterator[None]:
    """Stop the job's containers after so many seconds, if any; a job that is stopped has not failed."""
    reason = f'it took longer than {limit}, {seconds} seconds'
    timer = threading.Timer(seconds or threading.TIMEOUT_MAX, instances.stop, [reason])
    timer.daemon = True
    timer.start()
    try:
        yield
    except JobError:
        if not instances.stopped or instances.kept:
            raise
    finally:
        instances.over.set()
        timer.cancel()
        timer.join()
