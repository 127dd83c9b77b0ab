"""The Atom Mixer without its panel, and what its panel asks the server for."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import prompts
import pytest
import torch
from client import Graph
from conftest import Server
from factories import random_dictionary
from PIL import Image
from world import demo_layers

from sparse_core.files import load_dictionary, save_dictionary
from sparse_core.training.metadata import data_uri

NAME = "strips/mixed.safetensors"


@pytest.fixture(scope="module")
def file(server: Server) -> str:
    """A dictionary with a picture, in a folder of its own."""
    metadata = {"modelspec.title": "mixed", "modelspec.thumbnail": data_uri(Image.new("RGB", (8, 8), "red"))}
    save_dictionary(replace(random_dictionary(demo_layers(), seed=2), metadata=metadata), server.place(NAME))
    return NAME


def ask(server: Server, path: str) -> tuple[int, Any, str]:
    """Status, body and type of an answer."""
    try:
        with urllib.request.urlopen(f"http://{server.client.address}/sparse_atoms/{path}", timeout=60) as answer:
            return answer.status, answer.read(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers["Content-Type"]


def drawn(server: Server, kind: str, file: str, **lines: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """What a picture looks like with the lines in a node of that kind, and what that node said."""
    graph = Graph()
    demo = prompts.demo(graph)
    node = graph.add(kind, dictionary=graph.add("SparseAtoms_Load", name=file)[0], **lines)
    model = graph.add("SparseAtoms_Apply", model=demo[0], dictionary=node[0], strength=1.0)
    kept = prompts.keep(graph, prompts.sample(graph, model[0], demo))
    result = server.client.run(graph)
    assert not result.error
    return server.client.latents(result, kept), result.outputs.get(node, {})


def test_the_text_alone_mixes_and_the_node_says_what_came_in(server: Server, file: str) -> None:
    lines = "L1.v[0] = 2\nmute L0.q[1]\nsolo top:50%\n"
    made_on = load_dictionary(server.place(file)).atoms_hash
    mixed, said = drawn(server, "SparseAtoms_Mixer", file, mix=f"# dictionary {made_on}\n{lines}")
    expected, _ = drawn(server, "SparseAtoms_Weights", file, lines=lines)
    assert torch.equal(mixed, expected)
    (data,) = said["sparse_atoms"]
    assert data["hash"] == made_on and {weight for _, _, _, weight, *_ in data["atoms"]} == {1.0}


def test_lines_of_another_dictionary_and_bad_lines_do_not_run(server: Server, file: str) -> None:
    for mix, problem in (
        (f"# dictionary {'0' * 16}\nL1.v[0] = 2", "Press Adopt in the Atom Mixer"),
        ("L1.v[red] = 2", "expected an atom number"),
    ):
        graph = Graph()
        loaded = graph.add("SparseAtoms_Load", name=file)
        mixed = graph.add("SparseAtoms_Mixer", dictionary=loaded[0], mix=mix)
        graph.add("SparseAtoms_Info", dictionary=mixed[0], top=3)
        assert problem in server.client.run(graph).error


def test_the_server_tells_the_atoms_of_a_listed_file(server: Server, file: str) -> None:
    status, body, kind = ask(server, f"atoms?name={quote(file)}")
    dictionary = load_dictionary(server.place(file))
    assert (status, kind) == (200, "application/json; charset=utf-8")
    data = json.loads(body)
    assert (data["hash"], data["title"], len(data["atoms"])) == (dictionary.atoms_hash, "mixed", len(dictionary))


def test_the_server_lists_dictionaries_with_their_pictures(server: Server, file: str) -> None:
    cards = {card["name"]: card for card in json.loads(ask(server, "dictionaries")[1])}
    assert (cards[file]["title"], cards[file]["thumbnail"]) == ("mixed", True)
    assert cards["robot.safetensors"]["thumbnail"] is False
    status, body, kind = ask(server, f"thumbnail?name={quote(file)}")
    assert (status, kind) == (200, "image/jpeg") and Image.open(io.BytesIO(body)).size == (8, 8)
    assert ask(server, "thumbnail?name=robot.safetensors")[0] == 404


@pytest.mark.parametrize(
    "name",
    [
        "",
        "nothing.safetensors",
        "../../../../etc/passwd",
        "/etc/passwd",
        "..%2Fserver.log",
        "strips",
        "strips/../" + NAME,
    ],
)
def test_the_server_reads_no_file_but_those_it_lists(server: Server, file: str, name: str) -> None:
    for route in ("atoms", "thumbnail"):
        status, body, _ = ask(server, f"{route}?name={quote(name, safe='%')}")
        assert status == 404 and "There is no dictionary" in json.loads(body)["error"]


def test_a_listed_file_that_is_no_dictionary_is_an_error_in_words(server: Server) -> None:
    server.place("broken.safetensors").write_bytes(b"nonsense")
    status, body, _ = ask(server, "atoms?name=broken.safetensors")
    assert status == 422 and "broken.safetensors" in json.loads(body)["error"]
    assert any(card["name"] == "broken.safetensors" for card in json.loads(ask(server, "dictionaries")[1]))
