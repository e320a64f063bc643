"""Documents that tests can tell apart, and shards made of them."""

import gzip
import json
import random
from pathlib import Path

SENTENCE = "the a lane of small dry words runs past every old stone wall and turns twice née café — before noon"
WORDS = SENTENCE.split()


def sentences(seed: str, count: int) -> list[str]:
    """Documents of 5 to 60 words, each recognisable by its first word."""
    rng = random.Random(seed)
    return [f"{seed}-{i} " + " ".join(rng.choices(WORDS, k=rng.randint(5, 60))) for i in range(count)]


def write_shard(path: Path, texts: list[str]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "u"}) + "\n")
