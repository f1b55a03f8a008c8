"""This module runs tuning jobs: training jobs one after another, with parameters drawn at random or from a grid."""

import collections
import itertools
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

from local_mode.errors import JobError
from local_mode.validation import refuse
from local_mode.versions import FailedJob

METRIC = 'FinalHyperParameterTuningJobObjectiveMetric'


class TuningJob:
    """Runs a tuning job, and describes it for describe_hyper_parameter_tuning_job().

    Bayesian and Hyperband strategies draw at random, too: they differ in how soon they find something good.
    """

    def __init__(self, name: str, request: Mapping[str, Any]) -> None:
        self.name, self.config = name, request['HyperParameterTuningJobConfig']
        limits = self.config.get('ResourceLimits', {})
        refused = {'WarmStartConfig', 'TrainingJobDefinitions'} & {*request} | {'MaxRuntimeInSeconds'} & {*limits}
        refused |= {'TuningJobCompletionCriteria'} & {*self.config}
        refused |= {'early stopping'} if self.config.get('TrainingJobEarlyStoppingType', 'Off') != 'Off' else set()
        refuse(refused, 'A tuning job in local mode')
        given, self.most = request['TrainingJobDefinition'], limits.get('MaxNumberOfTrainingJobs')
        self.definition = {'ResourceConfig': given.get('HyperParameterTuningResourceConfig'), **given}
        self.state, self.summaries = 'InProgress', list[dict[str, Any]]()
        self.objective = self.config['HyperParameterTuningJobObjective']

    def run(self, client: Any) -> None:
        """Run all training jobs; FailedJob if none succeeds."""
        try:
            self.run_all(client)
        except BaseException:
            self.state = 'Stopped'
            raise
        self.state = 'Completed' if self.best() else 'Failed'
        if not self.best():
            metric = self.objective['MetricName']
            raise FailedJob(f'No job of tuning job {self.name} has succeeded and printed the metric {metric}.')

    def run_all(self, client: Any) -> None:
        ranges = self.config['ParameterRanges']
        points = grid(ranges) if self.config['Strategy'] == 'Grid' else draws(ranges, self.config.get('RandomSeed'))
        for number, point in enumerate(itertools.islice(points, self.most), 1):
            name = f'{self.name[:55]}-{number:03}'
            print(f'Training job {number}{f" of {self.most}" if self.most else ""}: {point}')
            definition = {k: v for k, v in self.definition.items() if not k.startswith(('Static', 'HyperParameterT'))}
            parameters = self.definition['StaticHyperParameters'] | point
            try:
                client.create_training_job(name, **definition, HyperParameters=parameters)
            except JobError as e:
                print(e)
            self.summaries.append(self.summary(client.describe_training_job(name), point))

    def summary(self, job: dict[str, Any], point: dict[str, str]) -> dict[str, Any]:
        names = 'TrainingJobName', 'TrainingJobStatus', 'TrainingStartTime', 'TrainingEndTime'
        found = [m['Value'] for m in job['FinalMetricDataList'] if m['MetricName'] == self.objective['MetricName']]
        final = {METRIC: {**self.objective, 'Value': found[0]}} if found else {}
        return {**{name: job.get(name) for name in names}, 'TunedHyperParameters': point, **final}

    def best(self) -> dict[str, Any] | None:
        """Return the summary of the best job that has completed."""
        sign = 1 if self.objective['Type'] == 'Maximize' else -1
        done = [s for s in self.summaries if s['TrainingJobStatus'] == 'Completed' and METRIC in s]
        return max(done, key=lambda s: sign * s[METRIC]['Value'], default=None)

    def describe(self) -> dict[str, Any]:
        best = self.best()
        # attach() wants the metric here, too, and removes it.
        parameters = self.definition['StaticHyperParameters'] | {
            '_tuning_objective_metric': self.objective['MetricName']
        }
        return {
            'HyperParameterTuningJobName': self.name,
            'HyperParameterTuningJobConfig': self.config,
            'HyperParameterTuningJobStatus': self.state,
            'TrainingJobDefinition': self.definition | {'StaticHyperParameters': parameters},
            'TrainingJobStatusCounters': dict(collections.Counter(s['TrainingJobStatus'] for s in self.summaries)),
            **({'BestTrainingJob': best} if best else {}),
        }


def draws(ranges: Mapping[str, Any], seed: int | None) -> Iterator[dict[str, str]]:
    """Yield parameters at random, for ever."""
    rng = random.Random(seed)
    while True:
        point = {p['Name']: rng.choice(p['Values']) for p in ranges.get('CategoricalParameterRanges', [])}
        for kind, whole in ('IntegerParameterRanges', True), ('ContinuousParameterRanges', False):
            for p in ranges.get(kind, []):
                value = scaled(rng.random(), float(p['MinValue']), float(p['MaxValue']), p.get('ScalingType', 'Auto'))
                point[p['Name']] = str(round(value) if whole else value)
        yield point


def scaled(share: float, low: float, high: float, scale: str) -> float:
    """Return the value at a share of the way from low to high, on the scale of values, log(value) or log(1 - value)."""
    if scale == 'Logarithmic':
        return math.exp(math.log(low) + share * math.log(high / low))
    if scale == 'ReverseLogarithmic':
        return 1 - math.exp(math.log(1 - low) + share * math.log((1 - high) / (1 - low)))
    return low + share * (high - low)


def grid(ranges: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Yield each combination of categorical parameters; SageMaker's grid has no others."""
    parameters = ranges.get('CategoricalParameterRanges', [])
    if any(ranges.get(kind) for kind in ('IntegerParameterRanges', 'ContinuousParameterRanges')):
        raise ValueError('A grid has categorical parameters only, on SageMaker too.')
    for values in itertools.product(*(p['Values'] for p in parameters)):
        yield dict(zip((p['Name'] for p in parameters), values))
