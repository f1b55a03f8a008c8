"""The image's code: training.py is what trains, serving.py what serves."""
