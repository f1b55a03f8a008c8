"""This module runs batch transform jobs: it sends records to a container of ours, and joins them with its answers."""

import csv
import datetime
import gzip
import io
import json
import pathlib
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import urllib3
from botocore.exceptions import ClientError
from local_mode.errors import EndpointError, JobError
from local_mode.instances import ServingInstance
from local_mode.s3 import fetch
from local_mode.versions import entities


class TransformJob(entities._LocalTransformJob):
    """Runs a transform job, described as the SDK's."""

    container: ServingInstance
    request: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        """Return the SDK's description with what the request asked for, and with FailureReason if the job failed."""
        return super().describe() | self.request

    def start(self, **request: Any) -> None:  # type: ignore[override]
        """Run the job of a request to its end."""
        self.input_data, self.output_data = request['TransformInput'], request['TransformOutput']
        self.transform_resources = request['TransformResources']
        environment = self._get_container_environment(**request)
        session = self.local_session = self.container.sagemaker_session
        source = self.input_data['DataSource']['S3DataSource']
        here = pathlib.Path(fetch(session, source['S3Uri'], source['S3DataType']))
        told = request.get('ModelClientConfig') or {}
        session.sagemaker_runtime_client.timeout = told.get('InvocationsTimeoutInSeconds') or 600  # as on SageMaker
        self.container.serve(self.primary_container, environment)
        url = f'http://{session.engine.host}:{session.serving_port}/execution-parameters'
        request = {'BatchStrategy': 'MultiRecord', 'MaxPayloadInMB': 6, **execution_parameters(url), **request}
        self.start_time, self.batch_strategy = datetime.datetime.now(), request['BatchStrategy']
        out, failures = tempfile.mkdtemp(dir=session.directory), []
        for path in sorted(path for path in here.rglob('*') if path.is_file()):
            target = pathlib.Path(out, f'{path.relative_to(here)}.out')
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with target.open('wb') as file:
                    file.writelines(self.answers(path, **request))
            except JobError as e:  # as on SageMaker, the other files' results are kept
                failures.append(e)
                target.unlink()
        entities.move_to_destination(out, self.output_data['S3OutputPath'], '', session)
        if failures:
            raise failures[0]
        self.state = self._COMPLETED

    def answers(self, path: pathlib.Path, **job: Any) -> Iterator[bytes]:
        """Yield the output for each of the requests that a file's records make; JobError names the file."""
        given, wanted, split = self.input_data, self.output_data, self.input_data.get('SplitType') or 'None'
        client, types = self.local_session.sagemaker_runtime_client, (given.get('ContentType'), wanted.get('Accept'))

        def ask(body: bytes) -> Message:
            answer = client.invoke_endpoint(body, '', *types)
            return Message(answer['Body'].read(), wanted.get('Accept') or answer['ContentType'], split == 'Line')

        together = job['BatchStrategy'] == 'MultiRecord' and split != 'None'
        end = b'\n' if wanted.get('AssembleWith') == 'Line' else b''
        try:
            body = path.read_bytes()
            body = gzip.decompress(body) if given.get('CompressionType') == 'Gzip' else body
            for records in batches(divide(body, split), together, int(job['MaxPayloadInMB']) * 2**20):
                message = Message(b''.join(records), given.get('ContentType') or '', split == 'Line')
                yield associate(message, ask, job.get('DataProcessing') or {}, end)
        except (ClientError, EOFError, OSError, ValueError, csv.Error, zlib.error) as e:
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


class Message(NamedTuple):
    """The body of a request or an answer, its content type, and whether each line of JSON is a record."""

    body: bytes
    kind: str
    lines: bool

    def is_csv(self) -> bool:
        return self.kind.partition(';')[0].strip() == 'text/csv'

    def records(self) -> list[Any]:
        """Return the records in CSV, each a list of str, or in JSON. ValueError for other types."""
        kind, text = self.kind.partition(';')[0].strip(), self.body.decode()
        if self.is_csv():
            return list(csv.reader(io.StringIO(text)))
        if kind == 'application/jsonlines' or kind == 'application/json' and self.lines:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        if kind != 'application/json':
            raise ValueError(f'Records can be filtered and joined in CSV, JSON and JSON lines only, not in {kind!r}.')
        return [json.loads(text)]

    def of(self, records: Iterable[Any]) -> bytes:
        """Return other records in the same type, one a line."""
        if not self.is_csv():
            return ''.join(json.dumps(record) + '\n' for record in records).encode()
        text = io.StringIO()
        rows = (record if isinstance(record, list) else [record] for record in records)
        csv.writer(text, lineterminator='\n').writerows(rows)
        return text.getvalue().encode()


def associate(given: Message, ask: Callable[[bytes], Message], processing: dict[str, str], end: bytes = b'') -> bytes:
    """Return the answer to what InputFilter selects of records; joined with the records, and filtered, if so wanted.

    end: what AssembleWith adds. See "Associate Prediction Results with Input Records" in SageMaker's developer guide.
    """
    taken, kept = processing.get('InputFilter') or '$', processing.get('OutputFilter') or '$'
    join = processing.get('JoinSource') == 'Input'
    records = given.records() if join or taken != '$' else []
    answer = ask(given.of(select(taken, record) for record in records) if taken != '$' else given.body)
    if not join and kept == '$':
        return answer.body + end
    results = answer.records()
    if join:
        if len(results) != len(records):
            raise ValueError(f'{len(results)} results cannot be joined with {len(records)} records.')
        results = [joined(record, result, answer.is_csv()) for record, result in zip(records, results)]
    return answer.of(select(kept, result) for result in results).removesuffix(b'\n') + end


def joined(record: Any, result: Any, rows: bool) -> Any:
    if rows and isinstance(record, list):
        return record + result
    return {**(record if isinstance(record, dict) else {'SageMakerInput': record}), 'SageMakerOutput': result}


def select(path: str, value: Any) -> Any:
    """Return a JSONPath's selection: a value, an object of the names in it, or a list. ValueError if it is empty."""
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
    named = {node.parts[-1]: node.value for node in nodes}
    return named if len(named) == len(nodes) and all(isinstance(n, str) for n in named) else [n.value for n in nodes]


def execution_parameters(url: str) -> dict[str, Any]:
    """Return the container's recommendations for batches, if it has any: BatchStrategy, MaxPayloadInMB."""
    try:
        response = urllib3.PoolManager(retries=False, timeout=10).request('GET', url)
        told = json.loads(response.data) if response.status == 200 else {}
        return {name: told[name] for name in ('BatchStrategy', 'MaxPayloadInMB') if name in told}
    except (urllib3.exceptions.HTTPError, TypeError, ValueError) as e:
        raise EndpointError(f'The container gave no JSON object at {url}: {e}') from None
