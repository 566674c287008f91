"""`/docs`: the routes as one page that loads nothing, from the OpenAPI document.

The usual documentation pages run scripts from elsewhere, in the origin of a server that releases keys.
"""

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Final

from starlette.responses import HTMLResponse

_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:48rem;margin:2rem auto;padding:0 1rem}"
    "code{font-family:ui-monospace,monospace}h2{margin:2rem 0 0;font-size:1.1rem}"
    "pre{overflow-x:auto;background:#f4f4f4;padding:.5rem}"
    "table{border-collapse:collapse}td{padding:.1rem 1rem .1rem 0;vertical-align:top}"
)


def docs_page(schema: Mapping[str, Any]) -> HTMLResponse:
    """Make the page for an OpenAPI document."""
    info = schema["info"]
    title = escape(f"{info['title']} {info['version']}")
    routes = "".join(
        _route(method, path, operation)
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    )
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1><p>{escape(info['description'])}</p>"
        '<p>Every field and type: <a href="/openapi.json">/openapi.json</a> (OpenAPI).</p>'
        f"{routes}</body></html>"
    )
    return HTMLResponse(page, headers=_HEADERS)


def _route(method: str, path: str, operation: Mapping[str, Any]) -> str:
    described = operation.get("description")
    parameters = (
        (each["name"], each["description"] + ("" if each["required"] else " (optional)"))
        for each in operation.get("parameters", ())
    )
    answers = ((status, answer["description"]) for status, answer in operation["responses"].items())
    asked = [operation["requestBody"]] if "requestBody" in operation else []
    given = [answer for status, answer in operation["responses"].items() if status < "300"]
    return (
        f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"
        + (f"<p>{escape(described)}</p>" if described else "")
        + _table(parameters)
        + "".join(map(_example, asked))
        + _table(answers)
        + "".join(map(_example, given))
    )


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = (f"<tr><td><code>{escape(name)}</code></td><td>{escape(text)}</td></tr>" for name, text in rows)
    return f"<table>{''.join(cells)}</table>"


def _example(body: Mapping[str, Any]) -> str:
    example = body.get("content", {}).get("application/json", {}).get("example")
    if example is None:
        return ""
    return f"<pre>{escape(json.dumps(example, indent=2, ensure_ascii=False))}</pre>"
