"""This stub replaces a module that sagemaker-training compiles for MPI and always imports; processes need no MPI."""
