"""A release behind one route of Ray Serve: run by the interpreter of the serving peers' environment.

    python ray_route.py RELEASE

RELEASE is a release's folder with `policy.json` and `policy.onnx`. Answers `POST /v1/act` of one decision with what the
policy server answers, and checks, counts, remembers and logs nothing. Prints its port and the version of Ray; ends with
its input.
"""

import json
import os
import random
import socket
import sys
import tempfile
import uuid
from pathlib import Path

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}  # no calls home, nothing in ~

import numpy as np
import onnxruntime
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse


@serve.deployment(max_ongoing_requests=100)
class Decider:
    """The session, and a draw from its probabilities."""

    def __init__(self, content: bytes, graph: dict):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.actions, self.features = graph["actions"], [each for each in graph["inputs"] if each["feature"]]
        self.permitted = np.ones((1, len(self.actions)), dtype=bool)

    async def __call__(self, request: Request) -> JSONResponse:
        observation = (await request.json())["observation"]
        feeds = {"available_actions": self.permitted}
        for each in self.features:
            kind = object if each["type"] == "string" else np.float64
            feeds[each["name"]] = np.array([observation[each["feature"]]], dtype=kind)
        probs = self.session.run(["probabilities"], feeds)[0][0].tolist()
        action = random.choices(range(len(probs)), probs)[0]
        answer = {
            "decision_id": uuid.uuid4().hex,
            "action": self.actions[action],
            "probability": probs[action],
            "probabilities": dict(zip(self.actions, probs, strict=True)),
        }
        return JSONResponse(answer)


if __name__ == "__main__":
    release = Path(sys.argv[1])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"enable_access_log": False})
        graph = json.loads((release / "policy.json").read_text())["graph"]
        serve.run(Decider.bind((release / "policy.onnx").read_bytes(), graph), route_prefix="/v1/act")
        print(port, ray.__version__, flush=True)
        sys.stdin.read()
        serve.shutdown()
        ray.shutdown()
