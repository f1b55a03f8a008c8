"""AWS's stack, multi-model-server with sagemaker-inference, serves the script's model."""

import os

import chainer
from sagemaker_inference.default_handler_service import DefaultHandlerService
from sagemaker_inference.default_inference_handler import DefaultInferenceHandler
from sagemaker_inference.model_server import start_model_server
from sagemaker_inference.transformer import Transformer

import chainer_mnist_single_machine as script


class HandlerService(DefaultHandlerService):  # MMS takes a module with one class only
    def __init__(self):
        class Handler(DefaultInferenceHandler):
            def default_model_fn(self, model_dir, context=None):
                return script.model_fn(os.environ['SM_MODEL_DIR'])

            def default_predict_fn(self, data, model, context=None):
                with chainer.using_config('train', False), chainer.no_backprop_mode():
                    return model(data).array

        super().__init__(transformer=Transformer(default_inference_handler=Handler()))


if __name__ == '__main__':
    start_model_server('mms_handler')
