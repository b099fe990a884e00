"""A FastAPI route that returns a constant, served by uvicorn as the policy server is: what HTTP alone costs."""

import socket

import uvicorn
from fastapi import FastAPI

ANSWER = {
    "decision_id": "0" * 32,
    "action": "hold",
    "action_value": None,
    "probability": 0.5,
    "probabilities": {"scale_down": 0.25, "hold": 0.5, "scale_up": 0.25},
    "decided_by": "policy",
    "release": 1,
    "forbidden": {},
}
app = FastAPI()


@app.post("/v1/act")
async def act() -> dict[str, object]:
    """The constant."""
    return ANSWER


if __name__ == "__main__":
    listening = socket.socket(proto=socket.IPPROTO_TCP)  # else asyncio leaves Nagle's algorithm on
    listening.bind(("127.0.0.1", 0))
    listening.listen(1024)
    print(listening.getsockname()[1], flush=True)
    config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])
