"""Graphs in API format, as small as a test needs them."""

from __future__ import annotations

from typing import Any

Graph = dict[str, dict[str, Any]]
PROMPT = "A cute cat on a windowsill"


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One node."""
    return {"class_type": class_type, "inputs": inputs}


def text_to_image(
    model: str,
    *,
    prompt: str = PROMPT,
    negative: str | None = None,
    width: int = 128,
    height: int = 128,
    count: int = 1,
    seed: int = 7,
    steps: int = 0,
    guidance: float = -1.0,
    output_format: str = "png",
    offload: str = "auto",
    **result: Any,
) -> Graph:
    """A prompt to an image; the node ``result`` saves it."""
    graph = {
        "load": node("NeuroLuxLoadModel", model=model, precision="auto", offload=offload),
        "positive": node("NeuroLuxEncodePrompt", pipeline=["load", 0], text=prompt),
        "latent": node("EmptyLatentImage", width=width, height=height, batch_size=count),
        "sample": node(
            "NeuroLuxSample", pipeline=["load", 0], positive=["positive", 0], latent=["latent", 0],
            seed=seed, steps=steps, guidance=guidance,
        ),
        "decode": node("NeuroLuxDecode", pipeline=["load", 0], latent=["sample", 0]),
        "result": node(
            "NeuroLuxResult", images=["decode", 0], name="images", output_format=output_format,
            **{"quality": 90, "filename_prefix": "test/pack", **result},
        ),
    }  # fmt: skip
    if negative is not None:
        graph["negative"] = node("NeuroLuxEncodePrompt", pipeline=["load", 0], text=negative)
        graph["sample"]["inputs"]["negative"] = ["negative", 0]
    return graph
