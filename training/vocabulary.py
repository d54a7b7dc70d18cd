"""The words the starter model knows: subjects with their emoji, colours, grounds, and words that mean the same."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Subject:
    """One thing that the model knows: its words in a caption, its icon in both packages, its natural colour if any."""

    name: str
    icon: str
    group: str
    natural: str | None = None


# "caption words=icon name"; the icon is left out where it is the caption with hyphens. "!colour" names the colour
# that the emoji already has, so that "red apple" is the emoji itself and "blue apple" a recoloured one.
_TABLE = {
    "fruit": """apple=red-apple!red, pear!green, tangerine!orange, lemon!yellow, banana!yellow,
        watermelon, grapes!purple, strawberry!red, cherries!red, peach, pineapple, mango, coconut, kiwi=kiwi-fruit,
        blueberries!blue, avocado""",
    "vegetable": """tomato!red, carrot!orange, corn=ear-of-corn, broccoli!green, eggplant!purple, potato!brown, onion,
        garlic, cucumber!green, mushroom, pepper=hot-pepper!red, lettuce=leafy-green!green, pumpkin=jack-o-lantern""",
    "food": """bread, croissant, cheese=cheese-wedge!yellow, egg, pizza, hamburger, fries=french-fries, taco,
        hotdog=hot-dog, sushi, cookie, cake=birthday-cake, cupcake, doughnut, candy, lollipop, popcorn, pancakes,
        chocolate=chocolate-bar!brown, icecream=soft-ice-cream, coffee=hot-beverage, beer=beer-mug, wine=wine-glass,
        milk=glass-of-milk, honey=honey-pot""",
    "animal": """cat=cat-face, dog=dog-face, rabbit=rabbit-face, bear!brown, panda, koala, tiger=tiger-face, lion,
        cow=cow-face, pig=pig-face!pink, frog!green, monkey=monkey-face, mouse=mouse-face, horse=horse-face,
        fox!orange, wolf!gray, unicorn, elephant!gray, giraffe, zebra, sheep=ewe, chick=front-facing-baby-chick!yellow,
        rooster, penguin, duck, owl, eagle, parrot, flamingo!pink, swan, turtle!green, snake!green, crocodile!green,
        fish!blue, whale=spouting-whale!blue, dolphin!blue, shark, octopus, crab!red, snail, butterfly,
        bee=honeybee, ladybug=lady-beetle!red, spider, camel, kangaroo, hedgehog, squirrel=chipmunk, deer, hamster,
        dinosaur=sauropod!green, bat""",
    "face": """happy=grinning-face!yellow, smiling=smiling-face-with-smiling-eyes, sad=frowning-face,
        angry=pouting-face, crying=loudly-crying-face, laughing=face-with-tears-of-joy,
        winking=winking-face, sleeping=sleeping-face, cool=smiling-face-with-sunglasses,
        love=smiling-face-with-heart-eyes, surprised=astonished-face, nerd=nerd-face, robot,
        ghost, alien, clown=clown-face, skull, snowman, baby, devil=smiling-face-with-horns""",
    "weather": """sun=sun-with-face!yellow, cloud, rain=cloud-with-rain, snow=cloud-with-snow, snowflake,
        lightning=high-voltage!yellow, rainbow, moon=crescent-moon!yellow, tornado, umbrella, fire,
        drop=droplet!blue, wave=water-wave!blue, planet=ringed-planet, globe=globe-showing-europe-africa""",
    "vehicle": """car=automobile!red, taxi!yellow, bus, truck=delivery-truck, ambulance,
        firetruck=fire-engine!red,
        police=police-car, tractor, bicycle, motorcycle, scooter=kick-scooter,
        train, locomotive, airplane, helicopter, rocket, ship,
        sailboat, ufo=flying-saucer, skateboard""",
    "building": """house, castle, church, school, hospital, factory, office=office-building, bank, hotel, tent, hut,
        mosque, stadium, fountain, bridge=bridge-at-night""",
    "nature": """tree=deciduous-tree!green, pine=evergreen-tree!green, palm=palm-tree, cactus!green, flower=hibiscus,
        sunflower, tulip, rose, leaf=maple-leaf, clover=four-leaf-clover!green, mountain=snow-capped-mountain, volcano,
        island=desert-island, rock""",
    "object": """book=closed-book!red, pencil, key, lock=locked, bell!yellow, clock=alarm-clock, watch,
        phone=mobile-phone, laptop, camera, television, lightbulb=light-bulb, candle, gift=wrapped-gift,
        balloon!red, football=soccer-ball, basketball!orange, guitar, drum, trumpet, violin, piano=musical-keyboard,
        hammer, wrench, scissors, axe, sword=dagger, shield, anchor, crown, hat=top-hat, shoe=running-shoe,
        dress, shirt=t-shirt, jeans!blue, glasses, handbag, backpack, ring, gem=gem-stone!blue, trophy, chair,
        bed, door!brown, magnet, telescope, envelope, package, dice=game-die, kite, teddy=teddy-bear, bomb, broom,
        palette=artist-palette""",
}


def _subjects() -> tuple[Subject, ...]:
    found = []
    for group, table in _TABLE.items():
        for entry in table.replace("\n", " ").split(","):
            entry, _, natural = entry.strip().partition("!")
            name, _, icon = entry.partition("=")
            found.append(Subject(name.strip(), icon.strip() or name.strip().replace(" ", "-"), group, natural or None))
    return tuple(found)


SUBJECTS: tuple[Subject, ...] = _subjects()

# The subjects that are taught most: everyday things, sure before the others take shape.
CORE: tuple[str, ...] = tuple(
    """
    apple lemon banana watermelon grapes strawberry cherries pineapple tomato carrot corn eggplant mushroom pumpkin
    pizza hamburger cake doughnut cat dog rabbit bear panda pig frog lion fox elephant penguin chick fish whale
    butterfly bee happy smiling sad angry laughing ghost robot snowman sun cloud rain rainbow moon lightning umbrella
    car bus truck airplane rocket train sailboat house castle church school tree cactus sunflower tulip
    """.split()  # noqa: SIM905 - a list this long is easier to read as prose
)

# Shapes with the colour they take when none is named.
SHAPES: dict[str, str] = {"circle": "red", "square": "blue", "triangle": "green", "star": "yellow", "heart": "red"}

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (212, 24, 38),
    "orange": (244, 124, 16),
    "yellow": (250, 208, 28),
    "green": (28, 148, 60),
    "blue": (24, 84, 220),
    "purple": (124, 44, 176),
    "pink": (248, 112, 176),
    "brown": (128, 76, 40),
    "black": (24, 24, 28),
    "white": (255, 255, 255),
    "gray": (128, 132, 138),
}

# Grounds are lighter than the colours of things, so that a red apple shows on red.
GROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "red": (242, 104, 100),
    "orange": (255, 176, 92),
    "yellow": (255, 232, 120),
    "green": (132, 208, 132),
    "blue": (116, 176, 252),
    "purple": (180, 132, 224),
    "pink": (255, 188, 216),
    "black": (44, 44, 50),
}

STYLES = ("flat", "noto")
SIZES = ("small", "big")
COUNTS = {"two": 2, "three": 3, "four": 4}
PLACES = ("left", "right", "top", "bottom", "center")
RELATIONS = ("and", "above", "below")

# Words that mean the trained word before the colon; their embedding rows are copied at export.
_SAME_AS = """
    cat: kitten kitty, dog: puppy, rabbit: bunny hare, car: automobile, airplane: plane aeroplane jet, bicycle:
    bike, motorcycle: motorbike, hamburger: burger cheeseburger, doughnut: donut, house: home cottage, corn: maize,
    eggplant: aubergine, monkey: orangutan ape, pig: piglet, sheep: lamb ewe, frog: toad, horse: pony, squirrel:
    chipmunk, deer: stag, ladybug: ladybird, bee: honeybee, smiling: smiley smile, happy: joyful grinning, sad:
    unhappy, angry: mad furious, crying: weeping, winking: wink, sleeping: asleep sleepy, surprised: shocked
    astonished, sun: sunshine, cloud: clouds, lightning: bolt thunder, fire: flame, drop: water raindrop droplet,
    globe: earth world, planet: saturn, taxi: cab, truck: lorry, rocket: spaceship, sailboat: boat, gift: present,
    football: soccer ball, television: tv, clock: alarm, lightbulb: bulb, piano: keyboard, sword: dagger knife,
    shoe: sneaker, shirt: tshirt, jeans: trousers, handbag: purse, gem: diamond jewel, trophy: cup, package: parcel
    box, dice: die, envelope: letter mail, phone: smartphone, laptop: notebook computer, tangerine: mandarin,
    cherries: cherry, grapes: grape, blueberries: blueberry, pancakes: pancake, lettuce: salad, bread: loaf, pepper:
    chili chilli, background: backdrop ground, gray: grey, purple: violet, red: crimson scarlet, yellow: golden
    gold, center: centre middle centered, big: large huge giant, small: tiny little, top: upper, bottom: lower,
    above: over, below: under beneath, and: beside next, two: 2 pair, three: 3, four: 4, firetruck: engine, flat:
    fluent, circle: disc disk, office: skyscraper, mountain: mount, pine: fir christmas, flower: hibiscus blossom
