"""Parameter nodes: what a caller of the saved graph can set. In the editor they output their own value.

App Mode says the same of any widget. These are for limits and lists of one's own, for a choice that goes to several
nodes, and for graphs in API format, which hold no app.

The first two inputs are always the name and the value: a parameter and its default are found by them. Values are
checked here as well, because a graph runs from the editor and from ComfyUI's API too, not only through the service.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from comfy_api.latest import io

from ..errors import InvalidParameter
from .schema.sockets import CATEGORY, LARGEST_INTEGER, AnyComboOutput

PARAMETERS = f"{CATEGORY}/parameters"
LONGEST_TEXT = 1_000_000


def parameter_schema(
    kind: str,
    description: str,
    name: str,
    values: Sequence[io.Input],
    outputs: Sequence[io.Output],
    more: Sequence[io.Input] = (),
) -> io.Schema:
    """The schema of the parameter node for a ``kind`` of value.

    ``name`` is the default of the parameter's name. ``values`` come before the description, ``more`` after it: the
    order is part of every saved graph.
    """
    return io.Schema(
        node_id=f"NeuroLux{kind}Parameter",
        display_name=f"{kind} Parameter",
        category=PARAMETERS,
        description=description,
        inputs=[
            io.String.Input("name", default=name, tooltip="Name of the parameter in requests to this graph."),
            *values,
            io.String.Input(
                "description", default="", tooltip="What the parameter does. Callers see it in the API's schema."
            ),
            *more,
        ],
        outputs=list(outputs),
        hidden=[io.Hidden.prompt],
    )


def required_input() -> io.Boolean.Input:
    """Whether a request must give the parameter."""
    return io.Boolean.Input("required", default=False, tooltip="Whether a request must set this parameter.")


def range_inputs(number: Callable[..., io.Input], largest: float, **limits: Any) -> list[io.Input]:
    """A number and the range that it must be in, ``largest`` being the default of its end."""
    zero = type(largest)(0)
    return [
        number("value", default=zero, **limits, tooltip="The number used when a request sets none."),
        number("minimum", default=zero, **limits, tooltip="Smallest allowed number."),
        number("maximum", default=largest, **limits, tooltip="Largest allowed number."),
    ]


def check_range(name: str, value: float, minimum: float, maximum: float) -> None:
    """Raise InvalidParameter unless ``minimum`` <= ``value`` <= ``maximum``."""
    if minimum > maximum:
        raise InvalidParameter(name, f"{name}: minimum {minimum:g} is above maximum {maximum:g}; correct the node")
    if not minimum <= value <= maximum:
        nearest = minimum if value < minimum else maximum
        raise InvalidParameter(name, f"{name} {value:g} is outside {minimum:g} to {maximum:g}; nearest is {nearest:g}")


class TextParameter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return parameter_schema(
            "Text",
            "Text that a request to this graph can set, such as the prompt.",
            "prompt",
            [io.String.Input("value", default="", multiline=True, tooltip="The text used when a request sets none.")],
            [io.String.Output("text", display_name="text", tooltip="The text.")],
            [
                required_input(),
                io.Int.Input(
                    "max_length",
                    default=0,
                    min=0,
                    max=LONGEST_TEXT,
                    tooltip="Maximum length in characters. 0: no limit.",
                ),
            ],
        )

    @classmethod
    def execute(cls, name: str, value: str, description: str, required: bool, max_length: int) -> io.NodeOutput:
        if required and not value.strip():
            raise InvalidParameter(name, f"{name} is required and is empty; give it a text")
        if max_length and len(value) > max_length:
            raise InvalidParameter(name, f"{name} has {len(value)} characters; at most {max_length} are allowed")
        return io.NodeOutput(value)


class IntegerParameter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return parameter_schema(
            "Integer",
            "A whole number that a request to this graph can set, such as the width or the number of steps.",
            "steps",
            [
                *range_inputs(io.Int.Input, 100, min=-LARGEST_INTEGER, max=LARGEST_INTEGER),
                io.Int.Input(
                    "step", default=1, min=1, max=LARGEST_INTEGER, tooltip="Increment between allowed numbers."
                ),
            ],
            [io.Int.Output("integer", display_name="integer", tooltip="The number.")],
        )

    @classmethod
    def execute(cls, name: str, value: int, minimum: int, maximum: int, step: int, description: str) -> io.NodeOutput:
        check_range(name, value, minimum, maximum)
        return io.NodeOutput(value)


class NumberParameter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return parameter_schema(
            "Number",
            "A number that a request to this graph can set, such as the guidance or the strength.",
            "guidance_scale",
            [
                *range_inputs(io.Float.Input, 1.0, min=-1e9, max=1e9, step=0.01, round=1e-6),
                io.Float.Input(
                    "step", default=0.01, min=0.0001, max=1e6, step=0.0001, tooltip="Increment between allowed numbers."
                ),
            ],
            [io.Float.Output("number", display_name="number", tooltip="The number.")],
        )

    @classmethod
    def execute(
        cls, name: str, value: float, minimum: float, maximum: float, step: float, description: str
    ) -> io.NodeOutput:
        check_range(name, value, minimum, maximum)
        return io.NodeOutput(value)


class ChoiceParameter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return parameter_schema(
            "Choice",
            "One of several options that a request to this graph can choose. Links to any combo widget.",
            "model",
            [
                io.String.Input("value", default="", tooltip="The option used when a request chooses none."),
                io.String.Input(
                    "choices",
                    default="",
                    multiline=True,
                    tooltip="The options, one per line. Empty: the options of the linked widget.",
                ),
            ],
            [AnyComboOutput("choice", display_name="choice", tooltip="The chosen option.")],
        )

    @classmethod
    def execute(cls, name: str, value: str, choices: str, description: str) -> io.NodeOutput:
        options = [line.strip() for line in choices.splitlines() if line.strip()]
        if options and value not in options:
            raise InvalidParameter(name, f"{name} {value!r} is not a choice; use {', '.join(options)}")
        return io.NodeOutput(value)
