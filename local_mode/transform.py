"""Batch transform jobs, on a serving container of ours."""

import datetime
import json
from typing import Any

import urllib3
from local_mode.errors import EndpointError
from local_mode.instances import ServingInstance
from local_mode.versions import entities


class TransformJob(entities._LocalTransformJob):
    """A transform job. The SDK's sends the records and writes the answers."""

    container: ServingInstance

    def start(self, input_data: Any, output_data: Any, transform_resources: Any, **kwargs: Any) -> None:
        """Run the job to its end."""
        self.input_data, self.output_data, self.transform_resources = (input_data, output_data, transform_resources)
        environment = self._get_container_environment(**kwargs)
        session = self.local_session = self.container.sagemaker_session
        self.container.label(transform=self.name)
        self.container.serve(self.primary_container['ModelDataUrl'], environment)
        url = f'http://{session.engine.host}:{session.serving_port}/execution-parameters'
        kwargs = {**execution_parameters(url), **kwargs}
        kwargs.update(self._get_required_defaults(**kwargs))
        self.start_time = datetime.datetime.now()
        self.batch_strategy = kwargs['BatchStrategy']
        self.environment = kwargs.get('Environment', self.environment)
        self._perform_batch_inference(input_data, output_data, **kwargs)
        self.end_time = datetime.datetime.now()
        self.state = self._COMPLETED


def execution_parameters(url: str) -> dict[str, Any]:
    """Return what the container recommends for batches, if it does: BatchStrategy, MaxPayloadInMB."""
    try:
        response = urllib3.PoolManager(retries=False, timeout=10).request('GET', url)
        told = json.loads(response.data) if response.status == 200 else {}
        return {name: told[name] for name in ('BatchStrategy', 'MaxPayloadInMB') if name in told}
    except (urllib3.exceptions.HTTPError, TypeError, ValueError) as e:
        raise EndpointError(f'The container gave no JSON object at {url}: {e}') from None
