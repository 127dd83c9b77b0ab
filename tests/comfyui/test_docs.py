"""What the front end asks a running ComfyUI for: help pages and translations of the registered nodes."""

from __future__ import annotations

import json
import urllib.request
from typing import Any
from urllib.parse import quote

import pytest
from conftest import Server


def get(server: Server, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{server.client.address}{quote(path)}", timeout=30) as answer:
        return answer.read()


@pytest.fixture(scope="module")
def registered(server: Server) -> dict[str, Any]:
    return {name: node for name, node in server.client.object_info().items() if name.startswith("SparseAtoms_")}


def test_every_registered_node_has_a_help_page(server: Server, registered: dict[str, Any]) -> None:
    for name, node in registered.items():
        pack = node["python_module"].rpartition(".")[2]
        page = get(server, f"/extensions/{pack}/docs/{name}.md").decode()
        assert page.startswith(f"# {node['display_name']}\n"), name


@pytest.mark.parametrize("language", ["de", "fr"])
def test_every_registered_input_and_output_is_translated(
    server: Server, registered: dict[str, Any], language: str
) -> None:
    texts = json.loads(get(server, "/i18n"))[language]["nodeDefs"]
    for name, node in registered.items():
        inputs = {key for kind in ("required", "optional") for key in node["input"].get(kind, {})}
        assert texts[name].get("inputs", {}).keys() == inputs, name
        assert texts[name]["outputs"].keys() == set(map(str, range(len(node["output"])))), name
