"""The fixed prompts of the evaluation, each with the scene it means, and the unseen prompts of the model card."""

from __future__ import annotations

from dataclasses import dataclass, replace

from training.scenes import SIDE, Item, Scene


@dataclass(frozen=True)
class Case:
    """One evaluated prompt."""

    prompt: str
    scene: Scene
    kind: str
    size: tuple[int, int] = (SIDE, SIDE)  # width and height in pixels


def _one(
    name: str, ground: str = "white", style: str = "flat", colour: str | None = None, kind: str = "subject"
) -> Case:
    said = f"{colour} {name}" if colour else name
    style_said = ", noto style" if style == "noto" else ""
    return Case(
        f"{said}{style_said}, {ground} background", Scene((Item(name, colour),), ground=ground, style=style), kind
    )


def _placed(prompt: str, name: str, colour: str | None, place: str, ground: str, size: str | None = None) -> Case:
    return Case(prompt, Scene((Item(name, colour, size),), place=place, ground=ground), "place")


def _pair(prompt: str, first: Item, second: Item, relation: str, ground: str) -> Case:
    return Case(prompt, Scene((first, second), relation=relation, ground=ground), "pair")


CASES: tuple[Case, ...] = (
    _one("apple", "blue", colour="red"),
    _one("banana", "purple"),
    _one("strawberry"),
    _one("watermelon", "yellow"),
    _one("lemon", "pink"),
    _one("cherries"),
    _one("carrot"),
    _one("tomato", "green"),
    _one("corn", "blue"),
    _one("mushroom", "blue"),
    _one("pumpkin", "black"),
    _one("pizza", "orange"),
    _one("hamburger"),
    _one("cake", "pink"),
    _one("cat", "green"),
    _one("dog"),
    _one("rabbit", "purple"),
    _one("panda", "pink"),
    _one("lion", "blue"),
    _one("frog", "yellow"),
    _one("fox"),
    _one("elephant"),
    _one("penguin", "orange"),
    _one("fish", "yellow"),
    _one("butterfly", "green"),
    _one("happy", "blue"),
    _one("sad"),
    _one("angry", "black"),
    _one("ghost", "purple"),
    _one("robot", "yellow"),
    _one("sun", "blue"),
    _one("cloud", "blue"),
    _one("rainbow"),
    _one("umbrella", "yellow"),
    _one("car"),
    _one("bus", "green"),
    _one("airplane"),
    _one("rocket", "black"),
    _one("sailboat", "pink"),
    _one("house"),
    _one("castle", "green"),
    _one("tree", "blue"),
    _one("tulip", "yellow"),
    _one("circle", colour="red", kind="shape"),
    _one("square", "yellow", colour="blue", kind="shape"),
    _one("triangle", "pink", colour="green", kind="shape"),
    _one("star", "black", colour="yellow", kind="shape"),
    _one("heart", colour="purple", kind="shape"),
    _one("circle", "green", colour="black", kind="shape"),
    _one("heart", "blue", colour="pink", kind="shape"),
    _one("square", colour="orange", kind="shape"),
    _placed("a red circle on the left, blue background", "circle", "red", "left", "blue"),
    _placed("yellow star on the right, black background", "star", "yellow", "right", "black"),
    _placed("a cat at the bottom, green background", "cat", None, "bottom", "green"),
    _placed("a rocket at the top, purple background", "rocket", None, "top", "purple"),
    _pair("red circle and blue square", Item("circle", "red"), Item("square", "blue"), "and", "white"),
    _pair(
        "yellow star above a purple heart, pink background",
        Item("star", "yellow"),
        Item("heart", "purple"),
        "above",
        "pink",
    ),
    Case("two hearts, white background", Scene((Item("heart"),), count="two"), "count"),
    Case("three apples, yellow background", Scene((Item("apple"),), count="three", ground="yellow"), "count"),
    Case("four pink stars, blue background", Scene((Item("star", "pink"),), count="four", ground="blue"), "count"),
)


def _sized(case: Case, width: int, height: int) -> Case:
    return replace(case, kind="size", size=(width, height))


