"""The Hugging Face hub is asked once whether it gives a model, before others ask for its files.

transformers, diffusers and timm ask for each possible file, five times, waiting longer each time.
So a wrong name, or a machine without a network, would be an error only after two minutes.
"""

from cfm_lite._internal.lazy import optional

__all__ = ["kept", "refusal"]


def refusal(name: str, extra: str, part: str | None = None) -> str:
    """Why the hub does not give the model `name`, in a line; "" if it does.

    `part` is a folder in it. Raises ConfigError without the packages of `extra`.
    """
    hub = optional("huggingface_hub", extra)
    try:
        found = hub.get_hf_file_metadata(hub.hf_hub_url(name, "config.json", subfolder=part))
    except Exception as error:  # no network, no such name, no access: each raises another type
        return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    # a network that asks for a login answers everything with a page
    return "" if found.commit_hash else "the server that answers is not the hub"


def kept(name: str, file: str, extra: str) -> str | None:
    """The path of a `file` of the model `name` in the hub's cache on this machine, if it is there.

    >>> kept("me/none", "model.safetensors", "text")
    """
    found = optional("huggingface_hub", extra).try_to_load_from_cache(name, file)
    return found if isinstance(found, str) else None  # it also says "the hub has none", no text
