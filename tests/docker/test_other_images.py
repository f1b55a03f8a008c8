"""Our package's fixtures work with any image that implements SageMaker's contract, here without Python."""

import re
import subprocess

import pytest
from local_mode.docker import LABEL, has_image
from sagemaker.deserializers import StringDeserializer
from sagemaker.estimator import Estimator
from sagemaker.model import Model
from sagemaker.predictor import Predictor
from sagemaker.serializers import IdentitySerializer
from support import ROLE, ROOT, docker, pack

# Training counts the words of its channel; a prediction says how many there were, and what was asked.
DOCKERFILE = r"""
FROM {base}
RUN echo 'wc -w < /opt/ml/input/data/train/text > /opt/ml/model/words' > /usr/bin/train && \
    echo 'exec perl /serve.pl' > /usr/bin/serve && chmod +x /usr/bin/train /usr/bin/serve
COPY serve.pl /
"""
SERVE = r"""
use IO::Socket::INET;
open(my $log, '>', '/var/log/words') or die;  # on SageMaker all is writable
open(my $file, '/opt/ml/model/words'); my $words = <$file>; chomp $words;
my $server = IO::Socket::INET->new(LocalPort => 8080, Listen => 8, ReuseAddr => 1);
while (my $client = $server->accept) {
    my ($length, $body) = (0, '');
    while (<$client>) { $length = $1 if /^Content-Length: (\d+)/i; last if /^\r\n$/ }
    read($client, $body, $length);
    my $answer = "$words words, and $body";
    print $client "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n$answer";
    close $client;
}
"""


@pytest.fixture(scope='module')
def image(tmp_path_factory):
    (base,) = re.findall('^ARG BASE=(.*)', (ROOT / 'container' / 'Dockerfile').read_text(), re.MULTILINE)
    made = 'sagemaker-chainer-base:trixie-' + docker('version --format {{.Server.Arch}}').strip()
    if has_image(made):  # where there is no registry
        base = made
    directory = tmp_path_factory.mktemp('image')
    (directory / 'Dockerfile').write_text(DOCKERFILE.format(base=base))
    (directory / 'serve.pl').write_text(SERVE)
    subprocess.run(['docker', 'build', '--quiet', '--tag', 'test-words', directory], check=True)
    yield 'test-words'
    docker('image rm test-words')


def test_another_image_trains_and_serves(image, local_sagemaker, local_endpoint, tmp_path):
    (tmp_path / 'text').write_text('three more words')
    common = dict(role=ROLE, image_uri=image, sagemaker_session=local_sagemaker)
    text = dict(serializer=IdentitySerializer('text/plain'), deserializer=StringDeserializer())
    estimator = Estimator(instance_count=1, instance_type='local', **common)
    estimator.fit({'train': local_sagemaker.upload_data(str(tmp_path), key_prefix='text')})
    first = local_endpoint(estimator, **text)
    second = local_endpoint(Model(model_data=estimator.model_data, predictor_cls=Predictor, **common), **text)
    assert first.predict(b'you') == '3 words, and you'
    assert second.predict(b'me') == '3 words, and me'
    others = [estimator.deploy(1, 'local', **text) for _ in range(2)]  # as a project's own code may
    assert [other.predict(b'us') for other in others] == ['3 words, and us'] * 2
    for other in others:
        other.delete_endpoint()


def test_a_model_without_a_predictor_goes_with_the_test(image, tmp_path, pytester):
    (tmp_path / 'words').write_text('5')
    model_data = pack(tmp_path / 'model.tar.gz', tmp_path / 'words')
    pytester.makepyfile(
        f"""
        from sagemaker.model import Model

        def test(local_sagemaker, local_endpoint):
            data = local_sagemaker.upload_data({model_data!r}, key_prefix='model')
            assert local_endpoint(Model('{image}', data, '{ROLE}', sagemaker_session=local_sagemaker)) is None
            print('THE SESSION', local_sagemaker.name)
        """
    )
    done = pytester.runpytest_subprocess('-s')
    done.assert_outcomes(passed=1)
    name = re.search('THE SESSION (.*)', done.stdout.str())[1]
    assert not docker(f'ps --all --quiet --filter=label={LABEL}={name}')


def test_its_failure_is_told_in_words(image, local_sagemaker, local_endpoint):
    with pytest.raises(RuntimeError, match='Training job .* failed'):
        Estimator(image, ROLE, 1, 'local', sagemaker_session=local_sagemaker).fit()  # there is no channel
    with pytest.raises(RuntimeError, match='There is no image test-none'):
        local_endpoint(Model('test-none', 's3://none/model.tar.gz', ROLE, sagemaker_session=local_sagemaker))
