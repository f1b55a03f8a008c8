"""The script parses hyperparameters, and refuses misspelt and out-of-range ones."""

import pytest

import chainer_mnist_single_machine as script


@pytest.mark.parametrize('spelling', ['--batch-size', '--batch_size'])
def test_both_spellings_of_batch_size_count(spelling):
    assert script.parse_args([spelling, '500']).batch_size == 500


@pytest.mark.parametrize('value', ['0', '0.5', '1'])
def test_augment_is_a_share(value):
    assert script.parse_args(['--augment', value]).augment == float(value)


@pytest.mark.parametrize('value', ['True', '1.1', '-0.1', 'nan'])
def test_augment_is_not_anything_else(value, capsys):
    with pytest.raises(SystemExit):
        script.parse_args([f'--augment={value}'])
    assert f"invalid fraction (from 0 to 1) value: '{value}'" in capsys.readouterr().err


@pytest.mark.parametrize('argument', ['--batchsize', '--epoch', '-e', '--unknown'])
def test_an_unknown_hyperparameter_is_refused(argument, capsys):
    with pytest.raises(SystemExit):
        script.parse_args([argument, '3'])
    assert 'unknown hyperparameter ' + argument in capsys.readouterr().err


def test_hyperparameters_of_sagemaker_itself_are_not_refused():
    args = script.parse_args(['--sagemaker_use_mpi', 'true', '--epochs', '3'])
    assert args.epochs == 3


@pytest.mark.parametrize('argument', ['--epochs', '--batch-size', '--learning-rate'])
@pytest.mark.parametrize('value', ['0', '-1', 'many', 'nan'])
def test_a_hyperparameter_out_of_range_is_refused(argument, value, capsys):
    with pytest.raises(SystemExit):
        script.parse_args([argument + '=' + value])
    assert 'positive' in capsys.readouterr().err
