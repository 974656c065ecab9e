"""A client of the Hugging Face Hub that gives the rest of the program local paths.

Only this package imports huggingface_hub, and only when a function needs the hub, so importing the
package is cheap. It knows repositories and files, not their contents.

    with hub.session(progress):
        pinned = hub.resolve(hub.parse("org/name@v1"))
        directory = hub.download(pinned, ["config.json", "*.safetensors"])

The stub `__init__.pyi` lists the names and their homes.
"""

from fusion_core._exports import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
