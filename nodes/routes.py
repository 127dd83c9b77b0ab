"""What the front end asks the server for. Read-only, and only of files that the Load node lists."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from aiohttp import web

from ..sparse_core.cards import picture, read_card
from ..sparse_core.controls import SparseAdapter
from ..sparse_core.files import load_dictionary
from ..sparse_core.mixer import panel_data
from . import folders

PREFIX = "/sparse_atoms"
SAFE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}


def register() -> None:
    """Adds the routes to ComfyUI's server."""
    # Not at the top: the nodes are imported without a server too.
    from server import PromptServer

    routes = PromptServer.instance.routes
    routes.get(f"{PREFIX}/dictionaries")(dictionaries)
    routes.get(f"{PREFIX}/thumbnail")(_of_a_file(_thumbnail))
    routes.get(f"{PREFIX}/atoms")(_of_a_file(_atoms))


async def dictionaries(request: web.Request) -> web.Response:
    """Every dictionary with what a list shows of it."""
    return web.json_response(await asyncio.to_thread(_cards), headers=SAFE)


def _of_a_file(answer: Callable[[Path], web.Response]) -> Callable[[web.Request], Any]:
    """A handler that gives ``answer`` the file that the request names. Files are read beside the server's own loop."""

    async def handler(request: web.Request) -> web.Response:
        return await asyncio.to_thread(respond, request.query.get("name", ""))

    def respond(name: str) -> web.Response:
        if not folders.is_listed(name):
            return _refusal(404, f"There is no dictionary {name!r}. Refresh the node list (R) and pick another.")
        try:
            return answer(folders.resolve(name))
        except (ValueError, OSError) as error:
            return _refusal(422, str(error))

    return handler


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status, headers=SAFE)


def _cards() -> list[dict[str, Any]]:
    cards = {}
    for name in folders.names():
        with suppress(OSError):  # removed since it was listed
            cards[name] = read_card(folders.resolve(name))
    return [
        {
            "name": name,
            "title": card.title,
            "trigger": card.trigger,
            "description": card.description,
            "thumbnail": bool(card.thumbnail),
        }
        for name, card in cards.items()
    ]


def _thumbnail(path: Path) -> web.Response:
    found = picture(read_card(path))
    if found is None:
        return _refusal(404, f"{path.name} has no picture.")
    kind, data = found
    return web.Response(body=data, content_type=kind, headers=SAFE)


def _atoms(path: Path) -> web.Response:
    stat = path.stat()
    return web.json_response(_panel_data(path, stat.st_mtime_ns, stat.st_size), headers=SAFE)


@lru_cache(maxsize=4)
def _panel_data(path: Path, changed: int, size: int) -> dict[str, Any]:
    """Kept for as long as the file stays the same: several mixers ask for it."""
    return panel_data(SparseAdapter(load_dictionary(path)))
