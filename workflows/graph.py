"""A workflow file as ComfyUI's editor saves it, from a compact description.

Needs a running server's ``/object_info``, which knows every node's inputs, their order and their defaults.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass, field
from typing import Any, NamedTuple

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
COLUMN, GAP, ROW, TITLE = 360, 60, 24, 40
"""Pixels: width of a column, space between nodes, height of a slot or widget, and of a title."""
PANELS = {"SparseAtoms_Mixer": 18}
"""Rows that a node's panel takes beyond its widgets."""
WIDE = {"SparseAtoms_Mixer": 480}
"""Pixels that a node needs to be worked with, where that is more than a column holds."""


class Slot(NamedTuple):
    """One output of a node."""

    node: Node
    index: int


@dataclass
class Node:
    """One node; indexing gives an output."""

    number: int
    kind: str
    schema: dict[str, Any]
    inputs: dict[str, Any]
    title: str = ""
    column: int = 0

    def __getitem__(self, index: int) -> Slot:
        return Slot(self, index)

    def key(self) -> tuple:
        """Equal for two nodes that do the same."""
        values = [(k, (v.node.number, v.index) if isinstance(v, Slot) else v) for k, v in sorted(self.inputs.items())]
        return self.kind, self.title, values

    def specs(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Name, type and options of every input, in the editor's order."""
        found = []
        for part in ("required", "optional"):
            for name, (kind, *options) in self.schema["input"].get(part, {}).items():
                settings = options[0] if options else {}
                if isinstance(kind, list):  # the older way to write a choice
                    kind, settings = "COMBO", {"options": kind, **settings}
                found.append((name, kind, settings))
        return found

    def is_widget(self, kind: str, options: dict[str, Any]) -> bool:
        """Whether the editor draws an input as a widget."""
        return kind in WIDGETS and not options.get("forceInput")

    def width(self) -> int:
        """Of the node, not of its column."""
        return WIDE.get(self.kind, COLUMN - GAP)

    def height(self) -> int:
        """What the editor needs to draw it, about."""
        rows = max(len(self.schema["output"]), 1) + TITLE // ROW
        for _, _, options in self.specs():
            rows += 5 if options.get("multiline") else 1
            rows += bool(options.get("control_after_generate"))
        preview = 10 if self.kind in ("SaveImage", "PreviewImage") else 6 if self.schema.get("output_node") else 0
        return (rows + preview + PANELS.get(self.kind, 0)) * ROW


@dataclass
class Workflow:
    """A workflow under construction. Call it to add a node; what is asked for twice, such as a prompt that several samplers
    read, is one node."""

    name: str
    note: str
    """What to try, in three sentences."""
    schemas: dict[str, Any]
    nodes: list[Node] = field(default_factory=list)

    def __call__(self, kind: str, title: str = "", **inputs: Any) -> Node:
        """Adds a node.

        :param inputs: values of widgets, or outputs of other nodes; what is left out keeps its default.
        :raises ValueError: the server has no such node, or the node no such input.
        """
        if kind not in self.schemas:
            raise ValueError(f"The server has no node {kind}; it is installed with this pack or with ComfyUI itself.")
        node = Node(len(self.nodes) + 1, kind, self.schemas[kind], inputs, title)
        if unknown := set(inputs) - {name for name, _, _ in node.specs()}:
            raise ValueError(f"{kind} has no input {', '.join(sorted(unknown))}.")
        node.column = max((value.node.column + 1 for value in inputs.values() if isinstance(value, Slot)), default=0)
        for known in self.nodes:
            if known.key() == node.key():
                return known
        self.nodes.append(node)
        return node

    def to_editor(self) -> dict[str, Any]:
        """The workflow as the editor saves it."""
        links: list[list[Any]] = []
        outgoing: dict[tuple[int, int], list[int]] = {}
        drawn = []
        for node in self.nodes:
            inputs, values = [], []
            for name, kind, options in node.specs():
                value = node.inputs.get(name)
                widget = node.is_widget(kind, options)
                if isinstance(value, Slot) or not widget:
                    link = None
                    if isinstance(value, Slot):
                        link = len(links) + 1
                        links.append([link, value.node.number, value.index, node.number, len(inputs), kind])
                        outgoing.setdefault((value.node.number, value.index), []).append(link)
                    inputs.append({"name": name, "type": kind, "link": link})
                    if widget:
                        inputs[-1]["widget"] = {"name": name}
                if widget:
                    values.append(_default(kind, options) if value is None or isinstance(value, Slot) else value)
                    if options.get("control_after_generate"):
                        values.append("fixed")
            drawn.append((node, inputs, values))
        places = self._places()
        nodes = [self._note()]
        for node, inputs, values in drawn:
            outputs = [
                {"name": name, "type": kind, "links": outgoing.get((node.number, i), [])}
                for i, (name, kind) in enumerate(zip(node.schema["output_name"], node.schema["output"], strict=True))
            ]
            nodes.append(
                {
                    "id": node.number,
                    "type": node.kind,
                    "pos": places[node.number],
                    "size": [node.width(), node.height()],
                    "flags": {},
                    "order": node.number - 1,
                    "mode": 0,
                    "inputs": inputs,
                    "outputs": outputs,
                    "properties": {"Node name for S&R": node.kind},
                    "widgets_values": values,
                    **({"title": node.title} if node.title else {}),
                }
            )
        return {
            "last_node_id": len(self.nodes) + 1,
            "last_link_id": len(links),
            "nodes": nodes,
            "links": links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }

    def _places(self) -> dict[int, list[int]]:
        """Columns from left to right as the data flows, nodes below each other. What needs little, such as a prompt, stands
        just before the first node that reads it, so that links are short."""
        columns: dict[int, int] = {}
        for node in reversed(self.nodes):
            readers = [n for n in self.nodes if any(isinstance(v, Slot) and v.node is node for v in n.inputs.values())]
            movable = node.column <= 1 and node is not self.nodes[0] and readers
            columns[node.number] = min(columns[n.number] for n in readers) - 1 if movable else node.column
        widths = [max(n.width() for n in self.nodes if columns[n.number] == c) for c in sorted(set(columns.values()))]
        heights: dict[int, int] = {}
        places = {}
        for node in self.nodes:
            column = columns[node.number]
            y = heights.get(column, 0)
            places[node.number] = [sum(widths[:column]) + column * GAP, y]
            heights[column] = y + node.height() + GAP
        return places

    def _note(self) -> dict[str, Any]:
        lines = len(textwrap.wrap(self.note, 60))
        return {
            "id": len(self.nodes) + 1,
            "type": "MarkdownNote",
            "pos": [0, -(lines * ROW + 2 * TITLE + GAP)],
            "size": [2 * COLUMN - GAP, lines * ROW + 2 * TITLE],
            "flags": {},
            "order": len(self.nodes),
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {},
            "widgets_values": [self.note],
            "color": "#432",
            "bgcolor": "#653",
            "title": self.name,
        }


def _default(kind: str, options: dict[str, Any]) -> Any:
    if "default" in options:
        return options["default"]
    if kind == "COMBO":
        return options["options"][0] if options.get("options") else ""
    return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}[kind]


def to_prompt(editor: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """What the server's ``/prompt`` takes, from what the editor saves: the editor's own conversion, for workflows of this
    kind (no subgraphs, no reroutes)."""
    sources = {link[0]: [str(link[1]), link[2]] for link in editor["links"]}
    prompt = {}
    for saved in editor["nodes"]:
        if saved["type"] not in schemas:
            continue
        node = Node(saved["id"], saved["type"], schemas[saved["type"]], {})
        links = {entry["name"]: sources[entry["link"]] for entry in saved["inputs"] if entry["link"] is not None}
        values, inputs = list(saved["widgets_values"]), {}
        for name, kind, options in node.specs():
            if node.is_widget(kind, options):
                inputs[name] = values.pop(0)
                if options.get("control_after_generate"):
                    values.pop(0)
            if name in links:
                inputs[name] = links[name]
        prompt[str(saved["id"])] = {"class_type": saved["type"], "inputs": inputs}
    return prompt


def dump(workflow: Workflow) -> bytes:
    """The file's bytes."""
    return (json.dumps(workflow.to_editor(), indent=1, ensure_ascii=False) + "\n").encode()
