"""Batch transform jobs: records are sent to a serving container of ours, and joined with its answers."""

import csv
import datetime
import gzip
import io
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import urllib3
from local_mode.errors import EndpointError, JobError
from local_mode.instances import ServingInstance
from local_mode.sources import fetch
from local_mode.versions import entities


class TransformJob(entities._LocalTransformJob):
    """A transform job, described as the SDK's."""

    container: ServingInstance

    def start(
        self, input_data: Any, output_data: Any, transform_resources: Any, model: str = '', **kwargs: Any
    ) -> None:
        """Run the job to its end. model: a URI."""
        self.input_data, self.output_data, self.transform_resources = (input_data, output_data, transform_resources)
        environment = self._get_container_environment(**kwargs)
        session = self.local_session = self.container.sagemaker_session
        source = input_data['DataSource']['S3DataSource']
        here = pathlib.Path(fetch(session, source['S3Uri'], source['S3DataType']))
        self.container.label(transform=self.name)
        told = kwargs.get('ModelClientConfig') or {}
        session.sagemaker_runtime_client.timeout = told.get('InvocationsTimeoutInSeconds') or 600  # as on SageMaker
        self.container.serve(model, environment)
        url = f'http://{session.engine.host}:{session.serving_port}/execution-parameters'
        kwargs = {**execution_parameters(url), **kwargs}
        kwargs.update(self._get_required_defaults(**kwargs))
        self.start_time = datetime.datetime.now()
        self.batch_strategy, self.environment = kwargs['BatchStrategy'], kwargs.get('Environment', self.environment)
        out = tempfile.mkdtemp(dir=session.directory)
        for path in sorted(path for path in here.rglob('*') if path.is_file()):
            target = pathlib.Path(out, f'{path.relative_to(here)}.out')
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open('wb') as file:
                file.writelines(self.answers(path, **kwargs))
        entities.move_to_destination(out, output_data['S3OutputPath'], '', session)
        self.end_time, self.state = datetime.datetime.now(), self._COMPLETED

    def answers(self, path: pathlib.Path, **job: Any) -> Iterator[bytes]:
        """Yield what is written for each of the requests that a file's records make."""
        given, wanted, split = self.input_data, self.output_data, self.input_data.get('SplitType') or 'None'
        kinds = Kinds(given.get('ContentType') or '', wanted.get('Accept') or '', split == 'Line')
        client = self.local_session.sagemaker_runtime_client

        def ask(body: bytes) -> bytes:
            return client.invoke_endpoint(body, '', given.get('ContentType'), wanted.get('Accept'))['Body'].read()

        body = path.read_bytes()
        if given.get('CompressionType') == 'Gzip':
            body = gzip.decompress(body)
        together = job['BatchStrategy'] == 'MultiRecord' and split != 'None'
        end = b'\n' if wanted.get('AssembleWith') == 'Line' else b''
        try:
            for records in batches(divide(body, split), together, int(job['MaxPayloadInMB']) * 2**20):
                yield associate(b''.join(records), ask, kinds, job.get('DataProcessing') or {}) + end
        except (OSError, ValueError) as e:
            raise JobError(f'{path.name}: {e}') from None


def divide(body: bytes, split: str) -> Iterable[bytes]:
    """Return the records in a file's bytes; split: None, Line or RecordIO."""
    if split == 'RecordIO':
        from sagemaker.amazon.common import read_recordio  # of version 2, which transform jobs are for

        return read_recordio(io.BytesIO(body))
    return body.splitlines(keepends=True) if split == 'Line' else [body]


def batches(records: Iterable[bytes], together: bool, limit: int) -> Iterator[list[bytes]]:
    """Yield lists of records, one each or as many as have `limit` bytes (0: no limit); ValueError if one has more."""
    batch: list[bytes] = []
    size = 0
    for record in records:
        if limit and len(record) > limit:
            raise ValueError(f'A record has {len(record)} bytes, more than max_payload.')
        if batch and (not together or limit and size + len(record) > limit):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += len(record)
    if batch:
        yield batch


class Kinds(NamedTuple):
    """The content types of a job's input and output, and whether each line is a record."""

    given: str
    wanted: str
    lines: bool

    def parse(self, body: bytes, kind: str) -> list[Any]:
        """Return the records in CSV, each a list of str, or in JSON. ValueError for other types."""
        kind, text = kind.partition(';')[0].strip(), body.decode()
        if kind == 'text/csv':
            return list(csv.reader(io.StringIO(text)))
        if kind == 'application/jsonlines' or kind == 'application/json' and self.lines:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        if kind != 'application/json':
            raise ValueError(f'Records are filtered and joined in CSV, JSON and JSON lines only, not in {kind!r}.')
        return [json.loads(text)]


def write(records: Iterable[Any], kind: str) -> bytes:
    """Return records as CSV or JSON, one a line."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator='\n')
    for record in records:
        if kind.startswith('text/csv'):
            rows.writerow(record if isinstance(record, list) else [record])
        else:
            text.write(json.dumps(record) + '\n')
    return text.getvalue().encode()


def associate(body: bytes, ask: Callable[[bytes], bytes], kinds: Kinds, processing: dict[str, str]) -> bytes:
    """Return the answer to records, of which InputFilter selects a part; joined with them, and filtered, if so wanted.

    As SageMaker's developer guide says in "Associate Prediction Results with Input Records".
    """
    taken, kept = processing.get('InputFilter') or '$', processing.get('OutputFilter') or '$'
    join = processing.get('JoinSource') == 'Input'
    records = kinds.parse(body, kinds.given) if join or taken != '$' else []
    answer = ask(write([select(taken, record) for record in records], kinds.given) if taken != '$' else body)
    if not join and kept == '$':
        return answer
    results = kinds.parse(answer, kinds.wanted)
    if join:
        if len(results) != len(records):
            raise ValueError(f'{len(results)} results cannot be joined with {len(records)} records.')
        results = [joined(record, result) for record, result in zip(records, results)]
    return write([select(kept, result) for result in results], kinds.wanted)


def joined(record: Any, result: Any) -> Any:
    if isinstance(record, dict):
        return {**record, 'SageMakerOutput': result}
    both = isinstance(record, list) and isinstance(result, list)
    return record + result if both else {'SageMakerInput': record, 'SageMakerOutput': result}


def select(path: str, value: Any) -> Any:
    """Return what a JSONPath selects: one thing, an object of the names in it, or a list. ValueError if nothing."""
    import jsonpath  # of RFC 9535, in plain Python; late, as version 3 of the SDK has no transform jobs here

    try:
        found: Any = jsonpath.compile(path)
    except jsonpath.JSONPathError as e:
        raise ValueError(f'{path} is no JSONPath: {e}') from None
    nodes = list(found.finditer(value))
    if not nodes:
        raise ValueError(f'{path} selects nothing of {json.dumps(value)[:200]}.')
    if found.singular_query():
        return nodes[0].value
    names = [node.parts[-1] for node in nodes]
    return dict(zip(names, (n.value for n in nodes))) if isinstance(names[0], str) else [n.value for n in nodes]


def execution_parameters(url: str) -> dict[str, Any]:
    """Return what the container recommends for batches, if it does: BatchStrategy, MaxPayloadInMB."""
    try:
        response = urllib3.PoolManager(retries=False, timeout=10).request('GET', url)
        told = json.loads(response.data) if response.status == 200 else {}
        return {name: told[name] for name in ('BatchStrategy', 'MaxPayloadInMB') if name in told}
    except (urllib3.exceptions.HTTPError, TypeError, ValueError) as e:
        raise EndpointError(f'The container gave no JSON object at {url}: {e}') from None
