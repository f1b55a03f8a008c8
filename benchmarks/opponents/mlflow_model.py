"""MLflow's pyfunc server serves the model that `python mlflow_model.py` saves in mlflow_model/."""

import mlflow
import numpy as np
from mlflow.types import Schema, TensorSpec
from network import MLP


class Network(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.model = MLP(context.artifacts['weights'])

    def predict(self, context, model_input, params=None):
        return self.model(model_input)


if __name__ == '__main__':
    images, scores = [Schema([TensorSpec(np.dtype(np.float32), (-1, n))]) for n in (784, 10)]
    mlflow.pyfunc.save_model(
        'mlflow_model',
        python_model=__file__,
        artifacts={'weights': 'model.npz'},
        signature=mlflow.models.ModelSignature(images, scores),
        pip_requirements=[],
    )
else:
    mlflow.models.set_model(Network())
