"""This package runs in the image: training.py runs training jobs, serving.py the endpoint."""
