"""The verbs of `bdg <verb>` as a table: what each does, the words it takes, and three examples; nothing is imported for it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """One verb. Its config is `conf/<name>.yaml`; its work is `bdg.commands.<name>.run(config, request)`.

    `words` are the config keys that bare words on the command line fill, in order: with `("input", "output")`,
    `bdg restore a.jpg b.png` is `bdg restore input=a.jpg output=b.png`.
    """

    name: str
    summary: str
    examples: tuple[str, str, str]
    words: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        return " ".join(["bdg", self.name, *map(str.upper, self.words), "[key=value ...]"])


VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            name="train",
            summary="train one stage",
            examples=(
                "bdg train stage=generation data.shards='shards/train-{000000..000009}.tar'",
                "bdg train stage=restoration experiment=demo",
                "bdg train -m experiment=demo stage.weights.noise=0.5,1",
            ),
        ),
        Verb(
            name="pipeline",
            summary="train the three stages, each inheriting from the one before",
            examples=(
                "bdg pipeline experiment=demo",
                "bdg pipeline experiment=demo seed=1",
                "bdg pipeline --cfg job",
            ),
        ),
        Verb(
            name="pack",
            summary="turn folders of images into shuffled WebDataset shards with a manifest",
            words=("source", "output"),
            examples=(
                "bdg pack photos shards",
                "bdg pack photos shards json=pack.json",
                "bdg pack --cfg job",
            ),
        ),
        Verb(
            name="evaluate",
            summary="measure restored images under a named protocol",
            words=("data", "weights"),
            examples=(
                "bdg evaluate pairs",
                "bdg evaluate pairs weights.safetensors protocol=y",
                "bdg evaluate pairs json=scores.json",
            ),
        ),
        Verb(
            name="restore",
            summary="restore an image or a folder of images",
            words=("input", "output"),
            examples=(
                "bdg restore rainy.jpg clear.png",
                "bdg restore rainy/ clear/",
                "bdg restore rainy.jpg clear.png sample_steps=5",
            ),
        ),
        Verb(
            name="probe",
            summary="ask descriptors which degradation an image has, and how much of it (the k-NN table)",
            words=("source",),
            examples=(
                "bdg probe photos",
                "bdg probe photos split=random",
                "bdg probe photos json=probe.json",
            ),
        ),
    )
}
