"""What the SDK calls in local mode in place of AWS's API: training jobs, endpoints, batch transform."""

import contextlib
import json
import os
import secrets
import shutil
import threading

from local_mode import endpoints
from local_mode.docker import LABEL, check, check_succeeded, docker, remove_containers
from local_mode.s3 import artifacts, checkpoints, local_copy, read_failure
from local_mode.sdk import Container, ServingContainer
from local_mode.versions import SUBMIT_DIRECTORY, entities, local_session


class SagemakerClient(local_session.LocalSagemakerClient):
    """Jobs and endpoints in containers of this machine."""

    def create_training_job(self, **request):
        """Run a training job; RuntimeError with the script's traceback where it fails."""
        name, algorithm = request['TrainingJobName'], request['AlgorithmSpecification']
        resources, output = request['ResourceConfig'], request['OutputDataConfig']
        check(algorithm['TrainingImage'])
        session = self.sagemaker_session
        before = set(os.listdir(session.directory))
        hyperparameters = dict(request.get('HyperParameters') or {})
        if SUBMIT_DIRECTORY in hyperparameters:
            code = json.loads(hyperparameters[SUBMIT_DIRECTORY])
            hyperparameters[SUBMIT_DIRECTORY] = json.dumps(local_copy(session, code))
        # What the hosts of a job log in to each other with, see sagemaker_chainer_container/mpi.py.
        environment = {**(request.get('Environment') or {}), 'SAGEMAKER_MPI_SECRET': secrets.token_hex()}
        container = Container(
            resources['InstanceType'], resources['InstanceCount'], algorithm['TrainingImage'], session,
            algorithm.get('ContainerEntrypoint'), algorithm.get('ContainerArguments'),
        )  # fmt: skip
        container.label(job=name)
        if resources['InstanceCount'] > 1:  # each would take this machine's cores for its own
            cpus = int(docker('info', '--format', '{{.NCPU}}')) / resources['InstanceCount']
            container.options['cpus'] = cpus
        job = self._training_jobs[name] = entities._LocalTrainingJob(container)
        job.request = request
        limit = request.get('StoppingCondition', {}).get('MaxRuntimeInSeconds')
        try:
            with (
                kept_checkpoints(session, container, request.get('CheckpointConfig')),
                stopped_after(limit, name) as stopped,
            ):
                job.start(request.get('InputDataConfig') or [], output, hyperparameters, environment, name)
                check_succeeded(name)
            if stopped:  # as on SageMaker, with what there is so far
                job.state = 'Stopped'
                job.model_artifacts = f'{artifacts(output["S3OutputPath"], name)}/model.tar.gz'
                print(f'Training job {name} was stopped: it took longer than max_run, {limit} seconds.')
        except Exception as e:
            failure = read_failure(session, output['S3OutputPath'], name) or str(e)
            job.state, request['FailureReason'] = 'Failed', failure
            if isinstance(e, RuntimeError):
                raise RuntimeError(f'Training job {name} failed. {failure}') from None
            raise
        finally:
            if output['S3OutputPath'].startswith('s3://'):
                # The SDK leaves the channels here, some 200 MB a job.
                for left in set(os.listdir(session.directory)) - before:
                    shutil.rmtree(os.path.join(session.directory, left), ignore_errors=True)
            session.remove_stopped_containers()

    def describe_training_job(self, TrainingJobName):
        """Return what was asked for, and what has come of it."""
        described = super().describe_training_job(TrainingJobName)
        request = self._training_jobs[TrainingJobName].request
        output = {'KmsKeyId': '', **request['OutputDataConfig']}
        # Environment: without what create_training_job has added.
        return {**described, 'Environment': {}, **request, 'OutputDataConfig': output}

    def list_tags(self, ResourceArn, **_):
        """Return no tags: nothing here has any."""
        return {'Tags': []}

    def create_endpoint(self, EndpointName, EndpointConfigName, Tags=None):
        """Start an endpoint and return once it answers; RuntimeError with its log if it stops."""
        session = self.sagemaker_session
        endpoint = entities._LocalEndpoint(EndpointName, EndpointConfigName, Tags, session)
        model, variant = endpoint.primary_container, endpoint.production_variant
        if variant['InitialInstanceCount'] != 1:
            raise ValueError('In local mode an endpoint has one instance: deploy(1, ...).')
        check(model['Image'])
        if endpoints.find(EndpointName):
            raise endpoints.error(
                'CreateEndpoint',
                'ValidationException',
                f'Cannot create already existing endpoint {EndpointName}.',
            )
        endpoints.check_serving_port(session)
        endpoint.port = session.serving_port
        endpoint.container = ServingContainer(variant['InstanceType'], 1, model['Image'], session)
        endpoint.container.label(endpoint=EndpointName, port=endpoint.port, config=EndpointConfigName)
        self._endpoints[EndpointName] = endpoint
        try:
            endpoint.container.serve(model['ModelDataUrl'], model['Environment'])
        except BaseException:
            self.delete_endpoint(EndpointName)
            raise
        endpoint.state = endpoint._IN_SERVICE
        print(f'The endpoint {EndpointName} answers on port {endpoint.port}.')

    def running(self, name):
        """Return this process's endpoint of that name while its container runs, or None."""
        endpoint = self._endpoints.get(name)
        thread = endpoint and endpoint.container.container
        return endpoint if thread and thread.is_alive() else None

    def describe_endpoint(self, EndpointName):
        """Describe an endpoint of this process or of another one."""
        if self.running(EndpointName) or not (other := endpoints.find(EndpointName)):
            return super().describe_endpoint(EndpointName)
        return {
            'EndpointName': EndpointName,
            'EndpointConfigName': other.config,
            'EndpointStatus': entities._LocalEndpoint._IN_SERVICE,
        }

    def delete_endpoint(self, EndpointName):
        """Stop an endpoint and remove its container, also that of another process."""
        if EndpointName in self._endpoints:
            container = self._endpoints.pop(EndpointName).container
            if container.container_root:  # it has been started
                with contextlib.suppress(FileNotFoundError):  # `make clean` has been here
                    container.stop_serving()
            self.sagemaker_session.remove_stopped_containers()
        else:
            while other := endpoints.find(EndpointName):
                remove_containers(other.session, f'label={LABEL}.endpoint={EndpointName}')

    def create_transform_job(self, **request):
        """Run a batch transform job, its container on the session's port; RuntimeError where it fails."""
        name, source = request['TransformJobName'], request['TransformInput']
        check(self.describe_model(request['ModelName'])['PrimaryContainer']['Image'])
        endpoints.check_serving_port(self.sagemaker_session)
        request['TransformInput'] = {'ContentType': None, **source}
        if source.get('SplitType') in (None, 'None'):  # whole files; to join them the SDK takes them for text
            request['BatchStrategy'] = 'SingleRecord'
        try:
            super().create_transform_job(**request)
        except endpoints.ClientError as e:
            raise RuntimeError(f'Transform job {name} failed. {e}') from None
        finally:
            container = self._transform_jobs[name].container
            # Else it has not started, or has come to its end.
            if container and container.container_root and os.path.exists(container.container_root):
                container.stop_serving()
            self.sagemaker_session.remove_stopped_containers()


@contextlib.contextmanager
def kept_checkpoints(session, container, config):
    """Let the job's container have the directory of a CheckpointConfig, if there is one."""
    if not config:
        yield
        return
    with checkpoints(session, config['S3Uri']) as directory:
        container.mounts[config.get('LocalPath') or '/opt/ml/checkpoints'] = directory
        yield


@contextlib.contextmanager
def stopped_after(seconds, job):
    """Stop the job's containers after so many seconds; yield a list, which is then not empty."""
    over, stopped = threading.Event(), []

    def watch():
        if not over.wait(seconds):
            stopped.append(True)
            while not over.wait(1):  # until there is a container, if need be
                if running := docker('ps', '--quiet', f'--filter=label={LABEL}.job={job}').split():
                    # Seconds from SIGTERM to SIGKILL, as on SageMaker.
                    docker('stop', '--time', '120', *running)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield stopped
    except RuntimeError:
        if not stopped:
            raise
    finally:
        over.set()
        thread.join()
