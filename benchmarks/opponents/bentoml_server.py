"""BentoML serves the network with `bentoml serve bentoml_server:Network`."""

from typing import Annotated

import bentoml
import numpy as np
from network import MLP

Array = Annotated[np.ndarray, bentoml.validators.DType('float32')]


@bentoml.service(workers=2)
class Network:
    def __init__(self):
        self.model = MLP()

    @bentoml.api(batchable=True, max_batch_size=1000)  # also limits a single request
    def predict(self, images: Array) -> Array:
        return self.model(images)
