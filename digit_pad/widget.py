"""This is the pad as an anywidget, for notebooks whose page cannot reach a Jupyter server: VS Code, Colab, marimo.

    pad = DigitPad(predictor); pad   # the cell shows the pad; in marimo mo.ui.anywidget(DigitPad(predictor))
    data = pad.data                  # in a later cell

It needs the package anywidget. JupyterLab and Jupyter Notebook can show HTML(open('input.html').read()) without it.
"""

from typing import Any

import anywidget
import numpy as np
import traitlets

from digit_pad.build import BROWSER, build


class DigitPad(anywidget.AnyWidget):
    """The drawing pad of input.html, as a widget.

    data: the drawing, [[784 floats]], rows from the top, 0 = paper, 1 = ink. predictor: an object whose
    predict(float32 array, shape (1, 784)) returns ten scores or probabilities, which the pad shows; an
    exception that it raises is shown on the pad.
    """

    _html = traitlets.Unicode(build()).tag(sync=True)
    _esm = BROWSER / 'widget.js'
    data = traitlets.List(traitlets.List(traitlets.CFloat()), [[0.0] * 784]).tag(sync=True)

    def __init__(self, predictor: Any = None) -> None:
        super().__init__()
        self.predictor = predictor
        self.on_msg(self._take)

    def _take(self, _widget: Any, message: dict[str, Any], _buffers: Any) -> None:
        self.data = message['data']
        answer = {'id': message['id'], 'scores': None, 'error': ''}
        if self.predictor is not None and any(self.data[0]):
            try:
                scores = self.predictor.predict(np.array(self.data, np.float32))
                answer['scores'] = np.asarray(scores, float).ravel().tolist()
            except Exception as e:  # the pad shows any error and keeps the drawing
                answer['error'] = f'The endpoint gave no answer: {e}'
        self.send(answer)
