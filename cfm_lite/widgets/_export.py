"""A notebook's explorers as plain HTML: alive in an export and on a site, without a kernel and
without a notebook's machinery.
"""

import copy
import html
import json
from typing import Any

__all__ = ["alive"]

_VIEW = "application/vnd.jupyter.widget-view+json"
_STATE = "application/vnd.jupyter.widget-state+json"
_PREFIX = "IPY_MODEL_"


def alive(notebook: Any, shared: bool = True) -> Any:
    """A copy of `notebook` (nbformat 4) whose explorers are HTML that a browser runs by itself.

    It needs the widget state that is saved with the notebook. The engine stands in the first
    explorer's output, the networks in that of the first one that asks them; without `shared` the
    page brings both. Outputs of other widgets, and of explorers whose state was not saved, stay as
    they are.
    """
    copied = copy.deepcopy(notebook)
    states = copied["metadata"].get("widgets", {}).get(_STATE, {}).get("state", {})
    models = {name: entry["state"] for name, entry in states.items()}
    # what of the shared text stands in the page already
    shown = [] if shared else ["engine", "networks"]
    count = 0
    for cell in copied["cells"]:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            model = models.get(data.get(_VIEW, {}).get("model_id", ""), {})
            if "_face" in model:
                count += 1
                data["text/html"] = _page(model, models, shown, data.get("image/png", ""), count)
                del data[_VIEW]
    if _VIEW not in json.dumps(copied["cells"]):
        copied["metadata"].pop("widgets", None)  # else the export would hold all of it once more
    return copied


def _page(
    model: dict[str, Any], models: dict[str, Any], shown: list[str], png: str, count: int
) -> str:
    """One explorer: its place with a picture for a page without scripts, what is shared and not yet
    there, and the call that shows it.
    """
    parts = []
    engine, networks = (_shared(model.get(name), models) for name in ("_engine", "_networks"))
    if "engine" not in shown:
        parts.append(engine)
    if networks and "networks" not in shown:
        parts.append(f"globalThis.cfmLiteNetworks = {_script(json.loads(networks))};")
        shown.append("networks")
    shown.append("engine")
    values = {name: value for name, value in model.items() if not name.startswith("_")}
    place = f"cfm-lite-{count}"
    call = (
        f"cfmLite.mount(document.getElementById({_script(place)}), {_script(model['_face'])}, "
        f"{{data: {{...{_script(model['_data'])}, networks: globalThis.cfmLiteNetworks}}, "
        f"values: {_script(values)}}});"
    )
    picture = f'<img alt="{html.escape(model["_face"])}" src="data:image/png;base64,{png}">'
    scripts = "".join(f"<script>{part}</script>" for part in (*parts, call))
    return f'<div id="{place}">{picture if png else ""}</div>{scripts}'


def _shared(reference: Any, models: dict[str, Any]) -> str:
    return models[reference.removeprefix(_PREFIX)]["content"] if reference else ""


def _script(value: Any) -> str:
    """`value` as JavaScript that cannot end the script it stands in."""
    return json.dumps(value).replace("<", "\\u003c")
