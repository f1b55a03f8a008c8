"""In place of what sagemaker-training compiles, for MPI, which processes do without: it imports the name."""
