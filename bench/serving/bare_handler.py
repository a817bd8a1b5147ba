"""What somebody writes to serve a model without fednc: one FastAPI handler that calls PyTorch, under uvicorn.

Started by `driver.py` as its own process. It computes in the event loop, which is the fastest way without batches.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

import fastapi
import torch
import uvicorn
from pydantic import BaseModel

from fednc.bench.probe import tell
from fednc.common.model_export import load


class BareRequest(BaseModel):
    """The body of a request: one preprocessed example."""

    shape: list[int]
    data: list[float]


def application(folder: str) -> fastapi.FastAPI:
    """The application for the model in `folder`."""
    model, app = load(folder), fastapi.FastAPI()
    names = model.class_names

    @app.post("/infer")
    async def infer(question: BareRequest) -> dict[str, Any]:
        """The class of one example."""
        inputs = torch.tensor(question.data).reshape(question.shape)
        with torch.inference_mode():
            prob_C = model(inputs).softmax(dim=1)[0]
        best = int(prob_C.argmax())
        return {"label": names[best], "confidence": float(prob_C[best]), "probabilities": prob_C.tolist()}

    return app


def main() -> None:
    """Serve until killed; the port goes to the process that started this one."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application(asked["folder"]), access_log=False, log_level="warning")
    tell(port=listener.getsockname()[1], pid=os.getpid())
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
