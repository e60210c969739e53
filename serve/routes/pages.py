"""The page at `/`, for a person with a browser."""

from __future__ import annotations

from html import escape

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse

from orchestrator.serve.cards import ModelCard
from orchestrator.serve.routes.shared import Desk


class PageRoutes:
    """Says which models there are and how to ask them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def add_to(self, app: FastAPI) -> None:
        """Connects paths and handlers."""
        app.get("/", include_in_schema=False, response_class=HTMLResponse)(self.index)

    async def index(self, request: Request) -> HTMLResponse:
        """The models, and a line that asks one."""
        cards = [list(versions.values())[-1] for versions in self._desk.backend.cards.values()]
        return HTMLResponse(_index_page(cards, str(request.base_url)))


def _index_page(cards: list[ModelCard], base: str) -> str:
    rows = "".join(
        f"<tr><td>{escape(card.name)}</td><td>{' × '.join(map(str, card.shape))}</td>"
        f"<td>{len(card.label_names)}</td><td>{card.members}</td></tr>"
        for card in cards
    )
    url = escape(f"{base}predict/{cards[0].name if cards else 'NAME'}")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>orch</title>"
        "<style>body{font:16px/1.5 system-ui;max-width:48rem;margin:3rem auto;padding:0 1rem}"
        "td,th{padding:.2rem 1.5rem .2rem 0;text-align:left}"
        "pre{background:#f4f4f4;padding:.7rem;overflow:auto}</style>"
        "<h1>Models</h1><table><tr><th>name<th>channels × height × width<th>labels<th>networks"
        f"{rows}</table><p>Send a PNG or JPEG file:<pre>curl --data-binary @image.png {url}</pre>"
        "<p>Clients of the Open Inference Protocol V2 find the models under <code>/v2</code>. "
        "<a href=/docs>Every route</a>, <a href=/metrics>metrics</a>.</html>"
    )
