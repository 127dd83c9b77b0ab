"""A client of a running ComfyUI, as a program that shares workflows would write it."""

from __future__ import annotations

import asyncio
import io
import json
import uuid
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
import safetensors.torch
import torch
from PIL import Image


@dataclass
class Result:
    """What one queued prompt gave."""

    prompt: str = ""
    """The server's name for it."""
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Node id to its UI outputs."""
    executed: list[str] = field(default_factory=list)
    """Node ids that ran, in order."""
    cached: list[str] = field(default_factory=list)
    progress: list[tuple[str, int, int]] = field(default_factory=list)
    """(node id, value, maximum)."""
    error: str = ""


class Graph:
    """An API-format prompt under construction."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}

    def add(self, kind: str, **inputs: Any) -> Node:
        """Adds a node; inputs may be outputs of other nodes."""
        identifier = str(len(self.nodes) + 1)
        self.nodes[identifier] = {"class_type": kind, "inputs": inputs}
        return Node(identifier)


class Node(str):
    """A node's id; indexing gives one of its outputs."""

    def __getitem__(self, output: int) -> list:  # type: ignore[override]
        return [str(self), output]


class Client:
    """Talks to one server."""

    def __init__(self, address: str) -> None:
        self.address = address

    def run(self, prompt: Graph | dict[str, Any], *, cancel_at: int | None = None, timeout: float = 240) -> Result:
        """Queues a prompt and waits for its end on the websocket.

        :param cancel_at: interrupts once any node reports this progress value.
        """
        nodes = prompt.nodes if isinstance(prompt, Graph) else prompt
        return asyncio.run(asyncio.wait_for(self._run(nodes, cancel_at), timeout))

    async def _run(self, nodes: dict[str, Any], cancel_at: int | None) -> Result:
        name, result = uuid.uuid4().hex, Result()
        async with (
            aiohttp.ClientSession(f"http://{self.address}") as http,
            http.ws_connect(f"/ws?clientId={name}", max_msg_size=0) as socket,
        ):
            async with http.post("/prompt", json={"prompt": nodes, "client_id": name}) as answer:
                body = await answer.json()
                if answer.status != 200:
                    result.error = json.dumps(body)
                    return result
            result.prompt = body["prompt_id"]
            async for message in socket:
                if message.type != aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                data = event["data"]
                if data.get("prompt_id") != body["prompt_id"]:
                    continue
                match event["type"]:
                    case "executing" if data["node"] is None:
                        return result
                    case "executing":
                        result.executed.append(data["node"])
                    case "execution_cached":
                        result.cached += data["nodes"]
                    case "executed":
                        result.outputs[data["node"]] = data["output"]
                    case "progress":
                        result.progress.append((data["node"], data["value"], data["max"]))
                        if cancel_at is not None and data["value"] >= cancel_at:
                            cancel_at = None
                            await http.post("/interrupt")
                    case "execution_error":
                        result.error = f"{data['exception_type']}: {data['exception_message']}"
                        return result
                    case "execution_interrupted":
                        result.error = "interrupted"
                        return result
        return result

    def get(self, path: str, **query: str) -> bytes:
        """One GET request's body."""

        async def fetch() -> bytes:
            async with aiohttp.ClientSession(f"http://{self.address}") as http, http.get(path, params=query) as answer:
                answer.raise_for_status()
                return await answer.read()

        return asyncio.run(fetch())

    def answers(self) -> bool:
        """Whether the server is up."""
        try:
            self.get("/system_stats")
        except aiohttp.ClientError:
            return False
        return True

    def history(self, prompt: str) -> dict[str, Any]:
        """What the server remembers of a prompt that has run."""
        return json.loads(self.get(f"/history/{prompt}"))[prompt]

    def object_info(self) -> dict[str, Any]:
        """Every node's schema."""
        return json.loads(self.get("/object_info"))

    def pictures(self, result: Result, node: str) -> list[np.ndarray]:
        """What a Save or Preview Image node showed: (height, width, 3) uint8 each."""
        return [
            np.asarray(Image.open(io.BytesIO(self.get("/view", **image))).convert("RGB"))
            for image in result.outputs[str(node)]["images"]
        ]

    def latents(self, result: Result, node: str) -> torch.Tensor:
        """What a Save Latent node saved."""
        (file,) = result.outputs[str(node)]["latents"]
        return safetensors.torch.load(self.get("/view", **file))["latent_tensor"]
