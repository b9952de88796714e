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
                "bdg train stage=generation",
                "bdg train stage=restoration data=shards 'data.shards=x/train-{000000..000099}.tar'",
                "bdg train -m stage=bridging stage.lambda=0.05,0.1 'glcm.scales=[1,2],[1,2,4]'",
            ),
        ),
        Verb(
            name="pipeline",
            summary="train the three stages, each inheriting from the one before",
            examples=(
                "bdg pipeline experiment=demo",
                "bdg pipeline experiment=demo seed=1",
                "bdg pipeline stages=[generation,restoration]",
            ),
        ),
        Verb(
            name="pack",
            summary="turn a folder of images into shuffled WebDataset shards with a manifest",
            words=("source", "output"),
            examples=(
                "bdg pack photos shards",
                "bdg pack photos shards 'parts={val:0.1,test:0.1}' max_size=512",
                "bdg pack pkg://datamodules/photographs runs/photographs parts=photographs",
            ),
        ),
        Verb(
            name="evaluate",
            summary="measure restored images under a named protocol",
            words=("source", "weights"),
            examples=(
                "bdg evaluate pairs",
                "bdg evaluate pairs mine.safetensors protocol=y json=scores.json",
                "bdg evaluate 'shards/test-*.tar' degradation=[rain,blur] severities=[3]",
            ),
        ),
        Verb(
            name="restore",
            summary="restore an image, or a folder of images",
            words=("input", "output"),
            examples=(
                "bdg restore rainy.jpg clear.png",
                "bdg restore rainy clear tile=256",
                "bdg restore rainy.jpg clear.png sampler=ddpm sample_steps=2",
            ),
        ),
        Verb(
            name="probe",
            summary="ask descriptors for a degradation's type and severity: the table of nearest neighbours",
            words=("source",),
            examples=(
                "bdg probe",
                "bdg probe photos descriptor=[mas_glcm,wavelet]",
                "bdg probe photos split=random json=probe.json",
            ),
        ),
    )
}
