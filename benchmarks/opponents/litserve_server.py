"""LitServe serves the network with `python litserve_server.py PORT`."""

import sys

import litserve
import numpy as np
from network import MLP


class API(litserve.LitAPI):
    def setup(self, device):
        self.model = MLP()

    def decode_request(self, request):
        return np.array(request['images'], np.float32)

    def predict(self, x):  # x: the stacked arrays of a batch's requests
        return self.model(x)

    def encode_response(self, output):
        return {'scores': output.tolist()}


if __name__ == '__main__':
    # A longer batch_timeout delays a single connection; LitServe advises fast_queue from 100 requests/s on.
    server = litserve.LitServer(
        API(max_batch_size=64, batch_timeout=0.001), accelerator='cpu', workers_per_device=2, fast_queue=True
    )
    server.run('127.0.0.1', int(sys.argv[1]), log_level='warning', generate_client_file=False)