# Rarer subjects, the other style, recoloured subjects, pairs of subjects, other sizes.
HARDER_CASES: tuple[Case, ...] = (
    _one("octopus", "black"),
    _one("guitar", "yellow"),
    _one("camera", "pink"),
    _one("volcano"),
    _one("scissors", "green"),
    _one("trophy", "blue"),
    _one("helicopter"),
    _one("owl", "orange"),
    _one("cat", style="noto", kind="noto"),
    _one("rocket", "blue", "noto", kind="noto"),
    _one("strawberry", "yellow", "noto", kind="noto"),
    _one("house", "green", "noto", kind="noto"),
    _one("car", colour="blue", kind="recoloured"),
    _one("cat", "yellow", colour="black", kind="recoloured"),
    _one("elephant", "green", colour="pink", kind="recoloured"),
    _pair("a cat and a dog, yellow background", Item("cat"), Item("dog"), "and", "yellow"),
    _pair("a banana and a strawberry, blue background", Item("banana"), Item("strawberry"), "and", "blue"),
    _pair("a crown above a cat, red background", Item("crown"), Item("cat"), "above", "red"),
    _placed("a small whale, bottom, orange background", "whale", None, "bottom", "orange", "small"),
    _placed("small green triangle, top left, pink background", "triangle", "green", "top left", "pink", "small"),
    _sized(_one("apple", "blue", colour="red"), 144, 144),
    _sized(_one("penguin", "orange"), 160, 160),
    _sized(_placed("a dog on the left, green background", "dog", None, "left", "green"), 176, 128),
    _sized(_one("house", "pink"), 128, 224),
    _sized(_one("cat", "yellow"), 192, 192),
    _sized(_one("circle", "yellow", colour="blue"), 192, 192),
    _sized(_one("rocket", "purple"), 208, 240),
    _sized(_one("apple", "blue", colour="red"), 256, 256),
    _sized(_one("castle", "green"), 256, 256),
    _sized(Case("two hearts, pink background", Scene((Item("heart"),), count="two", ground="pink"), "count"), 256, 192),
)


def _new(prompt: str, kind: str, *items: Item, ground: str = "white", **said: str) -> Case:
    return Case(prompt, Scene(items, ground=ground, **said), kind)


# New combinations of known words; the card checks that none of these scenes is in a bank.
UNSEEN: tuple[Case, ...] = (
    _new("a big red heart on a black background", "shape", Item("heart", "red", "big"), ground="black"),
    _new("a big brown star, green background", "shape", Item("star", "brown", "big"), ground="green"),
    _new("a small white circle, purple background", "shape", Item("circle", "white", "small"), ground="purple"),
    _new(
        "an orange triangle at the bottom, pink background",
        "place",
        Item("triangle", "orange"),
        place="bottom",
        ground="pink",
    ),
    _new("a panda on the left, green background", "place", Item("panda"), place="left", ground="green"),
    _new("a penguin on the right, red background", "place", Item("penguin"), place="right", ground="red"),
    _new("a sun at the top, purple background", "place", Item("sun"), place="top", ground="purple"),
    _new("a car at the bottom, yellow background", "place", Item("car"), place="bottom", ground="yellow"),
    _new(
        "a cat and a red heart, blue background",
        "pair",
        Item("cat"),
        Item("heart", "red"),
        relation="and",
        ground="blue",
    ),
    _new(
        "a yellow circle above a blue square, green background",
        "pair",
        Item("circle", "yellow"),
        Item("square", "blue"),
        relation="above",
        ground="green",
    ),
    _new("a rocket above a purple star", "pair", Item("rocket"), Item("star", "purple"), relation="above"),
    _new(
        "a green circle and a brown triangle, pink background",
        "pair",
        Item("circle", "green"),
        Item("triangle", "brown"),
        relation="and",
        ground="pink",
    ),
    _new("two frogs, pink background", "count", Item("frog"), count="two", ground="pink"),
    _new("three penguins, blue background", "count", Item("penguin"), count="three", ground="blue"),
    _new("four lemons, purple background", "count", Item("lemon"), count="four", ground="purple"),
    _new("two blue squares, orange background", "count", Item("square", "blue"), count="two", ground="orange"),
    _new("a blue dog, yellow background", "recoloured", Item("dog", "blue"), ground="yellow"),
    _new("a small banana, red background", "subject", Item("banana", None, "small"), ground="red"),
    _new("a house and a tree, blue background", "pair", Item("house"), Item("tree"), relation="and", ground="blue"),
    _new("a happy face and a sad face", "pair", Item("happy"), Item("sad"), relation="and"),
)
