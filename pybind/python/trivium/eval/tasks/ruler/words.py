"""Words to make keys and names of."""

from __future__ import annotations

import random

ADJECTIVES = (
    "amber", "ancient", "autumn", "bitter", "black", "blue", "bold", "brave", "brief", "bright", "broad", "calm", "cold", "crimson",
    "curious", "damp", "dark", "dawn", "deep", "distant", "dry", "dusty", "eager", "early", "empty", "faint", "fancy", "fierce",
    "floral", "fragrant", "frosty", "gentle", "golden", "grand", "grateful", "green", "grey", "hidden", "hollow", "humble", "icy",
    "idle", "ivory", "jolly", "keen", "late", "lively", "lonely", "loud", "lucky", "mellow", "misty", "modern", "morning", "muddy",
    "narrow", "noble", "noisy", "odd", "old", "orange", "pale", "patient", "plain", "polished", "proud", "purple", "quick", "quiet",
    "rapid", "restless", "rough", "round", "royal", "rustic", "sandy", "scarlet", "secret", "shy", "silent", "silver", "small",
    "snowy", "solemn", "steep", "still", "summer", "swift", "tall", "tender", "tidy", "tiny", "velvet", "violet", "wandering",
    "warm", "weathered", "white", "wild", "winter", "wise", "young",
)  # fmt: skip
NOUNS = (
    "acorn", "anchor", "apple", "arrow", "badger", "basket", "beacon", "bell", "birch", "boat", "bridge", "brook", "butterfly",
    "candle", "canyon", "castle", "cedar", "cherry", "cliff", "cloud", "clover", "copper", "coral", "cottage", "creek", "crown",
    "dew", "dove", "dragon", "dream", "drum", "eagle", "ember", "falcon", "feather", "fern", "field", "fire", "flower", "fog",
    "forest", "fountain", "fox", "garden", "glade", "glove", "grove", "hammer", "harbour", "harp", "hawk", "hazel", "heron",
    "hill", "island", "ivy", "jacket", "jewel", "kettle", "kite", "ladder", "lake", "lantern", "leaf", "lily", "lion", "maple",
    "marble", "meadow", "mill", "mirror", "moon", "moss", "mountain", "needle", "nest", "oak", "ocean", "orchard", "otter", "owl",
    "palace", "paper", "pear", "pebble", "pine", "pond", "poplar", "quill", "rain", "raven", "reed", "ribbon", "river", "robin",
    "rose", "sail", "saddle", "shadow", "shell", "silk", "sparrow", "spoon", "star", "stone", "storm", "stream", "swan", "thistle",
    "thunder", "timber", "tower", "trail", "tulip", "valley", "violin", "wagon", "water", "wave", "willow", "wind", "window",
    "wolf", "wren",
)  # fmt: skip
SYLLABLES = ("bar", "bel", "cor", "dan", "del", "fen", "gar", "hal", "kel", "lam", "lor", "mar", "mel", "nor", "or", "pel", "quin",
             "ros", "sel", "tam", "tor", "ul", "van", "wes", "yar", "zel")  # fmt: skip


def keys(draw: random.Random, count: int) -> list[str]:
    """Distinct names such as ``quiet-heron``."""
    chosen = draw.sample(range(len(ADJECTIVES) * len(NOUNS)), count)
    return [f"{ADJECTIVES[n // len(NOUNS)]}-{NOUNS[n % len(NOUNS)]}" for n in chosen]


def capacity() -> int:
    """How many distinct keys there are."""
    return len(ADJECTIVES) * len(NOUNS)


def name(draw: random.Random) -> str:
    """A made-up proper name of two or three syllables."""
    return "".join(draw.choices(SYLLABLES, k=draw.choice((2, 3)))).capitalize()