"""
ALIASES: dict[str, str] = {
    alias: word.strip()
    for word, _, aliases in (entry.partition(":") for entry in _SAME_AS.replace("\n", " ").split(","))
    for alias in aliases.split()
}

# Dropped by the tokenizers before words are looked up.
FILLERS: tuple[str, ...] = tuple(
    """
    a an the on in of at with to is it its side picture image drawing photo emoji emoticon icon illustration
    face faces please draw one single against s
    """.split()  # noqa: SIM905 - a list this long is easier to read as prose
)

# Two words that the tokenizers write as one before they look it up.
COMPOUNDS = {
    "hot dog": "hotdog",
    "ice cream": "icecream",
    "fire engine": "firetruck",
    "fire truck": "firetruck",
    "police car": "police",
    "light bulb": "lightbulb",
    "pine tree": "pine",
    "palm tree": "palm",
    "christmas tree": "pine",
    "fir tree": "pine",
    "soccer ball": "football",
    "teddy bear": "teddy",
    "alarm clock": "clock",
    "maple leaf": "leaf",
    "top hat": "hat",
    "french fries": "fries",
    "mobile phone": "phone",
    "flying saucer": "ufo",
    "office building": "office",
    "hot air balloon": "balloon",
    "lady bug": "ladybug",
}


def _words() -> tuple[str, ...]:
    words: dict[str, None] = {}
    for phrase in (*COLOURS, *SHAPES, *STYLES, "style", "background", *SIZES, *COUNTS, *PLACES, *RELATIONS):
        words[phrase] = None
    for subject in SUBJECTS:
        words.update(dict.fromkeys(subject.name.split()))
    return tuple(words)


WORDS: tuple[str, ...] = _words()


def ground_word(colour: str) -> str:
    """The one token of ``<colour> background``; so no colour of a thing is mistaken for the colour of the ground."""
    return f"{colour}ground"


def _plural(word: str) -> str:
    if word.endswith(("s", "sh", "ch", "x")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def all_aliases() -> dict[str, str]:
    """Every word that stands for a trained one: the table above plus the plurals of subjects and shapes."""
    known = set(WORDS)
    aliases = {word: meant for word, meant in ALIASES.items() if word not in known}
    nouns = [*SHAPES, *(subject.name.split()[-1] for subject in SUBJECTS)]
    for word in nouns:
        plural = _plural(word)
        if plural not in known:
            aliases.setdefault(plural, word)
    for word, meant in (
        ("mice", "mouse"),
        ("wolves", "wolf"),
        ("leaves", "leaf"),
        ("tomatoes", "tomato"),
        ("potatoes", "potato"),
        ("mangoes", "mango"),
        ("babies", "baby"),
    ):
        aliases[word] = meant
    return {word: meant for word, meant in aliases.items() if meant in known}
