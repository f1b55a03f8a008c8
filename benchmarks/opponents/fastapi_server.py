"""FastAPI serves the network with `uvicorn fastapi_server:app --workers 2`."""

import io

import numpy as np
from fastapi import FastAPI, Request, Response
from network import MLP
from pydantic import BaseModel

app = FastAPI()
model = MLP()


class Images(BaseModel):
    images: list[list[float]]


class Scores(BaseModel):
    scores: list[list[float]]


# Without async FastAPI runs it in a thread, as FastAPI advises for slow calls. With async, 16 connections
# would get half the answers per second.
@app.post('/predict')
def predict(body: Images) -> Scores:
    return Scores(scores=model(np.array(body.images, np.float32)).tolist())


@app.post('/npy')
async def predict_npy(request: Request):
    stream = io.BytesIO()
    np.save(stream, model(np.load(io.BytesIO(await request.body()))))
    return Response(stream.getvalue(), media_type='application/x-npy')
