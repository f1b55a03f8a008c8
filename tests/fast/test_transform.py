"""Batch transform divides files into records, filters and joins them, as SageMaker's developer guide says."""

import json

import pytest
from local_mode.transform import Message, associate, batches, divide

CSV, JSON, LINES = 'text/csv', 'application/json', 'application/jsonlines'
ROWS = b'id1,1,2\nid2,3,4\n'
OBJECTS = b'{"id": 1, "features": [1, 2]}\n{"id": 2, "features": [3, 4]}\n'


def transformed(body, kind, answer, split=True, **processing):
    """Return what the model was asked, and what is written."""
    asked = []

    def ask(body):
        asked.append(body)
        return Message(answer, kind, split)

    return asked, associate(Message(body, kind, split), ask, processing, b'\n')


@pytest.mark.parametrize(
    'processing, asked, written',
    [
        ({}, ROWS, b'.5\n.7\n\n'),  # as the model answers, and what AssembleWith adds
        ({'InputFilter': '$'}, ROWS, b'.5\n.7\n\n'),
        ({'InputFilter': '$[1:]'}, b'1,2\n3,4\n', b'.5\n.7\n\n'),
        ({'InputFilter': '$[1:]', 'JoinSource': 'Input'}, b'1,2\n3,4\n', b'id1,1,2,.5\nid2,3,4,.7\n'),
        ({'JoinSource': 'Input', 'OutputFilter': '$[0,-1]'}, ROWS, b'id1,.5\nid2,.7\n'),
        ({'JoinSource': 'Input', 'OutputFilter': '$[0,2:]'}, ROWS, b'id1,2,.5\nid2,4,.7\n'),
    ],
)
def test_rows_of_csv(processing, asked, written):
    assert transformed(ROWS, CSV, b'.5\n.7\n', **processing) == ([asked], written)


@pytest.mark.parametrize('kind', [LINES, JSON])
def test_lines_of_json(kind):
    processing = {'InputFilter': '$.features', 'JoinSource': 'Input', 'OutputFilter': "$['id','SageMakerOutput']"}
    asked, written = transformed(OBJECTS, kind, b'{"p": 0.5}\n{"p": 0.7}\n', **processing)
    assert asked == [b'[1, 2]\n[3, 4]\n']
    assert [json.loads(line) for line in written.splitlines()] == [
        {'id': 1, 'SageMakerOutput': {'p': 0.5}},
        {'id': 2, 'SageMakerOutput': {'p': 0.7}},
    ]


@pytest.mark.parametrize('answer', [0.5, [0.5], {'p': 0.5}])
def test_a_file_of_json_that_is_no_object(answer):
    _, written = transformed(b'[1, 2]', JSON, json.dumps(answer).encode(), split=False, JoinSource='Input')
    assert json.loads(written) == {'SageMakerInput': [1, 2], 'SageMakerOutput': answer}


def test_a_path_to_several_values_of_one_name_gives_a_list():
    body = b'{"items": [{"name": 1}, {"name": 2}]}\n'
    asked, _ = transformed(body, LINES, b'1\n', InputFilter='$.items[*].name')
    assert asked == [b'[1, 2]\n']


@pytest.mark.parametrize(
    'body, kind, answer, processing, why',
    [
        (ROWS, CSV, b'.5\n', {'JoinSource': 'Input'}, '1 results cannot be joined with 2 records'),
        (ROWS, CSV, b'.5\n', {'InputFilter': '$[9]'}, r'\$\[9\] selects nothing of \["id1", "1", "2"\]'),
        (ROWS, 'image/png', b'.5\n', {'InputFilter': '$[0]'}, 'in CSV, JSON and JSON lines only'),
        ('caf\xe9,1\n'.encode('latin-1'), CSV, b'.5\n', {'InputFilter': '$[1:]'}, 'utf-8'),
    ],
)
def test_what_cannot_be_joined_is_said(body, kind, answer, processing, why):
    with pytest.raises(ValueError, match=why):
        transformed(body, kind, answer, **processing)


@pytest.mark.parametrize(
    'split, together, limit, expected',
    [
        ('None', True, 0, [[b'a\nbc\nd']]),
        ('Line', False, 0, [[b'a\n'], [b'bc\n'], [b'd']]),
        ('Line', True, 0, [[b'a\n', b'bc\n', b'd']]),
        ('Line', True, 5, [[b'a\n', b'bc\n'], [b'd']]),
        ('Line', True, 3, [[b'a\n'], [b'bc\n'], [b'd']]),
    ],
)
def test_records_go_together_up_to_the_limit(split, together, limit, expected):
    assert list(batches(divide(b'a\nbc\nd', split), together, limit)) == expected


def test_a_record_over_the_limit_is_an_error():
    with pytest.raises(ValueError, match='A record has 3 bytes, more than max_payload'):
        list(batches([b'a\n', b'bc\n'], True, 2))
