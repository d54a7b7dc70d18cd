"""The part of the wire format that says what a file is and where it lies: results, and what requests bring.

`bridge.contract.messages` gives these names too; programs import them from there.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bridge.contract.formats import extension_of, media_type_of


class WireModel(BaseModel):
    """Base of what we send: built by us, so unknown fields are a mistake of ours.

    A field that may be null has null as its default, where events carry it: they leave nulls out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageObject(WireModel):
    """Where an image, or another file, lies in the NATS object store.

    `digest` is the store's own: `SHA-256=` + base64url. `media_type` follows from the extension of `name`.
    """

    bucket: str
    name: str
    size: int
    digest: str
    media_type: str = ""
    result: str = Field(default="", description="The name of the graph's result that it belongs to.")

    @model_validator(mode="before")
    @classmethod
    def _name_media_type(cls, values: Any) -> Any:
        # Those that were stored before there was this field are named by their format as well.
        if isinstance(values, dict) and not values.get("media_type") and isinstance(values.get("name"), str):
            return {**values, "media_type": media_type_of(values["name"])}
        return values


class ResultFile(WireModel):
    """What one of the files of an answer is."""

    result: str = Field(description="The name of the graph's result that it belongs to.")
    media_type: str
    extension: str = Field(description="Of a name to save it under, such as png or mp4.")
    size: int = Field(description="In bytes.")

    @classmethod
    def of(cls, image: ImageObject) -> ResultFile:
        """What is told of a stored file."""
        return cls(
            result=image.result, media_type=image.media_type, extension=extension_of(image.name), size=image.size
        )
